//! Referrers: manifests that name another one as their subject, as lists of them describe them.

use serde::{Deserialize, Serialize};

use super::{Descriptor, Digest, Document, MediaType};

/// A manifest that refers to another one.
///
/// OCI distribution-spec v1.1.1, "Listing Referrers":
/// <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers>.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    /// The manifest, with its own annotations.
    #[serde(flatten)]
    pub descriptor: Descriptor,
    /// What kind of artifact it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<MediaType>,
}

impl Referrer {
    /// How a list has `document`, whose descriptor is `target`.
    pub fn of(target: &Descriptor, document: &Document) -> Self {
        let mut descriptor = Descriptor::new(target.media_type.clone(), target.digest, target.size);
        descriptor.annotations = document.annotations().clone();
        Self { descriptor, artifact_type: document.artifact_type().cloned() }
    }

    /// The tag of the index that lists the referrers of `subject` where a registry does not: distribution-spec v1.1.1,
    /// "Referrers Tag Schema",
    /// <https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema>.
    pub fn tag(subject: &Digest) -> String {
        const LONGEST: usize = 64;
        let mut hex = subject.hex();
        hex.truncate(LONGEST);
        format!("{}-{hex}", subject.algorithm().as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;
    use crate::oci::Algorithm;

    #[test]
    fn a_list_has_what_the_manifest_says_of_itself() {
        let manifest = r#"{"schemaVersion":2,"artifactType":"text/plain","config":{"mediaType":"a/b","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[],"annotations":{"b":"2","a":"1"}}"#;
        let document = Document::parse(manifest.as_bytes(), &MediaType::OCI_MANIFEST).unwrap();
        let target = Descriptor::of(MediaType::OCI_MANIFEST, manifest.as_bytes()).named("dropped");
        let referrer = Referrer::of(&target, &document);
        let text = String::from_utf8(json::to_canonical(&referrer)).unwrap();
        let (digest, size) = (target.digest, manifest.len());
        assert_eq!(
            text,
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size},"annotations":{{"a":"1","b":"2"}},"artifactType":"text/plain"}}"#
            )
        );
        assert_eq!(json::parse_as::<Referrer>(text.as_bytes()).unwrap(), referrer);
    }

    #[test]
    fn the_tag_is_the_digest_in_the_letters_of_a_tag() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Referrer::tag(&Digest::of(b"")), format!("sha256-{empty}"));
        let long = Algorithm::Sha512.digest(b"");
        assert_eq!(Referrer::tag(&long), format!("sha512-{}", &long.hex()[..64]));
    }
}
