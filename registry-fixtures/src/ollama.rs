//! A registry that behaves as Ollama's does: users have keys instead of passwords, blobs go past it into a
//! storage on another port, manifests are text. What its own client does, and nothing else, is let through.
//!
//! The form is the one of Ollama 0.33's clients (`x/transfer`, `server/upload.go`, `server/auth.go`), and what
//! was seen of its registry (ollama/ollama#6470, #6510).

mod signature;
mod storage;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State as Extract};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderName, Method};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use md5::{Digest as _, Md5};

use crate::auth::{Auth, Grant, SERVICE, Tokens};
use crate::contents::{self, Repository, is_digest, is_tag};
use crate::fault::{Fault, Script, Trigger};
use crate::fixture::{Record, Recorded};
use crate::incoming::Incoming;
use crate::registry::{OCTETS, spoil_reply};
use crate::reply::{self, Refusal, header, reply};
use crate::server::Server;
use signature::Question;
use storage::{Purpose, signed_header};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// How an [`Ollama`] behaves.
#[derive(Clone, Debug)]
pub struct OllamaOptions {
    /// Who may push: a public key, as `ssh-ed25519 BASE64`, and the namespace it is for. Everybody pulls.
    pub keys: Vec<(String, String)>,
    /// How long a token lives. Nobody is told.
    pub lifetime: Duration,
    /// Where blobs go.
    pub uploads: Uploads,
    /// The shortest part, in bytes, but for a blob's last.
    pub min_part: u64,
    /// Whether a part is taken in before it is said where it belongs, as by a proxy that buffers.
    pub reads_first: bool,
    /// How many parts must be on their way to the storage at once before it takes the first.
    pub together: usize,
    /// What stands as the token service in challenges, instead of the registry's own.
    pub realm: Option<String>,
}

/// Where blobs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploads {
    /// Each to one address of the storage.
    Direct,
    /// In parts, each to an address of its own.
    Parts,
    /// In parts, to the registry itself.
    Here,
}

impl Default for OllamaOptions {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            lifetime: Duration::from_secs(300),
            uploads: Uploads::Parts,
            min_part: 0,
            reads_first: false,
            together: 0,
            realm: None,
        }
    }
}

/// A registry like Ollama's in this process, and its storage; both stopped when dropped.
#[derive(Debug)]
pub struct Ollama {
    shared: Arc<Shared>,
    _servers: [Server; 2],
}

#[derive(Debug)]
struct Shared {
    options: OllamaOptions,
    host: String,
    storage: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Blobs have no repository here.
    blobs: BTreeMap<String, Bytes>,
    repositories: BTreeMap<String, Repository>,
    uploads: HashMap<String, Upload>,
    /// The signed addresses of the storage.
    addresses: HashMap<String, Purpose>,
    count: usize,
    tokens: Tokens,
    nonces: BTreeSet<String>,
    requests: Vec<Record>,
    storage_requests: Vec<Record>,
    script: Script,
    storage_script: Script,
    /// How many requests write to the storage, and how many did at most.
    writing: usize,
    most_writing: usize,
}

/// An upload under way.
#[derive(Debug)]
struct Upload {
    digest: String,
    size: u64,
    /// The ranges of the parts, in the order in which they were announced: first byte and length.
    parts: Vec<(u64, u64)>,
    /// What arrived, by the number of the part; `None` for all at once.
    stored: BTreeMap<Option<usize>, Bytes>,
    /// The address of each part, of which only the latest serves.
    signed: HashMap<usize, String>,
}

impl Ollama {
    /// A registry for the owners of `options.keys`.
    pub fn start(options: OllamaOptions) -> Self {
        let (mut shared, mut routes) = (None, None);
        let storage = Server::start(|storage| {
            let registry = Server::start(|registry| {
                let new = Arc::new(Shared {
                    options,
                    host: registry.to_string(),
                    storage: storage.to_string(),
                    state: Mutex::default(),
                });
                shared = Some(Arc::clone(&new));
                Router::new().fallback(answer).with_state(new)
            });
            routes = Some(registry);
            Router::new().fallback(storage::answer).with_state(shared.clone().expect("the registry was started"))
        });
        let registry = routes.expect("the registry was started");
        Self { shared: shared.expect("the registry was started"), _servers: [registry, storage] }
    }

    /// `127.0.0.1:PORT` of the registry.
    pub fn host(&self) -> String {
        self.shared.host.clone()
    }

    /// Lets one more thing go wrong at the registry, counting requests from now.
    pub fn inject(&self, trigger: Trigger, fault: Fault) {
        self.shared.state().script.add(trigger, fault);
    }

    /// Lets one more thing go wrong at the storage. [`Fault::FlipBit`] changes what it keeps.
    pub fn inject_storage(&self, trigger: Trigger, fault: Fault) {
        self.shared.state().storage_script.add(trigger, fault);
    }

    /// The requests to the registry so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.iter().map(Record::read).collect()
    }

    /// The requests to the storage so far, in the order in which they came.
    pub fn storage_requests(&self) -> Vec<Recorded> {
        self.shared.state().storage_requests.iter().map(Record::read).collect()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        let mut state = self.shared.state();
        state.requests.clear();
        state.storage_requests.clear();
    }

    /// A blob's bytes.
    pub fn blob(&self, digest: &str) -> Option<Bytes> {
        self.shared.state().blobs.get(digest).cloned()
    }

    /// The digests of all blobs.
    pub fn blobs(&self) -> Vec<String> {
        self.shared.state().blobs.keys().cloned().collect()
    }

    /// The bytes of the manifest `tag` of `repository`.
    pub fn manifest(&self, repository: &str, tag: &str) -> Option<Bytes> {
        let state = self.shared.state();
        Some(state.repositories.get(repository)?.manifest(tag)?.1.bytes.clone())
    }

    /// How many uploads are open.
    pub fn open_uploads(&self) -> usize {
        self.shared.state().uploads.len()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a request, and gives what goes wrong with it.
    fn record(&self, parts: &Parts, to_storage: bool) -> (Record, Vec<Fault>) {
        let record = Record::new(Recorded {
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts.headers.clone(),
            body_len: 0,
            status: 0,
        });
        let mut state = self.state();
        let State { requests, storage_requests, script, storage_script, .. } = &mut *state;
        let (log, script) = if to_storage { (storage_requests, storage_script) } else { (requests, script) };
        log.push(record.clone());
        (record, script.next(parts.method.as_str(), parts.uri.path()))
    }
}

impl State {
    /// A new signed address for `purpose`, without its host.
    fn sign(&mut self, purpose: Purpose) -> String {
        self.count += 1;
        let path = match &purpose {
            Purpose::Read(digest) => format!("/blobs/{digest}"),
            Purpose::Write { upload, part: Some(part), .. } => format!("/uploads/{upload}/{part}"),
            Purpose::Write { upload, part: None, .. } => format!("/uploads/{upload}"),
        };
        // In an order and an escaping that no client would choose.
        let address = format!("{path}?X-Amz-Signature=s%2Fgn%2b{}&X-Amz-Date=now&A=*", self.count);
        self.addresses.insert(address.clone(), purpose);
        address
    }
}

/// What a path names.
enum Target {
    Token,
    Manifest { name: String, tag: String },
    Blob { name: String, digest: String },
    Uploads { name: String },
    Upload { name: String, id: String },
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let words: Vec<&str> = path.strip_prefix("/v2/")?.split('/').collect();
        let name = |namespace: &str, model: &str| format!("{namespace}/{model}");
        Some(match words[..] {
            ["token"] => Self::Token,
            [namespace, model, "manifests", tag] => {
                Self::Manifest { name: name(namespace, model), tag: tag.to_owned() }
            }
            [namespace, model, "blobs", "uploads", ""] => Self::Uploads { name: name(namespace, model) },
            [namespace, model, "blobs", "uploads", id] => {
                Self::Upload { name: name(namespace, model), id: id.to_owned() }
            }
            [namespace, model, "blobs", digest] => {
                Self::Blob { name: name(namespace, model), digest: digest.to_owned() }
            }
            _ => return None,
        })
    }

    fn wants(&self, method: &Method) -> Option<Grant> {
        match self {
            Self::Token => None,
            // Everybody pulls.
            Self::Manifest { .. } | Self::Blob { .. } if matches!(*method, Method::GET | Method::HEAD) => None,
            Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. } => Some(Grant::new(name, &["pull", "push"])),
        }
    }
}

struct Exchange {
    shared: Arc<Shared>,
    parts: Parts,
    query: Vec<(String, String)>,
    body: Incoming,
}

async fn answer(Extract(shared): Extract<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (record, faults) = shared.record(&parts, false);
    let query = Query::try_from_uri(&parts.uri).map(|Query(query)| query).unwrap_or_default();
    let mut exchange = Exchange { body: Incoming::new(body, record.clone()), shared, parts, query };
    let mut given = None;
    for fault in &faults {
        match fault {
            Fault::Status { code, body, .. } => given = Some(reply(*code, &[], body.clone())),
            Fault::DropRequest { after } => exchange.body.break_after(*after),
            Fault::ExpiredToken => exchange.shared.state().tokens.expire(&exchange.parts.headers),
            Fault::RedirectTo(host) => {
                let path = exchange.parts.uri.path_and_query().map_or("/", |path| path.as_str());
                given = Some(reply(307, &[("location", &format!("http://{host}{path}"))], Bytes::new()));
            }
            _ => {}
        }
    }
    let response = match given {
        Some(response) => response,
        None => exchange.route().await.unwrap_or_else(IntoResponse::into_response),
    };
    // A part that belongs elsewhere is not waited for, and whoever sends it here sends it in vain.
    if response.status() != 307 {
        exchange.body.drain().await;
    }
    if exchange.body.is_broken() {
        return reply::hang_up();
    }
    let Some(mut response) = spoil_reply(response, &faults).await else { return reply::hang_up() };
    record.change(|record| record.status = response.status().as_u16());
    if exchange.parts.method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

type Answer = Result<Response, Refusal>;

impl Exchange {
    async fn route(&mut self) -> Answer {
        // Not even `/v2/` is there.
        let target = Target::parse(self.parts.uri.path()).ok_or_else(|| Refusal::new(404, "", "page not found"))?;
        if let Target::Token = target {
            return self.token();
        }
        if let Some(wanted) = target.wants(&self.parts.method) {
            let own = format!("http://{}/v2/token", self.shared.host);
            let realm = self.shared.options.realm.as_ref().unwrap_or(&own);
            self.shared.state().tokens.check(&Auth::bearer("", ""), &self.parts.headers, &[wanted], realm)?;
        }
        let method = self.parts.method.as_str().to_owned();
        match (method.as_str(), target) {
            ("GET", Target::Manifest { name, tag }) => self.get_manifest(&name, &tag),
            ("PUT", Target::Manifest { name, tag }) => self.put_manifest(&name, &tag).await,
            ("HEAD" | "GET", Target::Blob { digest, .. }) => self.get_blob(&digest),
            ("POST", Target::Uploads { name }) => self.begin(&name).await,
            ("PATCH", Target::Upload { name, id }) => self.patch(&name, &id).await,
            ("PUT", Target::Upload { id, .. }) => self.finish(&id).await,
            ("DELETE", Target::Upload { id, .. }) => {
                self.shared.state().uploads.remove(&id).ok_or_else(unknown_upload)?;
                Ok(reply(204, &[], Bytes::new()))
            }
            _ => Err(Refusal::new(405, "UNSUPPORTED", format!("{method} is not supported here"))),
        }
    }

    /// A token for whoever signs the question with a known key.
    fn token(&self) -> Answer {
        let denied = |what: &str| Refusal::new(401, "UNAUTHORIZED", what);
        if self.parts.method != Method::GET {
            return Err(Refusal::new(405, "UNSUPPORTED", "only questions are answered"));
        }
        let authorization = self.header(AUTHORIZATION).ok_or_else(|| denied("nobody signed"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let (path, query) = (self.parts.uri.path(), self.parts.uri.query().unwrap_or_default());
        let question = Question::check(&self.shared.host, path, query, authorization, SERVICE, now)?;
        let mut state = self.shared.state();
        if !state.nonces.insert(question.nonce) {
            return Err(denied("this was asked before"));
        }
        let known = self.shared.options.keys.iter().find(|(key, _)| *key == question.key);
        let (_, namespace) = known.ok_or_else(|| denied("unknown key"))?;
        let mut grants = Grant::parse(question.scopes.iter().map(String::as_str));
        for grant in &mut grants {
            let owns = grant.name.split('/').next() == Some(namespace);
            grant.actions.retain(|action| owns || action == "pull");
        }
        let token = state.tokens.issue(grants, self.shared.options.lifetime);
        Ok(reply::json(&serde_json::json!({ "token": token })))
    }

    fn get_manifest(&self, name: &str, tag: &str) -> Answer {
        let state = self.shared.state();
        let found = state.repositories.get(name).and_then(|repository| repository.manifest(tag));
        let (_, stored) = found.ok_or_else(|| Refusal::new(404, "MANIFEST_UNKNOWN", "no such manifest"))?;
        Ok(reply(200, &[("content-type", "text/plain; charset=utf-8")], stored.bytes.clone()))
    }

    async fn put_manifest(&mut self, name: &str, tag: &str) -> Answer {
        let invalid = |what: &str| Refusal::new(400, "MANIFEST_INVALID", what);
        if !is_tag(tag) || self.header(CONTENT_TYPE) != Some(DOCKER_MANIFEST) {
            return Err(invalid("only Docker's manifests are taken, under a tag"));
        }
        let bytes = self.body.all(4 << 20).await?;
        let mut state = self.shared.state();
        let State { blobs, repositories, .. } = &mut *state;
        let repository = repositories.entry(name.to_owned()).or_default();
        repository.blobs.clone_from(blobs);
        repository.put_manifest(tag, DOCKER_MANIFEST, bytes)?;
        Ok(reply(201, &[], Bytes::new()))
    }

    fn get_blob(&self, digest: &str) -> Answer {
        let mut state = self.shared.state();
        let unknown = || Refusal::new(404, "BLOB_UNKNOWN", "no such blob");
        let size = state.blobs.get(digest).ok_or_else(unknown)?.len();
        if self.parts.method == Method::HEAD {
            let mut response = reply(200, &[], Bytes::new());
            response.headers_mut().insert(CONTENT_LENGTH, size.into());
            return Ok(response);
        }
        let address = state.sign(Purpose::Read(digest.to_owned()));
        Ok(reply(307, &[("location", &format!("http://{}{address}", self.shared.storage))], Bytes::new()))
    }

    async fn begin(&mut self, name: &str) -> Answer {
        let invalid = |what: &str| Refusal::new(400, "DIGEST_INVALID", what);
        let digest = self.parameter("digest").filter(|digest| is_digest(digest)).map(str::to_owned);
        let digest = digest.ok_or_else(|| invalid("no digest is announced"))?;
        let size = self.named("x-content-length").and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| invalid("no size is announced"))?;
        if self.named("x-redirect-uploads") != Some("2") {
            return Err(Refusal::new(400, "UNSUPPORTED", "the client does not follow"));
        }
        if !self.body.all(0).await?.is_empty() {
            return Err(invalid("there is nothing to send yet"));
        }
        let mut state = self.shared.state();
        if state.blobs.contains_key(&digest) {
            return Ok(reply(201, &[], Bytes::new()));
        }
        state.count += 1;
        let id = format!("upload-{}", state.count);
        let (parts, stored, signed) = Default::default();
        state.uploads.insert(id.clone(), Upload { digest: digest.clone(), size, parts, stored, signed });
        let mut response = reply(202, &[("docker-upload-location", &session(name, &id, 0))], Bytes::new());
        if self.shared.options.uploads == Uploads::Direct {
            let address = state.sign(Purpose::Write { upload: id, part: None, length: size });
            let direct = format!("http://{}{address}", self.shared.storage);
            let (signed, value) = signed_header(&digest);
            response.headers_mut().insert("x-direct-upload-url", header(&direct));
            let signed = HeaderName::try_from(format!("x-signed-header-{signed}")).expect("the name of a header");
            response.headers_mut().insert(signed, header(&value));
            // What must not be let through.
            response.headers_mut().insert("x-signed-header-authorization", header("Bearer of-another"));
        }
        Ok(response)
    }

    async fn patch(&mut self, name: &str, id: &str) -> Answer {
        let invalid = |what: String| Refusal::new(416, "RANGE_INVALID", what);
        let range = self.header(CONTENT_RANGE).and_then(|range| range.split_once('-'));
        let range = range.and_then(|(first, last)| Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?)));
        let (first, last) = range.ok_or_else(|| invalid("no range is named".to_owned()))?;
        let length = (last + 1).saturating_sub(first);
        if self.header(CONTENT_LENGTH) != Some(&length.to_string()) || self.header(CONTENT_TYPE) != Some(OCTETS) {
            return Err(invalid("the part is not as long as it says".to_owned()));
        }
        if self.named("x-redirect-uploads") != Some("1") {
            return Err(Refusal::new(400, "UNSUPPORTED", "the client does not follow"));
        }
        let turn: usize = self.parameter("_turn").and_then(|turn| turn.parse().ok()).ok_or_else(unknown_upload)?;
        let min_part = self.shared.options.min_part;
        {
            let mut state = self.shared.state();
            let upload = state.uploads.get_mut(id).ok_or_else(unknown_upload)?;
            // A part is announced in its turn; again, at the same address, when it was lost.
            if turn == upload.parts.len() {
                let expected = upload.parts.last().map_or(0, |(first, length)| first + length);
                let is_last = first + length == upload.size;
                if first != expected || length == 0 || first + length > upload.size || length < min_part && !is_last {
                    return Err(invalid(format!("a part belongs at {expected}")));
                }
                upload.parts.push((first, length));
            } else if upload.parts.get(turn) != Some(&(first, length)) {
                return Err(unknown_upload());
            }
        }
        let next = session(name, id, turn + 1);
        if self.shared.options.uploads == Uploads::Here {
            let bytes = self.body.all(usize::MAX).await?;
            if !self.body.is_broken() {
                let mut state = self.shared.state();
                state.uploads.get_mut(id).ok_or_else(unknown_upload)?.stored.insert(Some(turn), bytes);
            }
            return Ok(reply(202, &[("docker-upload-location", &next)], Bytes::new()));
        }
        if self.shared.options.reads_first {
            self.body.drain().await;
        } else {
            // Whoever does not wait for the answer has sent something by then.
            let _ = tokio::time::timeout(Duration::from_millis(20), self.body.next()).await;
        }
        if self.body.is_broken() {
            return Err(unknown_upload());
        }
        let mut state = self.shared.state();
        let address = state.sign(Purpose::Write { upload: id.to_owned(), part: Some(turn), length });
        let upload = state.uploads.get_mut(id).ok_or_else(unknown_upload)?;
        if let Some(before) = upload.signed.insert(turn, address.clone()) {
            state.addresses.remove(&before);
        }
        let location = format!("http://{}{address}", self.shared.storage);
        Ok(reply(307, &[("location", &location), ("docker-upload-location", &next)], Bytes::new()))
    }

    async fn finish(&mut self, id: &str) -> Answer {
        let invalid = |what: &str| Refusal::new(400, "DIGEST_INVALID", what);
        if !self.body.all(0).await?.is_empty() {
            return Err(invalid("everything was to be in the storage"));
        }
        let (digest, etag) = (self.parameter("digest").map(str::to_owned), self.parameter("etag").map(str::to_owned));
        let turn: Option<usize> = self.parameter("_turn").and_then(|turn| turn.parse().ok());
        let mut state = self.shared.state();
        let upload = state.uploads.get(id).ok_or_else(unknown_upload)?;
        if turn != Some(upload.parts.len()) {
            return Err(unknown_upload());
        }
        if digest.as_ref() != Some(&upload.digest) {
            return Err(invalid("another digest than the one announced"));
        }
        let bytes: Vec<u8> = match self.shared.options.uploads {
            Uploads::Direct => upload.stored.get(&None).ok_or_else(|| invalid("the storage has nothing"))?.to_vec(),
            Uploads::Parts | Uploads::Here => {
                let parts: Option<Vec<&Bytes>> =
                    (0..upload.parts.len()).map(|part| upload.stored.get(&Some(part))).collect();
                let parts = parts.ok_or_else(|| invalid("a part is missing"))?;
                let hashes: Vec<u8> = parts.iter().flat_map(|part| Md5::digest(part).to_vec()).collect();
                if etag != Some(format!("{}-{}", hex(&Md5::digest(hashes)), parts.len())) {
                    return Err(invalid("the etag is not that of the parts"));
                }
                parts.into_iter().flatten().copied().collect()
            }
        };
        if bytes.len() as u64 != upload.size || contents::digest(&bytes) != upload.digest {
            return Err(invalid("the storage has other bytes"));
        }
        let upload = state.uploads.remove(id).ok_or_else(unknown_upload)?;
        state.blobs.insert(upload.digest, bytes.into());
        Ok(reply(201, &[], Bytes::new()))
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn named(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

fn session(name: &str, id: &str, turn: usize) -> String {
    format!("/v2/{name}/blobs/uploads/{id}?_turn={turn}")
}

fn unknown_upload() -> Refusal {
    Refusal::new(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
