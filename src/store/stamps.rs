//! Stamps: what the files of large blobs looked like when this store had just hashed them, one small file for each
//! manifest under `stamps/`. A file that still looks so need not be hashed on its way to a registry that hashes it
//! itself, and that is all they are for: what is skipped, healed, laid out or verified is read, whatever a stamp says,
//! because a disk that rots changes no time.
//!
//! They are hints: not waited for, and nothing where one is missing, torn, or of another form. Neither is it a concern
//! that a file may change within the tick of the clock in which its stamp was made, and look the same: blobs are read-only
//! and replaced by renaming alone, `ctime` is not set by hand, and whoever may do all that may write a stamp, too. What a
//! stamp says wrongly costs an upload that is refused.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Store;
use super::durable::Draft;
use super::notes::file_name;
use crate::json;
use crate::oci::{Descriptor, Digest};

/// What is smaller is hashed in less than a millisecond.
const WORTH_STAMPING: u64 = 1 << 20;
/// The largest file of stamps that is read.
const MAX_SIZE: u64 = 16 << 20;

/// What tells a file from the one that it was, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stamp {
    dev: u64,
    ino: u64,
    size: u64,
    /// Seconds since 1970, and nanoseconds.
    mtime: (i64, i64),
    ctime: (i64, i64),
}

/// The stamps that a process has made or read. None of them counts before the file was looked at again.
#[derive(Debug, Default)]
pub(super) struct Stamps(Mutex<BTreeMap<Digest, Stamp>>);

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            dev: metadata.dev(),
            ino: metadata.ino(),
            size: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Of what is at `path` now.
    fn at(path: &Path) -> Option<Self> {
        path.symlink_metadata().ok().filter(Metadata::is_file).as_ref().map(Self::of)
    }
}

impl Stamps {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Digest, Stamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// What the file of `target` looks like, before it is hashed; `None` when that is not worth knowing.
    pub(super) fn look(&self, target: &Descriptor) -> Option<Stamp> {
        if target.size < WORTH_STAMPING { None } else { Stamp::at(&self.blob_path(&target.digest)) }
    }

    /// Notes that the file of `target` was hashed and is right, if it still looks as it did `before`.
    pub(super) fn stamp(&self, target: &Descriptor, before: Option<Stamp>) {
        if let Some(stamp) = self.look(target).filter(|now| Some(*now) == before) {
            self.stamps.all().insert(target.digest, stamp);
        }
    }

    /// Whether the file of `target` looks as it did when it was hashed, in this process or one whose stamps were
    /// recalled.
    pub(super) fn is_stamped(&self, target: &Descriptor) -> bool {
        let stamp = self.stamps.all().get(&target.digest).copied();
        stamp.is_some_and(|stamp| stamp.size == target.size && self.look(target) == Some(stamp))
    }

    /// Has the stamps count that were kept with `manifest`.
    pub fn recall_stamps(&self, manifest: &Digest) {
        for (digest, stamp) in self.read_stamps(manifest).unwrap_or_default() {
            self.stamps.all().entry(digest).or_insert(stamp);
        }
    }

    /// Keeps the stamps of those of `blobs` that were hashed with `manifest`, for a later process. Where that cannot be,
    /// it goes without.
    pub fn keep_stamps<'a>(&self, manifest: &Digest, blobs: impl IntoIterator<Item = &'a Descriptor>) {
        self.recall_stamps(manifest);
        let stamped = blobs.into_iter().filter(|blob| self.is_stamped(blob)).map(|blob| blob.digest);
        let kept: BTreeMap<Digest, Stamp> =
            stamped.filter_map(|digest| Some((digest, *self.stamps.all().get(&digest)?))).collect();
        if !kept.is_empty() {
            let _ = self.write_stamps(manifest, &json::to_canonical(&kept));
        }
    }

    fn write_stamps(&self, manifest: &Digest, bytes: &[u8]) -> crate::Result<()> {
        let (directory, disk) = (self.layout.stamps()?, self.layout.disk());
        Draft::create(disk, &self.layout.ingest(), 0o600)?.hint(disk, &directory, &file_name(manifest), bytes)
    }

    fn read_stamps(&self, manifest: &Digest) -> Option<BTreeMap<Digest, Stamp>> {
        let mut text = Vec::new();
        let path = self.root().join("stamps").join(file_name(manifest));
        let read = File::open(path).ok()?.take(MAX_SIZE + 1).read_to_end(&mut text).ok()?;
        if read as u64 > MAX_SIZE { None } else { json::parse_as(&text).ok() }
    }
}
