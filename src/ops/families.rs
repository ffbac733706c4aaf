//! What kiln knows about model families.

use crate::arch::Family;

/// One family, in words.
#[derive(Clone, Debug)]
pub struct Known {
    /// Its name.
    pub name: &'static str,
    /// Whether its models are drafts, which guess for a larger model.
    pub draft: bool,
    /// The classes of a config's `architectures` that it covers; empty for the family of everything else.
    pub classes: &'static [&'static str],
    /// The values of `model_type` it covers when the class is unknown.
    pub model_types: &'static [&'static str],
    /// How its routed experts lie on disk; `None` for a dense family.
    pub experts: Option<Experts>,
    /// What its quantization policy comes to.
    pub policy: &'static str,
    /// The lowest version of Ollama that loads it; `None` when none does yet.
    pub requires: Option<&'static str>,
}

/// Where the routed experts of a layer `<L>` lie.
#[derive(Clone, Debug)]
pub struct Experts {
    /// The stacked tensors, as in `<L>.mlp.switch_mlp.{down,gate,up}_proj.weight`.
    pub tensors: String,
    /// The blob that holds them.
    pub blob: String,
}

/// Every family by name, those of drafts behind the others, and last the one of everything else.
pub fn families() -> Vec<Known> {
    Family::all().map(known).collect()
}

fn known(family: &'static Family) -> Known {
    let experts = family.experts.map(|layout| {
        let names = layout.projections.iter().map(|projection| projection.name().trim_end_matches("_proj"));
        let names = names.collect::<Vec<_>>().join(",");
        Experts {
            tensors: format!("<L>.{}.{{{names}}}_proj.weight", layout.target),
            blob: format!("<L>.{}", layout.blob),
        }
    });
    Known {
        name: family.name,
        draft: family.is_draft(),
        classes: family.architectures,
        model_types: family.model_types,
        experts,
        policy: family.rules,
        requires: family.requires,
    }
}
