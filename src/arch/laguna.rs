//! Laguna: experts one by one, written as the stacked `mlp.switch_mlp`. Its floating-point schemes have
//! rules of their own: the architecture decides what is sensitive, not the generic list.

use super::experts::layer_number;
use super::glm4_moe_lite::EXPERTS;
use super::mlx::{DENSE, Mlx, Module, NORMED_ATTENTION, NORMS, PLAIN, SWITCH, matrix, parameter};
use super::policy::{generic, more_bits};
use super::required::{self, ATTENTION, FUSED_DENSE, NORM, Need, QUERY_KEY_NORMS, SHARED_EXPERT, SPLIT_DENSE, When};
use super::{Choice, Family, ModelFacts, ORDINARY, Question};

pub(super) static FAMILY: Family = Family {
    name: "laguna",
    expert_globals: true,
    architectures: &["LagunaForCausalLM"],
    model_types: &["laguna"],
    model: NORM,
    layer: &[
        Need(When::Always, required::NORMS),
        Need(When::Always, ATTENTION),
        Need(When::Always, QUERY_KEY_NORMS),
        Need(When::Config(&["gating"]), &[&["self_attn.g_proj.weight"]]),
        Need(When::Dense, required::DENSE),
        Need(
            When::Always,
            &[
                &["mlp.gate.weight", "mlp.experts.e_score_correction_bias"],
                &["mlp.gate.weight", "mlp.gate.e_score_correction_bias"],
                &["mlp.gate.weight", "mlp.switch_mlp.e_score_correction_bias"],
                SPLIT_DENSE,
                FUSED_DENSE,
            ],
        ),
        Need(When::Beside("mlp.gate.weight", &["shared_expert_intermediate_size"]), &[SHARED_EXPERT]),
    ],
    experts: Some(&EXPERTS),
    policy: choose,
    rules: "affine: generic; fp4: embedding and head at 8 bits, projections at the base, shared down projections at 8 bits in the sensitive layers; mxfp8: attention kept",
    requires: Some("0.23.1"),
    partly_quantized: Some("0.32.4"),
    mlx: &[Mlx {
        model_types: &["laguna"],
        rename,
        blocks: &[&[NORMED_ATTENTION], &[&[matrix("self_attn.g_proj").optional()]], &[DENSE, MOE], &[NORMS]],
        eight_bits: &["mlp.gate.proj"],
        keep_type: &["e_score_correction_bias"],
        ..PLAIN
    }],
    ..ORDINARY
};

const MOE: &[Module] = &[
    SWITCH[0],
    SWITCH[1],
    SWITCH[2],
    matrix("mlp.gate.proj"),
    parameter("mlp.gate.e_score_correction_bias"),
    matrix("mlp.shared_expert.gate_proj").optional(),
    matrix("mlp.shared_expert.up_proj").optional(),
    matrix("mlp.shared_expert.down_proj").optional(),
];

/// mlx-lm's router is a module of its own, and has the bias that the checkpoint keeps with the experts.
fn rename(name: &str, _: &ModelFacts) -> Option<String> {
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    let moved = [
        (".mlp.gate.weight", ".mlp.gate.proj.weight"),
        (".mlp.experts.e_score_correction_bias", ".mlp.gate.e_score_correction_bias"),
    ];
    let moved = moved.iter().find_map(|(from, to)| Some(format!("{}{to}", name.strip_suffix(from)?)));
    Some(moved.unwrap_or_else(|| name.to_owned()))
}

const PROJECTED: [&str; 5] = [
    ".self_attn.q_proj.weight",
    ".self_attn.k_proj.weight",
    ".self_attn.v_proj.weight",
    ".self_attn.o_proj.weight",
    ".self_attn.g_proj.weight",
];
const PROJECTIONS: [&str; 3] = [".gate_proj.weight", ".up_proj.weight", ".down_proj.weight"];
const DENSE_PROJECTIONS: [&str; 3] = [".mlp.gate_proj.weight", ".mlp.up_proj.weight", ".mlp.down_proj.weight"];

fn choose(question: &Question<'_>) -> Option<Choice> {
    if question.base.has_biases() {
        return None;
    }
    let eight = !question.is_four_bit();
    let routed = question.contains(&[".mlp.experts."]) && question.ends(&PROJECTIONS);
    let shared = question.contains(&[".mlp.shared_expert."]) && question.ends(&PROJECTIONS);
    let down = question.ends(&[".down_proj.weight"]);
    Some(if question.is_embedding() || question.ends(&["lm_head.weight"]) {
        question.eight_bit_or_keep("embedding or output head: 8 bits")
    } else if question.ends(&[".mlp.gate.weight"]) {
        Choice::keep("router")
    } else if question.contains(&PROJECTED) {
        if eight { Choice::keep("attention at 8 bits") } else { unpromoted(question) }
    } else if question.contains(&DENSE_PROJECTIONS) && is_dense_layer(question) {
        unpromoted(question)
    } else if routed && down && eight && in_sensitive_layer(question) {
        Choice::keep("expert's down projection in a sensitive layer")
    } else if shared && down && eight {
        Choice::keep("shared expert's down projection at 8 bits")
    } else if shared && down && in_sensitive_layer(question) {
        generic(question)
    } else if shared || routed {
        unpromoted(question)
    } else {
        Choice::keep("not a projection")
    })
}

/// The generic rules without their blanket promotion to 8 bits.
fn unpromoted(question: &Question<'_>) -> Choice {
    match generic(question) {
        Choice { scheme: Some(scheme), .. } if scheme != question.base => {
            Choice::quantize(question.base, "base scheme")
        }
        choice => choice,
    }
}

/// Without a word in the config, the first layer is dense.
fn is_dense_layer(question: &Question<'_>) -> bool {
    let dense = question.facts.dense_layers.as_deref().filter(|layers| !layers.is_empty()).unwrap_or(&[0]);
    layer_number(question.name).is_some_and(|layer| dense.contains(&layer))
}

/// As everywhere, but the every-third cadence stops before the middle.
fn in_sensitive_layer(question: &Question<'_>) -> bool {
    let layers = question.facts.layers.unwrap_or(40);
    layer_number(question.name).is_some_and(|layer| {
        let ends = layer < layers / 8 || layer >= 7 * layers / 8;
        more_bits(layer, layers) && (ends || layer + 4 < layers / 2)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ModelFacts;
    use crate::quant::Scheme;

    #[test]
    fn the_cadence_of_forty_layers() {
        let facts = ModelFacts { layers: Some(40), ..ModelFacts::default() };
        let promoted: Vec<u64> = (0..40)
            .filter(|layer| {
                let name = format!("model.layers.{layer}.mlp.shared_expert.down_proj.weight");
                let question = Question { base: Scheme::Nvfp4, name: &name, shape: &[64, 64], facts: &facts };
                choose(&question).unwrap().scheme == Some(Scheme::Mxfp8)
            })
            .collect();
        assert_eq!(promoted, [0, 1, 2, 3, 4, 7, 10, 13, 35, 36, 37, 38, 39]);
    }
}
