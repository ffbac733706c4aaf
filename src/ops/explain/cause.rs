//! The likely cause of a difference: what the locks say about the sources first, then what the bytes look like.

use super::Between;
use super::bytes::{Pattern, Verdict};
use crate::error::quoted;
use crate::manifest::LockedTensor;

/// What both locks say about a tensor.
pub(super) type Locked<'a> = (Option<&'a LockedTensor>, Option<&'a LockedTensor>);

/// Why a tensor is stored in another form.
pub(super) fn of_form((ours, theirs): Locked<'_>, between: Between) -> String {
    let scheme = |tensor: Option<&LockedTensor>| {
        tensor.and_then(|tensor| tensor.scheme.clone()).unwrap_or_else(|| "none".to_owned())
    };
    if scheme(ours) != scheme(theirs) {
        let there = between.there();
        format!("another scheme: {} here, {} {there}", quoted(&scheme(ours)), quoted(&scheme(theirs)))
    } else {
        "the source has another tensor under this name".to_owned()
    }
}

/// Why the bytes of a tensor differ in these arrays. `are_files` when both models are files as they were found.
pub(super) fn of_bytes(locked: Locked<'_>, arrays: &[Verdict], are_files: bool, between: Between) -> Option<String> {
    of_source(locked, between).or_else(|| of_pattern(arrays)).or_else(|| match locked {
        (Some(ours), Some(_)) if ours.sources.iter().all(|source| source.blake3.is_some()) => Some(match between {
            Between::Rebuild => {
                "the source is the one the lock records: the stored layer was made by other arithmetic, or was altered"
                    .to_owned()
            }
            Between::Models => {
                "both locks record the same source: one of the layers was made by other arithmetic, or was altered"
                    .to_owned()
            }
        }),
        (Some(_), Some(_)) => {
            Some("the source is another one, or the stored layer was altered: its values are copied".to_owned())
        }
        (None, None) if are_files => Some("the source has another version of this file".to_owned()),
        (None, None) => None,
        _ => Some("the lock does not name it".to_owned()),
    })
}

/// What the locks tell about two sources.
pub(super) fn of_source(locked: Locked<'_>, between: Between) -> Option<String> {
    let (Some(ours), Some(theirs)) = locked else { return None };
    if ours.scheme != theirs.scheme {
        return Some(of_form(locked, between));
    }
    if ours.sources.iter().map(|source| &source.name).ne(theirs.sources.iter().map(|source| &source.name)) {
        return Some("the source keeps this tensor in another layout".to_owned());
    }
    let (source, _) = ours.sources.iter().zip(&theirs.sources).find(|(a, b)| a.blake3 != b.blake3)?;
    let recorded = match between {
        Between::Rebuild => "those the lock records",
        Between::Models => "the same in both locks",
    };
    Some(format!("the source is another one: the bytes of {} are not {recorded}", quoted(&source.name)))
}

/// What the bytes look like. A scale that is off by the last bit in one group of twenty is what a fused
/// multiplication and addition, or another order of a sum, leaves behind.
fn of_pattern(arrays: &[Verdict]) -> Option<String> {
    const FEW: u64 = 20;
    let are_scales = |part: &str| ["scales", "biases"].contains(&part);
    let is_last_bit = |(compared, _): &Verdict| {
        let few = compared.groups.as_ref().is_some_and(|groups| groups.differing * FEW <= groups.of.max(FEW));
        are_scales(compared.part) && compared.max_ulp == Some(1) && few
    };
    let patterns = || arrays.iter().filter_map(|(_, pattern)| *pattern);
    let all =
        |wanted: Pattern| !arrays.is_empty() && patterns().filter(|pattern| *pattern == wanted).count() == arrays.len();
    let packed_alone = |(compared, _): &Verdict| compared.part == "packed" && compared.bytes * 10 >= compared.of * 9;
    if all(Pattern::BytesReversed) {
        Some("the bytes of every element are reversed: the layer was written in the other byte order".to_owned())
    } else if all(Pattern::NibblesExchanged) {
        Some("the halves of every byte are exchanged: the codes were packed in the other order".to_owned())
    } else if !arrays.is_empty() && arrays.iter().all(packed_alone) {
        Some("nearly all codes differ and no scale: the codes were packed in another order".to_owned())
    } else if !arrays.is_empty() && arrays.iter().all(is_last_bit) {
        Some(
            "the last bit of few scales: a multiplication and addition that were fused, a sum in another order, or an \
             alteration"
                .to_owned(),
        )
    } else {
        None
    }
}

/// Why two layers with the same tensors have another length or another header.
pub(super) fn of_length(ours: u64, theirs: u64) -> Option<String> {
    let difference = ours.abs_diff(theirs);
    (1..8)
        .contains(&difference)
        .then(|| format!("{difference} bytes of alignment: another writer pads to another multiple"))
}
