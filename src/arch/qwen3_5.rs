//! Qwen3.5, dense and MoE, text and vision. Norms and `conv1d` keep the source's convention (raw norms
//! with a raw `[channels, 1, kernel]` convolution), and `mtp.*` and the vision tower keep their names:
//! runtimes infer one from the other, so that touching either would break both.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::mlx::{DENSE, Head, Mlx, Module, NORMED_ATTENTION, NORMS, PLAIN, SWITCH, Tied, matrix, parameter};
use super::qwen3_moe::EXPERTS;
use super::required::{self, Form, NORM, Need, QUERY_KEY_NORMS, ROUTER_OR_DENSE, SPLIT_ATTENTION, When};
use super::{Choice, Family, LayerKind, ModelFacts, ORDINARY, Question};
use crate::error::quoted;

/// What linear attention has in every form.
const STATE: Form = &[
    "linear_attn.A_log",
    "linear_attn.dt_bias",
    "linear_attn.conv1d.weight",
    "linear_attn.norm.weight",
    "linear_attn.out_proj.weight",
];
/// Its inputs, apart as Qwen3.5 has them, or in two as Qwen3-Next.
const INPUTS: &[Form] = &[
    &[
        "linear_attn.in_proj_qkv.weight",
        "linear_attn.in_proj_z.weight",
        "linear_attn.in_proj_b.weight",
        "linear_attn.in_proj_a.weight",
    ],
    &["linear_attn.in_proj_qkvz.weight", "linear_attn.in_proj_ba.weight"],
];

/// Shared with Qwen3-Next.
pub(super) const LAYER: &[Need] = &[
    Need(When::Always, required::NORMS),
    Need(When::Kind(LayerKind::Recurrent), &[STATE]),
    Need(When::Kind(LayerKind::Recurrent), INPUTS),
    Need(When::Kind(LayerKind::Full), &[SPLIT_ATTENTION]),
    Need(When::Kind(LayerKind::Full), QUERY_KEY_NORMS),
    Need(When::Always, &[SPLIT_ATTENTION, STATE]),
    Need(When::Dense, required::DENSE),
    Need(When::Always, ROUTER_OR_DENSE),
    Need(
        When::Beside("mlp.gate.weight", &["shared_expert_intermediate_size"]),
        &[&[
            "mlp.shared_expert.gate_proj.weight",
            "mlp.shared_expert.up_proj.weight",
            "mlp.shared_expert.down_proj.weight",
            "mlp.shared_expert_gate.weight",
        ]],
    ),
];

/// The gates of linear attention are small and decide what is remembered.
pub(super) fn keep_gates(question: &Question<'_>) -> Option<Choice> {
    question
        .ends(&[".linear_attn.in_proj_a.weight", ".linear_attn.in_proj_b.weight", ".linear_attn.in_proj_ba.weight"])
        .then_some(Choice::keep("gate of linear attention"))
}

/// A runtime adds one to the norms of a checkpoint that has `mtp.*` or raw convolutions. mlx-lm has added it already
/// where it has turned the convolutions to `[channels, kernel, 1]`, and drops `mtp.*`: with it, one would be added twice.
pub(super) fn shifted_twice(tensors: &BTreeMap<&str, &[u64]>) -> Option<String> {
    let turned = |(name, shape): (&&str, &&[u64])| {
        name.ends_with(".linear_attn.conv1d.weight") && matches!(shape, [_, kernel, 1] if *kernel != 1)
    };
    let (turned, _) = tensors.iter().find(|tensor| turned(*tensor))?;
    let heads = tensors.keys().find(|name| name.contains("mtp."))?;
    Some(format!(
        "{} is in the form of MLX, which has no {}: norms would be shifted twice",
        quoted(turned),
        quoted(heads)
    ))
}

pub(super) static FAMILY: Family = Family {
    name: "qwen3_5",
    misread: shifted_twice,
    architectures: &[
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
    ],
    model_types: &["qwen3_5", "qwen3_5_moe", "qwen3_5_text", "qwen3_5_moe_text"],
    model: NORM,
    layer: LAYER,
    experts: Some(&EXPERTS),
    policy: keep_gates,
    rules: "generic, gates of linear attention kept",
    requires: Some("0.23.1"),
    mlx: &[Mlx {
        model_types: &["qwen3_5", "qwen3_5_moe"],
        rename,
        config,
        base: "language_model.model",
        head: Head { path: "language_model.lm_head", tied: Tied::Config { default: false } },
        blocks: &[&[NORMED_ATTENTION, LINEAR_ATTENTION], &[DENSE, MOE], &[NORMS]],
        eight_bits: GATES,
        keep_type: &["A_log"],
        offset_norms: OFFSET_NORMS,
        ..PLAIN
    }],
    ..ORDINARY
};

const LINEAR_ATTENTION: &[Module] = &[
    parameter("linear_attn.conv1d.weight"),
    matrix("linear_attn.in_proj_qkv"),
    matrix("linear_attn.in_proj_z"),
    matrix("linear_attn.in_proj_b"),
    matrix("linear_attn.in_proj_a"),
    parameter("linear_attn.dt_bias"),
    parameter("linear_attn.A_log"),
    parameter("linear_attn.norm.weight"),
    matrix("linear_attn.out_proj"),
];

pub(super) const MOE: &[Module] = &[
    SWITCH[0],
    SWITCH[1],
    SWITCH[2],
    matrix("mlp.gate"),
    matrix("mlp.shared_expert.gate_proj"),
    matrix("mlp.shared_expert.up_proj"),
    matrix("mlp.shared_expert.down_proj"),
    matrix("mlp.shared_expert_gate"),
];

pub(super) const GATES: &[&str] = &["mlp.gate", "shared_expert_gate"];

pub(super) const OFFSET_NORMS: &[&str] = &[
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
];

/// Positions go by `type` in mlx-lm, which is the older word for `rope_type`.
fn config(config: &mut Map<String, Value>) {
    let text = match config.get_mut("text_config").and_then(Value::as_object_mut) {
        Some(text) => text,
        None => config,
    };
    let Some(positions) = text.get_mut("rope_parameters").and_then(Value::as_object_mut) else { return };
    if !positions.contains_key("type") {
        positions.remove("rope_type").into_iter().for_each(|kind| _ = positions.insert("type".to_owned(), kind));
    }
}

/// The vision tower and the layers that predict more than the next token are dropped.
fn rename(name: &str, _: &ModelFacts) -> Option<String> {
    if name.starts_with("vision_tower") || name.starts_with("model.visual") || name.contains("mtp.") {
        return None;
    }
    Some(match name.strip_prefix("model.language_model") {
        Some(rest) => format!("language_model.model{rest}"),
        None if name.starts_with("language_model.") => name.to_owned(),
        None => format!("language_model.{name}"),
    })
}
