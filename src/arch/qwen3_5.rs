//! Qwen3.5, dense and MoE, text and vision. Norms and `conv1d` keep the source's convention (raw norms
//! with a raw `[channels, 1, kernel]` convolution), and `mtp.*` and the vision tower keep their names:
//! runtimes infer one from the other, so that touching either would break both.

use super::Family;
use super::qwen3_moe::EXPERTS;
use super::{Choice, Question};

/// The gates of linear attention are small and decide what is remembered.
pub(super) fn keep_gates(question: &Question<'_>) -> Option<Choice> {
    question
        .ends(&[".linear_attn.in_proj_a.weight", ".linear_attn.in_proj_b.weight", ".linear_attn.in_proj_ba.weight"])
        .then_some(Choice::keep("gate of linear attention"))
}

pub(super) static FAMILY: Family = Family {
    name: "qwen3_5",
    architectures: &[
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
    ],
    model_types: &["qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"],
    embedding: "embed_tokens.weight",
    experts: Some(&EXPERTS),
    policy: keep_gates,
    rules: "generic, gates of linear attention kept",
    requires: Some("0.23.1"),
};
