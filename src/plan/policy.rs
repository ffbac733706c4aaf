//! Who gives each tensor its scheme.

use std::collections::BTreeMap;

use super::{PlannedTensor, Recipe};
use crate::arch::{Choice, Family, ModelFacts, Question, is_matrix};
use crate::error::Result;
use crate::quant::Scheme;

/// Who gives each tensor its scheme.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The rules of the model's family.
    #[default]
    Family,
    /// The rules of drafts.
    Draft,
    /// The user's rules.
    Recipe(Recipe),
    /// What an earlier plan resolved a recipe to: by output name, `None` to keep the values.
    Resolved(BTreeMap<String, Option<Scheme>>),
}

impl Policy {
    /// Decides about one tensor. `base` is the scheme that was asked for.
    ///
    /// # Errors
    /// As [`Recipe::choose`].
    pub(super) fn choose(
        &self,
        family: &Family,
        facts: &ModelFacts,
        base: Option<Scheme>,
        tensor: &PlannedTensor,
    ) -> Result<Choice> {
        if tensor.float().is_none() {
            return Ok(Choice::keep("not a float that can be quantized"));
        }
        let source_name = family.experts.and_then(|layout| layout.source_name(&tensor.name));
        let name = source_name.as_deref().unwrap_or(&tensor.name);
        let shape = &tensor.shape;
        match (self, base) {
            (Self::Family | Self::Draft, None) => Ok(Choice::keep("no scheme was asked for")),
            (Self::Family, Some(base)) => Ok(family.choose(&Question { base, name, shape, facts })),
            (Self::Draft, Some(base)) => Ok(family.choose_as_draft(&Question { base, name, shape, facts })),
            (Self::Recipe(_), _) if !is_matrix(name, shape) => Ok(Choice::keep("not a weight matrix")),
            (Self::Recipe(recipe), _) => recipe.choose(family, facts, name, shape),
            (Self::Resolved(schemes), _) => Ok(Self::resolved(schemes, &tensor.name, shape)),
        }
    }

    /// What a recipe was resolved to, for the tensor that is written as `name`.
    pub(super) fn resolved(schemes: &BTreeMap<String, Option<Scheme>>, name: &str, shape: &[u64]) -> Choice {
        match schemes.get(name).copied().flatten() {
            Some(scheme) if scheme.divides(shape) => Choice::quantize(scheme, "as before"),
            _ => Choice::keep("as before"),
        }
    }
}
