//! One repository of one registry over HTTP, as OCI distribution-spec v1.1.1 has it: credentials,
//! uploads, downloads, manifests, and what to do when any of it breaks. It never sees the local store:
//! it is one of the places that [`crate::copy`] moves content between.
//!
//! HTTPS, unless the user asked for plain HTTP, or the registry is on this machine and speaks it.
//! Proxies are those of the environment, as for every program, and never for this machine.

mod address;
mod auth;
mod bounded;
mod client;
mod connector;
mod credential;
mod delete;
mod docker_config;
mod download;
mod failure;
#[doc(hidden)]
pub mod headers;
mod listing;
mod manifests;
mod ollama;
mod outgoing;
mod pages;
mod rate;
mod referrers;
mod tls;
mod upload;
mod warnings;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt as _;
use reqwest::header::{ACCEPT, CONTENT_LENGTH};
use reqwest::{Method, StatusCode, Url};
use tokio::sync::OnceCell;

pub use credential::{Anonymous, Credential, Keychain};
pub use docker_config::DockerConfig;
pub use listing::catalog;
pub use ollama::{OLLAMA_KEYS, OllamaOptions, SigningKey};
pub use rate::Rate;
pub use tls::ClientCertificate;

use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, MAX_MANIFEST_SIZE, Reference};
use crate::progress::Progress;
use crate::storage::{Body, ByteStream, Fetch, Push, Pushed, Reading, Refs, Unfinished, Verifier, require_within};
use auth::{Access, Authorizer};
use client::{Call, Client};
use download::Lanes;
use failure::Failure;
pub use upload::Habits;
use upload::{Pace, Parts};
pub use warnings::Warnings;

/// How to speak to a registry.
#[derive(Clone, Debug)]
pub struct Options {
    /// Speak plain HTTP. Without it, only to this machine, and only if nothing better is spoken there.
    pub plain_http: bool,
    /// A PEM file with certificate authorities to trust besides the system's.
    pub ca: Option<PathBuf>,
    /// A certificate of our own, for a registry that asks for one; it is shown to nobody else.
    pub client_certificate: Option<ClientCertificate>,
    /// Directories with certificates for registries, as docker's `certs.d`; the first that has some for a registry
    /// counts.
    pub certificates: Vec<PathBuf>,
    /// How many blobs are moved at once. As many streams come from a repository at most, several of one large
    /// blob among them, and as many connections are kept.
    pub concurrency: usize,
    /// How many bytes of a large blob the first request sends; a size of our own when there is none.
    pub chunk: Option<u64>,
    /// Ollama's protocol: who speaks it, and the user's key.
    pub ollama: OllamaOptions,
    /// How fast blobs may move, with everything that shares the limit; as fast as they can without one.
    pub rate: Option<Arc<Rate>>,
    /// How long a connection may take to come up.
    pub connect_timeout: Duration,
    /// How long the other side may be silent while data moves.
    pub idle_timeout: Duration,
    /// How long it may be silent after it has taken everything: it is storing many gigabytes.
    pub closing_timeout: Duration,
    /// How often a request is sent at most, when it fails in a way that may pass.
    pub attempts: usize,
    /// The wait before the second attempt; it doubles with each.
    pub first_pause: Duration,
    /// Whom to tell what registries warn of; nobody, without more.
    pub warnings: Warnings,
    /// What is different for some registries, by their names as references have them.
    pub registries: BTreeMap<String, HostOptions>,
}

/// What is different for one registry.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// In the place of [`Options::plain_http`].
    pub plain_http: Option<bool>,
    /// In the place of [`Options::ca`].
    pub ca: Option<PathBuf>,
    /// In the place of [`Options::client_certificate`].
    pub client_certificate: Option<ClientCertificate>,
    /// Where what it has may be pulled from first, as `host[:port][/path]`, in this order.
    pub mirrors: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: false,
            ca: None,
            client_certificate: None,
            certificates: Vec::new(),
            concurrency: 4,
            chunk: None,
            ollama: OllamaOptions::default(),
            rate: None,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            closing_timeout: Duration::from_secs(600),
            attempts: 5,
            first_pause: Duration::from_millis(500),
            warnings: Warnings::to(Progress::silent()),
            registries: BTreeMap::new(),
        }
    }
}

impl Options {
    /// The options for a place that another one can stand in for: it is asked once, and not waited for long.
    pub fn hasty(&self) -> Self {
        Self {
            attempts: 1,
            connect_timeout: self.connect_timeout.min(HASTY_CONNECT),
            idle_timeout: self.idle_timeout.min(HASTY_IDLE),
            ..self.clone()
        }
    }

    /// The options for the registry `host`, with what is different for it.
    fn of(&self, host: &str) -> Self {
        let mut options = self.clone();
        if let Some(own) = self.registries.get(host).cloned() {
            options.plain_http = own.plain_http.unwrap_or(options.plain_http);
            options.ca = own.ca.or(options.ca);
            options.client_certificate = own.client_certificate.or(options.client_certificate);
        }
        options
    }
}

/// How long a connection may take to come up where there is another place to go.
const HASTY_CONNECT: Duration = Duration::from_secs(3);
/// How long such a place may be silent.
const HASTY_IDLE: Duration = Duration::from_secs(10);

/// What earlier runs learned of a registry. All of it are hints: none is believed before the registry says so.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What it takes in uploads.
    pub habits: Habits,
    /// Repositories from which it may mount blobs, the likeliest first.
    pub homes: Vec<Home>,
    /// Uploads that did not come to their end.
    pub unfinished: Option<Arc<dyn Unfinished>>,
}

/// A repository of a registry that was seen to hold blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// Its path on the registry.
    pub repository: String,
    /// The blobs; `None` when it has all that are asked for.
    pub blobs: Option<BTreeSet<Digest>>,
}

/// One repository on one registry; cheap to clone. Nothing is sent before the first request.
#[derive(Clone)]
pub struct Remote(Arc<Repository>);

struct Repository {
    client: Client,
    path: String,
    pace: Pace,
    homes: Vec<Home>,
    unfinished: Option<Arc<dyn Unfinished>>,
    /// How large blobs are cut, if they are sent as Ollama's registry takes them.
    parts: Option<Parts>,
    lanes: Lanes,
    /// Whether the registry was seen to refuse a blob that is not what its digest says.
    checks_digests: OnceCell<bool>,
}

impl Remote {
    /// The repository that `reference` is in, with the credentials `keychain` has for it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] when no registry is named, or [`Options::ca`] cannot be used.
    pub fn new(reference: &Reference, keychain: Arc<dyn Keychain>, options: &Options) -> Result<Self> {
        Self::knowing(Known::default(), reference, keychain, options)
    }

    /// As [`Remote::new`], with what is `known` of the registry.
    ///
    /// # Errors
    /// As [`Remote::new`].
    pub fn knowing(
        known: Known,
        reference: &Reference,
        keychain: Arc<dyn Keychain>,
        options: &Options,
    ) -> Result<Self> {
        let Known { habits, homes, unfinished } = known;
        let (host, path) = (reference.require_host()?, reference.path().to_owned());
        let speaks_ollama = options.ollama.are_for(host);
        let keychain = if speaks_ollama { options.ollama.keychain(keychain) } else { keychain };
        let client = Client::new(host, Authorizer::new(&path, keychain), options)?;
        let parts = speaks_ollama.then(|| Parts::new(options.chunk));
        let (pace, lanes) = (Pace::new(options.chunk, habits), Lanes::new(options.concurrency));
        Ok(Self(Arc::new(Repository {
            client,
            path,
            pace,
            homes,
            unfinished,
            parts,
            lanes,
            checks_digests: OnceCell::new(),
        })))
    }

    /// What is known of the registry's uploads by now, for the next run.
    pub fn habits(&self) -> Habits {
        self.0.pace.habits()
    }

    /// Whether a push would have the registry mount `target` from another repository.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthorized`] or [`ErrorKind::Registry`] when the registry does not say.
    pub async fn is_mountable(&self, target: &Descriptor) -> Result<bool> {
        Ok(self.0.client.persist(|| self.0.is_mountable(target)).await?)
    }

    /// A reference to another repository has no place here.
    fn require_own(&self, reference: &Reference) -> Result<()> {
        if reference.host() == Some(self.0.client.host()) && reference.path() == self.0.path {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unexpected, format!("`{reference}` is not in the repository `{}`", self.0)))
    }
}

/// Whether the registry at `host` accepts `credential`.
///
/// # Errors
/// [`ErrorKind::Unauthorized`] when it does not; [`ErrorKind::Registry`] when it cannot be asked.
pub async fn ping(host: &str, credential: &Credential, options: &Options) -> Result<()> {
    let keychain = Arc::new(credential::Fixed(credential.clone()));
    let client = Client::new(host, Authorizer::new("", keychain), options)?;
    client
        .persist(|| async {
            let call = Call::new(Method::GET, client.base().await?.clone(), Access::Login);
            let response = client.exchange(&call).await?;
            if response.status() == StatusCode::OK { Ok(()) } else { Err(client.refused(&call, response).await) }
        })
        .await?;
    Ok(())
}

impl Repository {
    /// The address of `rest` in this repository.
    async fn url(&self, rest: &str) -> Result<Url, Failure> {
        let path = format!("{}/{rest}", self.path);
        self.client.base().await?.join(&path).map_err(|cause| {
            Error::new(ErrorKind::Usage, format!("Not a repository: `{self}`")).caused_by(cause).into()
        })
    }

    /// Whether `target` is there, with its size.
    async fn is_present(&self, target: &Descriptor) -> Result<bool, Failure> {
        let is_manifest = target.media_type.is_manifest_or_index();
        let kind = if is_manifest { "manifests" } else { "blobs" };
        let url = self.url(&format!("{kind}/{}", target.digest)).await?;
        let mut call = Call::new(Method::HEAD, url, Access::Pull);
        if is_manifest {
            call = call.header(ACCEPT, manifests::ACCEPTED);
        }
        let response = self.client.exchange(&call).await?;
        match response.status() {
            StatusCode::OK => {
                // A reply to HEAD has no body; its length is only in the header.
                let length =
                    response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
                Ok(length.is_none_or(|length: u64| length == target.size))
            }
            StatusCode::NOT_FOUND => Ok(false),
            // Credentials that may write and not look, or a registry without HEAD: the upload decides.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            _ => Err(self.client.refused(&call, response).await),
        }
    }
}

impl Fetch for Remote {
    async fn exists(&self, target: &Descriptor) -> Result<bool> {
        Ok(self.0.client.persist(|| self.0.is_present(target)).await?)
    }

    async fn fetch(&self, target: &Descriptor, bytes: Range<u64>) -> Result<Option<ByteStream>> {
        require_within(target, &bytes)?;
        if !target.media_type.is_manifest_or_index() {
            return self.0.download(target, bytes).await;
        }
        let Some((_, manifest)) = self.0.manifest(&target.digest.to_string()).await? else { return Ok(None) };
        manifest.open(bytes).await.map(Some)
    }

    fn reading(&self) -> Reading {
        self.0.lanes.reading()
    }
}

impl Push for Remote {
    async fn push(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        if !expected.media_type.is_manifest_or_index() {
            return self.0.upload(expected, body).await;
        }
        let mut verifier = Verifier::new(expected);
        let mut bytes = BytesMut::new();
        let mut source = body.open(0..expected.size).await?;
        while let Some(chunk) = source.try_next().await? {
            verifier.update(&chunk)?;
            if verifier.seen() > MAX_MANIFEST_SIZE {
                return Err(Error::new(ErrorKind::Registry, "The manifest is larger than 4 MiB"));
            }
            bytes.extend_from_slice(&chunk);
        }
        verifier.finish()?;
        self.0.put_manifest(&expected.digest.to_string(), &expected.media_type, &bytes.freeze()).await?;
        Ok(Pushed::Stored)
    }
}

impl Refs for Remote {
    async fn resolve(&self, reference: &Reference) -> Result<Option<(Descriptor, Bytes)>> {
        self.require_own(reference)?;
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => self.0.manifest(&digest.to_string()).await,
            (None, Some(tag)) => self.0.manifest(tag).await,
            (None, None) => Ok(None),
        }
    }

    async fn tag(&self, reference: &Reference, target: &Descriptor, manifest: &Bytes) -> Result<()> {
        self.require_own(reference)?;
        reference.require_agreement(&target.digest)?;
        // The registry would store whatever comes, and under a tag nobody would notice.
        Verifier::check(target, manifest)?;
        let name = reference.tag().map_or_else(|| target.digest.to_string(), str::to_owned);
        self.0.put_manifest(&name, &target.media_type, manifest).await
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.client.host(), self.path)
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.0)
    }
}
