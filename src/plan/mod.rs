//! The plan: the full, ordered list of blobs to write and how. A pure function of the inventory, the
//! family and what the user asked; nothing downstream decides anything.

mod coding;
mod config;
mod draft;
mod files;
mod group;
mod layout;
mod mlx;
mod order;
mod policy;
mod profile;
mod readable;
mod recipe;
mod schemes;
mod segment;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

pub use layout::{Part, Role};
pub use policy::Policy;
pub use profile::Profile;
use readable::{Named, Readable, readable};
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
        self.scheme.is_some() || matches!(self.policy, Policy::Recipe(_) | Policy::Resolved(_))
    }
}

/// Everything that will be written, in order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What was asked.
    pub request: Request,
    /// The scheme of the whole: the request's, else the one that all quantized tensors have.
    pub base: Option<Scheme>,
    /// How the source keeps its weights.
    pub kind: SourceKind,
    /// The family whose rules were used.
    pub family: &'static Family,
    /// What the config says.
    pub facts: ModelFacts,
    /// What the runtime needs to know.
    pub runtime: Runtime,
    /// The lowest version of Ollama that loads it; `None` when none does yet.
    pub requires: Option<&'static str>,
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
    /// How its bytes become values; `None` takes them as they are.
    pub decode: Option<Decode>,
}

/// How codes become values, of the tensor's `dtype`. Where there is an index, it is that of another tensor in
/// [`PlannedTensor::sources`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decode {
    /// `F8_E4M3`: each code times the scale of its block.
    Fp8 {
        /// The scales, one for each block of every matrix.
        scales: usize,
        /// Rows of one matrix.
        rows: u64,
        /// Rows and columns of a block.
        block: [u64; 2],
    },
    /// The codes of a scheme.
    Scheme {
        /// The scheme.
        scheme: Scheme,
        /// One scale per group.
        scales: usize,
        /// One bias per group, in the affine schemes.
        biases: Option<usize>,
        /// What every scale is multiplied with: one for all, or one for each matrix.
        global: Option<usize>,
    },
    /// One divided by the stored 32-bit float.
    Reciprocal,
}

impl Decode {
    /// The word for it in the lock.
    pub fn name(self) -> String {
        match self {
            Self::Fp8 { block: [128, 128], .. } => SourceKind::BlockFp8.to_string(),
            Self::Fp8 { .. } => SourceKind::Fp8.to_string(),
            Self::Scheme { scheme, .. } => scheme.to_string(),
            Self::Reciprocal => "reciprocal".to_owned(),
        }
    }
}

impl SourceTensor {
    fn of((name, stored): Named<'_>) -> Self {
        Self { name: name.to_owned(), dtype: stored.dtype, shape: stored.shape.clone(), decode: None }
    }
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
    /// Plans a checkpoint. Weights in FP8 are decoded, and without a request become `mxfp8`, the scheme nearest to
    /// what they were; codes in a scheme of kiln's are kept where they can be.
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
        if let Some(sentence) = ModelFacts::miscount(&inventory.config) {
            return Err(Error::input(sentence).hint("check that `config.json` belongs to these weights"));
        }
        let facts = ModelFacts::of(&inventory.config);
        let family = Family::of(&facts);
        let model = (request.profile == Profile::Mlx).then(|| mlx::model(family, &facts)).transpose()?;
        let layout = model.and_then(|model| model.experts).or(family.experts);
        let readable = readable(inventory, layout)?;
        let groups = group::expert_groups(&readable, family, layout, &facts, request.profile)?;
        let grouped: BTreeSet<String> = groups.iter().flat_map(|placed| placed.tensor.source_names()).collect();
        let singles = readable.iter().filter(|(_, tensor)| !grouped.contains(tensor.stored.0));
        let singles = singles.map(|(name, tensor)| Placed::alone(PlannedTensor::copied(name, tensor, request.profile)));
        let mut placed: Vec<Placed> = singles.chain(groups).collect();
        if request.profile == Profile::Ollama {
            check_runtime(family, &placed)?;
        }
        check_agreement(family, &facts, &placed)?;
        let mut dropped = Vec::new();
        let mut config = None;
        match model {
            None => schemes::settle(&mut placed, inventory.kind, family, &facts, &request)?,
            Some(model) => {
                (placed, dropped) = mlx::arrange(model, placed, inventory, &facts)?;
                mlx::quantize(model, &mut placed, &request, family, &facts)?;
                config = Some(config::config(model, inventory, &request, &placed));
            }
        }
        let base = if request.quantizes() { request.scheme } else { schemes::shared(&placed) };
        let mut notes = notes(inventory, &request, family, &facts, &placed);
        notes.extend(left_out(&dropped));
        let normalizations = normalizations(&placed);
        let requires = match family.partly_quantized {
            Some(version) if !schemes::in_part(family, &placed).is_empty() => Some(version),
            _ => family.requires,
        };
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
            requires,
            normalizations,
            blobs,
            sidecars: order::sidecars(sidecars),
            notes,
            request,
            facts,
        })
    }
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
    family: &Family,
    facts: &ModelFacts,
    placed: &[Placed],
) -> Vec<String> {
    let mut notes = inventory.notes.clone();
    let is_ollama = request.profile == Profile::Ollama;
    if !inventory.activations.is_empty() {
        notes.push("Scales of activations are left out: they are none of the weights'".to_owned());
    }
    notes.extend(schemes::notes(placed, request));
    if let Policy::Recipe(recipe) = &request.policy {
        let reasons: Vec<&str> = placed.iter().map(|placed| &*placed.tensor.why).collect();
        notes.extend(recipe.idle(&reasons).into_iter().map(|rule| format!("Nothing is decided by {rule}")));
    }
    if family.is_generic() {
        let class = facts.architecture.as_deref().unwrap_or("unknown");
        notes.push(format!("{} has no rules of its own: the generic policy is used", quoted(class)));
    }
    let has = |fragment: &str| inventory.tensors.keys().any(|name| name.contains(fragment));
    if is_ollama && facts.vision && !has("vision") && !has("visual") {
        notes.push("The config describes a vision tower that is not there: Ollama may refuse the model".into());
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
        let shape = tensor.shape.clone();
        Self::of_rows((name.to_owned(), profile), shape, &[tensor], &[tensor.all_rows()], Transform::Copy)
    }

    /// Takes the values that its codes stand for in place of the codes.
    fn decode_codes(&mut self) {
        let Some((scheme, packed)) = self.scheme.zip(self.packed.take()) else { return };
        let kinds = 2 + usize::from(scheme.has_biases()) + usize::from(packed.global.is_some());
        let weights = self.sources.len() / kinds;
        for index in 0..weights {
            let part = |kind: usize| index + kind * weights;
            self.sources[index].decode = Some(Decode::Scheme {
                scheme,
                scales: part(1),
                biases: scheme.has_biases().then(|| part(2)),
                global: packed.global.as_ref().map(|_| part(kinds - 1)),
            });
        }
        let value = self.dtype.bytes();
        // Rows are whole groups, so that this divides.
        let widen = |bytes: &mut u64| *bytes = *bytes / u64::from(scheme.bits()) * 8 * value;
        for segment in &mut self.segments {
            [&mut segment.offset, &mut segment.run].into_iter().for_each(widen);
            segment.loops.iter_mut().for_each(|turn| widen(&mut turn.step));
        }
        self.scheme = None;
    }

    /// How codes of its sources are decoded.
    pub fn decode(&self) -> Option<Decode> {
        self.sources.iter().find_map(|source| source.decode)
    }

    /// Whether its values are decoded from codes.
    pub fn is_decoded(&self) -> bool {
        self.decode().is_some_and(|decode| decode != Decode::Reciprocal)
    }

    /// Whether its bytes are others than those of its sources.
    pub fn is_transformed(&self) -> bool {
        self.scheme.is_some() && self.packed.is_none() || self.decode().is_some() || !self.steps.is_empty()
    }

    fn source_names(&self) -> impl Iterator<Item = String> {
        self.sources.iter().map(|source| source.name.clone())
    }

    /// How many bytes of weights are read for it.
    pub fn source_bytes(&self) -> u64 {
        let value = self.read_as().map_or(1, Float::size) as u64;
        let stored = |segment: &Segment| match self.sources[segment.source].decode {
            None | Some(Decode::Reciprocal) => segment.bytes(),
            Some(Decode::Fp8 { .. }) => segment.bytes() / value,
            Some(Decode::Scheme { scheme, .. }) => segment.bytes() / value * u64::from(scheme.bits()) / 8,
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
        match first.decode {
            None => float(first.dtype),
            Some(Decode::Scheme { scheme, scales, .. }) if scheme.has_biases() => float(self.sources[scales].dtype),
            Some(_) => Some(Float::Bf16),
        }
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

fn check_runtime(family: &Family, placed: &[Placed]) -> Result<()> {
    let shapes = placed.iter().map(|Placed { tensor, .. }| (tensor.name.as_str(), tensor.shape.as_slice()));
    match (family.misread)(&shapes.collect()) {
        Some(sentence) => Err(Error::input(sentence).hint("import the checkpoint that mlx-lm converted")),
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
                (format!("{prefix}quant_type"), quant_type(scheme)),
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

/// What Ollama calls a scheme. It looks for the group size beside the name.
fn quant_type(scheme: Scheme) -> String {
    match scheme {
        Scheme::Affine { bits: 4, .. } => Scheme::INT4.to_string(),
        Scheme::Affine { bits: 8, .. } => Scheme::INT8.to_string(),
        other => other.to_string(),
    }
}
