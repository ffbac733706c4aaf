//! Moving models between the store and registries, and the credentials for it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::source::Source;
use crate::copy::{CopyReport, Direction, copy};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Manifest, Reference};
use crate::progress::Progress;
use crate::registry::{Credential, DockerConfig, Home, Keychain, Known, Options, Remote, SigningKey, ping};
use crate::store::{Published, Store};

/// How registries are reached.
#[derive(Clone)]
pub struct Access {
    /// Where credentials come from.
    pub keychain: Arc<dyn Keychain>,
    /// Transport settings.
    pub options: Options,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Pushes the stored model `name` to `to`. Blobs that are there already are checked and not sent; the manifest
/// goes last.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when there is no such model, [`crate::ErrorKind::Corrupt`] when a stored
/// blob is damaged or missing, [`crate::ErrorKind::Unauthorized`] and [`crate::ErrorKind::Registry`] for the other side.
pub async fn push(
    store: &Store,
    name: &Reference,
    to: &Reference,
    access: &Access,
    progress: &Progress,
) -> Result<CopyReport> {
    let (target, manifest) = super::inspect::find(store, name)?;
    let host = to.require_host()?;
    let known = known(store, host, &manifest);
    store.recall_stamps(&target.digest);
    let remote = Remote::knowing(known, to, access.keychain.clone(), &access.options)?;
    let outcome = copy(Direction::Push, store, name, &remote, to, access.options.concurrency, progress).await;
    store.see(host, |seen| {
        seen.habits = serde_json::to_value(remote.habits()).unwrap_or_default();
        if outcome.is_ok() {
            seen.publish(Published { repository: to.path().to_owned(), manifest: target });
        }
    });
    outcome
}

/// What the store knows of the registry `host`, for a push of `manifest`.
pub(super) fn known(store: &Store, host: &str, manifest: &Manifest) -> Known {
    let seen = store.seen(host);
    let wanted: BTreeSet<_> = manifest.blobs().map(|blob| blob.digest).collect();
    let home = |published: &Published| {
        let (document, _) = store.document(&published.manifest).ok()?;
        let blobs: BTreeSet<_> = document.blobs().map(|blob| blob.digest).filter(|it| wanted.contains(it)).collect();
        (!blobs.is_empty()).then(|| Home { repository: published.repository.clone(), blobs: Some(blobs) })
    };
    Known {
        habits: serde_json::from_value(seen.habits).unwrap_or_default(),
        homes: seen.published.iter().rev().filter_map(home).collect(),
        unfinished: Some(Arc::new(store.clone())),
    }
}

/// Pulls `from` into the store as `name`. Blobs that the store has are not fetched.
///
/// The mirrors of its registry are asked first, each once. Whatever is wrong with one, the next place is asked, and
/// what came whole from one is not fetched from another.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when the registry has no such model, [`crate::ErrorKind::Corrupt`] when it
/// sends other bytes than it promised; otherwise as [`push`].
pub async fn pull(
    store: &Store,
    from: &Reference,
    name: &Reference,
    access: &Access,
    progress: &Progress,
) -> Result<CopyReport> {
    let pull = async |from: &Reference, options: &Options| {
        let remote = Remote::new(from, access.keychain.clone(), options)?;
        let report = copy(Direction::Pull, &remote, from, store, name, options.concurrency, progress).await?;
        let (repository, manifest) = (from.path().to_owned(), super::inspect::require(store, name)?);
        store.see(from.require_host()?, |seen| seen.publish(Published { repository, manifest }));
        Ok::<_, crate::Error>(report)
    };
    for mirror in mirrors(from, &access.options)? {
        match pull(&mirror, &access.options.hasty()).await {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::Registry | ErrorKind::Unauthorized | ErrorKind::Corrupt
                ) =>
            {
                progress.note(format!("The mirror `{mirror}` is passed over: {error}"));
            }
            ended => return ended,
        }
    }
    pull(from, &access.options).await
}

/// What `from` is called on the mirrors of its registry.
fn mirrors(from: &Reference, options: &Options) -> Result<Vec<Reference>> {
    let host = from.require_host()?;
    let mirrors = options.registries.get(host).map_or(&[][..], |own| &own.mirrors);
    let name = from.to_string();
    let rest = name.strip_prefix(host).unwrap_or_default();
    mirrors.iter().map(|mirror| format!("{mirror}{rest}").parse()).collect()
}

/// Copies the model `from` of one registry to `to` of another, or of the same. Its bytes are checked on their way and
/// kept nowhere here.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when there is no model `from`, [`crate::ErrorKind::Corrupt`] when other bytes
/// come than were promised; otherwise as [`push`].
pub async fn mirror(from: &Reference, to: &Reference, access: &Access, progress: &Progress) -> Result<CopyReport> {
    let remote = |reference, known| Remote::knowing(known, reference, access.keychain.clone(), &access.options);
    let known = Known { homes: homes(from, to), ..Known::default() };
    let (source, destination) = (remote(from, Known::default())?, remote(to, known)?);
    copy(Direction::Mirror, &source, from, &destination, to, access.options.concurrency, progress).await
}

/// From where the registry of `to` may mount what is copied to it from `from`.
pub(super) fn homes(from: &Reference, to: &Reference) -> Vec<Home> {
    let home = Home { repository: from.path().to_owned(), blobs: None };
    if from.host() == to.host() { vec![home] } else { vec![] }
}

/// Pulls `from` into the store as `name`, to create a model from it.
///
/// # Errors
/// As [`pull`].
pub async fn pull_source(
    store: &Store,
    from: &Reference,
    name: &Reference,
    access: &Access,
    progress: &Progress,
) -> Result<Source> {
    pull(store, from, name, access, progress).await?;
    let manifest = super::inspect::require(store, name)?;
    Ok(Source::Model { store: store.clone(), name: name.clone(), manifest })
}

/// Checks a credential with the registry and keeps it in docker's `config.json`.
///
/// # Errors
/// [`crate::ErrorKind::Unauthorized`] when the registry refuses it: then nothing is kept.
pub async fn login(host: &str, user: &str, password: &str, config: &DockerConfig, options: &Options) -> Result<()> {
    let credential = Credential::Basic { user: user.to_owned(), password: password.to_owned() };
    ping(host, &credential, options).await?;
    config.login(host, user, password)
}

/// The key in the file `path` that Ollama's registry knows the user by, which is made when there is none, and whether
/// it was.
///
/// # Errors
/// [`crate::ErrorKind::Unauthorized`] when it cannot be used or made.
pub fn ollama_key(path: &Path) -> Result<(SigningKey, bool)> {
    match SigningKey::read(path)? {
        Some(key) => Ok((key, false)),
        None => SigningKey::create(path).map(|key| (key, true)),
    }
}

/// Forgets the credential for a registry; whether there was one.
///
/// # Errors
/// [`crate::ErrorKind::Store`] when `config.json` cannot be rewritten.
pub fn logout(host: &str, config: &DockerConfig) -> Result<bool> {
    config.logout(host)
}

/// Does `work` on a thread that may wait.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let finished = tokio::task::spawn_blocking(work).await;
    finished.unwrap_or_else(|cause| Err(Error::new(ErrorKind::Unexpected, "The work broke off").caused_by(cause)))
}
