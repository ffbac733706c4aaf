//! The local store: an OCI image layout that other tools read as it is, beside kiln's own
//! directories.
//!
//! The one invariant: a name points only at a manifest that is on disk, and a manifest is published
//! only after every blob it names. So a file is written and fsynced before it gets its name, its
//! directory is fsynced before anything points at it, and deletion goes the other way round.
//! Existence is still not evidence: disks rot, and [`Store::check`] hashes.

mod disk;
mod durable;
mod gc;
mod import;
mod layout;
mod lock;
mod notes;
mod partial;
mod place;
mod quarantine;
mod read;
mod receive;
mod refs;
mod registries;
mod reserve;
mod stage;
mod stamps;
mod transfer;
mod unfinished;
mod usage;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use disk::{Disk, Operation, Watch};
pub use gc::GcReport;
pub use import::{Import, ImportReport};
pub use place::Link;
pub use read::{Damage, examine};
pub use registries::{Published, Seen};
pub use stage::StagedBlob;
pub use usage::{NameBytes, NameUsage, Space, Usage};

use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;
use layout::Layout;
use lock::Lock;
use stamps::Stamps;

/// How long a lock that another process holds is waited for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A local store, open for use; clones are the same handle.
///
/// While a handle lives, a shared kernel lock keeps [`Store::gc`] away. The lock dies with the
/// process, however it ends.
#[derive(Clone, Debug)]
pub struct Store {
    layout: Arc<Layout>,
    stamps: Arc<Stamps>,
    _lock: Arc<Lock>,
}

impl Store {
    /// Opens the store at `root`, and creates it when the directory is absent or empty. A store in
    /// a directory that cannot be written opens for reading.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when `root` holds something else, was written by another version, cannot
    /// be created, or is locked by a `kiln gc` for longer than half a minute.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_on(Disk::default(), root)
    }

    /// As [`Store::open`], on a file system that is watched.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(disk: Disk, root: &Path) -> Result<Self> {
        Self::open_within(disk, root, PATIENCE)
    }

    /// Opens the store at `root` when there is one; otherwise nothing is made.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_existing(root: &Path) -> Result<Option<Self>> {
        if Layout::is_at(root)? { Self::open(root).map(Some) } else { Ok(None) }
    }

    /// As [`Store::open`], with `patience` for a `kiln gc` that holds the store.
    ///
    /// # Errors
    /// As [`Store::open`], when it is held for longer than that.
    pub fn open_within(disk: Disk, root: &Path, patience: Duration) -> Result<Self> {
        let layout = Layout::open_or_create(disk, root, patience)?;
        let lock = Lock::shared(layout.disk(), &layout.store_lock(), patience)?;
        Ok(Self { layout: Arc::new(layout), stamps: Arc::default(), _lock: Arc::new(lock) })
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// Where the content of `digest` is, or would be. Its bytes are not verified by anyone who opens
    /// it there.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.layout.blob(digest)
    }
}

/// A failed operation on a file of the store, with what to do when the reason is known.
fn failed(action: &str, path: &Path, cause: io::Error) -> Error {
    let hint = match cause.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(reserve::MAKE_ROOM),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            Some("name a store you can write with `--store` or `KILN_STORE`")
        }
        _ => None,
    };
    let error = Error::io(ErrorKind::Store, action, path, cause);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn a_full_or_unwritable_disk_says_what_to_do() {
        for (errno, command) in [
            (Errno::NOSPC, Some("kiln gc")),
            (Errno::DQUOT, Some("kiln gc")),
            (Errno::ROFS, Some("--store")),
            (Errno::ACCESS, Some("--store")),
            (Errno::IO, None),
        ] {
            let error = failed("write", Path::new("store/ingest/1-0"), errno.into());
            assert_eq!(error.kind(), ErrorKind::Store, "{errno}");
            assert_eq!(error.to_string(), "Could not write: `store/ingest/1-0`");
            match command {
                Some(command) => assert!(error.hint_text().unwrap().contains(command), "{errno}"),
                None => assert_eq!(error.hint_text(), None, "{errno}"),
            }
        }
    }
}
