//! `kiln verify`: what was checked, what was found, and what was not checked. The verdict is the exit code.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::exit::Exit;
use super::output::{count, one_line};
use super::transport::Traffic;
use super::trust::{Asking, Trusting};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::layer_name;
use crate::oci::Reference;
use crate::ops::distant;
use crate::ops::repair::{self, Repair};
use crate::ops::transfer::Access;
use crate::ops::verify::{self, Compared, Finding, Groups, Level, Member, Number, Outcome, Portion, Sample, Sound};
use crate::ops::verify::{Verified, longest_unread};

const EXAMPLES: &str = "\
Examples:
  kiln verify llama:int4
  kiln verify llama:int4 --level digests
  kiln verify llama:int4 --source ./Llama-3.1-8B
  kiln verify llama:int4 --level rebuild --json
  kiln verify llama:int4 --repair
  kiln verify registry.example/team/llama:int4
  kiln verify --all --max-duration 600
  kiln verify registry.example/team/llama:int4 --key release.pub.pem

Exit codes:
  0  everything asked for was checked and holds
  3  corrupt
  4  not reproduced
  5  could not check
  10 not trusted";

/// Verify a model of the store, or of a registry
///
/// Each level implies those before it. A rebuild creates the model again from its source and compares
/// every byte; a difference is explained by tensor, part and likely cause. A model that the store does not have is
/// read where it is, at the registry of its name, and not kept.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Verify {
    /// The model's name in the store, or its reference at a registry
    #[arg(required_unless_present = "all")]
    name: Option<Reference>,
    /// Every model of the store
    #[arg(long, conflicts_with_all = ["name", "source", "draft"])]
    all: bool,
    /// The model at the registry, whatever the store has
    #[arg(long, conflicts_with_all = ["all", "repair", "max_duration"])]
    remote: bool,
    /// Bring what is damaged again: from a registry that had it, or from the source
    #[arg(long)]
    repair: bool,
    /// A store that may have it, asked first for a repair
    #[arg(long, value_name = "STORE", requires = "repair", value_hint = clap::ValueHint::DirPath)]
    from: Option<PathBuf>,
    /// How far to go [default: tensors; rebuild with --source or --draft; digests for a part]
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    /// Read only a part of the blobs: the Nth of T that together are all
    #[arg(long, value_name = "N/T")]
    sample: Option<Sample>,
    /// Read for so many seconds, and next time go on from there
    #[arg(long, value_name = "SECONDS")]
    max_duration: Option<NonZeroU32>,
    /// What to rebuild it from, as in `kiln create` [default: what it was created from]
    #[arg(long, value_name = "SOURCE", value_hint = clap::ValueHint::DirPath)]
    source: Option<PathBuf>,
    /// The draft's checkpoint to rebuild from [default: where it was created from]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    draft: Option<PathBuf>,
    #[command(flatten)]
    trust: Trusting,
    #[command(flatten)]
    traffic: Traffic,
}

impl Verify {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let until = self.max_duration.map(|seconds| Instant::now() + Duration::from_secs(seconds.get().into()));
        let portion = Portion { sample: self.sample, until };
        let (level, access) = (self.level(&portion)?, self.traffic.clone().access(session));
        let asking = self.trust.begin(session, self.level == Some(Level::Trust)).await?;
        let names = match &self.name {
            Some(name) => vec![name.clone()],
            None => session.blocking(|session| longest_unread(&session.open_store()?)).await?,
        };
        let (sound, mut worst, mut verified) = (Sound::default(), Outcome::Ok, 0);
        for name in &names {
            if verified > 0 && portion.is_over() {
                worst = worst.max(Outcome::CouldNotCheck);
                break;
            }
            let options = verify::Options {
                name: name.clone(),
                level,
                portion,
                sound: sound.clone(),
                source: self.source.clone(),
                draft: self.draft.clone(),
                places: session.blocking(Session::places).await?,
                threads: session.settings.threads,
            };
            worst = worst.max(self.one(session, options, &asking, &access).await?);
            verified += 1;
        }
        if self.all {
            conclude(session, verified, names.len(), worst);
        }
        // Damage was found, whatever became of it.
        Ok(worst.into())
    }

    /// Verifies one model, and repairs it.
    async fn one(
        &self,
        session: &Session,
        options: verify::Options,
        asking: &Asking,
        access: &Access,
    ) -> Result<Outcome> {
        let (name, repair) = (options.name.clone(), self.mend(&options));
        let mut verified = if self.is_elsewhere(session, &options).await? {
            let reporter = session.reporter();
            distant::verify(options, access, &reporter.progress()).await?
        } else {
            session.watched(move |session, progress| verify::verify(&session.open_store()?, &options, progress)).await?
        };
        let trust = asking.ask(&name, &mut verified, access).await?;
        if session.printer.is_json() {
            session.printer.object(&trust.object(object(&name, &verified)));
        } else {
            session.printer.data(drawn(&name, &verified, &trust.lines()));
        }
        asking.attest(session, &name, &verified, access).await?;
        if let Some(options) = repair.filter(|_| verified.outcome() == Outcome::Corrupt) {
            let store = session.blocking(Session::open_store).await?;
            let reporter = session.reporter();
            let repair = repair::repair(&store, options, access, &reporter.progress()).await?;
            drop(reporter);
            if session.printer.is_json() {
                session.printer.object(&repaired(&name, &repair));
            } else {
                session.printer.data(mended(&repair));
            }
        }
        Ok(verified.outcome())
    }

    fn level(&self, portion: &Portion) -> Result<Level> {
        let attests = self.trust.attests();
        let named = [("--source", self.source.is_some()), ("--draft", self.draft.is_some()), ("--attest", attests)];
        let source = named.into_iter().find(|(_, is_named)| *is_named).map(|(option, _)| option);
        let part = (!portion.is_whole()).then_some("--sample` and `--max-duration");
        let implied = match (source, part) {
            (_, Some(_)) => Level::Digests,
            (Some(_), None) => Level::Rebuild,
            (None, None) => Level::Tensors,
        };
        // Trust asks for no more than there is without it.
        let level = self.level.filter(|level| *level != Level::Trust).unwrap_or(implied);
        let is_wrong = |what: &str, whose: &str| {
            let message = format!("`{what}` {whose}, and the level is `{}`", level.name());
            Err(Error::new(ErrorKind::Usage, message).hint("leave `--level` out"))
        };
        match (source, part) {
            (Some(option), _) if level != Level::Rebuild => is_wrong(option, "is for a rebuild"),
            (_, Some(options)) if level != Level::Digests => is_wrong(options, "are for the level `digests`"),
            _ => Ok(level),
        }
    }

    fn mend(&self, options: &verify::Options) -> Option<repair::Options> {
        let verify::Options { name, source, draft, places, threads, .. } = options.clone();
        self.repair.then(|| repair::Options { name, from: self.from.clone(), source, draft, places, threads })
    }

    /// Whether the model is at a registry and not in the store.
    async fn is_elsewhere(&self, session: &Session, options: &verify::Options) -> Result<bool> {
        let (name, store) = (options.name.clone(), options.places.store.clone());
        if self.remote {
            return name.require_host().map(|_| true);
        }
        let is_here = move |_: &Session| Ok(store.map(|store| store.find(&name)).transpose()?.flatten().is_some());
        if options.name.host().is_none() || session.blocking(is_here).await? {
            return Ok(false);
        }
        let of_the_store = [("--repair", self.repair), ("--max-duration", self.max_duration.is_some())];
        match of_the_store.into_iter().find(|(_, is_given)| *is_given) {
            None => Ok(true),
            Some((option, _)) => {
                let name = &options.name;
                let message = format!("`{option}` is for a model of the store, which does not have `{name}`");
                Err(Error::new(ErrorKind::Usage, message).hint(format!("`kiln pull {name}` brings it")))
            }
        }
    }
}

/// Says how the verification of every model ended.
fn conclude(session: &Session, verified: usize, models: usize, worst: Outcome) {
    if session.printer.is_json() {
        let result = worst.name();
        session
            .printer
            .object(&json!({ "event": "verified-all", "models": models, "verified": verified, "result": result }));
    } else {
        let what = if verified < models { ", and there was no time for the others" } else { "" };
        session.printer.data(format!(
            "\nverified: {verified} of {}{what}\nresult: {}",
            count(models as u64, "model"),
            worst.name()
        ));
    }
}

fn repaired(name: &Reference, repair: &Repair) -> Value {
    json!({
        "event": "repaired",
        "name": name.to_string(),
        "mended": repair.mended.iter().map(|(blob, from)| {
            json!({ "layer": layer_name(blob), "digest": blob.digest, "from": from })
        }).collect::<Vec<_>>(),
        "aside": repair.aside,
        "left": repair.left.iter().map(|blob| json!({ "layer": layer_name(blob), "digest": blob.digest })).collect::<Vec<_>>(),
        "failed": repair.failed.iter().map(|(from, error)| json!({ "from": from, "error": error.chain() })).collect::<Vec<_>>(),
    })
}

fn mended(repair: &Repair) -> String {
    let Repair { mended, left, aside, failed } = repair;
    if mended.is_empty() && left.is_empty() {
        return "not repaired: every blob has the bytes its digest promises".to_owned();
    }
    let mended = mended.iter().map(|(blob, from)| format!("repaired: {} from {from}", one_line(&layer_name(blob))));
    let failed = failed.iter().map(|(from, error)| format!("no help: {from}: {}", one_line(&error.chain())));
    let left = left.iter().map(|blob| format!("still damaged: {}", one_line(&layer_name(blob))));
    let aside = aside.iter().map(|path| format!("moved aside: {}", one_line(&path.display().to_string())));
    mended.chain(failed).chain(left).chain(aside).collect::<Vec<_>>().join("\n")
}

fn object(name: &Reference, verified: &Verified) -> Value {
    json!({
        "event": "verified",
        "name": name.to_string(),
        "result": verified.outcome().name(),
        "digest": verified.digest,
        "level": verified.level.name(),
        "blobs": verified.blobs,
        "blobsLeftOut": verified.left_out,
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
        Level::Trust => "somebody who is trusted stands for it",
    }
}

fn drawn(name: &Reference, verified: &Verified, trust: &[String]) -> String {
    let mut lines = vec![format!("{name} {}", verified.digest)];
    let checked = Level::ALL.iter().filter(|level| !verified.not_checked.contains(level)).map(|level| level.name());
    let checked: Vec<&str> = checked.collect();
    let read =
        if verified.left_out > 0 { format!("{} of ", verified.blobs - verified.left_out) } else { String::new() };
    lines.push(format!("checked: {} ({read}{})", checked.join(", "), count(verified.blobs, "blob")));
    lines.extend(verified.findings.iter().flat_map(finding_lines));
    if verified.left_out > 0 {
        lines.push(format!("not checked: {} of other samples", count(verified.left_out, "blob")));
    }
    lines.extend_from_slice(trust);
    for level in &verified.not_checked {
        lines.push(format!("not checked: {} ({})", level.name(), promise(*level)));
    }
    lines.push(format!("result: {}", verified.outcome().name()));
    lines.join("\n")
}
