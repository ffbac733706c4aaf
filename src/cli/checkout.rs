//! `kiln checkout`: a model becomes a directory.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::exit::Exit;
use super::output::{count, size};
use crate::error::Result;
use crate::oci::Reference;
use crate::ops::checkout::{self, CheckedOut};
use crate::store::Link;

const EXAMPLES: &str = "\
Examples:
  kiln checkout llama:int4 ./llama
  kiln checkout llama:int4 ./llama --link copy";

/// Lay a model out as a directory
///
/// Every layer becomes the file that it is named for, and DIR is there with all of them or not at all. Files are
/// reflinks where the file system has those. Elsewhere weights are hard links, which are read-only because they are
/// the store's own files, and the others are copies.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Checkout {
    /// The model's name in the store
    name: Reference,
    /// The directory: empty, or not there
    #[arg(value_hint = clap::ValueHint::DirPath)]
    dir: PathBuf,
    /// How all files share their bytes with the store [default: the cheapest way that is safe]
    #[arg(long, value_name = "HOW")]
    link: Option<Link>,
}

impl Checkout {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let (name, directory) = (self.name.to_string(), self.dir.clone());
        let done = session
            .watched(move |session, progress| {
                let options = checkout::Options {
                    name: self.name,
                    directory: self.dir,
                    link: self.link,
                    threads: session.settings.threads,
                };
                checkout::checkout(&session.open_store()?, &options, progress)
            })
            .await?;
        let CheckedOut { digest, files, bytes, links, index, unnamed } = done;
        let printer = &session.printer;
        if printer.is_json() {
            printer.object(&json!({
                "event": "checked-out",
                "name": name,
                "directory": directory,
                "digest": digest,
                "files": files,
                "bytes": bytes,
                "links": links_value(&links),
                "index": index,
                "unnamed": unnamed,
            }));
            return Ok(Exit::Done);
        }
        if unnamed > 0 {
            printer.note(format_args!("{} without a file name left out", count(unnamed, "layer")));
        }
        if links.contains_key(&Link::Hard) {
            printer.note("hard links are the store's own files: copy one before you change it");
        }
        let files = count(files, "file");
        printer.data(format_args!(
            "checked out {name} to {} {digest} ({files}, {}: {})",
            directory.display(),
            size(bytes),
            links_told(&links).join(", ")
        ));
        Ok(Exit::Done)
    }
}

/// How many files of each kind, for a program.
pub(super) fn links_value(links: &BTreeMap<Link, u64>) -> Value {
    Link::ALL.iter().map(|link| (link.name().to_owned(), json!(links.get(link).unwrap_or(&0)))).collect()
}

/// How many files of each kind there are, for a person.
pub(super) fn links_told(links: &BTreeMap<Link, u64>) -> Vec<String> {
    links.iter().map(|(link, number)| format!("{number} {}", link.outcome())).collect()
}
