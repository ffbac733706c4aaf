//! Tensors as they are read. A weight in block-fp8 is two tensors of the checkpoint, codes and scales; to
//! everything that arranges bytes it is one, of bfloat16.

use std::collections::{BTreeMap, BTreeSet};

use super::SourceTensor;
use crate::inventory::{Dtype, Inventory, SourceKind, Tensor};

/// A tensor that can be read for itself.
pub(super) struct Readable<'a> {
    /// The element type of what is read.
    pub(super) dtype: Dtype,
    /// The tensor in the checkpoint.
    pub(super) stored: &'a Tensor,
    /// The scales it is decoded with.
    scales: Option<(&'a str, &'a Tensor)>,
}

/// Every such tensor by name; scales belong to their weights.
pub(super) fn readable(inventory: &Inventory) -> BTreeMap<&str, Readable<'_>> {
    let scales_of = |name: &str, stored: &Tensor| {
        let is_decoded = inventory.kind == SourceKind::BlockFp8 && stored.dtype == Dtype::F8E4M3;
        is_decoded.then(|| inventory.scales_of(name)).flatten()
    };
    let tensors = inventory.tensors.iter().map(|(name, stored)| {
        let scales = scales_of(name, stored);
        let dtype = if scales.is_some() { Dtype::Bf16 } else { stored.dtype };
        (name.as_str(), Readable { dtype, stored, scales })
    });
    let mut readable: BTreeMap<_, _> = tensors.collect();
    let scales: BTreeSet<&str> = readable.values().filter_map(|tensor| tensor.scales).map(|(name, _)| name).collect();
    readable.retain(|name, _| !scales.contains(name));
    readable
}

/// The sources of an output that reads these tensors in this order: all of them, then their scales.
pub(super) fn sources(tensors: &[(&str, &Readable<'_>)]) -> Vec<SourceTensor> {
    let source = |name: &str, stored: &Tensor, scales| SourceTensor {
        name: name.to_owned(),
        dtype: stored.dtype,
        shape: stored.shape.clone(),
        scales,
    };
    let scales: Vec<SourceTensor> = tensors
        .iter()
        .filter_map(|(_, tensor)| tensor.scales)
        .map(|(name, stored)| source(name, stored, None))
        .collect();
    let mut next_scales = tensors.len()..;
    let weights = tensors.iter().map(|(name, tensor)| {
        let scales = tensor.scales.and_then(|_| next_scales.next());
        source(name, tensor.stored, scales)
    });
    weights.chain(scales).collect()
}
