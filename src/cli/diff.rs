//! `kiln diff`: what two models have in common, and how they differ.

mod page;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::exit::Exit;
use super::output::{count, one_line, size, table};
use super::transport::Traffic;
use super::verify::{details, finding};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::layer_name;
use crate::oci::{Descriptor, Reference};
use crate::ops::diff::{Change, Diffed, LayerChange, Model};
use crate::ops::distant::{self, Compared};
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  kiln diff llama:int4 llama:int8
  kiln diff llama:int4 llama:int4 --store-b /mnt/other/kiln
  kiln diff llama:int4 registry.example/team/llama:int4
  kiln diff llama:int4 llama:int8 --html layers.html
  kiln diff llama:int4 llama:int8 --json

Exit codes:
  0  both are the same
  4  they differ";

/// Compare two models
///
/// Says which layers they share, which were moved, which changed and which only one of them has, and explains
/// the difference: tensors that were renamed or put in another order by what they hold, others by the part, the
/// group and the values that differ, with a likely cause. What the store does not have is read at the registry of its
/// name, as far as it differs, and not kept.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Diff {
    /// A model's name in the store, or its reference at a registry
    a: Reference,
    /// Another model's
    b: Reference,
    /// The store that has B [default: the one that has A]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    store_b: Option<PathBuf>,
    /// A name with a host is meant at its registry, whatever the store has
    #[arg(long)]
    remote: bool,
    /// Write a page that shows the layers of both
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    html: Option<PathBuf>,
    #[command(flatten)]
    traffic: Traffic,
}

impl Diff {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let (names, html) = ([self.a.clone(), self.b.clone()], self.html.clone());
        let (access, threads) = (self.traffic.clone().access(session), session.settings.threads);
        let models = session.blocking(|session| self.models(session)).await?;
        let reporter = session.reporter();
        let diffed = distant::diff(models, &access, threads, &reporter.progress()).await?;
        drop(reporter);
        if let Some(path) = html {
            let page = page::page(&names, &diffed);
            fs::write(&path, page).map_err(|cause| Error::io(ErrorKind::Unexpected, "write the page", &path, cause))?;
        }
        if session.printer.is_json() {
            session.printer.object(&object(&names, &diffed));
        } else {
            session.printer.data(drawn(&names, &diffed, session.settings.verbose));
        }
        Ok(if diffed.is_same() { Exit::Done } else { Exit::NotReproduced })
    }

    fn models(self, session: &Session) -> Result<[Compared; 2]> {
        let store = session.places()?.store;
        let other = self.store_b.as_deref().map(open).transpose()?.or_else(|| store.clone());
        let model = |store: Option<Store>, name: Reference| {
            let is_distant = name.host().is_some() && (self.remote || !has(store.as_ref(), &name)?);
            Ok::<_, Error>(match store {
                Some(store) if !is_distant => Compared::Here(Model { store, name }),
                None if !is_distant => Compared::Here(Model { store: session.open_store()?, name }),
                _ => Compared::There(name),
            })
        };
        Ok([model(store, self.a)?, model(other, self.b)?])
    }
}

fn has(store: Option<&Store>, name: &Reference) -> Result<bool> {
    Ok(store.map(|store| store.find(name)).transpose()?.flatten().is_some())
}

/// A store that is there: none is made to be compared with.
fn open(root: &Path) -> Result<Store> {
    Store::open_existing(root)?
        .ok_or_else(|| Error::new(ErrorKind::Input, format!("There is no store at `{}`", root.display())))
}

fn result(diffed: &Diffed) -> &'static str {
    if diffed.is_same() { "same" } else { "different" }
}

fn object(names: &[Reference; 2], diffed: &Diffed) -> Value {
    let [a, b] = names;
    let [digest_a, digest_b] = diffed.digests;
    let layer = |layer: &Descriptor| json!({ "name": layer_name(layer), "digest": layer.digest, "size": layer.size });
    let layers = diffed.layers.iter().map(|change| {
        json!({
            "change": change.change.name(),
            "ours": change.ours.as_ref().map(layer),
            "theirs": change.theirs.as_ref().map(layer),
            "elsewhere": change.elsewhere,
        })
    });
    let findings = diffed.findings.iter().map(|found| {
        let mut found = finding(found);
        // That is about a model and its source.
        found.as_object_mut().map(|members| members.remove("result"));
        found
    });
    let total = |change| {
        let (layers, bytes) = diffed.total(change);
        (change.name().to_owned(), json!({ "layers": layers, "bytes": bytes }))
    };
    json!({
        "event": "diffed",
        "ours": { "name": a.to_string(), "digest": digest_a },
        "theirs": { "name": b.to_string(), "digest": digest_b },
        "result": result(diffed),
        "totals": Change::ALL.map(total).into_iter().collect::<serde_json::Map<_, _>>(),
        "layers": layers.collect::<Vec<_>>(),
        "findings": findings.collect::<Vec<_>>(),
    })
}

fn drawn(names: &[Reference; 2], diffed: &Diffed, verbose: bool) -> String {
    let mut lines: Vec<String> =
        names.iter().zip(diffed.digests).map(|(name, digest)| format!("{name} {digest}")).collect();
    let totals = Change::ALL.into_iter().filter_map(|change| {
        let (layers, bytes) = diffed.total(change);
        (layers > 0).then(|| format!("{} {} ({})", count(layers, "layer"), change.name(), size(bytes)))
    });
    lines.push(totals.collect::<Vec<_>>().join(", "));
    let rows = diffed.layers.iter().filter(|layer| verbose || layer.change != Change::Shared).filter_map(row);
    let mut rows: Vec<Vec<String>> = rows.collect();
    if !rows.is_empty() {
        rows.insert(0, ["CHANGE", "LAYER", "BYTES", "THERE"].map(str::to_owned).to_vec());
        lines.extend([String::new(), table(&rows), String::new()]);
    }
    for found in &diffed.findings {
        lines.push(one_line(&found.message));
        lines.extend(details(found));
    }
    lines.push(format!("result: {}", result(diffed)));
    lines.join("\n")
}

/// A layer, and what it is in the second model where that is something else.
fn row(change: &LayerChange) -> Option<Vec<String>> {
    let layer = change.layer()?;
    let there = match (&change.ours, &change.theirs, &change.elsewhere[..]) {
        (Some(_), Some(other), _) if change.change == Change::Moved => layer_name(other),
        (Some(_), Some(other), _) if other.size != layer.size => other.size.to_string(),
        (_, _, [one]) => one.clone(),
        (_, _, []) => String::new(),
        (_, _, many) => count(many.len() as u64, "layer"),
    };
    Some(vec![change.change.name().to_owned(), layer_name(layer), layer.size.to_string(), there])
}
