//! Dialect `modelpack`: the CNCF ModelPack specification v0.0.7 on an OCI manifest. Layers are raw files,
//! named twice: as ModelPack tools read names, and as `oras` does. No time, mode or owner is written.
//! <https://github.com/modelpack/model-spec/blob/v0.0.7/docs/spec.md>

use serde_json::{Value, json};

use super::file::name_of;
use super::{Content, ModelConfig, is_licence};
use crate::json;
use crate::oci::{Descriptor, Manifest, MediaType};

pub(super) const CONFIG: MediaType = MediaType::of("application/vnd.cncf.model.config.v1+json");
pub(super) const WEIGHT: MediaType = MediaType::of("application/vnd.cncf.model.weight.v1.raw");
const ARTIFACT: MediaType = MediaType::of("application/vnd.cncf.model.manifest.v1+json");
const WEIGHT_CONFIG: MediaType = MediaType::of("application/vnd.cncf.model.weight.config.v1.raw");
pub(super) const DOC: MediaType = MediaType::of("application/vnd.cncf.model.doc.v1.raw");

pub(super) fn layer(content: Content, name: &str, mut descriptor: Descriptor) -> Descriptor {
    descriptor.media_type = match content {
        Content::Tensors => WEIGHT,
        // ModelPack's tools refuse a layer of a type that the specification does not name.
        Content::Lock => DOC,
        Content::File | Content::Setting(_) if is_licence(name) => DOC,
        Content::File | Content::Setting(_) => WEIGHT_CONFIG,
    };
    descriptor.at_path(name_of(content, name))
}

pub(super) fn config(model: &ModelConfig, layers: &[Descriptor]) -> Vec<u8> {
    let digests: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
    let mut config = json!({ "architecture": "transformer", "format": "safetensors" });
    if !model.file_type.is_empty() {
        config["quantization"] = Value::String(model.file_type.clone());
    }
    let capabilities = ["tools", "thinking"].map(|name| model.capabilities.iter().any(|capability| capability == name));
    config["capabilities"] = json!({ "reasoning": capabilities[1], "toolUsage": capabilities[0] });
    json::to_canonical(&json!({
        "config": config,
        "descriptor": {},
        "modelfs": { "diffIds": digests, "type": "layers" },
    }))
}

pub(super) fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Vec<u8> {
    json::to_canonical(&Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        artifact_type: Some(ARTIFACT),
        config,
        layers,
        subject: None,
        annotations: Default::default(),
    })
}
