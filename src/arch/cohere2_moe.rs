//! Cohere 2 MoE: experts one by one, written as the stacked `mlp.switch_mlp`. The embedding is also the
//! output head, and only the sensitive layers pay for more bits.

use super::glm4_moe_lite::EXPERTS;
use super::required::{ATTENTION, DENSE, NORM, Need, ROUTER_OR_DENSE, SHARED_EXPERT, SHARED_EXPERTS, When};
use super::{Choice, Family, ORDINARY, Question};

pub(super) static FAMILY: Family = Family {
    name: "cohere2_moe",
    architectures: &["Cohere2MoeForCausalLM"],
    model_types: &["cohere2_moe"],
    model: NORM,
    layer: &[
        // One norm: attention and MLP read the same.
        Need(When::Always, &[&["input_layernorm.weight"]]),
        Need(When::Always, ATTENTION),
        Need(When::Dense, DENSE),
        Need(When::Always, ROUTER_OR_DENSE),
        Need(When::Beside("mlp.gate.weight", &["num_shared_experts"]), &[SHARED_EXPERTS, SHARED_EXPERT]),
    ],
    experts: Some(&EXPERTS),
    policy: choose,
    rules: "embedding at 8 bits; below 8 bits, k, v and down projections at 8 bits in the sensitive layers",
    // The first release with the architecture, which knew `mlp.switch_mlp` alone; from 0.31.2 on it comes
    // second, behind the stacked `mlp.experts`.
    requires: Some("0.30.10"),
    ..ORDINARY
};

fn choose(question: &Question<'_>) -> Option<Choice> {
    if question.is_embedding() {
        return Some(question.eight_bit_or_keep("embedding, also the output head: 8 bits"));
    }
    // The router is kept by the generic rules. Biases share the projections' names.
    let sensitive = question.contains(&[".v_proj", ".k_proj", "down_proj"])
        && question.shape.len() >= 2
        && question.depth().is_some();
    (sensitive && question.is_four_bit())
        .then(|| question.sensitive(question.in_sensitive_layer(), "sensitive projection in a sensitive layer: 8 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ModelFacts;
    use crate::quant::Scheme;

    #[test]
    fn the_rules_of_sixteen_layers() {
        let (int4, int8, nvfp4, mxfp8) = (Scheme::INT4, Scheme::INT8, Scheme::Nvfp4, Scheme::Mxfp8);
        let facts = ModelFacts { layers: Some(16), ..ModelFacts::default() };
        for (base, name, shape, expected) in [
            (int4, "model.embed_tokens.weight", &[320, 64][..], Some(int8)),
            (nvfp4, "model.embed_tokens.weight", &[320, 64], Some(mxfp8)),
            (int4, "model.embed_tokens.weight", &[320, 96], None),
            (nvfp4, "model.layers.0.mlp.gate.weight", &[64, 64], None),
            (int4, "model.layers.0.self_attn.v_proj.weight", &[64, 64], Some(int8)),
            (int4, "model.layers.2.self_attn.v_proj.weight", &[64, 64], Some(int4)),
            (int4, "model.layers.4.self_attn.k_proj.weight", &[64, 64], Some(int8)),
            (int4, "model.layers.5.self_attn.k_proj.weight", &[64, 64], Some(int4)),
            (int4, "model.layers.0.self_attn.q_proj.weight", &[64, 64], Some(int4)),
            (int4, "model.layers.0.self_attn.v_proj.bias", &[1024], None),
            // Experts too, and in floating point too, which the generic rules would not promote.
            (nvfp4, "model.layers.1.mlp.experts.down_proj.weight", &[4, 64, 64], Some(mxfp8)),
            (nvfp4, "model.layers.2.mlp.experts.down_proj.weight", &[4, 64, 64], Some(nvfp4)),
            (int4, "model.layers.2.mlp.shared_experts.down_proj.weight", &[64, 64], Some(int4)),
            (nvfp4, "model.layers.1.mlp.experts.gate_proj.weight", &[4, 64, 64], Some(nvfp4)),
            (nvfp4, "model.layers.15.mlp.down_proj.weight", &[64, 48], Some(nvfp4)),
            (int8, "model.layers.2.self_attn.v_proj.weight", &[64, 64], Some(int8)),
            (mxfp8, "model.layers.2.mlp.experts.down_proj.weight", &[4, 64, 64], Some(mxfp8)),
        ] {
            let choice = FAMILY.choose(&Question { base, name, shape, facts: &facts });
            assert_eq!(choice.scheme, expected, "{base} {name} {shape:?}");
        }
    }

    #[test]
    fn without_a_number_of_layers_the_generic_rules_decide() {
        let name = "model.layers.2.self_attn.v_proj.weight";
        let question = Question { base: Scheme::INT4, name, shape: &[64, 64], facts: &ModelFacts::default() };
        assert_eq!(FAMILY.choose(&question).scheme, Some(Scheme::INT8));
    }
}
