//! The header of a safetensors file, read from bytes that nobody vouches for. What passes is exact:
//! every name once, every size what its shape and dtype say, the data covered without hole or
//! overlap up to the last byte of the file. Nothing is allocated from a length before it is checked.
//!
//! The format: <https://github.com/huggingface/safetensors/blob/v0.8.0/README.md#format>. The
//! reference library lets pass some of what is refused here, a name twice among it.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Dtype, is_printable, quoted};
use crate::error::{Error, Result};
use crate::json;

/// The largest header read, in bytes; the limit of the reference library.
pub const MAX_HEADER: u64 = 100_000_000;
/// The largest number of tensors in a file, several times that of the largest checkpoints.
pub const MAX_TENSORS: usize = 1_000_000;
/// The longest tensor name, in bytes.
pub const MAX_NAME: usize = 4096;
/// The largest number of dimensions.
pub const MAX_RANK: usize = 8;

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The free text of `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in the order of their data; those without data by name.
    pub tensors: Vec<Entry>,
    /// Where the data starts in the file, in bytes: right behind the header.
    pub data_start: u64,
}

/// One tensor of a [`Header`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, free of control characters.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, slowest first.
    pub shape: Vec<u64>,
    /// Where its data begins, in bytes from [`Header::data_start`].
    pub begin: u64,
    /// Where its data ends.
    pub end: u64,
}

/// The offset of the data in a file of `file_len` bytes that starts with the length `prefix`.
///
/// # Errors
/// [`crate::ErrorKind::Input`]: a header that is larger than [`MAX_HEADER`] or than the file.
pub fn data_start(prefix: [u8; 8], file_len: u64) -> Result<u64> {
    let length = u64::from_le_bytes(prefix);
    if length > MAX_HEADER {
        return Err(Error::input(format!("The header claims {length} bytes, more than the {MAX_HEADER} allowed")));
    }
    let start = length + 8;
    if start > file_len {
        return Err(Error::input(format!("The header ends at byte {start}, but the file has only {file_len}")));
    }
    Ok(start)
}

/// Reads the header of a file of `file_len` bytes from `bytes`, the file's beginning up to the end
/// of the header at least.
///
/// # Errors
/// [`crate::ErrorKind::Input`], naming the tensor where there is one.
pub fn parse_header(bytes: &[u8], file_len: u64) -> Result<Header> {
    let Some(prefix) = bytes.first_chunk::<8>() else {
        return Err(Error::input(format!("The file has {file_len} bytes, too few for a header")));
    };
    let start = data_start(*prefix, file_len)?;
    let Some(text) = usize::try_from(start).ok().and_then(|start| bytes.get(8..start)) else {
        return Err(Error::input("The header is cut off"));
    };
    let text = std::str::from_utf8(text).map_err(|e| Error::input("The header is not UTF-8").caused_by(e))?;
    let raw: RawHeader =
        json::parse_into(text.as_bytes()).map_err(|e| Error::input("The header is malformed").caused_by(e))?;

    let mut tensors = raw.tensors;
    refuse_twins(&mut tensors)?;
    tensors.sort_unstable_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
    let data = file_len - start;
    let mut covered = 0;
    for tensor in &tensors {
        check_extent(tensor, covered)?;
        covered = tensor.end;
        if covered > data {
            return Err(Error::input(format!(
                "Tensor {} ends at byte {covered} of the data, but the file has only {data}",
                quoted(&tensor.name)
            )));
        }
    }
    if covered < data {
        return Err(Error::input(format!("{} bytes follow the last tensor", data - covered)));
    }
    Ok(Header { metadata: raw.metadata, tensors, data_start: start })
}

fn refuse_twins(tensors: &mut [Entry]) -> Result<()> {
    tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    match tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        Some(pair) => Err(Error::input(format!("Tensor {} is in the header twice", quoted(&pair[0].name)))),
        None => Ok(()),
    }
}

/// Checks that `tensor` starts where the one before it ended, and is as long as its shape says.
fn check_extent(tensor: &Entry, covered: u64) -> Result<()> {
    let Entry { name, dtype, shape, begin, end } = tensor;
    let name = quoted(name);
    let Some(size) = size_of(*dtype, shape) else {
        return Err(Error::input(format!("Tensor {name} of shape {shape:?} is larger than any file")));
    };
    if begin > end {
        return Err(Error::input(format!("Tensor {name} begins at byte {begin} and ends before it, at {end}")));
    }
    if end - begin != size {
        return Err(Error::input(format!(
            "Tensor {name} of shape {shape:?} and dtype {dtype} takes {size} bytes, but its offsets span {}",
            end - begin
        )));
    }
    if *begin < covered {
        return Err(Error::input(format!("Tensor {name} overlaps the data of another tensor")));
    }
    if *begin > covered {
        return Err(Error::input(format!("{} bytes before tensor {name} belong to no tensor", begin - covered)));
    }
    Ok(())
}

/// The size in bytes, unless it does not fit; a zero among the dimensions hides no overflow of the
/// others, so that the answer does not depend on their order.
fn size_of(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let dimensions = shape.iter().filter(|&&dimension| dimension != 0);
    let size = dimensions.copied().try_fold(dtype.bytes(), u64::checked_mul)?;
    Some(if shape.contains(&0) { 0 } else { size })
}

/// The header before its offsets are checked, straight from the text: as a tree of JSON values it
/// could take twenty times the memory of the text.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<Entry>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<RawHeader, A::Error> {
        let mut metadata = None;
        let mut tensors = Vec::new();
        while let Some(name) = entries.next_key::<String>()? {
            if name == "__metadata__" {
                let Strings(strings) = entries.next_value()?;
                if metadata.replace(strings).is_some() {
                    return Err(A::Error::custom("`__metadata__` is there twice"));
                }
                continue;
            }
            if tensors.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
            }
            check_name(&name).map_err(A::Error::custom)?;
            let RawEntry { dtype, shape, offsets: [begin, end] } =
                entries.next_value().map_err(|e| A::Error::custom(format_args!("tensor {}: {e}", quoted(&name))))?;
            tensors.push(Entry { name, dtype, shape, begin, end });
        }
        Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("a tensor has an empty name".to_owned())
    } else if name.len() > MAX_NAME {
        Err(format!("the tensor name {} is longer than {MAX_NAME} bytes", quoted(name)))
    } else if !is_printable(name) {
        Err(format!("the tensor name {} has control characters", quoted(name)))
    } else {
        Ok(())
    }
}

/// An object of strings in which no key is there twice.
pub(super) struct Strings(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StringsVisitor).map(Strings)
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut strings = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry::<String, String>()? {
            if strings.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} strings")));
            }
            if strings.contains_key(&key) {
                return Err(A::Error::custom(format_args!("{} is there twice", quoted(&key))));
            }
            strings.insert(key, value);
        }
        Ok(strings)
    }
}

struct RawEntry {
    dtype: Dtype,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for RawEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = RawEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<RawEntry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(field) = fields.next_key::<String>()? {
            let before = match field.as_str() {
                "dtype" => {
                    let name = fields.next_value::<String>()?;
                    dtype.replace(name.parse::<Dtype>().map_err(A::Error::custom)?).is_some()
                }
                "shape" => {
                    let Shape(dimensions) = fields.next_value()?;
                    shape.replace(dimensions).is_some()
                }
                "data_offsets" => offsets.replace(fields.next_value::<[u64; 2]>()?).is_some(),
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                    return Err(A::Error::custom(format_args!("the field {} is unknown", quoted(&field))));
                }
            };
            if before {
                return Err(A::Error::custom(format_args!("the field `{field}` is there twice")));
            }
        }
        Ok(RawEntry {
            dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
        })
    }
}

struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor).map(Shape)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<u64>, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = items.next_element::<u64>()? {
            if shape.len() == MAX_RANK {
                return Err(A::Error::custom(format_args!("more than {MAX_RANK} dimensions")));
            }
            shape.push(dimension);
        }
        Ok(shape)
    }
}
