//! Qwen3-Next: linear attention with fused `in_proj_ba`, experts as in Qwen3 MoE.

use super::Family;
use super::qwen3_5::keep_gates;
use super::qwen3_moe::EXPERTS;

pub(super) static FAMILY: Family = Family {
    name: "qwen3_next",
    architectures: &[
        "Qwen3NextForCausalLM",
        "Qwen3NextForConditionalGeneration",
        "Qwen3NextMoeForCausalLM",
        "Qwen3NextMoeForConditionalGeneration",
    ],
    model_types: &["qwen3_next"],
    embedding: "embed_tokens.weight",
    experts: Some(&EXPERTS),
    policy: keep_gates,
    rules: "generic, gates of linear attention kept",
    requires: Some("0.23.1"),
};
