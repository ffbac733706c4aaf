//! `kiln attach` and `kiln referrers`: what goes along with a model in a registry.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use serde_json::json;

use super::Session;
use super::exit::Exit;
use super::output::{size, table};
use super::transport::Transport;
use crate::error::{Error, ErrorKind, Result, quoted};
use crate::oci::{MediaType, Reference, Referrer};
use crate::ops::attach::{self, Artifact, Attached, Blob};

const ATTACH_EXAMPLES: &str = "\
Examples:
  kiln attach registry.example/llama:int4 --artifact-type application/x-card card.md:text/markdown
  kiln attach registry.example/llama:int4 --artifact-type application/x-review --annotation by=ada";

const REFERRERS_EXAMPLES: &str = "\
Examples:
  kiln referrers registry.example/llama:int4
  kiln referrers registry.example/llama:int4 --artifact-type application/x-card --json";

/// Attach files to a model in a registry
///
/// They are stored beside the model, in a manifest that names the model's as its subject: `kiln referrers` finds it
/// there, and so do the programs of others. The same files give the same digest on every machine.
#[derive(Debug, Args)]
#[command(after_help = ATTACH_EXAMPLES)]
pub(super) struct Attach {
    /// The model, as in `registry.example/team/llama:int4`
    reference: Reference,
    /// The files, each with its media type [default type: application/octet-stream]
    #[arg(value_name = "FILE[:TYPE]", required_unless_present = "annotation", value_hint = clap::ValueHint::FilePath)]
    files: Vec<File>,
    /// What kind of thing it is, as a media type
    #[arg(long, value_name = "TYPE")]
    artifact_type: MediaType,
    /// What the manifest says besides
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<Annotation>,
    #[command(flatten)]
    transport: Transport,
}

/// A file and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    path: PathBuf,
    media_type: MediaType,
}

impl FromStr for File {
    type Err = Error;

    /// What follows the last colon is a type, if it is spelled as one.
    fn from_str(text: &str) -> Result<Self> {
        let typed = text.rsplit_once(':').and_then(|(path, media_type)| Some((path, media_type.parse().ok()?)));
        let (path, media_type) = typed.unwrap_or((text, MediaType::OCTETS));
        Ok(Self { path: path.into(), media_type })
    }
}

#[derive(Clone, Debug)]
struct Annotation(String, String);

impl FromStr for Annotation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("An annotation is `key=value`, not {}", quoted(text)))
        })?;
        Ok(Self(key.to_owned(), value.to_owned()))
    }
}

impl Attach {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Self { reference, files, artifact_type, annotation, transport } = self;
        let mut annotations = BTreeMap::new();
        for Annotation(key, value) in annotation {
            if annotations.insert(key.clone(), value).is_some() {
                let message = format!("The annotation {} is given twice", quoted(&key));
                return Err(Error::new(ErrorKind::Usage, message));
            }
        }
        let blobs = session
            .blocking(move |_| files.into_iter().map(|file| Blob::file(file.media_type, &file.path)).collect())
            .await?;
        let artifact = Artifact { artifact_type, blobs, annotations };
        let reporter = session.reporter();
        let attached = attach::attach(&reference, &artifact, &transport.access(session), &reporter.progress()).await?;
        drop(reporter);
        let Attached { digest, subject, blobs_sent, bytes_sent, blobs_skipped } = attached;
        if session.printer.is_json() {
            session.printer.object(&json!({
                "event": "attached",
                "reference": reference.to_string(),
                "subject": subject,
                "artifactType": artifact.artifact_type,
                "digest": digest,
                "blobs_sent": blobs_sent,
                "bytes_sent": bytes_sent,
                "blobs_skipped": blobs_skipped,
            }));
        } else {
            session.printer.data(format_args!(
                "attached {} to {reference} {digest} (sent {blobs_sent} of {} blobs, {})",
                artifact.artifact_type,
                blobs_sent + blobs_skipped,
                size(bytes_sent),
            ));
        }
        Ok(Exit::Done)
    }
}

/// List what is attached to a model in a registry
///
/// Signatures, attestations, notes: every manifest that names the model's as its subject.
#[derive(Debug, Args)]
#[command(after_help = REFERRERS_EXAMPLES)]
pub(super) struct Referrers {
    /// The model, as in `registry.example/team/llama:int4`
    reference: Reference,
    /// Only what is of this kind
    #[arg(long, value_name = "TYPE")]
    artifact_type: Option<MediaType>,
    #[command(flatten)]
    transport: Transport,
}

impl Referrers {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Self { reference, artifact_type, transport } = self;
        let found = attach::referrers(&reference, artifact_type.as_ref(), &transport.access(session)).await?;
        if session.printer.is_json() {
            session.printer.object(&json!({
                "event": "referrers",
                "reference": reference.to_string(),
                "digest": found.subject,
                "referrers": found.referrers,
            }));
            return Ok(Exit::Done);
        }
        if !found.referrers.is_empty() {
            let header = ["DIGEST", "BYTES", "TYPE", "ANNOTATIONS"].map(str::to_owned).to_vec();
            let rows: Vec<_> = std::iter::once(header).chain(found.referrers.iter().map(row)).collect();
            session.printer.data(table(&rows));
        }
        Ok(Exit::Done)
    }
}

fn row(Referrer { descriptor, artifact_type }: &Referrer) -> Vec<String> {
    let annotations = descriptor.annotations.iter().map(|(key, value)| format!("{key}={value}"));
    vec![
        descriptor.digest.to_string(),
        descriptor.size.to_string(),
        artifact_type.as_ref().map_or("-", MediaType::as_str).to_owned(),
        annotations.collect::<Vec<_>>().join(" "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_a_type_behind_its_last_colon() {
        for (text, path, media_type) in [
            ("card.md:text/markdown", "card.md", "text/markdown"),
            ("a:b/c:text/plain", "a:b/c", "text/plain"),
            ("card.md", "card.md", "application/octet-stream"),
            ("notes:1", "notes:1", "application/octet-stream"),
            ("dir:x/../card.md", "dir:x/../card.md", "application/octet-stream"),
        ] {
            let file: File = text.parse().unwrap();
            assert_eq!((file.path.to_str().unwrap(), file.media_type.as_str()), (path, media_type), "{text}");
        }
    }
}
