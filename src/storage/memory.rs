//! Content and names in memory: the shortest implementation of the traits, for tests and for what is
//! too small to need a disk. It keeps what it is given only after it verified it, as every other.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, future, stream};

use super::{
    Body, ByteStream, Catalog, Fetch, Push, Pushed, Refs, Removal, Remove, Stage, Staged, Verifier, require_within,
};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Document, MediaType, Reference};

/// A place in memory.
/// Clones are the same place.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    blobs: BTreeMap<Digest, Bytes>,
    refs: BTreeMap<Reference, Descriptor>,
}

impl Content {
    /// Whether a manifest that has a name needs the content of `digest`.
    fn needs(&self, digest: &Digest) -> bool {
        let (mut left, mut seen) = (self.refs.values().cloned().collect::<Vec<_>>(), BTreeSet::new());
        while let Some(target) = left.pop() {
            let Some(bytes) = self.blobs.get(&target.digest).filter(|_| seen.insert(target.digest)) else { continue };
            let Ok(document) = Document::parse(bytes, &target.media_type) else { continue };
            if target.digest == *digest || document.needs().any(|needed| needed.digest == *digest) {
                return true;
            }
            left.extend_from_slice(document.manifests());
        }
        false
    }
}

impl Memory {
    /// An empty place.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps `bytes` and gives their descriptor.
    pub fn insert(&self, media_type: MediaType, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        self.content().blobs.insert(descriptor.digest, bytes);
        descriptor
    }

    /// The content of `digest`.
    pub fn get(&self, digest: &Digest) -> Option<Bytes> {
        self.content().blobs.get(digest).cloned()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Every change is one insertion: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Fetch for Memory {
    async fn exists(&self, target: &Descriptor) -> Result<bool> {
        Ok(self.get(&target.digest).is_some_and(|bytes| bytes.len() as u64 == target.size))
    }

    async fn fetch(&self, target: &Descriptor, bytes: Range<u64>) -> Result<Option<ByteStream>> {
        require_within(target, &bytes)?;
        self.get(&target.digest).map(|content| section(&content, bytes)).transpose()
    }
}

impl Push for Memory {
    async fn push(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        if self.exists(expected).await? {
            return Ok(Pushed::AlreadyPresent);
        }
        let (mut verifier, mut bytes) = (Verifier::new(expected), BytesMut::new());
        let mut stream = body.open(0..expected.size).await?;
        while let Some(chunk) = stream.next().await.transpose()? {
            verifier.update(&chunk)?;
            bytes.extend_from_slice(&chunk);
        }
        verifier.finish()?;
        self.content().blobs.insert(expected.digest, bytes.freeze());
        Ok(Pushed::Stored)
    }
}

impl Refs for Memory {
    async fn resolve(&self, reference: &Reference) -> Result<Option<(Descriptor, Bytes)>> {
        let content = self.content();
        let same = |named: &Reference| {
            (named.host(), named.path()) == (reference.host(), reference.path())
                && (reference.tag().is_none() || named.tag() == reference.tag())
        };
        let found = content.refs.iter().find(|(named, target)| same(named) && reference.admits(&target.digest));
        Ok(found.and_then(|(_, target)| Some((target.clone(), content.blobs.get(&target.digest)?.clone()))))
    }

    async fn tag(&self, reference: &Reference, target: &Descriptor, manifest: &Bytes) -> Result<()> {
        Verifier::check(target, manifest)?;
        reference.require_agreement(&target.digest)?;
        let document = Document::parse(manifest, &target.media_type)?;
        let mut content = self.content();
        if let Some(missing) = document.needs().find(|needed| !content.blobs.contains_key(&needed.digest)) {
            let message = format!("The manifest needs `{}`, which is not there", missing.digest);
            return Err(Error::new(ErrorKind::NotFound, message));
        }
        content.blobs.insert(target.digest, manifest.clone());
        let same_tag = |named: &Reference| {
            named.tag().is_some()
                && (named.host(), named.path(), named.tag()) == (reference.host(), reference.path(), reference.tag())
        };
        content.refs.retain(|named, _| !same_tag(named));
        content.refs.insert(reference.clone(), target.clone());
        Ok(())
    }
}

/// What was sent so far.
#[derive(Debug)]
pub struct StagedBytes {
    place: Memory,
    bytes: BytesMut,
}

impl Stage for Memory {
    type Staged = StagedBytes;

    async fn stage(&self) -> Result<StagedBytes> {
        Ok(StagedBytes { place: self.clone(), bytes: BytesMut::new() })
    }
}

impl Staged for StagedBytes {
    fn written(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn append(&mut self, bytes: Bytes) -> Result<()> {
        self.bytes.extend_from_slice(&bytes);
        Ok(())
    }

    async fn commit(self, digest: &Digest) -> Result<()> {
        let target = Descriptor::new(MediaType::KILN_FILE, *digest, self.written());
        Verifier::check(&target, &self.bytes)?;
        self.place.content().blobs.insert(*digest, self.bytes.freeze());
        Ok(())
    }
}

impl Catalog for Memory {
    async fn size_of(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.get(digest).map(|bytes| bytes.len() as u64))
    }

    async fn names(&self) -> Result<Vec<(Reference, Descriptor)>> {
        Ok(self.content().refs.iter().map(|(name, target)| (name.clone(), target.clone())).collect())
    }
}

impl Remove for Memory {
    async fn untag(&self, reference: &Reference) -> Result<bool> {
        let meant = |named: &Reference, target: &Descriptor| {
            (named.host(), named.path()) == (reference.host(), reference.path())
                && reference.admits(&target.digest)
                && (reference.tag().is_none() || named.tag() == reference.tag())
        };
        let mut content = self.content();
        let before = content.refs.len();
        content.refs.retain(|named, target| !meant(named, target));
        Ok(content.refs.len() < before)
    }

    async fn remove(&self, digest: &Digest) -> Result<Removal> {
        let mut content = self.content();
        if content.needs(digest) {
            return Ok(Removal::Needed);
        }
        Ok(if content.blobs.remove(digest).is_some() { Removal::Removed } else { Removal::Absent })
    }
}

impl Body for Bytes {
    fn open(&self, bytes: Range<u64>) -> BoxFuture<'_, Result<ByteStream>> {
        future::ready(section(self, bytes)).boxed()
    }
}

/// The `bytes` of `content`, as far as it has them.
fn section(content: &Bytes, bytes: Range<u64>) -> Result<ByteStream> {
    let end = usize::try_from(bytes.end).unwrap_or(usize::MAX).min(content.len());
    let Some(start) = usize::try_from(bytes.start).ok().filter(|start| *start <= end) else {
        return Err(Error::new(ErrorKind::Unexpected, format!("The content ends before byte {}", bytes.start)));
    };
    let section = content.slice(start..end);
    Ok(stream::iter((!section.is_empty()).then_some(Ok(section))).boxed())
}
