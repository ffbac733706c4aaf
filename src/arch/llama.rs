//! Llama: dense, source names.

use super::{Family, OLDEST_RUNTIME};

pub(super) static FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    model_types: &["llama"],
    embedding: "embed_tokens.weight",
    experts: None,
    policy: |_| None,
    rules: "generic",
    requires: Some(OLDEST_RUNTIME),
};
