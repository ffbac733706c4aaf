//! GLM-4 MoE Lite: latent attention, experts one by one, written as the stacked `mlp.switch_mlp`. Its
//! extra prediction layer, behind the last one the config counts, is kept.

use std::collections::BTreeMap;

use super::deepseek_v3::LAYER;
use super::mlx::{LATENT, Mlx};
use super::required::NORM;
use super::{ExpertLayout, Projection, Stacking};
use super::{Family, ORDINARY};
use crate::error::quoted;

/// Shared with laguna: the blob keeps the name under which the experts are published.
pub(super) static EXPERTS: ExpertLayout = ExpertLayout {
    homes: &["mlp.experts", "mlp.switch_mlp"],
    spelling: Projection::name,
    router: "mlp.gate.weight",
    target: "mlp.switch_mlp",
    blob: "mlp.experts",
    projections: &[Projection::Down, Projection::Gate, Projection::Up],
    stacking: Stacking::Plain,
};

/// The runtime divides `kv_b_proj` itself; what mlx-lm makes of it cannot be put together again without arithmetic.
fn divided(tensors: &BTreeMap<&str, &[u64]>) -> Option<String> {
    let part = tensors.keys().find(|name| name.ends_with(".self_attn.embed_q.weight"))?;
    Some(format!("{} is attention as mlx-lm divides it, and Ollama reads `kv_b_proj` only", quoted(part)))
}

pub(super) static FAMILY: Family = Family {
    name: "glm4_moe_lite",
    misread: divided,
    architectures: &["Glm4MoeLiteForCausalLM", "GLM4MoeLite"],
    model_types: &["glm4_moe_lite"],
    model: NORM,
    layer: LAYER,
    experts: Some(&EXPERTS),
    requires: Some("0.31.2"),
    mlx: &[Mlx { model_types: &["glm4_moe_lite"], ..LATENT }],
    ..ORDINARY
};
