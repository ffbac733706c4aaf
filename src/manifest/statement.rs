//! Statements about a manifest, as in-toto has them: whom they are about, what kind they are, what they say.
//!
//! in-toto attestation v1, "Statement": <https://github.com/in-toto/attestation/blob/v1.1.0/spec/v1/statement.md>. What a
//! statement has besides is passed over, as that specification asks.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind, Result, quoted};
use crate::json;
use crate::oci::Digest;

const TYPE: &str = "https://in-toto.io/Statement/v1";

/// A statement. Fields are declared, and so written, in the order of their names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Statement {
    #[serde(rename = "_type")]
    statement_type: String,
    /// What it says.
    pub predicate: Value,
    /// What kind of statement it is: a URI.
    pub predicate_type: String,
    /// What it is about.
    pub subject: Vec<Subject>,
}

/// What a statement is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Its digest, by algorithm.
    pub digest: BTreeMap<String, String>,
    /// What whoever made the statement calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Statement {
    /// The media type of a statement.
    pub const MEDIA_TYPE: &str = "application/vnd.in-toto+json";
    /// A statement that says nothing but that its signer stands for the subject: what `cosign sign` writes.
    pub const SIGNATURE: &str = "https://sigstore.dev/cosign/sign/v1";

    /// A statement about the manifest `digest`.
    pub fn new(digest: &Digest, name: Option<String>, predicate_type: &str, predicate: Value) -> Self {
        let digest = BTreeMap::from([(digest.algorithm().as_str().to_owned(), digest.hex())]);
        Self {
            statement_type: TYPE.to_owned(),
            predicate,
            predicate_type: predicate_type.to_owned(),
            subject: vec![Subject { digest, name }],
        }
    }

    /// The statement that whoever signs it stands for the manifest `digest`.
    pub fn signature(digest: &Digest) -> Self {
        Self::new(digest, None, Self::SIGNATURE, json!({}))
    }

    /// The text.
    pub fn to_bytes(&self) -> Vec<u8> {
        json::to_canonical(self)
    }

    /// Reads a statement.
    ///
    /// # Errors
    /// [`ErrorKind::NotTrusted`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let odd = |message: String| Error::new(ErrorKind::NotTrusted, message);
        let parsed: serde_json::Result<Self> = json::parse_as(bytes);
        let statement = parsed.map_err(|cause| odd("What is signed is no statement".to_owned()).caused_by(cause))?;
        if statement.statement_type != TYPE {
            return Err(odd(format!("What is signed is {}, no statement", quoted(&statement.statement_type))));
        }
        Ok(statement)
    }

    /// Fails when it is not about the manifest `digest`: one of its subjects has it, by the same algorithm.
    ///
    /// # Errors
    /// [`ErrorKind::NotTrusted`].
    pub fn require_about(&self, digest: &Digest) -> Result<()> {
        let (algorithm, hex) = (digest.algorithm().as_str(), digest.hex());
        if self.subject.iter().any(|subject| subject.digest.get(algorithm) == Some(&hex)) {
            return Ok(());
        }
        let others = self.subject.iter().flat_map(|subject| &subject.digest);
        let message = match others.map(|(algorithm, hex)| format!("{algorithm}:{hex}")).next() {
            Some(other) => format!("The statement is about {}, not about `{digest}`", quoted(&other)),
            None => format!("The statement is about nothing, not about `{digest}`"),
        };
        Err(Error::new(ErrorKind::NotTrusted, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_is_written_in_one_way_and_read_back() {
        let digest = Digest::of(b"manifest");
        let statement = Statement::new(&digest, Some("a/b:c".to_owned()), "https://x.example/v1", json!({"b":1,"a":2}));
        let text = String::from_utf8(statement.to_bytes()).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"_type":"https://in-toto.io/Statement/v1","predicate":{{"a":2,"b":1}},"predicateType":"https://x.example/v1","subject":[{{"digest":{{"sha256":"{}"}},"name":"a/b:c"}}]}}"#,
                digest.hex()
            )
        );
        assert_eq!(Statement::parse(text.as_bytes()).unwrap(), statement);
        let more = text.replacen('{', r#"{"somebodys":"own","#, 1);
        assert_eq!(Statement::parse(more.as_bytes()).unwrap(), statement, "what it has besides is passed over");
    }

    #[test]
    fn what_is_no_statement_is_not_trusted() {
        let sound = String::from_utf8(Statement::signature(&Digest::of(b"")).to_bytes()).unwrap();
        for odd in [
            String::new(),
            "[]".to_owned(),
            sound.replace("Statement/v1", "Statement/v0.1"),
            sound.replace("\"subject\"", "\"subjects\""),
            sound.replacen('{', r#"{"predicateType":"x","#, 1),
            format!("{sound}{sound}"),
        ] {
            assert_eq!(Statement::parse(odd.as_bytes()).unwrap_err().kind(), ErrorKind::NotTrusted, "{odd}");
        }
    }

    #[test]
    fn a_statement_is_about_what_it_names_by_the_same_algorithm() {
        let (ours, other) = (Digest::of(b"ours"), Digest::of(b"other"));
        let mut statement = Statement::signature(&ours);
        statement.require_about(&ours).unwrap();
        assert!(statement.require_about(&other).unwrap_err().to_string().contains(&ours.to_string()));
        statement.subject[0].digest = BTreeMap::from([("sha512".to_owned(), ours.hex())]);
        assert_eq!(statement.require_about(&ours).unwrap_err().kind(), ErrorKind::NotTrusted);
        statement.subject.clear();
        assert!(statement.require_about(&ours).unwrap_err().to_string().contains("about nothing"));
    }
}
