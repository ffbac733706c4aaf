//! The shard index, `model.safetensors.index.json`: which tensor is in which file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Number;

use super::is_printable;
use crate::error::{Error, Result, quoted};
use crate::json;

/// The largest number of tensors in an index, and how many bytes their names may have together. The largest that are
/// published have 280,000 and 16 MB.
const MAX_TENSORS: usize = 300_000;
const MAX_NAMES: usize = 24 << 20;

/// What the index says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// The shard of each tensor: a file name without any folder.
    pub shards: BTreeMap<String, Arc<str>>,
    /// The size of all tensors, in bytes, as the writer counted it; advisory, and often wrong.
    pub total_size: Option<u64>,
}

impl Index {
    /// The names of the shards, each once, sorted.
    pub fn names(&self) -> BTreeSet<&str> {
        self.shards.values().map(|shard| &**shard).collect()
    }
}

/// Reads an index.
///
/// # Errors
/// [`crate::ErrorKind::Input`]: not JSON, a tensor twice, no tensors at all, a shard that is not a
/// plain file name ending in `.safetensors`.
pub fn parse_index(text: &[u8]) -> Result<Index> {
    read(text)
}

/// Reads an index as [`parse_index`] does, in no more memory than what it says.
pub(super) fn read(text: impl Read) -> Result<Index> {
    let malformed = |cause: serde_json::Error| Error::input("The shard index is malformed").caused_by(cause);
    let mut text = BufReader::with_capacity(1 << 16, text);
    let start = text.fill_buf().map_err(|cause| malformed(serde_json::Error::io(cause)))?;
    let mark: &[u8] = b"\xef\xbb\xbf";
    let mark = if start.starts_with(mark) { mark.len() } else { 0 };
    if start[mark..].trim_ascii_start().first() != Some(&b'{') {
        return Err(Error::input("The shard index is not a JSON object"));
    }
    text.consume(mark);
    let raw: RawIndex = json::read_into(text).map_err(malformed)?;
    let Shards(shards) = raw.weight_map;
    if shards.is_empty() {
        return Err(Error::input("The shard index lists no tensor"));
    }
    for (tensor, shard) in &shards {
        check_shard(shard).map_err(|problem| {
            Error::input(format!("The shard index puts {} into {}, {problem}", quoted(tensor), quoted(shard)))
                .hint("put all shards next to `config.json`, and list them by their file names")
        })?;
    }
    let total_size = raw.metadata.and_then(|metadata| metadata.total_size).and_then(|size| whole(&size));
    Ok(Index { shards, total_size })
}

fn whole(number: &Number) -> Option<u64> {
    let real = || number.as_f64().filter(|real| (0.0..2f64.powi(53)).contains(real)).map(|real| real as u64);
    number.as_u64().or_else(real)
}

fn check_shard(name: &str) -> Result<(), &'static str> {
    if name.contains(['/', '\\', ':']) {
        Err("which is not in the checkpoint's own directory")
    } else if !name.ends_with(".safetensors") || name.starts_with('.') {
        Err("which is not the name of a safetensors file")
    } else if name.len() > 255 || !is_printable(name) {
        Err("which is not a usable file name")
    } else {
        Ok(())
    }
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: Shards,
    metadata: Option<Metadata>,
}

/// The shard of each tensor, of which none is there twice. Many tensors have one shard, whose name is kept once.
struct Shards(BTreeMap<String, Arc<str>>);

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ShardsVisitor).map(Shards)
    }
}

struct ShardsVisitor;

impl<'de> Visitor<'de> for ShardsVisitor {
    type Value = BTreeMap<String, Arc<str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let (mut shards, mut known) = (BTreeMap::new(), BTreeSet::new());
        let mut left = MAX_NAMES;
        while let Some((tensor, shard)) = entries.next_entry::<String, String>()? {
            if shards.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            if shards.contains_key(&tensor) {
                return Err(A::Error::custom(format_args!("{} is there twice", quoted(&tensor))));
            }
            let shard = match known.get(shard.as_str()) {
                Some(known) => Arc::clone(known),
                None => {
                    let shard: Arc<str> = shard.into();
                    left = left.saturating_sub(shard.len());
                    known.insert(Arc::clone(&shard));
                    shard
                }
            };
            left = left
                .checked_sub(tensor.len())
                .ok_or_else(|| A::Error::custom(format_args!("more than {MAX_NAMES} bytes of names")))?;
            shards.insert(tensor, shard);
        }
        Ok(shards)
    }
}

#[derive(Deserialize)]
struct Metadata {
    // Some writers divide on the way, and write 1.0.
    total_size: Option<Number>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shards_and_size_are_read() {
        let index = parse_index(
            br#"{"metadata":{"total_size":8.0,"x":[1]},"weight_map":{"b":"m.safetensors","a":"m.safetensors"},"y":{}}"#,
        )
        .unwrap();
        assert_eq!(index.names().into_iter().collect::<Vec<_>>(), ["m.safetensors"]);
        assert_eq!((index.shards.len(), index.total_size), (2, Some(8)));
        assert_eq!(parse_index(br#"{"metadata":null,"weight_map":{"a":"m.safetensors"}}"#).unwrap().total_size, None);
    }

    #[test]
    fn a_shard_outside_the_directory_is_refused() {
        let table = [
            "../x.safetensors",
            "/etc/x.safetensors",
            "a/../../b.safetensors",
            "weights/m.safetensors",
            r"C:\\x.safetensors",
            "https://host/x.safetensors",
            "",
            "..",
            ".safetensors",
            "model.bin",
            r"a\u0000.safetensors",
            r"a\n.safetensors",
        ];
        for shard in table {
            let text = format!(r#"{{"weight_map":{{"t.weight":"{shard}"}}}}"#);
            let error = parse_index(text.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with("The shard index puts `t.weight` into `"), "{shard}: {error}");
        }
    }

    #[test]
    fn a_malformed_index_is_refused() {
        let table = [
            ("", "object"),
            ("null", "object"),
            (r#"[{"a":"m.safetensors"},null]"#, "object"),
            ("{}", "missing field `weight_map`"),
            (r#"{"weight_map":{}}"#, "lists no tensor"),
            (r#"{"weight_map":{"a":1}}"#, "expected a string"),
            (r#"{"weight_map":{"a":"m.safetensors","\u0061":"n.safetensors"}}"#, "`a` is there twice"),
            (r#"{"weight_map":{"a":"m.safetensors"},"weight_map":{}}"#, "duplicate field"),
            (r#"{"weight_map":{"a":"m.safetensors"},"metadata":{"total_size":"1"}}"#, "number"),
        ];
        for (text, words) in table {
            let message = parse_index(text.as_bytes()).unwrap_err().chain();
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn every_shard_that_is_accepted_is_a_plain_name(shard in r"[a./\\:\x00-\x1f]{0,6}(\.safetensors)?") {
            let text = serde_json::json!({"weight_map": {"t": &shard}}).to_string();
            if parse_index(text.as_bytes()).is_ok() {
                let path = std::path::Path::new(&shard);
                prop_assert_eq!(path.file_name().and_then(|name| name.to_str()), Some(shard.as_str()));
                prop_assert_eq!(path.components().count(), 1);
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(parse_index(&bytes).is_err());
        }
    }
}
