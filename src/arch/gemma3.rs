//! Gemma 3: dense, source names, with or without the vision tower.

use super::required::{self, ATTENTION, Form, NORM, Need, QUERY_KEY_NORMS, When};
use super::{Family, OLDEST_RUNTIME, ORDINARY};
use serde_json::{Map, Value};

use super::mlx::{DENSE, Head, Mlx, Module, NORMED_ATTENTION, PLAIN, Tied, parameter};

/// Shared with gemma4.
pub(super) const GEMMA_NORMS: &[Form] = &[&[
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "pre_feedforward_layernorm.weight",
    "post_feedforward_layernorm.weight",
]];

pub(super) static FAMILY: Family = Family {
    name: "gemma3",
    expert_globals: true,
    architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_types: &["gemma3", "gemma3_text"],
    model: NORM,
    layer: &[
        Need(When::Always, GEMMA_NORMS),
        Need(When::Always, ATTENTION),
        Need(When::Always, QUERY_KEY_NORMS),
        Need(When::Always, required::DENSE),
    ],
    requires: Some(OLDEST_RUNTIME),
    mlx: &[
        Mlx { model_types: &["gemma3_text"], ..TEXT },
        Mlx {
            model_types: &["gemma3"],
            config: |config| fill_text_config(config, [262_208, 8, 4]),
            rename: |name, _| {
                let tower = ["vision_tower.", "multi_modal_projector."].iter().any(|tower| name.starts_with(tower));
                (!tower).then(|| name.to_owned())
            },
            base: "language_model.model",
            head: Head { path: "language_model.lm_head", tied: Tied::Absent },
            ..TEXT
        },
    ],
    ..ORDINARY
};

/// mlx-lm writes the size of the vocabulary, `[0]` if the model does not name it, over that of its language model,
/// and where that does not name the number of heads `[1]`, and of those of keys and values `[2]`.
pub(super) fn fill_text_config(config: &mut Map<String, Value>, [vocabulary, heads, key_heads]: [u64; 3]) {
    let vocabulary = config.get("vocab_size").cloned().unwrap_or(vocabulary.into());
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.insert("vocab_size".to_owned(), vocabulary);
        text.entry("num_attention_heads").or_insert(heads.into());
        text.entry("num_key_value_heads").or_insert(key_heads.into());
    }
}

const TEXT: Mlx = Mlx {
    head: Head { path: "lm_head", tied: Tied::Absent },
    blocks: &[&[NORMED_ATTENTION], &[DENSE], &[NORMS]],
    ..PLAIN
};

pub(super) const NORMS: &[Module] = &[
    parameter("input_layernorm.weight"),
    parameter("post_attention_layernorm.weight"),
    parameter("pre_feedforward_layernorm.weight"),
    parameter("post_feedforward_layernorm.weight"),
];
