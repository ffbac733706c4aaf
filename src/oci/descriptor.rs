//! Descriptors: how one blob points at another.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, MediaType};

/// A pointer to content: what it is, its digest and its exact size.
///
/// OCI image-spec v1.1.1, "OCI Content Descriptors":
/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md>. The fields serialize in
/// the order in which Ollama writes them; `annotations` is ordered by its type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: MediaType,
    /// The SHA-256 of the content.
    pub digest: Digest,
    /// The content's length in bytes.
    pub size: u64,
    /// Ollama's extension: the tensor's or file's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Annotations, sorted by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The annotation with which an image layout names a manifest.
    pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
    /// The annotation with which `oras` names a file.
    pub const TITLE: &str = "org.opencontainers.image.title";
    /// The annotation with which ModelPack v0.0.7 names a file.
    pub const FILEPATH: &str = "org.cncf.model.filepath";

    /// A descriptor without a name or annotations.
    pub fn new(media_type: MediaType, digest: Digest, size: u64) -> Self {
        Self { media_type, digest, size, name: None, annotations: BTreeMap::new() }
    }

    /// The descriptor of `bytes`.
    pub fn of(media_type: MediaType, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// The same descriptor with Ollama's `name`.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The same descriptor with a path, for ModelPack's tools and for `oras`.
    #[must_use]
    pub fn at_path(mut self, path: impl Into<String>) -> Self {
        let path = path.into();
        self.annotations.insert(Self::FILEPATH.to_owned(), path.clone());
        self.annotations.insert(Self::TITLE.to_owned(), path);
        self
    }

    /// The layer's name in whatever dialect it is spelled, without a file ending kiln added.
    pub fn layer_name(&self) -> Option<&str> {
        self.name
            .as_deref()
            .or_else(|| self.annotations.get(Self::FILEPATH).map(String::as_str))
            .or_else(|| self.annotations.get(Self::TITLE).map(String::as_str))
    }
}
