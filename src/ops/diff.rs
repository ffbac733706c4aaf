//! Holding two models of one store, or of two, against each other: which layers they share, which were moved, which
//! differ, and how.

use super::explain::{Between, Side, compare};
pub use super::explain::{Change, LayerChange};
use super::inspect::find;
use super::verify::{Finding, Outcome};
use crate::error::Result;
use crate::oci::{Descriptor, Digest, Reference};
use crate::progress::Progress;
use crate::store::Store;

/// A model and the store that has it.
#[derive(Clone, Debug)]
pub struct Model {
    /// The store.
    pub store: Store,
    /// The model's name in it.
    pub name: Reference,
}

/// What two models have in common, and what they have not.
#[derive(Clone, Debug)]
pub struct Diffed {
    /// The manifests' digests.
    pub digests: [Digest; 2],
    /// The first model's layers in its order, then those that only the second has.
    pub layers: Vec<LayerChange>,
    /// The second model's layers in its order.
    pub theirs: Vec<Descriptor>,
    /// How they differ; none when they are the same.
    pub findings: Vec<Finding>,
}

impl Diffed {
    /// Whether both names have the same manifest.
    pub fn is_same(&self) -> bool {
        let [ours, theirs] = self.digests;
        ours == theirs
    }

    /// How many layers became what `change` says, and their bytes.
    pub fn total(&self, change: Change) -> (u64, u64) {
        let layers = self.layers.iter().filter(|layer| layer.change == change).filter_map(LayerChange::layer);
        layers.fold((0, 0), |(number, bytes), layer| (number + 1, bytes.saturating_add(layer.size)))
    }
}

/// Compares two models. What differs is read and hashed before it is compared.
///
/// # Errors
/// [`crate::ErrorKind::NotFound`] when there is no such model; [`crate::ErrorKind::Corrupt`] when a manifest or a layer
/// that has to be read is damaged.
pub fn diff(models: &[Model; 2], threads: usize, progress: &Progress) -> Result<Diffed> {
    let [ours, theirs] = models;
    let ((target, manifest), (other_target, other_manifest)) =
        (find(&ours.store, &ours.name)?, find(&theirs.store, &theirs.name)?);
    let digests = [target.digest, other_target.digest];
    let (here, there) = (Side::new(&ours.store, &manifest), Side::new(&theirs.store, &other_manifest));
    against(digests, &here, &there, threads, progress)
}

/// Compares two models whose manifests have these digests.
pub(super) fn against(
    digests: [Digest; 2],
    ours: &Side<'_>,
    theirs: &Side<'_>,
    threads: usize,
    progress: &Progress,
) -> Result<Diffed> {
    let comparison = compare(ours, theirs, Between::Models, threads, progress)?;
    let (layers, theirs, findings) = (comparison.layers, theirs.layers().to_vec(), comparison.findings);
    let mut diffed = Diffed { digests, layers, theirs, findings };
    if !diffed.is_same() && diffed.findings.is_empty() {
        let message = "The manifests say the same in other bytes";
        diffed.findings.push(Finding::new(Outcome::NotReproduced, message));
    }
    Ok(diffed)
}
