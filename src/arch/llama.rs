//! Llama: dense, source names.

use super::Family;

pub(super) static FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM"],
    model_types: &["llama"],
    experts: None,
    policy: |_| None,
    requires: "0.19.0",
};
