//! Mistral: dense, source names.

use super::Family;
use super::llama;
use super::mlx::Mlx;
use super::required::{DENSE_LAYER, NORM};

pub(super) static FAMILY: Family = Family {
    name: "mistral",
    expert_globals: true,
    misread: |_| None,
    architectures: &["MistralForCausalLM"],
    model_types: &["mistral"],
    embedding: "embed_tokens.weight",
    model: NORM,
    layer: DENSE_LAYER,
    experts: None,
    policy: |_| None,
    rules: "generic",
    requires: None,
    partly_quantized: None,
    mlx: &[Mlx { model_types: &["mistral"], ..llama::MLX }],
};
