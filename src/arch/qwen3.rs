//! Qwen3, dense: source names.

use super::{Family, OLDEST_RUNTIME};

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    embedding: "embed_tokens.weight",
    experts: None,
    policy: |_| None,
    rules: "generic",
    requires: Some(OLDEST_RUNTIME),
};
