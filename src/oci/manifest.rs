//! Image manifests, OCI's and Docker's: the same shape in two dialects.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Descriptor, MediaType};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;

/// The largest manifest that is read or written: what every registry accepts.
///
/// OCI distribution-spec v1.1.1, "Pushing Manifests":
/// <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests>.
pub const MAX_MANIFEST_SIZE: u64 = 4 << 20;

/// How many bytes the values of a manifest may take: those of the largest one that has nothing but layers with a title.
pub const MAX_MANIFEST_VALUES: usize = 40 << 20;

/// An image manifest.
///
/// OCI image-spec v1.1.1, "OCI Image Manifest":
/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md>. Fields serialize in the
/// order in which Ollama and the specification write them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u8,
    /// The manifest's own media type.
    pub media_type: MediaType,
    /// What kind of artifact this is; OCI only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<MediaType>,
    /// The config blob.
    pub config: Descriptor,
    /// The layers, in order.
    pub layers: Vec<Descriptor>,
    /// The manifest this one refers to; OCI only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations, sorted by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads a manifest, strictly: no duplicate keys, no other schema, no index in its place.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when `bytes` is larger than [`MAX_MANIFEST_SIZE`] or not a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let corrupt = |message: &str| Error::new(ErrorKind::Corrupt, message);
        if bytes.len() as u64 > MAX_MANIFEST_SIZE {
            return Err(corrupt("The manifest is larger than 4 MiB"));
        }
        let value = json::parse_within(bytes, MAX_MANIFEST_VALUES)
            .map_err(|cause| corrupt("The manifest is not JSON").caused_by(cause))?;
        if value.get("layers").is_some() == value.get("manifests").is_some() {
            return Err(corrupt("A manifest has exactly one of `layers` and `manifests`"));
        }
        if value.get("manifests").is_some() {
            return Err(corrupt("This is an index of manifests, not one model's manifest"));
        }
        let manifest: Self = serde_json::from_value(value)
            .map_err(|cause| corrupt("The manifest does not have the fields of one").caused_by(cause))?;
        if manifest.schema_version != 2 || !manifest.media_type.is_manifest() {
            return Err(corrupt(&format!(
                "A manifest of media type {} is not supported",
                quoted(manifest.media_type.as_str())
            )));
        }
        Ok(manifest)
    }

    /// Every blob the manifest needs: the config, then the layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// The size of all blobs in bytes, as far as a manifest that claims more than there can be goes.
    pub fn total_size(&self) -> u64 {
        self.blobs().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }
}
