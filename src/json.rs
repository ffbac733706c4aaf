//! Strict JSON in, canonical JSON out. Every JSON text that kiln trusts goes through [`parse`], and
//! every one that ends up under a digest through [`to_canonical`].

use std::cell::Cell;
use std::fmt;
use std::io;

use serde::Serialize;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::ser::Formatter;
use serde_json::{Map, Number, Value};

/// Parses `text`, refusing duplicate keys, which most parsers silently resolve in different ways.
///
/// # Errors
/// The parser's own error: not JSON, trailing text, nested deeper than 128, a duplicate key.
pub fn parse(text: &[u8]) -> serde_json::Result<Value> {
    parse_within(text, usize::MAX)
}

/// Parses `text` as [`parse`] does, into a value that takes about `budget` bytes of memory at most: a tree of values
/// takes up to thirty times its text.
///
/// # Errors
/// As [`parse`], or a value that is larger.
pub fn parse_within(text: &[u8], budget: usize) -> serde_json::Result<Value> {
    let left = Cell::new(budget);
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Strict(&left).deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Parses `text` as [`parse`] does, then reads a `T` out of it.
///
/// # Errors
/// As [`parse`], or a value that is not a `T`.
pub fn parse_as<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_value(parse(text)?)
}

/// Reads a `T` straight from `text`, for a `T` whose `Deserialize` refuses duplicate keys by itself:
/// large foreign texts, of which a tree of values would take many times the memory.
///
/// # Errors
/// The parser's own error, or that of `T`.
pub fn parse_into<T: DeserializeOwned>(text: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(text)
}

/// Reads a `T` as [`parse_into`] does, from a text that need not be in memory.
///
/// # Errors
/// As [`parse_into`], and those of `text`.
pub fn read_into<T: DeserializeOwned>(text: impl io::Read) -> serde_json::Result<T> {
    serde_json::from_reader(text)
}

/// Writes `value` as compact JSON with strings escaped as Go's encoder does: `<`, `>`, `&`, U+2028
/// and U+2029 become `\u` escapes. Maps must be ordered by their type (`BTreeMap`, [`Value`]).
///
/// # Panics
/// Never for kiln's own types: they have string keys and no failing `Serialize`.
pub fn to_canonical<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, GoEscapes);
    value.serialize(&mut serializer).expect("kiln's own types serialize");
    out
}

struct GoEscapes;

impl Formatter for GoEscapes {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let escaped = rest[at..].chars().next().unwrap_or_default();
            write!(writer, "{}\\u{:04x}", &rest[..at], u32::from(escaped))?;
            rest = &rest[at + escaped.len_utf8()..];
        }
        writer.write_all(rest.as_bytes())
    }
}

/// Gives a [`Value`] whose objects have no key twice, and takes what it needs from the bytes that are left.
#[derive(Clone, Copy)]
struct Strict<'a>(&'a Cell<usize>);

impl Strict<'_> {
    /// About what a value takes in an array, in bytes: twice its size, because an array grows by doubling.
    const VALUE: usize = 2 * size_of::<Value>();
    /// What a node of an object takes, which has room for eleven members and at least five of them.
    const NODE: usize = 11 * (size_of::<String>() + size_of::<Value>()) + 16;
    /// What the allocator takes for a text besides its bytes.
    const TEXT: usize = 16;

    fn take<E: de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes);
        self.0.set(left.ok_or_else(|| E::custom("more values than any such document has"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.take(Self::VALUE)?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON without duplicate keys")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        self.take(Self::TEXT + value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let node = if object.len().is_multiple_of(5) { Self::NODE } else { 0 };
            self.take(node + Self::TEXT + key.len())?;
            match object.entry(key) {
                Entry::Vacant(vacant) => vacant.insert(entries.next_value_seed(self)?),
                Entry::Occupied(twice) => {
                    return Err(de::Error::custom(format_args!("duplicate key `{}`", twice.key().escape_debug())));
                }
            };
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_twice_is_refused_at_any_depth() {
        let error = parse(br#"{"a":{"b":1,"b":1}}"#).unwrap_err();
        assert!(error.to_string().starts_with("duplicate key `b`"), "{error}");
    }

    #[test]
    fn a_text_becomes_no_more_than_it_may() {
        let budget = 1 << 16;
        for text in ["0,", "[],", "{},", "\"\",", "[[0]],", r#"{"a":1},"#] {
            let array = |items: usize| format!("[{}0]", text.repeat(items));
            assert!(parse_within(array(10).as_bytes(), budget).is_ok(), "{text}");
            let error = parse_within(array(budget).as_bytes(), budget).unwrap_err();
            assert!(error.to_string().starts_with("more values than any such document has"), "{error}");
        }
        assert!(parse_within(format!("\"{}\"", "x".repeat(budget)).as_bytes(), budget).is_err());
        assert!(parse_within(b"[] 1", budget).is_err());
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        let text = to_canonical("a<b>&\u{2028}\u{2029}\u{8}\u{1}é\"");
        assert_eq!(String::from_utf8(text).unwrap(), r#""a\u003cb\u003e\u0026\u2028\u2029\b\u0001é\"""#);
    }

    #[test]
    fn keys_come_out_in_byte_order() {
        let value = parse(br#"{"b":1,"_":2,"B":3}"#).unwrap();
        assert_eq!(to_canonical(&value), br#"{"B":3,"_":2,"b":1}"#);
    }
}
