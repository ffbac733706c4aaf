//! What `create` makes of each damaged checkpoint: refused as bad input with the store unchanged, or
//! imported. What the source room alone refuses is in `damaged_sources.rs`, word for word.

use std::fs;
use std::path::Path;

use kiln::manifest::Dialect;
use kiln::ops::create::{Options, create};
use kiln::plan::Request;
use kiln::store::Store;
use kiln::{ErrorKind, Progress};

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
            source: source.clone(),
            request: Request { scheme: Some("mxfp4".parse().unwrap()) },
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
