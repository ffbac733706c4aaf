//! GLM-4 MoE Lite: latent attention, experts one by one, written as the stacked `mlp.switch_mlp`. Its
//! extra prediction layer, behind the last one the config counts, is kept.

use super::Family;
use super::deepseek_v3::LAYER;
use super::mlx::{LATENT, Mlx};
use super::required::NORM;
use super::{ExpertLayout, Projection};

/// Shared with laguna: the blob keeps the name under which the experts are published.
pub(super) static EXPERTS: ExpertLayout = ExpertLayout {
    homes: &["mlp.experts", "mlp.switch_mlp"],
    spelling: Projection::name,
    router: "mlp.gate.weight",
    target: "mlp.switch_mlp",
    blob: "mlp.experts",
    projections: &[Projection::Down, Projection::Gate, Projection::Up],
};

pub(super) static FAMILY: Family = Family {
    name: "glm4_moe_lite",
    architectures: &["Glm4MoeLiteForCausalLM", "GLM4MoeLite"],
    model_types: &["glm4_moe_lite"],
    embedding: "embed_tokens.weight",
    model: NORM,
    layer: LAYER,
    experts: Some(&EXPERTS),
    policy: |_| None,
    rules: "generic",
    requires: Some("0.31.2"),
    mlx: &[Mlx { model_types: &["glm4_moe_lite"], ..LATENT }],
};
