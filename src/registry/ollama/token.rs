//! How a token is asked for with a key: the question's address is signed, and nothing else proves anything.
//! The form is the one of Ollama 0.33's client (`server/auth.go`, `auth/auth.go`).

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use reqwest::Url;
use ring::rand::{SecureRandom as _, SystemRandom};

use super::SigningKey;
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Digest;

/// A question that a token service answers once.
pub(in super::super) struct Question {
    /// Where it is asked.
    pub(in super::super) url: Url,
    /// What goes with it as `Authorization`.
    pub(in super::super) proof: String,
}

impl Question {
    /// The question for a token for `scopes`, signed with `key`, to the token service at `realm` of the
    /// registry at `base`.
    ///
    /// # Errors
    /// [`ErrorKind::Registry`] when the service is not at the registry's own origin: a signature is good for
    /// whoever gets it.
    pub(in super::super) fn new<'a>(
        key: &SigningKey,
        base: &Url,
        realm: &Url,
        service: Option<&str>,
        scopes: impl IntoIterator<Item = &'a String>,
    ) -> Result<Self> {
        if realm.origin() != base.origin() {
            let [realm, base] = [realm, base].map(|url| url.origin().ascii_serialization());
            let message = format!("The registry `{base}` wants a signature sent to another host, `{realm}`");
            return Err(Error::new(ErrorKind::Registry, message));
        }
        let mut nonce = [0; 16];
        SystemRandom::new()
            .fill(&mut nonce)
            .map_err(|_| Error::new(ErrorKind::Unexpected, "The system gives no random numbers"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut fields: Vec<(String, String)> = realm.query_pairs().into_owned().collect();
        let mut add = |name: &str, value: String| fields.push((name.to_owned(), value));
        service.into_iter().for_each(|service| add("service", service.to_owned()));
        scopes.into_iter().for_each(|scope| add("scope", scope.clone()));
        add("ts", now.to_string());
        add("nonce", BASE64_URL_SAFE_NO_PAD.encode(nonce));
        let mut url = realm.clone();
        url.set_query(Some(&encoded(fields)));
        let proof = key.proof(&message(&url));
        Ok(Self { url, proof })
    }
}

/// What is signed for a question at `url`: method, address, and the digest of a body, which is empty.
fn message(url: &Url) -> String {
    format!("GET,{url},{}", BASE64_STANDARD.encode(Digest::of(b"").hex()))
}

/// A query as Go's `url.Values.Encode` writes it: sorted by name, the order of one name's values kept.
fn encoded(mut fields: Vec<(String, String)>) -> String {
    fields.sort_by(|(left, _), (right, _)| left.cmp(right));
    let fields: Vec<String> =
        fields.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
    fields.join("&")
}

/// As Go's `url.QueryEscape`.
fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            b' ' => "+".to_owned(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_written_as_go_writes_it() {
        let fields = [("ts", "1"), ("scope", "repository:a/b:pull"), ("nonce", "a-_b"), ("scope", "x y~*é")];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(encoded(fields.into()), "nonce=a-_b&scope=repository%3Aa%2Fb%3Apull&scope=x+y~%2A%C3%A9&ts=1");
    }

    #[test]
    fn what_is_signed_is_what_is_sent() {
        let url = Url::parse("http://127.0.0.1:5000/v2/token?nonce=a&ts=1").unwrap();
        let empty = "ZTNiMGM0NDI5OGZjMWMxNDlhZmJmNGM4OTk2ZmI5MjQyN2FlNDFlNDY0OWI5MzRjYTQ5NTk5MWI3ODUyYjg1NQ==";
        assert_eq!(message(&url), format!("GET,http://127.0.0.1:5000/v2/token?nonce=a&ts=1,{empty}"));
    }
}
