//! Keys that sign and keys that check: ed25519 (RFC 8032), and ECDSA on P-256 with SHA-256 (FIPS 186-5), in the PEM files
//! that `openssl` writes. The arithmetic is that of `ring`.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use rustls::pki_types::pem::{self, SectionKind};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, ErrorKind, Result};

/// What stands before the point in the DER of a public key, RFC 8410 and RFC 5480: DER has one spelling, so that this and
/// the point's length are the whole of the format.
const ED25519_PREFIX: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";
const P256_PREFIX: &[u8] =
    b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
/// The length of a point of ed25519, and of an uncompressed one on P-256, in bytes.
const ED25519_POINT: usize = 32;
const P256_POINT: usize = 65;

/// What a signature is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// ed25519.
    Ed25519,
    /// ECDSA on P-256, over the SHA-256 of the message.
    P256,
}

/// A key that checks signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    algorithm: Algorithm,
    point: Vec<u8>,
}

impl PublicKey {
    /// Reads a PEM file with one `PUBLIC KEY`.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] when there is none, or one of another algorithm.
    pub fn from_pem(text: &[u8]) -> Result<Self> {
        let (kind, der) = section(text)?;
        if kind != SectionKind::PublicKey {
            return Err(Error::input("The file has no `PUBLIC KEY`").hint(PUBLIC_OF_PRIVATE));
        }
        Self::from_spki(&der)
            .ok_or_else(|| Error::input("The public key is neither one of ed25519 nor one of P-256").hint(NEW_KEY))
    }

    fn from_spki(der: &[u8]) -> Option<Self> {
        let is_long = |point: &&[u8], length| point.len() == length;
        let ed25519 = der.strip_prefix(ED25519_PREFIX).filter(|point| is_long(point, ED25519_POINT));
        let p256 = der.strip_prefix(P256_PREFIX).filter(|point| is_long(point, P256_POINT));
        let of = |algorithm, point: &[u8]| Self { algorithm, point: point.to_vec() };
        ed25519.map(|point| of(Algorithm::Ed25519, point)).or_else(|| p256.map(|point| of(Algorithm::P256, point)))
    }

    /// The key in DER: `SubjectPublicKeyInfo` of RFC 5280.
    pub fn to_spki(&self) -> Vec<u8> {
        let prefix = match self.algorithm {
            Algorithm::Ed25519 => ED25519_PREFIX,
            Algorithm::P256 => P256_PREFIX,
        };
        [prefix, &self.point].concat()
    }

    /// How a signature tells which key it is of, as cosign has it: the SHA-256 of [`Self::to_spki`], in Base64.
    pub fn hint(&self) -> String {
        BASE64_STANDARD.encode(Sha256::digest(self.to_spki()))
    }

    /// What it checks.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let algorithm: &'static dyn ring::signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::Ed25519 => &ED25519,
            Algorithm::P256 => &ECDSA_P256_SHA256_ASN1,
        };
        UnparsedPublicKey::new(algorithm, &self.point).verify(message, signature).is_ok()
    }
}

/// A key that signs. It is sent nowhere.
pub struct PrivateKey {
    pair: Pair,
    public: PublicKey,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    P256(EcdsaKeyPair),
}

impl PrivateKey {
    /// Reads a PEM file with one `PRIVATE KEY` (PKCS #8) that has no passphrase.
    ///
    /// # Errors
    /// [`ErrorKind::Input`] when there is none, one with a passphrase, or one of another algorithm.
    pub fn from_pem(text: &[u8]) -> Result<Self> {
        let (kind, der) = section(text)?;
        match kind {
            SectionKind::PrivateKey => {}
            SectionKind::EcPrivateKey => {
                return Err(Error::input("The private key is in the older format of `EC PRIVATE KEY`")
                    .hint("`openssl pkcs8 -topk8 -nocrypt -in OLD -out NEW` writes it in PKCS #8"));
            }
            _ => return Err(Error::input("The file has no `PRIVATE KEY`").hint(NEW_KEY)),
        }
        let of = |algorithm, point: &[u8]| PublicKey { algorithm, point: point.to_vec() };
        // Without the public half, which `openssl` leaves out: it follows from the private one.
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der) {
            let public = of(Algorithm::Ed25519, pair.public_key().as_ref());
            return Ok(Self { pair: Pair::Ed25519(pair), public });
        }
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der, &SystemRandom::new());
        let pair =
            pair.map_err(|_| Error::input("The private key is neither one of ed25519 nor one of P-256").hint(NEW_KEY))?;
        let public = of(Algorithm::P256, pair.public_key().as_ref());
        Ok(Self { pair: Pair::P256(pair), public })
    }

    /// Its other half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `message`: 64 bytes of ed25519, or the DER of an ECDSA signature, which is another one each time.
    ///
    /// # Errors
    /// [`ErrorKind::Unexpected`] when the system gives no random numbers.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::P256(pair) => {
                let signature = pair.sign(&SystemRandom::new(), message);
                let signature =
                    signature.map_err(|_| Error::new(ErrorKind::Unexpected, "The system gives no random numbers"))?;
                Ok(signature.as_ref().to_vec())
            }
        }
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({})", self.public.hint())
    }
}

const NEW_KEY: &str = "`openssl genpkey -algorithm ed25519 -out KEY` makes one that can be used";
const PUBLIC_OF_PRIVATE: &str = "`openssl pkey -in KEY -pubout -out PUBLIC` writes the public half of a private key";

/// The first section of a PEM file.
fn section(text: &[u8]) -> Result<(SectionKind, Vec<u8>)> {
    let is_encrypted = |label: &str| text.windows(label.len()).any(|window| window == label.as_bytes());
    if is_encrypted("BEGIN ENCRYPTED ") {
        return Err(Error::input("The private key has a passphrase, which is not asked for").hint(
            "`openssl pkcs8 -in KEY -out NEW` takes it away; a key of `cosign generate-key-pair` cannot be used",
        ));
    }
    let found = pem::from_buf(&mut &*text).ok().flatten();
    found.ok_or_else(|| Error::input("The file is no key in PEM").hint(NEW_KEY))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ED25519: &[u8] = include_bytes!("../tests/keys/ed25519.pem");
    const ED25519_PUBLIC: &[u8] = include_bytes!("../tests/keys/ed25519.pub.pem");
    const P256: &[u8] = include_bytes!("../tests/keys/p256.pem");
    const P256_PUBLIC: &[u8] = include_bytes!("../tests/keys/p256.pub.pem");

    #[test]
    fn keys_of_openssl_are_read_and_their_halves_belong_together() {
        for (private, public, algorithm) in
            [(ED25519, ED25519_PUBLIC, Algorithm::Ed25519), (P256, P256_PUBLIC, Algorithm::P256)]
        {
            let private = PrivateKey::from_pem(private).unwrap();
            let public = PublicKey::from_pem(public).unwrap();
            assert_eq!((private.public(), public.algorithm()), (&public, algorithm));
            assert_eq!(PublicKey::from_spki(&public.to_spki()).unwrap(), public);
            assert!(!format!("{private:?}").contains("pair"));
        }
    }

    #[test]
    fn a_signature_is_good_for_one_message_and_one_key() {
        let keys = [ED25519, P256].map(|pem| PrivateKey::from_pem(pem).unwrap());
        for (key, other) in [(&keys[0], &keys[1]), (&keys[1], &keys[0])] {
            let signature = key.sign(b"message").unwrap();
            assert!(key.public().verify(b"message", &signature));
            assert!(!key.public().verify(b"massage", &signature));
            assert!(!other.public().verify(b"message", &signature));
            assert!(!key.public().verify(b"message", &signature[1..]));
            for at in 0..signature.len() {
                let mut changed = signature.clone();
                changed[at] ^= 1;
                assert!(!key.public().verify(b"message", &changed), "byte {at}");
            }
        }
    }

    #[test]
    fn what_is_no_key_that_can_be_used_is_said_and_what_helps() {
        let private = |text: &[u8]| PrivateKey::from_pem(text).unwrap_err();
        for (error, words) in [
            (private(b""), "no key in PEM"),
            (private(ED25519_PUBLIC), "no `PRIVATE KEY`"),
            (private(include_bytes!("../tests/keys/rsa.pem")), "neither one of ed25519"),
            (private(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"), "passphrase"),
            (private(b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"), "passphrase"),
            (private(b"-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"), "older format"),
            (PublicKey::from_pem(P256).unwrap_err(), "no `PUBLIC KEY`"),
            (PublicKey::from_pem(include_bytes!("../tests/keys/rsa.pub.pem")).unwrap_err(), "neither one of"),
        ] {
            assert_eq!(error.kind(), ErrorKind::Input, "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("openssl")), "{error}");
        }
    }
}
