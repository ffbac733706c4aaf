//! Where everything in a store is, and which stores this version reads. A directory is taken for a
//! store only when `kiln.json` says so; it is the last file written when a store is created.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::durable::{replace, sync_directory};
use super::failed;
use super::lock::Lock;
use crate::error::{Error, ErrorKind, Result};
use crate::json;
use crate::oci::{Algorithm, Digest, Index};

/// The version of the layout that this program writes.
const FORMAT: u32 = 1;
const FORMAT_FILE: &str = "kiln.json";
/// OCI image-spec v1.1.1, "oci-layout file":
/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md#oci-layout-file>.
const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
pub(super) const INDEX_FILE: &str = "index.json";
const LOCKS: &str = "locks";
const DIRECTORIES: [&str; 5] = ["blobs", "blobs/sha256", "ingest", "quarantine", "notes"];

/// The paths of one store.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    disk: Disk,
}

/// `kiln.json`: what a program must know to use the store.
#[derive(Serialize, Deserialize)]
struct Format {
    format: u32,
    /// Features that a program may ignore.
    #[serde(default)]
    compatible: BTreeSet<String>,
    /// Features that a program must know, or leave the store alone.
    #[serde(default)]
    incompatible: BTreeSet<String>,
}

impl Layout {
    /// The store at `root`, created when there is nothing.
    pub(super) fn open_or_create(disk: Disk, root: &Path, patience: Duration) -> Result<Self> {
        let layout = Self { root: root.to_owned(), disk };
        layout.check_owner()?;
        if !Self::is_at(root)? {
            layout.create(patience)?;
        }
        layout.check_format()?;
        Ok(layout)
    }

    /// The store at `root`, which must be one.
    pub(super) fn open(disk: Disk, root: &Path) -> Result<Self> {
        let layout = Self { root: root.to_owned(), disk };
        layout.check_owner()?;
        if !Self::is_at(root)? {
            return Err(not_a_store(root));
        }
        layout.check_format()?;
        Ok(layout)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Where kiln's own blobs are.
    pub(super) fn blobs(&self) -> PathBuf {
        self.blobs_of(Algorithm::Sha256)
    }

    pub(super) fn blobs_of(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join("blobs").join(algorithm.as_str())
    }

    /// The directories of blobs that are there. One for digests that kiln does not give itself comes
    /// with the first of them.
    pub(super) fn blob_directories(&self) -> impl Iterator<Item = PathBuf> {
        Algorithm::ALL.map(|algorithm| self.blobs_of(algorithm)).into_iter().filter(|directory| directory.is_dir())
    }

    /// The directory for blobs like `digest`, made if it is not there.
    pub(super) fn blobs_for(&self, digest: &Digest) -> Result<PathBuf> {
        let directory = self.blobs_of(digest.algorithm());
        if digest.algorithm() != Algorithm::Sha256 || !directory.is_dir() {
            self.make_directory(&directory)?;
            // Whoever made it may have died before its own fsync.
            sync_directory(&self.disk, &self.root.join("blobs"))?;
        }
        Ok(directory)
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        self.blobs_of(digest.algorithm()).join(digest.hex())
    }

    pub(super) fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub(super) fn notes(&self) -> PathBuf {
        self.root.join("notes")
    }

    /// Where what is remembered of uploads is; the directory comes with the first of them.
    pub(super) fn uploads(&self) -> Result<PathBuf> {
        let directory = self.root.join("uploads");
        self.make_directory(&directory)?;
        Ok(directory)
    }

    /// Where what is remembered of registries is; as [`Layout::uploads`].
    pub(super) fn registries(&self) -> Result<PathBuf> {
        let directory = self.root.join("registries");
        self.make_directory(&directory)?;
        Ok(directory)
    }

    /// Where the stamps are; as [`Layout::uploads`].
    pub(super) fn stamps(&self) -> Result<PathBuf> {
        let directory = self.root.join("stamps");
        self.make_directory(&directory)?;
        Ok(directory)
    }

    pub(super) fn index(&self) -> PathBuf {
        self.root.join(INDEX_FILE)
    }

    pub(super) fn store_lock(&self) -> PathBuf {
        self.root.join(LOCKS).join("store")
    }

    pub(super) fn refs_lock(&self) -> PathBuf {
        self.root.join(LOCKS).join("refs")
    }

    /// Whether there is a store at `root`.
    pub(super) fn is_at(root: &Path) -> Result<bool> {
        let path = root.join(FORMAT_FILE);
        path.try_exists().map_err(|cause| failed("look for", &path, cause))
    }

    fn create(&self, patience: Duration) -> Result<()> {
        if !self.is_vacant()? {
            return Err(not_a_store(&self.root));
        }
        self.make_root(&self.root)?;
        self.make_directory(&self.root.join(LOCKS))?;
        // Of what a crash leaves it is there first: by it a creation knows what it may go on with.
        sync_directory(&self.disk, &self.root)?;
        let _lock = Lock::exclusive(&self.disk, &self.refs_lock(), patience)?;
        if Self::is_at(&self.root)? {
            return Ok(()); // by another process, while this one waited
        }
        for directory in DIRECTORIES {
            self.make_directory(&self.root.join(directory))?;
        }
        sync_directory(&self.disk, &self.root.join("blobs"))?;
        let format = Format { format: FORMAT, compatible: BTreeSet::new(), incompatible: BTreeSet::new() };
        for (name, bytes) in [
            (LAYOUT_FILE, LAYOUT),
            (INDEX_FILE, &json::to_canonical(&Index::of(Vec::new()))),
            (FORMAT_FILE, &json::to_canonical(&format)),
        ] {
            replace(&self.disk, &self.ingest(), &self.root, name, bytes)?;
        }
        self.keep_reserve();
        Ok(())
    }

    /// Makes `directory` and those above it. Each is on disk before there is anything in it.
    fn make_root(&self, directory: &Path) -> Result<()> {
        let above = directory.parent().map(|above| if above.as_os_str().is_empty() { Path::new(".") } else { above });
        let Some(above) = above else { return Ok(()) };
        if directory.is_dir() {
            // Whoever made it may have died before its own fsync; but one that may not be read is nobody's who
            // made directories for a store.
            return match self.disk.sync_directory(above) {
                Err(cause) if cause.kind() != io::ErrorKind::PermissionDenied => {
                    Err(failed("write to disk", above, cause))
                }
                _ => Ok(()),
            };
        }
        self.make_root(above)?;
        self.make_directory(directory)?;
        sync_directory(&self.disk, above)
    }

    /// Whether a store may be created here: there is nothing, or no more than a creation left that
    /// did not come to its end, told from anyone else's image layout by its locks.
    fn is_vacant(&self) -> Result<bool> {
        let unreadable = |cause| failed("read the directory", &self.root, cause);
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(cause) => return Err(unreadable(cause)),
        };
        let names = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(unreadable)?;
        let own = |name: &str| [LOCKS, LAYOUT_FILE, INDEX_FILE].contains(&name) || DIRECTORIES.contains(&name);
        Ok(names.is_empty()
            || names.iter().any(|name| name == LOCKS) && names.iter().all(|name| name.to_str().is_some_and(own)))
    }

    /// Makes a directory; one that is there is left as it is.
    fn make_directory(&self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        match self.disk.make_directory(path, 0o755) {
            Err(cause) if cause.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => {
                Err(failed("create the directory", path, cause))
            }
            _ => Ok(()),
        }
    }

    /// Fails when somebody else may change what is in the store.
    fn check_owner(&self) -> Result<()> {
        let metadata = match fs::metadata(&self.root) {
            Ok(metadata) => metadata,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(cause) => return Err(failed("look at", &self.root, cause)),
        };
        let Some((what, hint)) = intruder(metadata.uid(), geteuid().as_raw(), metadata.mode()) else { return Ok(()) };
        let message = format!("The store `{}` {what}", self.root.display());
        Err(Error::new(ErrorKind::Store, message).hint(hint))
    }

    fn check_format(&self) -> Result<()> {
        let path = self.root.join(FORMAT_FILE);
        let text = fs::read(&path).map_err(|cause| failed("read", &path, cause))?;
        let format: Format = json::parse_as(&text).map_err(|cause| {
            Error::new(ErrorKind::Store, format!("Not the format file of a store: `{}`", path.display()))
                .caused_by(cause)
                .hint("restore the file, or name another store with `--store`")
        })?;
        let unknown = match format {
            Format { format, .. } if format != FORMAT => format!("format {format}"),
            Format { incompatible, .. } => match incompatible.first() {
                Some(feature) => feature.clone(),
                None => return Ok(()),
            },
        };
        Err(Error::new(
            ErrorKind::Store,
            format!("The store `{}` needs `{unknown}`, which this version does not know", self.root.display()),
        )
        .hint("use the version of kiln that wrote the store, or name another store with `--store`"))
    }
}

/// Why `user` should not use a directory of `owner` with this mode, and what to do.
fn intruder(owner: u32, user: u32, mode: u32) -> Option<(&'static str, &'static str)> {
    if owner != user {
        Some(("belongs to another user", "run `kiln` as its owner, or name another store with `--store`"))
    } else if mode & 0o002 != 0 {
        Some(("may be changed by everybody", "run `chmod o-w` on it, or name another store with `--store`"))
    } else {
        None
    }
}

fn not_a_store(root: &Path) -> Error {
    Error::new(ErrorKind::Store, format!("Not a kiln store, and not empty: `{}`", root.display()))
        .hint("name a store, or a directory that is empty or absent, with `--store`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_somebody_else_may_change_is_not_used() {
        assert_eq!(intruder(1000, 1000, 0o40755), None);
        assert_eq!(intruder(1000, 1000, 0o42770), None, "a group may share one");
        assert!(intruder(0, 1000, 0o40755).unwrap().0.contains("another user"));
        assert!(intruder(1000, 0, 0o40755).unwrap().0.contains("another user"));
        assert!(intruder(1000, 1000, 0o41777).unwrap().1.contains("chmod o-w"));
    }
}
