//! Gemma 3: dense, source names, with or without the vision tower.

use super::{Family, OLDEST_RUNTIME};

pub(super) static FAMILY: Family = Family {
    name: "gemma3",
    architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_types: &["gemma3", "gemma3_text"],
    embedding: "embed_tokens.weight",
    experts: None,
    policy: |_| None,
    rules: "generic",
    requires: Some(OLDEST_RUNTIME),
};
