//! How bytes get a name: a file is written under `ingest/`, made durable, and renamed to its place.
//! Nothing in the store is ever written in any other way, so no name ever shows half a file.

use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Disk, Handle};
use super::failed;
use crate::error::Result;

/// Blobs never change: nobody but root writes them by accident.
pub(super) const BLOB_MODE: u32 = 0o444;
/// The index and notes are replaced, never rewritten; the mode tells other tools who owns them.
const FILE_MODE: u32 = 0o644;

/// A file under `ingest/` that is being written. Dropping it removes it, unless it is to be gone on with.
#[derive(Debug)]
pub(super) struct Draft {
    mode: u32,
    temporary: Temporary,
}

/// A complete, durable file under `ingest/` that has no name yet. Dropping it removes it.
#[derive(Debug)]
pub(super) struct Sealed(Temporary);

#[derive(Debug)]
struct Temporary {
    file: Handle,
    /// Whether the file is elsewhere by now, so that the path may be another process's, or is to be gone on with.
    stays: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.stays {
            // Nothing to tell anyone: what stays behind is swept by the next gc.
            let _ = self.file.remove();
        }
    }
}

impl Draft {
    /// An empty file in `ingest` that will have `mode`, whatever the umask says.
    pub(super) fn create(disk: &Disk, ingest: &Path, mode: u32) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let path = ingest.join(format!("{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            match disk.create(&path, 0o600) {
                Ok(file) => return Ok(Self { mode, temporary: Temporary { file, stays: false } }),
                // Left by a process that had this number before, here or in another container.
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(failed("create a file", &path, cause)),
            }
        }
    }

    /// The file that is open as `file`, and will have `mode`.
    pub(super) fn resume(file: Handle, mode: u32) -> Self {
        Self { mode, temporary: Temporary { file, stays: true } }
    }

    /// Says whether the file stays when this is dropped, to be gone on with.
    pub(super) fn stay(&mut self, stays: bool) {
        self.temporary.stays = stays;
    }

    /// Where the file is for now.
    pub(super) fn path(&self) -> &Path {
        self.temporary.file.path()
    }

    /// Fills `bytes` with what is there from `offset` on.
    pub(super) fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.temporary.file.file().read_exact_at(bytes, offset)
    }

    /// Waits until what was written is on disk. A failure is as final as that of [`Draft::seal`].
    pub(super) fn sync(&self) -> Result<()> {
        self.temporary.file.sync().map_err(|cause| failed("write to disk", self.path(), cause))
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.temporary.file.write_at(bytes, offset).map_err(|cause| failed("write", self.path(), cause))
    }

    /// Drops what is behind the first `length` bytes.
    pub(super) fn truncate(&self, length: u64) -> Result<()> {
        self.temporary.file.set_length(length).map_err(|cause| failed("write", self.path(), cause))
    }

    /// Sets the mode and waits until the content is on disk. A failed fsync is final: the kernel
    /// forgets the pages it could not write, so a second fsync that succeeds would prove nothing.
    pub(super) fn seal(self) -> Result<Sealed> {
        let file = &self.temporary.file;
        file.set_mode(self.mode)
            .and_then(|()| file.sync())
            .map_err(|cause| failed("write to disk", file.path(), cause))?;
        Ok(Sealed(self.temporary))
    }

    /// Writes `bytes`, all there is, and gives the file its name at once: a hint may be lost, or torn.
    pub(super) fn hint(mut self, disk: &Disk, directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|cause| failed("write", self.path(), cause))?;
        Sealed(self.temporary).name(disk, directory, name)
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.file.flush()
    }
}

impl Sealed {
    /// Gives the file its name in `directory`, as [`publish`] does. A crash may still take it away.
    pub(super) fn name(mut self, disk: &Disk, directory: &Path, name: &str) -> Result<()> {
        let target = directory.join(name);
        disk.rename(self.path(), &target).map_err(|cause| failed("publish", &target, cause))?;
        self.0.stays = true;
        Ok(())
    }

    /// Where the file is for now.
    pub(super) fn path(&self) -> &Path {
        self.0.file.path()
    }
}

/// Whether `name` is one that [`Draft::create`] gives.
pub(super) fn is_draft_name(name: &str) -> bool {
    let number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    name.split_once('-').is_some_and(|(process, count)| number(process) && number(count))
}

/// Gives every file its name in `directory`; when it returns, all of them are durable there.
///
/// A file that has the name already is replaced, atomically. For blobs that is safe, and better than
/// refusing: only bytes that were just hashed to the name come here, so at worst two writers
/// replace each other's equal bytes, while a file that was truncated or zeroed is healed. Whoever
/// reads the old file goes on reading it.
pub(super) fn publish(disk: &Disk, directory: &Path, files: impl IntoIterator<Item = (Sealed, String)>) -> Result<()> {
    for (sealed, name) in files {
        sealed.name(disk, directory, &name)?;
    }
    sync_directory(disk, directory)
}

/// Waits until the names in `directory` are on disk.
pub(super) fn sync_directory(disk: &Disk, directory: &Path) -> Result<()> {
    disk.sync_directory(directory).map_err(|cause| failed("write to disk", directory, cause))
}

/// Writes a whole small file that may be replaced again as `name` in `directory`.
pub(super) fn replace(disk: &Disk, ingest: &Path, directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    publish(disk, directory, [(sealed(disk, ingest, bytes, FILE_MODE)?, name.to_owned())])
}

/// A whole small file of `mode` that has no name yet.
pub(super) fn sealed(disk: &Disk, ingest: &Path, bytes: &[u8], mode: u32) -> Result<Sealed> {
    let mut draft = Draft::create(disk, ingest, mode)?;
    draft.write_all(bytes).map_err(|cause| failed("write", draft.path(), cause))?;
    draft.seal()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_draft_leaves_nothing_unless_it_is_published() {
        let (root, disk) = (tempfile::tempdir().unwrap(), Disk::default());
        let count = || fs::read_dir(root.path()).unwrap().count();
        let mut draft = Draft::create(&disk, root.path(), BLOB_MODE).unwrap();
        draft.write_all(b"half").unwrap();
        assert!(is_draft_name(draft.path().file_name().unwrap().to_str().unwrap()));
        assert_eq!(count(), 1);
        drop(draft);
        assert_eq!(count(), 0);
        drop(Draft::create(&disk, root.path(), BLOB_MODE).unwrap().seal().unwrap());
        assert_eq!(count(), 0);
        replace(&disk, root.path(), root.path(), "index", b"1").unwrap();
        replace(&disk, root.path(), root.path(), "index", b"2").unwrap();
        assert_eq!((count(), fs::read(root.path().join("index")).unwrap()), (1, b"2".to_vec()));
    }

    #[test]
    fn only_names_of_drafts_are_taken_for_drafts() {
        for name in ["1-2", "40123-0"] {
            assert!(is_draft_name(name), "{name}");
        }
        for name in ["", "-", "1-", "-1", "a-1", "1-2-3", "1", ".1-2", "notes.txt"] {
            assert!(!is_draft_name(name), "{name}");
        }
    }
}
