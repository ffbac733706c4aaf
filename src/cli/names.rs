//! `kiln tag`, `kiln rm` and `kiln gc`: naming, forgetting, and taking the space back.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::Session;
use super::exit::Exit;
use super::output::{count, size};
use super::transport::Transport;
use crate::error::Result;
use crate::oci::{Digest, Reference};
use crate::ops::{remote, remove};

const TAG_EXAMPLES: &str = "\
Examples:
  kiln tag llama:int4 llama:latest
  kiln tag llama:int4 registry.example/team/llama:int4";

const RM_EXAMPLES: &str = "\
Examples:
  kiln rm llama:int4
  kiln rm llama:int4 llama:int8
  kiln rm --remote registry.example/team/llama:int4";

const GC_EXAMPLES: &str = "\
Examples:
  kiln gc --dry-run
  kiln gc
  kiln gc --wait 3600";

/// Give a model another name
#[derive(Debug, Args)]
#[command(after_help = TAG_EXAMPLES)]
pub(super) struct Tag {
    /// The model's name in the store
    name: Reference,
    /// The name it gets besides; what had this name before loses it
    new_name: Reference,
}

impl Tag {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Self { name, new_name } = self;
        let (old, new) = (name.to_string(), new_name.to_string());
        let digest = session.blocking(move |session| remove::tag(&session.open_store()?, &name, &new_name)).await?;
        if session.printer.is_json() {
            session.printer.object(&json!({"event": "tagged", "name": old, "newName": new, "digest": digest}));
        } else {
            session.printer.data(format_args!("tagged {old} as {new} {digest}"));
        }
        Ok(Exit::Done)
    }
}

/// Remove names, in the store or in a registry
///
/// The blobs stay until `kiln gc`, so that a name can be given back with `kiln create` or `kiln pull`
/// without writing them again. In a registry a tag goes alone; a name with a digest and no tag is the manifest, with
/// every tag that points at it.
#[derive(Debug, Args)]
#[command(after_help = RM_EXAMPLES)]
pub(super) struct Rm {
    /// The models' names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<Reference>,
    /// Remove them from their registries, and not from the store
    #[arg(long)]
    remote: bool,
    #[command(flatten)]
    transport: Transport,
}

impl Rm {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let removed = if self.remote {
            let access = self.transport.access(session);
            let mut removed = Vec::new();
            for name in self.names {
                removed.push((remote::delete(&name, &access).await, name));
            }
            removed
        } else {
            let names = self.names;
            session
                .blocking(move |session| {
                    let store = session.open_store()?;
                    let removed = |name| (remove::remove(&store, &name).map(Some), name);
                    Ok(names.into_iter().map(removed).collect())
                })
                .await?
        };
        Ok(tell_removed(session, removed))
    }
}

/// Says what was removed, and what was not: one name is no reason to keep the others, and the first failure decides.
fn tell_removed(session: &Session, removed: Vec<(Result<Option<Digest>>, Reference)>) -> Exit {
    let printer = &session.printer;
    let mut exit = Exit::Done;
    for (outcome, name) in removed {
        match outcome {
            Ok(digest) if printer.is_json() => {
                printer.object(&json!({"event": "removed", "name": name.to_string(), "digest": digest}));
            }
            Ok(Some(digest)) if name.digest() != Some(&digest) => {
                printer.data(format_args!("removed {name} {digest}"));
            }
            Ok(_) => printer.data(format_args!("removed {name}")),
            Err(error) => {
                printer.error(&error);
                exit = if exit == Exit::Done { error.kind().into() } else { exit };
            }
        }
    }
    exit
}

/// Remove the blobs that no model needs
///
/// Waits for other kilns to finish, and removes nothing when a manifest cannot be read.
#[derive(Debug, Args)]
#[command(after_help = GC_EXAMPLES)]
pub(super) struct Gc {
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove what repairs moved aside, too
    #[arg(long)]
    quarantine: bool,
    /// How long to wait for other kilns that use the store
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u32,
}

impl Gc {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Self { dry_run, quarantine, wait } = self;
        let collect = move |session: &Session| {
            remove::gc(&session.settings.store()?, dry_run, quarantine, Duration::from_secs(wait.into()))
        };
        let (report, aside) = session.blocking(collect).await?;
        let bytes = report.bytes.saturating_add(aside.bytes);
        let printer = &session.printer;
        let blobs = report.blobs.len() as u64;
        if printer.is_json() {
            printer.object(&json!({
                "event": "collected",
                "dryRun": dry_run,
                "blobs": blobs,
                "bytes": bytes,
                "kept": report.kept,
                "unfinished": report.unfinished,
                "resumable": report.resumable,
                "notes": report.notes,
                "quarantined": aside.files,
            }));
            return Ok(Exit::Done);
        }
        if dry_run || session.settings.verbose {
            report.blobs.iter().for_each(|(digest, bytes)| printer.data(format_args!("{digest} {bytes}")));
        }
        let unfinished = match report.unfinished {
            0 => String::new(),
            files => format!(" and {}", count(files, "unfinished file")),
        };
        let aside = match aside.files {
            0 => String::new(),
            files => format!(" and {} in quarantine", count(files, "file")),
        };
        let resumable = match report.resumable {
            0 => String::new(),
            pulls => format!(", and {} to go on with", count(pulls, "unfinished pull")),
        };
        printer.data(format_args!(
            "{} {}{unfinished}{aside}, {}; {} kept{resumable}",
            if dry_run { "would remove" } else { "removed" },
            count(blobs, "blob"),
            size(bytes),
            report.kept,
        ));
        Ok(Exit::Done)
    }
}
