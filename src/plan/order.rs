//! Which tensors share a blob, and in which order the blobs stand in the manifest.

use std::collections::{BTreeMap, BTreeSet};

use super::{Placed, PlannedBlob, PlannedFile, PlannedTensor};
use crate::error::{Error, Result, quoted};
use crate::quant::Scheme;

/// Gathers tensors into blobs: single tensors by name, then expert groups by name, as Ollama orders them.
///
/// Some runtimes read the experts' quantization mode from the first layer that names one, so when that
/// would be another mode, the expert groups come first.
pub(super) fn blobs(placed: Vec<Placed>) -> Result<Vec<PlannedBlob>> {
    let (singles, groups): (Vec<_>, Vec<_>) =
        by_name(placed)?.into_iter().partition(|blob| blob.tensors.len() == 1 && blob.tensors[0].name == blob.name);
    let named_mode = |blob: &PlannedBlob| blob.uniform_scheme().map(Scheme::mode);
    let experts_mode =
        groups.iter().flat_map(|group| &group.tensors).find_map(|tensor| tensor.scheme).map(Scheme::mode);
    let first_mode = singles.iter().find_map(named_mode);
    if experts_mode.is_none() || first_mode.is_none_or(|mode| Some(mode) == experts_mode) {
        return Ok([singles, groups].concat());
    }
    // Among the groups, those that name the experts' mode lead: a mixed one names none.
    let (leading, rest): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| named_mode(group) == experts_mode);
    Ok([leading, rest, singles].concat())
}

/// Gathers tensors into blobs, both by name.
pub(super) fn by_name(placed: Vec<Placed>) -> Result<Vec<PlannedBlob>> {
    let mut by_name: BTreeMap<String, Vec<PlannedTensor>> = BTreeMap::new();
    let mut arrays = BTreeSet::new();
    for Placed { blob, tensor } in placed {
        for part in tensor.parts() {
            if !arrays.insert(part.name.clone()) {
                return Err(Error::input(format!("Two tensors would be stored as {}", quoted(&part.name))));
            }
        }
        by_name.entry(blob).or_default().push(tensor);
    }
    let blobs = by_name.into_iter().map(|(name, mut tensors)| {
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        PlannedBlob { name, tensors }
    });
    Ok(blobs.collect())
}

/// JSON files by name, as Ollama orders them, then the other files by name.
pub(super) fn sidecars(mut sidecars: Vec<PlannedFile>) -> Vec<PlannedFile> {
    sidecars.sort_by(|a, b| (!a.name.ends_with(".json"), &a.name).cmp(&(!b.name.ends_with(".json"), &b.name)));
    sidecars
}
