//! Mistral: dense, source names.

use super::Family;

pub(super) static FAMILY: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM"],
    model_types: &["mistral"],
    embedding: "embed_tokens.weight",
    experts: None,
    policy: |_| None,
    requires: "0.19.0",
};
