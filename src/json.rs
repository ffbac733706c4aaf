//! Strict JSON in, canonical JSON out. Every JSON text that kiln trusts goes through [`parse`], and
//! every one that ends up under a digest through [`to_canonical`].

use std::fmt;
use std::io;

use serde::Serialize;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::ser::Formatter;
use serde_json::{Map, Number, Value};

/// Parses `text`, refusing duplicate keys, which most parsers silently resolve in different ways.
///
/// # Errors
/// The parser's own error: not JSON, trailing text, nested deeper than 128, a duplicate key.
pub fn parse(text: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice::<Strict>(text).map(|strict| strict.0)
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

/// A [`Value`] whose objects had no key twice.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Strict)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
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

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format_args!("duplicate key `{}`", key.escape_debug())));
            }
            let Strict(value) = entries.next_value()?;
            object.insert(key, value);
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
