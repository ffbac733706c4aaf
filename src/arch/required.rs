//! Which tensors a checkpoint must have. A family says it in a table; this holds the table against the names.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::experts::split_layer;
use super::facts::LayerKind;
use super::{Family, ModelFacts};

/// The names of tensors that only make sense together: relative to a layer, or to the prefix where the embedding is, or
/// from the root, behind a `/`.
pub(super) type Form = &'static [&'static str];

/// Tensors without which a model is not whole, in each form in which checkpoints have them. Where the condition
/// holds, one form must be there; elsewhere they are there as a whole or not at all.
#[derive(Debug)]
pub struct Need(pub(super) When, pub(super) &'static [Form]);

/// Where a need must be met.
#[derive(Debug)]
pub(super) enum When {
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
    /// When the config has one of these keys, and its value is neither false, zero nor empty.
    Config(&'static [&'static str]),
    /// The same, but only in layers that have this tensor.
    Beside(&'static str, &'static [&'static str]),
    /// In layers that the config calls this.
    Kind(LayerKind),
    /// In layers that the config calls dense, among others that have experts.
    Dense,
    /// In layers that compute keys of their own.
    OwnKeys,
    /// In layers that compute keys of their own, and do not use them as values.
    OwnValues,
}

/// What stands beside the embedding of most models.
pub(super) const NORM: &[Need] = &[Need(When::Always, &[&["norm.weight"]])];
/// The two norms of a layer.
pub(super) const NORMS: &[Form] = &[&["input_layernorm.weight", "post_attention_layernorm.weight"]];
/// The projections of attention, apart or in one.
pub(super) const ATTENTION: &[Form] = &[SPLIT_ATTENTION, &["self_attn.qkv_proj.weight", "self_attn.o_proj.weight"]];
/// Apart.
pub(super) const SPLIT_ATTENTION: Form =
    &["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight", "self_attn.o_proj.weight"];
/// The biases of attention, where there are any.
pub(super) const ATTENTION_BIASES: &[Form] =
    &[&["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"], &["self_attn.qkv_proj.bias"]];
/// The norms of queries and keys.
pub(super) const QUERY_KEY_NORMS: &[Form] = &[&["self_attn.q_norm.weight", "self_attn.k_norm.weight"]];
/// A dense MLP, gate and up apart or in one.
pub(super) const DENSE: &[Form] = &[SPLIT_DENSE, FUSED_DENSE];
/// Apart.
pub(super) const SPLIT_DENSE: Form = &["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"];
/// In one.
pub(super) const FUSED_DENSE: Form = &["mlp.gate_up_proj.weight", "mlp.down_proj.weight"];
/// A router or a dense MLP: where a router is, the experts are looked for when they are grouped.
pub(super) const ROUTER_OR_DENSE: &[Form] = &[&["mlp.gate.weight"], SPLIT_DENSE, FUSED_DENSE];
/// The experts that every token asks.
pub(super) const SHARED_EXPERTS: Form = &[
    "mlp.shared_experts.gate_proj.weight",
    "mlp.shared_experts.up_proj.weight",
    "mlp.shared_experts.down_proj.weight",
];
/// The one expert that every token asks.
pub(super) const SHARED_EXPERT: Form =
    &["mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight", "mlp.shared_expert.down_proj.weight"];

/// A dense layer as llama's.
pub(super) const DENSE_LAYER: &[Need] = &[
    Need(When::Always, NORMS),
    Need(When::Always, ATTENTION),
    Need(When::Never, ATTENTION_BIASES),
    Need(When::Always, DENSE),
];

impl When {
    fn holds(&self, facts: &ModelFacts, layer: u64, names: &BTreeSet<&str>) -> bool {
        let own_keys = || facts.layers.is_some_and(|layers| layer < layers.saturating_sub(facts.layers_sharing_keys));
        match *self {
            Self::Always => true,
            Self::Never => false,
            Self::Config(keys) => facts.has(keys),
            Self::Beside(tensor, keys) => names.contains(tensor) && facts.has(keys),
            Self::Kind(kind) => facts.kind(layer) == Some(kind),
            Self::Dense => facts.is_dense(layer),
            Self::OwnKeys => own_keys(),
            Self::OwnValues => {
                own_keys() && !(facts.has(&["attention_k_eq_v"]) && facts.kind(layer) != Some(LayerKind::Sliding))
            }
        }
    }
}

impl Need {
    /// The tensor to name when `names` do not meet the need.
    fn missing(&self, holds: bool, names: &BTreeSet<&str>) -> Option<&'static str> {
        let Self(_, forms) = self;
        let there = |form: Form| form.iter().filter(|name| names.contains(*name)).count();
        if forms.iter().any(|form| there(form) == form.len()) || !holds && forms.iter().all(|form| there(form) == 0) {
            return None;
        }
        let nearest = forms.iter().min_by_key(|form| Reverse(there(form)))?;
        nearest.iter().copied().find(|name| !names.contains(name))
    }
}

impl Family {
    /// The first tensor that a model of this family must have and `names` lack.
    pub fn missing<'a>(&self, facts: &ModelFacts, names: impl Iterator<Item = &'a str>) -> Option<String> {
        let names: Vec<&str> = names.collect();
        let container = self.container(&names)?;
        let inner = names.iter().filter_map(|name| name.strip_prefix(container));
        let mut layers: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
        let mut model = BTreeSet::new();
        for name in inner {
            match split_layer(name).and_then(|(layer, rest)| Some((layer.strip_prefix("layers.")?.parse().ok()?, rest)))
            {
                Some((layer, rest)) => _ = layers.entry(layer).or_default().insert(rest),
                None => _ = model.insert(name),
            }
        }
        let rooted: Vec<String> = names.iter().map(|name| format!("/{name}")).collect();
        model.extend(rooted.iter().map(String::as_str));
        let outside = self.model.iter().find_map(|need| {
            let name = need.missing(need.0.holds(facts, 0, &model), &model)?;
            Some(name.strip_prefix('/').map_or_else(|| format!("{container}{name}"), str::to_owned))
        });
        let head = || {
            let lacks = !names.iter().any(|name| *name == "lm_head.weight" || name.ends_with(".lm_head.weight"));
            (facts.tied == Some(false) && lacks && !self.embedding.is_empty()).then(|| "lm_head.weight".to_owned())
        };
        // Behind the last layer that the config counts there may be others: prediction heads.
        let counted = layers.iter().filter(|(layer, _)| facts.layers.is_none_or(|layers| **layer < layers));
        let mut within = counted.flat_map(|(layer, names)| {
            self.layer.iter().filter_map(move |need| {
                let name = need.missing(need.0.holds(facts, *layer, names), names)?;
                Some(format!("{container}layers.{layer}.{name}"))
            })
        });
        within.next().or(outside).or_else(head)
    }

    /// The prefix under which the language model lies: where its embedding is. A tower or a prediction head may
    /// have an embedding too, but a longer name.
    fn container<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        if self.embedding.is_empty() {
            return Some("");
        }
        let embeddings = names.iter().filter(|name| {
            let before = name.strip_suffix(self.embedding);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.')) && split_layer(name).is_none()
        });
        let name = embeddings.min_by_key(|name| name.len())?;
        let own = name.rsplit('.').take(2).map(|part| part.len() + 1).sum::<usize>();
        Some(&name[..(name.len() + 1).saturating_sub(own)])
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn missing(config: &Value, names: &[&str]) -> Option<String> {
        let facts = ModelFacts::of(config);
        let family = Family::of(&facts);
        assert!(!family.is_generic());
        family.missing(&facts, names.iter().copied())
    }

    const NORMS: [&str; 2] = ["input_layernorm", "post_attention_layernorm"];
    const FOUR_NORMS: [&str; 4] = [NORMS[0], NORMS[1], "pre_feedforward_layernorm", "post_feedforward_layernorm"];
    const DENSE: [&str; 3] = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];

    /// An embedding, a final norm, and layers of weights.
    fn model(layers: &[&[&[&str]]]) -> Vec<String> {
        let outside = ["model.embed_tokens.weight".to_owned(), "model.norm.weight".to_owned()];
        let weights = layers.iter().zip(0..).flat_map(|(layer, number)| {
            layer.concat().into_iter().map(move |name| {
                let ending = if name.contains("bias") { "" } else { ".weight" };
                format!("model.layers.{number}.{name}{ending}")
            })
        });
        outside.into_iter().chain(weights).collect()
    }

    /// What each class of model may do without, and what it may not: the config, its layers, the tensor that is
    /// missed.
    #[test]
    fn each_form_is_whole_and_no_other() {
        let llama = json!({ "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1 });
        let split = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let fused: [&str; 2] = ["self_attn.qkv_proj", "self_attn.o_proj"];
        let biases = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];

        let gemma = json!({
            "architectures": ["Gemma4ForConditionalGeneration"],
            "text_config": { "num_hidden_layers": 2, "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 0 },
        });
        let queries = ["self_attn.q_proj", "self_attn.q_norm", "self_attn.o_proj"];
        let keys: [&str; 3] = ["self_attn.k_proj", "self_attn.k_norm", "self_attn.v_proj"];
        let same = json!({
            "architectures": ["Gemma4ForCausalLM"], "num_hidden_layers": 2, "attention_k_eq_v": true,
            "layer_types": ["sliding_attention", "full_attention"],
        });

        let deepseek = json!({
            "architectures": ["DeepseekV3ForCausalLM"], "num_hidden_layers": 2, "first_k_dense_replace": 1,
            "n_shared_experts": 1,
        });
        let latent = ["self_attn.kv_a_proj_with_mqa", "self_attn.kv_a_layernorm", "self_attn.o_proj"];
        let low_rank = ["self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj", "self_attn.kv_b_proj"];
        let absorbed = ["self_attn.q_proj", "self_attn.embed_q", "self_attn.unembed_out"];
        let shared = ["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj"];
        let router = ["mlp.gate", "mlp.gate.e_score_correction_bias"];

        let next = json!({
            "architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 2,
            "layer_types": ["linear_attention", "full_attention"],
        });

        let mixtral = json!({ "architectures": ["MixtralForCausalLM"], "num_hidden_layers": 1 });
        let glimmer = json!({ "architectures": ["MuseGlimmerForConditionalGeneration"], "num_hidden_layers": 1 });

        for (config, layers, expected) in [
            (&llama, &[&[&NORMS[..], &split, &DENSE][..]][..], None),
            (&llama, &[&[&NORMS, &fused, &["mlp.gate_up_proj", "mlp.down_proj"]]], None),
            (&llama, &[&[&NORMS, &split, &biases, &DENSE]], None),
            (&llama, &[&[&NORMS, &split, &biases[..2], &DENSE]], Some("0.self_attn.v_proj.bias")),
            (&llama, &[&[&NORMS, &fused[..1], &DENSE]], Some("0.self_attn.o_proj.weight")),
            (&llama, &[&[&NORMS, &split, &["mlp.gate_up_proj"]]], Some("0.mlp.down_proj.weight")),
            (&gemma, &[&[&FOUR_NORMS, &queries, &keys, &DENSE], &[&FOUR_NORMS, &queries, &DENSE]], None),
            (
                &gemma,
                &[&[&FOUR_NORMS, &queries, &DENSE], &[&FOUR_NORMS, &queries, &DENSE]],
                Some("0.self_attn.k_proj.weight"),
            ),
            (
                &gemma,
                &[&[&FOUR_NORMS, &queries, &keys[..2], &DENSE], &[&FOUR_NORMS, &queries, &DENSE]],
                Some("0.self_attn.v_proj.weight"),
            ),
            (&same, &[&[&FOUR_NORMS, &queries, &keys, &DENSE], &[&FOUR_NORMS, &queries, &keys[..2], &DENSE]], None),
            (
                &same,
                &[&[&FOUR_NORMS, &queries, &keys[..2], &DENSE], &[&FOUR_NORMS, &queries, &keys, &DENSE]],
                Some("0.self_attn.v_proj.weight"),
            ),
            (
                &deepseek,
                &[&[&NORMS, &latent, &low_rank, &DENSE], &[&NORMS, &latent, &absorbed, &router, &shared]],
                None,
            ),
            (
                &deepseek,
                &[&[&NORMS, &latent, &low_rank, &router, &shared], &[&NORMS, &latent, &low_rank, &router, &shared]],
                Some("0.mlp.gate_proj.weight"),
            ),
            (
                &deepseek,
                &[&[&NORMS, &latent, &low_rank, &DENSE], &[&NORMS, &latent, &low_rank, &router]],
                Some("1.mlp.shared_experts.gate_proj.weight"),
            ),
            // The third layer is a prediction head, which is anything.
            (
                &deepseek,
                &[
                    &[&NORMS, &latent, &low_rank, &DENSE],
                    &[&NORMS, &latent, &low_rank, &router, &shared],
                    &[&["embed_tokens", "eh_proj"]],
                ],
                None,
            ),
            (&mixtral, &[&[&NORMS, &split, &["block_sparse_moe.gate"]]], None),
            (&mixtral, &[&[&NORMS, &split, &["mlp.gate"]]], None),
            (&mixtral, &[&[&NORMS, &split]], Some("0.block_sparse_moe.gate.weight")),
            (&glimmer, &[&[&FOUR_NORMS, &split, &DENSE]], None),
            (&glimmer, &[&[&NORMS, &["post_attn_norm", "post_ffn_norm"], &split, &DENSE]], None),
            (&glimmer, &[&[&NORMS, &split, &DENSE]], Some("0.post_attn_norm.weight")),
            (&next, &[&[&NORMS, &split, &DENSE]], Some("0.linear_attn.A_log")),
        ] {
            let names = model(layers);
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let expected = expected.map(|name| format!("model.layers.{name}"));
            assert_eq!(missing(config, &names), expected, "{names:?}");
        }
    }

    #[test]
    fn a_head_is_missed_only_when_the_config_says_that_it_is_not_the_embedding() {
        let names = model(&[&[
            &NORMS,
            &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"],
            &DENSE,
        ]]);
        let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
        let config = |tied: Value| json!({ "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": tied });
        for tied in [Value::Null, json!(true)] {
            assert_eq!(missing(&config(tied), &names), None);
        }
        assert_eq!(missing(&config(json!(false)), &names).as_deref(), Some("lm_head.weight"));
        names.push("lm_head.weight");
        assert_eq!(missing(&config(json!(false)), &names), None);
    }
}
