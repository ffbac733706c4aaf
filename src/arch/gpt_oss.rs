//! gpt-oss: stacked experts with true biases, gate and up rows in turn, in MXFP4 or in bfloat16; written apart, under
//! the names that `mlx-lm` gives them. No runtime in profile `ollama` loads it from safetensors yet.

use super::mlx::{self, Head, Mlx, Module, PLAIN, Tied, matrix, parameter};
use super::required::{ATTENTION, ATTENTION_BIASES, NORM, NORMS, Need, When};
use super::{Choice, ExpertLayout, Family, ORDINARY, Projection, Question, Stacking};

pub(super) static FAMILY: Family = Family {
    name: "gpt_oss",
    expert_globals: true,
    architectures: &["GptOssForCausalLM"],
    model_types: &["gpt_oss"],
    model: NORM,
    layer: &[
        Need(When::Always, NORMS),
        Need(When::Always, ATTENTION),
        Need(When::Config(&["attention_bias"]), ATTENTION_BIASES),
        Need(When::Config(&["attention_bias"]), &[&["self_attn.o_proj.bias"]]),
        Need(When::Always, &[&["self_attn.sinks"]]),
        Need(When::Always, &[&["mlp.router.weight", "mlp.router.bias"]]),
    ],
    experts: Some(&ExpertLayout {
        homes: &["mlp.experts"],
        spelling: Projection::name,
        router: "mlp.router.weight",
        target: "mlp.experts",
        blob: "mlp.experts",
        projections: &[Projection::Down, Projection::Gate, Projection::Up],
        stacking: Stacking::InTurn,
    }),
    policy: choose,
    rules: "generic, router kept",
    mlx: &[Mlx {
        model_types: &["gpt_oss"],
        head: Head { path: "lm_head", tied: Tied::Never },
        blocks: &[&[mlx::ATTENTION], &[&[parameter("self_attn.sinks")]], &[MOE], &[mlx::NORMS]],
        eight_bits: &["router"],
        ..PLAIN
    }],
    ..ORDINARY
};

const MOE: &[Module] = &[
    matrix("mlp.experts.gate_proj"),
    matrix("mlp.experts.up_proj"),
    matrix("mlp.experts.down_proj"),
    matrix("mlp.router"),
];

/// The router is kept as every other family's is, though the generic list does not have its name.
fn choose(question: &Question<'_>) -> Option<Choice> {
    question.ends(&[".mlp.router.weight"]).then(|| Choice::keep("router"))
}
