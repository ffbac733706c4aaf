//! `kiln create`: a checkpoint becomes a model in the store, or with `--dry-run` a plan on the screen.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::arguments::SchemeParser;
use super::exit::Exit;
use super::output::{count, size, table};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Dialect;
use crate::oci::Reference;
use crate::ops::create::{self, Created, Preview};
use crate::ops::recipe;
use crate::plan::{PlannedTensor, Profile, Request};
use crate::quant::Scheme;

const EXAMPLES: &str = "\
Examples:
  kiln create llama:bf16 ./Llama-3.1-8B
  kiln create llama:int4 ./Llama-3.1-8B --quantize int4
  kiln create llama:q3 ./Llama-3.1-8B --quantize affine3-g64 --dialect modelpack
  kiln create llama:mixed ./Llama-3.1-8B --recipe mixed-4-6
  kiln create llama:mine ./Llama-3.1-8B --quantize int4 --recipe ./mine.toml
  kiln create llama:int4 ./Llama-3.1-8B --quantize int4 --dry-run";

/// Create a model from a checkpoint
///
/// Reads a directory of safetensors files with its `config.json`, quantizes it if asked to, and stores the
/// layers and a manifest under NAME. The same checkpoint and options give the same digests on every machine.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Create {
    /// The model's name in the store, as in `llama:int4`
    name: Reference,
    /// The checkpoint: a directory with `config.json` and `*.safetensors`
    #[arg(value_hint = clap::ValueHint::DirPath)]
    source: PathBuf,
    /// Quantize: int4, int8, nvfp4, mxfp4, mxfp8 or affine{2,3,4,5,6,8}-g{32,64,128}
    #[arg(long, short = 'Q', value_name = "SCHEME", value_parser = SchemeParser, hide_possible_values = true)]
    quantize: Option<Scheme>,
    /// Rules for each tensor's scheme: a TOML file, or ollama, mlx-default, mixed-2-6, mixed-3-4, mixed-3-6, mixed-4-6
    #[arg(long, value_name = "FILE|NAME", value_hint = clap::ValueHint::FilePath)]
    recipe: Option<PathBuf>,
    /// The runtime the layers are named for
    #[arg(long, value_name = "PROFILE", default_value = "ollama")]
    profile: Profile,
    /// How the manifest is spelled
    #[arg(long, value_name = "DIALECT", default_value = "ollama")]
    dialect: Dialect,
    /// Print what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
}

impl Create {
    pub(super) async fn run(self, session: &Session) -> Result<Exit> {
        // Said now, and not after an hour's work.
        if self.name.digest().is_some() {
            let message = format!("A new model cannot be named by a digest: `{}`", self.name);
            return Err(Error::new(ErrorKind::Usage, message).hint("leave the digest out of the name"));
        }
        let recipe = self.recipe.as_deref().map(recipe::find).transpose()?;
        let request = Request::new(self.profile, self.quantize, recipe)?;
        if self.dry_run {
            let preview = session.blocking(move |_| create::preview(&self.source, request)).await?;
            if session.printer.is_json() {
                session.printer.object(&planned(&preview));
            } else {
                preview.plan.notes.iter().for_each(|note| session.printer.note(note));
                session.printer.data(drawn(&preview));
            }
            return Ok(Exit::Done);
        }
        let name = self.name.clone();
        let created = session
            .watched(move |session, progress| {
                let options = create::Options {
                    name: self.name,
                    source: self.source,
                    request,
                    dialect: self.dialect,
                    threads: session.settings.threads,
                };
                // A checkpoint that cannot be imported leaves nothing behind, not even an empty store.
                let prepared = create::prepare(&options.source, options.request.clone())?;
                prepared.create(&session.open_store()?, &options, progress)
            })
            .await?;
        let Created { digest, layers, bytes, bytes_written } = created;
        if session.printer.is_json() {
            session.printer.object(&json!({
                "event": "created",
                "name": name.to_string(),
                "digest": digest,
                "layers": layers,
                "bytes": bytes,
                "bytesWritten": bytes_written,
            }));
        } else {
            session.printer.data(format_args!(
                "created {name} {digest} ({}, {}; {} written)",
                count(layers, "layer"),
                size(bytes),
                size(bytes_written)
            ));
        }
        Ok(Exit::Done)
    }
}

/// The bytes of the planned layers: the manifest, the config and the lock come on top.
fn total(preview: &Preview) -> u64 {
    preview.sizes.iter().sum::<u64>() + preview.plan.sidecars.iter().map(|sidecar| sidecar.size).sum::<u64>()
}

fn scheme(tensor: &PlannedTensor) -> Option<String> {
    tensor.scheme.map(|scheme| scheme.to_string())
}

fn planned(preview: &Preview) -> Value {
    let tensor = |tensor: &PlannedTensor| {
        json!({
            "name": tensor.name,
            "scheme": scheme(tensor),
            "why": tensor.why,
            "transform": tensor.transform.name(),
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "sources": tensor.sources.len(),
        })
    };
    let blobs = preview.plan.blobs.iter().zip(&preview.sizes).map(|(blob, bytes)| {
        json!({"name": blob.name, "bytes": bytes, "tensors": blob.tensors.iter().map(tensor).collect::<Vec<_>>()})
    });
    let sidecars = preview.plan.sidecars.iter().map(|sidecar| json!({"name": sidecar.name, "bytes": sidecar.size}));
    json!({
        "event": "planned",
        "family": preview.plan.family.name,
        "blobs": blobs.collect::<Vec<_>>(),
        "sidecars": sidecars.collect::<Vec<_>>(),
        "bytes": total(preview),
        "notes": preview.plan.notes,
    })
}

/// A row per tensor, under its blob where that has several; then the files and the totals.
fn drawn(preview: &Preview) -> String {
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["BLOB", "BYTES", "SCHEME", "FROM", "WHY"])];
    for (blob, bytes) in preview.plan.blobs.iter().zip(&preview.sizes) {
        // A blob with one tensor has its name.
        let single = matches!(&*blob.tensors, [tensor] if tensor.name == blob.name);
        if !single {
            rows.push(vec![blob.name.clone(), bytes.to_string()]);
        }
        for tensor in &blob.tensors {
            let (name, bytes) = match single {
                true => (tensor.name.clone(), bytes.to_string()),
                false => (format!("  {}", tensor.name), String::new()),
            };
            let from = match tensor.sources.len() {
                1 => tensor.transform.name().to_owned(),
                sources => format!("{} {sources}", tensor.transform.name()),
            };
            let scheme = scheme(tensor).unwrap_or_else(|| tensor.dtype.to_string());
            rows.push(vec![name, bytes, scheme, from, tensor.why.to_string()]);
        }
    }
    for sidecar in &preview.plan.sidecars {
        rows.push(vec![sidecar.name.clone(), sidecar.size.to_string()]);
    }
    let plan = &preview.plan;
    format!(
        "{}\n\n{} layers of family {}: {} with tensors, {}, {} in all",
        table(&rows),
        plan.blobs.len() + plan.sidecars.len(),
        plan.family.name,
        plan.blobs.len(),
        count(plan.sidecars.len() as u64, "file"),
        size(total(preview)),
    )
}
