//! Profile `mlx`: what `mlx_lm.convert` makes of a checkpoint. Its names, its experts, its choice of matrices to
//! quantize, and the few changes of values that its models need.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Decode, Loop, Placed, PlannedTensor, Policy, Request, Segment, Transform, dtype_of};
use crate::arch::{Choice, Family, Mlx, ModelFacts};
use crate::error::{Error, Result, quoted};
use crate::inventory::Inventory;
use crate::quant::{Float, Scheme, Step};

/// The model that mlx-lm has for the checkpoint.
pub(super) fn model(family: &Family, facts: &ModelFacts) -> Result<&'static Mlx> {
    family.mlx(facts).ok_or_else(|| {
        let kind = facts.model_types.first().map_or("", String::as_str);
        Error::input(format!("mlx-lm has no model of type {} for the family `{}`", quoted(kind), family.name))
            .hint("leave `--profile` out")
    })
}

/// Tensors as mlx-lm has them, each in the file of its layer, and the names of those that it does not load.
pub(super) fn arrange(
    model: &Mlx,
    placed: Vec<Placed>,
    inventory: &Inventory,
    facts: &ModelFacts,
) -> Result<(Vec<Placed>, Vec<String>)> {
    let convolves = placed.iter().any(|placed| is_convolution(&placed.tensor));
    let dtype = dtype(&inventory.config);
    let head = format!("{}.weight", model.head.path);
    let renamed = |name: &str| (model.rename)(name, facts);
    let has_head = placed.iter().any(|placed| renamed(&placed.tensor.name).as_ref() == Some(&head));
    let is_tied = model.is_tied(facts, has_head);
    let mut arranged = Vec::new();
    let mut dropped = Vec::new();
    for Placed { mut tensor, .. } in placed {
        match renamed(&tensor.name).filter(|name| !(is_tied && *name == head)) {
            Some(name) => tensor.name = name,
            None => {
                dropped.push(tensor.name);
                continue;
            }
        }
        // mlx-lm has no place for a global scale.
        if tensor.packed.as_ref().is_some_and(|packed| packed.global.is_some()) {
            tensor.decode_codes();
        }
        if convolves && tensor.shape.len() == 1 && ends(&tensor.name, model.offset_norms) {
            tensor.steps.push(Step::AddOne);
        }
        if is_convolution(&tensor) {
            tensor.shape.swap(1, 2);
        }
        match tensor.name.strip_suffix(".kv_b_proj.weight").filter(|_| model.latent) {
            Some(attention) => arranged.extend(heads(attention, &tensor, facts)?),
            None => arranged.push(tensor),
        }
    }
    arranged.iter_mut().for_each(|tensor| cast(model, tensor, dtype));
    check_parameters(model, &arranged, facts)?;
    let placed = arranged.into_iter().map(|tensor| Placed { blob: file(model, &tensor.name), tensor }).collect();
    Ok((placed, dropped))
}

fn ends(name: &str, suffixes: &[&str]) -> bool {
    suffixes.iter().any(|suffix| name.ends_with(suffix))
}

/// Whether it is a convolution over time as PyTorch has it, `[channels, 1, kernel]`: mlx-lm has the kernel before
/// the one.
fn is_convolution(tensor: &PlannedTensor) -> bool {
    tensor.name.ends_with("conv1d.weight") && matches!(tensor.shape[..], [_, 1, kernel] if kernel != 1)
}

/// The type that floats are cast to: what the config calls `torch_dtype`, or that of its language model `dtype`.
fn dtype(config: &Value) -> Option<Float> {
    let text = &config["text_config"]["dtype"];
    match Some(&config["torch_dtype"]).filter(|value| !value.is_null()).unwrap_or(text).as_str()? {
        "bfloat16" => Some(Float::Bf16),
        "float16" => Some(Float::F16),
        "float32" => Some(Float::F32),
        _ => None,
    }
}

fn cast(model: &Mlx, tensor: &mut PlannedTensor, dtype: Option<Float>) {
    let Some((_, to)) = tensor.float().zip(dtype).filter(|(from, to)| from != to) else { return };
    if tensor.packed.is_none() && !ends(&tensor.name, model.keep_type) {
        tensor.steps.push(Step::Cast(to));
        tensor.dtype = dtype_of(to);
    }
}

/// The matrices of latent attention, one per head: `kv_b_proj` `[heads * (keys + values), rank]` becomes `embed_q`
/// `[heads, rank, keys]`, transposed, and `unembed_out` `[heads, values, rank]`.
fn heads(attention: &str, tensor: &PlannedTensor, facts: &ModelFacts) -> Result<[PlannedTensor; 2]> {
    let unfit = |why: &str| Error::input(format!("{} of shape {:?} {why}", quoted(&tensor.name), tensor.shape));
    let (Some(heads), Some(keys), Some(values)) = (facts.heads, facts.plain_key, facts.head_values) else {
        return Err(unfit("cannot be divided into heads: the config does not name their sizes"));
    };
    let rows = keys.checked_add(values).and_then(|rows| rows.checked_mul(heads));
    let (&[all, rank], Some(float)) = (&tensor.shape[..], tensor.read_as()) else {
        return Err(unfit("is not the matrix of all heads"));
    };
    if rows != Some(all) || all == 0 || rank == 0 {
        return Err(unfit(&format!("cannot be divided into {heads} heads of {keys} and {values}")));
    }
    let size = float.size() as u64;
    if tensor.scheme.is_some()
        || tensor.packed.is_some()
        || tensor.decode().is_some_and(|decode| !matches!(decode, Decode::Fp8 { .. }))
    {
        return Err(unfit("is in codes, which cannot be divided into heads").hint("import the float checkpoint"));
    }
    let row = rank * size;
    let per_head = Loop { count: heads, step: (keys + values) * row };
    let part = |name: &str, shape: [u64; 3], segment: Segment| PlannedTensor {
        name: format!("{attention}.{name}.weight"),
        shape: shape.to_vec(),
        segments: vec![segment],
        transform: Transform::Split,
        ..tensor.clone()
    };
    let transposed = vec![per_head, Loop { count: rank, step: size }, Loop { count: keys, step: row }];
    Ok([
        part("embed_q", [heads, rank, keys], Segment { source: 0, offset: 0, run: size, loops: transposed }),
        part(
            "unembed_out",
            [heads, values, rank],
            Segment { source: 0, offset: keys * row, run: values * row, loops: vec![per_head] },
        ),
    ])
}

/// Why a matrix has the 8 bits that the model itself gives it.
pub(super) const ROUTER: &str = "router: 8 bits";

/// Gives every matrix its scheme. Codes of the source are kept, unless the request leads to another scheme.
pub(super) fn quantize(
    model: &Mlx,
    placed: &mut [Placed],
    request: &Request,
    family: &Family,
    facts: &ModelFacts,
) -> Result<()> {
    if !request.quantizes() {
        return Ok(());
    }
    for Placed { tensor, .. } in placed {
        let path = tensor.name.strip_suffix(".weight");
        let is_matrix = model.module(&tensor.name).is_some_and(|module| module.is_matrix);
        let Some(path) = path.filter(|_| is_matrix && tensor.float().is_some()) else {
            tensor.finite = path.is_some();
            tensor.why = "mlx-lm keeps it".into();
            continue;
        };
        let (name, shape) = (&tensor.name, &tensor.shape);
        let choice = match (&request.policy, request.scheme) {
            (Policy::Family | Policy::Draft, base) => match base.filter(|base| base.divides(shape)) {
                Some(_) if ends(path, model.eight_bits) => Choice::quantize(Scheme::INT8, ROUTER),
                Some(base) => Choice::quantize(base, "base scheme"),
                None => Choice::keep("rows do not divide into groups"),
            },
            (Policy::Recipe(recipe), _) => recipe.choose(family, facts, name, shape)?,
            (Policy::Resolved(schemes), _) => Policy::resolved(schemes, name, shape),
        };
        let scheme = choice.scheme.filter(|scheme| scheme.divides(shape));
        if tensor.packed.is_some() {
            if scheme.is_none() || [scheme, request.scheme].contains(&tensor.scheme) {
                continue;
            }
            tensor.decode_codes();
        }
        tensor.finite = true;
        (tensor.scheme, tensor.why) = (scheme, choice.why);
    }
    Ok(())
}

/// mlx-lm loads a model only with all of its parameters, and no others.
fn check_parameters(model: &Mlx, tensors: &[PlannedTensor], facts: &ModelFacts) -> Result<()> {
    let hint = "check that `config.json` belongs to these weights";
    if let Some(tensor) = tensors.iter().find(|tensor| model.module(&tensor.name).is_none()) {
        return Err(Error::input(format!("mlx-lm has no parameter {} in this model", quoted(&tensor.name))).hint(hint));
    }
    let names: BTreeSet<&str> = tensors.iter().map(|tensor| &*tensor.name).collect();
    match model.missing(facts, |name| names.contains(name)).first() {
        Some(missing) => Err(Error::input(format!("mlx-lm needs {}, which is missing", quoted(missing))).hint(hint)),
        None => Ok(()),
    }
}

/// The blob of a parameter, which is a file that mlx-lm finds by `model*.safetensors`: one for each layer, so that
/// a directory of them has not too many to open at once, and one for each module beside the layers.
fn file(model: &Mlx, name: &str) -> String {
    let module = model.layer(name).or_else(|| Some(name.rsplit_once('.')?.0)).unwrap_or(name);
    format!("model-{module}")
}
