//! Dialect `ollama`: Docker's schema 2 as Ollama v0.33 writes it. Key order and the trailing newline are
//! Ollama's, because clients compare digests.

use serde::{Deserialize, Serialize};

use super::{Content, Setting, is_licence};
use crate::json;
use crate::oci::{Descriptor, Manifest, MediaType};

/// Ollama's config blob. The fields serialize in Ollama's order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Always `safetensors`.
    pub model_format: String,
    /// Unused for safetensors models.
    #[serde(default)]
    pub model_family: String,
    /// Unused for safetensors models: `null`.
    #[serde(default)]
    pub model_families: Option<Vec<String>>,
    /// Unused for safetensors models.
    #[serde(default)]
    pub model_type: String,
    /// The scheme that was asked for; empty when the values are the source's.
    #[serde(default)]
    pub file_type: String,
    /// Which renderer writes prompts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renderer: Option<String>,
    /// Which parser reads answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parser: Option<String>,
    /// The lowest runtime version that loads the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<String>,
    /// What the model can do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// The draft beside the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<DraftConfig>,
    /// Required by Docker, empty.
    #[serde(default)]
    pub architecture: String,
    /// Required by Docker, empty.
    #[serde(default)]
    pub os: String,
}

/// Where a runtime finds a draft.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DraftConfig {
    /// Always `safetensors`.
    #[serde(default)]
    pub model_format: String,
    /// Its class.
    #[serde(default)]
    pub architecture: String,
    /// What the names of its tensors begin with.
    #[serde(default)]
    pub tensor_prefix: String,
    /// The layer with its `config.json`.
    #[serde(default)]
    pub config: String,
}

impl ModelConfig {
    /// The blob.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::to_canonical(self)
    }
}

pub(super) fn layer(content: Content, name: &str, mut descriptor: Descriptor) -> Descriptor {
    descriptor.media_type = match content {
        Content::Tensors => MediaType::OLLAMA_TENSOR,
        Content::Lock => MediaType::KILN_LOCK,
        Content::File if name.ends_with(".json") => MediaType::OLLAMA_JSON,
        Content::File if is_licence(name) => MediaType::OLLAMA_LICENSE,
        Content::File => MediaType::KILN_FILE,
        Content::Setting(setting) => media_type(setting),
    };
    // Ollama knows these by their type alone.
    if matches!(content, Content::Setting(_)) { descriptor } else { descriptor.named(name) }
}

fn media_type(setting: Setting) -> MediaType {
    match setting {
        Setting::Template => MediaType::OLLAMA_TEMPLATE,
        Setting::System => MediaType::OLLAMA_SYSTEM,
        Setting::License => MediaType::OLLAMA_LICENSE,
        Setting::Parameters => MediaType::OLLAMA_PARAMETERS,
    }
}

/// What a layer without a name sets.
pub(super) fn setting(layer: &Descriptor) -> Option<Setting> {
    Setting::ALL.into_iter().find(|setting| media_type(*setting) == layer.media_type)
}

pub(super) fn manifest(config: Descriptor, layers: Vec<Descriptor>) -> Vec<u8> {
    let media_type = MediaType::DOCKER_MANIFEST;
    let mut bytes = json::to_canonical(&Manifest {
        schema_version: 2,
        media_type,
        artifact_type: None,
        config,
        layers,
        subject: None,
        annotations: Default::default(),
    });
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_blob_is_ollamas_to_the_byte() {
        let config = ModelConfig {
            model_format: "safetensors".into(),
            file_type: "nvfp4".into(),
            renderer: Some("qwen3.5".into()),
            parser: Some("qwen3.5".into()),
            requires: Some("0.23.1".into()),
            capabilities: vec!["completion".into(), "tools".into()],
            ..ModelConfig::default()
        };
        let expected = concat!(
            r#"{"model_format":"safetensors","model_family":"","model_families":null,"model_type":"","#,
            r#""file_type":"nvfp4","renderer":"qwen3.5","parser":"qwen3.5","requires":"0.23.1","#,
            r#""capabilities":["completion","tools"],"architecture":"","os":""}"#
        );
        assert_eq!(String::from_utf8(config.to_bytes()).unwrap(), expected);
    }

    #[test]
    fn the_manifest_is_compact_and_ends_with_a_newline() {
        let config = Descriptor::of(MediaType::DOCKER_CONFIG, b"{}");
        let layers = vec![layer(Content::Tensors, "a<b", Descriptor::of(MediaType::KILN_FILE, b""))];
        let text = String::from_utf8(manifest(config, layers)).unwrap();
        assert!(text.starts_with(
            r#"{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":{"mediaType":"#
        ));
        assert!(text.ends_with("\"size\":0,\"name\":\"a\\u003cb\"}]}\n"), "{text}");
    }
}
