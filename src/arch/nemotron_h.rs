//! Nemotron-H: state-space, attention, dense and MoE layers, each a `mixer`. Experts have no gate; they are
//! stacked where the sources keep them, because its runtime looks nowhere else. The towers of its multimodal
//! models keep their values.

use super::experts::layer_number;
use super::mlx::{Head, Mlx, Module, PLAIN, Tied, matrix, parameter};
use super::required::{Form, Need, When};
use super::{Choice, ExpertLayout, Family, LayerKind, ModelFacts, ORDINARY, Projection, Question, Stacking};

pub(super) static FAMILY: Family = Family {
    name: "nemotron_h",
    expert_globals: true,
    architectures: &["NemotronHForCausalLM", "NemotronH_Nano_VL_V2", "NemotronH_Nano_Omni_Reasoning_V3"],
    model_types: &["nemotron_h", "nemotron_h_moe", "nemotron_h_omni"],
    embedding: "backbone.embeddings.weight",
    model: &[Need(When::Always, &[&["norm_f.weight"]])],
    layer: &[
        Need(When::Always, &[&["norm.weight"]]),
        Need(When::Kind(LayerKind::Recurrent), &[STATE_SPACE]),
        Need(When::Kind(LayerKind::Full), &[ATTENTION_MIXER]),
        Need(When::Kind(LayerKind::Mlp), &[DENSE_MIXER]),
        Need(When::Kind(LayerKind::Experts), &[EXPERT_MIXER]),
        Need(When::Always, &[STATE_SPACE, ATTENTION_MIXER, DENSE_MIXER, EXPERT_MIXER]),
        Need(When::Beside("mixer.conv1d.weight", &["use_conv_bias"]), &[&["mixer.conv1d.bias"]]),
        Need(When::Never, &[&["mixer.fc1_latent_proj.weight", "mixer.fc2_latent_proj.weight"]]),
    ],
    experts: Some(&ExpertLayout {
        homes: &["mixer.experts"],
        spelling: Projection::name,
        router: "mixer.gate.weight",
        target: "mixer.experts",
        blob: "mixer.experts",
        projections: &[Projection::Down, Projection::Up],
        stacking: Stacking::Plain,
    }),
    policy: choose,
    rules: "towers, router and convolution kept; embedding and head at 8 bits; fp4: attention at 8 bits, output projections in the sensitive layers",
    // The first release with the architecture; it looks for the same names as 0.33.
    requires: Some("0.32.9"),
    mlx: &[Mlx {
        model_types: &["nemotron_h"],
        rename,
        base: "backbone",
        head: Head { path: "lm_head", tied: Tied::Never },
        outer: &[matrix("embeddings"), parameter("norm_f.weight")],
        blocks: &[&[&[parameter("norm.weight")]], &[MAMBA, MOE, ATTENTION_LAYER, MLP]],
        keep_type: &["e_score_correction_bias", "A_log"],
        ..PLAIN
    }],
    ..ORDINARY
};

const MAMBA: &[Module] = &[
    parameter("mixer.conv1d.weight"),
    parameter("mixer.conv1d.bias").optional(),
    matrix("mixer.in_proj"),
    parameter("mixer.dt_bias"),
    parameter("mixer.A_log"),
    parameter("mixer.D"),
    parameter("mixer.norm.weight"),
    matrix("mixer.out_proj"),
];

const MOE: &[Module] = &[
    matrix("mixer.switch_mlp.fc1"),
    matrix("mixer.switch_mlp.fc2"),
    parameter("mixer.gate.weight"),
    parameter("mixer.gate.e_score_correction_bias"),
    matrix("mixer.shared_experts.up_proj").optional(),
    matrix("mixer.shared_experts.down_proj").optional(),
    matrix("mixer.fc1_latent_proj").optional(),
    matrix("mixer.fc2_latent_proj").optional(),
];

const ATTENTION_LAYER: &[Module] =
    &[matrix("mixer.q_proj"), matrix("mixer.k_proj"), matrix("mixer.v_proj"), matrix("mixer.o_proj")];

const MLP: &[Module] = &[matrix("mixer.up_proj"), matrix("mixer.down_proj")];

/// The layers that predict more than the next token are dropped; experts get the names of mlx-lm's MLP.
fn rename(name: &str, _: &ModelFacts) -> Option<String> {
    if name.starts_with("mtp.") {
        return None;
    }
    let moved = [
        (".mixer.experts.up_proj.weight", ".mixer.switch_mlp.fc1.weight"),
        (".mixer.experts.down_proj.weight", ".mixer.switch_mlp.fc2.weight"),
    ];
    let moved = moved.iter().find_map(|(from, to)| Some(format!("{}{to}", name.strip_suffix(from)?)));
    Some(moved.unwrap_or_else(|| name.to_owned()))
}

const STATE_SPACE: Form = &[
    "mixer.in_proj.weight",
    "mixer.conv1d.weight",
    "mixer.dt_bias",
    "mixer.A_log",
    "mixer.D",
    "mixer.norm.weight",
    "mixer.out_proj.weight",
];
const ATTENTION_MIXER: Form =
    &["mixer.q_proj.weight", "mixer.k_proj.weight", "mixer.v_proj.weight", "mixer.o_proj.weight"];
const DENSE_MIXER: Form = &["mixer.up_proj.weight", "mixer.down_proj.weight"];
const EXPERT_MIXER: Form = &[
    "mixer.gate.weight",
    "mixer.gate.e_score_correction_bias",
    "mixer.shared_experts.up_proj.weight",
    "mixer.shared_experts.down_proj.weight",
];

const TOWERS: [&str; 4] = ["vision_model.", "mlp1.", "sound_encoder.", "sound_projection."];
const ATTENTION: [&str; 4] =
    [".mixer.q_proj.weight", ".mixer.k_proj.weight", ".mixer.v_proj.weight", ".mixer.o_proj.weight"];
/// What writes to the residual stream.
const OUTPUTS: [&str; 3] =
    [".mixer.out_proj.weight", ".mixer.down_proj.weight", ".mixer.shared_experts.down_proj.weight"];

fn choose(question: &Question<'_>) -> Option<Choice> {
    if TOWERS.iter().any(|tower| question.name.starts_with(tower)) {
        return Some(Choice::keep("vision or sound tower"));
    }
    if question.ends(&[".mixer.gate.weight"]) {
        return Some(Choice::keep("router"));
    }
    if question.ends(&[".mixer.conv1d.weight"]) {
        return Some(Choice::keep("convolution"));
    }
    if question.ends(&["embeddings.weight", "lm_head.weight"]) {
        return Some(question.eight_bit_or_keep("embedding or output head: 8 bits"));
    }
    if question.base.has_biases() || !question.is_four_bit() {
        return None;
    }
    // Few layers have attention, and 4 bits there spoil structured answers.
    if question.ends(&ATTENTION) {
        return Some(question.sensitive(true, "attention: 8 bits"));
    }
    let routed = question.contains(&[".mixer.experts."]) && question.ends(&[".down_proj.weight"]);
    let promoted = layer_number(question.name).is_none() || question.in_sensitive_layer();
    (routed || question.ends(&OUTPUTS))
        .then(|| question.sensitive(promoted, "output projection in a sensitive layer: 8 bits"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::ModelFacts;
    use crate::quant::Scheme;

    fn scheme(base: Scheme, name: &str, shape: &[u64]) -> Option<Scheme> {
        let facts = ModelFacts { layers: Some(52), ..ModelFacts::default() };
        FAMILY.choose(&Question { base, name, shape, facts: &facts }).scheme
    }

    #[test]
    fn the_rules_of_fifty_two_layers() {
        let (int4, int8, nvfp4, mxfp8) = (Scheme::INT4, Scheme::INT8, Scheme::Nvfp4, Scheme::Mxfp8);
        for (base, name, shape, expected) in [
            (nvfp4, "layers.0.mixer.in_proj.weight", &[96, 32][..], Some(nvfp4)),
            (nvfp4, "layers.0.mixer.out_proj.weight", &[32, 32], Some(mxfp8)),
            (nvfp4, "layers.16.mixer.out_proj.weight", &[32, 32], Some(nvfp4)),
            (nvfp4, "layers.16.mixer.v_proj.weight", &[32, 32], Some(mxfp8)),
            (nvfp4, "layers.16.mixer.q_proj.weight", &[32, 48], Some(nvfp4)),
            (nvfp4, "layers.16.mixer.o_proj.weight", &[32, 31], None),
            (mxfp8, "layers.1.mixer.o_proj.weight", &[32, 32], Some(mxfp8)),
            (nvfp4, "layers.2.mixer.experts.up_proj.weight", &[4, 64, 32], Some(nvfp4)),
            (nvfp4, "layers.2.mixer.experts.down_proj.weight", &[4, 32, 32], Some(mxfp8)),
            (nvfp4, "layers.6.mixer.experts.down_proj.weight", &[4, 32, 32], Some(nvfp4)),
            (int4, "layers.6.mixer.experts.down_proj.weight", &[4, 64, 64], Some(int8)),
            (nvfp4, "layers.2.mixer.shared_experts.down_proj.weight", &[32, 32], Some(mxfp8)),
            (mxfp8, "layers.2.mixer.shared_experts.down_proj.weight", &[32, 64], Some(mxfp8)),
            (nvfp4, "layers.51.mixer.down_proj.weight", &[32, 32], Some(mxfp8)),
            (nvfp4, "layers.16.mixer.down_proj.weight", &[32, 32], Some(nvfp4)),
            (int4, "layers.16.mixer.q_proj.weight", &[64, 64], Some(int4)),
            (nvfp4, "layers.2.mixer.gate.weight", &[64, 32], None),
            (nvfp4, "layers.0.mixer.conv1d.weight", &[96, 32], None),
            (nvfp4, "layers.0.mixer.norm.weight", &[1024], None),
            (mxfp8, "embeddings.weight", &[4096, 32], Some(mxfp8)),
            (nvfp4, "embeddings.weight", &[4096, 32], Some(mxfp8)),
            (int4, "embeddings.weight", &[4096, 64], Some(int8)),
            (nvfp4, "embeddings.weight", &[4096, 31], None),
        ] {
            for prefix in ["backbone.", "language_model.backbone.", "model.backbone."] {
                assert_eq!(
                    scheme(base, &format!("{prefix}{name}"), shape),
                    expected,
                    "{base} {prefix}{name} {shape:?}"
                );
            }
        }
        for (base, name, shape, expected) in [
            (nvfp4, "language_model.lm_head.weight", &[4096, 32], Some(mxfp8)),
            (int4, "lm_head.weight", &[4096, 64], Some(int8)),
            (nvfp4, "lm_head.weight", &[4096, 31], None),
            (nvfp4, "vision_model.radio_model.model.patch_generator.proj.weight", &[64, 64], None),
            (nvfp4, "mlp1.0.weight", &[64, 64], None),
            (nvfp4, "sound_encoder.encoder.layers.0.self_attn.q_proj.weight", &[64, 64], None),
            (nvfp4, "sound_projection.adapter.weight", &[64, 64], None),
        ] {
            assert_eq!(scheme(base, name, shape), expected, "{base} {name} {shape:?}");
        }
    }

    #[test]
    fn the_cadence_of_fifty_two_layers() {
        let promoted: Vec<u64> = (0..52)
            .filter(|layer| {
                let name = format!("backbone.layers.{layer}.mixer.experts.down_proj.weight");
                scheme(Scheme::Mxfp4, &name, &[4, 64, 64]) == Some(Scheme::Mxfp8)
            })
            .collect();
        let expected: Vec<u64> = (0..6).chain((8..=44).step_by(3)).chain(45..52).collect();
        assert_eq!(promoted, expected);
    }

    #[test]
    fn a_multimodal_config_keeps_the_language_model_apart() {
        let config = serde_json::json!({
            "architectures": ["NemotronH_Nano_Omni_Reasoning_V3"],
            "llm_config": {"num_hidden_layers": 52, "n_routed_experts": 128, "hidden_size": 2688},
        });
        let facts = ModelFacts::of(&config);
        assert!(std::ptr::eq(Family::of(&facts), &raw const FAMILY));
        assert_eq!((facts.layers, facts.experts, facts.hidden), (Some(52), Some(128), Some(2688)));
    }

    #[test]
    fn towers_prediction_layers_and_latent_experts_contradict_nothing() {
        let facts = ModelFacts {
            layers: Some(1),
            hidden: Some(64),
            vocabulary: Some(320),
            expert_width: Some(48),
            ..ModelFacts::default()
        };
        let contradictions = |embedding: &[u64], up: &[u64]| {
            let tensors: [(&str, &[u64]); 5] = [
                ("language_model.backbone.embeddings.weight", embedding),
                ("language_model.backbone.layers.0.norm.weight", &[64]),
                ("language_model.backbone.layers.0.mixer.experts.up_proj.weight", up),
                ("mtp.layers.0.norm.weight", &[32]),
                ("sound_encoder.encoder.layers.7.norm.weight", &[32]),
            ];
            FAMILY.contradictions(&facts, tensors.into_iter())
        };
        assert_eq!(contradictions(&[320, 64], &[4, 48, 32]), [] as [&str; 0]);
        assert_eq!(contradictions(&[320, 32], &[4, 48, 32]).len(), 1);
        assert_eq!(contradictions(&[320, 64], &[4, 40, 32]).len(), 1);
    }

    #[test]
    fn experts_have_no_gate() {
        let layout = FAMILY.experts.unwrap();
        let has = [Projection::Down, Projection::Up, Projection::Gate, Projection::GateUp].map(|p| layout.has(p));
        assert_eq!(has, [true, true, false, false]);
    }
}
