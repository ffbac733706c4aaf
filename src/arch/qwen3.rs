//! Qwen3, dense: source names.

use super::Family;

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    embedding: "embed_tokens.weight",
    experts: None,
    policy: |_| None,
    requires: "0.19.0",
};
