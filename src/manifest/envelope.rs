//! How a signed statement travels: a DSSE envelope in a Sigstore bundle, which tells the key by a hint.
//!
//! DSSE v1.0.2, <https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md>; the bundle is that of
//! <https://github.com/sigstore/protobuf-specs/blob/v0.5.0/protos/sigstore_bundle.proto>, as `cosign sign --key` writes it.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Statement;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;
use crate::oci::MediaType;

/// A signed statement as it is kept. Fields are declared, and so written, in the order of their names; what a bundle has
/// besides is of no use without a certificate or a log, and passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    /// The envelope.
    pub dsse_envelope: Envelope,
    media_type: String,
    verification_material: Value,
}

/// A payload and signatures over it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

/// One signature, in Base64.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    sig: String,
}

impl Bundle {
    /// The media type of a bundle; that of the artifact it is attached as, too.
    pub const MEDIA_TYPE: MediaType = MediaType::of("application/vnd.dev.sigstore.bundle.v0.3+json");
    /// How the media types of all versions begin.
    const FAMILY: &str = "application/vnd.dev.sigstore.bundle";
    /// The annotation that says what is in the bundle, and what it says for an envelope.
    pub const CONTENT: (&str, &str) = ("dev.sigstore.bundle.content", "dsse-envelope");
    /// The annotation with the kind of statement.
    pub const PREDICATE_TYPE: &str = "dev.sigstore.bundle.predicateType";

    /// `statement` with the signature that `sign` makes of what is signed, by the key that `hint` tells.
    ///
    /// # Errors
    /// That of `sign`.
    pub fn new(statement: &Statement, hint: &str, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>>) -> Result<Self> {
        let payload = statement.to_bytes();
        let sig = BASE64_STANDARD.encode(sign(&authenticated(Statement::MEDIA_TYPE, &payload))?);
        Ok(Self {
            dsse_envelope: Envelope {
                payload: BASE64_STANDARD.encode(payload),
                payload_type: Statement::MEDIA_TYPE.to_owned(),
                signatures: vec![Signature { sig }],
            },
            media_type: Self::MEDIA_TYPE.as_str().to_owned(),
            verification_material: json!({ "publicKey": { "hint": hint } }),
        })
    }

    /// Whether a layer or an artifact of this type is a bundle.
    pub fn is_media_type(media_type: &MediaType) -> bool {
        media_type.as_str().starts_with(Self::FAMILY)
    }

    /// The text.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::to_canonical(self)
    }

    /// Reads a bundle with an envelope.
    ///
    /// # Errors
    /// [`ErrorKind::NotTrusted`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let odd = |message: &str| Error::new(ErrorKind::NotTrusted, message);
        let parsed: serde_json::Result<Self> = json::parse_as(bytes);
        let bundle = parsed.map_err(|cause| odd("It is no bundle with a DSSE envelope").caused_by(cause))?;
        if !Self::is_media_type(&MediaType::parse(&bundle.media_type)) {
            let message = format!("It is a bundle of the unknown type {}", quoted(&bundle.media_type));
            return Err(odd(&message));
        }
        Ok(bundle)
    }
}

impl Envelope {
    /// The statement, if one of its signatures satisfies `verify`, which is given what is signed and a signature. Nothing
    /// of the statement is looked at before.
    ///
    /// # Errors
    /// [`ErrorKind::NotTrusted`] when no signature does, or when it is another payload than a statement.
    pub fn open(&self, verify: impl Fn(&[u8], &[u8]) -> bool) -> Result<Statement> {
        let odd = |message: String| Error::new(ErrorKind::NotTrusted, message);
        if self.payload_type != Statement::MEDIA_TYPE {
            let found = quoted(&self.payload_type);
            return Err(odd(format!("What is signed is of the type {found} instead of `{}`", Statement::MEDIA_TYPE)));
        }
        let payload = decode(&self.payload).ok_or_else(|| odd("What is signed is not in Base64".to_owned()))?;
        let signed = authenticated(&self.payload_type, &payload);
        let mut signatures = self.signatures.iter().take(MAX_SIGNATURES).filter_map(|it| decode(&it.sig));
        if !signatures.any(|signature| verify(&signed, &signature)) {
            return Err(odd("No signature is one of a key that is trusted".to_owned()));
        }
        Statement::parse(&payload)
    }
}

/// How many signatures of one envelope are looked at.
const MAX_SIGNATURES: usize = 16;

/// What is signed: DSSE's pre-authentication encoding.
fn authenticated(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut signed = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    signed.extend_from_slice(payload);
    signed
}

/// Both alphabets of Base64 are allowed.
fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text).or_else(|_| BASE64_URL_SAFE.decode(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    /// A signature that is the message with an `s` before it.
    fn sign(message: &[u8]) -> Result<Vec<u8>> {
        Ok([b"s", message].concat())
    }

    fn verify(message: &[u8], signature: &[u8]) -> bool {
        signature.strip_prefix(b"s") == Some(message)
    }

    fn bundle() -> Bundle {
        Bundle::new(&Statement::signature(&Digest::of(b"manifest")), "a hint", sign).unwrap()
    }

    #[test]
    fn what_is_signed_is_what_the_specification_says() {
        // The example of DSSE's protocol.md.
        let signed = authenticated("http://example.com/HelloWorld", b"hello world");
        assert_eq!(signed, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }

    #[test]
    fn a_bundle_is_read_back_and_opens_with_its_key() {
        let bundle = bundle();
        let again = Bundle::parse(&bundle.to_bytes()).unwrap();
        assert_eq!(again, bundle);
        assert_eq!(json::to_canonical(&json::parse(&bundle.to_bytes()).unwrap()), bundle.to_bytes());
        again.dsse_envelope.open(verify).unwrap().require_about(&Digest::of(b"manifest")).unwrap();
        assert_eq!(again.dsse_envelope.open(|_, _| false).unwrap_err().kind(), ErrorKind::NotTrusted);
    }

    #[test]
    fn a_bundle_of_cosign_is_read() {
        // What cosign 3 wrote for `cosign sign --key`, its key beside it.
        let bundle = Bundle::parse(include_bytes!("../../tests/keys/cosign.bundle.json")).unwrap();
        let key = crate::json::to_canonical(&bundle.verification_material);
        assert_eq!(key, br#"{"publicKey":{"hint":"mKeV7klPKT52eAh05S+h6h97k0CLNjPwRKErXSG2r4Q="}}"#);
        let statement = bundle.dsse_envelope.open(|_, _| true).unwrap();
        assert_eq!(statement.predicate_type, Statement::SIGNATURE);
    }

    #[test]
    fn another_payload_is_no_statement_whoever_signed_it() {
        let mut odd = bundle().dsse_envelope;
        odd.payload_type = "application/json".to_owned();
        assert!(odd.open(|_, _| true).unwrap_err().to_string().contains("`application/json`"));
        let mut odd = bundle().dsse_envelope;
        odd.payload = "!".to_owned();
        assert!(odd.open(|_, _| true).unwrap_err().to_string().contains("Base64"));
        let mut other_type = bundle();
        other_type.media_type = "application/json".to_owned();
        assert_eq!(Bundle::parse(&other_type.to_bytes()).unwrap_err().kind(), ErrorKind::NotTrusted);
    }

    #[test]
    fn any_of_several_signatures_is_enough_and_not_more_than_some_are_tried() {
        let mut envelope = bundle().dsse_envelope;
        let good = envelope.signatures[0].clone();
        let bad = Signature { sig: BASE64_STANDARD.encode(b"bad") };
        envelope.signatures = vec![bad.clone(), good.clone()];
        envelope.open(verify).unwrap();
        envelope.signatures = vec![bad; MAX_SIGNATURES];
        envelope.signatures.push(good);
        envelope.open(verify).unwrap_err();
    }
}
