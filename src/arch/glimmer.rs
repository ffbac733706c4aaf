//! Muse Glimmer: dense, source names, in the publisher's form or that of the hub; the vision side keeps its
//! values. Attention has an output gate beside its four projections.

use super::required::{ATTENTION, DENSE, Form, NORM, Need, When};
use super::{Choice, Family, ORDINARY, Question};

pub(super) static FAMILY: Family = Family {
    name: "glimmer",
    expert_globals: true,
    architectures: &["MuseGlimmerForConditionalGeneration"],
    model_types: &["muse_glimmer"],
    model: NORM,
    layer: &[
        Need(When::Always, &[PUBLISHED_NORMS, HUB_NORMS]),
        Need(When::Always, ATTENTION),
        Need(
            When::Config(&["use_attention_output_gate"]),
            &[&["self_attn.gate_proj.weight"], &["self_attn.output_gate_proj.weight"]],
        ),
        Need(When::Always, DENSE),
    ],
    policy: choose,
    rules: "vision side kept; embedding at 8 bits; below 8 bits, attention at 8 bits, its output gate and down projections in the sensitive layers",
    // The first release with the architecture; it looks for the same names as 0.33.
    requires: Some("0.32.7"),
    ..ORDINARY
};

const PUBLISHED_NORMS: Form =
    &["input_layernorm.weight", "post_attention_layernorm.weight", "post_attn_norm.weight", "post_ffn_norm.weight"];
const HUB_NORMS: Form = &[
    "input_layernorm.weight",
    "pre_feedforward_layernorm.weight",
    "post_attention_layernorm.weight",
    "post_feedforward_layernorm.weight",
];

const PROJECTIONS: [&str; 4] = [".self_attn.q_proj", ".self_attn.k_proj", ".self_attn.v_proj", ".self_attn.o_proj"];
const GATE_OR_DOWN: [&str; 3] = [".self_attn.gate_proj", ".self_attn.output_gate_proj", ".mlp.down_proj"];

fn choose(question: &Question<'_>) -> Option<Choice> {
    if question.contains(&["vision", "visual"]) {
        return Some(Choice::keep("vision tower"));
    }
    if question.is_embedding() {
        return Some(question.eight_bit_or_base("embedding: 8 bits"));
    }
    // Biases share the projections' names; only matrices can be quantized.
    if !question.is_four_bit() || question.shape.len() < 2 {
        return None;
    }
    if question.contains(&PROJECTIONS) {
        return Some(question.sensitive(true, "attention: 8 bits"));
    }
    question
        .contains(&GATE_OR_DOWN)
        .then(|| question.sensitive(question.in_sensitive_layer(), "sensitive projection in a sensitive layer: 8 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ModelFacts;
    use crate::quant::Scheme;

    fn scheme(base: Scheme, name: &str, shape: &[u64]) -> Option<Scheme> {
        let facts = ModelFacts::of(&serde_json::json!({
            "architectures": ["MuseGlimmerForConditionalGeneration"],
            "text_config": {"num_hidden_layers": 52},
        }));
        Family::of(&facts).choose(&Question { base, name, shape, facts: &facts }).scheme
    }

    #[test]
    fn the_rules_of_fifty_two_layers() {
        let (int4, int8, nvfp4, mxfp8) = (Scheme::INT4, Scheme::INT8, Scheme::Nvfp4, Scheme::Mxfp8);
        for (base, name, shape, expected) in [
            (nvfp4, "embed_tokens.weight", &[320, 256][..], Some(mxfp8)),
            (int4, "embed_tokens.weight", &[320, 256], Some(int8)),
            (nvfp4, "embed_tokens.weight", &[320, 48], Some(nvfp4)),
            (int4, "embed_tokens.weight", &[320, 48], None),
            (nvfp4, "layers.6.self_attn.q_proj.weight", &[256, 256], Some(mxfp8)),
            (nvfp4, "layers.6.self_attn.o_proj.weight", &[256, 256], Some(mxfp8)),
            (int4, "layers.6.self_attn.k_proj.weight", &[64, 256], Some(int8)),
            (nvfp4, "layers.6.self_attn.v_proj.weight", &[64, 256], Some(mxfp8)),
            (nvfp4, "layers.6.self_attn.v_proj.bias", &[1024], None),
            (nvfp4, "layers.0.self_attn.gate_proj.weight", &[256, 256], Some(mxfp8)),
            (nvfp4, "layers.6.self_attn.gate_proj.weight", &[256, 256], Some(nvfp4)),
            (int4, "layers.8.self_attn.output_gate_proj.weight", &[256, 256], Some(int8)),
            (nvfp4, "layers.0.mlp.down_proj.weight", &[256, 768], Some(mxfp8)),
            (nvfp4, "layers.6.mlp.down_proj.weight", &[256, 768], Some(nvfp4)),
            (int4, "layers.6.mlp.down_proj.weight", &[256, 768], Some(int4)),
            (nvfp4, "layers.8.mlp.down_proj.weight", &[256, 768], Some(mxfp8)),
            (mxfp8, "layers.6.mlp.down_proj.weight", &[256, 768], Some(mxfp8)),
            (nvfp4, "layers.0.mlp.gate_proj.weight", &[768, 256], Some(nvfp4)),
            (nvfp4, "layers.0.post_attn_norm.weight", &[1024], None),
            (int4, "vision_tower.layers.0.attn.q_proj.weight", &[256, 256], None),
            (int4, "vision_encoder.layers.0.attn.q_proj.weight", &[256, 256], None),
            (int4, "vision_adapter.fc1.weight", &[256, 256], None),
            (nvfp4, "vision_projection.weight", &[256, 256], None),
        ] {
            for prefix in ["model.language_model.", "model."] {
                assert_eq!(
                    scheme(base, &format!("{prefix}{name}"), shape),
                    expected,
                    "{base} {prefix}{name} {shape:?}"
                );
            }
        }
        assert_eq!(scheme(nvfp4, "lm_head.weight", &[320, 256]), Some(mxfp8));
        assert_eq!(scheme(int4, "lm_head.weight", &[320, 256]), Some(int8));
    }

    #[test]
    fn the_cadence_of_fifty_two_layers() {
        let promoted: Vec<u64> = (0..52)
            .filter(|layer| {
                let name = format!("model.layers.{layer}.mlp.down_proj.weight");
                scheme(Scheme::Nvfp4, &name, &[64, 64]) == Some(Scheme::Mxfp8)
            })
            .collect();
        let expected: Vec<u64> = (0..6).chain((8..=44).step_by(3)).chain(45..52).collect();
        assert_eq!(promoted, expected);
    }
}
