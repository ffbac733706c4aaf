//! Content that arrives in pieces, from several requests of a client: written under `ingest/` and hashed
//! as it comes, so that its end costs no second look at it.

use std::fs::File;

use bytes::Bytes;

use super::durable::{BLOB_MODE, Draft, publish};
use super::read::hash;
use super::{Store, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Digest, Hasher};
use crate::storage::{Stage, Staged};

/// A blob on its way into the store; dropping it removes it.
#[derive(Debug)]
pub struct StagedBlob {
    store: Store,
    /// Not there while a piece is written, and no more when that was given up.
    blob: Option<Blob>,
    written: u64,
}

#[derive(Debug)]
struct Blob {
    draft: Draft,
    /// Of the first `written` bytes, by the algorithm that nearly everybody uses.
    hasher: Hasher,
}

impl Stage for Store {
    type Staged = StagedBlob;

    async fn stage(&self) -> Result<StagedBlob> {
        let draft =
            self.blocking(|store| Draft::create(store.layout.disk(), &store.layout.ingest(), BLOB_MODE)).await?;
        let blob = Some(Blob { draft, hasher: Hasher::default() });
        Ok(StagedBlob { store: self.clone(), blob, written: 0 })
    }
}

impl StagedBlob {
    fn take(&mut self) -> Result<Blob> {
        self.blob.take().ok_or_else(|| Error::new(ErrorKind::Unexpected, "A part of the blob was given up"))
    }
}

impl Staged for StagedBlob {
    fn written(&self) -> u64 {
        self.written
    }

    async fn append(&mut self, bytes: Bytes) -> Result<()> {
        let (mut blob, at, length) = (self.take()?, self.written, bytes.len() as u64);
        let write = self.store.blocking(move |_| {
            let outcome = blob.draft.write_at(&bytes, at);
            if outcome.is_ok() {
                blob.hasher.update(&bytes);
            }
            Ok((blob, outcome))
        });
        let (blob, outcome) = write.await?;
        self.blob = Some(blob);
        outcome?;
        self.written += length;
        Ok(())
    }

    async fn commit(mut self, digest: &Digest) -> Result<()> {
        let (Blob { draft, hasher }, digest, written) = (self.take()?, *digest, self.written);
        let publish = self.store.blocking(move |store| {
            // Behind them may be what an attempt left that failed.
            draft.truncate(written)?;
            let mut actual = hasher.finish();
            if actual.algorithm() != digest.algorithm() {
                let again = File::open(draft.path()).and_then(|file| hash(file, digest.algorithm(), |_| {}));
                (actual, _) = again.map_err(|cause| failed("read", draft.path(), cause))?;
            }
            if actual != digest {
                let message = format!("The content of `{digest}` has other bytes, of digest `{actual}`");
                return Err(Error::new(ErrorKind::Corrupt, message));
            }
            publish(store.layout.disk(), &store.layout.blobs_for(&digest)?, [(draft.seal()?, digest.hex())])
        });
        publish.await
    }
}
