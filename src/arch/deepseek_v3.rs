//! DeepSeek V3: latent attention, experts one by one, written as the stacked `mlp.switch_mlp`; the generic
//! policy. Its extra prediction layer, behind the last one the config counts, is kept. No Ollama loads
//! it from safetensors yet.

use super::Family;
use super::mlx::{LATENT, Mlx};
use super::qwen3_moe::EXPERTS;

pub(super) static FAMILY: Family = Family {
    name: "deepseek_v3",
    architectures: &["DeepseekV3ForCausalLM"],
    model_types: &["deepseek_v3"],
    embedding: "embed_tokens.weight",
    experts: Some(&EXPERTS),
    policy: |_| None,
    rules: "generic",
    requires: None,
    mlx: &[Mlx { model_types: &["deepseek_v3"], ..LATENT }],
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
