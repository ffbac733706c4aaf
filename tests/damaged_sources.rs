//! What kiln says about damaged and odd checkpoints, one row for each directory in
//! `tests/checkpoints/damaged`: refused with a message that names the culprit, or read in full.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::path::{Path, PathBuf};

use kiln::inventory::{Inventory, SourceKind};
use kiln::source::Checkpoint;
use kiln::{Error, ErrorKind};

enum Verdict {
    /// Refused with all these words in the message, its causes or its hint.
    Refused(&'static [&'static str]),
    /// Read, as float weights, with this many tensors.
    Read(usize),
    /// Read, with a note that has these words.
    Noted(usize, &'static str),
    /// Read here; what is wrong is between tensors and configuration, or in the numbers, and is
    /// found by the plan or while the weights are written.
    Later(usize),
}
use Verdict::{Later, Noted, Read, Refused};

const SNAPSHOT: &str = "cache-dangling/models--acme--tiny-llama/snapshots/23a1a6f4ba3677333444aa962670e640fad99ed9";

#[rustfmt::skip]
const TABLE: &[(&str, Verdict)] = &[
    ("adapter-only", Refused(&["only a LoRA adapter without", "`adapter_model.safetensors`", "merge the adapter"])),
    ("both-mono-and-shards", Noted(12, "`model.safetensors` is not used")),
    ("cache-dangling", Refused(&["model-00002-of-00003.safetensors`", "symbolic link to a file that is not there", "finish the download"])),
    ("cache-dangling/models--acme--tiny-llama", Refused(&["model-00002-of-00003.safetensors`", "not there"])),
    (SNAPSHOT, Refused(&["model-00002-of-00003.safetensors`", "not there"])),
    ("config-bom", Read(12)),
    ("config-infinity-literal", Read(12)),
    ("config-layers-mismatch", Later(12)),
    ("config-not-object", Refused(&["`config.json` is not a JSON object"])),
    ("dup-config-key", Refused(&["`config.json` is malformed", "duplicate key `num_hidden_layers`"])),
    ("dup-header-key", Refused(&["`model.safetensors`", "`lm_head.weight` is in the header twice"])),
    ("dup-header-key-same", Refused(&["`model.safetensors`", "`lm_head.weight` is in the header twice"])),
    ("dup-index-key", Refused(&["shard index", "`model.norm.weight` is there twice"])),
    ("e5m2-weights", Refused(&["`model.layers.0.mlp.down_proj.weight`", "F8_E5M2"])),
    ("empty-file", Refused(&["`model.safetensors` is empty"])),
    ("extra-consolidated", Noted(12, "`consolidated.safetensors` is not used")),
    ("fp8-missing-scale", Refused(&["`model.layers.0.mlp.gate_proj.weight`", "`model.layers.0.mlp.gate_proj.weight_scale_inv` is missing"])),
    ("gguf-only", Refused(&["only a GGUF file, `model-Q4_K_M.gguf`", "original safetensors"])),
    ("header-len-2p63", Refused(&["`model.safetensors`", "9223372036854775808 bytes"])),
    ("header-len-beyond-file", Refused(&["`model.safetensors`", "ends at byte 90000008", "only 28016"])),
    ("header-not-json", Refused(&["`model.safetensors`", "header is malformed", "expected value"])),
    ("header-unaligned", Read(12)),
    ("hole-in-offsets", Refused(&["`model.safetensors`", "64 bytes before tensor `model.embed_tokens.weight`"])),
    ("index-dotdot", Refused(&["not called `model*.safetensors`, `outside.safetensors`"])),
    ("index-dotdot/repo", Refused(&["`../outside.safetensors`", "not in the checkpoint's own directory"])),
    ("index-empty-map", Refused(&["shard index lists no tensor"])),
    ("index-missing-tensor", Refused(&["`model.layers.0.mlp.extra_proj.weight`", "`model-00001-of-00002.safetensors`", "in no shard"])),
    ("index-subdir", Refused(&["`weights/model-00002-of-00002.safetensors`", "own directory", "next to `config.json`"])),
    ("index-swapped-shards", Refused(&["`lm_head.weight`", "but it is in `model-00001-of-00002.safetensors`"])),
    ("index-unlisted-tensor", Refused(&["`model.norm.weight` in `model-00002-of-00002.safetensors`", "not in the shard index"])),
    ("lfs-pointer", Refused(&["`model.safetensors` is a git-lfs pointer", "git lfs pull"])),
    ("metadata-nonstring", Refused(&["`model.safetensors`", "integer `1`, expected a string"])),
    ("missing-shard", Refused(&["model-00002-of-00003.safetensors` is missing"])),
    ("moe-both-layouts", Later(26)),
    ("moe-config-mismatch", Later(24)),
    ("moe-expert-dtype-mix", Later(24)),
    ("moe-expert-gap", Later(24)),
    ("moe-expert-missing", Later(23)),
    ("moe-expert-shape-mismatch", Later(24)),
    ("moe-stacked-odd-rows", Later(14)),
    ("moe-stacked-rank2", Later(14)),
    ("nan-inf", Later(12)),
    ("no-config", Refused(&["config.json` is missing", "same revision"])),
    ("odd-tensor-names", Refused(&["`model.safetensors`", "a tensor has an empty name"])),
    ("overlapping-offsets", Refused(&["`model.safetensors`", "`model.layers.0.input_layernorm.weight` overlaps"])),
    ("pytorch-bin-only", Refused(&["only a pickle", "`pytorch_model.bin`", "convert it to safetensors"])),
    ("scalar-and-int-tensors", Read(16)),
    ("shards-without-index", Read(12)),
    ("symlink-loop", Refused(&["model.safetensors` is a symbolic link that leads back to itself"])),
    ("tied-both-present", Later(12)),
    ("tied-conflict", Later(12)),
    ("trailing-garbage", Refused(&["`model.safetensors`", "4096 bytes follow the last tensor"])),
    ("truncated-header", Refused(&["`model.safetensors`", "only 100"])),
    ("truncated-shard", Refused(&["`model-00002-of-00002.safetensors`", "`model.layers.0.self_attn.v_proj.weight` ends at byte", "only 5495"])),
    ("unknown-dtype", Refused(&["`model.safetensors`", "`lm_head.weight`", "`Q4_K`"])),
    ("wrong-dtype-size", Refused(&["`model.safetensors`", "`lm_head.weight`", "dtype F32 takes 8192 bytes"])),
    ("wrong-shape-size", Refused(&["`model.safetensors`", "`lm_head.weight`", "shape [65, 32]"])),
    ("wrong-total-size", Noted(12, "wrong `total_size`")),
    ("zero-size-tensor", Read(14)),
];

fn damaged() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/damaged")
}

/// Opens the checkpoint, takes its inventory, and reads every byte that it accounts for.
fn read_all(root: &Path) -> Result<Inventory, Error> {
    let checkpoint = Checkpoint::open(root)?;
    let inventory = Inventory::of(&checkpoint)?;
    for tensor in checkpoint.tensors().values() {
        checkpoint.read_at(tensor, 0, &mut vec![0; tensor.len() as usize])?;
    }
    for sidecar in checkpoint.sidecars() {
        assert_eq!(checkpoint.read_sidecar(&sidecar.name)?.len() as u64, sidecar.size, "{}", sidecar.name);
    }
    checkpoint.check_unchanged()?;
    assert_eq!(inventory.kind, SourceKind::Float);
    Ok(inventory)
}

fn everything_said(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    format!("{text}\n{}", error.hint_text().unwrap_or_default())
}

#[test]
fn each_is_refused_by_name_or_read() {
    let mut failures = Vec::new();
    for (name, verdict) in TABLE {
        let result = read_all(&damaged().join(name));
        let good = match (verdict, &result) {
            (Refused(words), Err(error)) => {
                let text = everything_said(error);
                error.kind() == ErrorKind::Input
                    && words.iter().all(|word| text.contains(word))
                    && text.lines().count() <= 2
            }
            (Read(count) | Later(count), Ok(inventory)) => {
                inventory.tensors.len() == *count && inventory.notes.is_empty()
            }
            (Noted(count, words), Ok(inventory)) => {
                inventory.tensors.len() == *count && inventory.notes.iter().any(|note| note.contains(words))
            }
            _ => false,
        };
        if !good {
            let got =
                result.map_or_else(|e| everything_said(&e), |i| format!("{} tensors, {:?}", i.tensors.len(), i.notes));
            failures.push(format!("{name}: {got}"));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_table_covers_every_directory() {
    let there: BTreeSet<String> = damaged()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    let told: BTreeSet<String> =
        TABLE.iter().map(|(name, _)| (*name).to_owned()).filter(|name| !name.contains('/')).collect();
    assert_eq!(there, told);
    assert!(there.len() >= 55);
}

#[test]
fn a_cache_entry_is_opened_by_any_of_its_names() {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/hf-cache-llama");
    let entry = cache.join("models--acme--tiny-llama");
    let snapshot = entry.join("snapshots/233aeac2ded397627419c0730c82feb48f9dcc9a");
    for root in [&cache, &entry, &snapshot] {
        let checkpoint = Checkpoint::open(root).unwrap();
        assert_eq!(checkpoint.root(), snapshot);
        assert_eq!(read_all(root).unwrap().tensors.len(), 12);
        let names: Vec<&str> = checkpoint.sidecars().iter().map(|sidecar| sidecar.name.as_str()).collect();
        assert_eq!(names, ["config.json", "tokenizer.json", "tokenizer_config.json"]);
    }
}

#[test]
fn no_checkpoint_at_all_is_not_found() {
    let error = Checkpoint::open(&damaged().join("nowhere")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = Checkpoint::open(&damaged().join("no-config/model.safetensors")).unwrap_err();
    assert!(error.to_string().contains("is a file, not the directory"), "{error}");
}
