//! What a registry keeps under a name: a manifest, or an index of manifests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Descriptor, MAX_MANIFEST_SIZE, MAX_MANIFEST_VALUES, Manifest, MediaType};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;

/// An index of manifests, OCI's or Docker's.
///
/// OCI image-spec v1.1.1, "OCI Image Index":
/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/image-index.md>.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u8,
    /// The index's own media type: OCI's where none is written.
    #[serde(default = "Index::media_type")]
    pub media_type: MediaType,
    /// What kind of artifact this is; OCI only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<MediaType>,
    /// The manifests, and indexes, in order.
    pub manifests: Vec<Descriptor>,
    /// The manifest this one refers to; OCI only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations, sorted by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An index of `manifests`, in OCI's media type.
    pub fn of(manifests: Vec<Descriptor>) -> Self {
        let media_type = Self::media_type();
        let annotations = BTreeMap::new();
        Self { schema_version: 2, media_type, artifact_type: None, manifests, subject: None, annotations }
    }

    fn media_type() -> MediaType {
        MediaType::OCI_INDEX
    }
}

/// A manifest or an index, of any kind that registries keep: not only kiln's models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An image manifest.
    Manifest(Manifest),
    /// An index of manifests.
    Index(Index),
}

impl Document {
    /// Reads what was sent or kept as `media_type`. The document may leave its media type out, as
    /// older ones of OCI do, but not name another.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when `bytes` is larger than [`MAX_MANIFEST_SIZE`] or not such a document.
    pub fn parse(bytes: &[u8], media_type: &MediaType) -> Result<Self> {
        let corrupt = |message: String| Error::new(ErrorKind::Corrupt, message);
        if bytes.len() as u64 > MAX_MANIFEST_SIZE {
            return Err(corrupt("The manifest is larger than 4 MiB".to_owned()));
        }
        let not_json = |cause| corrupt("The manifest is not JSON".to_owned()).caused_by(cause);
        let mut value = json::parse_within(bytes, MAX_MANIFEST_VALUES).map_err(not_json)?;
        let Some(fields) = value.as_object_mut() else {
            return Err(corrupt("The manifest is not a JSON object".to_owned()));
        };
        let says = fields.entry("mediaType").or_insert_with(|| media_type.as_str().into());
        if says.as_str() != Some(media_type.as_str()) {
            let says = quoted(says.as_str().unwrap_or_default());
            return Err(corrupt(format!("The manifest says it is {says}, not {}", quoted(media_type.as_str()))));
        }
        if fields.contains_key("layers") == fields.contains_key("manifests") {
            return Err(corrupt("A manifest has exactly one of `layers` and `manifests`".to_owned()));
        }
        let parsed = if media_type.is_manifest() {
            serde_json::from_value(value).map(Self::Manifest)
        } else if media_type.is_index() {
            serde_json::from_value(value).map(Self::Index)
        } else {
            let message = format!("A manifest of media type {} is not supported", quoted(media_type.as_str()));
            return Err(corrupt(message));
        };
        let document = parsed
            .map_err(|cause| corrupt("The manifest does not have the fields of one".to_owned()).caused_by(cause))?;
        let (Self::Manifest(Manifest { schema_version, .. }) | Self::Index(Index { schema_version, .. })) = &document;
        if *schema_version != 2 {
            return Err(corrupt(format!("A manifest of schema version {schema_version} is not supported")));
        }
        Ok(document)
    }

    /// The blobs it needs beside it: none for an index, and not those layers that are never pushed.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        let blobs = match self {
            Self::Manifest(manifest) => Some(manifest.blobs().filter(|blob| !blob.media_type.is_nondistributable())),
            Self::Index(_) => None,
        };
        blobs.into_iter().flatten()
    }

    /// The manifests it needs beside it: those of an index.
    pub fn manifests(&self) -> &[Descriptor] {
        match self {
            Self::Manifest(_) => &[],
            Self::Index(index) => &index.manifests,
        }
    }

    /// Everything it needs beside it: [`Self::blobs`] and [`Self::manifests`].
    pub fn needs(&self) -> impl Iterator<Item = &Descriptor> {
        self.blobs().chain(self.manifests())
    }

    /// The manifest it refers to.
    pub fn subject(&self) -> Option<&Descriptor> {
        match self {
            Self::Manifest(manifest) => manifest.subject.as_ref(),
            Self::Index(index) => index.subject.as_ref(),
        }
    }

    /// What kind of artifact it is, as a list of referrers says it: an older artifact tells by the type
    /// of its config.
    pub fn artifact_type(&self) -> Option<&MediaType> {
        match self {
            Self::Manifest(manifest) => Some(manifest.artifact_type.as_ref().unwrap_or(&manifest.config.media_type)),
            Self::Index(index) => index.artifact_type.as_ref(),
        }
    }

    /// Its annotations.
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Manifest(manifest) => &manifest.annotations,
            Self::Index(index) => &index.annotations,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":0,"data":"","urls":[]}}"#, Digest::of(b""))
    }

    fn parse(text: &str, media_type: &MediaType) -> Result<Document> {
        Document::parse(text.as_bytes(), media_type)
    }

    #[test]
    fn manifests_and_indexes_say_what_they_need() {
        let (config, layer) = (descriptor("text/plain"), descriptor("application/vnd.oci.image.layer.v1.tar"));
        let foreign = descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip");
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer},{foreign}],"subject":{layer}}}"#);
        let manifest = parse(&text, &MediaType::OCI_MANIFEST).unwrap();
        assert_eq!(manifest.blobs().count(), 2, "a layer that nobody may push is not needed");
        assert_eq!(manifest.artifact_type().map(MediaType::as_str), Some("text/plain"));
        assert!(manifest.subject().is_some() && manifest.manifests().is_empty());

        let text = format!(r#"{{"schemaVersion":2,"manifests":[{layer}],"annotations":{{"a":"b"}}}}"#);
        let index = parse(&text, &MediaType::OCI_INDEX).unwrap();
        assert_eq!((index.blobs().count(), index.manifests().len()), (0, 1));
        assert_eq!((index.artifact_type(), index.annotations().len()), (None, 1));
    }

    /// What is refused of its values is more than any manifest needs that is no longer than it may be.
    #[test]
    fn a_manifest_may_have_layers_up_to_its_largest_size() {
        let layer = format!(
            r#"{{"mediaType":"application/vnd.cncf.model.weight.v1.raw","digest":"{}","size":4096,"annotations":{{"org.cncf.model.filepath":"w"}}}},"#,
            Digest::of(b"")
        );
        let config = descriptor("text/plain");
        let start = format!(r#"{{"schemaVersion":2,"config":{config},"layers":["#);
        let layers = (MAX_MANIFEST_SIZE as usize - start.len() - 2) / layer.len();
        let text = format!("{start}{}]}}", layer.repeat(layers).trim_end_matches(','));
        let manifest = parse(&text, &MediaType::OCI_MANIFEST).unwrap();
        assert_eq!(manifest.blobs().count(), layers + 1);
    }

    #[test]
    fn a_document_is_what_it_was_sent_as() {
        let index = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        assert!(parse(index, &MediaType::OCI_INDEX).is_ok());
        for (text, media_type) in [
            (index, &MediaType::DOCKER_LIST),
            (r#"{"schemaVersion":2,"manifests":[]}"#, &MediaType::OCI_MANIFEST),
            (r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, &MediaType::OCI_INDEX),
            (r#"{"schemaVersion":1,"manifests":[]}"#, &MediaType::OCI_INDEX),
            (r#"{"schemaVersion":2,"manifests":[]}"#, &MediaType::KILN_LOCK),
            ("[]", &MediaType::OCI_INDEX),
            ("{", &MediaType::OCI_INDEX),
        ] {
            assert_eq!(parse(text, media_type).unwrap_err().kind(), ErrorKind::Corrupt, "{text}");
        }
    }
}
