//! `kiln verify`: what was checked, what was found, and what was not checked. The verdict is the exit code.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::exit::Exit;
use super::output::{count, one_line};
use super::transport::Traffic;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::layer_name;
use crate::oci::Reference;
use crate::ops::repair::{self, Repair, repair};
use crate::ops::verify::{self, Compared, Finding, Groups, Level, Member, Number, Outcome, Verified};

const EXAMPLES: &str = "\
Examples:
  kiln verify llama:int4
  kiln verify llama:int4 --level digests
  kiln verify llama:int4 --source ./Llama-3.1-8B
  kiln verify llama:int4 --level rebuild --json
  kiln verify llama:int4 --repair

Exit codes:
  0  everything asked for was checked and holds
  3  corrupt
  4  not reproduced
  5  could not check";

/// Verify a stored model
///
/// Each level implies those before it. A rebuild creates the model again from its source and compares
/// every byte; a difference is explained by tensor, part and likely cause.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    /// The model's name in the store
    name: Reference,
    /// Bring what is damaged again: from a registry that had it, or from the source
    #[arg(long)]
    repair: bool,
    /// A store that may have it, asked first for a repair
    #[arg(long, value_name = "STORE", requires = "repair", value_hint = clap::ValueHint::DirPath)]
    from: Option<PathBuf>,
    /// How far to go [default: tensors, or rebuild with --source or --draft]
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    /// What to rebuild it from, as in `kiln create` [default: what it was created from]
    #[arg(long, value_name = "SOURCE", value_hint = clap::ValueHint::DirPath)]
    source: Option<PathBuf>,
    /// The draft's checkpoint to rebuild from [default: where it was created from]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    draft: Option<PathBuf>,
    #[command(flatten)]
    traffic: Traffic,
}

impl Verify {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let named = [("--source", &self.source), ("--draft", &self.draft)];
        let named = named.into_iter().find(|(_, directory)| directory.is_some()).map(|(option, _)| option);
        let implied = if named.is_some() { Level::Rebuild } else { Level::Tensors };
        let level = self.level.unwrap_or(implied);
        if let Some(option) = named.filter(|_| level != Level::Rebuild) {
            let message = format!("`{option}` is for a rebuild, and the level is `{}`", level.name());
            return Err(Error::new(ErrorKind::Usage, message).hint("leave `--level` out"));
        }
        let (name, access) = (self.name.clone(), self.traffic.access(session));
        let mend = self.repair.then(|| {
            let (name, from, source, draft) =
                (self.name.clone(), self.from.clone(), self.source.clone(), self.draft.clone());
            move |session: &Session| {
                let (places, threads) = (session.places()?, session.settings.threads);
                Ok::<_, Error>((session.open_store()?, repair::Options { name, from, source, draft, places, threads }))
            }
        });
        let verified = session
            .watched(move |session, progress| {
                let options = verify::Options {
                    name: self.name,
                    level,
                    source: self.source,
                    draft: self.draft,
                    places: session.places()?,
                    threads: session.settings.threads,
                };
                verify::verify(&session.open_store()?, &options, progress)
            })
            .await?;
        if session.printer.is_json() {
            session.printer.object(&object(&name, &verified));
        } else {
            session.printer.data(drawn(&name, &verified));
        }
        if let Some(mend) = mend.filter(|_| verified.outcome() == Outcome::Corrupt) {
            let (store, options) = session.blocking(mend).await?;
            let reporter = session.reporter();
            let repair = repair(&store, options, &access, &reporter.progress()).await?;
            drop(reporter);
            if session.printer.is_json() {
                session.printer.object(&repaired(&name, &repair));
            } else {
                session.printer.data(mended(&repair));
            }
        }
        // Damage was found, whatever became of it.
        Ok(verified.outcome().into())
    }
}

fn repaired(name: &Reference, repair: &Repair) -> Value {
    json!({
        "event": "repaired",
        "name": name.to_string(),
        "mended": repair.mended.iter().map(|(blob, from)| {
            json!({ "layer": layer_name(blob), "digest": blob.digest, "from": from })
        }).collect::<Vec<_>>(),
        "left": repair.left.iter().map(|blob| json!({ "layer": layer_name(blob), "digest": blob.digest })).collect::<Vec<_>>(),
        "failed": repair.failed.iter().map(|(from, error)| json!({ "from": from, "error": error.chain() })).collect::<Vec<_>>(),
    })
}

fn mended(repair: &Repair) -> String {
    let Repair { mended, left, failed } = repair;
    if mended.is_empty() && left.is_empty() {
        return "not repaired: every blob has the bytes its digest promises".to_owned();
    }
    let mended = mended.iter().map(|(blob, from)| format!("repaired: {} from {from}", one_line(&layer_name(blob))));
    let failed = failed.iter().map(|(from, error)| format!("no help: {from}: {}", one_line(&error.chain())));
    let left = left.iter().map(|blob| format!("still damaged: {}", one_line(&layer_name(blob))));
    mended.chain(failed).chain(left).collect::<Vec<_>>().join("\n")
}

fn object(name: &Reference, verified: &Verified) -> Value {
    json!({
        "event": "verified",
        "name": name.to_string(),
        "result": verified.outcome().name(),
        "digest": verified.digest,
        "level": verified.level.name(),
        "findings": verified.findings.iter().map(finding).collect::<Vec<_>>(),
        "notChecked": verified.not_checked.iter().map(|level| level.name()).collect::<Vec<_>>(),
    })
}

/// A finding, as `--json` has it.
pub(super) fn finding(finding: &Finding) -> Value {
    json!({
        "result": finding.outcome.name(),
        "message": finding.message,
        "layer": finding.layer,
        "tensor": finding.tensor,
        "part": finding.part,
        "bytes": finding.bytes,
        "cause": finding.cause,
        "arrays": finding.arrays.iter().map(array).collect::<Vec<_>>(),
        "members": finding.members.iter().map(member).collect::<Vec<_>>(),
    })
}

fn array(array: &Compared) -> Value {
    let number = |number: &Number| json!({ "bits": bits(number), "value": number.value });
    let places = array.places.iter().map(|place| {
        json!({
            "index": place.index,
            "ours": number(&place.ours),
            "theirs": number(&place.theirs),
            "ulp": place.ulp,
        })
    });
    let groups = |groups: &Groups| json!({ "of": groups.of, "differing": groups.differing, "first": groups.first });
    json!({
        "part": array.part,
        "dtype": array.dtype,
        "shape": array.shape,
        "of": array.of,
        "bytes": array.bytes,
        "first": array.first,
        "offset": array.offset,
        "groups": array.groups.as_ref().map(groups),
        "maxDelta": array.max_delta,
        "maxUlp": array.max_ulp,
        "places": places.collect::<Vec<_>>(),
    })
}

fn member(member: &Member) -> Value {
    json!({ "path": member.path, "ours": member.ours, "theirs": member.theirs })
}

fn bits(number: &Number) -> String {
    format!("{:#04x}", number.bits)
}

/// A finding, for a person: what it is, and a line for each thing that is known besides.
pub(super) fn finding_lines(finding: &Finding) -> impl Iterator<Item = String> {
    std::iter::once(format!("{}: {}", finding.outcome.name(), one_line(&finding.message))).chain(details(finding))
}

/// What is known of a finding besides its sentence.
pub(super) fn details(finding: &Finding) -> impl Iterator<Item = String> {
    let detail =
        |label: &str, value: &Option<String>| value.as_ref().map(|value| format!("  {label}: {}", one_line(value)));
    let place = [detail("layer", &finding.layer), detail("tensor", &finding.tensor)].into_iter().flatten();
    let arrays = finding.arrays.iter().flat_map(array_lines);
    let members = finding.members.iter().map(|member| {
        let value = |value: &Option<String>| value.as_deref().map_or_else(|| "nothing".to_owned(), one_line);
        format!("  {}: {} and {}", one_line(&member.path), value(&member.ours), value(&member.theirs))
    });
    place.chain(arrays).chain(members).chain(detail("cause", &finding.cause))
}

/// Where an array differs, and by how much.
fn array_lines(array: &Compared) -> Vec<String> {
    let mut facts = vec![format!("byte {} of the layer is the first", array.offset)];
    if let Some(groups) = &array.groups {
        let Groups { of, differing, first } = groups;
        facts.push(format!("{differing} of {} differ, the first {first:?}", count(*of, "group")));
    }
    if let Some(delta) = array.max_delta {
        facts.push(format!("at most {delta} apart"));
    }
    if let Some(ulp) = array.max_ulp {
        facts.push(format!("{ulp} ulp"));
    }
    let value = |number: &Number| match number.value {
        Some(value) => format!("{value} ({})", bits(number)),
        None => bits(number),
    };
    let places = array.places.iter().map(|place| {
        let ulp = place.ulp.map(|ulp| format!(", {ulp} ulp")).unwrap_or_default();
        format!("    {:?}: {} and {}{ulp}", place.index, value(&place.ours), value(&place.theirs))
    });
    std::iter::once(format!("  {}: {}", array.part, facts.join("; "))).chain(places).collect()
}

/// What a level promises when it holds.
fn promise(level: Level) -> &'static str {
    match level {
        Level::Structure => "every blob is there with its size",
        Level::Digests => "every blob has the bytes its digest promises",
        Level::Tensors => "every tensor is in the form that lock and config say",
        Level::Rebuild => "creating it again from its source gives the same bytes",
    }
}

fn drawn(name: &Reference, verified: &Verified) -> String {
    let mut lines = vec![format!("{name} {}", verified.digest)];
    let checked = Level::ALL.iter().filter(|level| !verified.not_checked.contains(level)).map(|level| level.name());
    let checked: Vec<&str> = checked.collect();
    lines.push(format!("checked: {} ({})", checked.join(", "), count(verified.blobs, "blob")));
    lines.extend(verified.findings.iter().flat_map(finding_lines));
    for level in &verified.not_checked {
        lines.push(format!("not checked: {} ({})", level.name(), promise(*level)));
    }
    lines.push(format!("result: {}", verified.outcome().name()));
    lines.join("\n")
}
