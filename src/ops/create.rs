//! Creating a model: checkpoint, plan, blobs, store, manifest.

use std::io::Write;

use super::additions::{lock_draft, lock_modelfile};
use super::parallel;
use super::provenance::Run;
pub use super::republish::Republished;
use super::source::Source;

use crate::blobs::{self, Layout, SourceHashes};
use crate::error::{Error, ErrorKind, Result};
use crate::inventory::Inventory;
use crate::manifest::{
    Content, Dialect, EPOCH, Lock, LockedPacked, LockedSource, LockedTensor, ModelConfig, Modelfile, SCHEMA_VERSION,
    layer_name, paths,
};
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Reference};
use crate::plan::{Decode, Plan, PlannedBlob, PlannedFile, PlannedTensor, Policy, Profile, Request};
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
    /// The same of a draft.
    pub draft: Option<Box<Preview>>,
    /// What a Modelfile sets: the names of layers and their sizes, in bytes.
    pub settings: Vec<(&'static str, u64)>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// Plans without writing.
///
/// # Errors
/// As [`prepare`].
pub fn preview(source: &Source, request: Request, threads: usize, progress: &Progress) -> Result<Preview> {
    Ok(prepare(source, request, threads, progress)?.preview())
}

/// A source and its plan: all that can be refused before a weight is read has been.
#[derive(Debug)]
pub struct Prepared {
    pub(super) model: Part,
    pub(super) draft: Option<Part>,
    pub(super) modelfile: Modelfile,
    pub(super) source: Source,
    /// What the source is published as, if it is.
    pub(super) published: Option<Manifest>,
}

/// One of the checkpoints that become a model.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) checkpoint: Checkpoint,
    pub(super) plan: Plan,
}

impl Part {
    /// Its blobs, each with the checkpoint that it is made of.
    pub(super) fn blobs(&self) -> impl Iterator<Item = (&Checkpoint, &PlannedBlob)> {
        self.plan.blobs.iter().map(|blob| (&self.checkpoint, blob))
    }
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
    // Only Ollama reads what a Modelfile set.
    let published_for = published.iter().filter(|_| plan.request.profile == Profile::Ollama);
    let layers = published_for.map(|manifest| source.settings(manifest)).collect::<Result<Vec<_>>>()?;
    let modelfile = Modelfile { layers: layers.concat(), ..Modelfile::default() };
    Ok(Prepared { model: Part { checkpoint, plan }, draft: None, modelfile, source: source.clone(), published })
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
    /// What would be written.
    pub fn preview(self) -> Preview {
        let notes = self.notes();
        let preview = |part: Part| Preview {
            sizes: part.plan.blobs.iter().map(|blob| Layout::of(blob).size).collect(),
            plan: part.plan,
            draft: None,
            settings: Vec::new(),
            notes: Vec::new(),
        };
        let settings = self.modelfile.layers.iter().map(|(setting, bytes)| (setting.name(), bytes.len() as u64));
        Preview {
            draft: self.draft.map(|draft| Box::new(preview(draft))),
            settings: settings.collect(),
            notes,
            ..preview(self.model)
        }
    }

    /// The model, and its draft.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Part> {
        [&self.model].into_iter().chain(&self.draft)
    }

    /// Creates the model in `store`; of `options`, what was prepared is not looked at again.
    ///
    /// # Errors
    /// As [`create`].
    pub fn create(&self, store: &Store, options: &Options, progress: &Progress) -> Result<Created> {
        let profile = self.model.plan.request.profile;
        if [(Profile::Hf, Dialect::Ollama), (Profile::Ollama, Dialect::Docker)].contains(&(profile, options.dialect)) {
            let dialect = options.dialect.name();
            let message = format!("Nothing that reads the dialect `{dialect}` loads a model of profile `{profile}`");
            return Err(Error::new(ErrorKind::Usage, message).hint("leave `--dialect` out, or name another profile"));
        }
        self.notes().iter().for_each(|note| progress.note(note));
        let run = Run::begin();
        let import = store.begin_import()?.after(earlier(store, &options.name));
        let planned = self.parts().map(|part| &part.plan);
        store.require_space(planned.flat_map(|plan| {
            let blobs = plan.blobs.iter().map(|blob| Layout::of(blob).size);
            blobs.chain(plan.sidecars.iter().map(|file| file.size))
        }))?;
        let built = build(self, options.dialect, options.threads, &import, progress)?;
        // Before the name: what has one is complete, and gc takes a note whose manifest never came.
        run.note(self).write(store, &built.manifest.digest)?;
        let report = import.commit(&options.name, &built.manifest)?;
        Ok(Created {
            digest: built.manifest.digest,
            layers: built.layers.len() as u64,
            bytes: built.bytes,
            bytes_written: report.bytes_written,
            republished: self
                .published
                .as_ref()
                .map(|published| Republished::new(self.source.to_string(), &published.layers, &built.layers, self)),
        })
    }
}

/// The layers of the model that has this name now, which this creation may be a repetition of.
fn earlier(store: &Store, name: &Reference) -> impl Iterator<Item = (String, Descriptor)> {
    let manifest = store.find(name).ok().flatten().and_then(|target| store.manifest(&target).ok());
    manifest.into_iter().flat_map(|(manifest, _)| manifest.layers).map(|layer| (layer_name(&layer), layer))
}

/// A model that is staged, but not named yet.
pub(super) struct Built {
    pub(super) manifest: Descriptor,
    layers: Vec<Descriptor>,
    bytes: u64,
}

/// Executes the plans into `import`.
pub(super) fn build(
    prepared: &Prepared,
    dialect: Dialect,
    threads: usize,
    import: &Import<'_>,
    progress: &Progress,
) -> Result<Built> {
    let plans = || prepared.parts().map(|part| &part.plan);
    let blobs = || plans().flat_map(|plan| &plan.blobs);
    let files = || plans().flat_map(|plan| &plan.sidecars);
    let tensors = blobs().flat_map(|blob| &blob.tensors).map(PlannedTensor::source_bytes);
    progress.report(Event::Started {
        task: "create",
        blobs: (blobs().count() + files().count()) as u64,
        bytes: tensors.chain(files().map(|file| file.size)).sum(),
    });
    let mut layers = Vec::new();
    let mut locked = Vec::new();
    for part in prepared.parts() {
        let Part { checkpoint, plan } = part;
        let all: Vec<&PlannedBlob> = plan.blobs.iter().collect();
        let written = write_blobs(checkpoint, &all, threads, import, progress)?;
        for (blob, (descriptor, hashes)) in plan.blobs.iter().zip(written) {
            layers.push(dialect.layer(Content::Tensors, &blob.name, descriptor));
            let tensors = blob.tensors.iter().zip(hashes);
            locked.extend(tensors.map(|(tensor, hashes)| lock_tensor(&blob.name, tensor, &hashes)));
        }
        layers.extend(parallel::each(&plan.sidecars, threads, |file| {
            let name = plan.file_name(file);
            let descriptor = part.write_file(file, import, progress)?;
            Ok(dialect.layer(Content::of_file(&name), &name, descriptor))
        })?);
        checkpoint.check_unchanged()?;
    }
    for (setting, bytes) in &prepared.modelfile.layers {
        let descriptor = import.stage_bytes(MediaType::KILN_FILE, bytes)?;
        layers.push(dialect.layer(Content::Setting(*setting), setting.name(), descriptor));
    }
    let lock = import.stage_bytes(MediaType::KILN_LOCK, &lock(prepared, locked).to_bytes())?;
    layers.push(dialect.layer(Content::Lock, Lock::NAME, lock));
    let config = build_config(prepared, dialect, &layers, import)?;
    let bytes = config.size + layers.iter().map(|layer| layer.size).sum::<u64>();
    let (media_type, manifest) = dialect.manifest(config, layers.clone());
    if manifest.len() as u64 > crate::oci::MAX_MANIFEST_SIZE {
        let count = layers.len();
        return Err(Error::input(format!("The manifest would name {count} layers, more than fit in 4 MiB")));
    }
    Ok(Built { manifest: import.stage_bytes(media_type, &manifest)?, layers, bytes })
}

/// Stages the layers of these names that come from the source, and nothing else.
pub(super) fn build_layers(
    prepared: &Prepared,
    names: &[String],
    threads: usize,
    import: &Import<'_>,
    progress: &Progress,
) -> Result<()> {
    for part in prepared.parts() {
        let Part { checkpoint, plan } = part;
        let blobs: Vec<_> = plan.blobs.iter().filter(|blob| names.contains(&blob.name)).collect();
        write_blobs(checkpoint, &blobs, threads, import, progress)?;
        for file in plan.sidecars.iter().filter(|file| names.contains(&plan.file_name(file))) {
            part.write_file(file, import, progress)?;
        }
        checkpoint.check_unchanged()?;
    }
    Ok(())
}

/// Stages the config of the model with these layers.
pub(super) fn build_config(
    prepared: &Prepared,
    dialect: Dialect,
    layers: &[Descriptor],
    import: &Import<'_>,
) -> Result<Descriptor> {
    let (media_type, config) = dialect.config(&model_config(prepared), layers);
    import.stage_bytes(media_type, &config)
}

impl Part {
    /// Stages a file beside the weights.
    fn write_file(&self, file: &PlannedFile, import: &Import<'_>, progress: &Progress) -> Result<Descriptor> {
        let (descriptor, ()) = staged(&self.plan.file_name(file), import, progress, |sink| match &file.made {
            Some(bytes) => sink
                .write_all(bytes)
                .map_err(|cause| Error::new(ErrorKind::Store, "Could not write to the store").caused_by(cause)),
            None => self.checkpoint.copy_sidecar(&file.name, sink, progress),
        })?;
        Ok(descriptor)
    }
}

/// Writes `blobs` on `threads` threads, the largest first, so that none is left to a single thread at
/// the end. The result is in their order and does not depend on the number of threads.
fn write_blobs(
    checkpoint: &Checkpoint,
    blobs: &[&PlannedBlob],
    threads: usize,
    import: &Import<'_>,
    progress: &Progress,
) -> Result<Vec<(Descriptor, Vec<SourceHashes>)>> {
    let mut largest_first: Vec<(usize, &PlannedBlob)> = blobs.iter().copied().enumerate().collect();
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
    // A dialect may have the ending in the name or not.
    let stem = name.strip_suffix(".safetensors").unwrap_or(name);
    let (descriptor, written) = import.stage_layer(stem, MediaType::KILN_FILE, write)?;
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

fn lock(prepared: &Prepared, tensors: Vec<LockedTensor>) -> Lock {
    let plan = &prepared.model.plan;
    Lock {
        draft: prepared.draft.as_ref().map(|draft| lock_draft(&draft.plan)),
        epoch: EPOCH,
        kind: plan.kind.to_string(),
        modelfile: lock_modelfile(&prepared.modelfile),
        normalizations: plan.normalizations.iter().map(|transform| transform.name().to_owned()).collect(),
        numerics: NUMERICS.to_owned(),
        policy: (plan.request.policy != Policy::Family).then(|| Lock::RECIPE.to_owned()),
        profile: plan.request.profile.to_string(),
        schema_version: SCHEMA_VERSION,
        scheme: plan.request.scheme.map(|scheme| scheme.to_string()),
        tensors,
    }
}

fn model_config(prepared: &Prepared) -> ModelConfig {
    let plan = &prepared.model.plan;
    ModelConfig {
        model_format: "safetensors".to_owned(),
        file_type: plan.base.map(|scheme| scheme.to_string()).unwrap_or_default(),
        renderer: plan.runtime.renderer.as_deref().map(str::to_owned),
        parser: plan.runtime.parser.as_deref().map(str::to_owned),
        requires: Some(prepared.requires().to_owned()),
        capabilities: plan.runtime.capabilities().into_iter().map(str::to_owned).collect(),
        draft: prepared.draft_config(),
        ..ModelConfig::default()
    }
}
