//! `kiln sign` and `kiln attest`: statements about a model, attached to it in a registry.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::Session;
use super::exit::Exit;
use super::output::one_line;
use super::transport::Transport;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Statement;
use crate::oci::Reference;
use crate::ops::attach::Attached;
use crate::ops::provenance;
use crate::ops::sign::{self, Target};
use crate::ops::transfer::Access;
use crate::signing::PrivateKey;
use crate::store::Store;

const SIGN_EXAMPLES: &str = "\
Examples:
  kiln sign registry.example/team/llama:int4 --key release.pem
  kiln sign llama:int4 registry.example/team/llama:int4 --key release.pem

A key of one's own:
  openssl genpkey -algorithm ed25519 -out release.pem && chmod 600 release.pem
  openssl pkey -in release.pem -pubout -out release.pub.pem";

const ATTEST_EXAMPLES: &str = "\
Examples:
  kiln attest llama:int4 registry.example/team/llama:int4 --key release.pem
  kiln attest registry.example/team/llama:int4 --builder https://ci.example/models
  kiln attest llama:int4 --output statement.json";

/// Sign a model in a registry
///
/// The signature is over the digest of its manifest, and with it over every byte. It is attached to the model, where
/// `kiln verify --key` and `cosign verify --key` find it. A model of the store is signed as it is there, wherever
/// REFERENCE leads; it has to be pushed before.
#[derive(Debug, Args)]
#[command(after_help = SIGN_EXAMPLES)]
pub(super) struct Sign {
    /// The model, in the store or a registry
    name: Reference,
    /// Where it is published, as in `registry.example/team/llama:int4` [default: NAME]
    reference: Option<Reference>,
    /// The private key: ed25519 or P-256, in PEM (PKCS #8) without a passphrase
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    key: PathBuf,
    #[command(flatten)]
    transport: Transport,
}

impl Sign {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Self { name, reference, key, transport } = self;
        let access = transport.access(session);
        let key = read_key(session, Some(key)).await?;
        let store = open_store(session).await?;
        let target = Target::find(store.as_ref(), &name, reference.as_ref(), &access).await?;
        publish(session, "signed", &target, &Statement::signature(&target.digest), key.as_ref(), &access).await?;
        Ok(Exit::Done)
    }
}

/// State how a model was made
///
/// An in-toto statement with a provenance of SLSA v1: source, revision, the digest of every file that was read, what was
/// asked for, versions and times, from what the store remembers of the run that created the model. It is attached to the
/// model in a registry, signed if there is a key. Files are hashed now, if none has changed since that run.
#[derive(Debug, Args)]
#[command(after_help = ATTEST_EXAMPLES)]
pub(super) struct Attest {
    /// The model's name in the store
    name: Reference,
    /// Where it is published, as in `registry.example/team/llama:int4` [default: NAME]
    reference: Option<Reference>,
    /// The private key to sign it with: ed25519 or P-256, in PEM (PKCS #8) without a passphrase
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    key: Option<PathBuf>,
    /// Who made the model, as a URI [default: urn:kiln:builder:local]
    #[arg(long, value_name = "URI", value_parser = uri)]
    builder: Option<String>,
    /// Write the statement to a file, or to standard output with `-`, and attach nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["key", "reference"], value_hint = clap::ValueHint::FilePath)]
    output: Option<PathBuf>,
    #[command(flatten)]
    transport: Transport,
}

impl Attest {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Self { name, reference, key, builder, output, transport } = self;
        let place = reference.as_ref().unwrap_or(&name);
        if output.is_none() && place.host().is_none() {
            return Err(Error::new(ErrorKind::Usage, format!("No registry is named in `{place}`"))
                .hint(format!("kiln attest {name} registry.example/{name}")));
        }
        let access = transport.access(session);
        let key = read_key(session, key).await?;
        let called = place.without_digest().to_string();
        let stored = name.clone();
        let attestation = session
            .watched(move |session, progress| {
                let threads = session.settings.threads;
                let options = provenance::Options { name: stored, builder, called, places: session.places()?, threads };
                provenance::attest(&session.open_store()?, &options, progress)
            })
            .await?;
        if let Some(reason) = &attestation.unhashed {
            let reason = one_line(reason);
            session.printer.note(format_args!("the statement names no files, because they cannot be told: {reason}"));
        }
        let statement = attestation.statement;
        if let Some(output) = output {
            return write(session, &statement, output).await;
        }
        let store = open_store(session).await?;
        let target = Target::find(store.as_ref(), &name, reference.as_ref(), &access).await?;
        publish(session, "attested", &target, &statement, key.as_ref(), &access).await?;
        Ok(Exit::Done)
    }
}

/// A URI, as far as it matters: a scheme, and something after it.
pub(super) fn uri(text: &str) -> Result<String> {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|it: char| it.is_ascii_alphabetic())
            && scheme.chars().all(|it| it.is_ascii_alphanumeric() || "+-.".contains(it))
    };
    match text.split_once(':') {
        Some((scheme, rest))
            if is_scheme(scheme) && !rest.is_empty() && rest.chars().all(|it| it.is_ascii_graphic()) =>
        {
            Ok(text.to_owned())
        }
        _ => Err(Error::new(ErrorKind::Usage, format!("Not a URI: {}", crate::error::quoted(text)))
            .hint("write it as in `https://ci.example/models`")),
    }
}

async fn write(session: &Session, statement: &Statement, output: PathBuf) -> Result<Exit> {
    let text = String::from_utf8_lossy(&statement.to_bytes()).into_owned();
    if output.as_os_str() == "-" {
        session.printer.data(text);
        return Ok(Exit::Done);
    }
    session
        .blocking(move |_| {
            std::fs::write(&output, text + "\n").map_err(|cause| Error::io(ErrorKind::Input, "write", &output, cause))
        })
        .await?;
    Ok(Exit::Done)
}

pub(super) async fn read_key(session: &Session, path: Option<PathBuf>) -> Result<Option<PrivateKey>> {
    session.blocking(move |_| path.map(|path| sign::private_key(&path)).transpose()).await
}

/// The store, if it is there.
async fn open_store(session: &Session) -> Result<Option<Store>> {
    session.blocking(|session| Ok(session.places()?.store)).await
}

/// Attaches a statement, and says so.
pub(super) async fn publish(
    session: &Session,
    event: &str,
    target: &Target,
    statement: &Statement,
    key: Option<&PrivateKey>,
    access: &Access,
) -> Result<()> {
    let reporter = session.reporter();
    let attached = sign::publish(target, statement, key, access, &reporter.progress()).await?;
    drop(reporter);
    let Attached { digest, subject, .. } = attached;
    let by = key.map(|key| key.public().hint());
    if session.printer.is_json() {
        session.printer.object(&json!({
            "event": event,
            "reference": target.reference.to_string(),
            "subject": subject,
            "predicateType": statement.predicate_type,
            "digest": digest,
            "key": by,
        }));
        return Ok(());
    }
    let signed = match by {
        Some(hint) => format!("signed by the key {hint}"),
        None => "not signed".to_owned(),
    };
    session.printer.data(format_args!("{event} {} with {digest} ({signed})", target.reference));
    Ok(())
}
