//! Profile `hf`: the files of a checkpoint as they are, one layer each, and a checkout that is the same directory.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::manifest::Dialect;
use kiln::oci::{Digest, Reference};
use kiln::ops::{checkout, create, inspect, verify};
use kiln::plan::{Profile, Request};
use kiln::store::Store;
use kiln::{ErrorKind, Progress, Result};
use tempfile::TempDir;

fn checkpoints() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints")
}

/// The folders in `folder`, by name.
fn folders(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let entries = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file below `folder`, links followed, by its path below it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()) {
        let name = entry.file_name().into_string().unwrap();
        if entry.path().is_dir() {
            files.extend(
                self::files(&entry.path()).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)),
            );
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    files
}

struct Fresh {
    place: TempDir,
    store: Store,
}

impl Fresh {
    fn new() -> Self {
        let place = TempDir::new().unwrap();
        let store = Store::open(&place.path().join("store")).unwrap();
        Self { place, store }
    }

    fn name() -> Reference {
        "model:hf".parse().unwrap()
    }

    fn create(&self, source: &Path) -> Result<create::Created> {
        let options = create::Options {
            name: Self::name(),
            source: source.to_owned().into(),
            request: Request { profile: Profile::Hf, ..Request::default() },
            dialect: Dialect::ModelPack,
            threads: 2,
        };
        create::create(&self.store, &options, &Progress::silent())
    }

    fn checkout(&self) -> PathBuf {
        let directory = self.place.path().join("out");
        let options = checkout::Options { name: Self::name(), directory: directory.clone(), link: None, threads: 2 };
        checkout::checkout(&self.store, &options, &Progress::silent()).unwrap();
        directory
    }

    fn verify(&self, level: verify::Level) -> verify::Verified {
        let options = verify::Options { threads: 2, ..verify::Options::new(Self::name(), level) };
        verify::verify(&self.store, &options, &Progress::silent()).unwrap()
    }
}

#[test]
fn a_checkout_is_the_directory_again_byte_for_byte() {
    let mut count = 0;
    for name in folders(&checkpoints()).iter().filter(|name| *name != "damaged") {
        let source = checkpoints().join(name);
        let fresh = Fresh::new();
        fresh.create(&source).unwrap();
        let snapshot = source.join("models--acme--tiny-llama/snapshots/233aeac2ded397627419c0730c82feb48f9dcc9a");
        let expected = files(if snapshot.is_dir() { &snapshot } else { &source });
        let shown = inspect::show(&fresh.store, &Fresh::name()).unwrap();
        for (path, bytes) in &expected {
            let layer = shown.layers.iter().find(|layer| layer.name == *path).unwrap();
            assert_eq!(layer.descriptor.digest, Digest::of(bytes), "{name}: {path}");
        }
        assert_eq!(shown.layers.len(), expected.len() + 1, "{name}: and the lock");
        assert!(files(&fresh.checkout()) == expected, "{name}");
        let verified = fresh.verify(verify::Level::Rebuild);
        assert_eq!((verified.findings, verified.not_checked), (vec![], vec![verify::Level::Trust]), "{name}");
        count += 1;
    }
    assert!(count >= 24, "{count}");
}

/// A checkpoint with more around it than one runtime reads.
fn with_more(place: &Path) -> PathBuf {
    let source = place.join("source");
    for file in [".git/config", ".cache/huggingface/x.lock", "__pycache__/m.pyc", "1_Pooling/__pycache__/m.pyc"] {
        fs::create_dir_all(source.join(file).parent().unwrap()).unwrap();
        fs::write(source.join(file), "not of the model").unwrap();
    }
    for file in fs::read_dir(checkpoints().join("llama-f16")).unwrap().map(|entry| entry.unwrap()) {
        fs::copy(file.path(), source.join(file.file_name())).unwrap();
    }
    source
}

#[test]
fn folders_documents_code_and_other_weights_are_kept_and_traces_of_tools_are_not() {
    let fresh = Fresh::new();
    let source = with_more(fresh.place.path());
    let weights = fs::read(source.join("model.safetensors")).unwrap();
    let more = [
        ("1_Pooling/config.json", &b"{}"[..]),
        ("modeling_own.py", b"print()"),
        ("notes.md", b"# Notes"),
        ("onnx/deep/model.onnx", b"onnx"),
        ("original/consolidated.safetensors", &weights),
        ("pytorch_model.bin", b"pickle"),
    ];
    for (path, bytes) in more {
        fs::create_dir_all(source.join(path).parent().unwrap()).unwrap();
        fs::write(source.join(path), bytes).unwrap();
    }
    // What another client lays out of a model that kiln made.
    fs::write(source.join("kiln.lock"), "{}").unwrap();
    fs::write(source.join(".gitattributes"), "* text").unwrap();
    fresh.create(&source).unwrap();
    let mut expected = files(&checkpoints().join("llama-f16"));
    expected.extend(more.map(|(path, bytes)| (path.to_owned(), bytes.to_vec())));
    assert!(files(&fresh.checkout()) == expected, "{:?}", files(&fresh.checkout()).keys());
    // The same from its own checkout.
    let digest = inspect::show(&fresh.store, &Fresh::name()).unwrap().digest;
    assert_eq!(Fresh::new().create(&fresh.place.path().join("out")).unwrap().digest, digest);
}

#[test]
fn a_file_may_be_larger_than_a_sidecar_of_other_profiles() {
    let fresh = Fresh::new();
    let source = with_more(fresh.place.path());
    let large = fs::File::create(source.join("pytorch_model.bin")).unwrap();
    large.set_len((64 << 20) + 1).unwrap();
    fresh.create(&source).unwrap();
    assert_eq!(fs::metadata(fresh.checkout().join("pytorch_model.bin")).unwrap().len(), (64 << 20) + 1);
}

#[test]
fn what_cannot_be_laid_out_again_or_is_damaged_is_refused_before_anything_is_written() {
    type Spoil = fn(&Path);
    let table: [(&str, Spoil); 6] = [
        ("would be one file", |source| fs::write(source.join("readme.MD"), "").unwrap()),
        ("is not a path that may be made", |source| fs::write(source.join("a:b"), "").unwrap()),
        ("is not a usable file name", |source| {
            fs::create_dir(source.join("inner")).unwrap();
            fs::write(source.join("inner/a\nb"), "").unwrap();
        }),
        ("leads out of the checkpoint", |source| {
            std::os::unix::fs::symlink("/etc/hostname", source.join("x")).unwrap()
        }),
        ("is not a usable safetensors file", |source| {
            fs::create_dir(source.join("inner")).unwrap();
            fs::write(source.join("inner/other.safetensors"), [0xff; 32]).unwrap();
        }),
        ("is a git-lfs pointer", |source| {
            fs::write(source.join("other.safetensors"), "version https://git-lfs.github.com/spec/v1").unwrap();
        }),
    ];
    for (words, spoil) in table {
        let fresh = Fresh::new();
        let source = with_more(fresh.place.path());
        fs::write(source.join("README.md"), "").unwrap();
        fresh.create(&source).unwrap();
        let before = fs::read_dir(fresh.place.path().join("store/blobs/sha256")).unwrap().count();
        spoil(&source);
        let error = fresh.create(&source).unwrap_err();
        assert!(error.kind() == ErrorKind::Input && error.chain().contains(words), "{words}: {}", error.chain());
        assert_eq!(fs::read_dir(fresh.place.path().join("store/blobs/sha256")).unwrap().count(), before);
    }
}

/// What is odd about these is no damage to a file. Other profiles refuse some of them, as they must use the tensors.
const WELL: [&str; 23] = [
    "both-mono-and-shards",
    "config-bom",
    "config-infinity-literal",
    "config-layers-mismatch",
    "e5m2-weights",
    "extra-consolidated",
    "fp8-missing-scale",
    "header-unaligned",
    "moe-both-layouts",
    "moe-config-mismatch",
    "moe-expert-dtype-mix",
    "moe-expert-gap",
    "moe-expert-missing",
    "moe-expert-shape-mismatch",
    "moe-stacked-odd-rows",
    "moe-stacked-rank2",
    "nan-inf",
    "scalar-and-int-tensors",
    "shards-without-index",
    "tied-both-present",
    "tied-conflict",
    "wrong-total-size",
    "zero-size-tensor",
];

#[test]
fn damaged_checkpoints_are_refused_and_odd_ones_are_kept() {
    let damaged = checkpoints().join("damaged");
    let taken: Vec<String> =
        folders(&damaged).into_iter().filter(|name| Fresh::new().create(&damaged.join(name)).is_ok()).collect();
    assert_eq!(taken, WELL);
}

#[test]
fn nothing_is_quantized_and_ollama_is_not_offered_what_it_cannot_load() {
    let fresh = Fresh::new();
    let source = checkpoints().join("llama-f16");
    let mut options = create::Options {
        name: Fresh::name(),
        source: source.into(),
        request: Request { profile: Profile::Hf, scheme: Some("int4".parse().unwrap()), ..Request::default() },
        dialect: Dialect::ModelPack,
        threads: 1,
    };
    let quantized = create::create(&fresh.store, &options, &Progress::silent()).unwrap_err();
    assert_eq!(quantized.kind(), ErrorKind::Usage);
    (options.request.scheme, options.dialect) = (None, Dialect::Ollama);
    let offered = create::create(&fresh.store, &options, &Progress::silent()).unwrap_err();
    assert_eq!(offered.kind(), ErrorKind::Usage);
}

#[test]
fn another_version_of_a_file_is_told() {
    let fresh = Fresh::new();
    let source = with_more(fresh.place.path());
    fresh.create(&source).unwrap();
    let weights = source.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let verified = fresh.verify(verify::Level::Rebuild);
    assert_eq!(verified.outcome(), verify::Outcome::NotReproduced);
    let finding = &verified.findings[0];
    assert_eq!(
        (finding.bytes, finding.cause.as_deref()),
        (Some(1), Some("the source has another version of this file"))
    );
}
