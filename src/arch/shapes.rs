//! Holding a checkpoint's tensors against its config: every layer is there, and the sizes that the
//! config names are the sizes on disk.

use std::collections::{BTreeMap, BTreeSet};

use super::experts::split_layer;
use super::{Family, ModelFacts};
use crate::error::quoted;

impl Family {
    /// What the config and the tensors (name to logical shape) disagree about, one sentence each.
    pub fn contradictions<'a>(
        &self,
        facts: &ModelFacts,
        tensors: impl Iterator<Item = (&'a str, &'a [u64])>,
    ) -> Vec<String> {
        let tensors: BTreeMap<&str, &[u64]> = tensors.collect();
        let mut found = Vec::new();
        if let Some(layers) = facts.layers {
            let present: BTreeSet<u64> =
                tensors.keys().filter_map(|name| text_layer(name)).map(|(layer, _)| layer).collect();
            let missing = (0..layers).find(|layer| !present.contains(layer));
            if let Some(missing) = missing.filter(|_| !present.is_empty() || !self.is_generic()) {
                found.push(format!("The config has {layers} layers, but there is no tensor of layer {missing}"));
            }
        }
        if self.is_generic() {
            return found;
        }
        if !tensors.keys().any(|name| name.ends_with(self.embedding)) {
            found.push(format!("There is no tensor `{}`", self.embedding));
        }
        for (name, shape) in &tensors {
            found.extend(self.expected_sizes(facts, name).into_iter().filter_map(|(key, axis_from_end, size)| {
                let axis = shape.len().checked_sub(axis_from_end)?;
                (shape[axis] != size)
                    .then(|| format!("The config's `{key}` is {size}, but {} has the shape {shape:?}", quoted(name)))
            }));
        }
        found
    }

    /// Which config key fixes which axis (counted from the last) of a tensor.
    fn expected_sizes(&self, facts: &ModelFacts, name: &str) -> Vec<(&'static str, usize, u64)> {
        let hidden = facts.hidden.map(|size| ("hidden_size", size));
        let vocabulary = facts.vocabulary.map(|size| ("vocab_size", size));
        let width = facts.expert_width.map(|size| ("moe_intermediate_size", size));
        let both = width.map(|(key, size)| (key, size.saturating_mul(2)));
        let top_level = !name.contains("visual") && !name.contains("vision") && !name.contains("audio");
        // A draft may have none of its own.
        let is_embedding = !self.embedding.is_empty() && name.ends_with(self.embedding);
        let rows_and_columns = match text_layer(name).map(|(_, rest)| rest) {
            None if top_level && (is_embedding || name.ends_with("lm_head.weight")) => [vocabulary, hidden],
            Some("input_layernorm.weight" | "post_attention_layernorm.weight" | "norm.weight") => [None, hidden],
            Some("self_attn.q_proj.weight" | "self_attn.k_proj.weight" | "self_attn.v_proj.weight") => [None, hidden],
            Some("self_attn.o_proj.weight" | "mlp.down_proj.weight") => [hidden, None],
            Some("mlp.gate_proj.weight" | "mlp.up_proj.weight" | "mlp.gate.weight") => [None, hidden],
            Some("mixer.q_proj.weight" | "mixer.k_proj.weight" | "mixer.v_proj.weight") => [None, hidden],
            Some("mixer.in_proj.weight" | "mixer.up_proj.weight" | "mixer.gate.weight") => [None, hidden],
            Some("mixer.o_proj.weight" | "mixer.out_proj.weight" | "mixer.down_proj.weight") => [hidden, None],
            Some("mlp.switch_mlp.gate_proj.weight" | "mlp.switch_mlp.up_proj.weight") => [width, hidden],
            Some("moe.switch_mlp.gate_up_proj.weight") => [both, hidden],
            Some("block_sparse_moe.gate.weight") => [None, hidden],
            Some("block_sparse_moe.switch_mlp.gate_proj.weight" | "block_sparse_moe.switch_mlp.up_proj.weight") => {
                [None, hidden]
            }
            Some("block_sparse_moe.switch_mlp.down_proj.weight") => [hidden, None],
            // Where there is a latent size, experts work on that instead of the hidden one.
            Some("mixer.experts.up_proj.weight") => [width, None],
            Some("mixer.experts.down_proj.weight") => [None, width],
            Some("mlp.switch_mlp.down_proj.weight" | "moe.switch_mlp.down_proj.weight") => [hidden, width],
            _ => [None, None],
        };
        let axes = [2, 1].into_iter().zip(rows_and_columns);
        axes.filter_map(|(axis, size)| size.map(|(key, size)| (key, axis, size))).collect()
    }
}

/// The layer number and the rest of a language model's tensor; towers and prediction heads have layers of
/// their own.
pub fn text_layer(name: &str) -> Option<(u64, &str)> {
    let (layer, rest) = split_layer(name)?;
    let foreign = ["mtp.", "vision", "visual", "audio", "encoder."].iter().any(|part| layer.contains(part));
    let number = layer.rsplit('.').next()?.parse().ok()?;
    (!foreign).then_some((number, rest))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_size_that_cannot_be_is_a_contradiction() {
        for width in [1 << 63, u64::MAX] {
            let config = json!({
                "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": 1, "moe_intermediate_size": width,
            });
            let facts = ModelFacts::of(&config);
            let gate: &[u64] = &[4, 8, 64];
            let found = Family::of(&facts)
                .contradictions(&facts, [("model.layers.0.mlp.switch_mlp.gate_proj.weight", gate)].into_iter());
            assert!(found.iter().any(|sentence| sentence.contains("moe_intermediate_size")), "{found:?}");
        }
    }
}
