//! Creating a model: checkpoint, plan, blobs, store, manifest.

use std::io::Write;

use serde_json::json;

use super::parallel;
pub use super::republish::Republished;
use super::source::Source;

use crate::arch::OLDEST_RUNTIME;
use crate::blobs::{self, Layout, SourceHashes};
use crate::error::{Error, ErrorKind, Result};
use crate::inventory::Inventory;
use crate::manifest::{
    Content, Dialect, EPOCH, Lock, LockedPacked, LockedSource, LockedTensor, ModelConfig, SCHEMA_VERSION, paths,
};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use crate::plan::{Decode, Plan, PlannedBlob, PlannedTensor, Policy, Profile, Request};
use crate::progress::{Event, Progress};
use crate::quant::NUMERICS;
use crate::source::Checkpoint;
use crate::store::{Import, Store};

/// What to create, from what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The name in the store.
    pub name: Reference,
    /// What it is created from.
    pub source: Source,
    /// What to do with it.
    pub request: Request,
    /// How the manifest is spelled.
    pub dialect: Dialect,
    /// How many blobs are hashed and written at once.
    pub threads: usize,
}

/// What was created.
#[derive(Clone, Debug)]
pub struct Created {
    /// The manifest's digest.
    pub digest: Digest,
    /// How many layers the manifest names.
    pub layers: u64,
    /// The bytes of all layers and the config.
    pub bytes: u64,
    /// How many of those bytes the store did not have yet.
    pub bytes_written: u64,
    /// What became of the layers, when it was created from a published model.
    pub republished: Option<Republished>,
}

/// A plan for `--dry-run`, with the sizes that execution would give.
#[derive(Clone, Debug)]
pub struct Preview {
    /// The plan.
    pub plan: Plan,
    /// The size of each of its blobs, in bytes.
    pub sizes: Vec<u64>,
}

/// Plans without writing.
///
/// # Errors
/// As [`prepare`].
pub fn preview(source: &Source, request: Request, threads: usize, progress: &Progress) -> Result<Preview> {
    let Prepared { plan, .. } = prepare(source, request, threads, progress)?;
    let sizes = plan.blobs.iter().map(|blob| Layout::of(blob).size).collect();
    Ok(Preview { plan, sizes })
}

/// A source and its plan: all that can be refused before a weight is read has been.
#[derive(Debug)]
pub struct Prepared {
    pub(super) checkpoint: Checkpoint,
    pub(super) plan: Plan,
    source: Source,
    /// What the source is published as, if it is.
    published: Option<Manifest>,
}

/// Opens a source and plans it.
///
/// # Errors
/// As [`Source::open`]; [`crate::ErrorKind::Input`] for a checkpoint that cannot be imported.
pub fn prepare(source: &Source, request: Request, threads: usize, progress: &Progress) -> Result<Prepared> {
    let is_whole = request.profile == Profile::Hf;
    let (checkpoint, published) = source.open(is_whole, threads, progress)?;
    let plan = Plan::new(&Inventory::of(&checkpoint)?, request)?;
    if is_whole {
        // What could not be laid out again is not taken in.
        paths(plan.sidecars.iter().map(|sidecar| sidecar.name.as_str()))?;
    }
    Ok(Prepared { checkpoint, plan, source: source.clone(), published })
}

/// The dialect that a profile's models are spelled in when nothing else is asked for.
pub fn dialect_of(profile: Profile) -> Dialect {
    match profile {
        Profile::Ollama => Dialect::Ollama,
        Profile::Mlx | Profile::Hf => Dialect::ModelPack,
    }
}

/// Creates a model in `store`. Either everything is there afterwards, or nothing changed.
///
/// # Errors
/// As [`prepare`]; [`crate::ErrorKind::Store`] when the store cannot take the result.
pub fn create(store: &Store, options: &Options, progress: &Progress) -> Result<Created> {
    prepare(&options.source, options.request.clone(), options.threads, progress)?.create(store, options, progress)
}

impl Prepared {
    /// Creates the model in `store`; of `options`, what was prepared is not looked at again.
    ///
    /// # Errors
    /// As [`create`].
    pub fn create(&self, store: &Store, options: &Options, progress: &Progress) -> Result<Created> {
        let Self { checkpoint, plan, source, published } = self;
        let profile = plan.request.profile;
        if [(Profile::Hf, Dialect::Ollama), (Profile::Ollama, Dialect::Docker)].contains(&(profile, options.dialect)) {
            let dialect = options.dialect.name();
            let message = format!("Nothing that reads the dialect `{dialect}` loads a model of profile `{profile}`");
            return Err(Error::new(ErrorKind::Usage, message).hint("leave `--dialect` out, or name another profile"));
        }
        plan.notes.iter().for_each(|note| progress.note(note));
        let import = store.begin_import()?;
        let built = build(checkpoint, plan, options.dialect, options.threads, &import, progress)?;
        let report = import.commit(&options.name, &built.manifest)?;
        store.set_note(&built.manifest.digest, &provenance(source, checkpoint))?;
        Ok(Created {
            digest: built.manifest.digest,
            layers: built.layers.len() as u64,
            bytes: built.bytes,
            bytes_written: report.bytes_written,
            republished: published
                .as_ref()
                .map(|published| Republished::new(source.to_string(), &published.layers, &built.layers, self)),
        })
    }
}

/// What the store remembers about this run: where the source lay. Never part of a digest.
fn provenance(source: &Source, checkpoint: &Checkpoint) -> serde_json::Value {
    let source = match source {
        // The snapshot, when it is an entry of a cache: what is downloaded later is another one.
        Source::Directory(_) => {
            json!(std::path::absolute(checkpoint.root()).unwrap_or_else(|_| checkpoint.root().to_owned()))
        }
        other => json!(other.to_string()),
    };
    json!({ "kiln": env!("CARGO_PKG_VERSION"), "source": source })
}

/// A model that is staged, but not named yet.
pub(super) struct Built {
    pub(super) manifest: Descriptor,
    layers: Vec<Descriptor>,
    bytes: u64,
}

/// Executes a plan into `import`.
pub(super) fn build(
    checkpoint: &Checkpoint,
    plan: &Plan,
    dialect: Dialect,
    threads: usize,
    import: &Import<'_>,
    progress: &Progress,
) -> Result<Built> {
    let tensors = plan.blobs.iter().flat_map(|blob| &blob.tensors).map(PlannedTensor::source_bytes);
    let files = plan.sidecars.iter().map(|sidecar| sidecar.size);
    progress.report(Event::Started {
        task: "create",
        blobs: (plan.blobs.len() + plan.sidecars.len()) as u64,
        bytes: tensors.chain(files).sum(),
    });
    let written = write_blobs(checkpoint, plan, threads, import, progress)?;
    let mut layers = Vec::new();
    let mut locked = Vec::new();
    for (blob, (descriptor, hashes)) in plan.blobs.iter().zip(written) {
        layers.push(dialect.layer(Content::Tensors, &blob.name, descriptor));
        locked.extend(blob.tensors.iter().zip(hashes).map(|(tensor, hashes)| lock_tensor(&blob.name, tensor, &hashes)));
    }
    layers.extend(parallel::each(&plan.sidecars, threads, |file| {
        let (descriptor, ()) = staged(&file.name, import, progress, |sink| match &file.made {
            Some(bytes) => sink
                .write_all(bytes)
                .map_err(|cause| Error::new(ErrorKind::Store, "Could not write to the store").caused_by(cause)),
            None => checkpoint.copy_sidecar(&file.name, sink, progress),
        })?;
        Ok(dialect.layer(Content::of_file(&file.name), &file.name, descriptor))
    })?);
    checkpoint.check_unchanged()?;
    let lock = import.stage_bytes(MediaType::KILN_LOCK, &lock(plan, locked).to_bytes())?;
    layers.push(dialect.layer(Content::Lock, Lock::NAME, lock));
    let (media_type, config) = dialect.config(&model_config(plan), &layers);
    let config = import.stage_bytes(media_type, &config)?;
    let bytes = config.size + layers.iter().map(|layer| layer.size).sum::<u64>();
    let (media_type, manifest) = dialect.manifest(config, layers.clone());
    if manifest.len() as u64 > crate::oci::MAX_MANIFEST_SIZE {
        let count = layers.len();
        return Err(Error::input(format!("The manifest would name {count} layers, more than fit in 4 MiB")));
    }
    Ok(Built { manifest: import.stage_bytes(media_type, &manifest)?, layers, bytes })
}

/// Writes every blob on `threads` threads, the largest first, so that none is left to a single thread at
/// the end. The result is in the plan's order and does not depend on the number of threads.
fn write_blobs(
    checkpoint: &Checkpoint,
    plan: &Plan,
    threads: usize,
    import: &Import<'_>,
    progress: &Progress,
) -> Result<Vec<(Descriptor, Vec<SourceHashes>)>> {
    let mut largest_first: Vec<(usize, &PlannedBlob)> = plan.blobs.iter().enumerate().collect();
    largest_first
        .sort_by_key(|(_, blob)| std::cmp::Reverse(blob.tensors.iter().map(PlannedTensor::source_bytes).sum::<u64>()));
    let mut written = parallel::each(&largest_first, threads, |(index, blob)| {
        let (descriptor, hashes) =
            staged(&blob.name, import, progress, |sink| blobs::write(blob, checkpoint, sink, progress))?;
        Ok((*index, descriptor, hashes))
    })?;
    written.sort_unstable_by_key(|(index, ..)| *index);
    Ok(written.into_iter().map(|(_, descriptor, hashes)| (descriptor, hashes)).collect())
}

/// Stages the content of the layer `name`, which its dialect gives a media type later.
fn staged<T>(
    name: &str,
    import: &Import<'_>,
    progress: &Progress,
    write: impl FnOnce(&mut dyn Write) -> Result<T>,
) -> Result<(Descriptor, T)> {
    let (descriptor, written) = import.stage(MediaType::KILN_FILE, write)?;
    let Descriptor { digest, size, .. } = descriptor;
    progress.report(Event::Blob { name: name.to_owned(), digest, size, outcome: "written" });
    Ok((descriptor, written))
}

fn lock_tensor(layer: &str, tensor: &PlannedTensor, hashes: &SourceHashes) -> LockedTensor {
    let sources = tensor.sources.iter().enumerate().map(|(index, source)| LockedSource {
        blake3: hashes.get(index).map(|hash| hash.to_hex().to_string()),
        dtype: source.dtype.to_string(),
        name: source.name.clone(),
        shape: source.shape.clone(),
    });
    LockedTensor {
        decode: tensor.decode().map(Decode::name),
        dtype: tensor.dtype.to_string(),
        layer: layer.to_owned(),
        name: tensor.name.clone(),
        packed: tensor
            .packed
            .as_ref()
            .map(|packed| LockedPacked { global_scale: packed.global.as_ref().map(|(shape, _)| shape.clone()) }),
        scheme: tensor.scheme.map(|scheme| scheme.to_string()),
        shape: tensor.shape.clone(),
        sources: sources.collect(),
        steps: tensor.steps.iter().map(|step| step.name().to_owned()).collect(),
        transform: tensor.transform.name().to_owned(),
    }
}

fn lock(plan: &Plan, tensors: Vec<LockedTensor>) -> Lock {
    Lock {
        epoch: EPOCH,
        kind: plan.kind.to_string(),
        normalizations: plan.normalizations.iter().map(|transform| transform.name().to_owned()).collect(),
        numerics: NUMERICS.to_owned(),
        policy: (plan.request.policy != Policy::Family).then(|| Lock::RECIPE.to_owned()),
        profile: plan.request.profile.to_string(),
        schema_version: SCHEMA_VERSION,
        scheme: plan.request.scheme.map(|scheme| scheme.to_string()),
        tensors,
    }
}

fn model_config(plan: &Plan) -> ModelConfig {
    ModelConfig {
        model_format: "safetensors".to_owned(),
        file_type: plan.base.map(|scheme| scheme.to_string()).unwrap_or_default(),
        renderer: plan.runtime.renderer.map(str::to_owned),
        parser: plan.runtime.parser.map(str::to_owned),
        requires: Some(plan.family.requires.unwrap_or(OLDEST_RUNTIME).to_owned()),
        capabilities: plan.runtime.capabilities.iter().map(|&capability| capability.to_owned()).collect(),
        ..ModelConfig::default()
    }
}
