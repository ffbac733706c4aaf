//! A store as an OCI registry over HTTP: what pull and push need of OCI distribution-spec v1.1.1, and
//! an honest `UNSUPPORTED` for the rest (deletion, referrers, indexes of manifests).
//!
//! Blobs are shared between repositories, as they are in the store. Nothing asks who is there: serve
//! on the loopback interface, or behind something that does.
//! <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md>

mod content;
mod read;
mod refusal;
mod route;
mod upload;
mod write;

use std::future::{Future, IntoFuture as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::header::{ALLOW, CONTENT_LENGTH};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;
use crate::progress::Progress;
use crate::storage::{Catalog, Push};
use content::Arriving;
use refusal::{Code, Failure, Refusal};
use route::Route;
use upload::Uploads;

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");
const REGISTRY_2: HeaderValue = HeaderValue::from_static("registry/2.0");
const DOCKER_API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// How a store is served.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Whether everything that would change the store is refused.
    pub read_only: bool,
    /// Where uploads of several requests wait, in files without names; best on the store's own disk,
    /// because each may be as large as a blob.
    pub upload_directory: PathBuf,
    /// How many uploads may wait at once; more are answered with `TOOMANYREQUESTS`.
    pub max_uploads: usize,
    /// How long an upload may wait for its next request.
    pub upload_lifetime: Duration,
    /// How long requests under way may go on after the shutdown began.
    pub grace: Duration,
    /// Where failures of the store are told, which clients do not hear about.
    pub progress: Progress,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            upload_directory: std::env::temp_dir(),
            max_uploads: 256,
            upload_lifetime: Duration::from_secs(60 * 60),
            grace: Duration::from_secs(10),
            progress: Progress::silent(),
        }
    }
}

/// Serves `store` on `listener` until `shutdown` is done; requests under way then have
/// [`ServeOptions::grace`] to come to their end.
///
/// # Errors
/// [`ErrorKind::Registry`] when the listener fails for good.
pub async fn serve<S>(
    store: Arc<S>,
    listener: TcpListener,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()>
where
    S: Push + Catalog + 'static,
{
    let grace = options.grace;
    let server = Arc::new(Server { store, uploads: Uploads::new(&options), options });
    let router = Router::new().fallback(answer::<S>).with_state(server);
    let stopping = Arc::new(Notify::new());
    let stop = Arc::clone(&stopping);
    let served = axum::serve(listener, router).with_graceful_shutdown(async move {
        shutdown.await;
        stop.notify_one();
    });
    let out_of_patience = async {
        stopping.notified().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        ended = served.into_future() => {
            ended.map_err(|cause| Error::new(ErrorKind::Registry, "The server failed").caused_by(cause))
        }
        () = out_of_patience => Ok(()),
    }
}

/// What all requests share.
struct Server<S> {
    store: Arc<S>,
    uploads: Uploads,
    options: ServeOptions,
}

/// A request that has been read as far as its headers.
struct Exchange<'server, S> {
    server: &'server Server<S>,
    parts: Parts,
    query: Vec<(String, String)>,
    body: Arriving,
}

type Answer = Result<Response, Failure>;

async fn answer<S>(State(server): State<Arc<Server<S>>>, request: Request) -> Response
where
    S: Push + Catalog + 'static,
{
    let (parts, body) = request.into_parts();
    let asked = format!("{} {}", parts.method, parts.uri.path());
    let query = Query::try_from_uri(&parts.uri).map(|Query(query)| query).unwrap_or_default();
    let exchange = Exchange { server: &server, parts, query, body: Arriving::new(body) };
    match exchange.answer().await {
        Ok(response) => response,
        Err(Failure::Refused(refusal)) => refusal.into_response(),
        Err(Failure::Failed(error)) => {
            server.options.progress.note(format!("{asked} failed: {}", error.chain()));
            let message = "The registry failed; its own log says why";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, Code::Unknown, message).into_response()
        }
    }
}

impl<S> Exchange<'_, S>
where
    S: Push + Catalog + 'static,
{
    async fn answer(&self) -> Answer {
        let route = Route::parse(self.parts.uri.path())?;
        let method = &self.parts.method;
        let reads = [Method::GET, Method::HEAD].contains(method);
        if self.server.options.read_only && !reads {
            let message = "This registry is read-only";
            return Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message)
                .with(ALLOW, HeaderValue::from_static("GET, HEAD"))
                .into());
        }
        match (method.as_str(), &route) {
            // Older Docker clients take a server without this header for one of another protocol.
            (_, Route::Base) if reads => Ok(reply(StatusCode::OK, [(DOCKER_API_VERSION, REGISTRY_2)])),
            ("GET", Route::Tags(repository)) => self.tags(repository).await,
            (_, Route::Manifest(_, reference)) if reads => self.manifest(reference).await,
            (_, Route::Blob(_, digest)) if reads => self.blob(digest).await,
            ("PUT", Route::Manifest(repository, reference)) => self.put_manifest(repository, reference).await,
            ("POST", Route::Uploads(repository)) => self.begin_upload(repository).await,
            ("GET", Route::Upload(repository, id)) => self.upload_status(repository, id).await,
            ("PATCH", Route::Upload(repository, id)) => self.continue_upload(repository, id).await,
            ("PUT", Route::Upload(repository, id)) => self.finish_upload(repository, id).await,
            ("DELETE", Route::Upload(repository, id)) => self.cancel_upload(repository, id),
            _ => {
                let allowed = match route {
                    Route::Base | Route::Blob(..) => "GET, HEAD",
                    Route::Tags(_) => "GET",
                    Route::Manifest(..) => "GET, HEAD, PUT",
                    Route::Uploads(_) => "POST",
                    Route::Upload(..) => "GET, PATCH, PUT, DELETE",
                };
                let message = format!("`{method}` is not supported here");
                Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, Code::Unsupported, message)
                    .with(ALLOW, HeaderValue::from_static(allowed))
                    .into())
            }
        }
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
