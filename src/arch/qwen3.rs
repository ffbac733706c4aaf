//! Qwen3, dense: source names.

use super::mlx::{DENSE, Mlx, NORMED_ATTENTION, NORMS, PLAIN};
use super::{Family, OLDEST_RUNTIME};

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    embedding: "embed_tokens.weight",
    experts: None,
    policy: |_| None,
    rules: "generic",
    requires: Some(OLDEST_RUNTIME),
    mlx: &[Mlx { model_types: &["qwen3"], blocks: &[&[NORMED_ATTENTION], &[DENSE], &[NORMS]], ..PLAIN }],
};
