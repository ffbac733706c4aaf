//! The manifest of something that is attached to another one.

use std::collections::BTreeMap;

use crate::oci::{Descriptor, Manifest, MediaType};

/// The content that stands for none.
pub const EMPTY: &[u8] = b"{}";
const EMPTY_TYPE: MediaType = MediaType::of("application/vnd.oci.empty.v1+json");

/// The descriptor of [`EMPTY`]: OCI image-spec v1.1.1, "Guidance for an Empty Descriptor",
/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#guidance-for-an-empty-descriptor>.
pub fn empty() -> Descriptor {
    Descriptor::of(EMPTY_TYPE, EMPTY)
}

/// The manifest of an artifact of `artifact_type` that refers to `subject`. The same content gives the same manifest:
/// nothing of a run is in it. OCI image-spec v1.1.1, "Guidelines for Artifact Usage":
/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/manifest.md#guidelines-for-artifact-usage>.
pub fn artifact(
    artifact_type: MediaType,
    mut layers: Vec<Descriptor>,
    subject: &Descriptor,
    annotations: BTreeMap<String, String>,
) -> Manifest {
    if layers.is_empty() {
        layers.push(empty());
    }
    Manifest {
        schema_version: 2,
        media_type: MediaType::OCI_MANIFEST,
        artifact_type: Some(artifact_type),
        config: empty(),
        layers,
        subject: Some(Descriptor::new(subject.media_type.clone(), subject.digest, subject.size)),
        annotations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn an_artifact_is_spelled_as_the_specification_has_it() {
        let subject = Descriptor::of(MediaType::DOCKER_MANIFEST, b"subject").named("a name of its own");
        let annotations = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let manifest = artifact(MediaType::of("application/x-notes"), Vec::new(), &subject, annotations);
        let empty = r#"{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}"#;
        let expected = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/x-notes","config":{empty},"layers":[{empty}],"subject":{{"mediaType":"{}","digest":"{}","size":7}},"annotations":{{"a":"1","b":"2"}}}}"#,
            MediaType::DOCKER_MANIFEST,
            subject.digest,
        );
        assert_eq!(String::from_utf8(json::to_canonical(&manifest)).unwrap(), expected);
    }
}
