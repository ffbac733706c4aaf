//! Which tensors share a blob, and in which order the blobs stand in the manifest.

use std::collections::BTreeMap;

use super::{PlannedBlob, PlannedTensor};
use crate::error::{Error, Result};
use crate::inventory::Sidecar;

/// Gathers tensors, each with the name of its blob, into blobs: single tensors by name, then expert groups
/// by name, as Ollama orders them.
///
/// Some runtimes read the experts' quantization mode from the first layer that names one, so when that
/// would be another mode, the expert groups come first.
pub(super) fn blobs(tensors: Vec<(String, PlannedTensor)>) -> Result<Vec<PlannedBlob>> {
    let mut by_name: BTreeMap<String, Vec<PlannedTensor>> = BTreeMap::new();
    let mut arrays = std::collections::BTreeSet::new();
    for (blob, tensor) in tensors {
        for part in tensor.parts() {
            if !arrays.insert(part.name.clone()) {
                return Err(Error::input(format!("Two tensors would be stored as `{}`", part.name.escape_debug())));
            }
        }
        by_name.entry(blob).or_default().push(tensor);
    }
    let (mut singles, groups): (Vec<_>, Vec<_>) = by_name
        .into_iter()
        .map(|(name, mut tensors)| {
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
            PlannedBlob { name, tensors }
        })
        .partition(|blob| blob.tensors.len() == 1 && blob.tensors[0].name == blob.name);
    let first_mode =
        |blobs: &[PlannedBlob]| blobs.iter().find_map(PlannedBlob::uniform_scheme).map(|scheme| scheme.mode());
    let experts_mode =
        groups.iter().flat_map(|group| &group.tensors).find_map(|tensor| tensor.scheme).map(|scheme| scheme.mode());
    if experts_mode.is_some() && first_mode(&singles).is_some_and(|mode| Some(mode) != experts_mode) {
        // Within the groups, one that names the experts' mode leads.
        let (mut leading, rest): (Vec<_>, Vec<_>) = groups
            .into_iter()
            .partition(|group| group.uniform_scheme().is_some_and(|scheme| Some(scheme.mode()) == experts_mode));
        leading.extend(rest);
        leading.append(&mut singles);
        return Ok(leading);
    }
    singles.extend(groups);
    Ok(singles)
}

/// JSON files by name, as Ollama orders them, then the other files by name.
pub(super) fn sidecars(mut sidecars: Vec<Sidecar>) -> Vec<Sidecar> {
    sidecars.sort_by(|a, b| (!a.name.ends_with(".json"), &a.name).cmp(&(!b.name.ends_with(".json"), &b.name)));
    sidecars
}
