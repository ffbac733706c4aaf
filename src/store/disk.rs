//! The seam between the store and the file system: everything that changes what is on disk goes through [`Disk`],
//! so that a test can write down in which order it was done, and have any of it fail. What only reads does not.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FallocateFlags, OFlags, fallocate, statvfs, unlinkat};
use rustix::io::Errno;

/// The file system under a store. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Disk(Option<Arc<dyn Watch>>);

/// Stands between a store and its file system.
pub trait Watch: Debug + Send + Sync {
    /// Is asked to have `operation` done, which `perform` does.
    ///
    /// # Errors
    /// That of `perform`, or another one in its place.
    fn around(&self, operation: &Operation<'_>, perform: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;

    /// How many bytes may still be written, in place of what the file system says; `None` for that.
    fn available(&self) -> Option<u64> {
        None
    }
}

/// Something that changes what is on disk, or waits for it to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// A new, empty file gets this name.
    Create(&'a Path),
    /// The bytes of the file from an offset on become these.
    Write(&'a Path, u64, &'a [u8]),
    /// The bytes of the file become those of another one.
    Fill(&'a Path, &'a Path),
    /// The file gets this length.
    SetLength(&'a Path, u64),
    /// The file gets this length, and space for all of it.
    Allocate(&'a Path, u64),
    /// The file gets this mode.
    SetMode(&'a Path, u32),
    /// Waits until the bytes of the file are on disk.
    Sync(&'a Path),
    /// A new directory gets this name.
    MakeDirectory(&'a Path),
    /// Waits until the names in the directory are on disk.
    SyncDirectory(&'a Path),
    /// What has the first name gets the second, in place of what had that.
    Rename(&'a Path, &'a Path),
    /// What has the first name gets the second as well.
    Link(&'a Path, &'a Path),
    /// The name of a file goes.
    Remove(&'a Path),
}

impl Disk {
    /// The same file system, seen through `watch`.
    pub fn watched(watch: Arc<dyn Watch>) -> Self {
        Self(Some(watch))
    }

    /// A new file that is written and read.
    pub(super) fn create(&self, path: &Path, mode: u32) -> io::Result<Handle> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(mode);
        let file = self.run(Operation::Create(path), || options.open(path))?;
        Ok(Handle { file, path: path.to_owned(), end: 0, disk: self.clone() })
    }

    /// The file at `path`, no symlink, for writing and reading; a new one of `mode` when there is none. Says whether it
    /// is new.
    pub(super) fn open_or_create(&self, path: &Path, mode: u32) -> io::Result<(Handle, bool)> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        loop {
            match options.open(path) {
                Ok(file) => return Ok((Handle { file, path: path.to_owned(), end: 0, disk: self.clone() }, false)),
                Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
                Err(cause) => return Err(cause),
            }
            match self.create(path, mode) {
                // By another process in between.
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                outcome => return outcome.map(|handle| (handle, true)),
            }
        }
    }

    /// A new directory with this `mode`, whatever the umask says.
    pub(super) fn make_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.run(Operation::MakeDirectory(path), || {
            DirBuilder::new().mode(mode).create(path)?;
            fs::set_permissions(path, Permissions::from_mode(mode))
        })
    }

    pub(super) fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.run(Operation::SyncDirectory(path), || File::open(path)?.sync_all())
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(Operation::Rename(from, to), || fs::rename(from, to))
    }

    pub(super) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(Operation::Link(from, to), || fs::hard_link(from, to))
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(Operation::Remove(path), || fs::remove_file(path))
    }

    /// How many bytes may still be written to the file system of `path`; `None` where that is not known.
    pub(super) fn available(&self, path: &Path) -> Option<u64> {
        let file_system = || {
            let status = statvfs(path).ok()?;
            // One that has no size does not count.
            (status.f_blocks > 0).then(|| status.f_bavail.saturating_mul(status.f_frsize))
        };
        self.0.as_ref().and_then(|watch| watch.available()).or_else(file_system)
    }

    /// Removes the file `name` from the directory that is open as `handle`, and that was opened at `directory`.
    pub(super) fn remove_at(&self, handle: impl AsFd, directory: &Path, name: &str) -> io::Result<()> {
        let path = directory.join(name);
        self.run(Operation::Remove(&path), || Ok(unlinkat(&handle, name, AtFlags::empty())?))
    }

    fn run<T>(&self, operation: Operation<'_>, perform: impl Fn() -> io::Result<T>) -> io::Result<T> {
        let Some(watch) = &self.0 else { return perform() };
        let mut done = None;
        watch.around(&operation, &mut || {
            done = Some(perform()?);
            Ok(())
        })?;
        done.ok_or_else(|| io::Error::other("the operation was left out"))
    }
}

/// An open file that may be written to.
#[derive(Debug)]
pub(super) struct Handle {
    file: File,
    /// Where it was opened.
    path: PathBuf,
    /// Where the next bytes go that come without an offset.
    end: u64,
    disk: Disk,
}

impl Handle {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, to be read, locked and asked about.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn into_file(self) -> File {
        self.file
    }

    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let write = Operation::Write(&self.path, offset, bytes);
        self.disk.run(write, || self.file.write_all_at(bytes, offset))
    }

    /// Has `fill` write what is in the file `source`.
    pub(super) fn fill(&self, source: &Path, fill: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
        self.disk.run(Operation::Fill(&self.path, source), || fill(&self.file))
    }

    pub(super) fn set_length(&self, length: u64) -> io::Result<()> {
        self.disk.run(Operation::SetLength(&self.path, length), || self.file.set_len(length))
    }

    pub(super) fn allocate(&self, length: u64) -> io::Result<()> {
        self.disk.run(Operation::Allocate(&self.path, length), || {
            match fallocate(&self.file, FallocateFlags::empty(), 0, length) {
                Err(Errno::OPNOTSUPP) => {
                    self.file.write_all_at(&vec![0; usize::try_from(length).unwrap_or_default()], 0)
                }
                outcome => Ok(outcome?),
            }
        })
    }

    pub(super) fn set_mode(&self, mode: u32) -> io::Result<()> {
        let permissions = Permissions::from_mode(mode);
        self.disk.run(Operation::SetMode(&self.path, mode), || self.file.set_permissions(permissions.clone()))
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.disk.run(Operation::Sync(&self.path), || self.file.sync_all())
    }

    /// Removes the name under which the file was opened.
    pub(super) fn remove(&self) -> io::Result<()> {
        self.disk.remove(&self.path)
    }
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
