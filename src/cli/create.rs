//! `kiln create`: a checkpoint, or a model that was published before, becomes a model in the store, or with
//! `--dry-run` a plan on the screen.

use std::iter;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::Session;
use super::arguments::SchemeParser;
use super::exit::Exit;
use super::output::{count, size, table};
use super::transport::Traffic;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Dialect, layer_name};
use crate::oci::{Descriptor, Reference};
use crate::ops::additions::Additions;
use crate::ops::create::{self, Created, Preview, Republished};
use crate::ops::recipe;
use crate::ops::source::Source;
use crate::plan::{PlannedBlob, PlannedTensor, Profile, Request};
use crate::quant::Scheme;

const EXAMPLES: &str = "\
Examples:
  kiln create llama:bf16 ./Llama-3.1-8B
  kiln create llama:int4 ./Llama-3.1-8B --quantize int4
  kiln create llama:q3 ./Llama-3.1-8B --quantize affine3-g64 --dialect modelpack
  kiln create llama:mixed ./Llama-3.1-8B --recipe mixed-4-6
  kiln create llama:mine ./Llama-3.1-8B --quantize int4 --recipe ./mine.toml
  kiln create gemma:int4 ./gemma-4 --quantize int4 --draft ./gemma-4-assistant --draft-quantize int4
  kiln create llama:int4 ./Llama-3.1-8B --quantize int4 --modelfile ./Modelfile
  kiln create llama:hf ./Llama-3.1-8B --profile hf
  kiln create llama:int4 ./Llama-3.1-8B --quantize int4 --dry-run
  kiln create llama:bf16 meta-llama/Llama-3.1-8B
  kiln create llama:new ref:registry.example/team/llama:old

SOURCE is a path that is there; else a model of the store, or `org/name[@revision]` in the
Hugging Face cache; else a model in the registry that it names. `ref:`, `hf:` or `ollama:`
before it says which.";

/// Create a model from a checkpoint
///
/// Reads safetensors files with their `config.json`, quantizes them if asked to, and stores the layers and a
/// manifest under NAME. The same checkpoint and options give the same digests on every machine. A model that was
/// published in another layout becomes one in this.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Create {
    /// The model's name in the store, as in `llama:int4`
    name: Reference,
    /// The checkpoint: a directory, `org/name[@revision]` in the Hugging Face cache, or a published model
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
    /// How the manifest is spelled [default: ollama; modelpack for the other profiles]
    #[arg(long, value_name = "DIALECT")]
    dialect: Option<Dialect>,
    /// A Modelfile: TEMPLATE, SYSTEM, LICENSE, PARAMETER, PARSER, RENDERER, REQUIRES and DRAFT are kept
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    modelfile: Option<PathBuf>,
    /// The checkpoint of a draft, which guesses ahead for the model
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    draft: Option<PathBuf>,
    /// Quantize the draft
    #[arg(long, value_name = "SCHEME", value_parser = SchemeParser, hide_possible_values = true)]
    draft_quantize: Option<Scheme>,
    /// Print what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    traffic: Traffic,
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
        let additions = Additions { modelfile: self.modelfile, draft: self.draft, draft_scheme: self.draft_quantize };
        let named = self.source;
        let source = session.blocking(move |session| Source::find(&named, &session.places()?)).await?;
        let threads = session.settings.threads;
        if self.dry_run {
            let prepared = session
                .watched(move |_, progress| create::prepare(&source, request, threads, progress)?.with(&additions));
            let preview = prepared.await?.preview();
            if session.printer.is_json() {
                session.printer.object(&planned(&preview));
            } else {
                preview.notes.iter().for_each(|note| session.printer.note(note));
                session.printer.data(drawn(&preview));
            }
            return Ok(Exit::Done);
        }
        let source = match source {
            Source::Registry(reference) => self.traffic.source(session, reference).await?,
            found => found,
        };
        let name = self.name.clone();
        let created = session
            .watched(move |session, progress| {
                let dialect = self.dialect.unwrap_or_else(|| create::dialect_of(self.profile));
                let options = create::Options { name: self.name, source, request, dialect, threads };
                // A checkpoint that cannot be imported leaves nothing behind, not even an empty store.
                let prepared = create::prepare(&options.source, options.request.clone(), threads, progress)?;
                let prepared = prepared.with(&additions)?;
                prepared.create(&session.open_store()?, &options, progress)
            })
            .await?;
        let Created { digest, layers, bytes, bytes_written, republished } = created;
        if session.printer.is_json() {
            let mut created = json!({
                "event": "created",
                "name": name.to_string(),
                "digest": digest,
                "layers": layers,
                "bytes": bytes,
                "bytesWritten": bytes_written,
            });
            if let Some(republished) = &republished {
                created["republished"] = object(republished);
            }
            session.printer.object(&created);
        } else {
            session.printer.data(format_args!(
                "created {name} {digest} ({}, {}; {} written)",
                count(layers, "layer"),
                size(bytes),
                size(bytes_written)
            ));
            if let Some(republished) = &republished {
                session.printer.data(changes(republished, session.settings.verbose));
            }
        }
        Ok(Exit::Done)
    }
}

fn object(republished: &Republished) -> Value {
    let layer = |layer: &Descriptor| json!({"name": layer_name(layer), "digest": layer.digest, "size": layer.size});
    let layers = |layers: &[Descriptor]| layers.iter().map(layer).collect::<Vec<_>>();
    let moved = republished.moved.iter().map(|(descriptor, from)| {
        let mut moved = layer(descriptor);
        moved["from"] = json!(from);
        moved
    });
    json!({
        "source": republished.source,
        "stayed": layers(&republished.stayed),
        "moved": moved.collect::<Vec<_>>(),
        "new": layers(&republished.new),
        "gone": layers(&republished.gone),
    })
}

/// The totals, and a row for each layer that is not the source's; for the others too when `all` are asked for.
fn changes(republished: &Republished, all: bool) -> String {
    let Republished { source, stayed, moved, new, gone } = republished;
    let row = |change: &str, layer: &Descriptor, from: String| {
        vec![change.to_owned(), layer_name(layer), layer.size.to_string(), from]
    };
    let mut rows = vec![["CHANGE", "LAYER", "BYTES", "FROM"].map(str::to_owned).to_vec()];
    rows.extend(moved.iter().map(|(layer, from)| {
        let from = match from.as_slice() {
            [only] if *only == layer_name(layer) => String::new(),
            [only] => only.clone(),
            several => count(several.len() as u64, "layer"),
        };
        row("moved", layer, from)
    }));
    rows.extend(new.iter().map(|layer| row("new", layer, String::new())));
    if all {
        rows.extend(stayed.iter().map(|layer| row("stayed", layer, String::new())));
        rows.extend(gone.iter().map(|layer| row("gone", layer, String::new())));
    }
    let total = |layers: &mut dyn Iterator<Item = &Descriptor>| {
        let (number, bytes) = layers.fold((0, 0_u64), |(n, bytes), layer| (n + 1, bytes.saturating_add(layer.size)));
        format!("{} ({})", count(number, "layer"), size(bytes))
    };
    let mut text = format!(
        "from {source}: {} stayed, {} moved, {} new; {} of the source are gone",
        total(&mut stayed.iter()),
        total(&mut moved.iter().map(|(layer, _)| layer)),
        total(&mut new.iter()),
        total(&mut gone.iter()),
    );
    if rows.len() > 1 {
        text.push_str(&format!("\n\n{}", table(&rows)));
    }
    text
}

/// The blobs of the model and its draft, with their sizes.
fn blobs(preview: &Preview) -> impl Iterator<Item = (&PlannedBlob, u64)> {
    let previews = iter::once(preview).chain(preview.draft.as_deref());
    previews.flat_map(|preview| preview.plan.blobs.iter().zip(preview.sizes.iter().copied()))
}

/// The layers that are files, and what a Modelfile sets, with their sizes, and whether kiln makes them.
fn files(preview: &Preview) -> Vec<(String, u64, bool)> {
    let plans = iter::once(preview).chain(preview.draft.as_deref()).map(|preview| &preview.plan);
    let files =
        plans.flat_map(|plan| plan.sidecars.iter().map(|file| (plan.file_name(file), file.size, file.made.is_some())));
    files.chain(preview.settings.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes, false))).collect()
}

/// The bytes of the planned layers: the manifest, the config and the lock come on top.
fn total(preview: &Preview) -> u64 {
    blobs(preview).map(|(_, bytes)| bytes).chain(files(preview).into_iter().map(|(_, bytes, _)| bytes)).sum()
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
            "steps": tensor.steps.iter().map(|step| step.name()).collect::<Vec<_>>(),
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "sources": tensor.sources.len(),
        })
    };
    let blobs = blobs(preview).map(|(blob, bytes)| {
        json!({"name": blob.name, "bytes": bytes, "tensors": blob.tensors.iter().map(tensor).collect::<Vec<_>>()})
    });
    let sidecars = files(preview).into_iter();
    let sidecars = sidecars.map(|(name, bytes, made)| json!({"name": name, "bytes": bytes, "made": made}));
    json!({
        "event": "planned",
        "family": preview.plan.family.name,
        "blobs": blobs.collect::<Vec<_>>(),
        "sidecars": sidecars.collect::<Vec<_>>(),
        "bytes": total(preview),
        "notes": preview.notes,
    })
}

/// A row per tensor, under its blob where that has several; then the files and the totals.
fn drawn(preview: &Preview) -> String {
    let row = |cells: [&str; 5]| cells.map(str::to_owned).to_vec();
    let mut rows = vec![row(["BLOB", "BYTES", "SCHEME", "FROM", "WHY"])];
    for (blob, bytes) in blobs(preview) {
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
            let mut from = match tensor.sources.len() {
                1 => tensor.transform.name().to_owned(),
                sources => format!("{} {sources}", tensor.transform.name()),
            };
            tensor.steps.iter().for_each(|step| from.extend([", ", step.name()]));
            let scheme = scheme(tensor).unwrap_or_else(|| tensor.dtype.to_string());
            rows.push(vec![name, bytes, scheme, from, tensor.why.to_string()]);
        }
    }
    let files = files(preview);
    rows.extend(files.iter().map(|(name, bytes, made)| {
        let from = if *made { "made" } else { "" };
        vec![name.clone(), bytes.to_string(), String::new(), from.to_owned()]
    }));
    let with_tensors = blobs(preview).count();
    format!(
        "{}\n\n{} layers of family {}: {} with tensors, {}, {} in all",
        table(&rows),
        with_tensors + files.len(),
        preview.plan.family.name,
        with_tensors,
        count(files.len() as u64, "file"),
        size(total(preview)),
    )
}
