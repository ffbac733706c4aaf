//! The plan of a draft: as for any checkpoint, under names that cannot meet those of its model.

use super::{Plan, PlannedFile, Policy, Request};
use crate::arch::{DRAFTS, Family, ModelFacts};
use crate::error::{Error, Result, quoted};
use crate::inventory::Inventory;
use crate::quant::Scheme;

/// What a runtime knows a model by.
fn class_of(facts: &ModelFacts) -> Option<&str> {
    facts.architecture.as_deref().or(facts.model_types.first().map(String::as_str))
}

impl Plan {
    /// What the names of a draft's tensors and layers begin with.
    pub const DRAFT_TENSORS: &str = "draft.";
    /// What the names of a draft's files begin with.
    pub const DRAFT_FILES: &str = "draft/";

    /// Plans a draft; `scheme` is that of `--draft-quantize`. Policies see its names without the prefix.
    ///
    /// # Errors
    /// As [`Plan::new`], and [`crate::ErrorKind::Input`] when it is of no architecture that drafts have.
    pub fn draft(inventory: &Inventory, scheme: Option<Scheme>) -> Result<Self> {
        let facts = ModelFacts::of(&inventory.config);
        if !Family::of(&facts).is_draft() {
            let class = quoted(class_of(&facts).unwrap_or("unknown"));
            let known: Vec<&str> = DRAFTS.iter().flat_map(|family| family.architectures).copied().collect();
            return Err(Error::input(format!("{class} is no architecture of drafts"))
                .hint(format!("use a draft of {}", known.join(", "))));
        }
        let mut plan = Self::new(inventory, Request { scheme, policy: Policy::Draft, ..Request::default() })?;
        let prefix = |name: &mut String| name.insert_str(0, Self::DRAFT_TENSORS);
        for blob in &mut plan.blobs {
            prefix(&mut blob.name);
            blob.tensors.iter_mut().for_each(|tensor| prefix(&mut tensor.name));
        }
        Ok(plan)
    }

    /// What a runtime knows the model by: its class, else its type.
    pub fn class(&self) -> Option<&str> {
        class_of(&self.facts)
    }

    /// The name of a sidecar's layer.
    pub fn file_name(&self, sidecar: &PlannedFile) -> String {
        let prefix = if self.request.policy == Policy::Draft { Self::DRAFT_FILES } else { "" };
        format!("{prefix}{}", sidecar.name)
    }
}
