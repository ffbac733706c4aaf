//! Which scheme each tensor gets: that of the policy, or the one that its codes in the source have.

use std::collections::BTreeSet;

use super::{Decode, Placed, PlannedTensor, Policy, Profile, Request, Transform};
use crate::arch::{Family, ModelFacts};
use crate::error::{Error, Result, quoted};
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
    for Placed { tensor, .. } in placed.iter_mut() {
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
    if family.requires.is_some() && family.partly_quantized.is_none() {
        keep_together(placed, family, request)?;
    }
    Ok(())
}

/// Whether a tensor holds routed experts.
fn is_expert(family: &Family, tensor: &PlannedTensor) -> bool {
    family.experts.is_some_and(|layout| layout.source_name(&tensor.name).is_some())
}

/// The blobs of experts of which some projections are quantized and others are not.
pub(super) fn in_part(family: &Family, placed: &[Placed]) -> BTreeSet<String> {
    let experts = || placed.iter().filter(|placed| is_expert(family, &placed.tensor));
    let blobs = |quantized: bool| -> BTreeSet<&str> {
        experts().filter(|placed| placed.tensor.scheme.is_some() == quantized).map(|placed| &*placed.blob).collect()
    };
    blobs(true).intersection(&blobs(false)).map(|blob| (*blob).to_owned()).collect()
}

/// Keeps the values of all projections of a layer's experts where those of one are kept: a runtime would take the
/// codes of the others for values.
fn keep_together(placed: &mut [Placed], family: &Family, request: &Request) -> Result<()> {
    let blobs = in_part(family, placed);
    if let Some(blob) = blobs.first().filter(|_| matches!(request.policy, Policy::Recipe(_))) {
        let message =
            format!("The recipe quantizes some projections of the experts in {} and not others", quoted(blob));
        return Err(
            Error::input(message).hint("give all projections of the experts a scheme that divides their rows, or none")
        );
    }
    let in_part = |placed: &&mut Placed| blobs.contains(&placed.blob) && placed.tensor.scheme.is_some();
    for Placed { tensor, .. } in placed.iter_mut().filter(in_part) {
        tensor.decode_codes();
        (tensor.scheme, tensor.why) = (None, "another projection of these experts keeps its values".into());
    }
    Ok(())
}

/// Whether the codes of a tensor can stay as they are. A global scale is one value for one matrix: it has no place
/// where two are fused, and not every runtime looks at those of experts.
fn keeps_codes(family: &Family, tensor: &PlannedTensor) -> bool {
    let global = tensor.packed.as_ref().is_some_and(|packed| packed.global.is_some());
    !global || !is_expert(family, tensor) || family.expert_globals && tensor.transform != Transform::Fuse
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
