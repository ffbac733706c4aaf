//! The files that profile `mlx` has made: the config as `mlx_lm.convert` saves it, and the index of the shards.

use serde_json::{Map, Value, json};

use super::mlx::ROUTER;
use super::{Placed, PlannedBlob, PlannedFile, Policy, Request};
use crate::arch::Mlx;
use crate::inventory::{Inventory, SourceKind};
use crate::json;
use crate::quant::Scheme;

pub(super) const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";

/// What is said about quantization elsewhere than in the config, which here says it all.
const MODELOPT: &str = "hf_quant_config.json";

/// The files of a plan: what is made, instead of what the checkpoint has under the same name.
pub(super) fn files(inventory: &Inventory, config: &Value, blobs: &[PlannedBlob]) -> Vec<PlannedFile> {
    let kept = inventory.sidecars.iter().filter(|sidecar| ![CONFIG, INDEX, MODELOPT].contains(&&*sidecar.name));
    let made = [(CONFIG, config), (INDEX, &index(blobs))];
    let made = made.map(|(name, value)| PlannedFile::made(name, json::to_canonical(value)));
    kept.map(PlannedFile::kept).chain(made).collect()
}

/// The config: without what mlx-lm does not keep, with the end of text that generation goes by, and with what was
/// quantized how.
pub(super) fn config(model: &Mlx, inventory: &Inventory, request: &Request, placed: &[Placed]) -> Value {
    let mut config: Map<String, Value> = inventory.config.as_object().cloned().unwrap_or_default();
    let end = &inventory.generation["eos_token_id"];
    let is_set = match end {
        Value::Number(token) => token.as_f64() != Some(0.0),
        Value::Array(tokens) => !tokens.is_empty(),
        _ => false,
    };
    if is_set {
        config.insert("eos_token_id".to_owned(), end.clone());
    }
    (model.config)(&mut config);
    config.remove("_name_or_path");
    config.remove("vision_config");
    if matches!(inventory.kind, SourceKind::BlockFp8 | SourceKind::Fp8) {
        forget_quantization(&mut config);
        config.get_mut("text_config").and_then(Value::as_object_mut).into_iter().for_each(forget_quantization);
    }
    // Codes that mlx-lm wrote are described already.
    let quantization = Some(&inventory.config["quantization"]).filter(|own| own.is_object() && !request.quantizes());
    if let Some(quantization) = quantization.cloned().or_else(|| quantization_of(request, placed)) {
        config.insert("quantization".to_owned(), quantization.clone());
        config.insert("quantization_config".to_owned(), quantization);
    }
    Value::Object(config)
}

/// What is quantized how: one scheme for all modules, and each that does not follow it by path.
fn quantization_of(request: &Request, placed: &[Placed]) -> Option<Value> {
    let tensors = placed.iter().map(|placed| &placed.tensor).filter(|tensor| tensor.scheme.is_some());
    let base = match request.policy {
        Policy::Family => request.scheme.or_else(|| tensors.clone().find_map(|tensor| tensor.scheme))?,
        // With a recipe every module is named, and mlx-lm leaves its own default here.
        _ => Scheme::INT4,
    };
    let mut quantization = json!({"group_size": base.group_size(), "bits": base.bits(), "mode": base.mode()});
    for tensor in tensors {
        let Some((path, scheme)) = tensor.name.strip_suffix(".weight").zip(tensor.scheme) else { continue };
        let is_router = tensor.why == ROUTER;
        if scheme != base || is_router || request.policy != Policy::Family {
            quantization[path] = json!({"group_size": scheme.group_size(), "bits": scheme.bits()});
            if !is_router {
                quantization[path]["mode"] = scheme.mode().into();
            }
        }
    }
    Some(quantization)
}

/// Of weights that were decoded mlx-lm keeps no word but the one that it does not mind: `fp8`.
fn forget_quantization(config: &mut Map<String, Value>) {
    config.remove("compression_config");
    if config.get("quantization_config").is_some_and(|claim| claim["quant_method"] != "fp8") {
        config.remove("quantization_config");
    }
}

/// Which file has which array, for loaders that do not look into every one.
fn index(blobs: &[PlannedBlob]) -> Value {
    let parts = blobs.iter().flat_map(|blob| blob.parts().into_iter().map(move |(_, part)| (&blob.name, part)));
    let (mut bytes, mut weights) = (0, Map::new());
    for (blob, part) in parts {
        bytes += part.bytes();
        weights.insert(part.name, format!("{blob}.safetensors").into());
    }
    let tensors = blobs.iter().flat_map(|blob| &blob.tensors);
    let parameters: u64 = tensors.map(|tensor| tensor.shape.iter().product::<u64>()).sum();
    json!({"metadata": {"total_parameters": parameters, "total_size": bytes}, "weight_map": weights})
}
