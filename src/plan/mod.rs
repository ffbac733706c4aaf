//! The plan: the full, ordered list of blobs to write and how. A pure function of the inventory, the
//! family and what the user asked; nothing downstream decides anything.

mod config;
mod files;
mod group;
mod layout;
mod mlx;
mod order;
mod policy;
mod profile;
mod readable;
mod recipe;
mod segment;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

pub use layout::{Part, Role};
pub use policy::Policy;
pub use profile::Profile;
use readable::{Readable, readable, sources};
pub use recipe::Recipe;
pub use segment::{Loop, Segment};

use crate::arch::{Family, ModelFacts, Runtime};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::inventory::{Dtype, Inventory, Sidecar, SourceKind};
use crate::quant::{Float, Scheme, Step};

/// What the user asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The runtime the layers are named for.
    pub profile: Profile,
    /// The scheme of `--quantize`, or the default of a recipe; `None` keeps the source's values.
    pub scheme: Option<Scheme>,
    /// Who gives each tensor its scheme.
    pub policy: Policy,
}

impl Request {
    /// What `--profile`, `--quantize` and `--recipe` ask for together.
    ///
    /// # Errors
    /// As [`Recipe::with_scheme`].
    pub fn new(profile: Profile, scheme: Option<Scheme>, recipe: Option<Recipe>) -> Result<Self> {
        let Some(recipe) = recipe.map(|recipe| recipe.with_scheme(scheme)).transpose()? else {
            return Ok(Self { profile, scheme, policy: Policy::Family });
        };
        let is_own = profile == Profile::Ollama && recipe.is_policy();
        let policy = if is_own { Policy::Family } else { Policy::Recipe(recipe.clone()) };
        Ok(Self { profile, scheme: recipe.scheme(), policy })
    }

    /// Whether anything is to be quantized.
    pub fn quantizes(&self) -> bool {
        self.scheme.is_some() || self.policy != Policy::Family
    }
}

/// Everything that will be written, in order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was asked.
    pub request: Request,
    /// The scheme the policy was asked with: the request's, or what suits the source.
    pub base: Option<Scheme>,
    /// How the source keeps its weights.
    pub kind: SourceKind,
    /// The family whose rules were used.
    pub family: &'static Family,
    /// What the config says.
    pub facts: ModelFacts,
    /// What the runtime needs to know.
    pub runtime: Runtime,
    /// The blobs with tensors, in manifest order.
    pub blobs: Vec<PlannedBlob>,
    /// The files beside the weights, in manifest order.
    pub sidecars: Vec<PlannedFile>,
    /// The normalizations that were applied, in order.
    pub normalizations: Vec<Transform>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A file beside the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its name, without any folder.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its bytes, when it is made; `None` for one of the checkpoint's, kept byte for byte.
    pub made: Option<Vec<u8>>,
}

impl PlannedFile {
    fn kept(sidecar: &Sidecar) -> Self {
        Self { name: sidecar.name.clone(), size: sidecar.size, made: None }
    }

    fn made(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: name.to_owned(), size: bytes.len() as u64, made: Some(bytes) }
    }
}

/// One blob: a safetensors file with one tensor or one expert group, in profile `mlx` with one layer or module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedBlob {
    /// The layer's name.
    pub name: String,
    /// Its tensors, by name.
    pub tensors: Vec<PlannedTensor>,
}

/// One output tensor and where its bytes come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedTensor {
    /// The output name.
    pub name: String,
    /// The profile that spells its parts.
    pub profile: Profile,
    /// The element type before quantization; for codes that come from the source, that of their scales where
    /// those are floats, else bfloat16.
    pub dtype: Dtype,
    /// The logical shape, before packing.
    pub shape: Vec<u64>,
    /// The source tensors, in the order in which their bytes are read; scales stand behind all weights.
    pub sources: Vec<SourceTensor>,
    /// The bytes whose concatenation is the tensor before quantization, or its codes when it is `packed`.
    pub segments: Vec<Segment>,
    /// Where the other parts of a tensor come from that the source has quantized already, with `scheme`.
    pub packed: Option<Packed>,
    /// How the ranges were arranged.
    pub transform: Transform,
    /// What is done to every value, in order, before it is quantized or kept.
    pub steps: Vec<Step>,
    /// The scheme; `None` keeps the values.
    pub scheme: Option<Scheme>,
    /// The rule that chose the scheme.
    pub why: Cow<'static, str>,
    /// Whether a NaN or an infinity is an error: for every weight of a model that is quantized, also for
    /// those that keep their values.
    pub finite: bool,
}

/// A source tensor, as the inventory knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTensor {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its stored element type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<u64>,
    /// For a block-fp8 weight, the index into [`PlannedTensor::sources`] of its scales: it is read as the
    /// bfloat16 values that codes and scales stand for.
    pub scales: Option<usize>,
}

/// The parts of a quantized tensor beside its codes, all copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// One scale per group.
    pub scales: Vec<Segment>,
    /// One bias per group; empty for a scheme without.
    pub biases: Vec<Segment>,
    /// What every scale is multiplied with: 32-bit floats of this shape, none for one of the whole tensor.
    pub global: Option<(Vec<u64>, Vec<Segment>)>,
}

/// How source bytes are arranged into an output tensor. None of these touches a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transform {
    /// One source, as it is.
    Copy,
    /// Experts one by one become one tensor `[experts, out, in]`, in numeric order.
    Stack,
    /// A fused gate-and-up tensor is divided by rows.
    Split,
    /// Gate and up rows become one tensor, gate first.
    Fuse,
}

impl Transform {
    /// The word for it in the lock.
    pub fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Stack => "stack",
            Self::Split => "split",
            Self::Fuse => "fuse",
        }
    }
}

impl Plan {
    /// Plans a checkpoint. Block-fp8 weights are decoded, and without a request become `mxfp8`, the scheme
    /// nearest to what they were.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] when the checkpoint is of a kind that cannot be imported, when an expert is
    /// missing or odd, or when config and tensors disagree. [`ErrorKind::Usage`] when profile `hf` is to quantize.
    pub fn new(inventory: &Inventory, request: Request) -> Result<Self> {
        if (request.profile == Profile::Hf) != (inventory.kind == SourceKind::Files) {
            let message = format!("The checkpoint was not opened for the profile `{}`", request.profile);
            return Err(Error::new(ErrorKind::Unexpected, message));
        }
        if request.profile == Profile::Hf {
            return files::plan(inventory, request);
        }
        if matches!(inventory.kind, SourceKind::Prequantized(_)) {
            return Err(Error::input(format!("Importing a checkpoint of kind `{}` is not supported", inventory.kind))
                .hint("import the float checkpoint it was made from"));
        }
        let facts = ModelFacts::of(&inventory.config);
        let family = Family::of(&facts);
        let model = (request.profile == Profile::Mlx).then(|| mlx::model(family, &facts)).transpose()?;
        let readable = readable(inventory);
        let layout = model.and_then(|model| model.experts).or(family.experts);
        let groups = group::expert_groups(&readable, family, layout, &facts, request.profile)?;
        let grouped: BTreeSet<String> = groups.iter().flat_map(|placed| placed.tensor.source_names()).collect();
        let singles = readable.iter().filter(|(name, _)| !grouped.contains(**name));
        let singles = singles.map(|(name, tensor)| Placed::alone(PlannedTensor::copied(name, tensor, request.profile)));
        let mut placed: Vec<Placed> = singles.chain(groups).collect();
        check_agreement(family, &facts, &placed)?;
        let default = (inventory.kind == SourceKind::BlockFp8 && model.is_none() && !request.quantizes())
            .then_some(Scheme::Mxfp8);
        let base = request.scheme.or(default);
        let mut dropped = Vec::new();
        let mut config = None;
        match model {
            None => quantize(&mut placed, default.is_some(), base, &request, family, &facts)?,
            Some(model) => {
                (placed, dropped) = mlx::arrange(model, placed, inventory, &facts)?;
                let modules = mlx::quantize(model, &mut placed, &request, family, &facts)?;
                config = Some(config::config(model, inventory, &request, &modules));
            }
        }
        let mut notes = notes(inventory, &request, base, family, &facts, &placed);
        notes.extend(left_out(&dropped));
        let normalizations = normalizations(&placed);
        let (blobs, sidecars) = match config {
            None => (order::blobs(placed)?, inventory.sidecars.iter().map(PlannedFile::kept).collect()),
            Some(config) => {
                let blobs = order::by_name(placed)?;
                let files = config::files(inventory, &config, &blobs);
                (blobs, files)
            }
        };
        Ok(Self {
            base,
            kind: inventory.kind,
            family,
            runtime: Runtime::of(&facts, inventory.template.as_deref()),
            normalizations,
            blobs,
            sidecars: order::sidecars(sidecars),
            notes,
            request,
            facts,
        })
    }
}

/// Gives every tensor its scheme: what was asked for, or in a source that is quantized already `base` for what is.
fn quantize(
    placed: &mut [Placed],
    by_default: bool,
    base: Option<Scheme>,
    request: &Request,
    family: &Family,
    facts: &ModelFacts,
) -> Result<()> {
    if !request.quantizes() && !by_default {
        return Ok(());
    }
    for Placed { tensor, .. } in placed {
        if by_default && !tensor.is_decoded() {
            tensor.why = "not quantized in the source".into();
            continue;
        }
        let choice = request.policy.choose(family, facts, base, tensor)?;
        (tensor.scheme, tensor.why) = (choice.scheme, choice.why);
        tensor.finite = tensor.name.ends_with(".weight");
    }
    Ok(())
}

/// What is said of tensors that a runtime does not load.
fn left_out(dropped: &[String]) -> Option<String> {
    let first = quoted(dropped.first()?);
    Some(match dropped.len() {
        1 => format!("The tensor {first} is left out: mlx-lm does not load it"),
        count => format!("{count} tensors are left out, {first} the first: mlx-lm does not load them"),
    })
}

/// What the user should know about this checkpoint.
fn notes(
    inventory: &Inventory,
    request: &Request,
    base: Option<Scheme>,
    family: &Family,
    facts: &ModelFacts,
    placed: &[Placed],
) -> Vec<String> {
    let mut notes = inventory.notes.clone();
    let schemes: BTreeSet<Scheme> = placed.iter().filter_map(|placed| placed.tensor.scheme).collect();
    if inventory.kind == SourceKind::BlockFp8 && !schemes.is_empty() {
        let scheme = base.map_or_else(|| "the recipe".to_owned(), |base| format!("`{base}`"));
        notes.push(format!("The weights are FP8 already: {scheme} is a second quantization"));
    }
    let is_ollama = request.profile == Profile::Ollama;
    let misread = |scheme: &&Scheme| scheme.has_biases() && ![Scheme::INT4, Scheme::INT8].contains(scheme);
    for scheme in schemes.iter().filter(|_| is_ollama).filter(misread) {
        notes.push(format!("Ollama has no scheme `{scheme}` and would misread it"));
    }
    if let Policy::Recipe(recipe) = &request.policy {
        let reasons: Vec<&str> = placed.iter().map(|placed| &*placed.tensor.why).collect();
        notes.extend(recipe.idle(&reasons).into_iter().map(|rule| format!("Nothing is decided by {rule}")));
    }
    if family.is_generic() {
        let class = facts.architecture.as_deref().unwrap_or("unknown");
        notes.push(format!("{} has no rules of its own: the generic policy is used", quoted(class)));
    }
    if is_ollama && facts.tied == Some(true) && inventory.tensors.keys().any(|name| name.ends_with("lm_head.weight")) {
        notes
            .push("The config ties the output head to the embedding, yet `lm_head.weight` is there: it is kept".into());
    }
    notes
}

fn normalizations(placed: &[Placed]) -> Vec<Transform> {
    let applied: BTreeSet<Transform> = placed.iter().map(|placed| placed.tensor.transform).collect();
    applied.into_iter().filter(|transform| *transform != Transform::Copy).collect()
}

/// A tensor and the name of the blob it goes to.
struct Placed {
    blob: String,
    tensor: PlannedTensor,
}

impl Placed {
    /// A tensor that has a blob of its own.
    fn alone(tensor: PlannedTensor) -> Self {
        Self { blob: tensor.name.clone(), tensor }
    }
}

impl PlannedTensor {
    fn copied(name: &str, tensor: &Readable<'_>, profile: Profile) -> Self {
        let length = tensor.dtype.bytes() * tensor.stored.shape.iter().product::<u64>();
        Self {
            name: name.to_owned(),
            profile,
            dtype: tensor.dtype,
            shape: tensor.stored.shape.clone(),
            sources: sources(&[(name, tensor)]),
            segments: vec![Segment::run(0, 0, length)],
            packed: None,
            transform: Transform::Copy,
            steps: Vec::new(),
            scheme: None,
            why: "no scheme was asked for".into(),
            finite: false,
        }
    }

    /// Whether its values are decoded from block-fp8.
    pub fn is_decoded(&self) -> bool {
        self.sources.iter().any(|source| source.scales.is_some())
    }

    /// Whether its bytes are others than those of its sources.
    pub fn is_transformed(&self) -> bool {
        self.scheme.is_some() && self.packed.is_none() || self.is_decoded() || !self.steps.is_empty()
    }

    fn source_names(&self) -> impl Iterator<Item = String> {
        self.sources.iter().map(|source| source.name.clone())
    }

    /// How many bytes of weights are read for it.
    pub fn source_bytes(&self) -> u64 {
        let stored = |segment: &Segment| {
            let source = &self.sources[segment.source];
            // Codes of one byte are decoded to values of two.
            segment.bytes() / if source.scales.is_some() { Dtype::Bf16.bytes() } else { 1 }
        };
        self.all_segments().map(stored).sum()
    }

    fn all_segments(&self) -> impl Iterator<Item = &Segment> {
        let packed = self.packed.iter();
        let others = packed.flat_map(|packed| {
            let global = packed.global.iter().flat_map(|(_, segments)| segments);
            packed.scales.iter().chain(&packed.biases).chain(global)
        });
        self.segments.iter().chain(others)
    }

    /// Its element type as the kernels know it; `None` for integers and the like.
    pub fn float(&self) -> Option<Float> {
        float(self.dtype)
    }

    /// The type of the values that are read for it, before its steps.
    pub fn read_as(&self) -> Option<Float> {
        let first = self.sources.first()?;
        if first.scales.is_some() { Some(Float::Bf16) } else { float(first.dtype) }
    }
}

fn float(dtype: Dtype) -> Option<Float> {
    match dtype {
        Dtype::Bf16 => Some(Float::Bf16),
        Dtype::F16 => Some(Float::F16),
        Dtype::F32 => Some(Float::F32),
        _ => None,
    }
}

fn dtype_of(float: Float) -> Dtype {
    match float {
        Float::Bf16 => Dtype::Bf16,
        Float::F16 => Dtype::F16,
        Float::F32 => Dtype::F32,
    }
}

fn check_agreement(family: &Family, facts: &ModelFacts, placed: &[Placed]) -> Result<()> {
    let shapes = placed.iter().map(|Placed { tensor, .. }| (tensor.name.as_str(), tensor.shape.as_slice()));
    if let Some(sentence) = family.contradictions(facts, shapes).into_iter().next() {
        return Err(Error::new(ErrorKind::Input, sentence).hint("check that `config.json` belongs to these weights"));
    }
    match family.missing(facts, placed.iter().map(|placed| &*placed.tensor.name)) {
        Some(name) => Err(Error::input(format!("There is no tensor {}", quoted(&name)))
            .hint(format!("check that all shards of this `{}` model are there", family.name))),
        None => Ok(()),
    }
}

impl PlannedBlob {
    /// The parts of all its tensors by name, which is also the order of their data; each with the index of its
    /// tensor.
    pub fn parts(&self) -> Vec<(usize, Part)> {
        let parts =
            |(index, tensor): (usize, &PlannedTensor)| tensor.parts().into_iter().map(move |part| (index, part));
        let mut parts: Vec<(usize, Part)> = self.tensors.iter().enumerate().flat_map(parts).collect();
        parts.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
        parts
    }

    /// `__metadata__`, by key: one scheme when all its quantized tensors agree, one per tensor otherwise. In
    /// profile `mlx` the word that mlx-lm writes; its config says what is quantized how.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        if self.tensors.iter().any(|tensor| tensor.profile == Profile::Mlx) {
            return [("format".to_owned(), "mlx".to_owned())].into();
        }
        let quantized = || self.tensors.iter().filter_map(|tensor| Some((tensor.name.as_str(), tensor.scheme?)));
        let entries = |prefix: String, scheme: Scheme| {
            [
                (format!("{prefix}quant_type"), scheme.to_string()),
                (format!("{prefix}group_size"), scheme.group_size().to_string()),
            ]
        };
        match self.uniform_scheme() {
            Some(scheme) => entries(String::new(), scheme).into(),
            None => quantized().flat_map(|(name, scheme)| entries(format!("{name}."), scheme)).collect(),
        }
    }

    /// The scheme of all quantized tensors, when there are any and they agree.
    pub fn uniform_scheme(&self) -> Option<Scheme> {
        let mut schemes = self.tensors.iter().filter_map(|tensor| tensor.scheme);
        let first = schemes.next()?;
        schemes.all(|scheme| scheme == first).then_some(first)
    }
}
