//! Llama: dense, source names.

use super::mlx::{ATTENTION, DENSE, Head, Mlx, NORMS, PLAIN, Tied};
use super::required::{DENSE_LAYER, NORM};
use super::{Family, OLDEST_RUNTIME};

pub(super) static FAMILY: Family = Family {
    name: "llama",
    expert_globals: true,
    misread: |_| None,
    architectures: &["LlamaForCausalLM"],
    model_types: &["llama"],
    embedding: "embed_tokens.weight",
    model: NORM,
    layer: DENSE_LAYER,
    experts: None,
    policy: |_| None,
    rules: "generic",
    requires: Some(OLDEST_RUNTIME),
    partly_quantized: None,
    mlx: &[Mlx { model_types: &["llama"], ..MLX }],
};

/// Shared with mistral, which mlx-lm loads with the same code.
pub(super) const MLX: Mlx = Mlx {
    rename: |name, _| (!name.contains("self_attn.rotary_emb.inv_freq")).then(|| name.to_owned()),
    head: Head { path: "lm_head", tied: Tied::Config { default: true } },
    blocks: &[&[ATTENTION], &[DENSE], &[NORMS]],
    ..PLAIN
};
