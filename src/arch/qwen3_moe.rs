//! Qwen3 MoE: experts one by one or stacked, written as the stacked `mlp.switch_mlp`.

use super::mlx::{DENSE, Mlx, Module, NORMED_ATTENTION, NORMS, PLAIN, SWITCH, matrix};
use super::required::{self, ATTENTION, ATTENTION_BIASES, NORM, Need, QUERY_KEY_NORMS, ROUTER_OR_DENSE, When};
use super::{ExpertLayout, Projection, Stacking};
use super::{Family, ORDINARY};

/// Shared by the Qwen families.
pub(super) static EXPERTS: ExpertLayout = ExpertLayout {
    homes: &["mlp.experts", "mlp.switch_mlp"],
    spelling: Projection::name,
    router: "mlp.gate.weight",
    target: "mlp.switch_mlp",
    blob: "mlp.switch_mlp",
    projections: &[Projection::Down, Projection::Gate, Projection::Up],
    stacking: Stacking::Plain,
};

pub(super) static FAMILY: Family = Family {
    name: "qwen3_moe",
    expert_globals: true,
    architectures: &["Qwen3MoeForCausalLM"],
    model_types: &["qwen3_moe"],
    model: NORM,
    layer: &[
        Need(When::Always, required::NORMS),
        Need(When::Always, ATTENTION),
        Need(When::Never, ATTENTION_BIASES),
        Need(When::Always, QUERY_KEY_NORMS),
        Need(When::Dense, required::DENSE),
        Need(When::Always, ROUTER_OR_DENSE),
    ],
    experts: Some(&EXPERTS),
    mlx: &[Mlx {
        model_types: &["qwen3_moe"],
        blocks: &[&[NORMED_ATTENTION], &[DENSE, MOE], &[NORMS]],
        eight_bits: &["mlp.gate"],
        ..PLAIN
    }],
    ..ORDINARY
};

const MOE: &[Module] = &[SWITCH[0], SWITCH[1], SWITCH[2], matrix("mlp.gate")];
