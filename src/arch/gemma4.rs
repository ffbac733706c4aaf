//! Gemma 4, dense and MoE. Experts come fused (`experts.gate_up_proj`) or, in the first release, split
//! (`moe.{gate,up,down}_proj`); they are always written fused, under the `moe.switch_mlp` that published
//! clients look for.

use super::{Choice, ExpertLayout, Family, Projection, Question};

pub(super) static FAMILY: Family = Family {
    name: "gemma4",
    architectures: &[
        "Gemma4ForCausalLM",
        "Gemma4ForConditionalGeneration",
        "Gemma4UnifiedForCausalLM",
        "Gemma4UnifiedForConditionalGeneration",
    ],
    model_types: &["gemma4", "gemma4_text", "gemma4_unified"],
    embedding: "embed_tokens.weight",
    experts: Some(&ExpertLayout {
        homes: &["experts", "experts.switch_glu", "moe.experts", "moe.switch_mlp", "moe"],
        spelling: Projection::name,
        router: "router.proj.weight",
        target: "moe.switch_mlp",
        blob: "moe.switch_mlp",
        projections: &[Projection::Down, Projection::GateUp],
    }),
    policy: choose,
    rules: "embedding at 8 bits; below 8 bits, v and down projections at 8 bits in the sensitive layers",
    requires: Some("0.23.1"),
};

fn choose(question: &Question<'_>) -> Option<Choice> {
    if question.is_embedding() {
        return Some(question.eight_bit_or_base("embedding, also the output head: 8 bits"));
    }
    // Biases share the projections' names; only matrices can be quantized.
    let sensitive = question.contains(&[".v_proj", ".k_proj", "down_proj"])
        && !question.contains(&["vision", "visual", "audio"])
        && question.shape.len() >= 2;
    (sensitive && question.is_four_bit())
        .then(|| question.sensitive(promoted(question), "sensitive projection in a sensitive layer: 8 bits"))
}

/// Models with eight experts share few key/value heads, so those are always promoted; otherwise values
/// and down projections are, in the sensitive layers.
fn promoted(question: &Question<'_>) -> bool {
    if question.facts.layers.is_some()
        && question.facts.experts == Some(8)
        && question.contains(&[".v_proj", ".k_proj"])
    {
        return true;
    }
    !question.contains(&[".k_proj"]) && question.in_sensitive_layer()
}
