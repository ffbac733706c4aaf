//! Dialect `docker`: Docker Model Runner's configuration v0.2 on an OCI manifest, a layer for each file. Its
//! runner unpacks files by `org.cncf.model.filepath`. Sizes are told as it tells them; no time is written.
//! <https://github.com/docker/model-runner/blob/642c7211/pkg/distribution/types/config.go>

use serde_json::{Value, json};

use super::file::name_of;
use super::{Content, ModelConfig, is_licence};
use crate::json;
use crate::oci::{Descriptor, Manifest, MediaType};

pub(super) const CONFIG: MediaType = MediaType::of("application/vnd.docker.ai.model.config.v0.2+json");
pub(super) const SAFETENSORS: MediaType = MediaType::of("application/vnd.docker.ai.safetensors");
const LICENSE: MediaType = MediaType::of("application/vnd.docker.ai.license");
const CHAT_TEMPLATE: MediaType = MediaType::of("application/vnd.docker.ai.chat.template.jinja");
pub(super) const FILE: MediaType = MediaType::of("application/vnd.docker.ai.model.file");

pub(super) fn layer(content: Content, name: &str, mut descriptor: Descriptor) -> Descriptor {
    descriptor.media_type = match content {
        Content::Tensors => SAFETENSORS,
        Content::File | Content::Setting(_) if is_licence(name) => LICENSE,
        Content::File if name.ends_with(".jinja") => CHAT_TEMPLATE,
        Content::File | Content::Setting(_) | Content::Lock => FILE,
    };
    descriptor.at_path(name_of(content, name))
}

pub(super) fn config(model: &ModelConfig, layers: &[Descriptor]) -> Vec<u8> {
    let weights = layers.iter().filter(|layer| layer.media_type == SAFETENSORS);
    let size = weights.fold(0, |sum: u64, layer| sum.saturating_add(layer.size));
    let mut config = json!({ "format": "safetensors", "size": decimal(size) });
    if !model.file_type.is_empty() {
        config["quantization"] = Value::String(model.file_type.clone());
    }
    let digests: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
    json::to_canonical(&json!({
        "config": config,
        "descriptor": {},
        "rootfs": { "diff_ids": digests, "type": "rootfs" },
    }))
}

pub(super) fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Vec<u8> {
    json::to_canonical(&Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations: Default::default(),
    })
}

/// `256.01MB`: two places, units of 1000.
fn decimal(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut unit, mut one) = (0, 1u128);
    while u128::from(bytes) >= one * 1000 && unit + 1 < units.len() {
        (unit, one) = (unit + 1, one * 1000);
    }
    let hundredths = (u128::from(bytes) * 100 + one / 2) / one;
    format!("{}.{:02}{}", hundredths / 100, hundredths % 100, units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_docker() {
        for (bytes, text) in [
            (0, "0.00B"),
            (999, "999.00B"),
            (1000, "1.00kB"),
            (723_674_912, "723.67MB"),
            (16_381_517_208, "16.38GB"),
            (u64::MAX, "18.45EB"),
        ] {
            assert_eq!(decimal(bytes), text);
        }
    }
}
