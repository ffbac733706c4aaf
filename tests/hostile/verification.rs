//! Verification itself.

use std::fs;
use std::process::{Command, Stdio};

use kiln::oci::Digest;
use kiln::source::safetensors::parse_header;
use serde_json::{Value, json};

use crate::files::{entry, weights};
use crate::place::Place;
use crate::trial::{Effect, Row};

/// Puts content into the store as a pull would, and gives what a manifest says about it.
fn keep(place: &Place, media_type: &str, name: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    let path = place.blob(&digest.to_string());
    if !path.exists() {
        fs::write(path, bytes).unwrap();
    }
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len(), "name": name})
}

/// Gives the manifest of `demo:int4` to `change`, and names what comes of it so.
fn with_manifest(place: &Place, change: impl FnOnce(&Place, &mut Value)) {
    let before = fs::read(place.blob(&place.digest("show demo:int4"))).unwrap();
    let mut manifest: Value = serde_json::from_slice(&before).unwrap();
    change(place, &mut manifest);
    let index = place.path("store/index.json");
    let mut names: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let bytes = manifest.to_string();
    let kept = keep(place, "", "", bytes.as_bytes());
    names["manifests"][0]["digest"] = kept["digest"].clone();
    names["manifests"][0]["size"] = kept["size"].clone();
    fs::write(index, names.to_string()).unwrap();
}

/// Replaces a layer by other bytes, with digests to match: what no hash can notice.
fn with_layer(place: &Place, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    with_manifest(place, |place, manifest| {
        let layers = manifest["layers"].as_array_mut().unwrap();
        let is_named = |layer: &&mut Value| {
            layer["name"] == name || layer["annotations"]["org.opencontainers.image.title"] == name
        };
        let layer = layers.iter_mut().find(is_named).unwrap_or_else(|| panic!("no layer {name}"));
        let mut bytes = fs::read(place.blob(layer["digest"].as_str().unwrap())).unwrap();
        change(&mut bytes);
        let kept = keep(place, "", "", &bytes);
        layer["digest"] = kept["digest"].clone();
        layer["size"] = kept["size"].clone();
    });
}

/// Flips a bit in the middle of an array of a layer.
fn flip(bytes: &mut [u8], array: &str) {
    let header = parse_header(bytes, bytes.len() as u64).unwrap();
    let entry = header.tensors.iter().find(|entry| entry.name.ends_with(array)).unwrap();
    let at = header.data_start + u64::midpoint(entry.begin, entry.end);
    bytes[at as usize] ^= 1;
}

fn with_lock(place: &Place, change: impl FnOnce(&mut Value)) {
    with_layer(place, "kiln.lock", |bytes| {
        let mut lock: Value = serde_json::from_slice(bytes).unwrap();
        change(&mut lock);
        *bytes = lock.to_string().into_bytes();
    });
}

const SWITCH: &str = "model.layers.0.mlp.switch_mlp";

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let source = |place: &Place| place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    for level in ["structure", "digests", "tensors"] {
        let words = format!("verify demo:int4 --level {level}");
        let sees = |from: &str| {
            ["structure", "digests", "tensors"].iter().position(|l| *l == level)
                >= ["structure", "digests", "tensors"].iter().position(|l| *l == from)
        };
        let row = |what: &str, from: &str| {
            Row::new("V1", format!("{what}, {level}"), words.clone(), if sees(from) { 3 } else { 0 })
        };
        rows.extend([
            row("a blob is missing", "structure")
                .lay(|place| fs::remove_file(place.blob(&place.layer("lm_head.weight"))).unwrap()),
            row("a blob is short", "structure").lay(|place| {
                let path = place.blob(&place.layer("lm_head.weight"));
                let mut bytes = fs::read(&path).unwrap();
                bytes.pop();
                fs::remove_file(&path).unwrap();
                fs::write(path, bytes).unwrap();
            }),
            row("a bit is flipped", "digests").lay(|place| place.damage(&place.layer("lm_head.weight"), 4000)),
            row("a header is no header", "tensors")
                .lay(|place| with_layer(place, "lm_head.weight", |bytes| bytes[8] = b'!')),
            row("bytes follow the data", "tensors")
                .lay(|place| with_layer(place, "lm_head.weight", |bytes| bytes.push(0))),
            row("a configuration is no object", "tensors")
                .lay(|place| with_layer(place, "config.json", |bytes| *bytes = b"[]".to_vec())),
        ]);
    }
    let hostile_header = |what: &'static str, header: String| {
        Row::new("V1", what, "verify demo:int4", 3).says(["lm_head.weight"]).lay(move |place| {
            with_layer(place, "lm_head.weight", |bytes| *bytes = weights(&header, 4));
        })
    };
    let w = entry("w", "U8", "[4]", "[0,4]");
    rows.extend([
        hostile_header("a layer with a tensor twice", format!("{{{w},{w}}}")),
        hostile_header("a layer with a hole", format!("{{{}}}", entry("w", "U8", "[3]", "[1,4]"))),
        hostile_header(
            "a layer that overflows",
            format!("{{{}}}", entry("w", "F32", "[18446744073709551615,2]", "[0,4]")),
        ),
        hostile_header("a layer of another tensor", format!("{{{w}}}")),
        hostile_header("a layer with a deep header", format!(r#"{{"w":{}"#, "[".repeat(100_000))),
    ]);
    for array in [".weight.scale", ".weight.bias", ".weight"] {
        let row = Row::new("V2", format!("a bit of {array}"), "verify demo:int4 --source checkpoint", 4);
        rows.push(row.says(["lm_head.weight", "not-reproduced"]).lay(move |place| {
            source(place);
            with_layer(place, "lm_head.weight", |bytes| flip(bytes, array));
        }));
    }
    rows.extend([
        Row::new("V2", "a space of the header's padding", "verify demo:int4", 3)
            .says(["lm_head.weight", "not in canonical form"])
            .lay(|place| {
                with_layer(place, "lm_head.weight", |bytes| {
                    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap());
                    bytes.splice(8 + length as usize..8 + length as usize, [b' '; 8]);
                    bytes[..8].copy_from_slice(&(length + 8).to_le_bytes());
                });
            }),
        Row::new("V3", "two experts", "verify demo:int4 --source checkpoint", 4).says(["experts", "3", "5"]).lay(
            move |place| {
                source(place);
                with_layer(place, SWITCH, |bytes| {
                    let header = parse_header(bytes, bytes.len() as u64).unwrap();
                    for entry in header.tensors.iter().filter(|entry| entry.shape.len() == 3) {
                        let each = ((entry.end - entry.begin) / entry.shape[0]) as usize;
                        let start = (header.data_start + entry.begin) as usize;
                        let (left, right) = bytes[start..].split_at_mut(5 * each);
                        left[3 * each..][..each].swap_with_slice(&mut right[..each]);
                    }
                });
            },
        ),
        Row::new("V4", "another checkpoint", "verify demo:int4 --source other", 4)
            .lay(|place| place.checkpoint("qwen3-moe-bf16", "other")),
        Row::new("V4", "a byte of the source", "verify demo:int4 --source checkpoint", 4).lay(move |place| {
            source(place);
            for file in fs::read_dir(place.path("checkpoint")).unwrap().map(|entry| entry.unwrap().path()) {
                if file.extension().is_some_and(|ending| ending == "safetensors") {
                    let mut bytes = fs::read(&file).unwrap();
                    *bytes.last_mut().unwrap() ^= 1;
                    fs::write(file, bytes).unwrap();
                }
            }
        }),
        Row::new("V4", "a lock of other digests", "verify demo:int4 --source checkpoint", 3).effect(Effect::Any).lay(
            move |place| {
                source(place);
                with_lock(place, |lock| lock["tensors"].as_array_mut().unwrap().truncate(1));
            },
        ),
        Row::new("V6", "deleted", "verify demo:int4 --level rebuild", 5).says(["checkpoint"]),
        Row::new("V6", "not there", "verify demo:int4 --source nowhere", 5).says(["nowhere"]),
        Row::new("V6", "a registry that is off", "verify demo:int4 --source 127.0.0.1:1/a:b", 5),
        Row::new("V8", "one group of one matrix", "verify demo:int4 --source checkpoint", 4).says([SWITCH]).lay(
            move |place| {
                source(place);
                with_layer(place, SWITCH, |bytes| {
                    let last = bytes.len() - 1;
                    bytes[last] ^= 1;
                });
            },
        ),
    ]);
    for (what, epoch) in [("newer", json!(1_000_000)), ("older", json!(0)), ("2^32 - 1", json!(u32::MAX))] {
        rows.push(Row::new("V7", what, "verify demo:int4 --source checkpoint", 5).says(["epoch"]).lay(move |place| {
            source(place);
            with_lock(place, |lock| lock["epoch"] = epoch.clone());
        }));
    }
    rows.extend([
        Row::new("V7", "arithmetic of another name", "verify demo:int4 --source checkpoint", 5).says(["numerics"]).lay(
            move |place| {
                source(place);
                with_lock(place, |lock| lock["numerics"] = json!("other/9"));
            },
        ),
        Row::new("V7", "a schema of another version", "verify demo:int4 --source checkpoint", 5).lay(move |place| {
            source(place);
            with_lock(place, |lock| lock["schemaVersion"] = json!(99));
        }),
        Row::new("V7", "no lock", "verify demo:int4 --level rebuild --source checkpoint", 5).lay(move |place| {
            source(place);
            with_manifest(place, |_, manifest| {
                manifest["layers"].as_array_mut().unwrap().retain(|layer| layer["name"] != "kiln.lock");
            });
        }),
        Row::new("V9", "everything is damaged", "verify demo:int4 --json", 3).lay(|place| {
            let blobs = fs::read_dir(place.path("store/blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
            let manifest = place.blob(&place.digest("show demo:int4"));
            for path in blobs.filter(|path| *path != manifest) {
                fs::remove_file(&path).unwrap();
                fs::write(path, "").unwrap();
            }
        }),
        Row::new("V9", "a reader that goes away", "list", 0).check(|place, _| {
            let mut child = place
                .command("verify demo:int4 --json --verbose")
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            drop(child.stdout.take());
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }),
        Row::new("V9", "a disk that is full", "list", 0).check(|place, _| {
            let full = fs::File::options().write(true).open("/dev/full").unwrap();
            let mut command: Command = place.command("verify demo:int4 --json");
            let status = command.stdout(full).stderr(Stdio::null()).status().unwrap();
            assert!(status.code().is_some_and(|code| code != 0), "{status}");
        }),
    ]);
    rows.push(Row::new("V10", "and a collection", "gc", 0).effect(Effect::Any).check(|place, _| {
        let mut others: Vec<_> =
            (0..4).map(|_| place.command("verify demo:int4").stdout(Stdio::null()).spawn().unwrap()).collect();
        for _ in 0..3 {
            place.kiln("gc").expect(0);
        }
        for other in &mut others {
            assert_eq!(other.wait().unwrap().code(), Some(0));
        }
    }));
    rows
}
