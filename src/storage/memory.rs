//! Content and names in memory: the shortest implementation of the traits, for tests and for what is
//! too small to need a disk. It keeps what it is given only after it verified it, as every other.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, future, stream};

use super::{Body, ByteStream, Fetch, Push, Pushed, Refs, Verifier};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, MediaType, Reference};

/// A place in memory.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    blobs: BTreeMap<Digest, Bytes>,
    refs: BTreeMap<Reference, Descriptor>,
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

    async fn fetch(&self, target: &Descriptor, from: u64) -> Result<Option<ByteStream>> {
        self.get(&target.digest).map(|bytes| tail(&bytes, from)).transpose()
    }
}

impl Push for Memory {
    async fn push(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        if self.exists(expected).await? {
            return Ok(Pushed::AlreadyPresent);
        }
        let (mut verifier, mut bytes) = (Verifier::new(expected), BytesMut::new());
        let mut stream = body.open(0).await?;
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
        let mut content = self.content();
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

impl Body for Bytes {
    fn open(&self, from: u64) -> BoxFuture<'_, Result<ByteStream>> {
        future::ready(tail(self, from)).boxed()
    }
}

/// The bytes from offset `from` on.
fn tail(bytes: &Bytes, from: u64) -> Result<ByteStream> {
    let Some(start) = usize::try_from(from).ok().filter(|start| *start <= bytes.len()) else {
        return Err(Error::new(ErrorKind::Unexpected, format!("The content ends before byte {from}")));
    };
    let rest = bytes.slice(start..);
    Ok(stream::iter((!rest.is_empty()).then_some(Ok(rest))).boxed())
}
