//! The store as one side of a transfer: the asynchronous traits of [`crate::storage`] over blocking
//! files.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Take};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use tokio::task::{JoinError, JoinHandle};

use super::durable::{BLOB_MODE, sealed};
use super::{Store, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Document, Reference};
use crate::storage::{Body, ByteStream, Catalog, Fetch, Push, Pushed, Refs, Removal, Remove, Verifier, require_within};

/// How much is read from a file at once.
const CHUNK: usize = 256 << 10;

impl Store {
    /// Runs `work` where blocking is allowed.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store)).await.map_err(ended_early)?
    }
}

impl Fetch for Store {
    async fn exists(&self, target: &Descriptor) -> Result<bool> {
        let target = target.clone();
        self.blocking(move |store| store.holds(&target)).await
    }

    async fn fetch(&self, target: &Descriptor, bytes: Range<u64>) -> Result<Option<ByteStream>> {
        require_within(target, &bytes)?;
        let path = self.blob_path(&target.digest);
        let (wanted, at) = (target.clone(), path.clone());
        let opened = self.blocking(move |store| {
            let Some(mut file) = store.open_sized(&wanted)? else { return Ok(None) };
            file.seek(SeekFrom::Start(bytes.start)).map_err(|cause| failed("read", &at, cause))?;
            Ok(Some(file))
        });
        let Some(file) = opened.await? else { return Ok(None) };
        // The stream keeps the handle, so that no gc runs while it is read.
        let (store, path) = (self.clone(), Arc::new(path));
        let chunks = stream::try_unfold(next_of(file.take(bytes.end - bytes.start)), move |reading| {
            let (_open, path) = (store.clone(), Arc::clone(&path));
            async move {
                let (rest, chunk) = reading.await.map_err(ended_early)?;
                let chunk = chunk.map_err(|cause| failed("read", &path, cause))?;
                // While this one is hashed and sent, the next is read.
                Ok((!chunk.is_empty()).then(|| (chunk.into(), next_of(rest))))
            }
        });
        Ok(Some(Box::pin(chunks)))
    }

    async fn vouches(&self, target: &Descriptor) -> Result<bool> {
        let target = target.clone();
        self.blocking(move |store| Ok(store.is_stamped(&target))).await
    }
}

/// Begins to read the next chunk of `part`; it is empty at the end.
fn next_of(mut part: Take<File>) -> JoinHandle<(Take<File>, io::Result<Vec<u8>>)> {
    tokio::task::spawn_blocking(move || {
        let mut chunk = Vec::with_capacity(CHUNK);
        let read = part.by_ref().take(CHUNK as u64).read_to_end(&mut chunk);
        (part, read.map(|_| chunk))
    })
}

fn ended_early(cause: JoinError) -> Error {
    Error::new(ErrorKind::Unexpected, "A task of the store ended early").caused_by(cause)
}

impl Push for Store {
    async fn push(&self, expected: &Descriptor, body: &dyn Body) -> Result<Pushed> {
        self.receive(expected, body).await
    }
}

impl Refs for Store {
    async fn resolve(&self, reference: &Reference) -> Result<Option<(Descriptor, Bytes)>> {
        let reference = reference.clone();
        self.blocking(move |store| {
            let Some(target) = store.find(&reference)? else { return Ok(None) };
            let (_, bytes) = store.document(&target)?;
            Ok(Some((target, bytes.into())))
        })
        .await
    }

    async fn tag(&self, reference: &Reference, target: &Descriptor, manifest: &Bytes) -> Result<()> {
        let (reference, target, manifest) = (reference.clone(), target.clone(), manifest.clone());
        self.blocking(move |store| {
            Verifier::check(&target, &manifest)?;
            let document = Document::parse(&manifest, &target.media_type)?;
            store.require_blobs(document.needs())?;
            if !store.holds(&target)? {
                let (disk, blobs) = (store.layout.disk(), store.layout.blobs_for(&target.digest)?);
                store.sync_blobs()?;
                let file = sealed(disk, &store.layout.ingest(), &manifest, BLOB_MODE)?;
                file.name(disk, &blobs, &target.digest.hex())?;
            }
            store.set_ref_if(&reference, &target, || store.require_blobs(document.needs().chain([&target])))?;
            store.keep_stamps(&target.digest, document.needs());
            Ok(())
        })
        .await
    }
}

impl Catalog for Store {
    async fn size_of(&self, digest: &Digest) -> Result<Option<u64>> {
        let path = self.blob_path(digest);
        self.blocking(move |_| match fs::symlink_metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(cause) => Err(failed("look at", &path, cause)),
        })
        .await
    }

    async fn names(&self) -> Result<Vec<(Reference, Descriptor)>> {
        self.blocking(|store| {
            let names = store.refs()?.into_iter();
            // One that another program wrote and kiln cannot parse cannot be asked for either.
            Ok(names.filter_map(|(name, target)| Some((name.parse().ok()?, target))).collect())
        })
        .await
    }
}

impl Remove for Store {
    async fn untag(&self, reference: &Reference) -> Result<bool> {
        let reference = reference.clone();
        self.blocking(move |store| store.remove_refs(&reference)).await
    }

    async fn remove(&self, digest: &Digest) -> Result<Removal> {
        let digest = *digest;
        self.blocking(move |store| store.remove_blob(&digest)).await
    }
}
