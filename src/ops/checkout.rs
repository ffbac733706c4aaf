//! Laying a model out as a directory. Everything is staged beside the directory and gets its name at the end,
//! so that there is all of it or nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::held::Held as _;
use super::inspect::{self, find};
use super::parallel;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::{Content, FilePath, files, shard_index};
use crate::oci::{Descriptor, Digest, Reference};
use crate::plan::Profile;
use crate::progress::{Event, Progress};
use crate::store::{Link, Store};

/// The index that loaders look for when there is no `model.safetensors`.
const INDEX: &str = "model.safetensors.index.json";

/// What to lay out, and where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model.
    pub name: Reference,
    /// The directory, which must be empty or not there.
    pub directory: PathBuf,
    /// How files share their bytes with the store; `None` takes the cheapest way that is safe for each.
    pub link: Option<Link>,
    /// How many files are laid out at once.
    pub threads: usize,
}

/// What was laid out.
#[derive(Clone, Debug)]
pub struct CheckedOut {
    /// The manifest's digest.
    pub digest: Digest,
    /// How many layers became files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them are reflinks, hard links and copies.
    pub links: BTreeMap<Link, u64>,
    /// Whether an index of the shards was written beside them.
    pub index: bool,
    /// How many layers have no name, and are not there.
    pub unnamed: u64,
}

/// Lays a model out as a directory: every layer that has a name as the file of that name, and an index of the
/// shards where loaders need one. Every byte was hashed.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such model, [`ErrorKind::Usage`] when the directory is not empty,
/// [`ErrorKind::Input`] when the manifest names no files, or files that cannot be, [`ErrorKind::Corrupt`] when
/// content is damaged, [`ErrorKind::Store`] when it cannot be written.
pub fn checkout(store: &Store, options: &Options, progress: &Progress) -> Result<CheckedOut> {
    let (target, manifest) = find(store, &options.name)?;
    // A lock that this kiln cannot read says as little as none: its bytes are checked like all others.
    let profile = inspect::lock(store, &manifest).ok().flatten().map(|lock| lock.profile);
    let as_it_was = profile.as_deref() == Some(Profile::Hf.name());
    let mut files = files(&manifest)?;
    let unnamed = (manifest.layers.len() - files.len()) as u64;
    // The directory of that profile is the source's, byte for byte.
    files.retain(|(_, layer)| !(as_it_was && Content::of(layer) == Content::Lock));
    if files.is_empty() {
        return Err(Error::input(format!("No layer of `{}` has a file name", options.name)));
    }
    let mut staging = Staging::beside(&options.directory)?;
    for (path, _) in &files {
        staging.make_folders(path)?;
    }
    let bytes = files.iter().fold(0, |sum: u64, (_, layer)| sum.saturating_add(layer.size));
    progress.report(Event::Started { task: "checkout", blobs: files.len() as u64, bytes });
    let placed = parallel::each(&files, options.threads, |(path, layer)| {
        let link =
            store.place(layer, &staging.path(path), ways(layer, options.link), progress).map_err(|error| {
                match (error.kind(), layer.layer_name()) {
                    (ErrorKind::Corrupt, Some(layer)) => {
                        let message =
                            format!("{} of `{}` is not what its manifest promises", quoted(layer), options.name);
                        let hint = error.hint_text().map(str::to_owned);
                        hint.into_iter().fold(Error::new(ErrorKind::Corrupt, message).caused_by(error), Error::hint)
                    }
                    _ => error,
                }
            })?;
        progress.report(Event::Blob {
            name: path.to_string(),
            digest: layer.digest,
            size: layer.size,
            outcome: link.outcome(),
        });
        Ok(link)
    })?;
    let index = if profile.is_some() && !as_it_was { index(store, &files)? } else { None };
    if let Some(index) = &index {
        staging.write(INDEX, index)?;
    }
    staging.publish(&options.directory)?;
    let mut links = BTreeMap::new();
    for link in placed {
        *links.entry(link).or_default() += 1;
    }
    Ok(CheckedOut { digest: target.digest, files: files.len() as u64, bytes, links, index: index.is_some(), unnamed })
}

/// A hard link is the store's own file, so without a wish only weights become one: people edit the others.
fn ways(layer: &Descriptor, wish: Option<Link>) -> &'static [Link] {
    match wish {
        Some(Link::Reflink) => &[Link::Reflink],
        Some(Link::Hard) => &[Link::Hard],
        Some(Link::Copy) => &[Link::Copy],
        None if Content::of(layer) == Content::Tensors => &[Link::Reflink, Link::Hard, Link::Copy],
        None => &[Link::Reflink, Link::Copy],
    }
}

/// The index of the shards among `files`, when loaders would not find all tensors without.
fn index(store: &Store, files: &[(FilePath, &Descriptor)]) -> Result<Option<Vec<u8>>> {
    let is_there = |name: &str| files.iter().any(|(path, _)| path.as_str() == name);
    let shards: Vec<_> = files.iter().filter(|(_, layer)| Content::of(layer) == Content::Tensors).collect();
    if shards.is_empty() || is_there(INDEX) || is_there("model.safetensors") {
        return Ok(None);
    }
    let mut tensors = BTreeMap::new();
    let mut total = 0u64;
    for (path, layer) in shards {
        let (header, _) = store.header(layer)?;
        for entry in header.tensors {
            total = total.saturating_add(entry.end - entry.begin);
            tensors.insert(entry.name, path.as_str());
        }
    }
    Ok(Some(shard_index(total, &tensors)))
}

/// A directory on its way; dropping it removes it.
struct Staging {
    /// Holds `root`, and is nobody else's to look into.
    temporary: TempDir,
    /// The directory to be, with the mode that new ones get here.
    root: PathBuf,
    /// Every folder in it, itself among them.
    folders: BTreeSet<PathBuf>,
}

impl Staging {
    /// A new directory beside `directory`, so that a rename brings it there.
    fn beside(directory: &Path) -> Result<Self> {
        let (Some(_), Some(parent)) = (directory.file_name(), directory.parent()) else {
            let message = format!("`{}` is not the name of a new directory", directory.display());
            return Err(Error::new(ErrorKind::Usage, message).hint("name one that is not there yet"));
        };
        let vacant = vacant(directory)?;
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let failed = |cause| failed("create a directory in", parent, cause);
        fs::create_dir_all(parent).map_err(failed)?;
        let temporary = tempfile::Builder::new().prefix(".kiln-checkout-").tempdir_in(parent).map_err(failed)?;
        let root = temporary.path().join("model");
        fs::create_dir(&root).map_err(failed)?;
        if let Some(permissions) = vacant {
            fs::set_permissions(&root, permissions).map_err(failed)?;
        }
        Ok(Self { temporary, folders: BTreeSet::from([root.clone()]), root })
    }

    fn path(&self, file: &FilePath) -> PathBuf {
        self.root.join(file)
    }

    fn make_folders(&mut self, file: &FilePath) -> Result<()> {
        for folder in file.folders() {
            let path = self.root.join(folder);
            if self.folders.insert(path.clone()) {
                fs::create_dir(&path).map_err(|cause| failed("create a directory", &path, cause))?;
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.root.join(name);
        File::create_new(&path)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .map_err(|cause| failed("write", &path, cause))
    }

    /// Gives the directory its name.
    fn publish(self, directory: &Path) -> Result<()> {
        for folder in &self.folders {
            sync(folder)?;
        }
        fs::rename(&self.root, directory).map_err(|cause| failed("move the model to", directory, cause))?;
        sync(self.temporary.path().parent().unwrap_or(Path::new(".")))
    }
}

/// The permissions of the empty directory that is there; none when there is nothing.
fn vacant(directory: &Path) -> Result<Option<Permissions>> {
    let occupied = |what| {
        let message = format!("`{}` {what}", directory.display());
        Err(Error::new(ErrorKind::Usage, message).hint("name a directory that is empty or not there"))
    };
    match directory.symlink_metadata() {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(failed("look at", directory, cause)),
        Ok(metadata) if !metadata.is_dir() => occupied("is not a directory"),
        Ok(metadata) => match directory.read_dir().map_err(|cause| failed("read", directory, cause))?.next() {
            Some(_) => occupied("is not empty"),
            None => Ok(Some(metadata.permissions())),
        },
    }
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(|cause| failed("write to disk", folder, cause))
}

fn failed(action: &str, path: &Path, cause: io::Error) -> Error {
    Error::io(ErrorKind::Store, action, path, cause)
}
