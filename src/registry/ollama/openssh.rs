//! The file of one ed25519 key, as OpenSSH's `PROTOCOL.key` (version 9.9) has it: read, and written to the
//! same bytes that `ssh-keygen` would write.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
/// How many characters of Base64 stand on one line.
const LINE: usize = 70;
const MAGIC: &[u8] = b"openssh-key-v1\0";
/// The name of the algorithm, of RFC 8709.
const ALGORITHM: &str = "ssh-ed25519";
/// What the secret part is padded to when it is not encrypted.
const BLOCK: usize = 8;

/// What a key file holds.
pub(super) struct KeyFile {
    /// The private key of RFC 8032, from which everything else follows.
    pub(super) seed: [u8; 32],
    pub(super) public: [u8; 32],
    /// Twice the same number, by which OpenSSH tells a wrong passphrase.
    pub(super) check: u32,
    pub(super) comment: String,
}

/// Why a file is not the key that is wanted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// It is no private key in OpenSSH's format, or a damaged one.
    Malformed,
    /// A passphrase is needed.
    Encrypted,
    /// A key of another algorithm.
    Algorithm(String),
}

impl KeyFile {
    pub(super) fn parse(text: &str) -> Result<Self, Unusable> {
        let armoured = text.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
        let base64: String = armoured.ok_or(Unusable::Malformed)?.split_ascii_whitespace().collect();
        let bytes = BASE64_STANDARD.decode(base64).map_err(|_| Unusable::Malformed)?;
        let mut outer = Fields(bytes.strip_prefix(MAGIC).ok_or(Unusable::Malformed)?);
        let (cipher, kdf, kdf_options) = (outer.string()?, outer.string()?, outer.string()?);
        if (cipher, kdf, kdf_options) != (b"none", b"none", b"") {
            return Err(Unusable::Encrypted);
        }
        if outer.number()? != 1 {
            return Err(Unusable::Malformed);
        }
        let (public_blob, mut inner) = (outer.string()?, Fields(outer.string()?));
        let checks = [inner.number()?, inner.number()?];
        let algorithm = inner.string()?;
        if algorithm != ALGORITHM.as_bytes() {
            return Err(Unusable::Algorithm(String::from_utf8_lossy(algorithm).into_owned()));
        }
        let public: [u8; 32] = inner.string()?.try_into().map_err(|_| Unusable::Malformed)?;
        let secret: [u8; 64] = inner.string()?.try_into().map_err(|_| Unusable::Malformed)?;
        let comment = String::from_utf8_lossy(inner.string()?).into_owned();
        let (seed, public_again) = secret.split_at(32);
        let seed = seed.try_into().map_err(|_| Unusable::Malformed)?;
        let is_whole = checks[0] == checks[1]
            && public_blob == blob(&public)
            && public_again == public
            && inner.0.iter().zip(1..).all(|(byte, expected)| *byte == expected)
            && inner.0.len() < BLOCK
            && outer.0.is_empty();
        if is_whole { Ok(Self { seed, public, check: checks[0], comment }) } else { Err(Unusable::Malformed) }
    }

    pub(super) fn print(&self) -> String {
        let mut inner = Vec::new();
        inner.extend_from_slice(&[self.check.to_be_bytes(), self.check.to_be_bytes()].concat());
        push(&mut inner, ALGORITHM.as_bytes());
        push(&mut inner, &self.public);
        push(&mut inner, &[self.seed, self.public].concat());
        push(&mut inner, self.comment.as_bytes());
        inner.extend((1..).take(inner.len().next_multiple_of(BLOCK) - inner.len()));
        let mut bytes = MAGIC.to_vec();
        for none in [&b"none"[..], b"none", b""] {
            push(&mut bytes, none);
        }
        bytes.extend_from_slice(&1_u32.to_be_bytes());
        push(&mut bytes, &blob(&self.public));
        push(&mut bytes, &inner);
        let base64 = BASE64_STANDARD.encode(bytes);
        let mut text = format!("{BEGIN}\n");
        for (at, character) in base64.char_indices() {
            text.push(character);
            if (at + 1) % LINE == 0 {
                text.push('\n');
            }
        }
        format!("{}\n{END}\n", text.trim_end())
    }
}

/// The public key as it travels: RFC 8709, "Public Key Format".
pub(super) fn blob(public: &[u8; 32]) -> Vec<u8> {
    let mut blob = Vec::new();
    push(&mut blob, ALGORITHM.as_bytes());
    push(&mut blob, public);
    blob
}

/// The public key as a person passes it on, in one line.
pub(super) fn public_line(public: &[u8; 32]) -> String {
    format!("{ALGORITHM} {}", BASE64_STANDARD.encode(blob(public)))
}

/// Appends a string of RFC 4251, section 5: its length, then its bytes.
fn push(to: &mut Vec<u8>, string: &[u8]) {
    // Nothing here is longer than a comment that was read from a small file.
    to.extend_from_slice(&u32::try_from(string.len()).unwrap_or(u32::MAX).to_be_bytes());
    to.extend_from_slice(string);
}

/// The rest of a file, from which fields are taken.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Unusable> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Unusable::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, Unusable> {
        let bytes = self.take(4)?.try_into().map_err(|_| Unusable::Malformed)?;
        Ok(u32::from_be_bytes(bytes))
    }

    fn string(&mut self) -> Result<&'a [u8], Unusable> {
        let length = self.number()?;
        self.take(usize::try_from(length).map_err(|_| Unusable::Malformed)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = include_str!("../../../tests/keys/sound");

    #[test]
    fn a_key_of_ssh_keygen_is_read_and_written_to_the_same_bytes() {
        let key = KeyFile::parse(SOUND).unwrap();
        assert_eq!(key.print(), SOUND);
        assert_eq!(key.comment, "tests@example");
        let public = include_str!("../../../tests/keys/sound.pub");
        assert_eq!(format!("{} {}\n", public_line(&key.public), key.comment), public);
    }

    #[test]
    fn a_key_of_another_kind_is_told_from_a_damaged_one() {
        let unusable = |text: &str| KeyFile::parse(text).err().unwrap();
        assert_eq!(unusable(include_str!("../../../tests/keys/encrypted")), Unusable::Encrypted);
        let ecdsa = Unusable::Algorithm("ecdsa-sha2-nistp256".to_owned());
        assert_eq!(unusable(include_str!("../../../tests/keys/ecdsa")), ecdsa);
        for text in ["", BEGIN, "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----"] {
            assert_eq!(unusable(text), Unusable::Malformed, "{text}");
        }
    }

    #[test]
    fn what_is_cut_or_changed_does_not_pass_for_the_key() {
        let base64: String = SOUND.lines().filter(|line| !line.starts_with('-')).collect();
        let bytes = BASE64_STANDARD.decode(base64).unwrap();
        let parse = |bytes: &[u8]| KeyFile::parse(&format!("{BEGIN}\n{}\n{END}\n", BASE64_STANDARD.encode(bytes)));
        let sound = parse(&bytes).unwrap();
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length} bytes");
        }
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            // A seed is held against the public key by whoever signs with it; a comment is free.
            let passes = |key: KeyFile| key.seed == sound.seed && key.comment == sound.comment;
            assert!(!parse(&changed).is_ok_and(passes), "byte {at}");
        }
    }
}
