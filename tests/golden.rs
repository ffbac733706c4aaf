//! The digests that kiln promises: each checkpoint and scheme has one manifest digest, on every machine,
//! with every thread count, however the source was sharded and wherever it lay.
//!
//! `tests/golden/manifests.txt` is the record, and `tests/golden/mlx.txt` that of profile `mlx`. A change that moves any output byte must raise
//! `manifest::EPOCH`; `KILN_BLESS=1 cargo test --test golden` then writes the new record.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::manifest::Dialect;
use kiln::ops::additions::Additions;
use kiln::ops::create::{Created, Options, create, prepare};
use kiln::ops::inspect::{Shown, show};
use kiln::plan::{Profile, Recipe, Request};
use kiln::quant::Scheme;
use kiln::store::Store;
use kiln::{ErrorKind, Progress};
use safetensors::SafeTensors;
use tempfile::TempDir;

const SCHEMES: [&str; 6] = ["none", "int4", "int8", "nvfp4", "mxfp4", "mxfp8"];
/// Checkpoints that are made with a recipe, too.
const RECIPES: [(&str, &str); 2] = [("llama-8l-bf16", "mixed-3-6"), ("qwen3-moe-12e-bf16", "mixed-4-6")];

fn checkpoints() -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints");
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["damaged", "hf-cache-llama"].contains(&name.as_str()))
        .collect();
    names.sort();
    assert!(names.len() >= 23, "{names:?}");
    names
}

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name)
}

struct Fresh {
    _place: TempDir,
    store: Store,
}

impl Fresh {
    fn new() -> Self {
        let place = TempDir::new().unwrap();
        let store = Store::open(&place.path().join("store")).unwrap();
        Self { _place: place, store }
    }

    /// `scheme` is that of a quantization, the name of a recipe, or `none`.
    fn create(&self, source: &Path, scheme: &str, threads: usize) -> kiln::Result<Created> {
        self.create_for(Profile::Ollama, source, scheme, threads)
    }

    fn create_for(&self, profile: Profile, source: &Path, scheme: &str, threads: usize) -> kiln::Result<Created> {
        let recipe = Recipe::built_in(scheme)?;
        let scheme = (recipe.is_none() && scheme != "none").then(|| scheme.parse().unwrap());
        let options = Options {
            name: "model:golden".parse().unwrap(),
            source: source.to_owned().into(),
            request: Request::new(profile, scheme, recipe)?,
            dialect: Dialect::Ollama,
            threads,
        };
        create(&self.store, &options, &Progress::silent())
    }

    fn create_with_draft_and_modelfile(&self) -> kiln::Result<Created> {
        let modelfile = self.store.root().join("Modelfile");
        let text = "TEMPLATE \"\"\"{{ .Prompt }}\n\"\"\"\nSYSTEM s\nLICENSE l\nPARAMETER top_p 0.9\nREQUIRES 0.33.0\n";
        fs::write(&modelfile, text).unwrap();
        let additions = Additions {
            modelfile: Some(modelfile),
            draft: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drafts/gemma4-assistant-bf16")),
            draft_scheme: Some(Scheme::INT4),
        };
        let options = Options {
            name: "model:golden".parse().unwrap(),
            source: checkpoint("gemma4-dense-vl-bf16").into(),
            request: Request { scheme: Some(Scheme::INT4), ..Request::default() },
            dialect: Dialect::Ollama,
            threads: 2,
        };
        let progress = Progress::silent();
        let prepared = prepare(&options.source, options.request.clone(), 2, &progress)?.with(&additions)?;
        prepared.create(&self.store, &options, &progress)
    }

    fn show(&self) -> Shown {
        show(&self.store, &"model:golden".parse().unwrap()).unwrap()
    }

    fn blob(&self, layer: &str) -> Vec<u8> {
        let shown = self.show();
        let found = shown.layers.iter().find(|shown| shown.name == layer).unwrap_or_else(|| panic!("no layer {layer}"));
        self.store.read_blob(&found.descriptor).unwrap()
    }
}

/// Holds `table` against a record in `tests/golden/`.
fn assert_golden(record: &str, table: &str) {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(record);
    if std::env::var_os("KILN_BLESS").is_some() {
        fs::write(&record, table).unwrap();
    }
    let golden = fs::read_to_string(&record).unwrap();
    for (line, expected) in table.lines().zip(golden.lines()) {
        assert_eq!(line, expected);
    }
    assert_eq!(table, golden);
}

/// The digest, or for what is refused the reason.
fn outcome(created: kiln::Result<Created>) -> String {
    created.map_or_else(|error| format!("refused: {error}"), |created| created.digest.to_string())
}

#[test]
fn so_has_every_checkpoint_in_profile_mlx() {
    let mut table = String::new();
    for name in checkpoints() {
        let fresh = Fresh::new();
        for scheme in ["none", "int4", "nvfp4"] {
            let outcome = outcome(fresh.create_for(Profile::Mlx, &checkpoint(&name), scheme, 2));
            writeln!(table, "{name} {scheme} {outcome}").unwrap();
        }
    }
    assert_golden("mlx.txt", &table);
}

#[test]
fn every_checkpoint_and_scheme_has_its_golden_digest() {
    let mut table = String::new();
    for name in checkpoints() {
        let fresh = Fresh::new();
        for scheme in SCHEMES {
            let outcome = outcome(fresh.create(&checkpoint(&name), scheme, 2));
            writeln!(table, "{name} {scheme} {outcome}").unwrap();
        }
    }
    for (name, recipe) in RECIPES {
        let created = Fresh::new().create(&checkpoint(name), recipe, 2).unwrap();
        writeln!(table, "{name} {recipe} {}", created.digest).unwrap();
    }
    let created = Fresh::new().create_with_draft_and_modelfile().unwrap();
    writeln!(table, "gemma4-dense-vl-bf16 int4+draft+modelfile {}", created.digest).unwrap();
    assert_golden("manifests.txt", &table);
}

/// The same tensors in other shards: `groups` files of another name, dealt out in turn.
fn reshard(source: &Path, target: &Path, groups: usize) {
    type Shard = BTreeMap<String, (safetensors::Dtype, Vec<usize>, Vec<u8>)>;
    let mut shards = vec![Shard::new(); groups];
    let mut files: Vec<PathBuf> = fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut dealt = 0;
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".safetensors") {
            let bytes = fs::read(file).unwrap();
            for (tensor, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                shards[dealt % groups].insert(tensor, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
                dealt += 1;
            }
        } else if !name.ends_with(".index.json") {
            fs::copy(file, target.join(name)).unwrap();
        }
    }
    let mut map = serde_json::Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-of-another-name-{index}.safetensors");
        map.extend(shard.keys().map(|tensor| (tensor.clone(), name.clone().into())));
        let views = shard.iter().map(|(tensor, (dtype, shape, data))| {
            (tensor, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, &target.join(name)).unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(target.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn threads_shards_names_and_places_do_not_show() {
    for name in checkpoints() {
        let source = checkpoint(&name);
        let copies = [1, 3].map(|groups| {
            let elsewhere = TempDir::new().unwrap();
            reshard(&source, elsewhere.path(), groups);
            elsewhere
        });
        for (profile, scheme) in
            SCHEMES.map(|scheme| (Profile::Ollama, scheme)).into_iter().chain([(Profile::Mlx, "int4")])
        {
            let create = |source: &Path, threads| Fresh::new().create_for(profile, source, scheme, threads);
            let Ok(expected) = create(&source, 1).map(|created| created.digest) else {
                let refused = copies.iter().all(|copy| create(copy.path(), 3).is_err());
                assert!(refused, "{name} {scheme}: shards");
                continue;
            };
            assert_eq!(create(&source, 7).unwrap().digest, expected, "{name} {scheme}: threads");
            for copy in &copies {
                assert_eq!(create(copy.path(), 3).unwrap().digest, expected, "{name} {scheme}: shards");
            }
        }
    }
}

const MIXTRAL: &str = "model.layers.0.block_sparse_moe.experts";

#[test]
fn experts_are_stacked_in_numeric_order() {
    // The checkpoint, its number of experts, where they are, the blob, and the projection in both spellings.
    for (name, experts, home, blob, [source, stacked]) in [
        ("qwen3-moe-12e-bf16", 12, "model.layers.0.mlp.experts", "model.layers.0.mlp.switch_mlp", ["up_proj"; 2]),
        ("nemotron-h-bf16", 4, "backbone.layers.1.mixer.experts", "backbone.layers.1.mixer.experts", ["down_proj"; 2]),
        ("mixtral-bf16", 4, MIXTRAL, "model.layers.0.block_sparse_moe.switch_mlp", ["w1", "gate_proj"]),
        ("mixtral-bf16", 4, MIXTRAL, "model.layers.0.block_sparse_moe.switch_mlp", ["w2", "down_proj"]),
        ("mixtral-bf16", 4, MIXTRAL, "model.layers.0.block_sparse_moe.switch_mlp", ["w3", "up_proj"]),
    ] {
        let fresh = Fresh::new();
        fresh.create(&checkpoint(name), "none", 2).unwrap();
        let bytes = fresh.blob(blob);
        let blob_tensors = SafeTensors::deserialize(&bytes).unwrap();
        let stack = blob_tensors.tensor(&format!("{blob}.{stacked}.weight")).unwrap();
        assert_eq!(stack.shape()[0], experts);
        let length = stack.data().len() / experts;
        let mut compared = 0;
        for file in fs::read_dir(checkpoint(name)).unwrap().map(|entry| entry.unwrap().path()) {
            if file.extension().is_none_or(|ending| ending != "safetensors") {
                continue;
            }
            let bytes = fs::read(&file).unwrap();
            let shard = SafeTensors::deserialize(&bytes).unwrap();
            for expert in 0..experts {
                if let Ok(matrix) = shard.tensor(&format!("{home}.{expert}.{source}.weight")) {
                    assert_eq!(matrix.data(), &stack.data()[expert * length..][..length], "{name}: expert {expert}");
                    compared += 1;
                }
            }
        }
        assert_eq!(compared, experts, "{name} {source}");
    }
}

#[test]
fn stacked_and_per_expert_twins_give_the_same_tensor_blobs() {
    for scheme in SCHEMES {
        let blobs = |name: &str| {
            let fresh = Fresh::new();
            fresh.create(&checkpoint(name), scheme, 2).unwrap();
            let tensors = kiln::oci::MediaType::OLLAMA_TENSOR;
            let layers = fresh.show().layers.into_iter().filter(|layer| layer.descriptor.media_type == tensors);
            layers.map(|layer| (layer.name, layer.descriptor.digest)).collect::<Vec<_>>()
        };
        let twins = (blobs("qwen3-moe-bf16"), blobs("qwen3-moe-stacked-bf16"));
        assert!(twins.0.iter().any(|(name, _)| name == "model.layers.1.mlp.switch_mlp"), "{twins:?}");
        assert_eq!(twins.0, twins.1, "{scheme}");
    }
}

#[test]
fn a_value_that_is_not_finite_is_named_and_nothing_is_stored() {
    let fresh = Fresh::new();
    let source = checkpoint("damaged/nan-inf");
    let error = fresh.create(&source, "int4", 2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("is not finite at element"), "{error}");
    assert_eq!(fs::read_dir(fresh.store.root().join("blobs/sha256")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(fresh.store.root().join("ingest")).unwrap().count(), 0);
    assert!(fresh.store.refs().unwrap().is_empty());
    // Copied as it is, the checkpoint is the user's business.
    fresh.create(&source, "none", 2).unwrap();
}
