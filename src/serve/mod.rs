//! A store as an OCI registry over HTTP: OCI distribution-spec v1.1.1, with deletion when it is allowed.
//!
//! Blobs are shared between repositories, as they are in the store.
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md>

mod auth;
mod content;
mod listen;
mod listing;
mod metrics;
mod read;
mod refusal;
mod remove;
mod route;
mod upload;
mod write;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Query, Request};
use axum::http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use futures_util::StreamExt as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

#[doc(hidden)]
pub use route::chunk_range;

pub use auth::{Auth, Users};
pub use listen::TlsIdentity;
pub use metrics::{Access, AccessLog};

use crate::error::Result;
use crate::oci::{Digest, MAX_MANIFEST_SIZE};
use crate::progress::Progress;
use crate::storage::{Catalog, Remove, Stage};
use auth::Gate;
use content::Arriving;
use listing::Subjects;
use metrics::{Counted, Metrics};
use refusal::{Code, Failure, Refusal};
use route::Route;
use upload::Uploads;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const REGISTRY_2: HeaderValue = HeaderValue::from_static("registry/2.0");
const DOCKER_API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// How many requests at once may hold manifests in memory, or read many of them.
const LARGE_AT_ONCE: usize = 8;

/// A place that can be served.
pub trait Served: Catalog + Stage + Remove + 'static {}

impl<T: Catalog + Stage + Remove + 'static> Served for T {}

/// How a store is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Whether everything that would change the store is refused.
    pub read_only: bool,
    /// Whether manifests, tags and blobs can be deleted.
    pub allow_delete: bool,
    /// Who may ask; everybody if `None`.
    pub auth: Option<Auth>,
    /// What HTTPS needs; plain HTTP if `None`.
    pub tls: Option<TlsIdentity>,
    /// How many connections may be open at once; more wait to be accepted.
    pub max_connections: usize,
    /// How many uploads may wait at once; more are answered with `TOOMANYREQUESTS`.
    pub max_uploads: usize,
    /// How many bytes a blob may have.
    pub max_blob: u64,
    /// How long an upload may wait for its next request.
    pub upload_lifetime: Duration,
    /// How long a connection may wait for its next request, and that take until its headers are whole.
    pub idle: Duration,
    /// How long a body that comes or goes may stand still.
    pub silence: Duration,
    /// How long requests under way may go on after the shutdown began.
    pub grace: Duration,
    /// Who is told of every request.
    pub access_log: Option<AccessLog>,
    /// Where failures of the store are told, which clients do not hear about.
    pub progress: Progress,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            allow_delete: false,
            auth: None,
            tls: None,
            max_connections: 1024,
            max_uploads: 256,
            max_blob: 1 << 40,
            upload_lifetime: Duration::from_secs(60 * 60),
            idle: Duration::from_secs(120),
            silence: Duration::from_secs(60),
            grace: Duration::from_secs(10),
            access_log: None,
            progress: Progress::silent(),
        }
    }
}

/// Serves `store` on `listener` until `shutdown` is done; requests under way then have
/// [`ServeOptions::grace`] to come to their end.
///
/// # Errors
/// [`crate::ErrorKind::Unexpected`] when the system has no random numbers.
pub async fn serve<S: Served>(
    store: Arc<S>,
    listener: TcpListener,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let server = Server {
        store,
        uploads: Uploads::new(&options),
        subjects: Subjects::default(),
        gate: Gate::new(options.auth.clone(), scheme)?,
        metrics: Arc::new(Metrics::new(options.access_log.clone())),
        large: Semaphore::new(LARGE_AT_ONCE),
        options,
    };
    listen::run(Arc::new(server), listener, shutdown).await
}

/// What all requests share.
struct Server<S: Served> {
    store: Arc<S>,
    uploads: Uploads<S::Staged>,
    subjects: Subjects,
    gate: Gate,
    metrics: Arc<Metrics>,
    /// Held by requests that take much memory or many reads.
    large: Semaphore,
    options: ServeOptions,
}

/// A request that has been read as far as its headers.
struct Exchange<'server, S: Served> {
    server: &'server Server<S>,
    parts: Parts,
    query: Vec<(String, String)>,
    body: Arriving,
}

type Answer = Result<Response, Failure>;

async fn answer<S: Served>(server: &Server<S>, peer: SocketAddr, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let mut counted = Counted::new(&server.metrics, peer, parts.method.clone(), parts.uri.clone());
    let query = Query::try_from_uri(&parts.uri).map(|Query(query)| query).unwrap_or_default();
    let body = Arriving::new(body, server.options.silence);
    let exchange = Exchange { server, parts, query, body };
    let response = match exchange.answer(&mut counted).await {
        Ok(response) => response,
        Err(Failure::Refused(refusal)) => refusal.into_response(),
        Err(Failure::Failed(error)) => {
            let asked = format!("{} {}", exchange.parts.method, exchange.parts.uri.path());
            server.options.progress.note(format!("{asked} failed: {}", error.chain()));
            let message = "The registry failed; its own log says why";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Unknown, message).into_response()
        }
    };
    exchange.hear_out().await;
    counted.answer(exchange.body.received(), response)
}

impl<S: Served> Exchange<'_, S> {
    async fn answer(&self, counted: &mut Counted) -> Answer {
        let route = Route::parse(self.parts.uri.path())?;
        counted.user(self.server.gate.admit(&self.parts, &route).await?);
        let method = &self.parts.method;
        let reads = [Method::GET, Method::HEAD].contains(method);
        if self.server.options.read_only && !reads {
            let message = "This registry is read-only";
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message)
                .with(ALLOW, HeaderValue::from_static("GET, HEAD"))
                .into());
        }
        let deletes = self.server.options.allow_delete;
        match (method.as_str(), &route) {
            // Older Docker clients take a server without this header for one of another protocol.
            (_, Route::Base) if reads => Ok(reply(StatusCode::OK, [(DOCKER_API_VERSION, REGISTRY_2)])),
            (_, Route::Health) if reads => Ok(self.text("ok\n".to_owned())),
            (_, Route::Metrics) if reads => Ok(self.text(self.server.metrics.text(self.server.uploads.count()))),
            ("GET", Route::Token) => self.server.gate.token(&self.parts, &self.query).await,
            (_, Route::Catalog) if reads => self.catalog().await,
            (_, Route::Tags(repository)) if reads => self.tags(repository).await,
            (_, Route::Referrers(repository, subject)) if reads => self.referrers(repository, subject).await,
            (_, Route::Manifest(_, reference)) if reads => self.manifest(reference).await,
            (_, Route::Blob(_, digest)) if reads => self.blob(digest).await,
            ("PUT", Route::Manifest(repository, reference)) => self.put_manifest(repository, reference).await,
            ("DELETE", Route::Manifest(_, reference)) if deletes => self.remove_manifest(reference).await,
            ("DELETE", Route::Blob(_, digest)) if deletes => self.remove_blob(digest).await,
            ("POST", Route::Uploads(repository)) => self.begin_upload(repository).await,
            ("GET", Route::Upload(repository, id)) => self.upload_status(repository, id),
            ("PATCH", Route::Upload(repository, id)) => self.continue_upload(repository, id).await,
            ("PUT", Route::Upload(repository, id)) => self.finish_upload(repository, id).await,
            ("DELETE", Route::Upload(repository, id)) => self.cancel_upload(repository, id),
            _ => {
                let message = format!("`{method}` is not supported here");
                Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message)
                    .with(ALLOW, HeaderValue::from_static(route.methods(deletes)))
                    .into())
            }
        }
    }

    /// Reads what is left of a small body that nobody wanted: a client that sends it all before it
    /// listens would not hear the answer.
    async fn hear_out(&self) {
        if self.content_length().is_some_and(|length| length <= MAX_MANIFEST_SIZE)
            && let Some(mut rest) = self.body.take()
        {
            while let Some(Ok(_)) = rest.next().await {}
        }
    }

    fn text(&self, text: String) -> Response {
        let plain = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        let mut response = reply(StatusCode::OK, [(CONTENT_LENGTH, text.len().into()), (CONTENT_TYPE, plain)]);
        if self.parts.method != Method::HEAD {
            *response.body_mut() = text.into();
        }
        response
    }

    /// A parameter of the query.
    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A header's text.
    fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// How long the body says it is.
    fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }
}

/// A reply without a body, unless `headers` give it a length and the caller the bytes.
fn reply<const N: usize>(status: StatusCode, headers: [(HeaderName, HeaderValue); N]) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    // A 204 has no Content-Length (RFC 9110, section 8.6).
    if status != StatusCode::NO_CONTENT {
        response.headers_mut().insert(CONTENT_LENGTH, 0.into());
    }
    for (name, value) in headers {
        response.headers_mut().insert(name, value);
    }
    response
}

/// A header's value, of text that the grammar of names and digests has let through.
fn value(text: impl AsRef<str>) -> HeaderValue {
    HeaderValue::from_str(text.as_ref()).unwrap_or(HeaderValue::from_static(""))
}

fn digest_value(digest: &Digest) -> HeaderValue {
    value(digest.to_string())
}
