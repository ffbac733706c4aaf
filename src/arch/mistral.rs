//! Mistral: dense, source names.

use super::llama;
use super::mlx::Mlx;
use super::required::{DENSE_LAYER, NORM};
use super::{Family, ORDINARY};

pub(super) static FAMILY: Family = Family {
    name: "mistral",
    expert_globals: true,
    architectures: &["MistralForCausalLM"],
    model_types: &["mistral"],
    model: NORM,
    layer: DENSE_LAYER,
    mlx: &[Mlx { model_types: &["mistral"], ..llama::MLX }],
    ..ORDINARY
};
