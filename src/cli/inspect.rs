//! `kiln list` and `kiln show`: what the store holds.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::exit::Exit;
use super::output::{count, size, table};
use crate::error::Result;
use crate::oci::{Digest, Reference};
use crate::ops::inspect::{self, Contents, Shown};

const LIST_EXAMPLES: &str = "\
Examples:
  kiln list
  kiln ls --json";

const SHOW_EXAMPLES: &str = "\
Examples:
  kiln show llama:int4
  kiln show llama:int4 --verbose
  kiln show llama:int4 --json";

/// How many hexadecimal digits stand for a digest in a table.
const SHORT: usize = 12;

/// List the models in the store
#[derive(Debug, Args)]
#[command(visible_alias = "ls", after_help = LIST_EXAMPLES)]
pub(super) struct List {}

impl List {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let models = session.blocking(|session| inspect::list(&session.open_store()?)).await?;
        let printer = &session.printer;
        if printer.is_json() {
            for model in &models {
                printer.object(&json!({
                    "name": model.name,
                    "digest": model.digest,
                    "layers": model.contents.map(|contents| contents.layers),
                    "bytes": model.contents.map(|contents| contents.bytes),
                    "state": model.contents.map_or("unreadable", |contents| state(contents.damaged)),
                    "damaged": model.contents.map(|contents| contents.damaged),
                }));
            }
            return Ok(Exit::Done);
        }
        let mut rows = vec![["NAME", "DIGEST", "LAYERS", "SIZE"].map(str::to_owned).to_vec()];
        for model in &models {
            let (layers, bytes) = match model.contents {
                Some(Contents { layers, bytes, damaged: 0 }) => (layers.to_string(), size(bytes)),
                Some(Contents { layers, bytes, .. }) => (format!("{layers} (degraded)"), size(bytes)),
                None => ("?".to_owned(), "?".to_owned()),
            };
            rows.push(vec![model.name.clone(), short(&model.digest), layers, bytes]);
        }
        printer.data(table(&rows));
        for model in models.iter().filter(|model| model.contents.is_none()) {
            let name = &model.name;
            printer.note(format_args!("the manifest of `{name}` cannot be read: `kiln verify {name}` says why"));
        }
        for model in &models {
            let damaged = model.contents.map_or(0, |contents| contents.damaged);
            if damaged > 0 {
                printer.note(degraded(&model.name, damaged));
            }
        }
        Ok(Exit::Done)
    }
}

/// Show a model's layers, and with --verbose its tensors
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub(super) struct Show {
    /// The model's name in the store
    name: Reference,
}

impl Show {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        let name = self.name.clone();
        let shown = session.blocking(move |session| inspect::show(&session.open_store()?, &self.name)).await?;
        if session.printer.is_json() {
            session.printer.object(&object(&name, &shown));
        } else {
            session.printer.data(drawn(&name, &shown, session.settings.verbose));
            if shown.damaged > 0 {
                session.printer.note(degraded(&name.to_string(), shown.damaged));
            }
        }
        Ok(Exit::Done)
    }
}

/// What can be told of a model without reading its layers.
fn state(damaged: u64) -> &'static str {
    if damaged == 0 { "present" } else { "degraded" }
}

fn degraded(name: &str, damaged: u64) -> String {
    let blobs = count(damaged, "blob");
    format!("`{name}` is degraded, {blobs} missing or of another size: `kiln verify {name} --repair` brings that again")
}

fn object(name: &Reference, shown: &Shown) -> Value {
    let layers = shown.layers.iter().map(|layer| {
        json!({
            "name": layer.name,
            "mediaType": layer.descriptor.media_type,
            "digest": layer.descriptor.digest,
            "size": layer.descriptor.size,
        })
    });
    let tensors = shown.tensors.iter().map(|tensor| {
        json!({
            "name": tensor.name,
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "scheme": tensor.scheme,
            "layer": tensor.layer,
        })
    });
    json!({
        "name": name.to_string(),
        "digest": shown.digest,
        "mediaType": shown.media_type,
        "profile": shown.profile,
        "scheme": shown.scheme,
        "state": state(shown.damaged),
        "damaged": shown.damaged,
        "layers": layers.collect::<Vec<_>>(),
        "tensors": tensors.collect::<Vec<_>>(),
    })
}

fn drawn(name: &Reference, shown: &Shown, verbose: bool) -> String {
    let bytes = shown.layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.descriptor.size));
    let facts = [
        ("name", name.to_string()),
        ("digest", shown.digest.to_string()),
        ("type", shown.media_type.to_string()),
        ("profile", shown.profile.clone().unwrap_or_else(|| "none: not made by kiln".to_owned())),
        ("scheme", shown.scheme.clone().unwrap_or_else(|| "none: values as in the source".to_owned())),
        ("layers", format!("{}, {}", shown.layers.len(), size(bytes))),
        ("tensors", tensors_by_scheme(shown)),
    ];
    let mut blocks = vec![table(&facts.map(|(label, value)| vec![label.to_owned(), value]))];
    let mut rows = vec![["DIGEST", "BYTES", "LAYER"].map(str::to_owned).to_vec()];
    for layer in &shown.layers {
        let descriptor = &layer.descriptor;
        rows.push(vec![short(&descriptor.digest), descriptor.size.to_string(), layer.name.clone()]);
    }
    blocks.push(table(&rows));
    if verbose {
        let mut rows = vec![["SCHEME", "DTYPE", "SHAPE", "TENSOR"].map(str::to_owned).to_vec()];
        for tensor in &shown.tensors {
            let scheme = tensor.scheme.clone().unwrap_or_else(|| "-".to_owned());
            rows.push(vec![scheme, tensor.dtype.clone(), format!("{:?}", tensor.shape), tensor.name.clone()]);
        }
        blocks.push(table(&rows));
    }
    blocks.join("\n\n")
}

/// How many tensors there are, and of which scheme or, where they are not quantized, of which type.
fn tensors_by_scheme(shown: &Shown) -> String {
    let mut counts = BTreeMap::<&str, u64>::new();
    for tensor in &shown.tensors {
        *counts.entry(tensor.scheme.as_deref().unwrap_or(&tensor.dtype)).or_default() += 1;
    }
    let parts: Vec<String> = counts.iter().map(|(scheme, number)| format!("{number} {scheme}")).collect();
    match parts.is_empty() {
        true => count(0, "tensor"),
        false => format!("{}: {}", shown.tensors.len(), parts.join(", ")),
    }
}

/// The first digits of a digest, for a table.
pub(super) fn short(digest: &Digest) -> String {
    digest.hex().chars().take(SHORT).collect()
}
