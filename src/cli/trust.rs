//! The options of `kiln verify` on trust: whose signature counts, and what to publish after a rebuild.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::output::one_line;
use super::sign::{publish, read_key, uri};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Statement, Svr};
use crate::oci::{Digest, Reference};
use crate::ops::sign::{Target, reproduced};
use crate::ops::transfer::Access;
use crate::ops::trust::{self, Accepted, Policy, Trust};
use crate::ops::verify::{Level, Outcome, Verified};
use crate::signing::PrivateKey;
use crate::store::Store;

/// Whom to trust, and where they say so.
#[derive(Debug, Args)]
#[command(next_help_heading = "Trust options")]
pub(super) struct Trusting {
    /// Ask for a signature by this public key (ed25519 or P-256, in PEM); may be given several times
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    key: Vec<PathBuf>,
    /// Ask for what this policy wants: keys, builders, sources [default: `trust.toml` beside the configuration file]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    policy: Option<PathBuf>,
    /// Where the model is published with its signatures [default: where NAME says, or where it was seen]
    #[arg(long, value_name = "REFERENCE")]
    signatures: Option<Reference>,
    /// After a rebuild that gave the same bytes, publish that it did
    #[arg(long, conflicts_with = "all")]
    attest: bool,
    /// The private key to sign that with
    #[arg(long, value_name = "FILE", requires = "attest", value_hint = clap::ValueHint::FilePath)]
    attest_key: Option<PathBuf>,
    /// Who has rebuilt it, as a URI [default: urn:kiln:verifier:local]
    #[arg(long, value_name = "URI", requires = "attest", value_parser = uri)]
    verifier: Option<String>,
}

/// What is asked besides the levels that need no key.
pub(super) struct Asking {
    store: Option<Store>,
    signatures: Option<Reference>,
    policy: Option<Policy>,
    attest: Option<(Option<PrivateKey>, Option<String>)>,
}

/// What came of it, if it was asked.
pub(super) struct Answer(Option<Trust>);

impl Trusting {
    /// Whether a rebuild is to be published.
    pub(super) fn attests(&self) -> bool {
        self.attest
    }

    /// Reads all that is needed, before anything else is done.
    pub(super) async fn begin(&self, session: &Session, is_asked: bool) -> Result<Asking> {
        let (keys, named) = (self.key.clone(), self.policy.clone());
        let is_asked = is_asked || !keys.is_empty() || named.is_some();
        let attest_key = read_key(session, self.attest_key.clone()).await?;
        let (store, policy) = session
            .blocking(move |session| {
                // Whoever names keys does not mean those of the file that lies there.
                let usual = || session.settings.trust_policy().filter(|_| keys.is_empty());
                let path = named.or_else(usual).filter(|_| is_asked);
                let mut policy = path.map(|path| Policy::read(&path)).transpose()?.unwrap_or_default();
                keys.iter().try_for_each(|key| policy.trust(key))?;
                Ok((session.places()?.store, policy))
            })
            .await?;
        if is_asked && policy.keys.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "Nobody is trusted: no key is named")
                .hint("name one with `--key FILE`, or a policy with `--policy FILE`"));
        }
        Ok(Asking {
            store,
            signatures: self.signatures.clone(),
            policy: is_asked.then_some(policy),
            attest: self.attest.then(|| (attest_key, self.verifier.clone())),
        })
    }
}

impl Asking {
    /// Asks whether the model is trusted, if that is asked, and puts it with what was found. Damage is enough to know.
    pub(super) async fn ask(&self, name: &Reference, verified: &mut Verified, access: &Access) -> Result<Answer> {
        let Some(policy) = &self.policy else { return Ok(Answer(None)) };
        verified.level = Level::Trust;
        if verified.outcome() == Outcome::Corrupt {
            return Ok(Answer(None));
        }
        let trust = trust::check(&verified.digest, &self.places(name, verified), policy, access).await?;
        if trust.findings.iter().all(|finding| finding.outcome != Outcome::CouldNotCheck) {
            verified.not_checked.retain(|level| *level != Level::Trust);
        }
        verified.findings.extend(trust.findings.iter().cloned());
        Ok(Answer(Some(trust)))
    }

    /// The repositories that may have signatures: the one that was named, or those that are known to have the model.
    fn places(&self, name: &Reference, verified: &Verified) -> Vec<Reference> {
        if let Some(named) = &self.signatures {
            return vec![named.clone()];
        }
        let told = name.host().map(|_| name.clone());
        let seen = self.store.iter().flat_map(|store| store.homes(&verified.digest));
        let seen = seen.filter_map(|(host, path)| format!("{host}/{path}").parse().ok());
        told.into_iter().chain(seen).collect()
    }

    /// Publishes that the model was made again, if that is asked and was shown just now.
    pub(super) async fn attest(
        &self,
        session: &Session,
        name: &Reference,
        verified: &Verified,
        access: &Access,
    ) -> Result<()> {
        let Some((key, verifier)) = &self.attest else { return Ok(()) };
        if verified.outcome() != Outcome::Ok || verified.not_checked.contains(&Level::Rebuild) {
            session.printer.note("nothing is published: that the model can be made again was not shown");
            return Ok(());
        }
        let places = self.places(name, verified);
        let place = places.first().ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("No registry is named in `{name}`"))
                .hint("name it with `--signatures REFERENCE`")
        })?;
        let target = Target::of(&verified.digest, place)?;
        let statement = reproduced(&target, verifier.clone());
        publish(session, "attested", &target, &statement, key.as_ref(), access).await
    }
}

impl Answer {
    /// In lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let Some(trust) = &self.0 else { return Vec::new() };
        let accepted = trust.accepted.iter().map(|it| format!("trusted: {}", one_line(&said(it))));
        let unchecked = trust.not_checked.iter().map(|what| format!("not checked: {what}"));
        accepted.chain(unchecked).collect()
    }

    /// In a result.
    pub(super) fn object(&self, mut verified: Value) -> Value {
        if let Some(trust) = &self.0 {
            let refused = |(digest, reason): &(Digest, String)| json!({ "digest": digest, "reason": reason });
            verified["trust"] = json!({
                "accepted": trust.accepted.iter().map(accepted).collect::<Vec<_>>(),
                "refused": trust.refused.iter().map(refused).collect::<Vec<Value>>(),
                "notChecked": trust.not_checked,
            });
        }
        verified
    }
}

fn said(Accepted { digest, key, statement, provenance }: &Accepted) -> String {
    let what = match (statement.predicate_type.as_str(), provenance) {
        (_, Some(provenance)) => {
            let source = &provenance.build_definition.external_parameters.source;
            format!("made by {} from {source}", provenance.run_details.builder.id)
        }
        (Svr::PREDICATE_TYPE, None) => {
            let properties = statement.predicate["properties"].as_array().into_iter().flatten();
            properties.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
        }
        (Statement::SIGNATURE, None) => "signed".to_owned(),
        (other, None) => other.to_owned(),
    };
    format!("{what}, by the key `{key}` ({digest})")
}

fn accepted(it: &Accepted) -> Value {
    let provenance = it.provenance.as_ref();
    json!({
        "digest": it.digest,
        "key": it.key,
        "predicateType": it.statement.predicate_type,
        "builder": provenance.map(|provenance| &provenance.run_details.builder.id),
        "source": provenance.map(|provenance| &provenance.build_definition.external_parameters.source),
    })
}
