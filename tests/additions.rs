//! What a model has beside its checkpoint: a draft and what a Modelfile sets, stored as Ollama stores them,
//! and made again from the sources and the lock.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::fs;
use std::path::{Path, PathBuf};

use kiln::manifest::{Dialect, ModelConfig, layer_name};
use kiln::oci::{Manifest, Reference};
use kiln::ops::additions::Additions;
use kiln::ops::create::{Options, prepare};
use kiln::ops::source::{Places, Source};
use kiln::ops::verify::{Level, Options as VerifyOptions, Outcome, Verified, verify};
use kiln::plan::Request;
use kiln::quant::Scheme;
use kiln::store::Store;
use kiln::{ErrorKind, Progress};
use safetensors::SafeTensors;
use tempfile::TempDir;

const MODELFILE: &str = "\
# Beside the weights.
TEMPLATE \"\"\"{{ .System }}
{{ .Prompt }}\"\"\"
SYSTEM first
SYSTEM You are a \"kiln\".
LICENSE \"\"\"
All of it.
\"\"\"
PARAMETER temperature 0.7
PARAMETER stop <end>
PARAMETER stop \"</s>\"
PARAMETER num_ctx 4096
";

fn tests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn source() -> PathBuf {
    tests().join("checkpoints/gemma4-dense-vl-bf16")
}

fn draft(name: &str) -> Additions {
    let draft = Some(tests().join("drafts").join(name));
    Additions { draft, draft_scheme: Some(Scheme::INT4), ..Additions::default() }
}

struct Made {
    place: TempDir,
    store: Store,
    name: Reference,
}

impl Made {
    fn new() -> Self {
        let place = TempDir::new().unwrap();
        let store = Store::open(&place.path().join("store")).unwrap();
        Self { place, store, name: "model:more".parse().unwrap() }
    }

    fn modelfile(&self, text: &str) -> Additions {
        let path = self.place.path().join("Modelfile");
        fs::write(&path, text).unwrap();
        Additions { modelfile: Some(path), ..Additions::default() }
    }

    fn create(&self, additions: &Additions, dialect: Dialect) -> kiln::Result<()> {
        let request = Request { scheme: Some(Scheme::INT4), ..Request::default() };
        let source = Source::from(source());
        let progress = Progress::silent();
        let prepared = prepare(&source, request.clone(), 2, &progress)?.with(additions)?;
        let options = Options { name: self.name.clone(), source, request, dialect, threads: 2 };
        prepared.create(&self.store, &options, &Progress::silent()).map(|_| ())
    }

    fn manifest(&self) -> Manifest {
        self.store.manifest(&self.store.find(&self.name).unwrap().unwrap()).unwrap().0
    }

    fn config(&self) -> ModelConfig {
        serde_json::from_slice(&self.store.read_blob(&self.manifest().config).unwrap()).unwrap()
    }

    fn blob(&self, layer: &str) -> Vec<u8> {
        let manifest = self.manifest();
        let layer = manifest.layers.iter().find(|found| layer_name(found) == layer);
        self.store.read_blob(layer.unwrap()).unwrap()
    }

    fn verify(&self, draft: Option<PathBuf>) -> Verified {
        let options = VerifyOptions::new(self.name.clone(), Level::Rebuild);
        let options = VerifyOptions { source: Some(source()), draft, threads: 2, ..options };
        verify(&self.store, &options, &Progress::silent()).unwrap()
    }
}

#[test]
fn a_modelfile_becomes_layers_that_ollama_knows_by_their_type() {
    let made = Made::new();
    made.create(&made.modelfile(MODELFILE), Dialect::Ollama).unwrap();
    let manifest = made.manifest();
    let kinds = ["template", "system", "license", "params"].map(|kind| format!("application/vnd.ollama.image.{kind}"));
    let behind_files = manifest.layers.len() - 5;
    let layers = &manifest.layers[behind_files..][..4];
    assert_eq!(layers.iter().map(|layer| layer.media_type.as_str()).collect::<Vec<_>>(), kinds);
    assert!(layers.iter().all(|layer| layer.layer_name().is_none()));
    for (name, content) in [
        ("modelfile/template", "{{ .System }}\n{{ .Prompt }}"),
        ("modelfile/system", "You are a \"kiln\"."),
        ("modelfile/license", "\nAll of it.\n"),
        (
            "modelfile/params.json",
            "{\"num_ctx\":4096,\"stop\":[\"\\u003cend\\u003e\",\"\\u003c/s\\u003e\"],\"temperature\":0.7}\n",
        ),
    ] {
        assert_eq!(String::from_utf8(made.blob(name)).unwrap(), content, "{name}");
    }
    // The checkpoint's licence stays what it was.
    assert_ne!(made.blob("LICENSE"), made.blob("modelfile/license"));
    assert_eq!(made.verify(None).outcome(), Outcome::Ok);
}

#[test]
fn in_modelpack_they_are_files_in_a_folder() {
    let made = Made::new();
    made.create(&made.modelfile(MODELFILE), Dialect::ModelPack).unwrap();
    let manifest = made.manifest();
    let layer = manifest.layers.iter().find(|layer| layer_name(layer) == "modelfile/system").unwrap();
    assert_eq!(layer.layer_name(), Some("modelfile/system"));
    assert_eq!(layer.media_type.as_str(), "application/vnd.cncf.model.weight.config.v1.raw");
    assert_eq!(made.verify(None).outcome(), Outcome::Ok);
}

#[test]
fn parser_renderer_and_version_replace_what_was_inferred() {
    let made = Made::new();
    made.create(&Additions::default(), Dialect::Ollama).unwrap();
    assert_eq!(made.config().capabilities, ["completion", "vision", "tools", "thinking"]);
    let layers = made.manifest().layers.len();
    made.create(&made.modelfile("PARSER passthrough\nRENDERER mine\nREQUIRES 0.33.0\n"), Dialect::Ollama).unwrap();
    let config = made.config();
    let names = [config.parser, config.renderer, config.requires].map(Option::unwrap);
    assert_eq!(names, ["passthrough", "mine", "0.33.0"]);
    assert_eq!(config.capabilities, ["completion", "vision"], "what the parser reads");
    assert_eq!(made.manifest().layers.len(), layers);
    assert_eq!(made.verify(None).outcome(), Outcome::Ok);
}

#[test]
fn what_a_published_model_has_set_stays_until_it_is_set_anew() {
    let made = Made::new();
    let again = |additions: &Additions| {
        let places = Places { store: Some(made.store.clone()), ..Places::default() };
        let source = Source::find(Path::new("ref:model:more"), &places).unwrap();
        let prepared = prepare(&source, Request::default(), 2, &Progress::silent()).unwrap();
        let preview = prepared.with(additions).unwrap().preview();
        (preview.settings, preview.notes)
    };
    let options = Options {
        name: made.name.clone(),
        source: source().into(),
        request: Request::default(),
        dialect: Dialect::Ollama,
        threads: 2,
    };
    let Additions { modelfile, .. } = made.modelfile(MODELFILE);
    let additions = Additions { modelfile, draft_scheme: None, ..draft("dflash-bf16") };
    let prepared = prepare(&options.source, options.request.clone(), 2, &Progress::silent()).unwrap();
    prepared.with(&additions).unwrap().create(&made.store, &options, &Progress::silent()).unwrap();
    let (settings, notes) = again(&Additions::default());
    let names: Vec<&str> = settings.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["modelfile/template", "modelfile/system", "modelfile/license", "modelfile/params.json"]);
    assert_eq!(notes, ["The draft of the source is left out: add it with `--draft DIR`"]);
    let (settings, _) = again(&made.modelfile("SYSTEM short"));
    assert_eq!(settings[1], ("modelfile/system", 5));
    assert_eq!(settings.len(), 4);
}

#[test]
fn a_modelfile_that_sets_nothing_changes_nothing() {
    let made = Made::new();
    made.create(&Additions::default(), Dialect::Ollama).unwrap();
    let plain = made.manifest();
    made.create(&made.modelfile("# nothing\nMESSAGE user hello\n"), Dialect::Ollama).unwrap();
    assert_eq!(made.manifest(), plain);
}

#[test]
fn from_names_the_checkpoint_of_the_command_or_nothing() {
    let made = Made::new();
    std::os::unix::fs::symlink(source(), made.place.path().join("here")).unwrap();
    made.create(&made.modelfile("FROM ./here"), Dialect::Ollama).unwrap();
    made.create(&made.modelfile(&format!("FROM {}", source().display())), Dialect::Ollama).unwrap();
    for other in ["llama3", "."] {
        let error = made.create(&made.modelfile(&format!("FROM {other}")), Dialect::Ollama).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input);
        assert_eq!(error.to_string(), format!("The Modelfile is of another checkpoint: `FROM` `{other}`"));
    }
}

#[test]
fn a_draft_stands_behind_the_model_under_names_of_its_own() {
    let made = Made::new();
    let Additions { modelfile, .. } = made.modelfile("SYSTEM s");
    let additions = Additions { modelfile, ..draft("gemma4-assistant-bf16") };
    made.create(&additions, Dialect::Ollama).unwrap();
    let manifest = made.manifest();
    let names: Vec<String> = manifest.layers.iter().map(layer_name).collect();
    let first = names.iter().position(|name| name.starts_with("draft")).unwrap();
    assert_eq!(names[first - 1], "chat_template.jinja", "the last of the model's");
    let (drafts, rest) = names[first..].split_at(names.len() - first - 2);
    assert_eq!(rest, ["modelfile/system", "kiln.lock"]);
    assert_eq!(drafts[0], "draft.model.embed_tokens.weight");
    assert_eq!(drafts[drafts.len() - 2..], ["draft/config.json", "draft/generation_config.json"]);
    assert!(drafts[..drafts.len() - 2].iter().all(|name| name.starts_with("draft.")), "{drafts:?}");
    let config = made.store.read_blob(&manifest.config).unwrap();
    let config = String::from_utf8(config).unwrap();
    let expected = concat!(
        r#""capabilities":["completion","vision","tools","thinking"],"draft":{"model_format":"safetensors","#,
        r#""architecture":"Gemma4AssistantForCausalLM","tensor_prefix":"draft.","config":"draft/config.json"},"#,
        r#""architecture":"","os":""}"#
    );
    assert!(config.ends_with(expected), "{config}");
}

/// The draft's rules: the output head gets the base, and the rest what its target's family gives.
#[test]
fn a_drafts_head_gets_the_scheme_that_was_asked_for() {
    let made = Made::new();
    made.create(&draft("gemma4-assistant-bf16"), Dialect::Ollama).unwrap();
    for (layer, scheme) in [
        ("draft.model.embed_tokens.weight", Some("int4")),
        ("draft.pre_projection.weight", Some("int4")),
        ("draft.model.layers.0.self_attn.q_proj.weight", Some("int4")),
        // Of two layers, the second is in the last eighth.
        ("draft.model.layers.0.mlp.down_proj.weight", Some("int4")),
        ("draft.model.layers.1.mlp.down_proj.weight", Some("int8")),
        ("draft.model.norm.weight", None),
        // The model's own is promoted.
        ("model.language_model.embed_tokens.weight", Some("int8")),
    ] {
        let blob = made.blob(layer);
        let (_, metadata) = SafeTensors::read_metadata(&blob).unwrap();
        let found = metadata.metadata().as_ref().and_then(|entries| entries.get("quant_type").cloned());
        assert_eq!(found.as_deref(), scheme, "{layer}");
        assert!(SafeTensors::deserialize(&blob).unwrap().names().iter().any(|name| **name == *layer));
    }
}

/// Runtimes stack a DFlash draft's keys on its values, and its gates on its ups.
#[test]
fn what_dflash_stacks_has_one_scheme() {
    let made = Made::new();
    for scheme in ["int4", "nvfp4", "mxfp4", "mxfp8", "int8"] {
        let additions = Additions { draft_scheme: Some(scheme.parse().unwrap()), ..draft("dflash-bf16") };
        made.create(&additions, Dialect::Ollama).unwrap();
        for (one, other) in [("self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")] {
            let schemes = [one, other].map(|name| {
                let blob = made.blob(&format!("draft.layers.1.{name}.weight"));
                SafeTensors::read_metadata(&blob).unwrap().1.metadata().as_ref().unwrap()["quant_type"].clone()
            });
            assert_eq!(schemes[0], schemes[1], "{scheme} {one}");
        }
    }
}

#[test]
fn a_rebuild_needs_both_sources_and_knows_where_they_lay() {
    let made = Made::new();
    for dialect in [Dialect::Ollama, Dialect::ModelPack] {
        for name in ["gemma4-assistant-bf16", "dflash-bf16"] {
            let additions = Additions { draft_scheme: None, ..draft(name) };
            for additions in [additions, draft(name)] {
                made.create(&additions, dialect).unwrap();
                let verified = made.verify(None);
                assert_eq!(verified.outcome(), Outcome::Ok, "{name} {:?}", verified.findings);
            }
        }
    }
    // The last one was made of `dflash-bf16`.
    let wrong = made.verify(Some(tests().join("drafts/gemma4-assistant-bf16")));
    assert_eq!(wrong.outcome(), Outcome::NotReproduced);
    let none = made.verify(Some(tests().join("drafts/none")));
    assert_eq!(none.outcome(), Outcome::CouldNotCheck);
    // Elsewhere nothing is remembered.
    let target = made.store.find(&made.name).unwrap().unwrap();
    fs::remove_file(made.store.root().join("notes").join(format!("{}.json", target.digest.hex()))).unwrap();
    let verified = made.verify(None);
    assert_eq!(verified.outcome(), Outcome::CouldNotCheck);
    assert!(verified.findings[0].message.ends_with("name it with `--draft DIR`"), "{:?}", verified.findings);
    assert_eq!(made.verify(Some(tests().join("drafts/dflash-bf16"))).outcome(), Outcome::Ok);
}

#[test]
fn the_lowest_version_is_that_of_the_model_and_its_draft() {
    let made = Made::new();
    for (additions, requires) in
        [(Additions::default(), "0.23.1"), (draft("gemma4-assistant-bf16"), "0.23.1"), (draft("dflash-bf16"), "0.32.7")]
    {
        made.create(&additions, Dialect::Ollama).unwrap();
        assert_eq!(made.config().requires.as_deref(), Some(requires));
    }
}

#[test]
fn what_is_no_draft_is_refused_before_anything_is_written() {
    let made = Made::new();
    let refusal = |additions: &Additions| made.create(additions, Dialect::Ollama).unwrap_err();
    let model = Additions { draft: Some(source()), ..Additions::default() };
    let error = refusal(&model);
    assert_eq!(error.to_string(), "`Gemma4ForConditionalGeneration` is no architecture of drafts");
    assert_eq!(error.kind(), ErrorKind::Input);
    let scheme_alone = Additions { draft_scheme: Some(Scheme::INT4), ..Additions::default() };
    assert_eq!(refusal(&scheme_alone).to_string(), "`--draft-quantize` needs a draft");
    let named = made.modelfile(&format!("DRAFT {}", tests().join("drafts/dflash-bf16").display()));
    let twice = Additions { modelfile: named.modelfile.clone(), ..draft("dflash-bf16") };
    assert_eq!(refusal(&twice).to_string(), "The draft is named twice: by `--draft` and by the Modelfile");
    assert!(made.store.refs().unwrap().is_empty());
    made.create(&named, Dialect::Ollama).unwrap();
    assert!(made.manifest().layers.iter().any(|layer| layer_name(layer) == "draft.fc.weight"));
}
