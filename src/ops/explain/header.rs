//! Layers that differ in front of their data: in the header, in its padding, or because it cannot be read.

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt;

use serde_json::json;

use super::bytes::texts;
use super::layer::Layer;
use super::{cause, document};
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::ops::verify::{Finding, Outcome};
use crate::source::safetensors::Header;

/// Where one header cannot be read, the other's tensors say nothing: neither layer has any.
pub(super) fn set_aside_unreadable<'a>(ours: &mut [Layer<'a>], theirs: &mut [Layer<'a>]) {
    let unreadable = |layers: &[Layer<'_>]| {
        let unreadable = layers.iter().filter(|layer| layer.header.is_err());
        unreadable.map(|layer| layer.name.clone()).collect::<BTreeSet<_>>()
    };
    let names: BTreeSet<String> = unreadable(ours).union(&unreadable(theirs)).cloned().collect();
    for layer in ours.iter_mut().chain(theirs).filter(|layer| names.contains(&layer.name)) {
        layer.tensors.clear();
    }
}

/// The difference of two layers of one name whose tensors are the same, as far as they can be read.
pub(super) fn differs(ours: &Layer<'_>, theirs: &Layer<'_>) -> Result<Finding> {
    let name = quoted(&ours.name);
    let (here, there) = (Text::of(ours, theirs), Text::of(theirs, ours));
    let is_padding = here.json == there.json;
    let (part, offset) = if is_padding { ("padding", here.end()) } else { ("header", 0) };
    let compared = texts(part, offset as u64, &ours.head[offset..], &theirs.head[offset.min(theirs.head.len())..]);
    let mut finding = Finding {
        part: Some(part),
        bytes: Some(compared.bytes),
        ..Finding::new(Outcome::NotReproduced, String::new()).in_layer(ours.descriptor)
    };
    let at = compared.offset;
    let padding = (here.padding.len(), there.padding.len());
    (finding.message, finding.cause) = match (&ours.header, &theirs.header) {
        _ if is_padding && padding.0 != padding.1 => (
            format!("Only the padding of the header of {name} differs: {} and {} bytes", padding.0, padding.1),
            cause::of_length(padding.0 as u64, padding.1 as u64)
                .or_else(|| Some("another writer fills the header up to another length".to_owned())),
        ),
        _ if is_padding => (
            format!("Only the padding of the header of {name} differs, from byte {at} on"),
            Some("a byte of the padding is no space: another writer, or an alteration".to_owned()),
        ),
        (Ok(a), Ok(b)) => {
            finding.members = document::members(&json!(a.metadata), &json!(b.metadata));
            let message = format!("The header of {name} differs, its tensors do not; from byte {at} on");
            (message, Some(of_headers(a, b).to_owned()))
        }
        (Err(wrong), _) | (_, Err(wrong)) => {
            let and = if data_agrees(ours, theirs)? { "its data does not" } else { "its data, too" };
            let message = format!("The header of {name} differs, {and}; from byte {at} on");
            (message, Some(format!("the header cannot be read, it was altered: {wrong}")))
        }
    };
    finding.arrays = vec![compared];
    Ok(finding)
}

/// Why two headers differ that list the same tensors.
fn of_headers(ours: &Header, theirs: &Header) -> &'static str {
    if ours.metadata != theirs.metadata {
        "other metadata: the same tensors, written by another program or with other parameters"
    } else if ours.tensors.iter().map(|entry| &entry.name).ne(theirs.tensors.iter().map(|entry| &entry.name)) {
        "the same tensors in another order of their data"
    } else {
        "the same members in another order or another spelling: another program wrote it"
    }
}

/// A header's text and what fills it up.
struct Text<'a> {
    json: &'a [u8],
    padding: &'a [u8],
}

impl<'a> Text<'a> {
    /// The text ends with its last brace; where it cannot be read, where that of its counterpart ends.
    fn of(layer: &'a Layer<'_>, counterpart: &Layer<'_>) -> Self {
        let end = |head: &[u8]| head.iter().rposition(|byte| *byte == b'}').map_or(head.len(), |last| last + 1);
        let known = if layer.header.is_err() && counterpart.header.is_ok() { &*counterpart.head } else { &*layer.head };
        let end = end(known).min(layer.head.len());
        let (json, padding) = layer.head.split_at(end);
        // The length in front counts the padding.
        Self { json: json.get(8..).unwrap_or(json), padding }
    }

    /// Where the padding begins in the layer.
    fn end(&self) -> usize {
        self.json.len() + 8
    }
}

/// Whether all bytes behind the header that can be read are the same.
fn data_agrees(ours: &Layer<'_>, theirs: &Layer<'_>) -> Result<bool> {
    const CHUNK: u64 = 1 << 20;
    let Some(start) = [ours, theirs].into_iter().find_map(|layer| Some(layer.header.as_ref().ok()?.data_start)) else {
        return Ok(false);
    };
    let size = ours.descriptor.size;
    if size != theirs.descriptor.size {
        return Ok(false);
    }
    let files = [ours.open()?, theirs.open()?];
    let mut done = start;
    while done < size {
        let mut chunks = [(); 2].map(|()| vec![0; CHUNK.min(size - done) as usize]);
        for (file, chunk) in files.iter().zip(&mut chunks) {
            file.read_exact_at(chunk, done).map_err(|cause| {
                Error::new(ErrorKind::Store, format!("Could not read {} to compare it", quoted(&ours.name)))
                    .caused_by(cause)
            })?;
        }
        if chunks[0] != chunks[1] {
            return Ok(false);
        }
        done += CHUNK;
    }
    Ok(true)
}
