//! DeepSeek V3: latent attention, experts one by one, written as the stacked `mlp.switch_mlp`; the generic
//! policy. Its extra prediction layer, behind the last one the config counts, is kept. No Ollama loads
//! it from safetensors yet.

use super::mlx::{LATENT, Mlx};
use super::qwen3_moe::EXPERTS;
use super::required::{DENSE, FUSED_DENSE, Form, NORM, NORMS, Need, SHARED_EXPERTS, SPLIT_DENSE, When};
use super::{Family, ORDINARY};

/// Shared with GLM-4 MoE Lite: latent attention, its queries of low rank or not, its keys and values as published or as
/// `mlx-lm` absorbs them.
pub(super) const LAYER: &[Need] = &[
    Need(When::Always, NORMS),
    Need(When::Always, &[LOW_RANK_QUERIES, &["self_attn.q_proj.weight"]]),
    Need(
        When::Always,
        &[&["self_attn.kv_a_proj_with_mqa.weight", "self_attn.kv_a_layernorm.weight", "self_attn.o_proj.weight"]],
    ),
    Need(
        When::Always,
        &[&["self_attn.kv_b_proj.weight"], &["self_attn.embed_q.weight", "self_attn.unembed_out.weight"]],
    ),
    Need(When::Dense, DENSE),
    Need(When::Always, &[ROUTER, SPLIT_DENSE, FUSED_DENSE]),
    Need(When::Beside("mlp.gate.weight", &["n_shared_experts"]), &[SHARED_EXPERTS]),
];
const LOW_RANK_QUERIES: Form =
    &["self_attn.q_a_proj.weight", "self_attn.q_a_layernorm.weight", "self_attn.q_b_proj.weight"];
const ROUTER: Form = &["mlp.gate.weight", "mlp.gate.e_score_correction_bias"];

pub(super) static FAMILY: Family = Family {
    name: "deepseek_v3",
    expert_globals: true,
    architectures: &["DeepseekV3ForCausalLM"],
    model_types: &["deepseek_v3"],
    model: NORM,
    layer: LAYER,
    experts: Some(&EXPERTS),
    mlx: &[Mlx { model_types: &["deepseek_v3"], ..LATENT }],
    ..ORDINARY
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ModelFacts, Question};
    use crate::quant::Scheme;

    #[test]
    fn the_generic_policy_for_latent_attention_and_experts() {
        let facts = ModelFacts { layers: Some(61), ..ModelFacts::default() };
        let (int4, int8, nvfp4, mxfp8) = (Scheme::INT4, Scheme::INT8, Scheme::Nvfp4, Scheme::Mxfp8);
        for (base, name, shape, expected) in [
            (int4, "model.embed_tokens.weight", &[320, 64][..], None),
            (int4, "lm_head.weight", &[320, 64], Some(int8)),
            (int4, "model.layers.3.self_attn.kv_b_proj.weight", &[128, 64], Some(int4)),
            (int4, "model.layers.3.mlp.gate.weight", &[64, 64], None),
            (int4, "model.layers.3.mlp.experts.down_proj.weight", &[4, 64, 64], Some(int8)),
            (nvfp4, "model.layers.3.mlp.experts.down_proj.weight", &[4, 64, 64], Some(nvfp4)),
            (nvfp4, "model.layers.0.mlp.down_proj.weight", &[64, 64], Some(mxfp8)),
        ] {
            let choice = FAMILY.choose(&Question { base, name, shape, facts: &facts });
            assert_eq!(choice.scheme, expected, "{base} {name} {shape:?}");
        }
    }
}
