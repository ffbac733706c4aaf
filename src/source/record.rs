//! The files of a checkpoint, for whoever records what a model was made of.

use super::files::Opened;
use super::{Checkpoint, hub};
use crate::error::Result;

/// A file that bytes of a checkpoint come from.
#[derive(Clone, Copy, Debug)]
pub struct SourceFile<'a>(&'a Opened);

/// Where an entry of a Hugging Face cache comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubOrigin {
    /// `org/name`.
    pub repository: String,
    /// The commit: 40 hex digits.
    pub revision: String,
}

impl SourceFile<'_> {
    /// Its path below the checkpoint's directory.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.0.size()
    }

    /// When it, or what the system knows of it, changed last: seconds and nanoseconds since 1970.
    pub fn changed(&self) -> (i64, i64) {
        self.0.changed()
    }

    /// Gives all its bytes to `take`, in order and in pieces of at most 1 MiB.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Input`] when it was changed since the checkpoint was opened, or cannot be read.
    pub fn each_chunk(&self, mut take: impl FnMut(&[u8])) -> Result<()> {
        self.0.each_chunk(|chunk| {
            take(chunk);
            Ok(())
        })
    }
}

impl Checkpoint {
    /// Every file that bytes come from, in the order of their names.
    pub fn files(&self) -> Vec<SourceFile<'_>> {
        let mut files: Vec<_> =
            self.shards.iter().chain(&self.index).chain(&self.sidecar_files).map(SourceFile).collect();
        files.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        files.dedup_by(|a, b| a.name() == b.name());
        files
    }

    /// Where it comes from, when it is a snapshot in a Hugging Face cache.
    pub fn hub_origin(&self) -> Option<HubOrigin> {
        hub::origin(&self.root)
    }
}
