//! JSON as model repositories have it. Python writes a byte order mark now and then, and the words
//! `NaN` and `Infinity`, which JSON does not have; both are common on the hub and harmless. The rest
//! is as strict as everywhere. Only the parsed value differs: the bytes that are kept are the file's.

use std::borrow::Cow;

use serde_json::Value;

use crate::json;

/// Parses `text`, reading the bare words `NaN`, `Infinity` and `-Infinity` in an object or array as the objects in
/// which `transformers` writes them since JSON is to be JSON: `{"__float__": "Infinity"}`.
///
/// # Errors
/// As [`json::parse`]; more than any configuration says.
pub fn parse(text: &[u8]) -> serde_json::Result<Value> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    json::parse_within(&without_bare_words(text), MAX_VALUES)
}

/// How many bytes the parsed values may take, and how many bare words are read.
const MAX_VALUES: usize = 24 << 20;
const MAX_WORDS: usize = 100_000;
const WORDS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// `text` with an object in place of each bare word.
fn without_bare_words(text: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    // A whole text of one word would become an object, which it is not.
    let (mut copied, mut at) = (0, text.iter().position(|byte| matches!(byte, b'{' | b'[')).unwrap_or(text.len()));
    let (mut in_string, mut words) = (text[..at].contains(&b'"'), 0);
    while at < text.len() && words < MAX_WORDS {
        match text[at] {
            b'"' => in_string = !in_string,
            b'\\' if in_string => at += 1,
            b'-' | b'I' | b'N' if !in_string => {
                if let Some(word) = WORDS.into_iter().find(|word| text[at..].starts_with(word.as_bytes())) {
                    out.extend_from_slice(&text[copied..at]);
                    out.extend_from_slice(format!("{{\"__float__\":\"{word}\"}}").as_bytes());
                    copied = at + word.len();
                    at = copied - 1;
                    words += 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.extend_from_slice(&text[copied..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_python_writes_is_read() {
        let table = [
            ("\u{feff}{\"a\":1}", r#"{"a":1}"#),
            (
                r#"{"a":[0.0,Infinity,-Infinity,-1]}"#,
                r#"{"a":[0.0,{"__float__":"Infinity"},{"__float__":"-Infinity"},-1]}"#,
            ),
            (r#"{"a":"NaN \" Infinity \\","b":NaN}"#, r#"{"a":"NaN \" Infinity \\","b":{"__float__":"NaN"}}"#),
        ];
        for (text, same) in table {
            assert_eq!(parse(text.as_bytes()).unwrap(), json::parse(same.as_bytes()).unwrap(), "{text}");
        }
    }

    #[test]
    fn the_rest_is_strict() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let table = [
            "",
            "NaN",
            " -Infinity",
            "{",
            "{\"a\":1,\"a\":1}",
            "{\"a\":nan}",
            "{NaN:1}",
            "1NaN",
            "{\"a\":1e309}",
            "\"a\\",
            "{} {}",
            &deep,
        ];
        for text in table {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse("\u{feff}\u{feff}{}".as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_json_already_is_read_the_same(text in r#"[{\[]?("(NaN|-Infinity|\\\\|\\"|é)*"|[:,]|-?[0-9]|null|NaN|-?Infinity){0,6}[}\]]?"#) {
            let ours = parse(text.as_bytes());
            if let Ok(same) = json::parse(text.as_bytes()) {
                prop_assert_eq!(ours.unwrap(), same);
            }
        }
    }
}
