//! Profile `hf`: the files as they are. Nothing is decided about tensors, so every kind of source is well.

use super::{Plan, PlannedFile, Request, order};
use crate::arch::{Family, ModelFacts, Runtime};
use crate::error::{Error, ErrorKind, Result};
use crate::inventory::Inventory;

/// Plans the files of a checkpoint that was opened whole.
///
/// # Errors
/// [`ErrorKind::Usage`] when they were to be quantized.
pub(super) fn plan(inventory: &Inventory, request: Request) -> Result<Plan> {
    if request.quantizes() {
        return Err(Error::new(ErrorKind::Usage, "Profile `hf` keeps the files as they are: nothing is quantized")
            .hint("leave `--quantize` and `--recipe` out, or name another profile"));
    }
    let facts = ModelFacts::of(&inventory.config);
    let family = Family::of(&facts);
    Ok(Plan {
        base: None,
        kind: inventory.kind,
        family,
        runtime: Runtime::of(&facts, inventory.template.as_deref()),
        requires: family.requires,
        blobs: Vec::new(),
        sidecars: order::sidecars(inventory.sidecars.iter().map(PlannedFile::kept).collect()),
        normalizations: Vec::new(),
        notes: inventory.notes.clone(),
        request,
        facts,
    })
}
