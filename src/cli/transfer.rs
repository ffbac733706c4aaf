//! `kiln push`, `kiln pull` and `kiln copy`.

use clap::Args;
use serde_json::json;

use super::Session;
use super::exit::Exit;
use super::output::{size, table};
use super::transport::Traffic;
use crate::copy::{CopyPlan, CopyReport, Direction, PlannedBlob};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::Reference;
use crate::ops::{dry_run, transfer};
use crate::store::Store;

const PUSH_EXAMPLES: &str = "\
Examples:
  kiln push llama:int4 registry.example/team/llama:int4
  kiln push registry.example/team/llama:int4 --dry-run
  kiln push llama:int4 127.0.0.1:5000/llama:int4 --plain-http --concurrency 8";

const PULL_EXAMPLES: &str = "\
Examples:
  kiln pull registry.example/team/llama:int4
  kiln pull registry.example/team/llama:int4 llama:int4
  kiln pull registry.example/team/llama:int4 --dry-run
  kiln pull registry.example/team/llama:int4 --ca ./registry.pem --json";

const COPY_EXAMPLES: &str = "\
Examples:
  kiln copy registry.example/team/llama:int4 mirror.example/llama:int4
  kiln copy registry.example/team/llama:next registry.example/team/llama:int4";

/// Push a model to a registry
///
/// Sends the layers that the registry does not have, then the manifest, which keeps its digest. Without
/// REFERENCE the model goes where its name says. Credentials are those of docker's `config.json`.
#[derive(Debug, Args)]
#[command(after_help = PUSH_EXAMPLES)]
pub(super) struct Push {
    /// The model's name in the store
    name: Reference,
    /// Where it goes, as in `registry.example/team/llama:int4` [default: NAME]
    reference: Option<Reference>,
    /// Print what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    traffic: Traffic,
}

impl Push {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let name = self.name;
        let reference = self.reference.unwrap_or_else(|| name.clone());
        if reference.host().is_none() {
            return Err(Error::new(ErrorKind::Usage, format!("No registry is named in `{reference}`"))
                .hint(format!("kiln push {name} registry.example/{}", in_a_registry(&reference))));
        }
        let access = self.traffic.access(session);
        let store = session.blocking(Session::open_store).await?;
        if self.dry_run {
            let planned = dry_run::push(&store, &name, &reference, &access).await?;
            tell_plan(session, Direction::Push, [("name", &name), ("reference", &reference)], &planned);
            return Ok(Exit::Done);
        }
        let reporter = session.reporter();
        let report = transfer::push(&store, &name, &reference, &access, &reporter.progress()).await?;
        drop(reporter);
        tell_sent(session, "pushed", [("name", &name), ("reference", &reference)], &report);
        Ok(Exit::Done)
    }
}

/// Says what was sent from one of `ends` to the other, which are fields of the result.
fn tell_sent(session: &Session, event: &str, ends: [(&str, &Reference); 2], report: &CopyReport) {
    let CopyReport { digest, blobs_transferred, bytes_transferred, blobs_skipped, blobs_mounted } = report;
    let [(from_field, from), (to_field, to)] = ends;
    if session.printer.is_json() {
        session.printer.object(&json!({
            "event": event,
            from_field: from.to_string(),
            to_field: to.to_string(),
            "digest": digest,
            "blobs_sent": blobs_transferred,
            "bytes_sent": bytes_transferred,
            "blobs_skipped": blobs_skipped,
            "blobs_mounted": blobs_mounted,
        }));
        return;
    }
    let blobs = blobs_transferred + blobs_skipped + blobs_mounted;
    let moved = if from == to { from.to_string() } else { format!("{from} to {to}") };
    let mounted = match blobs_mounted {
        0 => String::new(),
        mounted => format!(", {mounted} mounted"),
    };
    session.printer.data(format_args!(
        "{event} {moved} {digest} (sent {blobs_transferred} of {blobs} layers and config, {}; \
         {blobs_skipped} already there{mounted})",
        size(*bytes_transferred),
    ));
}

/// Says what a copy in `direction` would do, blob by blob.
fn tell_plan(session: &Session, direction: Direction, ends: [(&str, &Reference); 2], planned: &CopyPlan) {
    let report = planned.report();
    let CopyReport { digest, blobs_transferred, bytes_transferred, blobs_skipped, blobs_mounted } = report;
    let [(from_field, from), (to_field, to)] = ends;
    let name = |blob: &PlannedBlob| blob.descriptor.layer_name().unwrap_or("-").to_owned();
    let (task, verb) = match direction {
        Direction::Push => ("push", "send"),
        Direction::Pull => ("pull", "fetch"),
        Direction::Mirror => ("copy", "send"),
    };
    if session.printer.is_json() {
        let blob = |blob: &PlannedBlob| {
            json!({
                "name": blob.descriptor.layer_name(),
                "digest": blob.descriptor.digest,
                "size": blob.descriptor.size,
                "outcome": blob.outcome(direction),
            })
        };
        session.printer.object(&json!({
            "event": "planned",
            "task": task,
            from_field: from.to_string(),
            to_field: to.to_string(),
            "digest": digest,
            "replaces": planned.replaces,
            "blobs_transferred": blobs_transferred,
            "bytes_transferred": bytes_transferred,
            "blobs_skipped": blobs_skipped,
            "blobs_mounted": blobs_mounted,
            "blobs": planned.blobs.iter().map(blob).collect::<Vec<_>>(),
        }));
        return;
    }
    let header = ["OUTCOME", "BYTES", "LAYER"].map(str::to_owned).to_vec();
    let rows = planned
        .blobs
        .iter()
        .map(|blob| vec![blob.outcome(direction).to_owned(), blob.descriptor.size.to_string(), name(blob)]);
    session.printer.data(table(&std::iter::once(header).chain(rows).collect::<Vec<_>>()));
    let moved = if from == to { from.to_string() } else { format!("{from} to {to}") };
    let replaced = match planned.replaces {
        None => String::new(),
        Some(replaced) if replaced == digest => "; it has that name already".to_owned(),
        Some(replaced) => format!("; {to} is {replaced} now"),
    };
    session.printer.data(format_args!(
        "\nwould {task} {moved} {digest} ({verb} {blobs_transferred} of {} layers and config, {}; \
         {blobs_skipped} present, {blobs_mounted} mounted){replaced}",
        planned.blobs.len(),
        size(bytes_transferred),
    ));
}

/// Copy a model from one registry to another
///
/// Its layers stream through, checked on the way, and nothing is kept in the store. What TO has is not sent
/// again, and the manifest keeps its digest.
#[derive(Debug, Args)]
#[command(after_help = COPY_EXAMPLES)]
pub(super) struct Copy {
    /// Where it is, as in `registry.example/team/llama:int4`
    from: Reference,
    /// Where it goes
    to: Reference,
    /// Print what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    traffic: Traffic,
}

impl Copy {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let Self { from, to, dry_run, traffic } = self;
        let access = traffic.access(session);
        if dry_run {
            let planned = dry_run::mirror(&from, &to, &access).await?;
            tell_plan(session, Direction::Mirror, [("from", &from), ("to", &to)], &planned);
            return Ok(Exit::Done);
        }
        let reporter = session.reporter();
        let report = transfer::mirror(&from, &to, &access, &reporter.progress()).await?;
        drop(reporter);
        tell_sent(session, "copied", [("from", &from), ("to", &to)], &report);
        Ok(Exit::Done)
    }
}

/// Pull a model from a registry
///
/// Fetches the layers that the store does not have, and checks every byte against its digest before
/// anything gets its name. Without NAME the model keeps its full reference.
#[derive(Debug, Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(super) struct Pull {
    /// Where it is, as in `registry.example/team/llama:int4`
    reference: Reference,
    /// The model's name in the store [default: REFERENCE]
    name: Option<Reference>,
    /// Print what would be fetched, and fetch nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    traffic: Traffic,
}

impl Pull {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let reference = self.reference;
        if reference.host().is_none() {
            return Err(Error::new(ErrorKind::Usage, format!("No registry is named in `{reference}`"))
                .hint(format!("kiln pull registry.example/{}", in_a_registry(&reference))));
        }
        let name = name_for(&reference, self.name)?;
        let access = self.traffic.access(session);
        if self.dry_run {
            let store = session.blocking(|session| Store::open_existing(&session.settings.store()?)).await?;
            let planned = dry_run::pull(store.as_ref(), &reference, &name, &access).await?;
            tell_plan(session, Direction::Pull, [("reference", &reference), ("name", &name)], &planned);
            return Ok(Exit::Done);
        }
        let store = session.blocking(Session::open_store).await?;
        let reporter = session.reporter();
        let report = transfer::pull(&store, &reference, &name, &access, &reporter.progress()).await?;
        drop(reporter);
        let CopyReport { digest, blobs_transferred, bytes_transferred, blobs_skipped, blobs_mounted } = report;
        if session.printer.is_json() {
            session.printer.object(&json!({
                "event": "pulled",
                "name": name.to_string(),
                "reference": reference.to_string(),
                "digest": digest,
                "blobs_fetched": blobs_transferred,
                "bytes_fetched": bytes_transferred,
                "blobs_skipped": blobs_skipped,
                "blobs_mounted": blobs_mounted,
            }));
        } else {
            let blobs = blobs_transferred + blobs_skipped + blobs_mounted;
            let moved = if name == reference { name.to_string() } else { format!("{reference} as {name}") };
            session.printer.data(format_args!(
                "pulled {moved} {digest} (fetched {blobs_transferred} of {blobs} layers and config, {}; \
                 {blobs_skipped} already here)",
                size(bytes_transferred),
            ));
        }
        Ok(Exit::Done)
    }
}

/// The name under which what is pulled from `reference` is kept.
pub(super) fn name_for(reference: &Reference, given: Option<Reference>) -> Result<Reference> {
    given.or_else(|| reference.tag().map(|_| reference.clone())).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("No name is given for `{reference}`"))
            .hint(format!("kiln pull {reference} {}:latest", reference.path()))
    })
}

/// The part of a reference that comes after a host.
fn in_a_registry(reference: &Reference) -> String {
    match reference.tag() {
        Some(tag) => format!("{}:{tag}", reference.path()),
        None => reference.to_string(),
    }
}
