//! What a `config.json` says about a model, read once and tolerantly: a missing key is `None`, and
//! multimodal checkpoints keep the language model's keys under `text_config` or `llm_config`.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::error::quoted;

/// The facts kiln uses from a `config.json`.
#[derive(Clone, Debug, Default)]
pub struct ModelFacts {
    /// `architectures[0]`.
    pub architecture: Option<String>,
    /// `model_type`, then that of `text_config`.
    pub model_types: Vec<String>,
    /// `num_hidden_layers`.
    pub layers: Option<u64>,
    /// Routed experts per layer: `num_experts`, `n_routed_experts` or `num_local_experts`; 0 in some dense models.
    pub experts: Option<u64>,
    /// `hidden_size`.
    pub hidden: Option<u64>,
    /// `vocab_size`.
    pub vocabulary: Option<u64>,
    /// Rows of one expert's gate projection: `moe_intermediate_size`.
    pub expert_width: Option<u64>,
    /// `max_position_embeddings`.
    pub context: Option<u64>,
    /// Whether there is a `vision_config`.
    pub vision: bool,
    /// Whether there is an `audio_config` or a `sound_config`.
    pub audio: bool,
    /// Whether the head is the embedding: `tie_word_embeddings`; `None` when the config leaves it to the class.
    pub tied: Option<bool>,
    /// `num_attention_heads`.
    pub heads: Option<u64>,
    /// `qk_nope_head_dim`: of a head of latent attention, the part of a key without position.
    pub plain_key: Option<u64>,
    /// `v_head_dim`: the values of a head of latent attention.
    pub head_values: Option<u64>,
    /// Layers whose MLP has no experts, as `mlp_layer_types` and `mlp_only_layers` say; `None` when
    /// neither key is there.
    pub dense_layers: Option<Vec<u64>>,
    /// How many layers at the start have no experts: `first_k_dense_replace`.
    pub dense_prefix: u64,
    /// What each layer is: `layer_types`, `layers_block_type` or `hybrid_override_pattern`.
    pub layer_kinds: Vec<LayerKind>,
    /// How many of the last layers use the keys of others: `num_kv_shared_layers`.
    pub layers_sharing_keys: u64,
    /// The keys whose value is neither false, zero, empty nor null.
    pub set: BTreeSet<String>,
    /// Every class in `architectures`, then the model types: what identifies a runtime's parser.
    pub identifiers: Vec<String>,
}

/// What a config calls a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Attention to everything before.
    Full,
    /// Attention to the last tokens only.
    Sliding,
    /// A state instead of attention: linear attention, state space.
    Recurrent,
    /// Experts alone.
    Experts,
    /// A dense MLP alone.
    Mlp,
    /// Something else.
    Other,
}

impl LayerKind {
    fn of(word: &str) -> Self {
        match word {
            "full_attention" | "attention" | "*" => Self::Full,
            "sliding_attention" | "chunked_attention" => Self::Sliding,
            "linear_attention" | "mamba" | "mamba2" | "M" => Self::Recurrent,
            "moe" | "E" => Self::Experts,
            "mlp" | "-" => Self::Mlp,
            _ => Self::Other,
        }
    }
}

/// How configs call the number of experts.
const EXPERTS: [&str; 3] = ["num_experts", "n_routed_experts", "num_local_experts"];

impl ModelFacts {
    /// Reads a `config.json`.
    pub fn of(config: &Value) -> Self {
        let part = |key: &str| config.get(key).filter(|value| value.is_object());
        let (text, llm) = (part("text_config"), part("llm_config"));
        let places = [Some(config), text, llm];
        let find = |key: &str| places.into_iter().flatten().find_map(|place| place.get(key)).filter(|v| !v.is_null());
        let number = |keys: &[&str]| keys.iter().find_map(|key| find(key)).and_then(Value::as_u64);
        let string = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let classes: Vec<String> = config
            .get("architectures")
            .and_then(Value::as_array)
            .map(|classes| classes.iter().filter_map(Value::as_str).map(str::to_owned).collect())
            .unwrap_or_default();
        let model_types: Vec<String> =
            [string(config.get("model_type")), string(text.and_then(|t| t.get("model_type")))]
                .into_iter()
                .flatten()
                .collect();
        let places = || places.into_iter().flatten().filter_map(Value::as_object).flatten();
        let tied: Vec<bool> = places()
            .filter(|(key, _)| *key == "tie_word_embeddings")
            .filter_map(|(_, value)| value.as_bool())
            .collect();
        let set = places().filter(|(_, value)| is_set(value));
        let nested_type = string(llm.and_then(|llm| llm.get("model_type")));
        Self {
            architecture: classes.first().cloned(),
            layers: number(&["num_hidden_layers"]),
            experts: number(&EXPERTS),
            hidden: number(&["hidden_size"]),
            vocabulary: number(&["vocab_size"]),
            expert_width: number(&["moe_intermediate_size"]),
            context: number(&["max_position_embeddings"]),
            vision: config.get("vision_config").is_some_and(|v| !v.is_null())
                || config.get("has_vision").and_then(Value::as_bool).unwrap_or(false),
            audio: ["audio_config", "sound_config"].iter().any(|key| config.get(key).is_some_and(|v| !v.is_null())),
            tied: tied.contains(&true).then_some(true).or(tied.first().copied()),
            heads: number(&["num_attention_heads"]),
            plain_key: number(&["qk_nope_head_dim"]),
            head_values: number(&["v_head_dim"]),
            dense_layers: dense_layers(find("mlp_layer_types"), find("mlp_only_layers")),
            dense_prefix: number(&["first_k_dense_replace"]).unwrap_or(0),
            layer_kinds: layer_kinds(find),
            layers_sharing_keys: number(&["num_kv_shared_layers"]).unwrap_or(0),
            set: set.map(|(key, _)| key.clone()).collect(),
            identifiers: classes.into_iter().chain(model_types.first().cloned()).chain(nested_type).collect(),
            model_types,
        }
    }

    /// A field of `config` that should count something in the checkpoint and is no count, as a sentence.
    pub fn miscount(config: &Value) -> Option<String> {
        let parts = ["text_config", "llm_config"].into_iter().filter_map(|key| config.get(key));
        let places: Vec<&Value> = std::iter::once(config).chain(parts).collect();
        let counts =
            EXPERTS.into_iter().chain(["num_hidden_layers", "hidden_size", "vocab_size", "moe_intermediate_size"]);
        counts.flat_map(|key| places.iter().filter_map(move |place| Some((key, place.get(key)?)))).find_map(
            |(key, value)| {
                // A list counts each layer's own.
                let is_count = value.is_null() || value.is_u64() || value.is_array();
                (!is_count)
                    .then(|| format!("The config says {} for `{key}`, which is no count", quoted(&value.to_string())))
            },
        )
    }

    /// What the config calls this layer, if it says.
    pub fn kind(&self, layer: u64) -> Option<LayerKind> {
        self.layer_kinds.get(usize::try_from(layer).ok()?).copied()
    }

    /// Whether the config says that this layer has no experts where others have.
    pub fn is_dense(&self, layer: u64) -> bool {
        layer < self.dense_prefix || self.dense_layers.as_ref().is_some_and(|layers| layers.contains(&layer))
    }

    /// Whether the config sets one of `keys`.
    pub fn has(&self, keys: &[&str]) -> bool {
        keys.iter().any(|key| self.set.contains(*key))
    }
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(_) => true,
    }
}

fn layer_kinds<'a>(find: impl Fn(&str) -> Option<&'a Value>) -> Vec<LayerKind> {
    let words = ["layer_types", "layers_block_type"].into_iter().find_map(&find).and_then(Value::as_array);
    let pattern = find("hybrid_override_pattern").and_then(Value::as_str).unwrap_or_default();
    match words {
        Some(words) => words.iter().map(|word| LayerKind::of(word.as_str().unwrap_or_default())).collect(),
        None => pattern.split_terminator("").skip(1).map(LayerKind::of).collect(),
    }
}

fn dense_layers(types: Option<&Value>, only: Option<&Value>) -> Option<Vec<u64>> {
    let types = types.and_then(Value::as_array);
    let only = only.and_then(Value::as_array);
    if types.is_none() && only.is_none() {
        return None;
    }
    let typed = types.into_iter().flatten().zip(0..).filter(|(kind, _)| kind.as_str() == Some("dense")).map(|(_, i)| i);
    let mut dense: Vec<u64> = typed.chain(only.into_iter().flatten().filter_map(Value::as_u64)).collect();
    dense.sort_unstable();
    dense.dedup();
    Some(dense)
}
