//! Everything kiln has no rules for: the generic policy, source names. Experts kept one by one under
//! `mlp.experts`, the commonest form, are stacked like those of the families that use it.

use super::Family;
use super::qwen3_moe::EXPERTS;

pub(super) static FAMILY: Family = Family {
    name: "generic",
    expert_globals: true,
    misread: |_| None,
    architectures: &[],
    model_types: &[],
    embedding: "embed_tokens.weight",
    model: &[],
    layer: &[],
    experts: Some(&EXPERTS),
    policy: |_| None,
    rules: "embedding, norms, routers and towers kept; head at 8 bits; k, v and down projections at 8 bits with int4, and outside experts with fp4",
    requires: None,
    partly_quantized: None,
    mlx: &[],
};
