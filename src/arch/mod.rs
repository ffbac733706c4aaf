//! What kiln knows about model families: one file per family, one row each in [`FAMILIES`]. A family
//! says which architectures it covers, how its experts lie on disk, which tensors it quantizes, and
//! which runtime loads the result. Nothing here reads a file.

mod cohere2_moe;
mod deepseek_v3;
mod dflash;
mod experts;
mod facts;
mod gemma3;
mod gemma4;
mod gemma4_assistant;
mod gemma4_unified;
mod gemma4_unified_assistant;
mod generic;
mod glimmer;
mod glm4_moe_lite;
mod gpt_oss;
mod laguna;
mod llama;
mod mistral;
mod mixtral;
mod mlx;
mod nemotron_h;
mod policy;
mod qwen3;
mod qwen3_5;
mod qwen3_moe;
mod qwen3_next;
mod required;
mod runtime;
mod shapes;

use std::collections::BTreeMap;

pub use experts::{ExpertLayout, ExpertTensor, Position, Projection, Stacking};
pub use facts::{LayerKind, ModelFacts};
pub use mlx::{Head, Mlx, Module, Tied};
pub use policy::{Choice, Question, is_matrix, more_bits};
pub use required::Need;
pub use runtime::Runtime;
pub use shapes::text_layer;

/// One model family.
#[derive(Debug)]
pub struct Family {
    /// The family's name, as `model_type` or the runtime spells it.
    pub name: &'static str,
    /// The classes of `architectures[0]` it covers.
    pub architectures: &'static [&'static str],
    /// The values of `model_type` it covers when the class is unknown.
    pub model_types: &'static [&'static str],
    /// How the name of its token embedding ends; empty for a draft that uses its target's.
    pub embedding: &'static str,
    /// The tensors beside the embedding without which a model is not whole.
    pub model: &'static [Need],
    /// The tensors without which a layer is not whole.
    pub layer: &'static [Need],
    /// How its routed experts lie on disk; `None` for a dense family.
    pub experts: Option<&'static ExpertLayout>,
    /// Its own quantization rules, asked before the generic ones; `None` leaves the tensor to those.
    pub policy: fn(&Question<'_>) -> Option<Choice>,
    /// What its policy comes to, in a few words.
    pub rules: &'static str,
    /// The lowest version of Ollama that loads this family in this layout; `None` when none does yet.
    pub requires: Option<&'static str>,
    /// The lowest version of Ollama that reads a layer's experts right when some of their projections are quantized and
    /// others are not; `None` when none does.
    pub partly_quantized: Option<&'static str>,
    /// Whether its runtime multiplies with the global scales that experts may have in `nvfp4`; also where no runtime
    /// is known that would not.
    pub expert_globals: bool,
    /// Why Ollama would not load, or misread, a model with these tensors (name to shape), though none is missing.
    pub misread: fn(&BTreeMap<&str, &[u64]>) -> Option<String>,
    /// The models that `mlx-lm` has for it, by `model_type`.
    pub mlx: &'static [Mlx],
}

/// What most families have in common, for the `..` of a family's own.
const ORDINARY: Family = Family {
    name: "",
    architectures: &[],
    model_types: &[],
    embedding: "embed_tokens.weight",
    model: &[],
    layer: &[],
    experts: None,
    policy: |_| None,
    rules: "generic",
    requires: None,
    partly_quantized: None,
    expert_globals: false,
    misread: |_| None,
    mlx: &[],
};

/// The lowest version of Ollama that loads any model from safetensors layers.
pub const OLDEST_RUNTIME: &str = "0.19.0";

/// Every family with rules of its own, in alphabetical order.
pub static FAMILIES: [&Family; 17] = [
    &cohere2_moe::FAMILY,
    &deepseek_v3::FAMILY,
    &gemma3::FAMILY,
    &gemma4::FAMILY,
    &gemma4_unified::FAMILY,
    &glimmer::FAMILY,
    &glm4_moe_lite::FAMILY,
    &gpt_oss::FAMILY,
    &laguna::FAMILY,
    &llama::FAMILY,
    &mistral::FAMILY,
    &mixtral::FAMILY,
    &nemotron_h::FAMILY,
    &qwen3::FAMILY,
    &qwen3_5::FAMILY,
    &qwen3_moe::FAMILY,
    &qwen3_next::FAMILY,
];

/// Every family of drafts, which guess for a larger model, in alphabetical order.
pub static DRAFTS: [&Family; 3] = [&dflash::FAMILY, &gemma4_assistant::FAMILY, &gemma4_unified_assistant::FAMILY];

impl Family {
    /// The family that `facts` name: by class, else by model type, else the generic one.
    pub fn of(facts: &ModelFacts) -> &'static Self {
        let known = || FAMILIES.iter().chain(&DRAFTS);
        let by_class = known()
            .find(|family| facts.architecture.as_deref().is_some_and(|class| family.architectures.contains(&class)));
        let by_type =
            || known().find(|family| facts.model_types.iter().any(|kind| family.model_types.contains(&&**kind)));
        by_class.or_else(by_type).copied().unwrap_or(&generic::FAMILY)
    }

    /// Every family, those of drafts behind the others, the one of everything unknown last.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        FAMILIES.into_iter().chain(DRAFTS).chain([&generic::FAMILY])
    }

    /// Whether its models guess for a larger one, and are nothing without it.
    pub fn is_draft(&self) -> bool {
        DRAFTS.iter().any(|draft| std::ptr::eq(self, *draft))
    }

    /// Whether this is the family of everything unknown.
    pub fn is_generic(&self) -> bool {
        std::ptr::eq(self, &generic::FAMILY)
    }

    /// The model that `mlx-lm` loads such a checkpoint with; it looks only at the config's own `model_type`.
    pub fn mlx(&self, facts: &ModelFacts) -> Option<&'static Mlx> {
        let kind = facts.model_types.first()?;
        self.mlx.iter().find(|model| model.model_types.contains(&&**kind))
    }

    /// Gives a tensor its scheme: the family's own rules first, then the generic ones.
    pub fn choose(&self, question: &Question<'_>) -> Choice {
        (self.policy)(question).unwrap_or_else(|| policy::generic(question))
    }

    /// The same for a model that serves another as a draft, whatever its family.
    pub fn choose_as_draft(&self, question: &Question<'_>) -> Choice {
        policy::draft_head(question).unwrap_or_else(|| self.choose(question))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Scheme;

    #[test]
    fn every_class_and_name_belongs_to_one_family() {
        let mut seen = std::collections::BTreeSet::new();
        for family in FAMILIES.into_iter().chain(DRAFTS) {
            assert!(seen.insert(family.name), "{}", family.name);
            for class in family.architectures {
                assert!(seen.insert(class), "{class}");
            }
            for kind in family.model_types {
                assert!(*kind == family.name || seen.insert(kind), "{kind}");
            }
        }
        assert!(FAMILIES.is_sorted_by_key(|family| family.name) && DRAFTS.is_sorted_by_key(|family| family.name));
    }

    fn scheme(family: &Family, base: Scheme, name: &str, shape: &[u64]) -> Option<Scheme> {
        let facts = ModelFacts { layers: Some(8), ..ModelFacts::default() };
        family.choose(&Question { base, name, shape, facts: &facts }).scheme
    }

    #[test]
    fn every_family_keeps_the_values_of_its_towers() {
        for family in Family::all() {
            for base in [Scheme::INT4, Scheme::INT8, Scheme::Nvfp4, Scheme::Mxfp4, Scheme::Mxfp8] {
                for name in [
                    "model.visual.blocks.0.attn.qkv.weight",
                    "model.visual.merger.linear_fc1.weight",
                    "vision_tower.blocks.0.mlp.linear_fc1.weight",
                    "model.vision_tower.encoder.layers.0.self_attn.q_proj.linear.weight",
                    "model.embed_vision.embedding_projection.weight",
                    "model.audio_tower.layers.0.attn.q_proj.weight",
                    "model.embed_audio.embedding_projection.weight",
                ] {
                    assert_eq!(scheme(family, base, name, &[128, 128]), None, "{} {base} {name}", family.name);
                }
            }
        }
        for name in ["self_attn.v_proj", "self_attn.k_proj", "mlp.down_proj"] {
            let name = format!("model.vision_tower.encoder.layers.0.{name}.linear.weight");
            assert_eq!(scheme(&gemma4::FAMILY, Scheme::INT4, &name, &[128, 128]), None, "{name}");
        }
    }

    #[test]
    fn a_prediction_head_has_the_rules_of_the_layers() {
        for family in [&qwen3_5::FAMILY, &qwen3_next::FAMILY] {
            for (name, shape, expected) in [
                ("mtp.fc.weight", &[128, 256][..], Some(Scheme::INT4)),
                ("mtp.layers.0.self_attn.q_proj.weight", &[128, 128], Some(Scheme::INT4)),
                ("mtp.layers.0.self_attn.v_proj.weight", &[128, 128], Some(Scheme::INT8)),
                ("mtp.layers.0.mlp.experts.down_proj.weight", &[4, 128, 64], Some(Scheme::INT8)),
                ("mtp.layers.0.mlp.gate.weight", &[64, 128], None),
                ("mtp.pre_fc_norm_hidden.weight", &[2048], None),
            ] {
                assert_eq!(scheme(family, Scheme::INT4, name, shape), expected, "{} {name}", family.name);
            }
        }
    }
}
