//! Weights that are stored in codes, and which tensors belong to them. Names and types of tensors decide;
//! what the codes mean is for the plan to say.

use std::collections::BTreeMap;

use super::kind::Claim;
use super::{Dtype, Tensor};
use crate::error::{Error, Result, quoted};
use crate::source::Label;

/// A weight that is stored in codes. The others are the names that the format gives to what belongs to them, `None`
/// where it has no such thing; whether all of it is there is for the plan to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coded {
    /// How codes and scales are stored.
    pub format: Format,
    /// The scales.
    pub scales: Option<String>,
    /// The biases.
    pub biases: Option<String>,
    /// The scale of the scales.
    pub global: Option<String>,
    /// What its file says about the scheme.
    pub label: Option<Label>,
}

/// How codes and scales are stored, by who stores them so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `F8_E4M3`, one scale for each block of a matrix; every matrix has `rows`.
    Fp8 {
        /// Rows of one matrix.
        rows: u64,
        /// Rows and columns that share a scale.
        block: [u64; 2],
    },
    /// MLX: `P.weight` in words of 32 bits, `P.scales`, and `P.biases` in the affine schemes.
    Mlx,
    /// Ollama: `W` in words of 32 bits, `W.scale`, `W.bias` in the affine schemes, `W.global_scale` where there is one.
    Ollama,
    /// gpt-oss: MXFP4, `X_blocks` of 16 bytes and `X_scales`.
    GptOss,
    /// NVFP4 by compressed-tensors: `P.weight_packed`, `P.weight_scale`, and `P.weight_global_scale`, which divides.
    CompressedTensors,
    /// NVFP4 by ModelOpt: `P.weight`, `P.weight_scale`, and `P.weight_scale_2`, which multiplies.
    ModelOpt,
    /// One that is not read, by whom.
    Foreign(&'static str),
}

/// What the name of a weight's scales has behind that of the weight, the more usual one first.
const SCALES: [&str; 2] = ["_scale_inv", "_scale"];

/// Scales of activations, beside a weight `P.weight`: they say nothing about the weight.
const ACTIVATIONS: [&str; 4] = ["input_scale", "input_global_scale", "input_scale_ub", "activation_scale"];

/// Every weight among `tensors` that is stored in codes, by name.
pub(super) fn coded(claim: &Claim<'_>, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Coded>> {
    let mut found = BTreeMap::new();
    for (name, tensor) in tensors {
        let coded = match tensor.dtype {
            Dtype::F8E4M3 if !is_scale(tensors, name) => Some(fp8(claim, tensors, name, tensor)?),
            dtype if dtype.is_float() || matches!(dtype, Dtype::F8E4M3 | Dtype::F8E8M0) => None,
            _ => packed(claim, tensors, name, tensor),
        };
        found.extend(coded.map(|coded| (name.clone(), coded)));
    }
    Ok(found)
}

/// The scales of activations that stand beside these weights.
pub(super) fn activations<'a>(
    tensors: &'a BTreeMap<String, Tensor>,
    coded: &'a BTreeMap<String, Coded>,
) -> impl Iterator<Item = &'a str> {
    let stems = coded.keys().filter_map(|name| name.rsplit_once(".weight")).map(|(stem, _)| stem);
    let names = stems.flat_map(|stem| ACTIVATIONS.map(|role| format!("{stem}.{role}")));
    names.filter_map(|name| tensors.get_key_value(&name)).map(|(name, _)| name.as_str())
}

/// Whether an `F8_E4M3` tensor is the scales of NVFP4 codes.
fn is_scale(tensors: &BTreeMap<String, Tensor>, name: &str) -> bool {
    let codes = name.strip_suffix("_scale").map(|weight| [weight.to_owned(), format!("{weight}_packed")]);
    codes.is_some_and(|names| names.iter().any(|name| tensors.get(name).is_some_and(|codes| codes.dtype == Dtype::U8)))
}

fn fp8(claim: &Claim<'_>, tensors: &BTreeMap<String, Tensor>, name: &str, tensor: &Tensor) -> Result<Coded> {
    let named = |suffix: &str| tensors.get_key_value(&format!("{name}{suffix}"));
    let Some((scale_name, scale)) = SCALES.into_iter().find_map(named) else {
        let scale = quoted(&format!("{name}{}", SCALES[0])).to_string();
        return Err(Error::input(format!("Tensor {} is F8_E4M3, but its scale {scale} is missing", quoted(name)))
            .hint("download the checkpoint again, and compare its files"));
    };
    if !matches!(scale.dtype, Dtype::Bf16 | Dtype::F16 | Dtype::F32 | Dtype::F8E8M0) {
        return Err(Error::input(format!("Scale {} has the dtype {}", quoted(scale_name), scale.dtype)));
    }
    let format = match (blocks(claim.block(), &tensor.shape, &scale.shape), claim.block()) {
        (Some((rows, block)), _) => Format::Fp8 { rows, block },
        (None, None) => Format::Foreign(claim.method().unwrap_or("fp8")),
        (None, Some(_)) => {
            return Err(Error::input(format!(
                "Scale {} of shape {:?} does not fit the shape {:?} of its weight",
                quoted(scale_name),
                scale.shape,
                tensor.shape
            )));
        }
    };
    Ok(Coded { format, scales: Some(scale_name.clone()), biases: None, global: None, label: None })
}

/// The rows of a matrix, and the rows and columns that share a scale. Where the configuration names blocks they
/// must fit; else one scale for everything, for each matrix or for each row is what a shape can say.
fn blocks(claimed: Option<[u64; 2]>, weight: &[u64], scales: &[u64]) -> Option<(u64, [u64; 2])> {
    let [matrices @ .., rows, columns] = weight else { return None };
    let shaped = |last: &[u64]| [matrices, last].concat() == scales;
    if let Some([high, wide]) = claimed {
        return shaped(&[rows.div_ceil(high), columns.div_ceil(wide)]).then_some((*rows, [high, wide]));
    }
    if scales.iter().all(|&size| size == 1) {
        let all = matrices.iter().try_fold(*rows, |all, &count| all.checked_mul(count))?;
        return Some((all, [all.max(1), (*columns).max(1)]));
    }
    if shaped(&[*rows, 1]) || shaped(&[*rows]) {
        return Some((*rows, [1, (*columns).max(1)]));
    }
    let each = shaped(&[]) || shaped(&[1]) || shaped(&[1, 1]);
    (each && !matrices.is_empty()).then_some((*rows, [(*rows).max(1), (*columns).max(1)]))
}

/// What `tensor` is when it holds codes in place of numbers.
fn packed(claim: &Claim<'_>, tensors: &BTreeMap<String, Tensor>, name: &str, tensor: &Tensor) -> Option<Coded> {
    let (stem, role) = name.rsplit_once('.').unwrap_or(("", name));
    let beside = |name: String| tensors.contains_key(&name).then_some(name);
    let dtype = |name: &Option<String>| name.as_ref().and_then(|name| tensors.get(name)).map(|tensor| tensor.dtype);
    let of = |format, scales, biases, global| Some(Coded { format, scales, biases, global, label: None });
    let foreign = |guess| of(Format::Foreign(claim.method().unwrap_or(guess)), None, None, None);
    if let Some(scales) = beside(format!("{name}.scale")).filter(|_| tensor.dtype == Dtype::U32) {
        return of(
            Format::Ollama,
            Some(scales),
            beside(format!("{name}.bias")),
            beside(format!("{name}.global_scale")),
        );
    }
    if let Some(stem) = name.strip_suffix("_blocks") {
        let scales = beside(format!("{stem}_scales"));
        let is_ours = tensor.dtype == Dtype::U8 && dtype(&scales) == Some(Dtype::U8);
        return is_ours.then(|| of(Format::GptOss, scales, None, None)).flatten();
    }
    let scales = beside(format!("{stem}.weight_scale"));
    let is_nvfp4 = tensor.dtype == Dtype::U8 && dtype(&scales) == Some(Dtype::F8E4M3);
    match role {
        "weight" if tensor.dtype == Dtype::U32 && tensors.contains_key(&format!("{stem}.scales")) => {
            of(Format::Mlx, Some(format!("{stem}.scales")), Some(format!("{stem}.biases")), None)
        }
        "weight_packed" if is_nvfp4 => {
            of(Format::CompressedTensors, scales, None, Some(format!("{stem}.weight_global_scale")))
        }
        "weight" if is_nvfp4 => of(Format::ModelOpt, scales, None, Some(format!("{stem}.weight_scale_2"))),
        "weight_packed" => foreign("compressed-tensors"),
        "qweight" => foreign("gptq"),
        "weight" if scales.is_some() && tensor.dtype == Dtype::U8 => foreign("modelopt"),
        "weight" if scales.is_some() => foreign("compressed-tensors"),
        "weight" if ["weight.absmax", "SCB"].iter().any(|role| tensors.contains_key(&format!("{stem}.{role}"))) => {
            foreign("bitsandbytes")
        }
        "weight" if tensor.shape.len() > 1 => foreign("an unknown method"),
        _ if tensor.shape.len() > 1 && SCALES.iter().any(|scale| tensors.contains_key(&format!("{name}{scale}"))) => {
            foreign("an unknown method")
        }
        _ => None,
    }
}
