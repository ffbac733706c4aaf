//! `kiln export`: a model becomes one of another program's.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::Session;
use super::checkout::{links_told, links_value};
use super::exit::Exit;
use super::output::{count, size};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Reference;
use crate::ops::export::{self, Exported};
use crate::store::Link;

const EXAMPLES: &str = "\
Examples:
  kiln export llama:int4 --to ollama
  kiln export llama:int4 --to ollama --dir /usr/share/ollama/.ollama/models";

/// Put a model into another program's store
///
/// The program has the model by the same name, and runs it without a copy of its own: files are reflinks or hard
/// links where the file system allows it. Everything is hashed first, and what is there already stays.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Export {
    /// The model's name in the store
    name: Reference,
    /// Whose store
    #[arg(long)]
    to: Program,
    /// The directory of that store [default: OLLAMA_MODELS, else ~/.ollama/models]
    #[arg(long, value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// How all files share their bytes with the store [default: the cheapest way that works]
    #[arg(long, value_name = "HOW")]
    link: Option<Link>,
}

/// The programs whose stores are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Program {
    /// Ollama: profile and dialect `ollama`
    Ollama,
}

impl Export {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Program::Ollama = self.to;
        let directory = self.dir.or_else(|| session.settings.ollama()).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "No directory is known for Ollama's models").hint("name it with `--dir DIR`")
        })?;
        let (name, shown) = (self.name.to_string(), directory.clone());
        let done = session
            .watched(move |session, progress| {
                let options =
                    export::Options { name: self.name, directory, link: self.link, threads: session.settings.threads };
                export::to_ollama(&session.open_store()?, &options, progress)
            })
            .await?;
        let Exported { digest, model, blobs, bytes, present, links } = done;
        if session.printer.is_json() {
            session.printer.object(&json!({
                "event": "exported",
                "name": name,
                "model": model.to_string(),
                "directory": shown,
                "digest": digest,
                "blobs": blobs,
                "bytes": bytes,
                "present": present,
                "links": links_value(&links),
            }));
            return Ok(Exit::Done);
        }
        let mut parts = links_told(&links);
        if present > 0 {
            parts.push(format!("{present} already there"));
        }
        session.printer.data(format_args!(
            "exported {name} to ollama as {model} {digest} ({}, {}: {})",
            count(blobs, "blob"),
            size(bytes),
            parts.join(", ")
        ));
        Ok(Exit::Done)
    }
}
