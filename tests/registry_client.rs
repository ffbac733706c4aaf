//! What the registry client promises, against a small registry in this process that follows the
//! protocol strictly and departs from it where a test says so.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

use std::collections::BTreeMap;
use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body as HttpBody;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST, LOCATION, RANGE,
    RETRY_AFTER, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderName, Method};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use kiln::copy::{CopyReport, Direction, copy};
use kiln::oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use kiln::registry::{Anonymous, Credential, Keychain, Options, Remote, ping};
use kiln::storage::{Body, ByteStream, Fetch, Push, Pushed, Refs, Verifier};
use kiln::{Error, ErrorKind, Progress, Result};

// --- the registry -----------------------------------------------------------------------------

/// A request as the registry saw it.
#[derive(Clone, Debug)]
struct Seen {
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
}

impl Seen {
    fn is(&self, method: Method, part: &str) -> bool {
        self.method == method && self.path.contains(part)
    }

    fn header(&self, name: HeaderName) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// How a registry departs from the protocol for one request.
enum Twist {
    /// Answers this, without reading the request's body.
    Answer(Response),
    /// Does what it should and never says so.
    Silence,
    /// Does what it should and says this instead.
    Instead(Response),
}

type Script = dyn Fn(&Seen, usize) -> Option<Twist> + Send + Sync;

struct Registry {
    host: String,
    script: Box<Script>,
    seen: Mutex<Vec<Seen>>,
    blobs: Mutex<BTreeMap<String, Bytes>>,
    manifests: Mutex<BTreeMap<String, (String, Bytes)>>,
}

impl Registry {
    /// A registry that asks `script` about every request: what was asked, and how many with the same
    /// method and path came before.
    async fn start(script: impl Fn(&Seen, usize) -> Option<Twist> + Send + Sync + 'static) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let registry = Arc::new(Self {
            host: listener.local_addr().unwrap().to_string(),
            script: Box::new(script),
            seen: Mutex::default(),
            blobs: Mutex::default(),
            manifests: Mutex::default(),
        });
        let app = axum::Router::new().fallback(handle).with_state(Arc::clone(&registry));
        tokio::spawn(async move { axum::serve(listener, app).await });
        registry
    }

    async fn faithful() -> Arc<Self> {
        Self::start(|_, _| None).await
    }

    fn reference(&self) -> Reference {
        format!("{}/team/model:v1", self.host).parse().unwrap()
    }

    fn remote(&self) -> Remote {
        self.remote_for(Anonymous)
    }

    fn remote_for(&self, keychain: impl Keychain + 'static) -> Remote {
        Remote::new(&self.reference(), Arc::new(keychain), &options()).unwrap()
    }

    fn keep(&self, content: impl Into<Bytes>) -> Descriptor {
        let content = content.into();
        let descriptor = Descriptor::of(MediaType::OLLAMA_TENSOR, &content);
        self.blobs.lock().unwrap().insert(descriptor.digest.to_string(), content);
        descriptor
    }

    fn has(&self, descriptor: &Descriptor) -> bool {
        self.blobs.lock().unwrap().contains_key(&descriptor.digest.to_string())
    }

    /// The requests with `method` whose path contains `part`.
    fn seen(&self, method: Method, part: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.is(method.clone(), part)).cloned().collect()
    }

    fn obey(&self, seen: &Seen, body: Bytes) -> Response {
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

async fn handle(State(registry): State<Arc<Registry>>, request: Request) -> Response {
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

fn answer(status: u16) -> Response {
    Response::builder().status(status).body(HttpBody::empty()).unwrap()
}

fn refusal(status: u16, code: &str) -> Response {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"as scripted"}}]}}"#);
    Response::builder().status(status).body(body.into()).unwrap()
}

fn with(mut response: Response, name: HeaderName, value: impl AsRef<str>) -> Response {
    response.headers_mut().insert(name, value.as_ref().parse().unwrap());
    response
}

/// The offsets that a `Range` header asks for.
fn range_of(seen: &Seen) -> Option<(usize, usize)> {
    let (from, to) = seen.header(RANGE).strip_prefix("bytes=")?.split_once('-')?;
    Some((from.parse().unwrap(), to.parse().unwrap()))
}

/// The blob, or the part of it that is asked for.
fn part(blob: &Bytes, range: Option<(usize, usize)>) -> Response {
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
fn cut(blob: &Bytes, length: usize) -> Response {
    let start = stream::iter([Ok(blob.slice(..length))]);
    let end = stream::once(async {
        // Time for the bytes before to leave.
        tokio::time::sleep(Duration::from_millis(50)).await;
        Err(std::io::Error::other("cut"))
    });
    with(HttpBody::from_stream(start.chain(end)).into_response(), CONTENT_LENGTH, blob.len().to_string())
}

// --- the other place --------------------------------------------------------------------------

/// A place in memory, as the local store is one on disk.
#[derive(Default)]
struct Shelf {
    blobs: Mutex<BTreeMap<Digest, Bytes>>,
    manifest: Mutex<Option<(Descriptor, Bytes)>>,
}

impl Shelf {
    fn keep(&self, content: impl Into<Bytes>) -> Descriptor {
        let content = content.into();
        let descriptor = Descriptor::of(MediaType::OLLAMA_TENSOR, &content);
        self.blobs.lock().unwrap().insert(descriptor.digest, content);
        descriptor
    }

    /// A shelf with one model: a config, a large layer, a small one and an empty one.
    fn with_model() -> Self {
        let shelf = Self::default();
        let config = shelf.keep(&b"{}"[..]);
        let layers = vec![shelf.keep(large()).named("large"), shelf.keep(&b"small"[..]), shelf.keep(&b""[..])];
        let manifest = Manifest {
            schema_version: 2,
            media_type: MediaType::DOCKER_MANIFEST,
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let bytes = Bytes::from(kiln::json::to_canonical(&manifest));
        *shelf.manifest.lock().unwrap() = Some((Descriptor::of(MediaType::DOCKER_MANIFEST, &bytes), bytes));
        shelf
    }
}

impl Fetch for Shelf {
    async fn exists(&self, target: &Descriptor) -> Result<bool> {
        Ok(self.blobs.lock().unwrap().contains_key(&target.digest))
    }

    async fn fetch(&self, target: &Descriptor, bytes: Range<u64>) -> Result<Option<ByteStream>> {
        let blob = self.blobs.lock().unwrap().get(&target.digest).cloned();
        Ok(blob.map(|blob| Box::pin(stream::iter([Ok(section(&blob, &bytes))])) as ByteStream))
    }
}

impl Push for Shelf {
    async fn push(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        let bytes = collect(body.open(0..expected.size).await?).await?;
        let mut verifier = Verifier::new(expected);
        verifier.update(&bytes)?;
        verifier.finish()?;
        self.blobs.lock().unwrap().insert(expected.digest, bytes);
        Ok(Pushed::Stored)
    }
}

impl Refs for Shelf {
    async fn resolve(&self, _reference: &Reference) -> Result<Option<(Descriptor, Bytes)>> {
        Ok(self.manifest.lock().unwrap().clone())
    }

    async fn tag(&self, _reference: &Reference, target: &Descriptor, manifest: &Bytes) -> Result<()> {
        *self.manifest.lock().unwrap() = Some((target.clone(), manifest.clone()));
        Ok(())
    }
}

/// Bytes to push, whatever their descriptor says.
struct Content(Bytes);

impl Body for Content {
    fn open(&self, bytes: Range<u64>) -> futures_util::future::BoxFuture<'_, Result<ByteStream>> {
        let part = section(&self.0, &bytes);
        Box::pin(async move { Ok(Box::pin(stream::iter([Ok(part)])) as ByteStream) })
    }
}

/// The `bytes` of `content`, as far as it has them.
fn section(content: &Bytes, bytes: &Range<u64>) -> Bytes {
    let within = |offset: u64| usize::try_from(offset).unwrap().min(content.len());
    content.slice(within(bytes.start)..within(bytes.end))
}

async fn collect(mut bytes: ByteStream) -> Result<Bytes> {
    let mut all = BytesMut::new();
    while let Some(chunk) = bytes.try_next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}

// --- shorthands -------------------------------------------------------------------------------

fn options() -> Options {
    Options {
        first_pause: Duration::from_millis(5),
        idle_timeout: Duration::from_secs(2),
        closing_timeout: Duration::from_secs(4),
        ..Options::default()
    }
}

/// More than the buffers between two processes hold.
fn large() -> Bytes {
    (0..(8 << 20)).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into()
}

/// A keychain with one key, for every host.
struct Key(Credential);

impl Keychain for Key {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(self.0.clone()))
    }
}

fn alice(password: &str) -> Credential {
    Credential::Basic { user: "alice".into(), password: password.into() }
}

fn identity() -> Credential {
    Credential::IdentityToken("id3ntity".into())
}

async fn push(shelf: &Shelf, registry: &Registry, remote: &Remote) -> Result<CopyReport> {
    let (name, to) = ("model".parse().unwrap(), registry.reference());
    within(copy(Direction::Push, shelf, &name, remote, &to, 4, &Progress::silent())).await
}

async fn pull(registry: &Registry, remote: &Remote, shelf: &Shelf) -> Result<CopyReport> {
    let (name, from) = ("model".parse().unwrap(), registry.reference());
    within(copy(Direction::Pull, remote, &from, shelf, &name, 4, &Progress::silent())).await
}

async fn fetch(remote: &Remote, target: &Descriptor, from: u64) -> Result<Bytes> {
    fetch_range(remote, target, from..target.size).await
}

async fn fetch_range(remote: &Remote, target: &Descriptor, bytes: Range<u64>) -> Result<Bytes> {
    within(async { collect(remote.fetch(target, bytes).await?.expect("the blob is there")).await }).await
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("an end within 30 s")
}

fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

// --- pushes -----------------------------------------------------------------------------------

#[tokio::test]
async fn what_is_pushed_is_pulled_and_nothing_is_sent_twice() {
    let (registry, shelf, other) = (Registry::faithful().await, Shelf::with_model(), Shelf::default());
    let remote = registry.remote();
    let pushed = push(&shelf, &registry, &remote).await.unwrap();
    assert_eq!((pushed.blobs_transferred, pushed.bytes_transferred, pushed.blobs_skipped), (4, (8 << 20) + 7, 0));
    let last = registry.seen.lock().unwrap().last().unwrap().clone();
    assert!(last.is(Method::PUT, "/manifests/v1"), "the tag comes last");

    let again = push(&shelf, &registry, &remote).await.unwrap();
    assert_eq!((again.blobs_transferred, again.blobs_skipped), (0, 4));
    assert_eq!(registry.seen(Method::POST, "").len(), 4);

    let pulled = pull(&registry, &remote, &other).await.unwrap();
    assert_eq!((pulled.digest, pulled.blobs_transferred), (pushed.digest, 4));
    assert_eq!(*other.blobs.lock().unwrap(), *shelf.blobs.lock().unwrap());
    assert_eq!(*other.manifest.lock().unwrap(), *shelf.manifest.lock().unwrap());
}

#[tokio::test]
async fn a_rotten_blob_is_never_published() {
    let (registry, shelf) = (Registry::faithful().await, Shelf::with_model());
    let promised = Descriptor::of(MediaType::OLLAMA_TENSOR, &large());
    let mut rotten = large().to_vec();
    rotten[4 << 20] ^= 1;
    shelf.blobs.lock().unwrap().insert(promised.digest, rotten.into());
    let error = push(&shelf, &registry, &registry.remote()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", chain(&error));
    assert!(chain(&error).contains("`large` of `model:latest`"), "{}", chain(&error));
    assert!(!registry.has(&promised));
    assert!(registry.manifests.lock().unwrap().is_empty());

    let error = within(registry.remote().push(&promised, &Content("short".into()))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(registry.seen(Method::DELETE, "/uploads/").len(), 2, "both sessions are given back");
}

#[tokio::test]
async fn an_upload_goes_where_the_registry_says_and_its_credentials_do_not() {
    let elsewhere = Registry::faithful().await;
    let location = format!("http://{}/v2/team/model/blobs/uploads/1?_state=a%2Bb%3D", elsewhere.host);
    let registry = Registry::start(move |seen, _| match seen.header(AUTHORIZATION) {
        "" if seen.path != "/v2/" => Some(Twist::Answer(with(answer(401), WWW_AUTHENTICATE, r#"Basic realm="x""#))),
        _ if seen.method == Method::POST => Some(Twist::Instead(with(answer(202), LOCATION, &location))),
        _ => None,
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let pushed =
        within(registry.remote_for(Key(alice("s3cret"))).push(&target, &Content("small".into()))).await.unwrap();
    assert_eq!(pushed, Pushed::Stored);
    assert!(elsewhere.has(&target));
    assert!(elsewhere.seen(Method::PUT, "").iter().all(|seen| seen.header(AUTHORIZATION).is_empty()));
    assert_eq!(registry.seen(Method::POST, "")[1].header(AUTHORIZATION), "Basic YWxpY2U6czNjcmV0");
}

#[tokio::test]
async fn a_lost_answer_to_the_last_request_costs_no_second_upload() {
    for lost in [|| Twist::Silence, || Twist::Instead(answer(504)), || Twist::Instead(answer(204))] {
        let registry = Registry::start(move |seen, _| seen.is(Method::PUT, "/blobs/").then(lost)).await;
        let mut options = options();
        options.closing_timeout = Duration::from_millis(300);
        let remote = Remote::new(&registry.reference(), Arc::new(Anonymous), &options).unwrap();
        let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
        within(remote.push(&target, &Content("small".into()))).await.unwrap();
        assert_eq!(registry.seen(Method::PUT, "/blobs/").len(), 1);
    }
}

#[tokio::test]
async fn a_registry_that_takes_a_blob_and_loses_it_is_found_out() {
    let registry = Registry::start(|seen, _| seen.is(Method::PUT, "/blobs/").then(|| Twist::Answer(answer(204)))).await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let error = within(registry.remote().push(&target, &Content("small".into()))).await.unwrap_err();
    assert!(error.to_string().contains("does not have it"), "{error}");
    assert_eq!(registry.seen(Method::PUT, "/blobs/").len(), 5);
}

#[tokio::test]
async fn a_session_that_is_gone_is_begun_anew() {
    let registry = Registry::start(|seen, before| {
        (seen.is(Method::PUT, "/blobs/") && before == 0).then(|| Twist::Answer(refusal(404, "BLOB_UPLOAD_UNKNOWN")))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    within(registry.remote().push(&target, &Content("small".into()))).await.unwrap();
    assert!(registry.has(&target));
    assert_eq!(registry.seen(Method::POST, "/uploads/").len(), 2);
}

#[tokio::test]
async fn a_registry_that_stops_reading_is_left() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let location = format!("http://{}/u", listener.local_addr().unwrap());
    let deaf = tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            connections.push(connection);
        }
    });
    let registry = Registry::start(move |seen, _| {
        (seen.method == Method::POST).then(|| Twist::Instead(with(answer(202), LOCATION, &location)))
    })
    .await;
    let mut options = options();
    (options.idle_timeout, options.closing_timeout) = (Duration::from_millis(100), Duration::from_secs(60));
    let remote = Remote::new(&registry.reference(), Arc::new(Anonymous), &options).unwrap();
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, &large());
    let error = within(remote.push(&target, &Content(large()))).await.unwrap_err();
    assert!(error.to_string().starts_with("No answer for 0 s"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Registry);
    deaf.abort();
}

#[tokio::test]
async fn a_manifest_whose_blob_went_away_is_mended_once() {
    let (registry, shelf) = (Registry::faithful().await, Shelf::with_model());
    let remote = registry.remote();
    push(&shelf, &registry, &remote).await.unwrap();
    // HEAD says the blob is there; the manifest's check says it is not.
    let small = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let hollow = Registry::start(move |seen, before| {
        let look = seen.is(Method::HEAD, &small.digest.to_string()) && before == 0;
        look.then(|| Twist::Answer(with(answer(200), CONTENT_LENGTH, "5")))
    })
    .await;
    let report = push(&shelf, &hollow, &hollow.remote()).await.unwrap();
    assert_eq!((report.blobs_transferred, report.blobs_skipped), (4, 0));
    assert_eq!(hollow.seen(Method::PUT, "/manifests/").len(), 2);
}

// --- pulls ------------------------------------------------------------------------------------

#[tokio::test]
async fn a_lying_registry_leaves_nothing() {
    let registry = Registry::faithful().await;
    let shelf = Shelf::with_model();
    push(&shelf, &registry, &registry.remote()).await.unwrap();
    let name = Digest::of(b"small").to_string();
    registry.blobs.lock().unwrap().insert(name, "smell".into());
    let other = Shelf::default();
    let error = pull(&registry, &registry.remote(), &other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", chain(&error));
    assert!(!other.blobs.lock().unwrap().contains_key(&Digest::of(b"small")));
    assert!(other.manifest.lock().unwrap().is_none());
}

#[tokio::test]
async fn a_broken_stream_is_taken_up_where_it_broke() {
    for ranges in [true, false] {
        let blob = large();
        let registry = Registry::start(move |seen, before| {
            if !seen.is(Method::GET, "/blobs/") {
                return None;
            }
            match before {
                0 => Some(Twist::Answer(cut(&blob, 3_000_000))),
                _ if ranges => None,
                _ => Some(Twist::Answer(blob.clone().into_response())),
            }
        })
        .await;
        let target = registry.keep(large());
        assert!(fetch(&registry.remote(), &target, 0).await.unwrap() == large());
        let asked = registry.seen(Method::GET, "/blobs/");
        assert_eq!(asked.len(), 2);
        let (from, to) = range_of(&asked[1]).unwrap();
        assert_eq!(to, (8 << 20) - 1);
        assert!((1..=3_000_000).contains(&from), "{from}");
    }
}

#[tokio::test]
async fn a_stream_that_stays_silent_is_taken_up_too() {
    let registry = Registry::start(|seen, before| {
        (seen.is(Method::GET, "/blobs/") && before == 0).then(|| {
            let start = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"sma"))]);
            let body = HttpBody::from_stream(start.chain(stream::pending()));
            Twist::Answer(with(body.into_response(), CONTENT_LENGTH, "5"))
        })
    })
    .await;
    let target = registry.keep(&b"small"[..]);
    let mut options = options();
    options.idle_timeout = Duration::from_millis(200);
    let remote = Remote::new(&registry.reference(), Arc::new(Anonymous), &options).unwrap();
    assert_eq!(fetch(&remote, &target, 0).await.unwrap(), "small");
    assert_eq!(registry.seen(Method::GET, "/blobs/")[1].header(RANGE), "bytes=3-4");
}

#[tokio::test]
async fn a_stream_that_never_gets_on_is_given_up() {
    let registry = Registry::start(|seen, _| {
        let from = range_of(seen).map_or(0, |(from, _)| from);
        let left = Bytes::from(vec![7; 1000 - from]);
        let part = with(cut(&left, 1), CONTENT_RANGE, format!("bytes {from}-999/1000"));
        let status = if from == 0 { 200 } else { 206 };
        seen.is(Method::GET, "/blobs/")
            .then(|| Twist::Answer((axum::http::StatusCode::from_u16(status).unwrap(), part).into_response()))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, &[7; 1000]);
    let error = fetch(&registry.remote(), &target, 0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains("of 1000 bytes"), "{error}");
    assert_eq!(registry.seen(Method::GET, "/blobs/").len(), 5);
}

#[tokio::test]
async fn another_part_than_the_one_asked_for_is_not_taken() {
    let registry = Registry::start(|seen, _| {
        seen.is(Method::GET, "/blobs/").then(|| {
            let part = with("all".into_response(), CONTENT_RANGE, "bytes 0-2/5");
            Twist::Answer((axum::http::StatusCode::PARTIAL_CONTENT, part).into_response())
        })
    })
    .await;
    let target = registry.keep(&b"small"[..]);
    let error = fetch(&registry.remote(), &target, 2).await.unwrap_err();
    assert!(error.to_string().contains("sent another part"), "{error}");
}

#[tokio::test]
async fn a_blob_of_another_length_is_refused_before_it_is_read() {
    for content in ["smal", "small and more"] {
        let registry = Registry::faithful().await;
        let target = registry.keep(&b"small"[..]);
        registry.blobs.lock().unwrap().insert(target.digest.to_string(), content.into());
        let opened = within(registry.remote().fetch(&target, 0..target.size)).await;
        assert_eq!(opened.err().map(|error| error.kind()), Some(ErrorKind::Corrupt), "{content}");
        assert!(!within(registry.remote().exists(&target)).await.unwrap());
    }
}

#[tokio::test]
async fn a_blob_of_unknown_length_ends_where_it_should() {
    for (content, kind) in [("small", None), ("smal", Some(ErrorKind::Corrupt)), ("small!", Some(ErrorKind::Corrupt))] {
        let registry = Registry::start(move |seen, _| {
            (seen.is(Method::GET, "/blobs/") && seen.header(RANGE).is_empty()).then(|| {
                let pieces = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(content.as_bytes()))]);
                Twist::Answer(HttpBody::from_stream(pieces).into_response())
            })
        })
        .await;
        let target = registry.keep(&b"small"[..]);
        registry.blobs.lock().unwrap().insert(target.digest.to_string(), content.into());
        let outcome = fetch(&registry.remote(), &target, 0).await;
        assert_eq!(outcome.err().map(|error| error.kind()), kind, "{content}");
    }
}

#[tokio::test]
async fn no_more_than_a_range_is_asked_for_and_given() {
    for ranges in [true, false] {
        let registry = Registry::start(move |seen, _| {
            let ignored = !ranges && seen.is(Method::GET, "/blobs/");
            ignored.then(|| Twist::Answer(b"small".as_slice().into_response()))
        })
        .await;
        let target = registry.keep(&b"small"[..]);
        let remote = registry.remote();
        for (bytes, asked, expected) in [
            (0..5, "", "small"),
            (0..2, "bytes=0-1", "sm"),
            (1..4, "bytes=1-3", "mal"),
            (2..5, "bytes=2-4", "all"),
            (3..3, "none", ""),
        ] {
            let before = registry.seen(Method::GET, "/blobs/").len();
            assert_eq!(fetch_range(&remote, &target, bytes.clone()).await.unwrap(), expected, "{bytes:?}, {ranges}");
            let requests = registry.seen(Method::GET, "/blobs/");
            assert_eq!(requests.get(before).map_or("none", |seen| seen.header(RANGE)), asked, "{bytes:?}, {ranges}");
        }
    }
}

#[tokio::test]
async fn every_offset_of_a_blob_can_be_opened() {
    let registry = Registry::faithful().await;
    let (target, empty) = (registry.keep(&b"small"[..]), registry.keep(&b""[..]));
    let remote = registry.remote();
    for from in 0..=5 {
        assert_eq!(fetch(&remote, &target, from).await.unwrap(), &b"small"[usize::try_from(from).unwrap()..]);
    }
    assert_eq!(fetch(&remote, &empty, 0).await.unwrap(), "");
    assert!(within(remote.fetch(&target, 6..6)).await.is_err());
    let absent = Descriptor::of(MediaType::OLLAMA_TENSOR, b"absent");
    assert!(within(remote.fetch(&absent, 0..6)).await.unwrap().is_none());
    assert!(!within(remote.exists(&absent)).await.unwrap());
}

#[tokio::test]
async fn a_redirect_is_followed_without_credentials_and_with_the_range() {
    let storage =
        Registry::start(|seen, before| (seen.method == Method::GET && before == 0).then(|| Twist::Answer(answer(403))))
            .await;
    let signed = format!("http://{}/v2/team/model/", storage.host);
    let registry = Registry::start(move |seen, _| match seen.header(AUTHORIZATION) {
        "" if seen.path != "/v2/" => Some(Twist::Answer(with(answer(401), WWW_AUTHENTICATE, r#"Basic realm="x""#))),
        _ if seen.path.contains("/blobs/") => {
            let rest = seen.path.strip_prefix("/v2/team/model/")?;
            Some(Twist::Answer(with(answer(307), LOCATION, format!("{signed}{rest}?X-Amz-Signature=x"))))
        }
        _ => None,
    })
    .await;
    let target = storage.keep(&b"small"[..]);
    let remote = registry.remote_for(Key(alice("s3cret")));
    assert_eq!(fetch(&remote, &target, 2).await.unwrap(), "all");
    assert!(within(remote.exists(&target)).await.unwrap(), "a HEAD is redirected too");
    let asked = storage.seen(Method::GET, "/blobs/");
    assert_eq!(asked.len(), 2, "an expired address is asked for again at the registry");
    assert!(asked.iter().all(|seen| seen.header(AUTHORIZATION).is_empty() && seen.header(RANGE) == "bytes=2-4"));
    assert_eq!(registry.seen(Method::GET, "/blobs/").len(), 3);
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let registry = Registry::start(|seen, _| {
        (seen.path != "/v2/").then(|| Twist::Answer(with(answer(302), LOCATION, &seen.path)))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let error = within(registry.remote().fetch(&target, 0..target.size)).await.err().unwrap();
    assert!(error.to_string().starts_with("More than 5 redirects"), "{error}");
    assert_eq!(registry.seen(Method::GET, "/blobs/").len(), 6);
}

// --- manifests --------------------------------------------------------------------------------

#[tokio::test]
async fn a_manifest_is_what_its_digest_and_its_type_say() {
    let registry = Registry::faithful().await;
    let docker = MediaType::DOCKER_MANIFEST;
    let text = |media_type: &MediaType| Bytes::from(format!(r#"{{"mediaType":"{media_type}"}}"#));
    let keep = |name: &str, kind: &str, bytes: Bytes| {
        registry.manifests.lock().unwrap().insert(name.to_owned(), (kind.to_owned(), bytes));
    };
    let pinned = Digest::of(b"").to_string();
    keep("good", docker.as_str(), text(&docker));
    keep("mixed", docker.as_str(), text(&MediaType::OCI_MANIFEST));
    keep("unsaid", docker.as_str(), "{}".into());
    keep("text", docker.as_str(), "no".into());
    keep("huge", docker.as_str(), vec![b' '; (4 << 20) + 1].into());
    keep(&pinned, docker.as_str(), text(&docker));
    let remote = registry.remote();
    let resolve = async |name: &str| {
        let reference = format!("{}/team/model{name}", registry.host).parse().unwrap();
        within(remote.resolve(&reference)).await.map(|found| found.map(|(descriptor, _)| descriptor))
    };
    for name in [":good", ":unsaid"] {
        assert_eq!(resolve(name).await.unwrap().unwrap().media_type, docker);
    }
    assert_eq!(resolve(":absent").await.unwrap(), None);
    for name in [":mixed", ":text", &format!("@{pinned}")] {
        assert_eq!(resolve(name).await.unwrap_err().kind(), ErrorKind::Corrupt, "{name}");
    }
    let error = resolve(":huge").await.unwrap_err();
    assert!(error.to_string().contains("larger than 4194304 bytes"), "{error}");
}

#[tokio::test]
async fn a_manifest_without_a_name_is_content_like_any_other() {
    let (registry, shelf) = (Registry::faithful().await, Shelf::with_model());
    let remote = registry.remote();
    push(&shelf, &registry, &remote).await.unwrap();
    let (descriptor, bytes) = shelf.manifest.lock().unwrap().clone().unwrap();
    registry.manifests.lock().unwrap().clear();
    assert!(!within(remote.exists(&descriptor)).await.unwrap());
    within(remote.push(&descriptor, &Content(bytes.clone()))).await.unwrap();
    assert!(within(remote.exists(&descriptor)).await.unwrap());
    assert_eq!(fetch(&remote, &descriptor, 10).await.unwrap(), bytes.slice(10..));
    let error = within(remote.push(&descriptor, &Content("{}".into()))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_reference_to_another_repository_is_refused() {
    let registry = Registry::faithful().await;
    for other in ["model".to_owned(), format!("{}/team/other", registry.host), "r.example/team/model".to_owned()] {
        let error = within(registry.remote().resolve(&other.parse().unwrap())).await.unwrap_err();
        assert!(error.to_string().contains("is not in the repository"), "{error}");
    }
}

// --- credentials ------------------------------------------------------------------------------

/// A registry with a token service of its own: tokens `t1`, `t2`, … of which only the newest for its
/// access is good. `grant` says whether the service gives one.
async fn guarded(grant: fn(&Seen) -> bool, lifetime: u64) -> Arc<Registry> {
    let issued = Mutex::new(Vec::<String>::new());
    Registry::start(move |seen, _| {
        let mut issued = issued.lock().unwrap();
        if seen.path == "/token" {
            if !grant(seen) {
                return Some(Twist::Answer(refusal(401, "UNAUTHORIZED")));
            }
            issued.push(seen.query.clone());
            let token = format!(r#"{{"access_token":"t{}","expires_in":{lifetime}}}"#, issued.len());
            return Some(Twist::Answer(token.into_response()));
        }
        let write = !matches!(seen.method, Method::GET | Method::HEAD);
        let actions = if write { "pull,push" } else { "pull" };
        let number: usize =
            seen.header(AUTHORIZATION).strip_prefix("Bearer t").and_then(|n| n.parse().ok()).unwrap_or(0);
        let scope = number.checked_sub(1).and_then(|index| issued.get(index)).cloned().unwrap_or_default();
        if scope.contains("push") || !write && scope.contains("pull") {
            return None;
        }
        let challenge = format!(
            r#"Bearer realm="http://{}/token?tenant=1",service="reg, istry",scope="repository:team/model:{actions}""#,
            seen.header(HOST)
        );
        Some(Twist::Answer(with(refusal(401, "UNAUTHORIZED"), WWW_AUTHENTICATE, challenge)))
    })
    .await
}

#[tokio::test]
async fn one_token_serves_all_who_wait_for_it() {
    let registry = guarded(|seen| seen.header(AUTHORIZATION) == "Basic YWxpY2U6czNjcmV0", 300).await;
    let remote = registry.remote_for(Key(alice("s3cret")));
    push(&Shelf::with_model(), &registry, &remote).await.unwrap();
    let asked: Vec<_> = registry.seen(Method::GET, "/token").into_iter().map(|seen| seen.query).collect();
    let query = |actions: &str| format!("tenant=1&service=reg%2C+istry&scope=repository%3Ateam%2Fmodel%3A{actions}");
    assert_eq!(asked, [query("pull"), query("pull%2Cpush")]);
}

#[tokio::test]
async fn a_token_that_ran_out_is_renewed() {
    let registry = guarded(|_| true, 1).await;
    let remote = registry.remote();
    let target = registry.keep(&b"small"[..]);
    assert!(within(remote.exists(&target)).await.unwrap());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(within(remote.exists(&target)).await.unwrap());
    assert_eq!(registry.seen(Method::GET, "/token").len(), 2);
    assert_eq!(registry.seen(Method::HEAD, "").len(), 3, "it is renewed before it is refused");
}

#[tokio::test]
async fn a_token_refused_in_the_middle_is_replaced_and_the_body_sent_again() {
    let registry = Registry::start(|seen, before| {
        let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.header(HOST));
        match (seen.path.as_str(), seen.header(AUTHORIZATION)) {
            ("/v2/", _) => None,
            ("/token", _) => Some(Twist::Answer(format!(r#"{{"token":"t{before}"}}"#).into_response())),
            (path, "Bearer t0") if !(path.contains("/uploads/") && seen.method == Method::PUT) => None,
            (_, "Bearer t1") => None,
            // The body, of several megabytes, is not read.
            _ => Some(Twist::Answer(with(answer(401), WWW_AUTHENTICATE, challenge))),
        }
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, &large());
    within(registry.remote().push(&target, &Content(large()))).await.unwrap();
    assert!(registry.has(&target));
}

#[tokio::test]
async fn wrong_credentials_are_told_from_a_broken_registry() {
    let registry = guarded(|seen| seen.header(AUTHORIZATION) == "Basic YWxpY2U6czNjcmV0", 300).await;
    let error = push(&Shelf::with_model(), &registry, &registry.remote_for(Key(alice("wrong")))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert_eq!(error.hint_text(), Some(format!("kiln login {}", registry.host).as_str()));
    assert!(!chain(&error).contains("wrong"), "{error}");

    let error = within(ping(&registry.host, &alice("wrong"), &options())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    within(ping(&registry.host, &alice("s3cret"), &options())).await.unwrap();
}

#[tokio::test]
async fn what_a_token_does_not_allow_ends_without_a_circle() {
    let registry = Registry::start(|seen, _| {
        let challenge = format!(r#"Bearer realm="http://{}/token",error="insufficient_scope""#, seen.header(HOST));
        Some(Twist::Answer(match seen.path.as_str() {
            "/v2/" => answer(200),
            "/token" => r#"{"token":"t"}"#.into_response(),
            _ => with(refusal(401, "DENIED"), WWW_AUTHENTICATE, challenge),
        }))
    })
    .await;
    let target = Descriptor::of(MediaType::OLLAMA_TENSOR, b"small");
    let error = within(registry.remote().push(&target, &Content("small".into()))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(error.to_string().contains("`DENIED` as scripted"), "{error}");
    assert_eq!(registry.seen(Method::POST, "/uploads/").len(), 2);
}

#[tokio::test]
async fn an_identity_token_is_traded_or_used_as_a_password() {
    for refusal_of_post in [None, Some(404), Some(405)] {
        let registry = Registry::start(move |seen, _| {
            let challenge = format!(r#"Bearer realm="http://{}/token",service="s""#, seen.header(HOST));
            match (seen.method.as_str(), seen.path.as_str(), seen.header(AUTHORIZATION)) {
                (_, "/v2/", _) | (_, _, "Bearer t") => None,
                ("POST", "/token", _) if refusal_of_post.is_some() => {
                    refusal_of_post.map(|status| Twist::Answer(answer(status)))
                }
                ("POST", "/token", "") => Some(Twist::Instead(r#"{"access_token":"t"}"#.into_response())),
                ("GET", "/token", "Basic PHRva2VuPjppZDNudGl0eQ==") => {
                    Some(Twist::Answer(r#"{"token":"t"}"#.into_response()))
                }
                _ => Some(Twist::Answer(with(answer(401), WWW_AUTHENTICATE, challenge))),
            }
        })
        .await;
        let target = registry.keep(&b"small"[..]);
        assert!(within(registry.remote_for(Key(identity())).exists(&target)).await.unwrap(), "{refusal_of_post:?}");
        let traded = &registry.seen(Method::POST, "/token")[0];
        assert_eq!(traded.header(CONTENT_TYPE), "application/x-www-form-urlencoded");
    }
}

#[tokio::test]
async fn a_secret_is_not_sent_on_to_another_host() {
    let thief = Registry::faithful().await;
    let elsewhere = format!("http://{}/token", thief.host);
    let registry = Registry::start(move |seen, _| {
        let challenge = format!(r#"Bearer realm="http://{}/token""#, seen.header(HOST));
        Some(Twist::Answer(match seen.path.as_str() {
            "/v2/" => answer(200),
            "/token" => with(answer(307), LOCATION, &elsewhere),
            _ => with(answer(401), WWW_AUTHENTICATE, challenge),
        }))
    })
    .await;
    let error = within(registry.remote_for(Key(identity())).resolve(&registry.reference())).await.unwrap_err();
    assert!(error.to_string().starts_with("The secret in `POST"), "{error}");
    assert!(thief.seen(Method::POST, "").is_empty());
}

// --- patience ---------------------------------------------------------------------------------

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_again_when_it_says() {
    let registry = Registry::start(|seen, before| {
        let busy = before < 2 && seen.path != "/v2/";
        busy.then(|| Twist::Answer(if before == 0 { with(answer(429), RETRY_AFTER, "1") } else { answer(503) }))
    })
    .await;
    let target = registry.keep(&b"small"[..]);
    let start = Instant::now();
    assert!(within(registry.remote().exists(&target)).await.unwrap());
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(registry.seen(Method::HEAD, "").len(), 3);
}

#[tokio::test]
async fn a_registry_that_is_busy_for_hours_is_not_waited_for() {
    let registry = Registry::start(|seen, _| {
        (seen.path != "/v2/").then(|| Twist::Answer(with(refusal(429, "TOOMANYREQUESTS"), RETRY_AFTER, "21600")))
    })
    .await;
    let error = within(registry.remote().resolve(&registry.reference())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().contains("429 Too Many Requests, `TOOMANYREQUESTS` as scripted"), "{error}");
    assert!(error.hint_text().unwrap().contains("try again after"), "{:?}", error.hint_text());
    assert_eq!(registry.seen(Method::GET, "/manifests/").len(), 1);
}

#[tokio::test]
async fn what_will_not_change_is_asked_once_and_what_may_five_times() {
    for (status, times, kind) in [
        (400, 1, ErrorKind::Registry),
        (403, 1, ErrorKind::Unauthorized),
        (418, 1, ErrorKind::Registry),
        (408, 5, ErrorKind::Registry),
        (502, 5, ErrorKind::Registry),
    ] {
        let registry =
            Registry::start(move |seen, _| (seen.path != "/v2/").then(|| Twist::Answer(answer(status)))).await;
        let error = within(registry.remote().resolve(&registry.reference())).await.unwrap_err();
        assert_eq!((error.kind(), registry.seen(Method::GET, "/manifests/").len()), (kind, times), "{status}");
        let url = format!("`GET http://{}/v2/team/model/manifests/v1`", registry.host);
        assert!(error.to_string().contains(&url), "{error}");
    }
}

#[tokio::test]
async fn a_plain_registry_that_drops_the_first_connection_is_not_taken_for_a_tls_server() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let registry = tokio::spawn(async move {
        for number in 0.. {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let length = connection.read(&mut request).await.unwrap();
            if number > 0 && length > 0 {
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                connection.write_all(reply).await.unwrap();
            }
        }
    });
    within(ping(&host, &alice("s3cret"), &options())).await.unwrap();
    registry.abort();
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_an_error_of_the_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = within(ping(&host, &alice("s3cret"), &options())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry);
    assert!(error.to_string().starts_with("Could not connect to `127.0.0.1`"), "{error}");
    let error = within(ping("not a host", &alice("s3cret"), &options())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
}
