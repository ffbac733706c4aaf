//! What became of the layers of a published model in the one that was created from it.

use std::collections::{BTreeMap, BTreeSet};

use super::create::Prepared;
use crate::manifest::layer_name;
use crate::oci::{Descriptor, Digest};

/// The layers of a model that was created from a published one, and those that it no longer has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Republished {
    /// The published model, pinned to its digest, as it can be named again.
    pub source: String,
    /// Layers that are byte for byte the source's.
    pub stayed: Vec<Descriptor>,
    /// Layers that have a new digest, with the names of the source's layers that their tensors came from.
    pub moved: Vec<(Descriptor, Vec<String>)>,
    /// Layers in which there is nothing of the source.
    pub new: Vec<Descriptor>,
    /// Layers of the source that are in the model no more.
    pub gone: Vec<Descriptor>,
}

impl Republished {
    /// Compares the layers of a published model, `before`, with those that `prepared` gave, `after`.
    pub(super) fn new(source: String, before: &[Descriptor], after: &[Descriptor], prepared: &Prepared) -> Self {
        let digests = |layers: &[Descriptor]| layers.iter().map(|layer| layer.digest).collect::<BTreeSet<Digest>>();
        let (there, again) = (digests(before), digests(after));
        let blobs: BTreeMap<&str, _> = prepared.model.plan.blobs.iter().map(|blob| (&*blob.name, blob)).collect();
        let (mut stayed, mut moved, mut new) = (Vec::new(), Vec::new(), Vec::new());
        for layer in after {
            if there.contains(&layer.digest) {
                stayed.push(layer.clone());
            } else if let Some(blob) = blobs.get(&*layer_name(layer)) {
                let sources = blob.tensors.iter().flat_map(|tensor| &tensor.sources);
                let from: BTreeSet<&str> =
                    sources.filter_map(|source| prepared.model.checkpoint.shard_of(&source.name)).collect();
                moved.push((layer.clone(), from.into_iter().map(str::to_owned).collect()));
            } else {
                new.push(layer.clone());
            }
        }
        let gone = before.iter().filter(|layer| !again.contains(&layer.digest)).cloned().collect();
        Self { source, stayed, moved, new, gone }
    }
}
