//! The generic quantization policy, and the words in which families write their own.
//!
//! The rules and their order are those of Ollama v0.33 (`docs/formats.md`, "Policies"). They look at
//! source names: an expert group is asked about once, under the stacked name its family's sources use.

use std::borrow::Cow;

use super::ModelFacts;
use super::experts::layer_number;
use crate::quant::Scheme;

/// What a policy is asked: may this tensor be quantized, and how?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The scheme the user asked for.
    pub base: Scheme,
    /// The tensor's source name.
    pub name: &'a str,
    /// Its shape; experts are stacked, `[experts, out, in]`.
    pub shape: &'a [u64],
    /// The model.
    pub facts: &'a ModelFacts,
}

/// A policy's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The scheme; `None` keeps the source's values.
    pub scheme: Option<Scheme>,
    /// The rule that decided, for `--dry-run`.
    pub why: Cow<'static, str>,
}

impl Choice {
    /// Keeps the source's values.
    pub fn keep(why: impl Into<Cow<'static, str>>) -> Self {
        Self { scheme: None, why: why.into() }
    }

    /// Quantizes with `scheme`.
    pub fn quantize(scheme: Scheme, why: impl Into<Cow<'static, str>>) -> Self {
        Self { scheme: Some(scheme), why: why.into() }
    }
}

impl Question<'_> {
    pub(super) fn ends(&self, suffixes: &[&str]) -> bool {
        suffixes.iter().any(|suffix| self.name.ends_with(suffix))
    }

    pub(super) fn contains(&self, fragments: &[&str]) -> bool {
        fragments.iter().any(|fragment| self.name.contains(fragment))
    }

    /// A routed or shared expert's weight.
    pub(super) fn is_expert(&self) -> bool {
        is_expert(self.name)
    }

    /// The token embedding, but not gemma's per-layer one.
    pub(super) fn is_embedding(&self) -> bool {
        self.ends(&["embed_tokens.weight"]) && !self.contains(&["per_layer"])
    }

    pub(super) fn is_four_bit(&self) -> bool {
        self.base.bits() == 4
    }

    /// The 8-bit scheme of the base's kind.
    pub(super) fn eight_bit(&self) -> Scheme {
        if self.base.has_biases() { Scheme::INT8 } else { Scheme::Mxfp8 }
    }

    /// Whether rows divide into the groups of `scheme`.
    pub(super) fn aligned(&self, scheme: Scheme) -> bool {
        scheme.divides(self.shape)
    }

    pub(super) fn eight_bit_or_keep(&self, why: &'static str) -> Choice {
        if self.aligned(self.eight_bit()) {
            Choice::quantize(self.eight_bit(), why)
        } else {
            Choice::keep("rows do not divide into groups")
        }
    }

    pub(super) fn base_or_keep(&self, why: &'static str) -> Choice {
        if self.aligned(self.base) {
            Choice::quantize(self.base, why)
        } else {
            Choice::keep("rows do not divide into groups")
        }
    }

    pub(super) fn eight_bit_or_base(&self, why: &'static str) -> Choice {
        if self.aligned(self.eight_bit()) {
            Choice::quantize(self.eight_bit(), why)
        } else {
            self.base_or_keep("base scheme: not aligned for 8 bits")
        }
    }

    /// A sensitive tensor: 8 bits where `promote`, else the base.
    pub(super) fn sensitive(&self, promote: bool, why: &'static str) -> Choice {
        if promote { self.eight_bit_or_base(why) } else { self.base_or_keep("base scheme") }
    }

    /// Which of the model's layers the tensor is in, and how many there are, when both are known.
    pub(super) fn depth(&self) -> Option<(u64, u64)> {
        layer_number(self.name).zip(self.facts.layers.filter(|&layers| layers > 0))
    }

    /// Whether the tensor's layer is one of those that keep more bits.
    pub(super) fn in_sensitive_layer(&self) -> bool {
        self.depth().is_some_and(|(layer, layers)| more_bits(layer, layers))
    }
}

fn is_expert(name: &str) -> bool {
    ![".bias", ".scale", ".qbias"].iter().any(|suffix| name.ends_with(suffix))
        && [".experts.", ".mlp.switch_mlp.", ".mlp.shared_experts.", ".mixer.shared_experts."]
            .iter()
            .any(|fragment| name.contains(fragment))
}

/// Whether a tensor of this source name and shape is a weight matrix, or a stack of expert matrices.
pub fn is_matrix(name: &str, shape: &[u64]) -> bool {
    let expert = is_expert(name) && !name.ends_with("_bias");
    (expert || name.ends_with(".weight")) && (shape.len() == 2 || shape.len() == 3 && expert)
}

/// The first and last eighth of the layers, and every third between.
pub fn more_bits(layer: u64, layers: u64) -> bool {
    let (first, last) = (layers / 8, 7 * layers / 8);
    layers > 0 && (layer < first || layer >= last || (layer - first) % 3 == 2)
}

/// What is different in a draft: how good its head is only decides how many of its guesses are right.
pub(super) fn draft_head(question: &Question<'_>) -> Option<Choice> {
    let is_head = question.is_embedding() || question.ends(&["lm_head.weight"]);
    is_head.then(|| question.base_or_keep("embedding or output head of a draft"))
}

/// The rules for every family, from the first that applies.
pub(super) fn generic(question: &Question<'_>) -> Choice {
    let expert = question.is_expert();
    if !expert {
        if question.contains(&["audio_tower", "embed_audio"]) {
            return Choice::keep("audio tower");
        }
        if question.contains(&["embed"]) {
            return Choice::keep("embedding");
        }
        if question.contains(&["norm", "ln_", "layernorm"]) {
            return Choice::keep("norm");
        }
        if !question.ends(&[".weight"]) {
            return Choice::keep("not a weight");
        }
    }
    // gpt-oss spells its experts' true biases `…_proj_bias`, a matrix only because experts are stacked.
    if question.ends(&["_bias"]) {
        return Choice::keep("bias");
    }
    if !(question.shape.len() == 2 || question.shape.len() == 3 && expert) {
        return Choice::keep("not a matrix");
    }
    if question.shape.iter().product::<u64>() < 1024 {
        return Choice::keep("fewer than 1024 elements");
    }
    if question.ends(&[".mlp.gate.weight", ".mixer.gate.weight", ".shared_expert_gate.weight", ".router.proj.weight"]) {
        return Choice::keep("router");
    }
    if question.ends(&["lm_head.weight"]) {
        return question.eight_bit_or_keep("output head: 8 bits");
    }
    if question.contains(&["vision", "visual"]) {
        return Choice::keep("vision tower");
    }
    if !question.aligned(question.base) {
        return Choice::keep("rows do not divide into groups");
    }
    let fp4 = matches!(question.base, Scheme::Nvfp4 | Scheme::Mxfp4);
    if (question.base == Scheme::INT4 || fp4 && !expert)
        && question.contains(&[".v_proj", ".k_proj", "down_proj"])
        && question.aligned(question.eight_bit())
    {
        return Choice::quantize(question.eight_bit(), "sensitive projection: 8 bits");
    }
    Choice::quantize(question.base, "base scheme")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_bits_at_both_ends_and_every_third_between() {
        let layers = |n| (0..n).filter(|&layer| more_bits(layer, n)).collect::<Vec<_>>();
        assert_eq!(layers(30), [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]);
        assert_eq!(layers(0), [] as [u64; 0]);
    }

    #[test]
    fn the_generic_rules_in_order() {
        let facts = ModelFacts::default();
        let choose = |base, name, shape: &[u64]| generic(&Question { base, name, shape, facts: &facts }).scheme;
        let (int4, nvfp4) = (Scheme::INT4, Scheme::Nvfp4);
        for (base, name, shape, expected) in [
            (int4, "model.embed_tokens.weight", &[320, 128][..], None),
            (int4, "model.layers.0.input_layernorm.weight", &[128], None),
            (int4, "model.layers.0.self_attn.q_proj.bias", &[4096], None),
            (int4, "model.layers.0.self_attn.q_proj.weight", &[128, 128], Some(int4)),
            (int4, "model.layers.0.self_attn.q_proj.weight", &[4, 128], None),
            (int4, "model.layers.0.self_attn.q_proj.weight", &[128, 96], None),
            (int4, "model.layers.0.self_attn.v_proj.weight", &[128, 128], Some(Scheme::INT8)),
            (Scheme::INT8, "model.layers.0.self_attn.v_proj.weight", &[128, 128], Some(Scheme::INT8)),
            (nvfp4, "model.layers.0.self_attn.k_proj.weight", &[128, 128], Some(Scheme::Mxfp8)),
            (nvfp4, "model.layers.0.self_attn.k_proj.weight", &[128, 48], Some(nvfp4)),
            (nvfp4, "model.layers.0.mlp.experts.down_proj.weight", &[4, 128, 64], Some(nvfp4)),
            (int4, "model.layers.0.mlp.experts.down_proj.weight", &[4, 128, 64], Some(Scheme::INT8)),
            (int4, "model.layers.0.mlp.experts.gate_up_proj", &[4, 128, 64], Some(int4)),
            (int4, "model.layers.0.mlp.gate.weight", &[64, 128], None),
            (int4, "lm_head.weight", &[320, 128], Some(Scheme::INT8)),
            (nvfp4, "lm_head.weight", &[320, 128], Some(Scheme::Mxfp8)),
            (int4, "lm_head.weight", &[320, 96], None),
            (int4, "model.visual.blocks.0.attn.qkv.weight", &[96, 64], None),
            (int4, "model.layers.0.conv.weight", &[128, 1, 64], None),
        ] {
            assert_eq!(choose(base, name, shape), expected, "{base} {name} {shape:?}");
        }
    }
}
