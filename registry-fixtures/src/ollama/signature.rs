//! Whether a question to the token service is signed as Ollama's client signs it. Nothing of this is shared
//! with the client under test: another implementation of ed25519, the address taken apart and put together
//! again here.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, VerifyingKey};

use crate::reply::Refusal;

/// The SHA-256 of no bytes, in hexadecimal digits.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// How far a clock may be off, in seconds.
const SKEW: u64 = 300;

/// What a question that is signed well says.
pub(super) struct Question {
    /// The public key, as `ssh-ed25519 BASE64`.
    pub(super) key: String,
    pub(super) nonce: String,
    pub(super) scopes: Vec<String>,
}

impl Question {
    /// Checks the question at `path?query` of `host` with this `Authorization`, asked at `now` for `service`.
    pub(super) fn check(
        host: &str,
        path: &str,
        query: &str,
        authorization: &str,
        service: &str,
        now: u64,
    ) -> Result<Self, Refusal> {
        let wrong = |what: &str| Refusal::new(400, "UNKNOWN", what);
        let (blob, signature) = authorization.split_once(':').ok_or_else(|| wrong("no KEY:SIGNATURE"))?;
        let key = public_key(blob).ok_or_else(|| wrong("not the public key of ed25519"))?;
        let signature: [u8; 64] = STANDARD
            .decode(signature)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| wrong("not a signature of ed25519"))?;
        let message = format!("GET,http://{host}{path}?{query},{}", STANDARD.encode(EMPTY));
        key.verify_strict(message.as_bytes(), &Signature::from_bytes(&signature))
            .map_err(|_| Refusal::new(401, "UNAUTHORIZED", "the signature is not that of this question"))?;

        let pairs: Vec<(String, String)> = query
            .split('&')
            .map(|pair| pair.split_once('=').and_then(|(name, value)| Some((decoded(name)?, decoded(value)?))))
            .collect::<Option<_>>()
            .ok_or_else(|| wrong("not a query"))?;
        if !pairs.is_sorted_by(|left, right| left.0 <= right.0) {
            return Err(wrong("the query is not sorted by name"));
        }
        let again: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        if again.join("&") != query {
            return Err(wrong("the query is not escaped as Go escapes it"));
        }
        let values = |name: &str| -> Vec<&str> {
            pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
        };
        if values("service") != [service] {
            return Err(wrong("the service is not the one of the challenge"));
        }
        let [ts] = values("ts")[..] else { return Err(wrong("not one ts")) };
        if ts.parse::<u64>().map_err(|_| wrong("ts is not a number"))?.abs_diff(now) > SKEW {
            return Err(Refusal::new(401, "UNAUTHORIZED", "the question is from another time"));
        }
        let [nonce] = values("nonce")[..] else { return Err(wrong("not one nonce")) };
        if URL_SAFE_NO_PAD.decode(nonce).map_or(0, |bytes| bytes.len()) != 16 {
            return Err(wrong("the nonce has not 16 bytes"));
        }
        let scopes = values("scope").into_iter().map(str::to_owned).collect();
        Ok(Self { key: format!("ssh-ed25519 {blob}"), nonce: nonce.to_owned(), scopes })
    }
}

/// The key in a blob of RFC 8709, section 4.
fn public_key(blob: &str) -> Option<VerifyingKey> {
    let blob = STANDARD.decode(blob).ok()?;
    let key = blob.strip_prefix(b"\0\0\0\x0bssh-ed25519\0\0\0\x20")?;
    VerifyingKey::from_bytes(key.try_into().ok()?).ok()
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        bytes.push(match first {
            b'+' => b' ',
            b'%' => {
                let (digits, tail) = rest.split_at_checked(2)?;
                rest = tail;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

/// The escaping of Go's `net/url` in a query: unreserved characters of RFC 3986 stay, a space is `+`.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte == b' ' {
            out.push('+');
        } else if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
