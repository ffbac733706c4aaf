//! Telling how the weights of a checkpoint are stored. The tensors decide whether they are quantized;
//! what the configuration claims only says by whom, and in which blocks. A name alone decides nothing:
//! Gemma's `router.scale` is a weight like any other.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::coded::{Coded, Format};
use super::{Dtype, Tensor};
use crate::error::{Error, Result, quoted};

/// How the weights of a checkpoint are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceKind {
    /// Floating-point numbers of 16 bits or more.
    Float,
    /// `F8_E4M3` with one scale for each 128 by 128 block, as DeepSeek publishes it.
    BlockFp8,
    /// `F8_E4M3` with scales of other blocks, of rows, of matrices or of whole tensors.
    Fp8,
    /// Quantized by the tool or format named here.
    Prequantized(&'static str),
    /// In files that are kept as they are, whatever they hold.
    Files,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Float => f.write_str("float"),
            Self::BlockFp8 => f.write_str("block-fp8"),
            Self::Fp8 => f.write_str("fp8"),
            Self::Prequantized(by) => write!(f, "prequantized ({by})"),
            Self::Files => f.write_str("files"),
        }
    }
}

/// The values of `quant_method` that are known, each with the name used here.
const METHODS: [(&str, &str); 17] = [
    ("aqlm", "aqlm"),
    ("auto-round", "auto-round"),
    ("awq", "awq"),
    ("bitnet", "bitnet"),
    ("bitsandbytes", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors"),
    ("eetq", "eetq"),
    ("fbgemm_fp8", "fbgemm fp8"),
    ("fp8", "fp8"),
    ("gptq", "gptq"),
    ("hqq", "hqq"),
    ("modelopt", "modelopt"),
    ("mxfp4", "gpt-oss mxfp4"),
    ("quanto", "quanto"),
    ("quark", "quark"),
    ("torchao", "torchao"),
    ("vptq", "vptq"),
];

/// What the configuration says about quantization, which may be nothing.
pub(super) struct Claim<'a> {
    /// `quantization_config`, of the model or of its language part.
    config: Option<&'a Value>,
    /// Who quantized.
    method: Option<&'static str>,
}

impl<'a> Claim<'a> {
    /// Reads the claim out of `config.json` and, when there is one, `hf_quant_config.json`.
    pub(super) fn of(config: &'a Value, modelopt: bool) -> Self {
        let places = [config, &config["text_config"]];
        let keys = ["quantization_config", "compression_config"];
        let config = keys.iter().flat_map(|key| places.map(|place| &place[*key])).find(|value| value.is_object());
        let named = config.and_then(|config| config["quant_method"].as_str());
        let known = METHODS.iter().find(|(name, _)| Some(*name) == named).map(|(_, method)| *method);
        Self { config, method: known.or(modelopt.then_some("modelopt")) }
    }

    /// Whether the checkpoint claims to be quantized.
    pub(super) fn is_made(&self) -> bool {
        self.config.is_some() || self.method.is_some()
    }

    /// Who quantized.
    pub(super) fn method(&self) -> Option<&'static str> {
        self.method
    }

    /// The rows and columns that share a scale, where all quantized weights are in the same blocks.
    pub(super) fn block(&self) -> Option<[u64; 2]> {
        let config = self.config?;
        let edges = |value: &Value| {
            let [high, wide] = value.as_array()?.as_slice() else { return None };
            Some([high.as_u64()?, wide.as_u64()?]).filter(|edges| !edges.contains(&0))
        };
        match self.method {
            Some("fp8") => edges(&config["weight_block_size"]),
            Some("compressed-tensors") => {
                let groups = config["config_groups"].as_object()?;
                let mut blocks = groups.values().map(|group| &group["weights"]).map(|weights| {
                    let is_fp8 = weights["type"] == "float" && weights["num_bits"] == 8;
                    edges(&weights["block_structure"]).filter(|_| is_fp8)
                });
                let first = blocks.next()?;
                first.filter(|_| blocks.all(|block| block == first))
            }
            _ => None,
        }
    }
}

/// Tells which of these `tensors` hold codes, and the kind of a checkpoint that has them and makes this `claim`.
///
/// # Errors
/// [`crate::ErrorKind::Input`], naming the tensor: an eight-bit float other than `F8_E4M3`, a scale
/// that is missing or has another shape than its weight needs.
pub(super) fn classify(
    claim: &Claim<'_>,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(SourceKind, BTreeMap<String, Coded>)> {
    for (name, tensor) in tensors {
        if matches!(tensor.dtype, Dtype::F8E5M2 | Dtype::F8E5M2Fnuz | Dtype::F8E4M3Fnuz) {
            return Err(Error::input(format!(
                "Tensor {} has the dtype {}, which is not supported",
                quoted(name),
                tensor.dtype
            ))
            .hint("use the checkpoint in BF16, or in FP8 of the dtype F8_E4M3"));
        }
    }
    let coded = super::coded::coded(claim, tensors)?;
    let packed = coded.values().find_map(|coded| match coded.format {
        Format::Fp8 { .. } => None,
        Format::Mlx => Some("mlx"),
        Format::Ollama => Some("ollama"),
        Format::GptOss => Some("gpt-oss mxfp4"),
        Format::CompressedTensors => Some(claim.method.unwrap_or("compressed-tensors")),
        Format::ModelOpt => Some(claim.method.unwrap_or("modelopt")),
        Format::Foreign(by) => Some(by),
    });
    let kind = match packed {
        Some(by) => SourceKind::Prequantized(by),
        None if coded.is_empty() => SourceKind::Float,
        None if claim.block() == Some([128, 128]) => SourceKind::BlockFp8,
        None => SourceKind::Fp8,
    };
    Ok((kind, coded))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    type Row<'a> = (&'a str, &'a str, &'a [u64]);

    fn classified(config: &Value, rows: &[Row<'_>]) -> Result<SourceKind> {
        let tensor = |(name, dtype, shape): &Row<'_>| {
            Ok(((*name).to_owned(), Tensor { dtype: dtype.parse()?, shape: shape.to_vec() }))
        };
        let tensors = rows.iter().map(tensor).collect::<Result<_>>()?;
        classify(&Claim::of(config, false), &tensors).map(|(kind, _)| kind)
    }

    fn method(name: &str) -> Value {
        json!({"quantization_config": {"quant_method": name}})
    }

    fn block_fp8() -> Value {
        json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})
    }

    #[test]
    fn the_tensors_decide_and_the_configuration_names() {
        use SourceKind::{BlockFp8, Float, Fp8, Prequantized};
        let compressed = |block: Value| {
            let weights = json!({"type": "float", "num_bits": 8, "block_structure": block});
            json!({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": weights}}}})
        };
        let fp8: &[Row<'_>] = &[("a.weight", "F8_E4M3", &[64, 192]), ("a.weight_scale_inv", "F32", &[1, 2])];
        let fp8_scale: &[Row<'_>] = &[("a.weight", "F8_E4M3", &[64, 192]), ("a.weight_scale", "BF16", &[1, 2])];
        let stacked: &[Row<'_>] =
            &[("experts.up_proj", "F8_E4M3", &[4, 129, 128]), ("experts.up_proj_scale_inv", "BF16", &[4, 2, 1])];
        let scalar: &[Row<'_>] = &[("a.weight", "F8_E4M3", &[64, 192]), ("a.weight_scale", "F32", &[])];
        let nvfp4: &[Row<'_>] = &[("a.weight", "U8", &[4, 8]), ("a.weight_scale", "F8_E4M3", &[4, 1])];
        let int8: &[Row<'_>] = &[("a.weight", "I8", &[4, 8]), ("a.weight_scale", "BF16", &[4, 1])];
        let table: [(Value, &[Row<'_>], SourceKind); 23] = [
            (json!({}), &[("a.weight", "BF16", &[4, 4]), ("position_ids", "I64", &[1, 4])], Float),
            (json!({}), &[("router.scale", "BF16", &[4]), ("router.proj.weight", "F32", &[4, 4])], Float),
            (json!({}), &[("a.scales", "BF16", &[4]), ("a.weight", "BF16", &[4, 4])], Float),
            (method("awq"), &[("a.weight", "F16", &[4, 4])], Float),
            (json!({}), &[("mask.weight", "U8", &[4]), ("a_blocks", "U8", &[4])], Float),
            (block_fp8(), fp8, BlockFp8),
            (json!({"text_config": block_fp8()}), fp8, BlockFp8),
            (block_fp8(), fp8_scale, BlockFp8),
            (block_fp8(), stacked, BlockFp8),
            (compressed(json!([128, 128])), fp8_scale, BlockFp8),
            (compressed(json!([64, 128])), fp8_scale, Fp8),
            (compressed(Value::Null), scalar, Fp8),
            (method("fp8"), scalar, Fp8),
            (json!({}), fp8, Prequantized("fp8")),
            (json!({}), &[("a.weight", "U32", &[4, 8]), ("a.scales", "BF16", &[4, 1])], Prequantized("mlx")),
            (json!({}), &[("x_blocks", "U8", &[4, 1, 16]), ("x_scales", "U8", &[4, 1])], Prequantized("gpt-oss mxfp4")),
            (json!({}), nvfp4, Prequantized("modelopt")),
            (method("modelopt"), nvfp4, Prequantized("modelopt")),
            (method("compressed-tensors"), int8, Prequantized("compressed-tensors")),
            (json!({}), &[("a.weight_packed", "U8", &[4, 8])], Prequantized("compressed-tensors")),
            (json!({}), &[("a.qweight", "I32", &[4, 8]), ("a.scales", "F16", &[4])], Prequantized("gptq")),
            (method("awq"), &[("a.qweight", "I32", &[4, 8])], Prequantized("awq")),
            (json!({}), &[("a.weight", "U8", &[4, 8])], Prequantized("an unknown method")),
        ];
        for (config, rows, expected) in table {
            assert_eq!(classified(&config, rows).unwrap(), expected, "{config} {rows:?}");
        }
    }

    #[test]
    fn eight_bit_floats_that_cannot_be_read_are_refused_by_name() {
        let table: [(&[Row<'_>], &str); 7] = [
            (&[("a.weight", "F8_E5M2", &[4, 4])], "`a.weight` has the dtype F8_E5M2"),
            (&[("a.weight", "F8_E4M3FNUZ", &[4, 4])], "`a.weight` has the dtype F8_E4M3FNUZ"),
            (&[("a.weight", "F8_E4M3", &[4, 4])], "its scale `a.weight_scale_inv` is missing"),
            (&[("experts.up_proj", "F8_E4M3", &[4, 4])], "its scale `experts.up_proj_scale_inv` is missing"),
            (
                &[("a", "F8_E4M3", &[129, 4]), ("a_scale_inv", "F32", &[1, 1])],
                "`a_scale_inv` of shape [1, 1] does not fit",
            ),
            (&[("a", "F8_E4M3", &[4]), ("a_scale_inv", "F32", &[1])], "does not fit the shape [4]"),
            (&[("a", "F8_E4M3", &[4, 4]), ("a_scale_inv", "I32", &[1, 1])], "`a_scale_inv` has the dtype I32"),
        ];
        for (rows, words) in table {
            let error = classified(&block_fp8(), rows).unwrap_err();
            assert!(error.to_string().contains(words), "{rows:?}: {error}");
        }
    }

    #[test]
    fn a_configuration_of_any_shape_is_read() {
        for config in [
            json!({"quantization_config": 1}),
            json!({"text_config": []}),
            method("fp9"),
            json!({"quantization_config": {"quant_method": 1, "config_groups": []}}),
        ] {
            assert_eq!(classified(&config, &[("a.weight", "BF16", &[4, 4])]).unwrap(), SourceKind::Float, "{config}");
        }
    }
}
