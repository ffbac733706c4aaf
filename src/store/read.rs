//! Reading: bytes leave the store verified, or with an error in the place of their end. A blob is
//! opened without following a symlink and without waiting on a pipe.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, OFlags, statat};
use rustix::io::Errno;

use super::{Store, failed};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::oci::{Algorithm, Descriptor, Digest, Document, Hasher, MAX_MANIFEST_SIZE, Manifest};
use crate::progress::Progress;
use crate::storage::VerifyReader;

/// The largest blob that is read into memory as a whole.
const MAX_IN_MEMORY: u64 = 64 << 20;
/// How much is read at once when content is hashed.
const CHUNK: usize = 1 << 20;
const REPAIR: &str = "`kiln pull` or `kiln create` the model again: only what is damaged is written";

/// What is wrong with stored content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// No file holds it.
    Missing,
    /// The file has another size.
    Size {
        /// The file's size in bytes.
        actual: u64,
    },
    /// The file has the right size and other bytes.
    Digest {
        /// The digest of the file's bytes.
        actual: Digest,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::Size { actual } => write!(f, "has {actual} bytes"),
            Self::Digest { actual } => write!(f, "has other bytes, of digest `{actual}`"),
        }
    }
}

impl Store {
    /// The manifest `target` with its exact, verified bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is absent, damaged, or not a manifest of that media type.
    pub fn manifest(&self, target: &Descriptor) -> Result<(Manifest, Vec<u8>)> {
        let bytes = self.manifest_bytes(target)?;
        Ok((parse_manifest(target, &bytes)?, bytes))
    }

    /// The manifest or index `target`, of a model or not, with its exact, verified bytes.
    ///
    /// # Errors
    /// As [`Store::manifest`].
    pub fn document(&self, target: &Descriptor) -> Result<(Document, Vec<u8>)> {
        let bytes = self.manifest_bytes(target)?;
        Ok((Document::parse(&bytes, &target.media_type)?, bytes))
    }

    fn manifest_bytes(&self, target: &Descriptor) -> Result<Vec<u8>> {
        if target.size > MAX_MANIFEST_SIZE {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("The manifest `{}` is larger than 4 MiB", target.digest),
            ));
        }
        self.read_blob(target)
    }

    /// The content of `target`, to be read to its end: the reader fails there when the bytes were
    /// other ones. `None` when it is absent.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when the file has another size.
    pub fn open_blob(&self, target: &Descriptor) -> Result<Option<VerifyReader<File>>> {
        Ok(self.open_sized(target)?.map(|file| VerifyReader::new(file, target)))
    }

    /// As [`Store::open_blob`], of content that has to be there.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] also when it is absent.
    pub fn require_blob(&self, target: &Descriptor) -> Result<VerifyReader<File>> {
        self.open_blob(target)?.ok_or_else(|| {
            let message = format!("The content of `{}` is not in the store", target.digest);
            Error::new(ErrorKind::Corrupt, message).hint(REPAIR)
        })
    }

    /// The whole, verified content of `target`, which must be small.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when it is absent or damaged, [`ErrorKind::Store`] when it cannot be
    /// read, [`ErrorKind::CouldNotCheck`] when it is larger than 64 MiB.
    pub fn read_blob(&self, target: &Descriptor) -> Result<Vec<u8>> {
        let Descriptor { digest, size, .. } = target;
        if *size > MAX_IN_MEMORY {
            let message = format!("The content of `{digest}` is too large to read at once: {size} bytes");
            return Err(Error::new(ErrorKind::CouldNotCheck, message));
        }
        let mut blob = self.require_blob(target)?;
        // The file has the size that is claimed.
        let mut bytes = Vec::with_capacity(*size as usize);
        blob.read_to_end(&mut bytes).map_err(|cause| match cause.downcast::<Error>() {
            Ok(verdict) => verdict.hint(REPAIR),
            Err(cause) => failed("read", &self.blob_path(digest), cause),
        })?;
        Ok(bytes)
    }

    /// Reads and hashes the content of `target`, reporting every chunk to `progress`, and says what
    /// is wrong with it.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when the question cannot be answered: the file cannot be read.
    pub fn check(&self, target: &Descriptor, progress: &Progress) -> Result<Result<(), Damage>> {
        let before = self.look(target);
        let found = examine(&self.blob_path(&target.digest), target, progress)?;
        if found.is_ok() {
            self.stamp(target, before);
        }
        Ok(found)
    }

    /// How many of `blobs` are missing or have another size: what shows without reading them.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when that cannot be seen.
    pub fn count_damaged<'a>(&self, blobs: impl Iterator<Item = &'a Descriptor>) -> Result<u64> {
        // From a directory that is open, the way to each file is one name long: a store may have half a million.
        let mut directories = Algorithm::ALL.map(|_| None);
        let mut damaged = 0;
        for Descriptor { digest, size, .. } in blobs {
            let path = || self.blob_path(digest);
            let directory = match &mut directories[digest.algorithm() as usize] {
                Some(directory) => directory,
                unopened => match File::open(self.layout.blobs_of(digest.algorithm())) {
                    Ok(directory) => unopened.insert(directory),
                    Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                        damaged += 1;
                        continue;
                    }
                    Err(cause) => return Err(failed("look at", &path(), cause)),
                },
            };
            let is_right = match statat(&*directory, digest.hex(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => {
                    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
                        && u64::try_from(found.st_size) == Ok(*size)
                }
                Err(Errno::NOENT) => false,
                Err(cause) => return Err(failed("look at", &path(), cause.into())),
            };
            damaged += u64::from(!is_right);
        }
        Ok(damaged)
    }

    /// Whether a file of the right size is there.
    pub(super) fn has_size(&self, target: &Descriptor) -> Result<bool> {
        let found = open_regular(&self.blob_path(&target.digest))?;
        Ok(found.is_some_and(|(_, actual)| actual == target.size))
    }

    /// Whether the content of `target` is there, whole and right, so that it need not be written again.
    ///
    /// Existence is not evidence, and neither is size: the content is read and hashed. That costs less
    /// than fetching it, and no more than verifying the model, and it is why a pull or a re-creation
    /// heals what has rotted in place.
    pub(super) fn holds(&self, target: &Descriptor) -> Result<bool> {
        Ok(self.check(target, &Progress::silent())?.is_ok())
    }

    /// Fails unless every blob of `needed`, which a manifest names, is there, by size.
    pub(super) fn require_blobs<'a>(&self, needed: impl IntoIterator<Item = &'a Descriptor>) -> Result<()> {
        for blob in needed {
            if !self.has_size(blob)? {
                let message = format!("The manifest needs `{}`, which is not in the store", blob.digest);
                return Err(Error::new(ErrorKind::NotFound, message).hint(REPAIR));
            }
        }
        Ok(())
    }

    /// The file of `target`, after a look at its size.
    pub(super) fn open_sized(&self, target: &Descriptor) -> Result<Option<File>> {
        match open_regular(&self.blob_path(&target.digest))? {
            None => Ok(None),
            Some((file, actual)) if actual == target.size => Ok(Some(file)),
            Some((_, actual)) => {
                let message = format!("The content of `{}` has {actual} of its {} bytes", target.digest, target.size);
                Err(Error::new(ErrorKind::Corrupt, message).hint(REPAIR))
            }
        }
    }
}

/// Reads the manifest that `target` describes.
pub(super) fn parse_manifest(target: &Descriptor, bytes: &[u8]) -> Result<Manifest> {
    let manifest = Manifest::parse(bytes)?;
    if manifest.media_type != target.media_type {
        let message =
            format!("The manifest says it is `{}`, not {}", manifest.media_type, quoted(target.media_type.as_str()));
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(manifest)
}

/// Reads and hashes the file at `path`, and says in what it is not the content of `target`.
///
/// # Errors
/// [`ErrorKind::Store`] when the question cannot be answered: the file cannot be read.
pub fn examine(path: &Path, target: &Descriptor, progress: &Progress) -> Result<Result<(), Damage>> {
    let Some((file, actual)) = open_regular(path)? else { return Ok(Err(Damage::Missing)) };
    if actual != target.size {
        return Ok(Err(Damage::Size { actual }));
    }
    let (actual, seen) = hash(file, target.digest.algorithm(), |bytes| progress.advance(bytes))
        .map_err(|cause| failed("read", path, cause))?;
    Ok(if seen != target.size {
        Err(Damage::Size { actual: seen })
    } else if actual != target.digest {
        Err(Damage::Digest { actual })
    } else {
        Ok(())
    })
}

/// The error for content with this damage.
pub(super) fn damaged(target: &Descriptor, damage: Damage) -> Error {
    Error::new(ErrorKind::Corrupt, format!("The content of `{}` {damage}", target.digest)).hint(REPAIR)
}

/// The regular file at `path` and its size. Whatever else has the name is not content.
fn open_regular(path: &Path) -> Result<Option<(File, u64)>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) if Errno::from_io_error(&cause) == Some(Errno::LOOP) => return Ok(None), // a symlink
        Err(cause) => return Err(failed("open", path, cause)),
    };
    let metadata = file.metadata().map_err(|cause| failed("open", path, cause))?;
    Ok(metadata.is_file().then_some((file, metadata.len())))
}

/// The digest and the length of all that `reader` gives.
pub(super) fn hash(
    mut reader: impl Read,
    algorithm: Algorithm,
    mut advance: impl FnMut(u64),
) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut seen, mut chunk) = (Hasher::new(algorithm), 0, vec![0; CHUNK]);
    loop {
        let read = match reader.read(&mut chunk) {
            Ok(0) => return Ok((hasher.finish(), seen)),
            Ok(read) => read,
            Err(cause) if cause.kind() == io::ErrorKind::Interrupted => continue,
            Err(cause) => return Err(cause),
        };
        hasher.update(&chunk[..read]);
        seen += read as u64;
        advance(read as u64);
    }
}
