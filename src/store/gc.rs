//! Garbage collection: marks what the names reach, sweeps the rest. It runs alone, deletes only
//! regular files whose names it gave itself, reaches them without following a symlink, and sweeps
//! nothing when it cannot read a manifest: what that needs is unknown.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

use super::disk::Disk;
use super::durable::{is_draft_name, sync_directory};
use super::layout::Layout;
use super::lock::Lock;
use super::notes::manifest_of;
use super::partial;
use super::{PATIENCE, Store, failed};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::{Algorithm, Descriptor, Digest};
use crate::storage::Removal;

/// How long what a transfer left is kept for another one to go on with, from the last byte that came or went.
const RESUMABLE_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a collection removed, or would remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// The blobs no name reaches and their sizes in bytes, sorted by digest.
    pub blobs: Vec<(Digest, u64)>,
    /// The size of those blobs and of the unfinished files, in bytes.
    pub bytes: u64,
    /// How many blobs a name reaches.
    pub kept: u64,
    /// How many files of imports, pulls and pushes that did not come to their end.
    pub unfinished: u64,
    /// How many pulls that did not come to their end another one can still go on with, for a week after their last
    /// byte.
    pub resumable: u64,
    /// How many notes of manifests that are gone.
    pub notes: u64,
}

impl Store {
    /// Removes what no name reaches from the store at `root`, or with `dry_run` says what that is.
    /// It waits until every [`Store`] is dropped, one of this process too. A dry run keeps nobody out,
    /// and counts what others are just writing.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Store`] when `root` is no store or is in use for longer than half a minute,
    /// [`crate::ErrorKind::Corrupt`] when a manifest or the index cannot be read: then nothing is
    /// removed.
    pub fn gc(root: &Path, dry_run: bool) -> Result<GcReport> {
        Self::gc_on(Disk::default(), root, dry_run)
    }

    /// As [`Store::gc`], on a file system that is watched.
    ///
    /// # Errors
    /// As [`Store::gc`].
    pub fn gc_on(disk: Disk, root: &Path, dry_run: bool) -> Result<GcReport> {
        Self::gc_within(disk, root, dry_run, PATIENCE)
    }

    /// As [`Store::gc`], with `patience` for others that use the store.
    ///
    /// # Errors
    /// As [`Store::gc`], when it is in use for longer than that.
    pub fn gc_within(disk: Disk, root: &Path, dry_run: bool, patience: Duration) -> Result<GcReport> {
        let layout = Layout::open(disk, root)?;
        let lock = if dry_run { Lock::shared } else { Lock::exclusive }(layout.disk(), &layout.store_lock(), patience)?;
        let store = Self { layout: Arc::new(layout), stamps: Arc::default(), _lock: Arc::new(lock) };
        if dry_run {
            return store.collect(dry_run);
        }
        // On some file systems a removal, too, takes space at first.
        store.layout.spend_reserve();
        let report = store.collect(dry_run);
        store.layout.keep_reserve();
        report
    }

    fn collect(&self, dry_run: bool) -> Result<GcReport> {
        let (store, root) = (self, self.root());
        if !dry_run {
            // A name removed by a process that died before its fsync must not come back after its
            // content is gone.
            sync_directory(store.layout.disk(), root)?;
        }
        let Marked { manifests, blobs } = store.mark()?;

        let mut blob_files = Vec::new();
        for algorithm in Algorithm::ALL {
            if store.layout.blobs_of(algorithm).symlink_metadata().is_ok() {
                blob_files.push((algorithm, Swept::open(store.layout.disk(), root, &["blobs", algorithm.as_str()])?));
            }
        }
        let drafts = Swept::open(store.layout.disk(), root, &["ingest"])?;
        let notes = Swept::open(store.layout.disk(), root, &["notes"])?;

        let mut report = GcReport::default();
        for (algorithm, files) in blob_files {
            // Most blobs are needed: nothing more is asked about those, or remembered.
            let garbage = files.files(|name| {
                let Some(digest) = digest_of(name, algorithm) else { return false };
                let is_needed = blobs.contains(&digest.prefix());
                report.kept += u64::from(is_needed);
                !is_needed
            })?;
            for Found { name, size, .. } in garbage {
                files.remove(&name, dry_run)?;
                report.blobs.extend(digest_of(&name, algorithm).map(|digest| (digest, size)));
                report.bytes += size;
            }
        }
        let unfinished = drafts.files(|_| true)?;
        let since = SystemTime::now().checked_sub(RESUMABLE_FOR).unwrap_or(UNIX_EPOCH);
        let is_resumable = |digest: &Digest| {
            let modified = |name: &String| Some(unfinished.iter().find(|file| file.name == *name)?.modified);
            let [content, record] = partial::names(digest);
            modified(&content).is_some_and(|modified| modified >= since) && modified(&record).is_some()
        };
        for Found { name, size, .. } in &unfinished {
            match partial::digest_of(name) {
                // Of its two files the one with the bytes.
                Some(digest) if is_resumable(&digest) => {
                    report.resumable += u64::from(partial::names(&digest)[0] == *name);
                }
                None if !is_draft_name(name) => {}
                _ => {
                    drafts.remove(name, dry_run)?;
                    report.unfinished += 1;
                    report.bytes += size;
                }
            }
        }
        // What is remembered of a push that is this old, no registry remembers.
        if root.join("uploads").is_dir() {
            let uploads = Swept::open(store.layout.disk(), root, &["uploads"])?;
            for Found { name, size, .. } in uploads.files(|_| true)?.into_iter().filter(|file| file.modified < since) {
                uploads.remove(&name, dry_run)?;
                report.unfinished += 1;
                report.bytes += size;
            }
        }
        for Found { name, .. } in notes.files(|_| true)? {
            if manifest_of(&name).is_some_and(|manifest| !manifests.contains(&manifest)) {
                notes.remove(&name, dry_run)?;
                report.notes += 1;
            }
        }
        if root.join("stamps").is_dir() {
            let stamps = Swept::open(store.layout.disk(), root, &["stamps"])?;
            for Found { name, .. } in stamps.files(|_| true)? {
                if manifest_of(&name).is_some_and(|manifest| !manifests.contains(&manifest)) {
                    stamps.remove(&name, dry_run)?;
                }
            }
        }
        Ok(report)
    }

    /// Removes the content of `digest` at once, unless a name reaches it. No name is given meanwhile.
    ///
    /// # Errors
    /// As [`Store::gc`], but for the store being in use.
    pub fn remove_blob(&self, digest: &Digest) -> Result<Removal> {
        let _lock = Lock::exclusive(self.layout.disk(), &self.layout.refs_lock(), PATIENCE)?;
        // As for gc.
        sync_directory(self.layout.disk(), self.root())?;
        if self.mark()?.blobs.contains(&digest.prefix()) {
            return Ok(Removal::Needed);
        }
        let path = self.blob_path(digest);
        match self.layout.disk().remove(&path) {
            Ok(()) => Ok(Removal::Removed),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Removal::Absent),
            Err(cause) => Err(failed("remove", &path, cause)),
        }
    }

    /// Marks what the names reach, on all processors: of a large store, reading the manifests takes the longest.
    fn mark(&self) -> Result<Marked> {
        let entries = self.index()?.manifests;
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let shares = entries.chunks(entries.len().div_ceil(threads).max(1));
        thread::scope(|scope| {
            let marking: Vec<_> = shares.map(|share| scope.spawn(|| self.mark_from(share.to_vec()))).collect();
            let mut all = Marked::default();
            for marked in marking {
                let marked =
                    marked.join().map_err(|_| Error::new(ErrorKind::Unexpected, "The marking broke off"))??;
                all.manifests.extend(marked.manifests);
                all.blobs.extend(marked.blobs);
            }
            Ok(all)
        })
    }

    fn mark_from(&self, mut left: Vec<Descriptor>) -> Result<Marked> {
        let mut marked = Marked::default();
        while let Some(entry) = left.pop() {
            if !marked.manifests.insert(entry.digest) {
                continue;
            }
            let (document, _) = self.document(&entry).map_err(|cause| {
                let name = entry.annotations.get(Descriptor::REF_NAME).map_or("NAME", String::as_str);
                let message = format!("Nothing was removed, because the manifest `{}` cannot be read", entry.digest);
                Error::new(cause.kind(), message)
                    .hint(format!("`kiln pull` or `kiln create` it again, or `kiln rm {name}`, then `kiln gc` again"))
                    .caused_by(cause)
            })?;
            marked.blobs.insert(entry.digest.prefix());
            marked.blobs.extend(document.blobs().map(|blob| blob.digest.prefix()));
            left.extend_from_slice(document.manifests());
        }
        Ok(marked)
    }
}

/// The digest by `algorithm` that the name of a blob is.
fn digest_of(name: &str, algorithm: Algorithm) -> Option<Digest> {
    Digest::from_hex(name).filter(|digest| digest.algorithm() == algorithm)
}

/// What the names reach.
#[derive(Default)]
struct Marked {
    manifests: BTreeSet<Digest>,
    /// The manifests and everything they need, by the prefixes of their digests: a store has half a million, and two
    /// that agree in so much keep what could go, no more.
    blobs: HashSet<u128>,
}

/// A file that a sweep may come upon.
pub(super) struct Found {
    pub(super) name: String,
    /// In bytes.
    pub(super) size: u64,
    modified: SystemTime,
}

/// A directory of the store in which files are removed, held by handle: nothing that happens to its
/// path can lead the sweep elsewhere.
pub(super) struct Swept {
    disk: Disk,
    path: PathBuf,
    handle: OwnedFd,
}

impl Swept {
    /// Opens `root`, then each of `below` in turn, none of which may be a symlink.
    pub(super) fn open(disk: &Disk, root: &Path, below: &[&str]) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut path = root.to_owned();
        let mut handle = rustix::fs::open(root, flags, Mode::empty())
            .map_err(|cause| failed("open the directory", &path, cause.into()))?;
        for name in below {
            path.push(name);
            handle = openat(&handle, *name, flags | OFlags::NOFOLLOW, Mode::empty())
                .map_err(|cause| failed("open the directory", &path, cause.into()))?;
        }
        Ok(Self { disk: disk.clone(), path, handle })
    }

    /// The regular files with names in UTF-8 that are `wanted`, sorted.
    pub(super) fn files(&self, mut wanted: impl FnMut(&str) -> bool) -> Result<Vec<Found>> {
        let mut list = || -> io::Result<Vec<Found>> {
            let mut files = Vec::new();
            for entry in Dir::read_from(&self.handle)? {
                let entry = entry?;
                let Ok(name) = entry.file_name().to_str() else { continue };
                let status = || statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW);
                let kind = match entry.file_type() {
                    // Not every file system says it here.
                    FileType::Unknown => FileType::from_raw_mode(status()?.st_mode),
                    kind => kind,
                };
                if kind == FileType::RegularFile && wanted(name) {
                    let status = status()?;
                    let seconds = u64::try_from(status.st_mtime).unwrap_or_default();
                    files.push(Found {
                        name: name.to_owned(),
                        size: u64::try_from(status.st_size).unwrap_or_default(),
                        modified: UNIX_EPOCH + Duration::from_secs(seconds),
                    });
                }
            }
            files.sort_by(|one, other| one.name.cmp(&other.name));
            Ok(files)
        };
        list().map_err(|cause| failed("read the directory", &self.path, cause))
    }

    pub(super) fn remove(&self, name: &str, dry_run: bool) -> Result<()> {
        if dry_run {
            return Ok(());
        }
        self.disk
            .remove_at(&self.handle, &self.path, name)
            .map_err(|cause| failed("remove", &self.path.join(name), cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEFLY: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn nobody_uses_the_store_while_it_is_swept() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let in_use = Store::gc_within(Disk::default(), directory.path(), false, BRIEFLY).unwrap_err();
        assert_eq!(in_use.kind(), ErrorKind::Store);
        assert!(in_use.to_string().contains("locked"), "{in_use}");
        assert!(Store::gc_within(Disk::default(), directory.path(), true, BRIEFLY).is_ok(), "a dry run shares");
        drop(store);

        let sweeping = Lock::exclusive(&Disk::default(), &directory.path().join("locks/store"), BRIEFLY).unwrap();
        assert_eq!(
            Store::open_within(Disk::default(), directory.path(), BRIEFLY).unwrap_err().kind(),
            ErrorKind::Store
        );
        assert_eq!(
            Store::gc_within(Disk::default(), directory.path(), true, BRIEFLY).unwrap_err().kind(),
            ErrorKind::Store
        );
        drop(sweeping);
        assert!(Store::open_within(Disk::default(), directory.path(), BRIEFLY).is_ok());
    }

    #[test]
    fn a_collection_waits_for_the_last_user() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let clone = store.clone();
        std::thread::scope(|scope| {
            let collection = scope.spawn(|| Store::gc_within(Disk::default(), directory.path(), false, LONG));
            drop(store);
            std::thread::sleep(BRIEFLY);
            assert!(!collection.is_finished(), "a clone is a user too");
            drop(clone);
            assert_eq!(collection.join().unwrap().unwrap(), GcReport::default());
        });
    }
}
