//! `kiln.lock`: the deterministic record from which anyone can check a re-create. It holds content only,
//! so that the same tensors give the same lock wherever they lay and however they were sharded.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::json;

/// The version of the lock's own fields.
pub const SCHEMA_VERSION: u32 = 1;

/// Raised whenever any output byte may change for the same input.
pub const EPOCH: u32 = 1;

/// The record. Fields are declared, and so written, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Lock {
    /// The draft beside the model, when there is one; its tensors are among `tensors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<LockedDraft>,
    /// [`EPOCH`] of the kiln that wrote it.
    pub epoch: u32,
    /// The source kind, `float`.
    pub kind: String,
    /// What a Modelfile set, when it set anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modelfile: Option<LockedModelfile>,
    /// The normalizations that were applied, in order.
    pub normalizations: Vec<String>,
    /// The arithmetic of the kernels.
    pub numerics: String,
    /// [`Lock::RECIPE`] when the schemes of `tensors` follow rules of the user's; none when they follow the
    /// family's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The profile the layers are named for.
    pub profile: String,
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The scheme that was asked for; the resolved one stands with each tensor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Every output tensor, in the order of the manifest.
    pub tensors: Vec<LockedTensor>,
}

/// A draft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedDraft {
    /// Its source kind.
    pub kind: String,
    /// The normalizations that were applied to it, in order.
    pub normalizations: Vec<String>,
    /// The scheme that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
}

/// What came from a Modelfile. The contents are those of the layers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedModelfile {
    /// The names of the layers it set.
    pub layers: Vec<String>,
    /// The parser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parser: Option<String>,
    /// The renderer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renderer: Option<String>,
    /// The lowest runtime version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requires: Option<String>,
}

/// One output tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedTensor {
    /// `block-fp8` when the source's codes and scales are decoded first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode: Option<String>,
    /// The element type before quantization.
    pub dtype: String,
    /// The name of the layer that holds it.
    pub layer: String,
    /// Its name.
    pub name: String,
    /// Set when the source has quantized it: codes and scales are copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed: Option<LockedPacked>,
    /// Its scheme; none when the values are the source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The logical shape, before packing.
    pub shape: Vec<u64>,
    /// Where its bytes come from, in the order in which they are read.
    pub sources: Vec<LockedSource>,
    /// What is done to every value before it is quantized or kept, in order: `add-one`, and `cast` to `dtype`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<String>,
    /// `copy`, `stack`, `split` or `fuse`.
    pub transform: String,
}

/// What the source has beside codes, scales and biases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPacked {
    /// The shape of the global scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub global_scale: Option<Vec<u64>>,
}

/// One source tensor of an output tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedSource {
    /// BLAKE3 of the bytes this output takes from the source, in hex; only where values are transformed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// The source's element type.
    pub dtype: String,
    /// The source's name.
    pub name: String,
    /// The source's shape.
    pub shape: Vec<u64>,
}

impl Lock {
    /// The name of the layer.
    pub const NAME: &str = "kiln.lock";
    /// The policy of a model that was made with a recipe. The rules are not kept: what they resolved to is.
    pub const RECIPE: &str = "recipe";

    /// The blob.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::to_canonical(self)
    }

    /// Reads a lock.
    ///
    /// # Errors
    /// [`ErrorKind::CouldNotCheck`] for a lock of another schema version, [`ErrorKind::Corrupt`] for
    /// anything else that is not a lock.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Versioned {
            schema_version: u64,
        }
        let other =
            json::parse_into(bytes).ok().filter(|lock: &Versioned| lock.schema_version != u64::from(SCHEMA_VERSION));
        if let Some(Versioned { schema_version }) = other {
            let message = format!("`kiln.lock` has the unknown schema version `{schema_version}`");
            return Err(Error::new(ErrorKind::CouldNotCheck, message)
                .hint("use the version of kiln that made the model, or a newer one"));
        }
        // Its fields are all known, and none may be there twice.
        json::parse_into(bytes)
            .map_err(|cause| Error::new(ErrorKind::Corrupt, "`kiln.lock` is not a lock").caused_by(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_wrote_with_keys_in_order() {
        let lock = Lock {
            draft: Some(LockedDraft { kind: "float".into(), normalizations: Vec::new(), scheme: Some("int4".into()) }),
            epoch: EPOCH,
            kind: "float".into(),
            modelfile: Some(LockedModelfile {
                layers: vec!["modelfile/system".into()],
                parser: Some("qwen3".into()),
                renderer: Some("qwen3-coder".into()),
                requires: Some("0.20.0".into()),
            }),
            normalizations: vec!["stack".into()],
            numerics: "mlx-cpu-1".into(),
            policy: Some(Lock::RECIPE.into()),
            profile: "ollama".into(),
            schema_version: SCHEMA_VERSION,
            scheme: Some("int4".into()),
            tensors: vec![LockedTensor {
                decode: None,
                dtype: "BF16".into(),
                layer: "a".into(),
                name: "a".into(),
                packed: None,
                scheme: None,
                shape: vec![2],
                sources: vec![LockedSource { blake3: None, dtype: "BF16".into(), name: "a".into(), shape: vec![2] }],
                steps: vec!["add-one".into()],
                transform: "copy".into(),
            }],
        };
        let bytes = lock.to_bytes();
        assert_eq!(Lock::parse(&bytes).unwrap(), lock);
        assert_eq!(json::to_canonical(&json::parse(&bytes).unwrap()), bytes, "keys are in byte order");
    }

    #[test]
    fn a_field_twice_or_unknown_is_no_lock() {
        let fields = r#""epoch":1,"kind":"float","normalizations":[],"numerics":"n","profile":"p","tensors":[]"#;
        assert!(Lock::parse(format!(r#"{{{fields},"schemaVersion":1}}"#).as_bytes()).is_ok());
        let table = [
            (r#""schemaVersion":1,"kind":"float""#, ErrorKind::Corrupt),
            (r#""schemaVersion":1,"schemaVersion":2"#, ErrorKind::Corrupt),
            (r#""schemaVersion":1,"more":{}"#, ErrorKind::Corrupt),
            (r#""schemaVersion":2,"more":{}"#, ErrorKind::CouldNotCheck),
            (r#""more":{}"#, ErrorKind::Corrupt),
        ];
        for (more, kind) in table {
            let error = Lock::parse(format!("{{{fields},{more}}}").as_bytes()).unwrap_err();
            assert_eq!(error.kind(), kind, "{more}");
        }
    }
}
