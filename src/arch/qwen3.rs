//! Qwen3, dense: source names.

use super::mlx::{DENSE, Mlx, NORMED_ATTENTION, NORMS, PLAIN};
use super::required::{self, ATTENTION, ATTENTION_BIASES, NORM, Need, QUERY_KEY_NORMS, When};
use super::{Family, OLDEST_RUNTIME, ORDINARY};

pub(super) static FAMILY: Family = Family {
    name: "qwen3",
    expert_globals: true,
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    model: NORM,
    layer: &[
        Need(When::Always, required::NORMS),
        Need(When::Always, ATTENTION),
        Need(When::Never, ATTENTION_BIASES),
        Need(When::Always, QUERY_KEY_NORMS),
        Need(When::Always, required::DENSE),
    ],
    requires: Some(OLDEST_RUNTIME),
    mlx: &[Mlx { model_types: &["qwen3"], blocks: &[&[NORMED_ATTENTION], &[DENSE], &[NORMS]], ..PLAIN }],
    ..ORDINARY
};
