//! Gemma 4, dense and MoE. Experts come fused (`experts.gate_up_proj`) or, in the first release, split
//! (`moe.{gate,up,down}_proj`); they are always written fused, under the `moe.switch_mlp` that published
//! clients look for.

use super::experts::layer_number;
use super::gemma3::{GEMMA_NORMS, NORMS, fill_text_config};
use super::mlx::{APART, DENSE, Head, Mlx, Module, PLAIN, Tied, matrix, parameter};
use super::required::{self, Need, When};
use super::{Choice, ExpertLayout, Family, ModelFacts, ORDINARY, Projection, Question, Stacking};

pub(super) static FAMILY: Family = Family {
    name: "gemma4",
    architectures: &["Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"],
    model_types: &["gemma4", "gemma4_text"],
    model: &[
        Need(When::Always, &[&["norm.weight"]]),
        Need(
            When::Config(&["hidden_size_per_layer_input"]),
            &[&[
                "embed_tokens_per_layer.weight",
                "per_layer_model_projection.weight",
                "per_layer_projection_norm.weight",
            ]],
        ),
    ],
    layer: &[
        Need(When::Always, GEMMA_NORMS),
        Need(When::Always, &[&["self_attn.q_proj.weight", "self_attn.q_norm.weight", "self_attn.o_proj.weight"]]),
        Need(When::OwnKeys, &[&["self_attn.k_proj.weight", "self_attn.k_norm.weight"]]),
        Need(When::OwnValues, &[&["self_attn.v_proj.weight"]]),
        Need(When::Always, required::DENSE),
        Need(
            When::Config(&["enable_moe_block"]),
            &[
                &["router.proj.weight", "router.scale", "router.per_expert_scale"],
                &["router.proj.weight", "router.scale", "moe.per_expert_scale"],
            ],
        ),
        Need(
            When::Config(&["enable_moe_block"]),
            &[&[
                "post_feedforward_layernorm_1.weight",
                "post_feedforward_layernorm_2.weight",
                "pre_feedforward_layernorm_2.weight",
            ]],
        ),
        Need(
            When::Config(&["hidden_size_per_layer_input"]),
            &[&["per_layer_input_gate.weight", "per_layer_projection.weight", "post_per_layer_input_norm.weight"]],
        ),
    ],
    experts: Some(&EXPERTS),
    policy: choose,
    rules: "embedding at 8 bits; below 8 bits, v and down projections at 8 bits in the sensitive layers",
    requires: Some("0.23.1"),
    mlx: &[
        Mlx { model_types: &["gemma4_text"], rename: rename_text, ..MLX },
        Mlx {
            model_types: &["gemma4", "gemma4_unified"],
            rename,
            config: |config| fill_text_config(config, [262_144, 8, 1]),
            base: "language_model.model",
            head: Head { path: "language_model.lm_head", tied: Tied::Config { default: true } },
            ..MLX
        },
    ],
    ..ORDINARY
};

const EXPERTS: ExpertLayout = ExpertLayout {
    homes: &["experts", "experts.switch_glu", "moe.experts", "moe.switch_mlp", "moe"],
    spelling: Projection::name,
    router: "router.proj.weight",
    target: "moe.switch_mlp",
    blob: "moe.switch_mlp",
    projections: &[Projection::Down, Projection::GateUp],
    stacking: Stacking::Plain,
};

const MLX: Mlx = Mlx {
    experts: Some(&ExpertLayout { target: "experts.switch_glu", projections: APART, ..EXPERTS }),
    head: Head { path: "lm_head", tied: Tied::Config { default: true } },
    outer: &[
        matrix("embed_tokens"),
        parameter("norm.weight"),
        matrix("embed_tokens_per_layer").optional(),
        matrix("per_layer_model_projection").optional(),
        parameter("per_layer_projection_norm.weight").optional(),
    ],
    blocks: &[&[ATTENTION], &[DENSE], &[NORMS], &[LAYER], &[MOE, &[]]],
    eight_bits: &["router.proj"],
    ..PLAIN
};

/// The last layers may share keys and values, and full attention may use its keys as values.
const ATTENTION: &[Module] = &[
    matrix("self_attn.q_proj"),
    matrix("self_attn.k_proj").optional(),
    matrix("self_attn.v_proj").optional(),
    matrix("self_attn.o_proj"),
    parameter("self_attn.q_norm.weight"),
    parameter("self_attn.k_norm.weight").optional(),
];

const LAYER: &[Module] = &[
    parameter("layer_scalar").optional(),
    matrix("per_layer_input_gate").optional(),
    matrix("per_layer_projection").optional(),
    parameter("post_per_layer_input_norm.weight").optional(),
];

const MOE: &[Module] = &[
    matrix("router.proj"),
    parameter("router.scale"),
    parameter("router.per_expert_scale"),
    matrix("experts.switch_glu.gate_proj"),
    matrix("experts.switch_glu.up_proj"),
    matrix("experts.switch_glu.down_proj"),
    parameter("post_feedforward_layernorm_1.weight"),
    parameter("post_feedforward_layernorm_2.weight"),
    parameter("pre_feedforward_layernorm_2.weight"),
];

/// Towers are dropped, the language model moves.
fn rename(name: &str, facts: &ModelFacts) -> Option<String> {
    const TOWERS: [&str; 6] =
        ["vision_tower", "multi_modal_projector", "audio_tower", "embed_audio", "embed_vision", "vision_embedder"];
    let inner = name.strip_prefix("model.").unwrap_or(name);
    if TOWERS.iter().any(|tower| inner.starts_with(tower)) {
        return None;
    }
    match inner.strip_prefix("language_model.") {
        Some(rest) if inner != name => rename_text(&format!("language_model.model.{rest}"), facts),
        _ => rename_text(inner, facts),
    }
}

/// Ranges for quantized activations are dropped, and the keys and values of layers that use another's.
fn rename_text(name: &str, facts: &ModelFacts) -> Option<String> {
    let range = ["self_attn.rotary_emb", "input_max", "input_min", "output_max", "output_min"];
    let key_or_value = [".self_attn.k_proj", ".self_attn.v_proj", ".self_attn.k_norm"];
    let first_shared = facts.layers.map(|layers| layers.saturating_sub(facts.layers_sharing_keys));
    let contains = |fragments: &[&str]| fragments.iter().any(|fragment| name.contains(fragment));
    let is_shared = layer_number(name).zip(first_shared).is_some_and(|(layer, first)| layer >= first);
    (!(contains(&range) || is_shared && contains(&key_or_value))).then(|| name.to_owned())
}

pub(super) fn choose(question: &Question<'_>) -> Option<Choice> {
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
