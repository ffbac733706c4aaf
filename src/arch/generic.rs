//! Everything kiln has no rules for: the generic policy, source names. Experts kept one by one under
//! `mlp.experts`, the commonest form, are stacked like those of the families that use it.

use super::qwen3_moe::EXPERTS;
use super::{Family, ORDINARY};

pub(super) static FAMILY: Family = Family {
    name: "generic",
    expert_globals: true,
    architectures: &[],
    model_types: &[],
    model: &[],
    layer: &[],
    experts: Some(&EXPERTS),
    rules: "embedding, norms, routers and towers kept; head at 8 bits; k, v and down projections at 8 bits with int4, and outside experts with fp4",
    ..ORDINARY
};
