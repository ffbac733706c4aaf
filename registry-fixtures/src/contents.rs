//! What the registry holds, per repository, and the checks a manifest must pass.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::reply::Refusal;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// The SHA-256 digest of `bytes` as registries spell it.
pub fn digest(bytes: &[u8]) -> String {
    let hex = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("sha256:{hex}")
}

/// Whether `text` is a SHA-256 digest in its only spelling.
pub(crate) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

/// Whether `name` is a repository's name by the grammar of distribution-spec v1.1.1:
/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, several with `/` between them.
pub(crate) fn is_repository(name: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    name.len() <= 255
        && name.split('/').all(|component| {
            let mut separator = String::new();
            let bytes = component.as_bytes();
            bytes.first().is_some_and(alphanumeric)
                && bytes.last().is_some_and(alphanumeric)
                && component.chars().all(|character| {
                    if character.is_ascii_digit() || character.is_ascii_lowercase() {
                        separator.clear();
                        return true;
                    }
                    separator.push(character);
                    matches!(separator.as_str(), "." | "_" | "__") || separator.chars().all(|each| each == '-')
                })
        })
}

/// Whether `tag` is a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

/// A manifest with the type it was pushed as.
#[derive(Clone, Debug)]
pub(crate) struct StoredManifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
}

/// One repository: nothing in it is visible from another.
#[derive(Debug, Default)]
pub(crate) struct Repository {
    pub(crate) blobs: BTreeMap<String, Bytes>,
    pub(crate) manifests: BTreeMap<String, StoredManifest>,
    pub(crate) tags: BTreeMap<String, String>,
}

impl Repository {
    /// The digest and the manifest that `reference`, a tag or a digest, names.
    pub(crate) fn manifest(&self, reference: &str) -> Option<(&str, &StoredManifest)> {
        let digest = self.tags.get(reference).map_or(reference, String::as_str);
        self.manifests.get_key_value(digest).map(|(digest, manifest)| (digest.as_str(), manifest))
    }

    /// Stores a manifest that passes every check, under `reference`; returns its digest and that of
    /// its subject.
    pub(crate) fn put_manifest(
        &mut self,
        reference: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(String, Option<String>), Refusal> {
        let digest = digest(&bytes);
        if is_digest(reference) && reference != digest {
            return Err(Refusal::new(400, "DIGEST_INVALID", format!("the manifest's digest is {digest}")));
        }
        if !is_digest(reference) && !is_tag(reference) {
            return Err(Refusal::new(400, "MANIFEST_INVALID", format!("not a tag or a digest: {reference}")));
        }
        let subject = self.check_manifest(media_type, &bytes)?;
        self.manifests.insert(digest.clone(), StoredManifest { media_type: media_type.to_owned(), bytes });
        if is_tag(reference) {
            self.tags.insert(reference.to_owned(), digest.clone());
        }
        Ok((digest, subject))
    }

    fn check_manifest(&self, media_type: &str, bytes: &[u8]) -> Result<Option<String>, Refusal> {
        let invalid = |message: String| Refusal::new(400, "MANIFEST_INVALID", message);
        let manifest: Value =
            serde_json::from_slice(bytes).map_err(|error| invalid(format!("the manifest is not JSON: {error}")))?;
        if manifest["schemaVersion"] != 2 {
            return Err(invalid("schemaVersion is not 2".to_owned()));
        }
        match manifest.get("mediaType").map(Value::as_str) {
            Some(Some(inner)) if inner == media_type => {}
            None if [OCI_MANIFEST, OCI_INDEX].contains(&media_type) => {}
            inner => return Err(invalid(format!("mediaType is {inner:?}, but Content-Type is {media_type}"))),
        }
        let list =
            |key: &str| manifest[key].as_array().cloned().ok_or_else(|| invalid(format!("`{key}` is not a list")));
        match media_type {
            OCI_MANIFEST | DOCKER_MANIFEST => {
                if manifest.get("manifests").is_some() {
                    return Err(invalid("a manifest has no `manifests`".to_owned()));
                }
                let mut blobs = list("layers")?;
                blobs.push(manifest["config"].clone());
                for blob in &blobs {
                    self.check_descriptor(blob, |digest| self.blobs.get(digest).map(Bytes::len))?;
                }
            }
            OCI_INDEX | DOCKER_LIST => {
                if manifest.get("layers").is_some() || manifest.get("config").is_some() {
                    return Err(invalid("an index has no `layers` and no `config`".to_owned()));
                }
                for child in &list("manifests")? {
                    self.check_descriptor(child, |digest| {
                        self.manifests.get(digest).map(|manifest| manifest.bytes.len())
                    })?;
                }
            }
            other => return Err(Refusal::new(415, "MANIFEST_INVALID", format!("unknown type {other}"))),
        }
        Ok(manifest["subject"]["digest"].as_str().map(str::to_owned))
    }

    /// Whether what `descriptor` points at is here, with the size it says.
    fn check_descriptor(&self, descriptor: &Value, size_of: impl Fn(&str) -> Option<usize>) -> Result<(), Refusal> {
        let invalid = |what: &str| Refusal::new(400, "MANIFEST_INVALID", format!("{what}: {descriptor}"));
        let digest = descriptor["digest"].as_str().filter(|digest| is_digest(digest));
        let digest = digest.ok_or_else(|| invalid("a descriptor without a digest"))?;
        let size = descriptor["size"].as_u64().ok_or_else(|| invalid("a descriptor without a size"))?;
        if !descriptor["mediaType"].as_str().is_some_and(|media_type| media_type.contains('/')) {
            return Err(invalid("a descriptor without a media type"));
        }
        match size_of(digest) {
            None => Err(Refusal::new(400, "MANIFEST_BLOB_UNKNOWN", format!("{digest} is not in this repository"))),
            Some(actual) if actual as u64 != size => {
                Err(Refusal::new(400, "SIZE_INVALID", format!("{digest} has {actual} bytes, not {size}")))
            }
            Some(_) => Ok(()),
        }
    }

    /// The descriptors of the manifests whose subject is `digest`.
    pub(crate) fn referrers(&self, digest: &str) -> Vec<Value> {
        let refers = self.manifests.iter().filter_map(|(own_digest, stored)| {
            let manifest: Value = serde_json::from_slice(&stored.bytes).ok()?;
            let artifact_type = match &manifest["artifactType"] {
                Value::Null => manifest["config"]["mediaType"].clone(),
                written => written.clone(),
            };
            (manifest["subject"]["digest"] == digest).then(|| {
                let mut descriptor = serde_json::json!({
                    "mediaType": stored.media_type,
                    "digest": own_digest,
                    "size": stored.bytes.len(),
                    "artifactType": artifact_type,
                });
                if let Some(annotations) = manifest.get("annotations") {
                    descriptor["annotations"] = annotations.clone();
                }
                descriptor
            })
        });
        refers.collect()
    }

    /// Removes a manifest and the tags that point at it, or only a tag; says whether it was there.
    pub(crate) fn delete_manifest(&mut self, reference: &str) -> bool {
        if self.tags.remove(reference).is_some() {
            return true;
        }
        let was_there = self.manifests.remove(reference).is_some();
        let left: BTreeSet<&String> = self.manifests.keys().collect();
        self.tags.retain(|_, digest| left.contains(digest));
        was_there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for name in ["a", "a/b", "a.b_c__d-e---f/0", "blobs/uploads"] {
            assert!(is_repository(name), "{name}");
        }
        for name in ["", "A", "a//b", "/a", "a/", "-a", "a-", "a..b", "a___b", "a._b", "a-_b", "a b"] {
            assert!(!is_repository(name), "{name}");
        }
        assert!(is_tag("_v1.0-int4") && !is_tag(".v1") && !is_tag("") && !is_tag(&"a".repeat(129)));
    }

    #[test]
    fn a_digest_has_one_spelling() {
        let empty = digest(b"");
        assert_eq!(empty, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(is_digest(&empty) && !is_digest(&empty.to_uppercase()) && !is_digest(&empty[1..]));
    }
}
