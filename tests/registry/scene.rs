//! What the tests share: keys, and transfers with a limit on the wait.

use std::future::Future;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use kiln::copy::{CopyReport, Direction, copy};
use kiln::oci::Descriptor;
use kiln::registry::{Credential, Keychain, Remote};
use kiln::storage::Fetch;
use kiln::{Error, Progress, Result};

use crate::scripted::*;
use crate::shelf::*;

/// A keychain with one key, for every host.
pub(crate) struct Key(pub(crate) Credential);

impl Keychain for Key {
    fn credential(&self, _host: &str) -> Result<Option<Credential>> {
        Ok(Some(self.0.clone()))
    }
}

pub(crate) fn alice(password: &str) -> Credential {
    Credential::Basic { user: "alice".into(), password: password.into() }
}

pub(crate) fn identity() -> Credential {
    Credential::IdentityToken("id3ntity".into())
}

pub(crate) async fn push(shelf: &Shelf, registry: &Registry, remote: &Remote) -> Result<CopyReport> {
    let (name, to) = ("model".parse().unwrap(), registry.reference());
    within(copy(Direction::Push, shelf, &name, remote, &to, 4, &Progress::silent())).await
}

pub(crate) async fn pull(registry: &Registry, remote: &Remote, shelf: &Shelf) -> Result<CopyReport> {
    let (name, from) = ("model".parse().unwrap(), registry.reference());
    within(copy(Direction::Pull, remote, &from, shelf, &name, 4, &Progress::silent())).await
}

pub(crate) async fn fetch(remote: &Remote, target: &Descriptor, from: u64) -> Result<Bytes> {
    fetch_range(remote, target, from..target.size).await
}

pub(crate) async fn fetch_range(remote: &Remote, target: &Descriptor, bytes: Range<u64>) -> Result<Bytes> {
    within(async { collect(remote.fetch(target, bytes).await?.expect("the blob is there")).await }).await
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("an end within 30 s")
}

pub(crate) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
