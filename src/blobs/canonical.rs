//! The canonical safetensors form (`docs/formats.md`, "Canonical bytes"): one header for one content.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::json;
use crate::plan::{Part, PlannedBlob};

/// One array of a canonical file, with its place in the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its element type as the header spells it.
    pub dtype: &'static str,
    /// Its stored shape.
    pub shape: Vec<u64>,
    /// Where its bytes start and end in the data.
    pub data_offsets: [u64; 2],
}

/// Where everything lies in a planned blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Everything before the data: the length, the JSON, the padding.
    pub header: Vec<u8>,
    /// The tensors of the blob by index, in the order in which they are written: that of their first parts.
    /// Each has its parts in the order of their names, with their place among all.
    pub tensors: Vec<(usize, Vec<(usize, Part)>)>,
    /// The file's size in bytes.
    pub size: u64,
}

impl Layout {
    /// Lays out a planned blob: the parts of all its tensors by name.
    pub fn of(blob: &PlannedBlob) -> Self {
        let parts = blob.parts();
        let mut end = 0;
        let entries: Vec<Entry> = parts
            .iter()
            .map(|(_, part)| {
                let begin = end;
                end += part.bytes();
                let (name, dtype, shape) = (part.name.clone(), part.dtype.name(), part.shape.clone());
                Entry { name, dtype, shape, data_offsets: [begin, end] }
            })
            .collect();
        let header = encode_header(&blob.metadata(), &entries);
        let size = header.len() as u64 + end;
        let mut tensors: Vec<(usize, Vec<(usize, Part)>)> = Vec::new();
        for (place, (tensor, part)) in parts.into_iter().enumerate() {
            match tensors.iter_mut().find(|(known, _)| *known == tensor) {
                Some((_, parts)) => parts.push((place, part)),
                None => tensors.push((tensor, vec![(place, part)])),
            }
        }
        Self { header, tensors, size }
    }
}

/// Writes a canonical header: `u64` little-endian length, compact JSON with keys in byte order, spaces up
/// to a multiple of 8. `entries` may come in any order; `metadata` is left out when empty.
pub fn encode_header(metadata: &BTreeMap<String, String>, entries: &[Entry]) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Value<'a> {
        Metadata(&'a BTreeMap<String, String>),
        Tensor { data_offsets: [u64; 2], dtype: &'static str, shape: &'a [u64] },
    }
    let tensors = entries.iter().map(|entry| {
        let Entry { name, dtype, shape, data_offsets } = entry;
        (name.as_str(), Value::Tensor { data_offsets: *data_offsets, dtype, shape })
    });
    let metadata = (!metadata.is_empty()).then_some(("__metadata__", Value::Metadata(metadata)));
    let mut json = json::to_canonical(&tensors.chain(metadata).collect::<BTreeMap<_, _>>());
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_a_quantized_tensor_as_the_format_says() {
        let entry = |name: &str, dtype, shape: &[u64], data_offsets| Entry {
            name: name.into(),
            dtype,
            shape: shape.into(),
            data_offsets,
        };
        let metadata =
            BTreeMap::from([("quant_type".to_owned(), "nvfp4".to_owned()), ("group_size".to_owned(), "16".to_owned())]);
        let header = encode_header(
            &metadata,
            &[entry("w.weight.scale", "U8", &[2, 4], [64, 72]), entry("w.weight", "U32", &[2, 8], [0, 64])],
        );
        let json = concat!(
            r#"{"__metadata__":{"group_size":"16","quant_type":"nvfp4"},"#,
            r#""w.weight":{"data_offsets":[0,64],"dtype":"U32","shape":[2,8]},"#,
            r#""w.weight.scale":{"data_offsets":[64,72],"dtype":"U8","shape":[2,4]}}"#
        );
        assert_eq!(header.len() % 8, 0);
        assert_eq!(u64::from_le_bytes(header[..8].try_into().unwrap()), header.len() as u64 - 8);
        assert_eq!(std::str::from_utf8(&header[8..]).unwrap().trim_end_matches(' '), json);
    }

    #[test]
    fn metadata_is_left_out_when_empty_and_sorts_by_bytes() {
        let entry = |name: &str| Entry { name: name.into(), dtype: "BF16", shape: vec![], data_offsets: [0, 2] };
        let keys = |metadata: &BTreeMap<String, String>| {
            let header = encode_header(metadata, &[entry("a"), entry("Z")]);
            String::from_utf8(header[8..].to_vec()).unwrap()
        };
        assert!(keys(&BTreeMap::new()).starts_with(r#"{"Z":{"#));
        let some = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        assert!(keys(&some).contains(r#"},"__metadata__":{"k":"v"},"a":{"#));
    }
}
