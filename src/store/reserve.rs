//! Space for a full disk: `reserve`, a file of 8 MiB in which there is nothing. To remove a name the index is written anew,
//! so without it nobody could make room where there is none. And what needs more than there is, is refused before it
//! begins.

use std::io;
use std::path::PathBuf;

use rustix::process::{Resource, getrlimit};

use super::Store;
use super::layout::Layout;
use crate::error::{Error, ErrorKind, Result};

/// The name of the reserve.
pub(super) const RESERVE: &str = "reserve";
/// Its size in bytes.
const SIZE: u64 = 8 << 20;

impl Layout {
    fn reserve(&self) -> PathBuf {
        self.root().join(RESERVE)
    }

    /// Sees to it that there is a reserve. Where there is no space for it there is none, and nothing else comes of it.
    pub(super) fn keep_reserve(&self) {
        // Whoever writes beyond this is ended by a signal.
        if getrlimit(Resource::Fsize).current.is_some_and(|longest| longest < SIZE) {
            return;
        }
        let path = self.reserve();
        let make = || {
            let (file, _) = self.disk().open_or_create(&path, 0o600)?;
            if file.file().metadata()?.len() == SIZE { Ok(()) } else { file.allocate(SIZE) }
        };
        if make().is_err() {
            let _ = self.disk().remove(&path);
        }
    }

    /// Gives the reserve's space away, for a removal. Says whether there was any.
    pub(super) fn spend_reserve(&self) -> bool {
        self.disk().remove(&self.reserve()).is_ok()
    }
}

impl Store {
    /// Fails when files of these sizes, of which some may be in the store already, cannot all get space.
    ///
    /// # Errors
    /// [`ErrorKind::Store`].
    pub fn require_space(&self, sizes: impl IntoIterator<Item = u64>) -> Result<()> {
        let (mut largest, mut all) = (0, 0_u64);
        for size in sizes {
            (largest, all) = (largest.max(size), all.saturating_add(size));
        }
        let Some(available) = self.layout.disk().available(self.root()) else { return Ok(()) };
        if all <= available {
            return Ok(());
        }
        // Each is written as a whole before it is known to be there; no more than all that is there can be.
        let stored = self.content(&mut |_| {})?.values().fold(0, |sum: u64, size| sum.saturating_add(*size));
        let needed = largest.max(all.saturating_sub(stored));
        if needed <= available {
            return Ok(());
        }
        let root = self.root().display();
        let message = format!("There are {available} bytes left for the store `{root}`, and {needed} are needed");
        Err(Error::new(ErrorKind::Store, message).hint(MAKE_ROOM))
    }
}

/// What helps where the disk is full.
pub(super) const MAKE_ROOM: &str = "run `kiln gc`, or free some space on that disk";

/// Whether the disk being full is why something failed.
pub(super) fn is_full(error: &Error) -> bool {
    let cause = error.causes().find_map(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
}
