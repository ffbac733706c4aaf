//! Mixtral: experts one by one, their matrices called `w1` (gate), `w2` (down) and `w3` (up), written as the
//! stacked `block_sparse_moe.switch_mlp` that `mlx-lm` loads. Policies see the stacked names, so that `w2` is
//! the `down_proj` it is. No Ollama loads it from safetensors yet.

use super::mlx::{ATTENTION, Mlx, Module, NORMS, PLAIN, matrix};
use super::required::{self, NORM, Need, When};
use super::{Choice, ExpertLayout, Family, ORDINARY, Projection, Question, Stacking};

pub(super) static FAMILY: Family = Family {
    name: "mixtral",
    expert_globals: true,
    architectures: &["MixtralForCausalLM"],
    model_types: &["mixtral"],
    model: NORM,
    layer: &[
        Need(When::Always, required::NORMS),
        Need(When::Always, required::ATTENTION),
        Need(When::Always, &[&["block_sparse_moe.gate.weight"], &["mlp.gate.weight"]]),
    ],
    experts: Some(&ExpertLayout {
        homes: &["block_sparse_moe.experts", "block_sparse_moe.switch_mlp"],
        spelling: spell,
        router: "block_sparse_moe.gate.weight",
        target: "block_sparse_moe.switch_mlp",
        blob: "block_sparse_moe.switch_mlp",
        projections: &[Projection::Down, Projection::Gate, Projection::Up],
        stacking: Stacking::Plain,
    }),
    policy: choose,
    rules: "generic, router kept",
    mlx: &[Mlx { model_types: &["mixtral"], blocks: &[&[ATTENTION], &[MOE], &[NORMS]], ..PLAIN }],
    ..ORDINARY
};

const MOE: &[Module] = &[
    matrix("block_sparse_moe.switch_mlp.gate_proj"),
    matrix("block_sparse_moe.switch_mlp.up_proj"),
    matrix("block_sparse_moe.switch_mlp.down_proj"),
    matrix("block_sparse_moe.gate"),
];

fn spell(projection: Projection) -> &'static str {
    match projection {
        Projection::Gate => "w1",
        Projection::Down => "w2",
        Projection::Up => "w3",
        Projection::GateUp => projection.name(),
    }
}

/// The router is kept as every other family's is, though the generic list does not have its name: it is
/// tiny, and noise in it changes which experts are asked.
fn choose(question: &Question<'_>) -> Option<Choice> {
    question.ends(&[".block_sparse_moe.gate.weight"]).then_some(Choice::keep("router"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::{ModelFacts, Position};
    use crate::quant::Scheme;

    #[test]
    fn the_matrices_have_numbers_one_by_one_and_names_when_stacked() {
        let layout = FAMILY.experts.unwrap();
        for (name, found) in [
            ("experts.3.w1.weight", Some((Projection::Gate, Position::Expert(3)))),
            ("experts.3.w2.weight", Some((Projection::Down, Position::Expert(3)))),
            ("experts.3.w3.weight", Some((Projection::Up, Position::Expert(3)))),
            ("switch_mlp.down_proj.weight", Some((Projection::Down, Position::Stacked))),
            ("experts.3.down_proj.weight", None),
            ("experts.w2", None),
            ("gate.weight", None),
        ] {
            let name = format!("model.layers.0.block_sparse_moe.{name}");
            let expert = layout.recognize(&name).map(|expert| (expert.projection, expert.position));
            assert_eq!(expert, found, "{name}");
        }
    }

    #[test]
    fn policies_see_experts_with_the_names_of_their_projections() {
        let layout = FAMILY.experts.unwrap();
        let facts = ModelFacts::default();
        let (int4, int8, nvfp4, mxfp8) = (Scheme::INT4, Scheme::INT8, Scheme::Nvfp4, Scheme::Mxfp8);
        for (base, written, shape, expected) in [
            (int4, "block_sparse_moe.switch_mlp.down_proj.weight", &[4, 64, 64][..], Some(int8)),
            (int4, "block_sparse_moe.switch_mlp.gate_proj.weight", &[4, 64, 64], Some(int4)),
            (nvfp4, "block_sparse_moe.switch_mlp.down_proj.weight", &[4, 64, 64], Some(nvfp4)),
            (int4, "block_sparse_moe.gate.weight", &[64, 64], None),
            (mxfp8, "block_sparse_moe.gate.weight", &[64, 64], None),
            (nvfp4, "self_attn.v_proj.weight", &[64, 64], Some(mxfp8)),
        ] {
            let written = format!("model.layers.1.{written}");
            let name = layout.source_name(&written).unwrap_or(written);
            let choice = FAMILY.choose(&Question { base, name: &name, shape, facts: &facts });
            assert_eq!(choice.scheme, expected, "{base} {name}");
        }
    }
}
