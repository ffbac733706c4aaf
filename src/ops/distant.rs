//! Models at registries, verified and compared where they are, and not kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use futures_util::StreamExt as _;
use tokio::runtime::Handle;

use super::diff::{self, Diffed, Model};
use super::explain::Side;
use super::held::{Held, parsed};
use super::inspect::find;
use super::transfer::{Access, blocking};
use super::verify::{self, Finding, Options, Verified};
use crate::copy::{Direction, bring, copy, resolve};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::{Content, layer_name};
use crate::oci::{Descriptor, Digest, Manifest, Reference};
use crate::progress::{Event, Progress};
use crate::registry::Remote;
use crate::source::safetensors::{Header, data_start};
use crate::storage::{Fetch as _, Verifier};
use crate::store::{Damage, Store};

/// The largest content that is read into memory as a whole, in bytes.
const MAX_IN_MEMORY: u64 = 64 << 20;
/// The headers of a model's layers that are kept, in bytes all together.
const MAX_HEADERS: usize = 256 << 20;

/// Verifies a model at its registry: its blobs are read as they come, and none is kept.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such model, [`ErrorKind::Unauthorized`] and [`ErrorKind::Registry`] when it
/// cannot be reached. Damage is a finding, not an error.
pub async fn verify(options: Options, access: &Access, progress: &Progress) -> Result<Verified> {
    let name = &options.name;
    let remote = Remote::new(name, access.keychain.clone(), &access.options)?;
    let (target, bytes) = resolve(&remote, name).await?;
    let manifest = match Manifest::parse(&bytes) {
        Ok(manifest) => manifest,
        Err(error) => return Verified::unreadable(&target, options.level, error),
    };
    let pinned = format!("{}@{}", name.repository(), target.digest).parse()?;
    let (held, streams, progress) = (Distant::new(remote, pinned), access.options.concurrency, progress.clone());
    let work = move || {
        let (target, manifest, options, progress) = (&target, &manifest, &options, &progress);
        verify::Model { held: &held, notes: None, target, manifest, options, streams, progress }.verify()
    };
    blocking(work).await
}

/// A model to be compared.
#[derive(Clone, Debug)]
pub enum Compared {
    /// In a store.
    Here(Model),
    /// At its registry.
    There(Reference),
}

/// Compares two models, of which one or both are at registries. What both have is not brought from there, and nothing
/// of the rest is kept.
///
/// # Errors
/// As [`diff::diff`] and [`verify()`].
pub async fn diff(models: [Compared; 2], access: &Access, threads: usize, progress: &Progress) -> Result<Diffed> {
    let place = tempfile::Builder::new().prefix("kiln-diff-").tempdir().map_err(|cause| {
        Error::new(ErrorKind::Store, "Could not make a directory for the comparison").caused_by(cause)
    })?;
    let brought = Store::open(place.path())?;
    let [ours, theirs] = models;
    let (ours, theirs) = (Opened::new(ours, &brought, access).await?, Opened::new(theirs, &brought, access).await?);
    ours.bring_unlike(&theirs, access, progress).await?;
    theirs.bring_unlike(&ours, access, progress).await?;
    let progress = progress.clone();
    let work = move || {
        let (here, there) = (Side::new(&ours.store, &ours.manifest), Side::new(&theirs.store, &theirs.manifest));
        diff::against([ours.digest, theirs.digest], &here, &there, threads, &progress)
    };
    blocking(work).await
}

/// A model that is compared.
struct Opened {
    /// The store that has what is read of it.
    store: Store,
    digest: Digest,
    manifest: Manifest,
    /// Where the rest of it is.
    remote: Option<(Remote, Reference)>,
}

impl Opened {
    async fn new(model: Compared, brought: &Store, access: &Access) -> Result<Self> {
        match model {
            Compared::Here(Model { store, name }) => {
                let (target, manifest) = find(&store, &name)?;
                Ok(Self { store, digest: target.digest, manifest, remote: None })
            }
            Compared::There(name) => {
                let remote = Remote::new(&name, access.keychain.clone(), &access.options)?;
                let (target, bytes) = resolve(&remote, &name).await?;
                let (store, manifest) = (brought.clone(), Manifest::parse(&bytes)?);
                Ok(Self { store, digest: target.digest, manifest, remote: Some((remote, name)) })
            }
        }
    }

    /// Brings what `other` has not, and the lock, which is asked for causes.
    async fn bring_unlike(&self, other: &Self, access: &Access, progress: &Progress) -> Result<()> {
        let Some((remote, name)) = &self.remote else { return Ok(()) };
        let shared: BTreeSet<Digest> = other.manifest.blobs().map(|blob| blob.digest).collect();
        let is_read = |blob: &&Descriptor| !shared.contains(&blob.digest) || Content::of(blob) == Content::Lock;
        let wanted: Vec<&Descriptor> = self.manifest.blobs().filter(is_read).collect();
        let bytes = wanted.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size));
        progress.report(Event::Started { task: "pull", blobs: wanted.len() as u64, bytes });
        bring(Direction::Pull, remote, name, wanted, &self.store, access.options.concurrency, progress).await
    }
}

/// A model at a registry, seen from a thread that may wait.
pub(super) struct Distant {
    remote: Remote,
    /// Its manifest's digest with it.
    name: Reference,
    runtime: Handle,
    headers: Mutex<Headers>,
}

/// What layers begin with, as it came past when they were checked.
#[derive(Default)]
struct Headers {
    of: BTreeMap<Digest, Vec<u8>>,
    /// In bytes.
    size: usize,
}

impl Distant {
    /// The model `name`, whose digest it pins, as `remote` has it. Made on the runtime that the requests run on.
    pub(super) fn new(remote: Remote, name: Reference) -> Self {
        Self { remote, name, runtime: Handle::current(), headers: Mutex::default() }
    }

    /// Whether `blob` is there and passes through `each` whole and right.
    async fn pass(&self, blob: &Descriptor, mut each: impl FnMut(&[u8])) -> Result<bool> {
        let Some(mut stream) = self.remote.fetch(blob, 0..blob.size).await? else { return Ok(false) };
        let mut verifier = Verifier::new(blob);
        while let Some(chunk) = stream.next().await.transpose()? {
            verifier.update(&chunk)?;
            each(&chunk);
        }
        verifier.finish().map(|()| true)
    }

    /// Whether `blob` is there. A registry that does not answer HEAD is asked for the first byte.
    async fn has(&self, blob: &Descriptor) -> Result<bool> {
        Ok(self.remote.exists(blob).await? || self.remote.fetch(blob, 0..blob.size.min(1)).await?.is_some())
    }

    fn keep(&self, layer: &Descriptor, head: Vec<u8>) {
        let mut headers = self.headers.lock().unwrap_or_else(PoisonError::into_inner);
        if headers.size + head.len() <= MAX_HEADERS {
            headers.size += head.len();
            headers.of.insert(layer.digest, head);
        }
    }
}

impl Held for Distant {
    fn look(&self, blob: &Descriptor) -> Result<Option<Finding>> {
        found(blob, self.runtime.block_on(self.has(blob)))
    }

    fn check(&self, blob: &Descriptor, progress: &Progress) -> Result<Option<Finding>> {
        let is_tensors = Content::of(blob) == Content::Tensors;
        let mut head = Vec::new();
        let checked = self.runtime.block_on(self.pass(blob, |bytes| {
            progress.advance(bytes.len() as u64);
            if is_tensors {
                take_head(&mut head, bytes, blob.size);
            }
        }));
        if is_tensors {
            self.keep(blob, head);
        }
        found(blob, checked)
    }

    fn read(&self, blob: &Descriptor) -> Result<Vec<u8>> {
        if blob.size > MAX_IN_MEMORY {
            let message = format!("The content of `{}` is too large to read at once: {} bytes", blob.digest, blob.size);
            return Err(Error::new(ErrorKind::CouldNotCheck, message));
        }
        let mut bytes = Vec::new();
        if self.runtime.block_on(self.pass(blob, |chunk| bytes.extend_from_slice(chunk)))? {
            return Ok(bytes);
        }
        Err(Error::new(ErrorKind::Corrupt, format!("The content of `{}` is not at the registry", blob.digest)))
    }

    fn header(&self, layer: &Descriptor) -> Result<(Header, Vec<u8>)> {
        let head = self.headers.lock().unwrap_or_else(PoisonError::into_inner).of.get(&layer.digest).cloned();
        let head = head.ok_or_else(|| {
            let message = format!("The headers before that of {} have 256 MiB already", quoted(&layer_name(layer)));
            Error::new(ErrorKind::CouldNotCheck, message)
        })?;
        parsed(layer, head)
    }

    fn in_store(&self, beside: &Store) -> Result<Store> {
        let (name, silent) = (&self.name, Progress::silent());
        self.runtime.block_on(copy(Direction::Pull, &self.remote, name, beside, name, 1, &silent))?;
        Ok(beside.clone())
    }
}

/// What it means that `blob` is there or not, or cannot be had as it should be.
fn found(blob: &Descriptor, there: Result<bool>) -> Result<Option<Finding>> {
    match there {
        Ok(true) => Ok(None),
        Ok(false) => Ok(Some(Finding::damaged(blob, Damage::Missing))),
        Err(error) => Finding::of(error).map(|finding| Some(finding.in_layer(blob))),
    }
}

/// Takes from `bytes` what is still missing of the header in `head`, in a layer of `size` bytes.
fn take_head(head: &mut Vec<u8>, mut bytes: &[u8], size: u64) {
    loop {
        // A header that cannot be is told by its length alone.
        let wanted = match head.first_chunk() {
            Some(prefix) => data_start(*prefix, size).map_or(0, |start| start as usize),
            None => 8,
        };
        let more = wanted.saturating_sub(head.len()).min(bytes.len());
        if more == 0 {
            return;
        }
        let (taken, left) = bytes.split_at(more);
        head.extend_from_slice(taken);
        bytes = left;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_taken_however_it_comes() {
        let layer = [&20_u64.to_le_bytes()[..], &[b'{'; 20], &[0; 50]].concat();
        for step in [1, 3, 7, 8, 9, 28, 29, 78] {
            let mut head = Vec::new();
            layer.chunks(step).for_each(|bytes| take_head(&mut head, bytes, layer.len() as u64));
            assert_eq!(head, layer[..28], "{step}");
        }
        let mut head = Vec::new();
        take_head(&mut head, &[0xff; 100], 100);
        assert_eq!(head, [0xff; 8], "of a header that cannot be");
    }
}
