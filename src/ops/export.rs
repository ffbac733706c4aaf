//! Putting a model into Ollama's own store, so that Ollama runs it without a copy: blobs first, each of them
//! hashed, then the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::inspect::{self, require};
use super::ollama::{Name, blob_path};
use super::parallel;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::Dialect;
use crate::oci::{Algorithm, Descriptor, Digest, Reference};
use crate::plan::Profile;
use crate::progress::{Event, Progress};
use crate::store::{Link, Store, examine};

/// What to put where.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model.
    pub name: Reference,
    /// The directory of Ollama's store: the one with `blobs` and `manifests`, or that will have them.
    pub directory: PathBuf,
    /// How files share their bytes with kiln's store; `None` takes the cheapest way that works.
    pub link: Option<Link>,
    /// How many files are written at once.
    pub threads: usize,
}

/// What was put there.
#[derive(Clone, Debug)]
pub struct Exported {
    /// The manifest's digest.
    pub digest: Digest,
    /// The name that Ollama has the model by.
    pub model: Name,
    /// How many blobs the model has.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them were there, whole and right.
    pub present: u64,
    /// How many of the others are reflinks, hard links and copies.
    pub links: BTreeMap<Link, u64>,
}

/// Puts a model into Ollama's store under the name that it has here. A blob that is there is read and hashed, and
/// replaced when it is damaged.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such model, [`ErrorKind::Input`] when Ollama would not load it,
/// [`ErrorKind::Usage`] when Ollama has no such names, [`ErrorKind::Corrupt`] when content is damaged,
/// [`ErrorKind::Store`] when it cannot be written.
pub fn to_ollama(store: &Store, options: &Options, progress: &Progress) -> Result<Exported> {
    let model = name_in_ollama(&options.name)?;
    let target = require(store, &options.name)?;
    let (manifest, bytes) = store.manifest(&target)?;
    let profile = inspect::lock(store, &manifest)?.map(|lock| lock.profile);
    let is_ollamas = profile.as_deref().is_none_or(|profile| profile == Profile::Ollama.name());
    let is_sha256 = manifest.blobs().all(|blob| blob.digest.algorithm() == Algorithm::Sha256);
    if Dialect::of(&manifest) != Dialect::Ollama || !is_ollamas || !is_sha256 {
        return Err(Error::input(format!("`{}` is not spelled as Ollama reads models", options.name))
            .hint("create it with `--profile ollama --dialect ollama`"));
    }
    let mut seen = BTreeSet::new();
    let blobs: Vec<&Descriptor> = manifest.blobs().filter(|blob| seen.insert(blob.digest)).collect();
    let size = blobs.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size));
    let root = &options.directory;
    let folder = root.join("blobs");
    fs::create_dir_all(&folder).map_err(|cause| failed("create the directory", &folder, cause))?;
    // Beside the blobs, so that a rename gives them their names.
    let staging = tempfile::Builder::new()
        .prefix(".kiln-export-")
        .tempdir_in(&folder)
        .map_err(|cause| failed("create a directory in", &folder, cause))?;
    let ways = options.link.as_ref().map_or(&Link::ALL[..], std::slice::from_ref);
    progress.report(Event::Started { task: "export", blobs: blobs.len() as u64, bytes: size });
    let placed = parallel::each(&blobs, options.threads, |blob| {
        let path = blob_path(root, &blob.digest);
        let link = if examine(&path, blob, &Progress::silent())?.is_ok() {
            progress.advance(blob.size);
            None
        } else {
            let staged = staging.path().join(blob.digest.hex());
            let link = store.place(blob, &staged, ways, progress)?;
            fs::rename(&staged, &path).map_err(|cause| failed("publish", &path, cause))?;
            Some(link)
        };
        let name = blob.layer_name().map_or_else(|| blob.digest.to_string(), str::to_owned);
        let outcome = link.map_or("present", Link::outcome);
        progress.report(Event::Blob { name, digest: blob.digest, size: blob.size, outcome });
        Ok(link)
    })?;
    sync(&folder)?;
    publish(&staging.path().join("manifest"), &model.manifest_path(root), &bytes)?;
    let mut links = BTreeMap::new();
    for link in placed.iter().flatten() {
        *links.entry(*link).or_default() += 1;
    }
    let present = placed.iter().filter(|link| link.is_none()).count() as u64;
    Ok(Exported { digest: target.digest, model, blobs: blobs.len() as u64, bytes: size, present, links })
}

/// What Ollama calls the model: the same, as far as it has such names.
fn name_in_ollama(name: &Reference) -> Result<Name> {
    let tag = name.tag().unwrap_or("latest");
    let path = name.host().map_or_else(|| name.path().to_owned(), |host| format!("{host}/{}", name.path()));
    // Of a host it wants a namespace, too; without one, the first of three parts would be taken for it.
    let slashes = path.matches('/').count();
    let fits = if name.host().is_some() { slashes == 2 } else { slashes <= 1 };
    format!("{path}:{tag}").parse().ok().filter(|_| fits).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("Ollama has no names like {}", quoted(&name.to_string())))
            .hint(format!("give it another one first, as with `kiln tag {name} model:tag`"))
    })
}

/// Writes `bytes` to `staged`, and then gives them the name `path`.
fn publish(staged: &Path, path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    fs::create_dir_all(folder).map_err(|cause| failed("create the directory", folder, cause))?;
    File::create_new(staged)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|cause| failed("write", staged, cause))?;
    fs::rename(staged, path).map_err(|cause| failed("publish", path, cause))?;
    sync(folder)
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|handle| handle.sync_all()).map_err(|cause| failed("write to disk", folder, cause))
}

fn failed(action: &str, path: &Path, cause: io::Error) -> Error {
    Error::io(ErrorKind::Store, action, path, cause)
}
