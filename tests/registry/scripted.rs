//! A small registry in this process that follows the protocol strictly, and departs from it where a test's script
//! says so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use axum::http::{HeaderMap, HeaderName, Method};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use kiln::oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use kiln::registry::{Anonymous, Keychain, Options, Remote};

/// A request as the registry saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    pub(crate) fn is(&self, method: Method, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }

    pub(crate) fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// How a registry departs from the protocol for one request.
pub(crate) enum Twist {
    /// Answers this, without reading the request's body.
    Answer(Response),
    /// Does what it should and never says so.
    Silence,
    /// Does what it should and says this instead.
    Instead(Response),
}

pub(crate) type Script = dyn Fn(&Seen, usize) -> Option<Twist> + Send + Sync;

pub(crate) struct Registry {
    pub(crate) host: String,
    pub(crate) script: Box<Script>,
    pub(crate) seen: Mutex<Vec<Seen>>,
    pub(crate) blobs: Mutex<BTreeMap<String, Bytes>>,
    pub(crate) manifests: Mutex<BTreeMap<String, (String, Bytes)>>,
    /// How many bytes came whole and were not those of their digest.
    pub(crate) refused: Mutex<Vec<usize>>,
}

impl Registry {
    /// A registry that asks `script` about every request: what was asked, and how many with the same
    /// method and path came before.
    pub(crate) async fn start(script: impl Fn(&Seen, usize) -> Option<Twist> + Send + Sync + 'static) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Arc::new(Self {
            host: listener.local_addr().unwrap().to_string(),
            script: Box::new(script),
            seen: Mutex::default(),
            blobs: Mutex::default(),
            manifests: Mutex::default(),
            refused: Mutex::default(),
        });
        let app = axum::Router::new().fallback(handle).with_state(Arc::clone(&registry));
        tokio::spawn(async move { axum::serve(listener, app).await });
        registry
    }

    pub(crate) async fn faithful() -> Arc<Self> {
        Self::start(|_, _| None).await
    }

    pub(crate) fn reference(&self) -> Reference {
        format!("{}/team/model:v1", self.host).parse().unwrap()
    }

    pub(crate) fn remote(&self) -> Remote {
        self.remote_for(Anonymous)
    }

    pub(crate) fn remote_for(&self, keychain: impl Keychain + 'static) -> Remote {
        Remote::new(&self.reference(), Arc::new(keychain), &options()).unwrap()
    }

    pub(crate) fn keep(&self, content: impl Into<Bytes>) -> Descriptor {
        let content = content.into();
        let descriptor = Descriptor::of(MediaType::OLLAMA_TENSOR, &content);
        self.blobs.lock().unwrap().insert(descriptor.digest.to_string(), content);
        descriptor
    }

    pub(crate) fn has(&self, descriptor: &Descriptor) -> bool {
        self.blobs.lock().unwrap().contains_key(&descriptor.digest.to_string())
    }

    /// The requests with `method` whose path contains `part`.
    pub(crate) fn seen(&self, method: Method, part: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.is(method.clone(), part)).cloned().collect()
    }

    pub(crate) fn obey(&self, seen: &Seen, body: Bytes) -> Response {
        let path = seen.path.as_str();
        if path == "/v2/" {
            return answer(200);
        }
        let Some(rest) = path.strip_prefix("/v2/team/model/") else { return refusal(404, "NAME_UNKNOWN") };
        let (kind, name) = rest.split_once('/').unwrap_or((rest, ""));
        match (seen.method.as_str(), kind) {
            ("POST", "blobs") if name == "uploads/" => {
                assert_eq!(seen.header(CONTENT_LENGTH), "0");
                with(answer(202), LOCATION, "/v2/team/model/blobs/uploads/1?_state=a%2Bb%3D")
            }
            ("PUT", "blobs") => {
                let digest = seen.query.strip_prefix("_state=a%2Bb%3D&digest=").expect("the state, untouched");
                let digest = digest.replace("%3A", ":");
                assert_eq!(seen.header(CONTENT_LENGTH), body.len().to_string());
                if Digest::of(&body).to_string() != digest {
                    self.refused.lock().unwrap().push(body.len());
                    return refusal(400, "DIGEST_INVALID");
                }
                self.blobs.lock().unwrap().insert(digest, body);
                answer(201)
            }
            ("DELETE", "blobs") => answer(204),
            ("GET" | "HEAD", "blobs") => match self.blobs.lock().unwrap().get(name) {
                None => refusal(404, "BLOB_UNKNOWN"),
                Some(blob) => part(blob, range_of(seen)),
            },
            ("PUT", "manifests") => {
                let manifest = Manifest::parse(&body).unwrap();
                if manifest.blobs().any(|blob| !self.has(blob)) {
                    return refusal(400, "MANIFEST_BLOB_UNKNOWN");
                }
                let entry = (seen.header(CONTENT_TYPE).to_owned(), body.clone());
                let mut manifests = self.manifests.lock().unwrap();
                manifests.insert(Digest::of(&body).to_string(), entry.clone());
                manifests.insert(name.to_owned(), entry);
                answer(201)
            }
            ("GET" | "HEAD", "manifests") => match self.manifests.lock().unwrap().get(name) {
                Some((kind, bytes)) if seen.header(ACCEPT).contains(kind.as_str()) => {
                    with(bytes.clone().into_response(), CONTENT_TYPE, kind)
                }
                _ => refusal(404, "MANIFEST_UNKNOWN"),
            },
            _ => refusal(405, "UNSUPPORTED"),
        }
    }
}

/// Settings without patience.
pub(crate) fn options() -> Options {
    Options {
        first_pause: Duration::from_millis(5),
        idle_timeout: Duration::from_secs(2),
        closing_timeout: Duration::from_secs(4),
        ..Options::default()
    }
}

pub(crate) async fn handle(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let seen = Seen { method: head.method, path: head.uri.path().to_owned(), query, headers: head.headers };
    assert_eq!(seen.header(ACCEPT_ENCODING), "identity");
    let before = {
        let mut log = registry.seen.lock().unwrap();
        let before = log.iter().filter(|other| other.method == seen.method && other.path == seen.path).count();
        log.push(seen.clone());
        before
    };
    let twist = (registry.script)(&seen, before);
    if let Some(Twist::Answer(response)) = twist {
        return response;
    }
    let Ok(body) = axum::body::to_bytes(body, usize::MAX).await else { return answer(400) };
    let response = registry.obey(&seen, body);
    match twist {
        Some(Twist::Silence) => std::future::pending().await,
        Some(Twist::Instead(response)) => response,
        _ => response,
    }
}

pub(crate) fn answer(status: u16) -> Response {
    Response::builder().status(status).body(HttpBody::empty()).unwrap()
}

pub(crate) fn refusal(status: u16, code: &str) -> Response {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"as scripted"}}]}}"#);
    Response::builder().status(status).body(body.into()).unwrap()
}

pub(crate) fn with(mut response: Response, name: HeaderName, value: impl AsRef<str>) -> Response {
    response.headers_mut().insert(name, value.as_ref().parse().unwrap());
    response
}

/// The offsets that a `Range` header asks for.
pub(crate) fn range_of(seen: &Seen) -> Option<(usize, usize)> {
    let (from, to) = seen.header(RANGE).strip_prefix("bytes=")?.split_once('-')?;
    Some((from.parse().unwrap(), to.parse().unwrap()))
}

/// The blob, or the part of it that is asked for.
pub(crate) fn part(blob: &Bytes, range: Option<(usize, usize)>) -> Response {
    let Some((from, to)) = range else { return blob.clone().into_response() };
    if from >= blob.len() {
        return answer(416);
    }
    let to = to.min(blob.len() - 1);
    let mut response = blob.slice(from..=to).into_response();
    *response.status_mut() = axum::http::StatusCode::PARTIAL_CONTENT;
    with(response, CONTENT_RANGE, format!("bytes {from}-{to}/{}", blob.len()))
}

/// A reply that announces all of `blob` and breaks off after `length` bytes of it.
pub(crate) fn cut(blob: &Bytes, length: usize) -> Response {
    let start = stream::iter([Ok(blob.slice(..length))]);
    let end = stream::once(async {
        // Time for the bytes before to leave.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(std::io::Error::other("cut"))
    });
    with(HttpBody::from_stream(start.chain(end)).into_response(), CONTENT_LENGTH, blob.len().to_string())
}
