//! What `create` makes of each damaged checkpoint: refused as bad input with the store unchanged, or
//! imported. What the source room alone refuses is in `damaged_sources.rs`, word for word.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln::manifest::Dialect;
use kiln::ops::create::{Options, create};
use kiln::plan::Request;
use kiln::store::Store;
use kiln::{ErrorKind, Progress};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Odd, but whole: these are imported.
const IMPORTED: [&str; 11] = [
    "both-mono-and-shards",
    "config-bom",
    "config-infinity-literal",
    "extra-consolidated",
    "header-unaligned",
    "scalar-and-int-tensors",
    "shards-without-index",
    "tied-both-present",
    "tied-conflict",
    "wrong-total-size",
    "zero-size-tensor",
];

/// Refused by the plan or the kernels, with these words.
const REFUSED_LATE: [(&str, &str); 10] = [
    ("config-layers-mismatch", "The config has 3 layers, but there is no tensor of layer 1"),
    ("moe-both-layouts", "The experts of `model.layers.0` are there twice"),
    ("moe-config-mismatch", "Expert 4 of `model.layers.0` is missing: the config has 8, the checkpoint 4"),
    ("moe-expert-dtype-mix", "but `model.layers.0.mlp.experts.3.down_proj.weight` is F16 [32, 32]"),
    ("moe-expert-gap", "Expert 2 of `model.layers.0` is missing"),
    ("moe-expert-missing", "The `up_proj` of expert 2 of `model.layers.0` is missing"),
    ("moe-expert-shape-mismatch", "but `model.layers.0.mlp.experts.1.gate_proj.weight` is BF16 [24, 32]"),
    ("moe-stacked-odd-rows", "has 63 rows, which cannot be divided into gate and up"),
    ("moe-stacked-rank2", "`model.layers.0.mlp.experts.gate_up_proj` has the shape [256, 32]"),
    ("nan-inf", "`model.layers.0.mlp.gate_proj.weight` is not finite at element 0"),
];

#[test]
fn every_damaged_checkpoint_is_refused_and_leaves_the_store_unchanged() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/damaged");
    let (mut imported, mut late, mut refused) = (0, 0, 0);
    for source in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()) {
        let name = source.file_name().unwrap().to_str().unwrap();
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(&place.path().join("store")).unwrap();
        let options = Options {
            name: "model:a".parse().unwrap(),
            source: source.clone().into(),
            request: Request { scheme: Some("mxfp4".parse().unwrap()), ..Request::default() },
            dialect: Dialect::Ollama,
            threads: 1,
        };
        let created = create(&store, &options, &Progress::silent());
        if IMPORTED.contains(&name) {
            created.unwrap_or_else(|error| panic!("{name}: {error}"));
            imported += 1;
            continue;
        }
        let Err(error) = created else { panic!("{name} was imported") };
        assert_eq!(error.kind(), ErrorKind::Input, "{name}: {error}");
        assert!(!error.to_string().contains('\n'), "{name}: {error}");
        if let Some((_, words)) = REFUSED_LATE.iter().find(|(late, _)| *late == name) {
            assert!(error.to_string().contains(words), "{name}: {error}");
            late += 1;
        }
        for part in ["blobs/sha256", "ingest", "notes"] {
            let left = fs::read_dir(store.root().join(part)).unwrap().count();
            assert_eq!(left, 0, "{name} left something in {part}");
        }
        assert!(store.refs().unwrap().is_empty(), "{name}");
        refused += 1;
    }
    assert_eq!((imported, late), (IMPORTED.len(), REFUSED_LATE.len()));
    assert!(refused >= 45, "{refused}");
}

/// The tensors of a checkpoint: type, shape and data by name.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Copies a checkpoint into one shard, with other tensors.
fn copy_changed(source: &Path, target: &Path, change: &Change) {
    let mut tensors = Tensors::new();
    for file in fs::read_dir(source).unwrap().map(|entry| entry.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".safetensors") {
            let bytes = fs::read(&file).unwrap();
            for (tensor, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                tensors.insert(tensor, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            }
        } else if !name.ends_with(".index.json") {
            fs::copy(&file, target.join(name)).unwrap();
        }
    }
    let before = tensors.clone();
    match change {
        Change::Drop(fragment) => tensors.retain(|name, _| !name.contains(fragment)),
        Change::Reshape(name, shape) => tensors.get_mut(*name).unwrap().1 = shape.to_vec(),
        Change::Double(name, twin) => drop(tensors.insert((*twin).to_owned(), tensors[*name].clone())),
    }
    assert_ne!(tensors, before);
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize_to_file(views, None, &target.join("model.safetensors")).unwrap();
}

/// How a copy differs from its checkpoint.
enum Change {
    /// It lacks every tensor whose name contains this.
    Drop(&'static str),
    /// This tensor has that shape.
    Reshape(&'static str, &'static [usize]),
    /// The first tensor is there once more, under the second name.
    Double(&'static str, &'static str),
}

#[test]
fn missing_and_odd_tensors_are_named_as_each_family_spells_them() {
    use Change::{Double, Drop, Reshape};
    for (checkpoint, change, words) in [
        (
            "cohere2-moe-bf16",
            Drop("model.layers.1.mlp.experts.2.down_proj.weight"),
            "The `down_proj` of expert 2 of `model.layers.1` is missing",
        ),
        (
            "cohere2-moe-bf16",
            Reshape("model.layers.2.mlp.experts.3.up_proj.weight", &[32, 128]),
            "but `model.layers.2.mlp.experts.3.up_proj.weight` is BF16 [32, 128]",
        ),
        ("cohere2-moe-bf16", Drop("layers.2.mlp.experts."), "`model.layers.2` has a router, but no experts"),
        (
            "deepseek-v3-bf16",
            Drop("model.layers.2.mlp.experts.0.gate_proj.weight"),
            "The `gate_proj` of expert 0 of `model.layers.2` is missing",
        ),
        (
            "deepseek-v3-bf16",
            Drop("model.layers.1.mlp.experts.3."),
            "Expert 3 of `model.layers.1` is missing: the config has 4, the checkpoint 3",
        ),
        ("deepseek-v3-bf16", Drop("layers.1.mlp.experts."), "`model.layers.1` has a router, but no experts"),
        (
            "mixtral-bf16",
            Drop("model.layers.0.block_sparse_moe.experts.1.w2.weight"),
            "The `w2` of expert 1 of `model.layers.0` is missing",
        ),
        ("mixtral-bf16", Drop(".w3.weight"), "The `w3` of `model.layers.0` is missing"),
        (
            "mixtral-bf16",
            Drop("model.layers.1.block_sparse_moe.experts.2."),
            "Expert 2 of `model.layers.1` is missing: the config has 4, the checkpoint 3",
        ),
        (
            "mixtral-bf16",
            Reshape("model.layers.0.block_sparse_moe.experts.1.w1.weight", &[128, 32]),
            "but `model.layers.0.block_sparse_moe.experts.1.w1.weight` is BF16 [128, 32]",
        ),
        ("mixtral-bf16", Drop("block_sparse_moe.experts."), "`model.layers.0` has a router, but no experts"),
        (
            "nemotron-h-bf16",
            Drop("backbone.layers.1.mixer.experts.3.up_proj.weight"),
            "The `up_proj` of expert 3 of `backbone.layers.1` is missing",
        ),
        (
            "nemotron-h-bf16",
            Double(
                "backbone.layers.1.mixer.experts.0.up_proj.weight",
                "backbone.layers.1.mixer.experts.0.gate_proj.weight",
            ),
            "no gate, but there is `backbone.layers.1.mixer.experts.0.gate_proj.weight`",
        ),
        ("nemotron-h-bf16", Drop("mixer.experts."), "`backbone.layers.1` has a router, but no experts"),
        ("nemotron-h-bf16", Drop("embeddings"), "There is no tensor `backbone.embeddings.weight`"),
        (
            "nemotron-h-bf16",
            Reshape("backbone.layers.3.mixer.up_proj.weight", &[64, 128]),
            "The config's `hidden_size` is 64, but `backbone.layers.3.mixer.up_proj.weight` has the shape [64, 128]",
        ),
    ] {
        let place = tempfile::tempdir().unwrap();
        let source = place.path().join("checkpoint");
        fs::create_dir(&source).unwrap();
        let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(checkpoint);
        copy_changed(&original, &source, &change);
        let store = Store::open(&place.path().join("store")).unwrap();
        let options = Options {
            name: "model:a".parse().unwrap(),
            source: source.into(),
            request: Request::default(),
            dialect: Dialect::Ollama,
            threads: 1,
        };
        let error = create(&store, &options, &Progress::silent()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Input, "{checkpoint}: {error}");
        assert!(error.to_string().contains(words), "{checkpoint}: {error}");
    }
}
