//! A server in this process whose answers a test writes itself, and which records what it was asked.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method};
use axum::response::Response;

/// A request as the server saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    headers: HeaderMap,
}

impl Seen {
    /// A header's text; empty when it was not sent.
    pub(crate) fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

type Script = dyn Fn(&Seen, usize) -> Response + Send + Sync;

#[derive(Clone)]
pub(crate) struct Server {
    host: String,
    script: Arc<Script>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// A server that asks `script` for every answer: what was asked, and how many requests with the same method and
    /// path came before.
    pub(crate) async fn start(script: impl Fn(&Seen, usize) -> Response + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let server = Self { host, script: Arc::new(script), seen: Arc::default() };
        let app = axum::Router::new().fallback(handle).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        server
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The requests whose path contains `part`.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }
}

async fn handle(State(server): State<Server>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let seen = Seen { method: head.method, path: head.uri.path().to_owned(), query, headers: head.headers };
    let before = {
        let mut log = server.seen.lock().unwrap();
        let before = log.iter().filter(|other| other.method == seen.method && other.path == seen.path).count();
        log.push(seen.clone());
        before
    };
    let _ = axum::body::to_bytes(body, usize::MAX).await;
    (server.script)(&seen, before)
}

pub(crate) fn answer(status: u16) -> Response {
    Response::builder().status(status).body(Body::empty()).unwrap()
}

pub(crate) fn refusal(status: u16, code: &str) -> Response {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"as scripted"}}]}}"#);
    Response::builder().status(status).body(body.into()).unwrap()
}

pub(crate) fn with(mut response: Response, name: HeaderName, value: impl AsRef<str>) -> Response {
    response.headers_mut().insert(name, value.as_ref().parse().unwrap());
    response
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("an end within 60 s")
}
