//! What a manifest says, in each dialect: the config blob, the layers, and `kiln.lock`. Pure: bytes and
//! values only.

mod artifact;
mod docker;
mod envelope;
mod file;
mod lock;
mod modelfile;
mod modelpack;
mod ollama;
mod provenance;
mod statement;
mod version;

use std::str::FromStr;

pub use artifact::{EMPTY, artifact, empty};
pub use envelope::{Bundle, Envelope};
pub use file::{FilePath, files, paths, shard_index};
pub use lock::{EPOCH, Lock, LockedDraft, LockedModelfile, LockedPacked, LockedSource, LockedTensor, SCHEMA_VERSION};
pub use modelfile::{Modelfile, Names, Setting};
pub use ollama::{DraftConfig, ModelConfig};
pub use provenance::{
    BuildDefinition, Builder, Dependency, DraftParameters, Metadata, Parameters, Provenance, RunDetails, Svr, Verifier,
};
pub use statement::{Statement, Subject};
pub use version::Version;

use crate::error::{Error, ErrorKind, Result, quoted};
use crate::oci::{Descriptor, Manifest, MediaType};

/// How a manifest is spelled. The blobs are the same in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Docker's schema 2 with Ollama's layer names: runs after `ollama pull`.
    #[default]
    Ollama,
    /// The CNCF ModelPack specification v0.0.7 on an OCI manifest: what `skopeo` and `oras` can copy.
    ModelPack,
    /// Docker Model Runner's configuration v0.2 on an OCI manifest.
    Docker,
}

impl Dialect {
    /// Every dialect, the default first.
    pub const ALL: [Self; 3] = [Self::Ollama, Self::ModelPack, Self::Docker];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::ModelPack => "modelpack",
            Self::Docker => "docker",
        }
    }

    /// The dialect a manifest is spelled in.
    pub fn of(manifest: &Manifest) -> Self {
        if manifest.media_type == MediaType::DOCKER_MANIFEST {
            Self::Ollama
        } else if manifest.config.media_type == docker::CONFIG {
            Self::Docker
        } else {
            Self::ModelPack
        }
    }

    /// The layer of a file, which goes by `name` in the checkpoint.
    pub fn layer(self, content: Content, name: &str, descriptor: Descriptor) -> Descriptor {
        match self {
            Self::Ollama => ollama::layer(content, name, descriptor),
            Self::ModelPack => modelpack::layer(content, name, descriptor),
            Self::Docker => docker::layer(content, name, descriptor),
        }
    }

    /// The config blob for `config` over these layers: its media type and its bytes.
    pub fn config(self, config: &ModelConfig, layers: &[Descriptor]) -> (MediaType, Vec<u8>) {
        match self {
            Self::Ollama => (MediaType::DOCKER_CONFIG, config.to_bytes()),
            Self::ModelPack => (modelpack::CONFIG, modelpack::config(config, layers)),
            Self::Docker => (docker::CONFIG, docker::config(config, layers)),
        }
    }

    /// The manifest over a config and layers: its media type and its bytes.
    pub fn manifest(self, config: Descriptor, layers: Vec<Descriptor>) -> (MediaType, Vec<u8>) {
        match self {
            Self::Ollama => (MediaType::DOCKER_MANIFEST, ollama::manifest(config, layers)),
            Self::ModelPack => (MediaType::OCI_MANIFEST, modelpack::manifest(config, layers)),
            Self::Docker => (MediaType::OCI_MANIFEST, docker::manifest(config, layers)),
        }
    }
}

impl FromStr for Dialect {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|dialect| dialect.name() == text).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("Unknown dialect {}", quoted(text)))
                .hint("use `ollama`, `modelpack` or `docker`")
        })
    }
}

/// What a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A safetensors file: one tensor or one expert group, or in profile `hf` a file of the checkpoint.
    Tensors,
    /// A file of the checkpoint.
    File,
    /// What a Modelfile sets.
    Setting(Setting),
    /// `kiln.lock`.
    Lock,
}

impl Content {
    /// What a file of a checkpoint holds, by its name.
    pub fn of_file(name: &str) -> Self {
        if name.ends_with(file::SAFETENSORS) { Self::Tensors } else { Self::File }
    }

    /// What `layer` holds, in any dialect.
    pub fn of(layer: &Descriptor) -> Self {
        let is_document = [modelpack::DOC, docker::FILE].contains(&layer.media_type);
        if layer.media_type == MediaType::KILN_LOCK || is_document && layer.layer_name() == Some(Lock::NAME) {
            Self::Lock
        } else if [MediaType::OLLAMA_TENSOR, modelpack::WEIGHT, docker::SAFETENSORS].contains(&layer.media_type) {
            Self::Tensors
        } else {
            Setting::of(&layer_name(layer)).map_or(Self::File, Self::Setting)
        }
    }
}

/// The name of a layer as the plan knows it, whatever the dialect; its digest when it has none.
pub fn layer_name(layer: &Descriptor) -> String {
    match layer.layer_name() {
        Some(name) if [modelpack::WEIGHT, docker::SAFETENSORS].contains(&layer.media_type) => {
            name.strip_suffix(".safetensors").unwrap_or(name).to_owned()
        }
        Some(name) => name.to_owned(),
        None => match ollama::setting(layer) {
            Some(setting) => setting.name().to_owned(),
            None => layer.digest.to_string(),
        },
    }
}

/// Whether a file of the checkpoint is a licence, by its name.
fn is_licence(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name).to_ascii_uppercase();
    ["LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY"].iter().any(|start| name.starts_with(start))
}
