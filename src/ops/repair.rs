//! Repairing a model: what is damaged comes again from another store, from a registry that had it, or from its
//! source. What comes is hashed like everything that the store takes, so a repair cannot make anything worse.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::again::{Again, Named};
use super::create;
use super::parallel;
use super::source::Places;
use super::transfer::{Access, blocking};
use crate::copy::{Direction, copy};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Dialect, layer_name};
use crate::oci::{Descriptor, Digest, Reference};
use crate::progress::{Event, Progress};
use crate::registry::Remote;
use crate::store::Store;

/// What to repair, and from what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The model.
    pub name: Reference,
    /// Another store that may have it, tried first.
    pub from: Option<PathBuf>,
    /// The source for a re-creation, as [`super::source::Source::find`] takes it; `None` takes what the store remembers.
    pub source: Option<PathBuf>,
    /// The checkpoint of the draft; as `source`.
    pub draft: Option<PathBuf>,
    /// Where the source is looked for besides the store itself.
    pub places: Places,
    /// How many threads hash and re-create.
    pub threads: usize,
}

/// What a repair did.
#[derive(Debug, Default)]
pub struct Repair {
    /// What is sound again, with the place that it came from.
    pub mended: Vec<(Descriptor, String)>,
    /// What is still damaged.
    pub left: Vec<Descriptor>,
    /// Where its wrong bytes are now.
    pub aside: Vec<PathBuf>,
    /// The places that did not help, and why.
    pub failed: Vec<(String, Error)>,
}

/// A place that a model can be repaired from.
enum Origin {
    Store(PathBuf),
    Registry(Reference),
    Source,
}

impl Origin {
    fn name(&self) -> String {
        match self {
            Self::Store(path) => path.display().to_string(),
            Self::Registry(reference) => reference.to_string(),
            Self::Source => "its source".to_owned(),
        }
    }
}

/// Reads all of a model and brings what is damaged again. What is wrong is moved aside as it is found, so that nobody
/// reads, serves or links it, and stays until what is right is there.
///
/// # Errors
/// [`ErrorKind::NotFound`] when there is no such model, [`ErrorKind::Store`] when the store cannot be read. A
/// place that cannot help is in the report.
pub async fn repair(store: &Store, options: Options, access: &Access, progress: &Progress) -> Result<Repair> {
    let target = super::inspect::require(store, &options.name)?;
    let mut repair = Repair { left: damaged(store, &target, &options, progress).await?, ..Repair::default() };
    for origin in origins(store, &target, &options) {
        if repair.left.is_empty() {
            break;
        }
        let name = &options.name;
        let outcome = match &origin {
            Origin::Store(path) => from_store(store, path, &target, name, progress).await,
            Origin::Registry(reference) => from_registry(store, reference, name, access, progress).await,
            Origin::Source => from_source(store, &target, &repair.left, &options, progress).await,
        };
        if let Err(error) = outcome {
            repair.failed.push((origin.name(), error));
        }
        let left = damaged(store, &target, &options, &Progress::silent()).await?;
        let mended = repair.left.into_iter().filter(|blob| !left.contains(blob));
        repair.mended.extend(mended.map(|blob| (blob, origin.name())));
        repair.left = left;
    }
    conclude(store, repair).await
}

/// The places to try: the store that was named, registries that were seen to have the model, the one that
/// its name tells, its source.
fn origins(store: &Store, target: &Descriptor, options: &Options) -> Vec<Origin> {
    let seen = store.homes(&target.digest);
    let told = options.name.host().map(|host| (host.to_owned(), options.name.path().to_owned()));
    let told = told.filter(|home| !seen.contains(home));
    let pinned = |(host, path): (String, String)| format!("{host}/{path}@{}", target.digest).parse().ok();
    let registries = seen.into_iter().chain(told).filter_map(pinned).map(Origin::Registry);
    options.from.iter().cloned().map(Origin::Store).chain(registries).chain([Origin::Source]).collect()
}

/// Lets go of the wrong bytes of what is right again, and looks where the others are.
async fn conclude(store: &Store, mut repair: Repair) -> Result<Repair> {
    let store = store.clone();
    blocking(move || {
        let mended: BTreeSet<Digest> = repair.mended.iter().map(|(blob, _)| blob.digest).collect();
        // The model is right, whatever becomes of them.
        let _ = store.release(|digest| mended.contains(&digest), false);
        for blob in &repair.left {
            repair.aside.extend(store.quarantined(&blob.digest)?);
        }
        Ok(repair)
    })
    .await
}

/// The blobs that are damaged, none of which has its name any more; the manifest alone when it is, since it names the
/// others.
async fn damaged(
    store: &Store,
    target: &Descriptor,
    options: &Options,
    progress: &Progress,
) -> Result<Vec<Descriptor>> {
    let (store, target, threads, progress) = (store.clone(), target.clone(), options.threads, progress.clone());
    blocking(move || {
        let manifest = match store.manifest(&target) {
            Ok((manifest, _)) => manifest,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                set_aside(&store, &target)?;
                return Ok(vec![target]);
            }
            Err(error) => return Err(error),
        };
        let blobs: Vec<Descriptor> = manifest.blobs().cloned().collect();
        let (count, bytes) = (blobs.len() as u64, manifest.total_size());
        progress.report(Event::Started { task: "repair", blobs: count, bytes });
        let are_right = parallel::each(&blobs, threads, |blob| {
            let is_right = store.check(blob, &progress)?.is_ok();
            // At once: somebody else may bring it meanwhile.
            if is_right { Ok(true) } else { set_aside(&store, blob).map(|()| false) }
        })?;
        Ok(blobs.into_iter().zip(are_right).filter(|(_, is_right)| !is_right).map(|(blob, _)| blob).collect())
    })
    .await
}

fn set_aside(store: &Store, damaged: &Descriptor) -> Result<()> {
    match store.quarantine(&damaged.digest) {
        // It was missing before.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        outcome => outcome.map(drop),
    }
}

/// Brings the model from the store at `path`, which may have it under any name.
async fn from_store(
    store: &Store,
    path: &Path,
    target: &Descriptor,
    name: &Reference,
    progress: &Progress,
) -> Result<()> {
    let (path, digest) = (path.to_owned(), target.digest);
    let (other, from) = blocking(move || {
        let missing = |what: &str| Error::new(ErrorKind::NotFound, format!("{what} at `{}`", path.display()));
        let other = Store::open_existing(&path)?.ok_or_else(|| missing("There is no store"))?;
        let named = other.refs()?.into_iter().find(|(_, target)| target.digest == digest);
        let (name, _) = named.ok_or_else(|| missing(&format!("No model is `{digest}`")))?;
        // Pinned, because the name may move meanwhile.
        let name = name.split_once('@').map_or(&*name, |(name, _)| name);
        let pinned: Reference = format!("{name}@{digest}").parse()?;
        Ok((other, pinned))
    })
    .await?;
    copy(Direction::Pull, &other, &from, store, name, 1, progress).await.map(drop)
}

async fn from_registry(
    store: &Store,
    from: &Reference,
    name: &Reference,
    access: &Access,
    progress: &Progress,
) -> Result<()> {
    let remote = Remote::new(from, access.keychain.clone(), &access.options)?;
    copy(Direction::Pull, &remote, from, store, name, access.options.concurrency, progress).await.map(drop)
}

/// Creates the layers and the config in `damaged` again, and nothing else.
async fn from_source(
    store: &Store,
    target: &Descriptor,
    damaged: &[Descriptor],
    options: &Options,
    progress: &Progress,
) -> Result<()> {
    let (store, target, damaged) = (store.clone(), target.clone(), damaged.to_vec());
    let (options, progress) = (options.clone(), progress.clone());
    blocking(move || {
        let (manifest, _) = store.manifest(&target)?;
        let named = Named { source: options.source.as_deref(), draft: options.draft.as_deref() };
        let places = Places { store: Some(store.clone()), ..options.places };
        let again = Again::plan(&store, &target, &manifest, named, &places, options.threads, &progress)?;
        let names: Vec<String> = damaged.iter().map(layer_name).collect();
        let import = store.begin_import()?;
        create::build_layers(&again.prepared, &names, options.threads, &import, &progress)
            .map_err(|error| again.failed(error))?;
        if damaged.contains(&manifest.config) {
            create::build_config(&again.prepared, Dialect::of(&manifest), &manifest.layers, &import)?;
        }
        import.keep(&damaged)
    })
    .await
}
