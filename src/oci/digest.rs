//! Digests: the name of a blob.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{Error, ErrorKind, Result, quoted};

/// A digest, spelled by its algorithm, a colon and lower-case hex digits: `sha256:` and 64 of them, or
/// `sha512:` and 128.
///
/// OCI image-spec v1.1.1, "Digests":
/// <https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md#digests>. kiln gives SHA-256;
/// the other registered algorithm is for what others made. No third one is taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(Value);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Value {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

/// How a digest is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    #[default]
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    /// Its registered name, which is also that of a directory of `blobs/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The digest of `bytes`.
    pub fn digest(self, bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Algorithm::Sha256.digest(bytes)
    }

    /// Whether `text` begins as a digest of an algorithm that is known, whatever follows.
    pub fn is_of_known_algorithm(text: &str) -> bool {
        text.split_once(':').is_some_and(|(name, _)| Algorithm::ALL.iter().any(|known| known.as_str() == name))
    }

    /// How it is computed.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Value::Sha256(_) => Algorithm::Sha256,
            Value::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The hex digits without the algorithm: a file name in `blobs/sha256/` or `blobs/sha512/`.
    pub fn hex(&self) -> String {
        let bytes: &[u8] = match &self.0 {
            Value::Sha256(bytes) => bytes,
            Value::Sha512(bytes) => bytes,
        };
        hex(bytes)
    }

    /// Its first sixteen bytes as a number, which tell apart all digests that anybody has met.
    pub fn prefix(&self) -> u128 {
        let bytes = match &self.0 {
            Value::Sha256(bytes) => bytes.as_slice(),
            Value::Sha512(bytes) => bytes,
        };
        bytes.iter().take(16).fold(0, |prefix, byte| prefix << 8 | u128::from(*byte))
    }

    /// Reads lower-case hex digits, as a file name in `blobs/` has them; how many there are tells the
    /// algorithm.
    pub fn from_hex(hex: &str) -> Option<Self> {
        match hex.len() {
            64 => unhex(hex).map(Value::Sha256).map(Self),
            128 => unhex(hex).map(Value::Sha512).map(Self),
            _ => None,
        }
    }
}

/// `bytes` as lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].map(|nibble| char::from(DIGITS[usize::from(nibble)])));
    }
    text
}

fn unhex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let (mut bytes, mut all) = ([0; N], 0);
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let (high, low) = (NIBBLES[usize::from(pair[0])], NIBBLES[usize::from(pair[1])]);
        *byte = high << 4 | low;
        all |= high | low;
    }
    (all < 16).then_some(bytes)
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What each byte is as a hex digit; 255 for what is none. A store has half a million of names to read.
const NIBBLES: [u8; 256] = {
    let (mut nibbles, mut value) = ([255; 256], 0);
    while value < 16 {
        nibbles[DIGITS[value as usize] as usize] = value;
        value += 1;
    }
    nibbles
};

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text
            .split_once(':')
            .and_then(|(algorithm, hex)| Self::from_hex(hex).filter(|digest| digest.algorithm().as_str() == algorithm));
        parsed.ok_or_else(|| {
            Error::new(
                ErrorKind::Usage,
                format!("A digest is `sha256:` and 64 lower-case hex digits, not {}", quoted(text)),
            )
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().as_str(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A computation of a digest under way; SHA-256 by default.
#[derive(Clone, Debug)]
pub struct Hasher(State);

#[derive(Clone, Debug)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new(Algorithm::default())
    }
}

impl Hasher {
    /// A computation that took in nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::default()),
            Algorithm::Sha512 => State::Sha512(Sha512::default()),
        })
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes taken in.
    pub fn finish(self) -> Digest {
        Digest(match self.0 {
            State::Sha256(state) => Value::Sha256(state.finalize().into()),
            State::Sha512(state) => Value::Sha512(state.finalize().into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn prints_what_it_parsed() {
        assert_eq!(EMPTY.parse::<Digest>().unwrap().to_string(), EMPTY);
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(Hasher::default().finish().to_string(), EMPTY);
        let long = Algorithm::Sha512.digest(b"");
        assert!(long.to_string().starts_with("sha512:cf83e1357eefb8bdf1542850d66d8007"), "{long}");
        assert_eq!(long.to_string().parse::<Digest>().unwrap(), long);
        assert_eq!(Digest::from_hex(&long.hex()), Some(long));
    }

    #[test]
    fn refuses_every_other_spelling() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        let traversal = format!("sha256:../{}", &EMPTY[10..]);
        for text in [
            "",
            "sha256:",
            &EMPTY[..70],
            &upper,
            &traversal,
            &EMPTY.replace("sha256", "sha512"),
            &EMPTY.replace("sha256", "md5"),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
