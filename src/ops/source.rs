//! What a model is created from: telling what the user named, and opening it as a checkpoint. A model that
//! was published already is one too: its layers are the files, and every one is hashed before it is used.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use super::{ollama, parallel};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::manifest::{Content, Setting, layer_name};
use crate::oci::{Descriptor, Digest, Hasher, Manifest, Reference};
use crate::plan::Plan;
use crate::progress::{Event, Progress};
use crate::source::{self, Checkpoint, NamedFile};
use crate::store::{Damage, Store};

/// Where sources are looked for that are no paths. Nothing is looked for in a place that is not there.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The store.
    pub store: Option<Store>,
    /// The Hugging Face cache: the directory with `models--…`.
    pub hub: Option<PathBuf>,
    /// Ollama's store: the directory with `manifests` and `blobs`.
    pub ollama: Option<PathBuf>,
}

/// What a model is created from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A checkpoint's directory, or an entry of a Hugging Face cache.
    Directory(PathBuf),
    /// A model in the store.
    Model {
        /// The store.
        store: Store,
        /// Its name there.
        name: Reference,
        /// Its manifest.
        manifest: Descriptor,
    },
    /// A model in a registry, which has to be pulled first.
    Registry(Reference),
    /// A model in Ollama's store.
    Ollama {
        /// The directory of that store.
        root: PathBuf,
        /// Its name.
        name: ollama::Name,
        /// Its manifest's digest.
        digest: Digest,
    },
}

/// What a name is looked for as when it does not say.
const HUB: &str = "hf:";
const MODEL: &str = "ref:";
const OLLAMA: &str = "ollama:";
/// The longest layer of a Modelfile that is read from Ollama's store, in bytes.
const LONGEST_SETTING: u64 = 16 << 20;

impl Source {
    /// Finds what `named` means. A prefix says it: `ref:` a model of the store or a registry, `hf:` an entry of
    /// the Hugging Face cache, `ollama:` a model of Ollama's store. Without one, a path that is there is meant;
    /// else the model or the entry of this name, of which only one may be there; else, if the name has a
    /// host, the model in that registry.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such thing, [`ErrorKind::Usage`] when there are two, or when
    /// it is not a name.
    pub fn find(named: &Path, places: &Places) -> Result<Self> {
        let directory = || Ok(Self::Directory(named.to_owned()));
        let Some(text) = named.to_str() else { return directory() };
        if let Some(name) = text.strip_prefix(MODEL) {
            let name: Reference = name.parse()?;
            let model = places.model(&name)?.or_else(|| name.host().map(|_| Self::Registry(name.clone())));
            return model.ok_or_else(|| {
                Error::new(ErrorKind::NotFound, format!("No model is named `{name}`"))
                    .hint("`kiln list` shows what the store holds")
            });
        }
        if let Some(name) = text.strip_prefix(HUB) {
            return places.snapshot(name)?.ok_or_else(|| places.not_cached(name));
        }
        if let Some(name) = text.strip_prefix(OLLAMA) {
            return places.ollama(name);
        }
        let is_path = matches!(
            named.components().next(),
            None | Some(Component::RootDir | Component::CurDir | Component::ParentDir | Component::Prefix(_))
        );
        if is_path || named.symlink_metadata().is_ok() {
            return directory();
        }
        let reference = text.parse::<Reference>().ok();
        let model = reference.as_ref().map(|name| places.model(name)).transpose()?.flatten();
        let snapshot = if text.contains('/') { places.snapshot(text)? } else { None };
        match (model, snapshot) {
            (Some(_), Some(_)) => Err(Error::new(
                ErrorKind::Usage,
                format!("{} is a model in the store and an entry of the Hugging Face cache", quoted(text)),
            )
            .hint(format!("write which one is meant: `{MODEL}{text}` or `{HUB}{text}`"))),
            (Some(found), None) | (None, Some(found)) => Ok(found),
            (None, None) => match reference {
                Some(reference) if reference.host().is_some() => Ok(Self::Registry(reference)),
                _ if text.contains('/') && source::is_repository(split_revision(text).0) => {
                    Err(Error::new(ErrorKind::NotFound, format!("Nothing here is called {}", quoted(text)))
                        .caused_by(places.not_cached(text).to_string())
                        .hint(download(text)))
                }
                _ => Err(Error::new(
                    ErrorKind::NotFound,
                    format!("There is no checkpoint at {}, and no model of that name in the store", quoted(text)),
                )
                .hint("name a directory that holds `config.json` and the weights, or a model of `kiln list`")),
            },
        }
    }

    /// Opens it as a checkpoint, and gives the manifest of a model that was published already. `threads` hash
    /// its layers. With `is_whole` it is opened with every file it has, which only a directory can be.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] when it is not a checkpoint that can be imported, [`ErrorKind::Corrupt`] when a
    /// layer has other bytes than its digest promises, [`ErrorKind::NotFound`] when it has to be pulled first.
    pub fn open(&self, is_whole: bool, threads: usize, progress: &Progress) -> Result<(Checkpoint, Option<Manifest>)> {
        let (manifest, checkpoint) = match self {
            Self::Directory(root) if is_whole => return Ok((Checkpoint::open_whole(root)?, None)),
            Self::Directory(root) => return Ok((Checkpoint::open(root)?, None)),
            Self::Model { .. } | Self::Ollama { .. } if is_whole => {
                return Err(Error::input(format!("`{self}` is no directory whose files could be kept as they are"))
                    .hint("`kiln checkout` makes one of a model in the store"));
            }
            Self::Registry(name) => {
                return Err(Error::new(ErrorKind::NotFound, format!("`{name}` is not in the store"))
                    .hint(format!("kiln pull {name}")));
            }
            Self::Model { store, manifest, .. } => {
                let (manifest, _) = store.manifest(manifest)?;
                let path = |digest: &Digest| store.blob_path(digest);
                let check = |blob: &Descriptor| store.check(blob, progress);
                let checkpoint = self.assemble(&manifest, path, check, threads, progress)?;
                (manifest, checkpoint)
            }
            Self::Ollama { root, name, .. } => {
                let (manifest, _) = name.manifest(root)?;
                let path = |digest: &Digest| ollama::blob_path(root, digest);
                let check = |blob: &Descriptor| hash(&path(&blob.digest), blob, progress);
                let checkpoint = self.assemble(&manifest, path, check, threads, progress)?;
                (manifest, checkpoint)
            }
        };
        Ok((checkpoint, Some(manifest)))
    }

    /// What a Modelfile set in a model that was published: the contents of those layers.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when one has other bytes than its digest promises.
    pub(super) fn settings(&self, manifest: &Manifest) -> Result<Vec<(Setting, Vec<u8>)>> {
        let layer = |setting| manifest.layers.iter().find(|layer| Content::of(layer) == Content::Setting(setting));
        let layers = Setting::ALL.into_iter().filter_map(|setting| Some((setting, layer(setting)?)));
        layers.map(|(setting, layer)| Ok((setting, self.read(layer)?))).collect()
    }

    /// The content of a small layer.
    fn read(&self, layer: &Descriptor) -> Result<Vec<u8>> {
        match self {
            Self::Model { store, .. } => store.read_blob(layer),
            Self::Ollama { root, .. } => {
                let bytes = source::read_file(&ollama::blob_path(root, &layer.digest), LONGEST_SETTING)?;
                if Digest::of(&bytes) == layer.digest {
                    return Ok(bytes);
                }
                let message = format!("The layer {} of `{self}` has other bytes", quoted(&layer_name(layer)));
                Err(Error::new(ErrorKind::Corrupt, message).hint("have Ollama pull the model again"))
            }
            Self::Directory(_) | Self::Registry(_) => {
                Err(Error::new(ErrorKind::Unexpected, format!("`{self}` has no layers")))
            }
        }
    }

    /// The checkpoint that a manifest's layers make up.
    fn assemble(
        &self,
        manifest: &Manifest,
        path: impl Fn(&Digest) -> PathBuf,
        check: impl Fn(&Descriptor) -> Result<Result<(), Damage>> + Sync,
        threads: usize,
        progress: &Progress,
    ) -> Result<Checkpoint> {
        if manifest.layers.iter().any(|layer| layer.media_type.as_str() == ollama::GGUF) {
            return Err(Error::input(format!("`{self}` is a GGUF model"))
                .hint("use the original safetensors checkpoint: a GGUF file is quantized already"));
        }
        // A draft is a checkpoint of its own, whose names have a prefix.
        let is_draft = |name: &str| name.starts_with(Plan::DRAFT_TENSORS) || name.starts_with(Plan::DRAFT_FILES);
        let has_draft = has_draft(manifest);
        let of = |content: Content| {
            let layers = manifest.layers.iter().filter(move |layer| Content::of(layer) == content);
            layers.filter(move |layer| !(has_draft && is_draft(&layer_name(layer))))
        };
        let mut seen = BTreeSet::new();
        // Tensors count once, however often their layer is named.
        let weights: Vec<&Descriptor> = of(Content::Tensors).filter(|layer| seen.insert(layer.digest)).collect();
        let files: Vec<&Descriptor> = of(Content::File).filter(|layer| layer.layer_name().is_some()).collect();
        if weights.is_empty() {
            return Err(Error::input(format!("`{self}` has no layers with tensors"))
                .hint("name a model that was made of safetensors"));
        }
        let used: Vec<&Descriptor> = weights.iter().chain(&files).copied().collect();
        let damaged = |layer: &Descriptor, damage: Damage| {
            let message = format!("The layer {} of `{self}` {damage}", quoted(&layer_name(layer)));
            Error::new(ErrorKind::Corrupt, message).hint("pull the model again: only what is damaged is fetched")
        };
        for layer in &used {
            match path(&layer.digest).metadata() {
                Ok(metadata) if metadata.len() == layer.size => {}
                Ok(metadata) => return Err(damaged(layer, Damage::Size { actual: metadata.len() })),
                Err(cause) => return Err(damaged(layer, Damage::Missing).caused_by(cause)),
            }
        }
        let verify = || {
            let bytes = used.iter().map(|layer| layer.size).fold(0, u64::saturating_add);
            progress.report(Event::Started { task: "check", blobs: used.len() as u64, bytes });
            parallel::each(&used, threads, |layer| check(layer)?.map_err(|damage| damaged(layer, damage))).map(drop)
        };
        let named = |layers: &[&Descriptor]| -> Vec<NamedFile> {
            let file = |layer: &&Descriptor| NamedFile { name: layer_name(layer), path: path(&layer.digest) };
            layers.iter().map(file).collect()
        };
        Checkpoint::assemble(&named(&weights), &named(&files), verify)
    }
}

/// Whether a model has a draft beside it.
pub(super) fn has_draft(manifest: &Manifest) -> bool {
    let config = format!("{}config.json", Plan::DRAFT_FILES);
    manifest.layers.iter().any(|layer| layer_name(layer) == config)
}

/// As it is written on the command line, pinned to its digest where it has one.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(root) => write!(f, "{}", root.display()),
            Self::Registry(name) => write!(f, "{MODEL}{name}"),
            Self::Model { name, manifest, .. } => {
                let full = name.to_string();
                write!(f, "{MODEL}{}@{}", full.split('@').next().unwrap_or_default(), manifest.digest)
            }
            Self::Ollama { name, digest, .. } => write!(f, "{OLLAMA}{name}@{digest}"),
        }
    }
}

impl From<PathBuf> for Source {
    fn from(root: PathBuf) -> Self {
        Self::Directory(root)
    }
}

impl Places {
    /// The model of the store.
    fn model(&self, name: &Reference) -> Result<Option<Source>> {
        let Some(store) = &self.store else { return Ok(None) };
        let found = store.find(name)?;
        Ok(found.map(|manifest| Source::Model { store: store.clone(), name: name.clone(), manifest }))
    }

    /// The snapshot of `org/name[@revision]` in the Hugging Face cache.
    fn snapshot(&self, name: &str) -> Result<Option<Source>> {
        let Some(cache) = &self.hub else { return Ok(None) };
        let (repository, revision) = split_revision(name);
        Ok(source::hub_snapshot(cache, repository, revision)?.map(Source::Directory))
    }

    fn not_cached(&self, name: &str) -> Error {
        let repository = quoted(split_revision(name).0);
        let message = match &self.hub {
            Some(cache) => format!("The Hugging Face cache `{}` has no entry {repository}", cache.display()),
            None => format!("There is no Hugging Face cache to look for {repository} in"),
        };
        Error::new(ErrorKind::NotFound, message).hint(download(name))
    }

    fn ollama(&self, name: &str) -> Result<Source> {
        let (name, pinned) = match name.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>()?)),
            None => (name, None),
        };
        let name: ollama::Name = name.parse()?;
        let root = self.ollama.clone().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "No directory is known for Ollama's models")
                .hint("name it with `OLLAMA_MODELS`")
        })?;
        let (_, digest) = name.manifest(&root)?;
        match pinned {
            Some(pinned) if pinned != digest => {
                Err(Error::new(ErrorKind::NotFound, format!("`{name}` is now `{digest}`, no longer `{pinned}`")))
            }
            _ => Ok(Source::Ollama { root, name, digest }),
        }
    }
}

/// How a model of the hub gets into the cache.
fn download(name: &str) -> String {
    let (repository, revision) = split_revision(name);
    let revision = revision.map(|revision| format!(" --revision {revision}")).unwrap_or_default();
    format!("`hf download {repository}{revision}` puts it there; kiln downloads from registries only")
}

/// Splits `org/name@revision`.
fn split_revision(name: &str) -> (&str, Option<&str>) {
    name.split_once('@').map_or((name, None), |(repository, revision)| (repository, Some(revision)))
}

/// Whether the file at `path` is what `blob` promises.
fn hash(path: &Path, blob: &Descriptor, progress: &Progress) -> Result<Result<(), Damage>> {
    let (mut hasher, mut size) = (Hasher::default(), 0);
    source::each_chunk(path, |chunk| {
        hasher.update(chunk);
        size += chunk.len() as u64;
        progress.advance(chunk.len() as u64);
    })?;
    Ok(match hasher.finish() {
        _ if size != blob.size => Err(Damage::Size { actual: size }),
        actual if actual != blob.digest => Err(Damage::Digest { actual }),
        _ => Ok(()),
    })
}
