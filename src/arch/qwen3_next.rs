//! Qwen3-Next: linear attention with fused `in_proj_ba`, experts as in Qwen3 MoE.

use super::mlx::{DENSE, Mlx, Module, NORMED_ATTENTION, NORMS, PLAIN, matrix, parameter};
use super::qwen3_5::{GATES, LAYER, MOE, OFFSET_NORMS, keep_gates, shifted_twice};
use super::qwen3_moe::EXPERTS;
use super::required::NORM;
use super::{Family, ORDINARY};

pub(super) static FAMILY: Family = Family {
    name: "qwen3_next",
    misread: shifted_twice,
    architectures: &[
        "Qwen3NextForCausalLM",
        "Qwen3NextForConditionalGeneration",
        "Qwen3NextMoeForCausalLM",
        "Qwen3NextMoeForConditionalGeneration",
    ],
    model_types: &["qwen3_next"],
    model: NORM,
    layer: LAYER,
    experts: Some(&EXPERTS),
    policy: keep_gates,
    rules: "generic, gates of linear attention kept",
    requires: Some("0.23.1"),
    mlx: &[Mlx {
        model_types: &["qwen3_next"],
        rename: |name, _| (!name.contains("mtp.")).then(|| name.to_owned()),
        blocks: &[&[NORMED_ATTENTION, LINEAR_ATTENTION], &[DENSE, MOE], &[NORMS]],
        eight_bits: GATES,
        offset_norms: OFFSET_NORMS,
        ..PLAIN
    }],
    ..ORDINARY
};

const LINEAR_ATTENTION: &[Module] = &[
    parameter("linear_attn.conv1d.weight"),
    matrix("linear_attn.in_proj_qkvz"),
    matrix("linear_attn.in_proj_ba"),
    parameter("linear_attn.dt_bias"),
    parameter("linear_attn.A_log"),
    parameter("linear_attn.norm.weight"),
    matrix("linear_attn.out_proj"),
];
