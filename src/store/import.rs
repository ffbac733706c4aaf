//! The import door: blobs are staged under `ingest/` and get their names together, the manifest after
//! them and the reference last. An import that fails, or is dropped, leaves the store as it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
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
/// How many bytes of stored content are read at once to be compared: few enough to stay in the processor's cache.
const COMPARED: usize = 128 << 10;

/// Blobs on their way into the store; dropping it removes them.
#[derive(Debug)]
pub struct Import<'store> {
    store: &'store Store,
    /// What is likely to be staged, by the names of layers.
    earlier: BTreeMap<String, Descriptor>,
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
        Ok(Import { store: self, earlier: BTreeMap::new(), staged: Mutex::default() })
    }
}

impl Import<'_> {
    /// Takes it for likely that a layer of one of these names is what it was in an earlier model, so that
    /// [`Import::stage_layer`] writes it only when it is not.
    #[must_use]
    pub fn after(self, earlier: impl IntoIterator<Item = (String, Descriptor)>) -> Self {
        Self { earlier: earlier.into_iter().collect(), ..self }
    }

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
        self.stage_like(None, media_type, write)
    }

    /// As [`Import::stage`], of the layer `name`. As long as it is what the earlier model had under this name, byte for
    /// byte, nothing is written; so the store's file is looked at as closely as if it had been hashed.
    ///
    /// # Errors
    /// As [`Import::stage`].
    pub fn stage_layer<T>(
        &self,
        name: &str,
        media_type: MediaType,
        write: impl FnOnce(&mut dyn Write) -> Result<T>,
    ) -> Result<(Descriptor, T)> {
        self.stage_like(self.earlier.get(name), media_type, write)
    }

    fn stage_like<T>(
        &self,
        like: Option<&Descriptor>,
        media_type: MediaType,
        write: impl FnOnce(&mut dyn Write) -> Result<T>,
    ) -> Result<(Descriptor, T)> {
        let before = like.and_then(|like| self.store.look(like));
        let mut writer = BufWriter::with_capacity(BUFFER, Hashed::new(self.store, like)?);
        let outcome = write(&mut writer);
        let flushed = writer.flush();
        let (mut hashed, _) = writer.into_parts();
        // What the disk said is the reason, whatever `write` made of it.
        if let Some(failure) = hashed.failure.take() {
            return Err(failure);
        }
        let value = outcome?;
        flushed.map_err(|cause| failed("write in", &self.store.layout.ingest(), cause))?;

        let (descriptor, draft) = hashed.finish(media_type, like)?;
        let file = match draft {
            Some(draft) if !self.store.holds(&descriptor)? => Some(draft.seal()?),
            Some(_) => None,
            None => {
                self.store.stamp(&descriptor, before);
                None
            }
        };
        let mut staged = self.staged.lock().unwrap_or_else(PoisonError::into_inner);
        staged.entry(descriptor.digest).or_insert(Staged { size: descriptor.size, file });
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
        let Self { store, staged, .. } = self;
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
        let mut written = Vec::new();
        let give = |file: Sealed, digest: &Digest| file.name(store.layout.disk(), &store.layout.blobs(), &digest.hex());
        for (digest, Staged { size, file }) in staged {
            count(digest, size, file.is_some());
            if let Some(file) = file {
                give(file, &digest)?;
                written.push(Descriptor::new(MediaType::KILN_FILE, digest, size));
            }
        }
        count(manifest.digest, manifest.size, manifest_file.is_some());
        if let Some(file) = manifest_file {
            store.sync_blobs()?;
            give(file, &manifest.digest)?;
        }
        // Which waits until the manifest's own name is on disk, too.
        store.set_ref_if(reference, manifest, || store.require_blobs(parsed.blobs()))?;
        // Not before: a name that is given to a file is a change of it.
        written.iter().for_each(|blob| store.stamp(blob, store.look(blob)));
        store.keep_stamps(&manifest.digest, parsed.blobs());
        Ok(report)
    }
}

/// Hashes and counts what it was given to write, and writes it: into a draft, unless it is what the store has.
struct Hashed<'store> {
    store: &'store Store,
    onto: Onto,
    hasher: Hasher,
    written: u64,
    failure: Option<Error>,
}

enum Onto {
    Draft(Draft),
    Same(Same),
}

/// The file of a blob that has had the same bytes so far.
struct Same {
    file: File,
    /// Space for those that are compared next.
    chunk: Box<[u8]>,
}

impl Same {
    /// Whether those at the offset `at` are `bytes`.
    fn goes_on_with(&mut self, bytes: &[u8], at: u64) -> bool {
        let mut at = at;
        bytes.chunks(self.chunk.len()).all(|bytes| {
            let chunk = &mut self.chunk[..bytes.len()];
            let is_there = self.file.read_exact_at(chunk, at).is_ok();
            at += bytes.len() as u64;
            is_there && chunk == bytes
        })
    }

    /// A draft of the first `length` of them, which were hashed by `hasher`.
    fn copy(&mut self, store: &Store, length: u64, hasher: &Hasher) -> Result<Draft> {
        let (mut draft, mut again) = (draft(store)?, Hasher::default());
        let mut copy = |at: u64, chunk: &mut [u8]| {
            self.file.read_exact_at(chunk, at)?;
            again.update(chunk);
            draft.write_all(chunk)
        };
        let mut at = 0;
        while at < length {
            let some = self.chunk.len().min(usize::try_from(length - at).unwrap_or(usize::MAX));
            copy(at, &mut self.chunk[..some]).map_err(|cause| failed("write in", &store.layout.ingest(), cause))?;
            at += some as u64;
        }
        if again.finish() != hasher.clone().finish() {
            return Err(Error::new(ErrorKind::Store, "A blob changed while it was read").hint("run the command again"));
        }
        Ok(draft)
    }
}

fn draft(store: &Store) -> Result<Draft> {
    Draft::create(store.layout.disk(), &store.layout.ingest(), BLOB_MODE)
}

impl<'store> Hashed<'store> {
    fn new(store: &'store Store, like: Option<&Descriptor>) -> Result<Self> {
        // One that is missing, or of another size, is as good as none.
        let onto = match like.and_then(|like| store.open_sized(like).ok().flatten()) {
            Some(file) => Onto::Same(Same { file, chunk: vec![0; COMPARED].into() }),
            None => Onto::Draft(draft(store)?),
        };
        Ok(Self { store, onto, hasher: Hasher::default(), written: 0, failure: None })
    }

    /// What all of it is, and where it was written; nowhere when it is `like`.
    fn finish(self, media_type: MediaType, like: Option<&Descriptor>) -> Result<(Descriptor, Option<Draft>)> {
        let descriptor = Descriptor::new(media_type, self.hasher.clone().finish(), self.written);
        let is_like = like.is_some_and(|like| (like.digest, like.size) == (descriptor.digest, descriptor.size));
        let draft = match self.onto {
            Onto::Draft(draft) => Some(draft),
            Onto::Same(_) if is_like => None,
            // It ends before the blob does, or the blob is not what its name says.
            Onto::Same(mut same) => Some(same.copy(self.store, self.written, &self.hasher)?),
        };
        Ok((descriptor, draft))
    }

    fn hashed(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.written += bytes.len() as u64;
        Ok(bytes.len())
    }

    /// Keeps `failure`, which `write` need not pass on.
    fn failed(&mut self, failure: Error, kind: io::ErrorKind) -> io::Error {
        self.failure.get_or_insert(failure);
        kind.into()
    }
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let same = match &mut self.onto {
            Onto::Draft(draft) => {
                return match draft.write(bytes) {
                    Ok(written) => self.hashed(&bytes[..written]),
                    Err(cause) if cause.kind() == io::ErrorKind::Interrupted => Err(cause),
                    Err(cause) => {
                        let kind = cause.kind();
                        let failure = failed("write", draft.path(), cause);
                        Err(self.failed(failure, kind))
                    }
                };
            }
            Onto::Same(same) => same,
        };
        if same.goes_on_with(bytes, self.written) {
            return self.hashed(bytes);
        }
        match same.copy(self.store, self.written, &self.hasher) {
            Ok(draft) => self.onto = Onto::Draft(draft),
            Err(failure) => return Err(self.failed(failure, io::ErrorKind::Other)),
        }
        self.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.onto {
            Onto::Draft(draft) => draft.flush(),
            Onto::Same(_) => Ok(()),
        }
    }
}
