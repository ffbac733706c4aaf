//! Media types: what a blob is.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, quoted};

/// A media type, compared as written and without parameters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MediaType(Cow<'static, str>);

impl MediaType {
    /// OCI image manifest, v1.1.1.
    pub const OCI_MANIFEST: Self = Self::of("application/vnd.oci.image.manifest.v1+json");
    /// OCI image index, v1.1.1.
    pub const OCI_INDEX: Self = Self::of("application/vnd.oci.image.index.v1+json");
    /// Docker image manifest, version 2, schema 2: what Ollama writes.
    pub const DOCKER_MANIFEST: Self = Self::of("application/vnd.docker.distribution.manifest.v2+json");
    /// Docker manifest list.
    pub const DOCKER_LIST: Self = Self::of("application/vnd.docker.distribution.manifest.list.v2+json");
    /// Docker image configuration: Ollama's config blob.
    pub const DOCKER_CONFIG: Self = Self::of("application/vnd.docker.container.image.v1+json");
    /// One safetensors file with one tensor or one expert group.
    pub const OLLAMA_TENSOR: Self = Self::of("application/vnd.ollama.image.tensor");
    /// A JSON file of the checkpoint, byte for byte.
    pub const OLLAMA_JSON: Self = Self::of("application/vnd.ollama.image.json");
    /// A licence text.
    pub const OLLAMA_LICENSE: Self = Self::of("application/vnd.ollama.image.license");
    /// A prompt template in Go's language.
    pub const OLLAMA_TEMPLATE: Self = Self::of("application/vnd.ollama.image.template");
    /// A system prompt.
    pub const OLLAMA_SYSTEM: Self = Self::of("application/vnd.ollama.image.system");
    /// Parameters of the runtime: a JSON object.
    pub const OLLAMA_PARAMETERS: Self = Self::of("application/vnd.ollama.image.params");
    /// Any other file of the checkpoint, byte for byte.
    pub const KILN_FILE: Self = Self::of("application/vnd.kiln.file.v1");
    /// `kiln.lock`.
    pub const KILN_LOCK: Self = Self::of("application/vnd.kiln.lock.v1+json");

    /// Bytes of no type in particular.
    pub const OCTETS: Self = Self::of("application/octet-stream");

    /// A media type known when the program is written.
    pub const fn of(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }

    /// A media type as a registry or a manifest spells it; parameters are dropped.
    pub fn parse(text: &str) -> Self {
        Self(Cow::Owned(text.split(';').next().unwrap_or_default().trim().to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it names an image manifest, OCI's or Docker's.
    pub fn is_manifest(&self) -> bool {
        *self == Self::OCI_MANIFEST || *self == Self::DOCKER_MANIFEST
    }

    /// Whether it names an index of manifests, OCI's or Docker's.
    pub fn is_index(&self) -> bool {
        *self == Self::OCI_INDEX || *self == Self::DOCKER_LIST
    }

    /// Whether it names a layer that manifests point at and that is not pushed, as the base of some
    /// images; image-spec v1.1.1 deprecates it.
    pub fn is_nondistributable(&self) -> bool {
        self.0.starts_with("application/vnd.oci.image.layer.nondistributable.")
            || self.0.starts_with("application/vnd.docker.image.rootfs.foreign.")
    }

    /// Whether registries keep it among the manifests, and not among the blobs.
    pub fn is_manifest_or_index(&self) -> bool {
        self.is_manifest() || self.is_index()
    }
}

impl FromStr for MediaType {
    type Err = Error;

    /// A media type as a person writes it: two names of RFC 6838, section 4.2, and no parameters.
    fn from_str(text: &str) -> Result<Self, Error> {
        const LONGEST: usize = 127;
        let is_name = |name: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
            name.len() <= LONGEST
                && name.bytes().all(allowed)
                && name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric())
        };
        match text.split_once('/') {
            Some((kind, name)) if is_name(kind) && is_name(name) => Ok(Self(Cow::Owned(text.to_owned()))),
            _ => Err(Error::new(ErrorKind::Usage, format!("Not a media type: {}", quoted(text)))
                .hint("write one as `application/vnd.example.card`")),
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_two_names() {
        for text in ["text/plain", "application/vnd.oci.image.manifest.v1+json", "a/b"] {
            assert_eq!(text.parse::<MediaType>().unwrap().as_str(), text);
        }
        let long = format!("a/{}", "b".repeat(128));
        for text in ["", "text", "text/", "/plain", "text/plain; charset=utf-8", "a/b/c", "a b/c", "a/.b", "a/é", &long]
        {
            assert_eq!(text.parse::<MediaType>().unwrap_err().kind(), ErrorKind::Usage, "{text}");
        }
    }
}
