//! Opening one file of a checkpoint: only a regular one, never blocking on what pretends to be one,
//! and remembering enough of it to notice later that it was changed or replaced. A file need not be kept
//! open for that: a model published in small layers has more of them than a process may open.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::disguise;
use crate::error::{Error, ErrorKind, Result, quoted};

/// A file as it was when it was opened first.
#[derive(Debug)]
pub(super) struct Opened {
    path: PathBuf,
    name: String,
    stamp: Stamp,
    /// `None` when it is opened anew for each read.
    file: Option<File>,
}

/// What changes when a file is written to or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp of the regular file at `path`, links followed.
    ///
    /// # Errors
    /// [`ErrorKind::Input`]: missing, a dangling link, a link to itself, not a regular file.
    fn at(path: &Path) -> Result<Self> {
        let metadata = path.metadata().map_err(|e| why_unreachable(path, e))?;
        if metadata.is_file() { Ok(Self::of(&metadata)) } else { Err(irregular(path)) }
    }

    /// Fails when the file at `path` is no longer the one this stamp was taken of.
    fn check(&self, path: &Path) -> Result<()> {
        match path.metadata() {
            Ok(metadata) if Self::of(&metadata) == *self => Ok(()),
            Ok(_) => Err(moved(path)),
            Err(e) => Err(moved(path).caused_by(e)),
        }
    }
}

impl Opened {
    /// Opens the file at `path`, which the checkpoint calls `name`, and keeps it open.
    ///
    /// # Errors
    /// As [`Stamp::at`], and whatever opening it says.
    pub(super) fn open(path: PathBuf, name: &str) -> Result<Self> {
        // Looked at before it is opened, because opening a device can already do something, and
        // opened without blocking, because it may have become a pipe in between.
        Stamp::at(&path)?;
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let opened = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(&path);
        let file = opened.map_err(|e| match e.raw_os_error() {
            Some(code) if code == rustix::io::Errno::MFILE.raw_os_error() => {
                Error::io(ErrorKind::Input, "open", &path, e).hint("allow more open files, as with `ulimit -n 8192`")
            }
            _ => Error::io(ErrorKind::Input, "open", &path, e),
        })?;
        let metadata = file.metadata().map_err(|e| Error::io(ErrorKind::Input, "read", &path, e))?;
        if !metadata.is_file() {
            return Err(irregular(&path));
        }
        Ok(Self { path, name: name.to_owned(), stamp: Stamp::of(&metadata), file: Some(file) })
    }

    /// The file at `path`, which the checkpoint calls `name`, to be opened when it is read.
    ///
    /// # Errors
    /// As [`Stamp::at`].
    pub(super) fn at(path: PathBuf, name: &str) -> Result<Self> {
        Ok(Self { stamp: Stamp::at(&path)?, path, name: name.to_owned(), file: None })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn size(&self) -> u64 {
        self.stamp.size
    }

    /// When it changed last: seconds and nanoseconds since 1970.
    pub(super) fn changed(&self) -> (i64, i64) {
        self.stamp.changed
    }

    /// Fills `buffer` from `offset` on. Safe from several threads at once.
    ///
    /// # Errors
    /// [`ErrorKind::Input`]: the file has become shorter, was replaced, or cannot be read.
    pub(super) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let Some(file) = &self.file else {
            let again = Self::open(self.path.clone(), &self.name)?;
            return if again.stamp == self.stamp { again.read_at(offset, buffer) } else { Err(moved(&self.path)) };
        };
        file.read_exact_at(buffer, offset).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => moved(&self.path).caused_by(e),
            _ => Error::io(ErrorKind::Input, "read", &self.path, e),
        })
    }

    /// Gives all bytes to `take`, in order and in pieces of at most 1 MiB.
    ///
    /// # Errors
    /// That of `take`; [`ErrorKind::Input`]: changed since it was opened first, or it cannot be read.
    pub(super) fn each_chunk(&self, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        const CHUNK: u64 = 1 << 20;
        let again = if self.file.is_none() { Some(Self::open(self.path.clone(), &self.name)?) } else { None };
        let file = again.as_ref().unwrap_or(self);
        let mut chunk = vec![0; self.size().min(CHUNK) as usize];
        let mut done = 0;
        while done < self.size() {
            let chunk = &mut chunk[..(self.size() - done).min(CHUNK) as usize];
            file.read_at(done, chunk)?;
            take(chunk)?;
            done += chunk.len() as u64;
        }
        self.check_unchanged()
    }

    /// The whole file, unless it is larger than `limit` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Input`]: too large, or changed since it was opened.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>> {
        self.check_size(limit)?;
        let mut bytes = vec![0; self.stamp.size as usize];
        self.read_at(0, &mut bytes)?;
        self.check_unchanged()?;
        Ok(bytes)
    }

    /// Fails when the file is larger than `limit` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Input`].
    pub(super) fn check_size(&self, limit: u64) -> Result<()> {
        let size = self.stamp.size;
        if size <= limit {
            return Ok(());
        }
        Err(Error::input(format!("{} has {size} bytes, more than the {limit} allowed", quoted(&self.name))))
    }

    /// These bytes of the file, one after the other.
    pub(super) fn reader(&self, bytes: Range<u64>) -> Reader<'_> {
        Reader { file: self, left: bytes }
    }

    /// `error`, or what the file really is when its first bytes show it.
    pub(super) fn explain(&self, error: Error) -> Error {
        let mut start = [0; 64];
        let length = self.stamp.size.min(start.len() as u64) as usize;
        match self.read_at(0, &mut start[..length]) {
            Ok(()) => disguise::explain(&self.name, &start[..length], error),
            Err(_) => error,
        }
    }

    /// Fails when the file was changed or replaced since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.stamp.check(&self.path)
    }
}

/// Reads a part of a file in order.
pub(super) struct Reader<'a> {
    file: &'a Opened,
    left: Range<u64>,
}

impl io::Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min((self.left.end - self.left.start) as usize);
        self.file.read_at(self.left.start, &mut buffer[..count]).map_err(io::Error::other)?;
        self.left.start += count as u64;
        Ok(count)
    }
}

fn moved(path: &Path) -> Error {
    Error::input(format!("`{}` was changed while it was read", path.display()))
        .hint("run the command again when nothing writes to the checkpoint")
}

fn irregular(path: &Path) -> Error {
    Error::input(format!("`{}` is not a regular file", path.display()))
}

/// Why the file at `path` cannot be looked at.
fn why_unreachable(path: &Path, cause: io::Error) -> Error {
    let link = path.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    let shown = path.display();
    let error = match cause.raw_os_error() {
        Some(code) if code == rustix::io::Errno::LOOP.raw_os_error() => {
            Error::input(format!("`{shown}` is a symbolic link that leads back to itself"))
        }
        _ if link && cause.kind() == io::ErrorKind::NotFound => {
            Error::input(format!("`{shown}` is a symbolic link to a file that is not there"))
                .hint("finish the download: `hf download` completes a cache entry")
        }
        _ if cause.kind() == io::ErrorKind::NotFound => {
            Error::input(format!("`{shown}` is missing")).hint("finish the download: all files must be there")
        }
        _ => Error::io(ErrorKind::Input, "read", path, cause.kind().into()),
    };
    error.caused_by(cause)
}
