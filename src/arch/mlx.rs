//! What `mlx-lm` makes of a family: the names of its model's parameters, which of them it quantizes, and what its
//! `sanitize` does to a checkpoint. The reference is mlx-lm 0.32.2,
//! <https://github.com/ml-explore/mlx-lm/tree/v0.32.2/mlx_lm/models>, one file per `model_type`.

use serde_json::{Map, Value};

use super::experts::{layer_number, split_layer};
use super::{ExpertLayout, ModelFacts, Projection};

/// A family as `mlx-lm` has it.
#[derive(Debug)]
pub struct Mlx {
    /// The values of `model_type` it has a model for.
    pub model_types: &'static [&'static str],
    /// Its experts, under the names that sources have; `rename` comes after.
    pub experts: Option<&'static ExpertLayout>,
    /// What a tensor of the checkpoint is called; `None` for one that is dropped.
    pub rename: fn(&str, &ModelFacts) -> Option<String>,
    /// What its model writes into the config on its way.
    pub config: fn(&mut Map<String, Value>),
    /// The path of the decoder: its layers are `<base>.layers.<n>`.
    pub base: &'static str,
    /// The output head.
    pub head: Head,
    /// The decoder's modules beside its layers, relative to `base`.
    pub outer: &'static [Module],
    /// The modules of a layer: of each kind of block one of the alternatives, all of it.
    pub blocks: &'static [&'static [&'static [Module]]],
    /// Ends of the paths of matrices that get 8 bits in groups of 64, whatever scheme was asked for
    /// (`quant_predicate`).
    pub eight_bits: &'static [&'static str],
    /// Ends of the names of parameters that keep their element type (`cast_predicate`).
    pub keep_type: &'static [&'static str],
    /// Ends of the names of norms that a checkpoint with convolutions as PyTorch has them stores as the distance
    /// from one.
    pub offset_norms: &'static [&'static str],
    /// Whether attention is latent: `kv_b_proj` becomes `embed_q` and `unembed_out`, one matrix per head.
    pub latent: bool,
}

/// What every family has that says nothing else; for the `..` of a family's own.
pub(super) const PLAIN: Mlx = Mlx {
    model_types: &[],
    experts: None,
    rename: |name, _| Some(name.to_owned()),
    config: |_| {},
    base: "model",
    head: Head { path: "lm_head", tied: Tied::Config { default: false } },
    outer: &[matrix("embed_tokens"), parameter("norm.weight")],
    blocks: &[],
    eight_bits: &[],
    keep_type: &[],
    offset_norms: &[],
    latent: false,
};

/// The output head.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// The path of its matrix.
    pub path: &'static str,
    /// When there is none.
    pub tied: Tied,
}

/// When the embedding is the output head, and a head in the checkpoint is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tied {
    /// As the config's `tie_word_embeddings` says.
    Config {
        /// What it says when it is absent.
        default: bool,
    },
    /// When the checkpoint has no head.
    Absent,
    /// Never.
    Never,
}

/// A module of the model, or a parameter of its own.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// The path, relative to what the module belongs to; a parameter's with its own name.
    pub path: &'static str,
    /// Whether it is a matrix `<path>.weight` that can be quantized, which may have a `<path>.bias`.
    pub is_matrix: bool,
    /// Whether some layers lack it.
    pub is_optional: bool,
}

pub(super) const fn matrix(path: &'static str) -> Module {
    Module { path, is_matrix: true, is_optional: false }
}

pub(super) const fn parameter(path: &'static str) -> Module {
    Module { path, is_matrix: false, is_optional: false }
}

impl Module {
    pub(super) const fn optional(self) -> Self {
        Self { is_optional: true, ..self }
    }

    /// The name of its parameter that is always there.
    pub fn parameter(&self) -> String {
        if self.is_matrix { format!("{}.weight", self.path) } else { self.path.to_owned() }
    }

    fn has(&self, parameter: &str) -> bool {
        match parameter.strip_prefix(self.path) {
            Some("") => !self.is_matrix,
            Some(".weight" | ".bias") => self.is_matrix,
            _ => false,
        }
    }
}

impl Mlx {
    /// The module that a parameter of the model belongs to; `None` when the model has no such parameter.
    pub fn module(&self, name: &str) -> Option<Module> {
        let head = matrix(self.head.path);
        if head.has(name) {
            return Some(head);
        }
        let inner = name.strip_prefix(self.base)?.strip_prefix('.')?;
        let known = match split_layer(inner).filter(|(layer, _)| layer.starts_with("layers.")) {
            Some((_, rest)) => {
                let mut modules = self.blocks.iter().flat_map(|block| block.iter()).flat_map(|modules| modules.iter());
                modules.find(|module| module.has(rest))
            }
            None => self.outer.iter().find(|module| module.has(inner)),
        };
        known.copied()
    }

    /// The layer of a parameter, as a path.
    pub fn layer<'a>(&self, name: &'a str) -> Option<&'a str> {
        let inner = name.strip_prefix(self.base)?.strip_prefix('.')?;
        let (layer, _) = split_layer(inner).filter(|(layer, _)| layer.starts_with("layers."))?;
        Some(&name[..self.base.len() + 1 + layer.len()])
    }

    /// Whether the head is the embedding.
    pub fn is_tied(&self, facts: &ModelFacts, has_head: bool) -> bool {
        match self.head.tied {
            Tied::Config { default } => facts.tied.unwrap_or(default),
            Tied::Absent => !has_head,
            Tied::Never => false,
        }
    }

    /// The parameters that the model needs and `has` does not know; of a block without any, those of its
    /// smallest alternative.
    pub fn missing(&self, facts: &ModelFacts, has: impl Fn(&str) -> bool) -> Vec<String> {
        let lacks = |prefix: &str, modules: &[Module]| -> Vec<String> {
            let needed = modules.iter().filter(|module| !module.is_optional);
            needed.map(|module| format!("{prefix}.{}", module.parameter())).filter(|name| !has(name)).collect()
        };
        let mut missing = lacks(self.base, self.outer);
        for layer in 0..facts.layers.unwrap_or(0) {
            let prefix = format!("{}.layers.{layer}", self.base);
            for block in self.blocks {
                // The alternative that is there, be it in part, is the one that is meant.
                let is_there =
                    |modules: &[Module]| modules.iter().any(|module| has(&format!("{prefix}.{}", module.parameter())));
                let meant = block.iter().find(|modules| is_there(modules));
                let meant = meant.or_else(|| block.iter().min_by_key(|modules| modules.len()));
                missing.extend(meant.map(|modules| lacks(&prefix, modules)).unwrap_or_default());
            }
        }
        let head = format!("{}.weight", self.head.path);
        if !self.is_tied(facts, has(&head)) && !has(&head) {
            missing.push(head);
        }
        missing
    }
}

/// Attention with a matrix for each role, as most families have it.
pub(super) const ATTENTION: &[Module] =
    &[matrix("self_attn.q_proj"), matrix("self_attn.k_proj"), matrix("self_attn.v_proj"), matrix("self_attn.o_proj")];

/// [`ATTENTION`] that normalizes queries and keys.
pub(super) const NORMED_ATTENTION: &[Module] = &[
    matrix("self_attn.q_proj"),
    matrix("self_attn.k_proj"),
    matrix("self_attn.v_proj"),
    matrix("self_attn.o_proj"),
    parameter("self_attn.q_norm.weight"),
    parameter("self_attn.k_norm.weight"),
];

/// A layer without experts.
pub(super) const DENSE: &[Module] = &[matrix("mlp.gate_proj"), matrix("mlp.up_proj"), matrix("mlp.down_proj")];

pub(super) const NORMS: &[Module] =
    &[parameter("input_layernorm.weight"), parameter("post_attention_layernorm.weight")];

/// `mlp.switch_mlp` in three matrices.
pub(super) const SWITCH: [Module; 3] =
    [matrix("mlp.switch_mlp.gate_proj"), matrix("mlp.switch_mlp.up_proj"), matrix("mlp.switch_mlp.down_proj")];

/// Gate and up apart, as mlx-lm has them everywhere.
pub(super) const APART: &[Projection] = &[Projection::Down, Projection::Gate, Projection::Up];

/// Latent attention, with queries from a latent of their own or not.
const LATENT_QUERIES: &[&[Module]] = &[
    &[matrix("self_attn.q_a_proj"), parameter("self_attn.q_a_layernorm.weight"), matrix("self_attn.q_b_proj")],
    &[matrix("self_attn.q_proj")],
];

const LATENT_KEYS: &[Module] = &[
    matrix("self_attn.kv_a_proj_with_mqa"),
    parameter("self_attn.kv_a_layernorm.weight"),
    matrix("self_attn.embed_q"),
    matrix("self_attn.unembed_out"),
    matrix("self_attn.o_proj"),
];

/// Experts with a router that is never quantized, and shared ones.
const LATENT_EXPERTS: &[Module] = &[
    SWITCH[0],
    SWITCH[1],
    SWITCH[2],
    parameter("mlp.gate.weight"),
    parameter("mlp.gate.e_score_correction_bias"),
    matrix("mlp.shared_experts.gate_proj").optional(),
    matrix("mlp.shared_experts.up_proj").optional(),
    matrix("mlp.shared_experts.down_proj").optional(),
];

/// Keeps a name, but for the layers behind the last one that the config counts: those predict more than the next
/// token, and mlx-lm has none.
pub(super) fn counted(name: &str, facts: &ModelFacts) -> Option<String> {
    let beyond = layer_number(name).zip(facts.layers).is_some_and(|(layer, layers)| layer >= layers);
    (!beyond && !name.contains("rotary_emb.inv_freq")).then(|| name.to_owned())
}

/// DeepSeek V3's layers and GLM's: latent attention, and experts with a router that keeps its values.
pub(super) const LATENT: Mlx = Mlx {
    rename: counted,
    head: Head { path: "lm_head", tied: Tied::Never },
    blocks: &[LATENT_QUERIES, &[LATENT_KEYS], &[DENSE, LATENT_EXPERTS], &[NORMS]],
    keep_type: &["e_score_correction_bias"],
    latent: true,
    ..PLAIN
};
