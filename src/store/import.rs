//! The import door: blobs are staged under `ingest/` and get their names together, the manifest after
//! them and the reference last. An import that fails, or is dropped, leaves the store as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::Access;

use super::durable::{BLOB_MODE, Draft, Sealed, publish};
use super::read::parse_manifest;
use super::{Store, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Descriptor, Digest, Hasher, MediaType, Reference};

/// How many bytes are gathered before they are hashed and written.
const BUFFER: usize = 1 << 20;

/// Blobs on their way into the store; dropping it removes them.
#[derive(Debug)]
pub struct Import<'store> {
    store: &'store Store,
    staged: Mutex<BTreeMap<Digest, Staged>>,
}

#[derive(Debug)]
struct Staged {
    size: u64,
    /// `None` when the store had the content already.
    file: Option<Sealed>,
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// The blobs that were written, the manifest among them.
    pub written: BTreeSet<Digest>,
    /// The blobs that were in the store before.
    pub present: BTreeSet<Digest>,
    /// How many bytes were written.
    pub bytes_written: u64,
}

impl Store {
    /// Opens the door for one model's blobs.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when the store cannot be written, said now and not after hours of work.
    pub fn begin_import(&self) -> Result<Import<'_>> {
        let (ingest, blobs) = (self.layout.ingest(), self.layout.blobs());
        let device = |path: &Path| {
            rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
                .map_err(io::Error::from)
                .and_then(|()| fs::metadata(path))
                .map(|metadata| metadata.dev())
                .map_err(|cause| failed("write in", path, cause))
        };
        if device(&ingest)? != device(&blobs)? {
            let message = format!("`{}` and `{}` are on different file systems", ingest.display(), blobs.display());
            return Err(Error::new(ErrorKind::Store, message).hint("keep the whole store on one file system"));
        }
        Ok(Import { store: self, staged: Mutex::default() })
    }
}

impl Import<'_> {
    /// Stages what `write` writes, and gives its descriptor and what `write` returned. The bytes are
    /// hashed as they go to disk, are durable when this returns, and have no name before
    /// [`Import::commit`]. Any number of threads may stage at once.
    ///
    /// # Errors
    /// That of `write`; [`ErrorKind::Store`] when the disk is full or fails.
    pub fn stage<T>(
        &self,
        media_type: MediaType,
        write: impl FnOnce(&mut dyn Write) -> Result<T>,
    ) -> Result<(Descriptor, T)> {
        let draft = Draft::create(self.store.layout.disk(), &self.store.layout.ingest(), BLOB_MODE)?;
        let hashed = Hashed { draft, hasher: Hasher::default(), written: 0, failure: None };
        let mut writer = BufWriter::with_capacity(BUFFER, hashed);
        let outcome = write(&mut writer);
        let flushed = writer.flush();
        let (Hashed { draft, hasher, written, failure }, _) = writer.into_parts();
        // What the disk said is the reason, whatever `write` made of it.
        if let Some(cause) = failure {
            return Err(failed("write", draft.path(), cause));
        }
        let value = outcome?;
        flushed.map_err(|cause| failed("write", draft.path(), cause))?;

        let descriptor = Descriptor::new(media_type, hasher.finish(), written);
        let file = if self.store.holds(&descriptor)? { None } else { Some(draft.seal()?) };
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        staged.entry(descriptor.digest).or_insert(Staged { size: written, file });
        Ok((descriptor, value))
    }

    /// Stages `bytes`.
    ///
    /// # Errors
    /// As [`Import::stage`].
    pub fn stage_bytes(&self, media_type: MediaType, bytes: &[u8]) -> Result<Descriptor> {
        let write = |out: &mut dyn Write| {
            out.write_all(bytes)
                .map_err(|cause| Error::new(ErrorKind::Store, "Could not write to the store").caused_by(cause))
        };
        self.stage(media_type, write).map(|(descriptor, ())| descriptor)
    }

    /// Publishes those staged blobs that are among `wanted`, and no others.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when the disk fails.
    pub fn keep(self, wanted: &[Descriptor]) -> Result<()> {
        let mut staged = self.staged.into_inner().unwrap_or_else(PoisonError::into_inner);
        let found = wanted.iter().filter_map(|blob| Some((staged.remove(&blob.digest)?.file?, blob.digest.hex())));
        publish(self.store.layout.disk(), &self.store.layout.blobs(), found)
    }

    /// Publishes every staged blob, then the staged `manifest`, then points `reference` at it.
    ///
    /// When the disk fails on the way, blobs that have their names by then keep them: another
    /// import may count on them already, and nothing that is named points at them.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when `manifest` was not staged, [`ErrorKind::NotFound`] when it needs
    /// a blob that is neither staged nor stored, [`ErrorKind::Usage`] when `reference` pins another
    /// digest, [`ErrorKind::Store`] when the disk fails.
    pub fn commit(self, reference: &Reference, manifest: &Descriptor) -> Result<ImportReport> {
        reference.require_agreement(&manifest.digest)?;
        let Self { store, staged } = self;
        let mut staged = staged.into_inner().unwrap_or_else(PoisonError::into_inner);
        let staged_manifest = staged.remove(&manifest.digest).filter(|found| found.size == manifest.size);
        let Some(Staged { file: manifest_file, .. }) = staged_manifest else {
            let message = format!("The manifest `{}` was not staged", manifest.digest);
            return Err(Error::new(ErrorKind::Unexpected, message));
        };
        let bytes = match &manifest_file {
            Some(sealed) => fs::read(sealed.path()).map_err(|cause| failed("read", sealed.path(), cause))?,
            None => store.read_blob(manifest)?,
        };
        let parsed = parse_manifest(manifest, &bytes)?;
        store.require_blobs(parsed.blobs().filter(|blob| {
            !staged.get(&blob.digest).is_some_and(|found| found.file.is_some() && found.size == blob.size)
        }))?;

        let mut report = ImportReport::default();
        let mut count = |digest: Digest, size: u64, is_new: bool| {
            if is_new {
                report.written.insert(digest);
                report.bytes_written += size;
            } else {
                report.present.insert(digest);
            }
        };
        let give = |file: Sealed, digest: &Digest| file.name(store.layout.disk(), &store.layout.blobs(), &digest.hex());
        for (digest, Staged { size, file }) in staged {
            count(digest, size, file.is_some());
            file.map_or(Ok(()), |file| give(file, &digest))?;
        }
        count(manifest.digest, manifest.size, manifest_file.is_some());
        if let Some(file) = manifest_file {
            store.sync_blobs()?;
            give(file, &manifest.digest)?;
        }
        // Which waits until the manifest's own name is on disk, too.
        store.set_ref_if(reference, manifest, || store.require_blobs(parsed.blobs()))?;
        Ok(report)
    }
}

/// A draft that hashes and counts what it was given to write.
struct Hashed {
    draft: Draft,
    hasher: Hasher,
    written: u64,
    failure: Option<io::Error>,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.draft.write(bytes) {
            Ok(written) => {
                self.hasher.update(&bytes[..written]);
                self.written += written as u64;
                Ok(written)
            }
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => Err(cause),
            Err(cause) => {
                let seen = io::Error::from(cause.kind());
                self.failure.get_or_insert(cause);
                Err(seen)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.draft.flush()
    }
}
