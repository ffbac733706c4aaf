//! Llama: dense, source names.

use super::mlx::{ATTENTION, DENSE, Head, Mlx, NORMS, PLAIN, Tied};
use super::required::{DENSE_LAYER, NORM};
use super::{Family, OLDEST_RUNTIME, ORDINARY};

pub(super) static FAMILY: Family = Family {
    name: "llama",
    expert_globals: true,
    architectures: &["LlamaForCausalLM"],
    model_types: &["llama"],
    model: NORM,
    layer: DENSE_LAYER,
    requires: Some(OLDEST_RUNTIME),
    mlx: &[Mlx { model_types: &["llama"], ..MLX }],
    ..ORDINARY
};

/// Shared with mistral, which mlx-lm loads with the same code.
pub(super) const MLX: Mlx = Mlx {
    rename: |name, _| (!name.contains("self_attn.rotary_emb.inv_freq")).then(|| name.to_owned()),
    head: Head { path: "lm_head", tied: Tied::Config { default: true } },
    blocks: &[&[ATTENTION], &[DENSE], &[NORMS]],
    ..PLAIN
};
