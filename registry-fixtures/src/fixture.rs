//! The fixture as a test sees it: options, faults, what was asked, and what is held.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::HeaderMap;
use bytes::Bytes;

use crate::auth::{Auth, Tokens};
use crate::contents::{self, Repository};
use crate::fault::{Fault, Script, Trigger};
use crate::registry;
use crate::server::Server;

/// How a registry behaves where registries in use differ.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who may use it.
    pub auth: Auth,
    /// How it spells `Location`.
    pub locations: Locations,
    /// What it keeps of an upload whose connection broke.
    pub broken_upload: BrokenUpload,
    /// Whether it honours `Range` on blobs.
    pub ranges: bool,
    /// Whether it mounts blobs of other repositories.
    pub mounts: bool,
    /// Whether it takes a whole blob in the POST that begins an upload, as few registries do.
    pub single_post: bool,
    /// Whether it has the referrers API.
    pub referrers: bool,
    /// Whether it leaves out referrers of other types than it is asked for.
    pub filters: bool,
    /// What it deletes besides blobs.
    pub deletes: Deletes,
    /// The longest PATCH it takes, in bytes; 0 to take none.
    pub max_chunk: Option<u64>,
    /// The shortest PATCH it takes, in bytes, but for the last of a blob.
    pub min_chunk: Option<u64>,
    /// Whether it lists its repositories.
    pub catalog: bool,
    /// How it lists what is more than was asked for.
    pub listing: Listing,
    /// Whether it tells how far an upload is to whoever asks at another address than the latest.
    pub old_status: bool,
    /// Whether it appends a chunk wherever that says to begin, as docker-registry 2.8 does, and tells nobody.
    pub appends: bool,
    /// How long a request's body may take; the connection of one that takes longer closes.
    pub deadline: Option<Duration>,
    /// How many tags, repositories or referrers it lists at most in one reply.
    pub page: usize,
    /// What goes wrong.
    pub faults: Vec<(Trigger, Fault)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            auth: Auth::None,
            locations: Locations::Absolute,
            broken_upload: BrokenUpload::Keep,
            ranges: true,
            mounts: true,
            single_post: false,
            referrers: false,
            filters: true,
            deletes: Deletes::Everything,
            max_chunk: None,
            min_chunk: None,
            catalog: true,
            listing: Listing::Paged,
            old_status: true,
            appends: false,
            deadline: None,
            page: 1000,
            faults: Vec::new(),
        }
    }
}

impl Options {
    /// The same registry for others than everybody.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// The same registry with one more thing going wrong.
    #[must_use]
    pub fn fault(mut self, trigger: Trigger, fault: Fault) -> Self {
        self.faults.push((trigger, fault));
        self
    }
}

/// How `Location` is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locations {
    /// As a whole URL.
    Absolute,
    /// As a URL without a scheme: `//host:port/path`.
    WithoutScheme,
    /// As a path.
    Relative,
}

/// What a registry deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletes {
    /// Tags, manifests and blobs.
    Everything,
    /// Manifests and blobs: a tag is a wrong digest to it, as to docker-registry 2.8.
    ByDigest,
    /// Nothing, as docker-registry where nobody switched it on.
    Nothing,
}

/// How a registry lists names that are more than were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// In pages, each with a link to the next.
    Paged,
    /// In pages, without a word about more of them, as go-containerregistry 0.20.
    Unlinked,
    /// All at once and in no order, whatever was asked for, as the tags of docker-registry 2.8.
    Whole,
}

/// What is kept of an upload whose connection broke in the middle of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BrokenUpload {
    /// What arrived, as distribution 3 does; the session goes on from there.
    Keep,
    /// Nothing: the session is gone, as with zot 2.
    Discard,
}

/// One request as it came, and how it was answered.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The query, undecoded; empty when there is none.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// How many bytes of a body arrived.
    pub body_len: u64,
    /// The reply's status; 0 when there was none.
    pub status: u16,
}

impl Recorded {
    /// A header's text; `None` when it was not sent.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// The record of a request that is still under way.
#[derive(Clone, Debug)]
pub(crate) struct Record(Arc<Mutex<Recorded>>);

impl Record {
    pub(crate) fn new(recorded: Recorded) -> Self {
        Self(Arc::new(Mutex::new(recorded)))
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Recorded)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn read(&self) -> Recorded {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) host: String,
    state: Mutex<State>,
}

/// What requests change.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) repositories: BTreeMap<String, Repository>,
    pub(crate) uploads: HashMap<String, Upload>,
    pub(crate) uploads_begun: usize,
    pub(crate) tokens: Tokens,
    pub(crate) script: Script,
    pub(crate) requests: Vec<Record>,
}

/// An upload session.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    pub(crate) repository: String,
    pub(crate) bytes: Vec<u8>,
    /// Part of the latest `Location`: an older one is refused.
    pub(crate) turn: usize,
    /// Whether a chunk was shorter than the registry wants all but the last to be.
    pub(crate) short_chunk: bool,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A registry in this process, on a port of 127.0.0.1 that the system chose; stopped when dropped.
///
/// ```
/// use registry_fixtures::{Fault, Fixture, Options, Trigger};
///
/// let third_chunk = Trigger::on("PATCH", "/blobs/uploads/").nth(3);
/// let fixture = Fixture::start_with(Options::default().fault(third_chunk, Fault::DropRequest { after: 1000 }));
/// assert!(fixture.host().starts_with("127.0.0.1:"));
/// ```
#[derive(Debug)]
pub struct Fixture {
    shared: Arc<Shared>,
    _server: Server,
}

impl Fixture {
    /// A registry for everybody where nothing goes wrong.
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// A registry that behaves as `options` say.
    pub fn start_with(options: Options) -> Self {
        let mut shared = None;
        let server = Server::start(|address| {
            let mut state = State::default();
            for (trigger, fault) in &options.faults {
                state.script.add(trigger.clone(), fault.clone());
            }
            let new = Arc::new(Shared { options, host: address.to_string(), state: Mutex::new(state) });
            shared = Some(Arc::clone(&new));
            Router::new().fallback(registry::answer).with_state(new)
        });
        Self { shared: shared.expect("the routes were asked for"), _server: server }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.shared.host.clone()
    }

    /// Lets one more thing go wrong, counting requests from now.
    pub fn inject(&self, trigger: Trigger, fault: Fault) {
        self.shared.state().script.add(trigger, fault);
    }

    /// The requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.iter().map(Record::read).collect()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.shared.state().requests.clear();
    }

    /// The digests of the blobs in `repository`.
    pub fn blobs(&self, repository: &str) -> Vec<String> {
        self.read(repository, |repository| repository.blobs.keys().cloned().collect())
    }

    /// A blob's bytes.
    pub fn blob(&self, repository: &str, digest: &str) -> Option<Bytes> {
        self.read(repository, |repository| repository.blobs.get(digest).cloned())
    }

    /// The tags of `repository`.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        self.read(repository, |repository| repository.tags.keys().cloned().collect())
    }

    /// The bytes of the manifest that a tag or a digest names.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<Bytes> {
        self.read(repository, |repository| repository.manifest(reference).map(|(_, stored)| stored.bytes.clone()))
    }

    /// How many upload sessions are open.
    pub fn open_uploads(&self) -> usize {
        self.shared.state().uploads.len()
    }

    /// Puts a blob into `repository`; returns its digest.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> String {
        let bytes = bytes.into();
        let digest = contents::digest(&bytes);
        self.write(repository, |repository| repository.blobs.insert(digest.clone(), bytes));
        digest
    }

    /// Puts a manifest into `repository` under a tag or its digest; returns its digest.
    ///
    /// # Panics
    /// When a PUT of it would be refused.
    pub fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: impl Into<Bytes>) -> String {
        let stored = self.write(repository, |repository| repository.put_manifest(reference, media_type, bytes.into()));
        stored.expect("a manifest the registry would accept").0
    }

    /// Flips one bit in the middle of a blob in every repository that has it: the registry lies from now on.
    ///
    /// # Panics
    /// When no repository has it, or it is empty.
    pub fn corrupt_blob(&self, digest: &str) {
        let mut found = false;
        for repository in self.shared.state().repositories.values_mut() {
            if let Some(blob) = repository.blobs.get_mut(digest) {
                let mut bytes = blob.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                *blob = bytes.into();
                found = true;
            }
        }
        assert!(found, "no repository has {digest}");
    }

    /// Takes a blob out of `repository`; says whether it was there.
    pub fn remove_blob(&self, repository: &str, digest: &str) -> bool {
        self.write(repository, |repository| repository.blobs.remove(digest).is_some())
    }

    /// Takes a tag, or a manifest with its tags, out of `repository`; says whether it was there.
    pub fn remove_manifest(&self, repository: &str, reference: &str) -> bool {
        self.write(repository, |repository| repository.delete_manifest(reference))
    }

    fn read<T: Default>(&self, repository: &str, read: impl FnOnce(&Repository) -> T) -> T {
        self.shared.state().repositories.get(repository).map(read).unwrap_or_default()
    }

    fn write<T>(&self, repository: &str, write: impl FnOnce(&mut Repository) -> T) -> T {
        write(self.shared.state().repositories.entry(repository.to_owned()).or_default())
    }
}
