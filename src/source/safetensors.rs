//! The header of a safetensors file, read from bytes that nobody vouches for. What passes is exact:
//! every name once, every size what its shape and dtype say, the data covered without hole or
//! overlap up to the last byte of the file. Nothing is allocated from a length before it is checked.
//!
//! The format: <https://github.com/huggingface/safetensors/blob/v0.8.0/README.md#format>. The
//! reference library lets pass some of what is refused here, a name twice among it.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Dtype, is_printable};
use crate::error::{Error, Result, quoted};
use crate::json;

/// The largest header read, in bytes; the limit of the reference library.
pub const MAX_HEADER: u64 = 100_000_000;
/// The largest number of tensors in one file: few enough to be listed in 64 MiB.
pub const MAX_TENSORS: usize = 250_000;
/// The longest tensor name, in bytes.
pub const MAX_NAME: usize = 4096;
/// The largest number of dimensions.
pub const MAX_RANK: usize = 8;
/// How many bytes the texts of `__metadata__` may have together.
pub const MAX_METADATA: usize = 8 << 20;

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
    checked(json::parse_into(text.as_bytes()), start, file_len)
}

/// Reads the header of a file of `file_len` bytes from `text`, which has the header and nothing else, up to `start`,
/// where the data starts. It takes no more memory than what the header says.
///
/// # Errors
/// As [`parse_header`].
pub fn read_header(text: impl Read, start: u64, file_len: u64) -> Result<Header> {
    checked(json::read_into(BufReader::with_capacity(1 << 16, Bounded::new(text))), start, file_len)
}

fn checked(raw: serde_json::Result<RawHeader>, start: u64, file_len: u64) -> Result<Header> {
    let raw = raw.map_err(|e| Error::input("The header is malformed").caused_by(e))?;
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

/// A text without long strings: a parser would have to hold one in memory before anyone could refuse it.
struct Bounded<R> {
    text: R,
    /// How many bytes of a string were read, when one is open.
    open: Option<usize>,
    escaped: bool,
}

impl<R> Bounded<R> {
    fn new(text: R) -> Self {
        Self { text, open: None, escaped: false }
    }
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.text.read(buffer)?;
        for byte in &buffer[..count] {
            self.open = match (self.open, byte) {
                (None, b'"') => Some(0),
                (Some(_), b'"') if !self.escaped => None,
                (Some(MAX_METADATA), _) => {
                    let message = format!("a string of more than {MAX_METADATA} bytes");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
                (open, _) => open.map(|length| length + 1),
            };
            self.escaped = self.open.is_some() && *byte == b'\\' && !self.escaped;
        }
        Ok(count)
    }
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
                // MLX writes `null` for none, and the reference library takes it for that.
                let strings =
                    entries.next_value::<Option<Metadata>>()?.map_or_else(BTreeMap::new, |Metadata(strings)| strings);
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

/// `__metadata__`: an object of strings in which no key is there twice.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor).map(Metadata)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = BTreeMap<String, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut strings = BTreeMap::new();
        let mut left = MAX_METADATA;
        while let Some((key, value)) = entries.next_entry::<String, String>()? {
            if strings.len() == MAX_TENSORS {
                return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} strings")));
            }
            if strings.contains_key(&key) {
                return Err(A::Error::custom(format_args!("{} is there twice", quoted(&key))));
            }
            left = left
                .checked_sub(key.len() + value.len())
                .ok_or_else(|| A::Error::custom(format_args!("`__metadata__` has more than {MAX_METADATA} bytes")))?;
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
                _ => return Err(A::Error::custom(format_args!("the field {} is unknown", quoted(&field)))),
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use safetensors::tensor::{TensorView, serialize};

    use super::*;

    /// A file with this header text and `data` bytes behind it.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Header> {
        parse_header(bytes, bytes.len() as u64)
    }

    fn entry(dtype: &str, shape: &str, offsets: &str) -> String {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    }

    #[track_caller]
    fn refused(bytes: &[u8], words: &str) {
        let message = parse(bytes).expect_err(words).chain();
        assert!(message.contains(words), "`{words}` is not in: {message}");
    }

    #[test]
    fn a_header_is_read_in_data_order() {
        let text = format!(
            r#"  {{"z":{},"a":{},"none":{},"__metadata__":{{"format":"pt"}},"s":{}}} {}"#,
            entry("BF16", "[2,1]", "[0,4]"),
            entry("U8", "[3]", "[4,7]"),
            entry("F32", "[0,5]", "[4,4]"),
            entry("F64", "[]", "[7,15]"),
            " \t\r\n"
        );
        let header = parse(&file(&text, 15)).unwrap();
        let names: Vec<&str> = header.tensors.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["z", "none", "a", "s"]);
        assert_eq!(header.metadata["format"], "pt");
        assert_eq!(header.data_start, text.len() as u64 + 8);
        assert_eq!(header.tensors[3].shape, [0; 0]);
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        for length in [u64::MAX, 1 << 63, MAX_HEADER + 1] {
            refused(&[length.to_le_bytes().as_slice(), b"{}"].concat(), "more than the 100000000 allowed");
        }
        refused(&[99u64.to_le_bytes().as_slice(), b"{}"].concat(), "ends at byte 107, but the file has only 10");
        for length in 0..8 {
            refused(&vec![0; length], "too few for a header");
        }
        // The header is there according to the size of the file, but was not handed in.
        let error = parse_header(&file("{}", 0)[..9], 10).unwrap_err();
        assert_eq!(error.to_string(), "The header is cut off");
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let metadata = |value: &str| format!(r#"{{"__metadata__":{value}}}"#);
        let table = [
            ("", "EOF"),
            ("[]", "object of tensors"),
            ("null", "object of tensors"),
            ("\u{feff}{}", "expected value"),
            ("{}\0", "trailing characters"),
            ("{}{}", "trailing characters"),
            ("{", "EOF"),
            (&deep, "an object with `dtype`"),
            (&metadata(r#"{"a":1}"#), "expected a string"),
            (&metadata(r#"{"a":"1","\u0061":"1"}"#), "`a` is there twice"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#, "`__metadata__` is there twice"),
            (r#"{"a":["F32",[1],[0,4]]}"#, "an object with `dtype`"),
            (r#"{"a":{"dtype":"F32","shape":[1]}}"#, "missing field `data_offsets`"),
            (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":{}}}"#, "the field `x` is unknown"),
            (r#"{"a":{"dtype":"F32","dtype":"F32"}}"#, "`dtype` is there twice"),
            (r#"{"\ud800":{}}"#, "hex escape"),
        ];
        for (text, words) in table {
            refused(&file(text, 4), words);
        }
        refused(&[[2; 1].as_slice(), &[0; 7], b"\xff{"].concat(), "not UTF-8");
    }

    #[test]
    fn hostile_extents_are_refused() {
        let max = u64::MAX.to_string();
        let table = [
            // A product that overflows, also when a zero comes first or last.
            ("F32", format!("[{max},2]"), "[0,4]", "larger than any file"),
            ("F32", "[4611686018427387904]".to_owned(), "[0,0]", "larger than any file"),
            ("F32", format!("[0,{max}]"), "[0,0]", "larger than any file"),
            ("U8", format!("[{max},{max},0]"), "[0,0]", "larger than any file"),
            ("F32", "[2]".to_owned(), "[0,4]", "takes 8 bytes, but its offsets span 4"),
            ("F32", "[]".to_owned(), "[0,8]", "takes 4 bytes, but its offsets span 8"),
            ("U8", "[4]".to_owned(), "[8,4]", "begins at byte 8 and ends before it"),
            ("U8", format!("[{max}]"), "[0,18446744073709551615]", "but the file has only 4"),
            ("U8", "[4]".to_owned(), "[0,4.0]", "floating point `4.0`"),
            ("U8", "[4]".to_owned(), "[0,4e0]", "floating point `4.0`"),
            ("U8", "[4]".to_owned(), "[-0,4]", "floating point `-0.0`"),
            ("U8", "[4]".to_owned(), "[-4,0]", "integer `-4`"),
            ("U8", "[4]".to_owned(), "[0,4,4]", "trailing characters"),
            ("U8", "[4]".to_owned(), "[0]", "invalid length 1"),
            ("U8", "[4]".to_owned(), "[0,18446744073709551616]", "floating point"),
            ("U8", "4".to_owned(), "[0,4]", "list of dimensions"),
            ("U8", "[-4]".to_owned(), "[0,4]", "integer `-4`"),
            ("U8", "[1,1,1,1,1,1,1,1,4]".to_owned(), "[0,4]", "more than 8 dimensions"),
            ("F31", "[1]".to_owned(), "[0,4]", "`F31` is unknown"),
            ("f32", "[1]".to_owned(), "[0,4]", "`f32` is unknown"),
            ("F4", "[8]".to_owned(), "[0,4]", "less than a byte"),
        ];
        for (dtype, shape, offsets, words) in table {
            let bytes = file(&format!(r#"{{"it.weight":{}}}"#, entry(dtype, &shape, offsets)), 4);
            refused(&bytes, words);
            refused(&bytes, "ensor `it.weight`");
        }
        let pair = |a: &str, b: &str| {
            let text = format!(r#"{{"a":{},"b":{}}}"#, entry("U8", "[2]", a), entry("U8", "[2]", b));
            file(&text, 4)
        };
        parse(&pair("[2,4]", "[0,2]")).unwrap();
        refused(&pair("[0,2]", "[1,3]"), "`b` overlaps");
        refused(&pair("[0,2]", "[0,2]"), "`b` overlaps");
        refused(&pair("[1,3]", "[3,5]"), "1 bytes before tensor `a`");
        refused(&pair("[0,2]", "[3,5]"), "1 bytes before tensor `b`");
        refused(&file("{}", 4), "4 bytes follow");
    }

    #[test]
    fn names_are_data_that_can_be_shown() {
        let named = |name: &str| file(&format!(r#"{{"{name}":{}}}"#, entry("U8", "[4]", "[0,4]")), 4);
        for name in ["../../etc/x", "/abs", "..", "a b", "snowman☃", "\\\"", &"x".repeat(MAX_NAME)] {
            parse(&named(name)).unwrap();
        }
        for name in [r"a\u0000b", r"a\nb", r"\u001b[2J", "\u{202e}x", "\u{7f}", r"\u0085", "a\u{200b}"] {
            refused(&named(name), "has control characters");
            let message = parse(&named(name)).unwrap_err().chain();
            assert!(is_printable(&message), "{message:?}");
        }
        refused(&named(""), "empty name");
        let message = parse(&named(&"x".repeat(MAX_NAME + 1))).unwrap_err().chain();
        assert!(message.contains("longer than 4096") && message.len() < 500, "{message}");
    }

    #[test]
    fn a_name_spelled_in_two_ways_is_one_name() {
        let text = format!(r#"{{"a":{},"\u0061":{}}}"#, entry("U8", "[2]", "[0,2]"), entry("U8", "[2]", "[2,4]"));
        refused(&file(&text, 4), "`a` is in the header twice");
    }

    #[test]
    fn more_tensors_than_any_checkpoint_has_are_refused() {
        let none = entry("U8", "[0]", "[0,0]");
        let many: Vec<String> = (0..=MAX_TENSORS).map(|n| format!(r#""{n}":{none}"#)).collect();
        refused(&file(&format!("{{{}}}", many.join(",")), 0), "more than 250000 tensors");
    }

    fn tensors() -> impl Strategy<Value = HashMap<String, (safetensors::Dtype, Vec<usize>)>> {
        use safetensors::Dtype as D;
        let dtype = prop::sample::select(vec![D::BOOL, D::U8, D::F8_E4M3, D::F8_E8M0, D::BF16, D::F32, D::I64, D::C64]);
        prop::collection::hash_map("[a-z.0-9/é\"]{1,12}", (dtype, prop::collection::vec(0..4usize, 0..4)), 0..8)
    }

    proptest! {
        #[test]
        fn what_the_reference_library_writes_is_read(tensors in tensors(), note in prop::option::of(".{0,20}")) {
            let size = |(dtype, shape): &(safetensors::Dtype, Vec<usize>)| {
                dtype.bitsize() / 8 * shape.iter().product::<usize>()
            };
            let data: HashMap<&String, Vec<u8>> =
                tensors.iter().map(|(name, tensor)| (name, vec![name.len() as u8; size(tensor)])).collect();
            let views = tensors.iter().map(|(name, (dtype, shape))| {
                (name.clone(), TensorView::new(*dtype, shape.clone(), &data[name]).unwrap())
            });
            let metadata = note.map(|note| HashMap::from([("note".to_owned(), note)]));
            let bytes = serialize(views, metadata.clone()).unwrap();

            let header = parse(&bytes).unwrap();
            prop_assert_eq!(header.tensors.len(), tensors.len());
            prop_assert_eq!(header.metadata.get("note"), metadata.as_ref().and_then(|map| map.get("note")));
            for tensor in &header.tensors {
                let (dtype, shape) = &tensors[&tensor.name];
                prop_assert_eq!(tensor.dtype.to_string(), dtype.to_string());
                prop_assert!(tensor.shape.iter().eq(shape.iter().map(|dimension| *dimension as u64).collect::<Vec<_>>().iter()));
                let range = (header.data_start + tensor.begin) as usize..(header.data_start + tensor.end) as usize;
                prop_assert_eq!(&bytes[range], data[&tensor.name].as_slice());
            }
        }

        #[test]
        fn what_is_accepted_the_reference_library_accepts(
            bytes in prop::collection::vec(any::<u8>(), 0..40), edits in prop::collection::vec((0..200usize, any::<u8>()), 0..3),
        ) {
            let _ = parse(&bytes);
            let text = format!(r#"{{"a":{},"b":{}}}"#, entry("U8", "[2]", "[0,2]"), entry("BF16", "[0,1]", "[2,2]"));
            let mut bytes = file(&text, 2);
            for (at, byte) in edits {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            if let Ok(header) = parse(&bytes) {
                let theirs = safetensors::SafeTensors::deserialize(&bytes);
                prop_assert!(theirs.is_ok_and(|theirs| theirs.len() == header.tensors.len()));
            }
        }

        #[test]
        fn json_of_any_shape_does_not_panic(text in r#"\{("[a-z_]{0,4}"|[\[\]{}:,0-9.eE-]|"dtype":"U8"|"shape":|"data_offsets":|null){0,30}\}"#) {
            let _ = parse(&file(&text, 4));
        }
    }
}
