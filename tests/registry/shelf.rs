//! The other end of a transfer: a place in memory, as the local store is one on disk.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use bytes::{Bytes, BytesMut};
use futures_util::{TryStreamExt as _, stream};
use kiln::Result;
use kiln::oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use kiln::storage::{Body, ByteStream, Fetch, Push, Pushed, Refs, Verifier};

/// A place in memory, as the local store is one on disk.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) blobs: Mutex<BTreeMap<Digest, Bytes>>,
    pub(crate) manifest: Mutex<Option<(Descriptor, Bytes)>>,
}

impl Shelf {
    pub(crate) fn keep(&self, content: impl Into<Bytes>) -> Descriptor {
        let content = content.into();
        let descriptor = Descriptor::of(MediaType::OLLAMA_TENSOR, &content);
        self.blobs.lock().unwrap().insert(descriptor.digest, content);
        descriptor
    }

    /// A shelf with one model: a config, a large layer, a small one and an empty one.
    pub(crate) fn with_model() -> Self {
        Self::with_layers(|shelf| {
            vec![shelf.keep(large()).named("large"), shelf.keep(&b"small"[..]), shelf.keep(&b""[..])]
        })
    }

    /// A shelf with one model: a config and these layers.
    pub(crate) fn with_layers(layers: impl FnOnce(&Self) -> Vec<Descriptor>) -> Self {
        let shelf = Self::default();
        let config = shelf.keep(&b"{}"[..]);
        let layers = layers(&shelf);
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

/// More than the buffers between two processes hold.
pub(crate) fn large() -> Bytes {
    (0..(8 << 20)).map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect::<Vec<_>>().into()
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
pub(crate) struct Content(pub(crate) Bytes);

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

pub(crate) async fn collect(mut bytes: ByteStream) -> Result<Bytes> {
    let mut all = BytesMut::new();
    while let Some(chunk) = bytes.try_next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all.freeze())
}
