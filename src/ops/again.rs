//! A model's source, planned again as the model's lock says: where a rebuild and a cross-check begin. What stands in
//! their way is [`ErrorKind::CouldNotCheck`], and no verdict on the model.

use std::path::{Path, PathBuf};

use super::create::{self, Prepared};
use super::held::Held;
use super::inspect::lock;
use super::provenance::{self, Note};
use super::source::{Places, Source};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::{Content, EPOCH, Lock, LockedModelfile, Modelfile, Names, Setting};
use crate::oci::{Descriptor, Manifest};
use crate::plan::{Policy, Profile, Request};
use crate::progress::Progress;
use crate::quant::NUMERICS;

/// The sources that were named.
#[derive(Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) source: Option<&'a Path>,
    pub(super) draft: Option<&'a Path>,
}

/// A lock and what it makes of a source.
pub(super) struct Again {
    pub(super) lock: Lock,
    pub(super) prepared: Prepared,
    source: PathBuf,
}

impl Again {
    /// Plans the source, which is looked for in `places`, and the draft with it, as the model's lock says. What is not
    /// named is what the store there remembers. `threads` hash the layers of a source that is a model itself.
    ///
    /// # Errors
    /// [`ErrorKind::CouldNotCheck`] when the model has no lock, when this kiln cannot do what it says, or when the
    /// source cannot be used; [`ErrorKind::Corrupt`] when the lock is damaged.
    pub(super) fn plan(
        held: &dyn Held,
        target: &Descriptor,
        manifest: &Manifest,
        named: Named<'_>,
        places: &Places,
        threads: usize,
        progress: &Progress,
    ) -> Result<Self> {
        let unchecked = |message: String| Error::new(ErrorKind::CouldNotCheck, message);
        let lock = lock(held, manifest)?
            .ok_or_else(|| unchecked("The model has no `kiln.lock`: how it was made is not known".to_owned()))?;
        let (Ok(profile), EPOCH, NUMERICS) = (lock.profile.parse(), lock.epoch, &*lock.numerics) else {
            return Err(unchecked(format!(
                "The model was made with epoch {}, numerics {} and profile {}, which this kiln does not have",
                lock.epoch,
                quoted(&lock.numerics),
                quoted(&lock.profile)
            )));
        };
        let note = places.store.as_ref().and_then(|store| Note::read(store, &target.digest).ok().flatten());
        let note = note.unwrap_or_default();
        let source = named.source.map(Path::to_owned).or_else(|| note.find_source(places, progress));
        let source =
            source.ok_or_else(|| unchecked("The source is not known here: name it with `--source`".to_owned()))?;
        let request = request(&lock, profile)
            .map_err(|cause| unchecked("The model cannot be made by this kiln".to_owned()).caused_by(cause))?;
        let mut prepared = Source::find(&source, places)
            .and_then(|source| create::prepare(&source, request, threads, progress))
            .map_err(|cause| unusable(&source, cause))?;
        prepared.modelfile = Modelfile::default();
        if let Some(locked) = &lock.draft {
            let draft = named.draft.map(Path::to_owned).or_else(|| note.draft.as_deref().map(PathBuf::from));
            let draft = draft.ok_or_else(|| {
                unchecked("The source of the draft is not known here: name it with `--draft DIR`".to_owned())
            })?;
            let scheme = locked.scheme.as_deref().map(str::parse).transpose();
            scheme.and_then(|scheme| prepared.add_draft(&draft, scheme)).map_err(|cause| unusable(&draft, cause))?;
        }
        if let Some(locked) = &lock.modelfile {
            let modelfile = modelfile(held, manifest, locked)?;
            prepared
                .add_modelfile(modelfile)
                .map_err(|cause| unchecked("The model cannot be made by this kiln".to_owned()).caused_by(cause))?;
        }
        if let Some(files) = &note.files {
            let checked = provenance::check_files(files, &prepared, threads, progress);
            match checked {
                // Another place was named: what is in it decides, and the lock says whether it is the same.
                Err(error) if named.source.is_some() && error.kind() == ErrorKind::CouldNotCheck => {
                    progress.note(format!("{}: the lock decides whether its tensors are the same", error.chain()));
                }
                checked => checked.map_err(|cause| unusable(&source, cause))?,
            }
        }
        Ok(Self { lock, prepared, source })
    }

    /// What an error while the source is read means.
    pub(super) fn failed(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::Input { unusable(&self.source, error) } else { error }
    }
}

/// What was asked for, as far as the lock knows: of a recipe, what it resolved to.
fn request(lock: &Lock, profile: Profile) -> Result<Request> {
    let scheme = |name: &Option<String>| name.as_deref().map(str::parse).transpose();
    let policy = match lock.policy.as_deref() {
        None => Policy::Family,
        Some(Lock::RECIPE) => {
            let schemes = lock.tensors.iter().map(|tensor| Ok((tensor.name.clone(), scheme(&tensor.scheme)?)));
            Policy::Resolved(schemes.collect::<Result<_>>()?)
        }
        Some(other) => {
            return Err(Error::new(ErrorKind::CouldNotCheck, format!("There is no policy {}", quoted(other))));
        }
    };
    Ok(Request { profile, scheme: scheme(&lock.scheme)?, policy })
}

/// What a Modelfile set: the contents of the layers that the lock names.
fn modelfile(held: &dyn Held, manifest: &Manifest, locked: &LockedModelfile) -> Result<Modelfile> {
    let LockedModelfile { layers, parser, renderer, requires } = locked.clone();
    let named = Setting::ALL.into_iter().filter(|setting| layers.iter().any(|name| name == setting.name()));
    let stored = named.filter_map(|setting| {
        let layer = manifest.layers.iter().find(|layer| Content::of(layer) == Content::Setting(setting))?;
        Some(held.read(layer).map(|bytes| (setting, bytes)))
    });
    let layers = stored.collect::<Result<_>>()?;
    Ok(Modelfile { layers, names: Names { parser, renderer, requires }, ..Modelfile::default() })
}

fn unusable(source: &Path, cause: Error) -> Error {
    Error::new(ErrorKind::CouldNotCheck, format!("The source `{}` cannot be used", source.display())).caused_by(cause)
}
