//! Llama: dense, source names.

use super::Family;

pub(super) static FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    model_types: &["llama"],
    embedding: "embed_tokens.weight",
    experts: None,
    policy: |_| None,
    requires: "0.19.0",
};
