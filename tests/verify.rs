//! What `verify` promises: any damage to stored bytes is found, a faithful re-creation passes, and a
//! difference is named down to the part of a tensor, with a likely cause.

#![allow(clippy::unwrap_used)] // in functions that tests share

mod model;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln::blobs::{Entry, encode_header};
use kiln::copy::{Direction, copy};
use kiln::manifest::layer_name;
use kiln::ops::verify::{Finding, Level, Options, Outcome, Portion, Verified, longest_unread, verify};
use kiln::source::safetensors::parse_header;
use kiln::storage::{Memory, Refs};
use kiln::{ErrorKind, Progress};
use tempfile::TempDir;

use model::{Kiln, array, checkpoint, copy_of};

impl Kiln {
    fn read_until(&self, until: Instant) -> Verified {
        let portion = Portion { until: Some(until), sample: None };
        let options = Options { portion, ..Options::new(self.name.clone(), Level::Digests) };
        verify(&self.store, &options, &Progress::silent()).unwrap()
    }

    fn verify(&self, level: Level, source: Option<PathBuf>) -> Verified {
        let options = Options { source, ..Options::new(self.name.clone(), level) };
        verify(&self.store, &options, &Progress::silent()).unwrap()
    }

    fn first_difference(&self, source: &Path) -> Finding {
        let verified = self.verify(Level::Rebuild, Some(source.to_owned()));
        assert_eq!(verified.outcome(), Outcome::NotReproduced, "{:?}", verified.findings);
        verified.findings[0].clone()
    }
}

fn flip(path: &Path, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 0x10;
    // Blobs are read-only: replace the file, as rot does not ask for permission.
    fs::remove_file(path).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_level_passes_on_a_fresh_model() {
    for (name, scheme) in
        [("qwen3-moe-12e-bf16", Some("int4")), ("gemma4-moe-vl-bf16", Some("nvfp4")), ("llama-f16", None)]
    {
        let kiln = Kiln::holding(&checkpoint(name), scheme);
        for level in Level::ALL {
            let verified = kiln.verify(level, None);
            assert_eq!(verified.outcome(), Outcome::Ok, "{name} {level:?} {:?}", verified.findings);
        }
    }
}

#[test]
fn any_flipped_byte_of_any_blob_is_found() {
    let kiln = Kiln::holding(&checkpoint("damaged/header-unaligned"), Some("nvfp4"));
    let target = kiln.store.find(&kiln.name).unwrap().unwrap();
    let manifest = kiln.manifest();
    let mut flipped = 0;
    for blob in manifest.blobs().chain([&target]) {
        let path = kiln.store.blob_path(&blob.digest);
        let stride = if blob.size < 2048 { 1 } else { 61 };
        for at in (0..blob.size).step_by(stride) {
            flip(&path, at);
            let verified = kiln.verify(Level::Digests, None);
            assert_eq!(verified.outcome(), Outcome::Corrupt, "byte {at} of {}", layer_name(blob));
            flip(&path, at);
            flipped += 1;
        }
    }
    assert!(flipped > 1000, "{flipped}");
    assert_eq!(kiln.verify(Level::Rebuild, None).outcome(), Outcome::Ok, "all flipped back");
}

#[tokio::test]
async fn a_damaged_blob_is_never_published() {
    let kiln = Kiln::holding(&checkpoint("qwen3-moe-12e-bf16"), Some("mxfp4"));
    let target = kiln.store.find(&kiln.name).unwrap().unwrap();
    for blob in kiln.manifest().blobs().chain([&target]) {
        let path = kiln.store.blob_path(&blob.digest);
        flip(&path, blob.size / 2);
        let there = Memory::default();
        let error = copy(Direction::Push, &kiln.store, &kiln.name, &there, &kiln.name, 4, &Progress::silent())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}: {error}", layer_name(blob));
        assert!(there.resolve(&kiln.name).await.unwrap().is_none(), "no tag points at an incomplete model");
        flip(&path, blob.size / 2);
    }
}

#[test]
fn missing_and_shortened_blobs_are_found() {
    let kiln = Kiln::holding(&checkpoint("llama-f16"), None);
    let blob = kiln.manifest().layers[3].clone();
    let path = kiln.store.blob_path(&blob.digest);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let verified = kiln.verify(Level::Tensors, None);
    assert_eq!(verified.outcome(), Outcome::Corrupt);
    assert!(verified.findings[0].message.ends_with("is missing"), "{:?}", verified.findings);
    assert_eq!(verified.not_checked, [Level::Digests, Level::Tensors, Level::Rebuild, Level::Trust]);
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(kiln.verify(Level::Structure, None).outcome(), Outcome::Corrupt);
}

#[test]
fn a_run_goes_on_where_time_was_up() {
    let kiln = Kiln::holding(&checkpoint("llama-f16"), None);
    let blobs = kiln.manifest().blobs().map(|blob| blob.digest).collect::<BTreeSet<_>>();
    let damaged = blobs.iter().nth(blobs.len() - 2).unwrap();
    flip(&kiln.store.blob_path(damaged), 1);
    // Time is up when one blob was read.
    let run = || kiln.read_until(Instant::now());
    for left in (1..blobs.len()).rev() {
        let verified = run();
        let said = |what: String| verified.findings.iter().any(|finding| finding.message.contains(&what));
        assert!(said(format!("{left} of {} blobs were not read", blobs.len())), "{:?}", verified.findings);
        let is_the_damaged = left == 1;
        assert_eq!(said(format!("{damaged}` of")), is_the_damaged, "{left} left: {:?}", verified.findings);
        let outcome = if is_the_damaged { Outcome::Corrupt } else { Outcome::CouldNotCheck };
        assert_eq!((verified.outcome(), verified.not_checked[0]), (outcome, Level::Digests));
    }
    assert_eq!(run().outcome(), Outcome::Ok, "the last one is sound, and all were read");
    assert_eq!(run().outcome(), Outcome::CouldNotCheck, "from the beginning");
    let later = Instant::now() + Duration::from_secs(600);
    assert_eq!(kiln.read_until(later).outcome(), Outcome::Corrupt, "what is left after the first");
}

#[test]
fn the_model_that_was_read_longest_ago_comes_first() {
    let kiln = Kiln::holding(&checkpoint("llama-f16"), None);
    let target = kiln.store.find(&kiln.name).unwrap().unwrap();
    let import = kiln.store.begin_import().unwrap();
    let (manifest, bytes) = kiln.store.manifest(&target).unwrap();
    let (_, other) = (manifest, [&bytes[..], b" "].concat());
    let other = import.stage_bytes(target.media_type.clone(), &other).unwrap();
    import.commit(&"model:b".parse().unwrap(), &other).unwrap();
    let order = || longest_unread(&kiln.store).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(order(), ["model:a", "model:b"]);
    assert_eq!(kiln.read_until(Instant::now() + Duration::from_secs(600)).outcome(), Outcome::Ok);
    assert_eq!(order(), ["model:b", "model:a"]);
}

const TENSOR: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn a_difference_names_the_tensor_the_part_and_the_bytes() {
    let source = checkpoint("qwen3-moe-bf16");
    for (suffix, part) in [("", "packed"), (".bias", "biases"), (".scale", "scales")] {
        let kiln = Kiln::holding(&source, Some("int4"));
        kiln.replace(TENSOR, |bytes| {
            let place = array(bytes, &format!("{TENSOR}{suffix}"));
            bytes[place.start] ^= 1;
            bytes[place.end - 1] ^= 1;
        });
        let finding = kiln.first_difference(&source);
        assert_eq!(finding.tensor.as_deref(), Some(TENSOR));
        assert_eq!((finding.part, finding.bytes), (Some(part), Some(2)), "{finding:?}");
        assert!(finding.cause.unwrap().contains("other arithmetic"));
    }
}

#[test]
fn a_header_that_is_not_canonical_is_found_without_the_source() {
    let kiln = Kiln::holding(&checkpoint("llama-f16"), None);
    kiln.replace("model.norm.weight", |bytes| {
        let header = parse_header(bytes, bytes.len() as u64).unwrap();
        let entry = &header.tensors[0];
        let entry = Entry {
            name: entry.name.clone(),
            dtype: entry.dtype.name(),
            shape: entry.shape.clone(),
            data_offsets: [entry.begin, entry.end],
        };
        let mut longer = encode_header(&header.metadata, &[entry]);
        // Eight more spaces of padding: the same tensor, another spelling.
        let length = u64::from_le_bytes(longer[..8].try_into().unwrap()) + 8;
        longer[..8].copy_from_slice(&length.to_le_bytes());
        longer.extend([b' '; 8]);
        longer.extend_from_slice(&bytes[header.data_start as usize..]);
        *bytes = longer;
    });
    let verified = kiln.verify(Level::Tensors, None);
    assert_eq!(verified.outcome(), Outcome::Corrupt);
    assert!(verified.findings[0].message.contains("not in canonical form"), "{:?}", verified.findings);
}

#[test]
fn another_source_is_told_apart_from_a_failed_reproduction() {
    let kiln = Kiln::holding(&checkpoint("qwen3-moe-bf16"), Some("nvfp4"));
    let changed = TempDir::new().unwrap();
    copy_of(&checkpoint("qwen3-moe-bf16"), changed.path());
    let shard = fs::read_dir(changed.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.extension().is_some_and(|ending| ending == "safetensors")
                && String::from_utf8_lossy(&fs::read(path).unwrap()).contains(TENSOR)
        })
        .unwrap();
    let original = fs::read(&shard).unwrap();
    let place = array(&original, TENSOR);
    // The lowest bit of a mantissa vanishes in four bits, the sign does not.
    for (at, part) in [(place.start, None), (place.start + 1, Some("packed"))] {
        let mut bytes = original.clone();
        bytes[at] ^= if part.is_some() { 0x80 } else { 1 };
        fs::write(&shard, bytes).unwrap();
        let finding = kiln.first_difference(changed.path());
        assert_eq!((finding.tensor.as_deref(), finding.part), (Some(TENSOR), part));
        let cause = finding.cause.unwrap();
        assert!(cause.contains("the source is another one") && cause.contains(TENSOR), "{cause}");
    }
}

#[test]
fn a_tensor_that_the_source_lacks_is_named() {
    let finding = Kiln::holding(&checkpoint("llama-f16"), Some("int4")).first_difference(&checkpoint("llama-f32"));
    assert_eq!(finding.layer.as_deref(), Some("lm_head.weight"));
    assert_eq!(finding.tensor.as_deref(), Some("lm_head.weight"));
    assert_eq!(finding.cause.as_deref(), Some("the source lacks this tensor"));
}

#[test]
fn another_sidecar_is_named() {
    let kiln = Kiln::holding(&checkpoint("llama-f16"), None);
    let changed = TempDir::new().unwrap();
    copy_of(&checkpoint("llama-f16"), changed.path());
    fs::write(changed.path().join("generation_config.json"), "{}").unwrap();
    let finding = kiln.first_difference(changed.path());
    assert_eq!(finding.layer.as_deref(), Some("generation_config.json"));
}

#[test]
fn without_a_source_the_answer_is_that_it_could_not_be_checked() {
    let elsewhere = TempDir::new().unwrap();
    copy_of(&checkpoint("llama-f16"), elsewhere.path());
    let kiln = Kiln::holding(elsewhere.path(), None);
    drop(elsewhere);
    let verified = kiln.verify(Level::Rebuild, None);
    assert_eq!(verified.outcome(), Outcome::CouldNotCheck, "{:?}", verified.findings);
    assert!(kiln.place.path().exists());
}

/// Each of these is a lock that a registry could send, and none of them may be more than a finding.
#[test]
fn a_hostile_lock_is_a_finding() {
    let kiln = Kiln::holding(&checkpoint("qwen3-moe-12e-bf16"), Some("int4"));
    let original = kiln.store.read_blob(kiln.manifest().layers.last().unwrap()).unwrap();
    let original: serde_json::Value = serde_json::from_slice(&original).unwrap();
    let quantized = original["tensors"].as_array().unwrap().iter().position(|tensor| tensor["scheme"].is_string());
    let quantized = quantized.unwrap();
    let tensor = |field: &'static str, value: serde_json::Value| {
        let mut lock = original.clone();
        lock["tensors"][quantized][field] = value;
        lock.to_string()
    };
    // Largest multiples of every group, and what is larger than any file in each way.
    let huge = u64::MAX - 127;
    for lock in [
        tensor("shape", serde_json::json!([huge])),
        tensor("shape", serde_json::json!([huge, huge, huge])),
        tensor("shape", serde_json::json!([u64::MAX])),
        tensor("shape", serde_json::json!([])),
        tensor("shape", serde_json::json!([0, huge])),
        tensor("shape", serde_json::json!(vec![1; 10_000])),
        tensor("scheme", "affine8-g128".into()),
        tensor("scheme", "\u{1b}[2Jint4\nresult: ok".into()),
        tensor("scheme", serde_json::Value::Null),
        tensor("dtype", "\u{1b}[2JBF16\nresult: ok".into()),
        tensor("dtype", "I64".into()),
        tensor("name", "\u{1b}[2Jx\nresult: ok".into()),
        tensor("layer", "\u{1b}[2Jx\nresult: ok".into()),
        r#"{"schemaVersion":1}"#.to_owned(),
        "[".repeat(100_000),
        "null".to_owned(),
        String::new(),
    ] {
        kiln.replace("kiln.lock", |bytes| *bytes = lock.clone().into_bytes());
        let verified = kiln.verify(Level::Rebuild, None);
        assert_eq!(verified.outcome(), Outcome::Corrupt, "{lock:.300}");
        for finding in &verified.findings {
            assert!(!finding.message.contains(char::is_control), "{:?}", finding.message);
        }
    }
}

#[test]
fn a_scheme_that_this_kiln_does_not_have_cannot_be_checked() {
    let kiln = Kiln::holding(&checkpoint("llama-f16"), None);
    kiln.replace("kiln.lock", |bytes| {
        let mut lock: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        lock["scheme"] = "int1".into();
        *bytes = lock.to_string().into_bytes();
    });
    let verified = kiln.verify(Level::Rebuild, Some(checkpoint("llama-f16")));
    assert_eq!(verified.outcome(), Outcome::CouldNotCheck, "{:?}", verified.findings);
}

#[test]
fn a_configuration_that_is_no_object_is_a_finding() {
    let kiln = Kiln::holding(&checkpoint("llama-f16"), None);
    for config in ["{", "[]", ""] {
        kiln.replace("config.json", |bytes| *bytes = config.into());
        let verified = kiln.verify(Level::Tensors, None);
        assert_eq!(verified.outcome(), Outcome::Corrupt, "{config}");
        assert_eq!(verified.findings[0].message, "`config.json` is not a JSON object");
        assert_eq!(verified.findings[0].layer.as_deref(), Some("config.json"));
    }
}
