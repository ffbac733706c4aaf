//! Which scheme each tensor gets: that of the policy, or the one that its codes in the source have.

use std::collections::BTreeSet;

use super::{Decode, Placed, PlannedTensor, Profile, Request, Transform};
use crate::arch::{Family, ModelFacts};
use crate::error::Result;
use crate::inventory::SourceKind;
use crate::quant::Scheme;

/// What weights in codes become when nothing was asked for and their codes cannot be kept.
const NEAREST: Scheme = Scheme::Mxfp8;

/// Gives every tensor its scheme. Codes are kept as they are, unless the request leads to another scheme or they
/// cannot be kept: then they are decoded, and quantized a second time.
pub(super) fn settle(
    placed: &mut [Placed],
    kind: SourceKind,
    family: &Family,
    facts: &ModelFacts,
    request: &Request,
) -> Result<()> {
    let base = if request.quantizes() { request.scheme } else { Some(NEAREST) };
    for Placed { tensor, .. } in placed {
        let own = tensor.scheme;
        let kept = own.is_some() && keeps_codes(family, tensor);
        if !request.quantizes() && (kept || own.is_none() && !tensor.is_decoded()) {
            if own.is_none() && kind != SourceKind::Float {
                tensor.why = "not quantized in the source".into();
            }
            continue;
        }
        let choice = request.policy.choose(family, facts, base, tensor)?;
        // The policy promotes what is sensitive; promoting codes wins nothing back.
        if kept && (choice.scheme.is_none() || [choice.scheme, request.scheme].contains(&own)) {
            continue;
        }
        tensor.decode_codes();
        (tensor.scheme, tensor.why) = (choice.scheme, choice.why);
        tensor.finite = tensor.name.ends_with(".weight");
    }
    Ok(())
}

/// Whether the codes of a tensor can stay as they are. A global scale is one value for one matrix: it has no place
/// where two are fused, and not every runtime looks at those of experts.
fn keeps_codes(family: &Family, tensor: &PlannedTensor) -> bool {
    let global = tensor.packed.as_ref().is_some_and(|packed| packed.global.is_some());
    let is_expert = family.experts.is_some_and(|layout| layout.source_name(&tensor.name).is_some());
    !global || !is_expert || family.expert_globals && tensor.transform != Transform::Fuse
}

/// The scheme of all quantized tensors, when there are any and they agree.
pub(super) fn shared(placed: &[Placed]) -> Option<Scheme> {
    let mut schemes = placed.iter().filter_map(|placed| placed.tensor.scheme);
    let first = schemes.next()?;
    schemes.all(|scheme| scheme == first).then_some(first)
}

/// What the user should know about what became of codes.
pub(super) fn notes(placed: &[Placed], request: &Request) -> Vec<String> {
    let again = match request.scheme {
        Some(scheme) => format!("`{scheme}`"),
        None if request.quantizes() => "the recipe".to_owned(),
        None => format!("`{NEAREST}`"),
    };
    let mut notes = Vec::new();
    let mut decoded = BTreeSet::new();
    for tensor in placed.iter().map(|placed| &placed.tensor) {
        match tensor.decode() {
            _ if tensor.scheme.is_none() => false,
            Some(Decode::Fp8 { .. }) => decoded.insert("FP8".to_owned()),
            Some(Decode::Scheme { scheme, .. }) => decoded.insert(format!("`{scheme}`")),
            Some(Decode::Reciprocal) | None => false,
        };
    }
    if decoded.iter().any(|scheme| scheme != "FP8") && !request.quantizes() {
        notes.push("The runtime ignores global scales of experts: these are decoded, so that none is lost".to_owned());
    }
    if !decoded.is_empty() {
        let from = decoded.into_iter().collect::<Vec<_>>().join(", ");
        notes.push(format!("The weights are {from} already: {again} is a second quantization"));
    }
    if request.profile == Profile::Ollama {
        let schemes: BTreeSet<Scheme> = placed.iter().filter_map(|placed| placed.tensor.scheme).collect();
        let misread = schemes.iter().filter(|scheme| scheme.has_biases() && ![4, 8].contains(&scheme.bits()));
        notes.extend(misread.map(|scheme| format!("Ollama has no scheme `{scheme}` and would misread it")));
    }
    notes
}
