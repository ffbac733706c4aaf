//! What kiln knows about model families: one file per family, one row each in [`FAMILIES`]. A family
//! says which architectures it covers, how its experts lie on disk, which tensors it quantizes, and
//! which runtime loads the result. Nothing here reads a file.

mod cohere2_moe;
mod deepseek_v3;
mod experts;
mod facts;
mod gemma3;
mod gemma4;
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
    /// Whether its runtime multiplies with the global scales that experts may have in `nvfp4`; also where no runtime
    /// is known that would not.
    pub expert_globals: bool,
    /// Why Ollama would not load, or misread, a model with these tensors (name to shape), though none is missing.
    pub misread: fn(&BTreeMap<&str, &[u64]>) -> Option<String>,
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
    /// The models that `mlx-lm` has for it, by `model_type`.
    pub mlx: &'static [Mlx],
}

/// The lowest version of Ollama that loads any model from safetensors layers.
pub const OLDEST_RUNTIME: &str = "0.19.0";

/// Every family with rules of its own, in alphabetical order.
pub static FAMILIES: [&Family; 16] = [
    &cohere2_moe::FAMILY,
    &deepseek_v3::FAMILY,
    &gemma3::FAMILY,
    &gemma4::FAMILY,
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

impl Family {
    /// The family that `facts` name: by class, else by model type, else the generic one.
    pub fn of(facts: &ModelFacts) -> &'static Self {
        let by_class = FAMILIES
            .iter()
            .find(|family| facts.architecture.as_deref().is_some_and(|class| family.architectures.contains(&class)));
        let by_type = || {
            FAMILIES.iter().find(|family| facts.model_types.iter().any(|kind| family.model_types.contains(&&**kind)))
        };
        by_class.or_else(by_type).copied().unwrap_or(&generic::FAMILY)
    }

    /// Every family, the one of everything unknown last.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        FAMILIES.into_iter().chain([&generic::FAMILY])
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_and_name_belongs_to_one_family() {
        let mut seen = std::collections::BTreeSet::new();
        for family in FAMILIES {
            assert!(seen.insert(family.name), "{}", family.name);
            for class in family.architectures {
                assert!(seen.insert(class), "{class}");
            }
            for kind in family.model_types {
                assert!(*kind == family.name || seen.insert(kind), "{kind}");
            }
        }
        assert!(FAMILIES.is_sorted_by_key(|family| family.name));
    }
}
