//! One table of digests, whatever the program runs on: so many threads, these instructions, files in this order, a machine
//! of this name. CI runs this file, `tests/environment.rs` and `tests/golden.rs` twice, as they are built for tests and as
//! they are released; the table is `tests/golden/manifests.txt` for all.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

#[path = "cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln::oci::Digest;
use kiln::quant::Instructions;
use place::{Place, Run};

const MODELS: [(&str, &str); 4] = [
    ("llama-tied-bf16", "mxfp8"),
    ("llama-tied-bf16", "nvfp4"),
    ("qwen3-moe-12e-bf16", "int4"),
    ("fp8-qwen3-moe", "mxfp4"),
];
const THREADS: [&str; 5] = ["1", "2", "3", "7", "16"];
/// What is kept of a release.
const KEPT: [(&str, &str); 5] = [
    ("llama-tied-bf16", "none"),
    ("llama-tied-bf16", "nvfp4"),
    ("qwen3-moe-12e-bf16", "int4"),
    ("qwen3-moe-12e-bf16", "mxfp8"),
    ("gemma4-moe-vl-bf16", "int8"),
];

fn golden(checkpoint: &str, scheme: &str) -> String {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/manifests.txt");
    let lines = fs::read_to_string(record).unwrap();
    let line = lines.lines().find_map(|line| line.strip_prefix(&format!("{checkpoint} {scheme} ")));
    line.unwrap_or_else(|| panic!("no digest of {checkpoint} {scheme}")).to_owned()
}

fn created(place: &Place, name: &str, source: &str, scheme: &str, set: impl FnOnce(&mut Command)) -> Run {
    let scheme = if scheme == "none" { String::new() } else { format!(" --quantize {scheme}") };
    let mut command = place.command(&format!("create {name} {source} --json --store {name}{scheme}"));
    set(&mut command);
    place.run(command)
}

#[test]
fn threads_and_instructions_do_not_show() {
    let sets: Vec<String> = Instructions::available().map(|set| set.to_string()).collect();
    println!("this processor has {sets:?}");
    assert_eq!(sets[0], "portable");
    for (checkpoint, scheme) in MODELS {
        let place = Place::new();
        place.checkpoint(checkpoint, "checkpoint");
        let expected = golden(checkpoint, scheme);
        for set in &sets {
            for threads in THREADS {
                let run = created(&place, &format!("{set}-{threads}"), "checkpoint", scheme, |command| {
                    command.env("KILN_THREADS", threads).env("KILN_INSTRUCTIONS", set);
                });
                let digest = run.expect(0).last_object()["digest"].clone();
                assert_eq!(digest, expected, "{checkpoint} {scheme}: {threads} threads, {set}");
            }
        }
    }
}

#[test]
fn instructions_that_the_processor_does_not_have_are_refused() {
    let place = Place::new();
    let mut command = place.command("list");
    command.env("KILN_INSTRUCTIONS", "mmx");
    let run = place.run(command);
    run.expect(2);
    assert!(run.stderr.contains("`mmx`") && run.stderr.contains("this processor has `portable`"), "{run}");
}

#[test]
fn the_order_and_the_age_of_files_do_not_show() {
    for (checkpoint, scheme) in MODELS {
        let place = Place::new();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(checkpoint);
        let mut files: Vec<PathBuf> = fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        for (name, backwards) in [("forwards", false), ("backwards", true)] {
            fs::create_dir(place.path(name)).unwrap();
            let ordered: Vec<&PathBuf> = if backwards { files.iter().rev().collect() } else { files.iter().collect() };
            for (age, file) in (1..).zip(ordered) {
                let target = place.path(name).join(file.file_name().unwrap());
                fs::write(&target, fs::read(file).unwrap()).unwrap();
                let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(age * 100_000_000);
                fs::File::options().write(true).open(target).unwrap().set_modified(time).unwrap();
            }
            let run = created(&place, &format!("of-{name}"), name, scheme, |_| {});
            assert_eq!(
                run.expect(0).last_object()["digest"],
                golden(checkpoint, scheme),
                "{checkpoint} {scheme} {name}"
            );
        }
    }
}

/// Runs where a process may have a host name of its own; elsewhere there is nothing to see, and it says so.
#[test]
fn the_name_of_the_machine_does_not_show() {
    let may = Command::new("unshare").args(["--uts", "true"]).status().is_ok_and(|status| status.success());
    let (checkpoint, scheme) = MODELS[1];
    let place = Place::new();
    place.checkpoint(checkpoint, "checkpoint");
    for name in ["a", "another.example"] {
        let mut command = if may { Command::new("unshare") } else { Command::new("/bin/sh") };
        let script = if may { format!("hostname {name}; exec \"$0\" \"$@\"") } else { "exec \"$0\" \"$@\"".to_owned() };
        let shell: &[&str] = if may { &["--uts", "/bin/sh", "-c"] } else { &["-c"] };
        command.args(shell).arg(script).arg(env!("CARGO_BIN_EXE_kiln"));
        command.args(["create", name, "checkpoint", "--json", "--quantize", scheme, "--store", name]);
        command.current_dir(place.path("")).env("HOSTNAME", name);
        println!("own host name: {may}");
        assert_eq!(place.run(command).expect(0).last_object()["digest"], golden(checkpoint, scheme), "{name}");
    }
}

/// Manifest and lock of every model that is kept of a release, by version: the bytes as they were published.
fn releases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/releases")
}

#[test]
fn what_earlier_releases_published_is_rebuilt() {
    let own = releases().join(env!("CARGO_PKG_VERSION"));
    let mut versions: Vec<PathBuf> = fs::read_dir(releases()).unwrap().map(|entry| entry.unwrap().path()).collect();
    if std::env::var_os("KILN_BLESS").is_some() && !versions.contains(&own) {
        fs::create_dir(&own).unwrap();
        versions.push(own);
    }
    versions.sort();
    assert!(!versions.is_empty());
    for version in versions {
        for (checkpoint, scheme) in KEPT {
            let place = Place::new();
            place.checkpoint(checkpoint, "checkpoint");
            let run = created(&place, "model", "checkpoint", scheme, |_| {});
            let digest = run.expect(0).last_object()["digest"].as_str().unwrap().to_owned();
            let stored = |digest: &str| place.path("model/blobs/sha256").join(&digest["sha256:".len()..]);
            let [manifest, lock] =
                ["manifest", "lock"].map(|kind| version.join(format!("{checkpoint}.{scheme}.{kind}.json")));
            let shown = place.kiln("show model --json --store model").last_object();
            let layers = shown["layers"].as_array().unwrap();
            let lock_layer = layers.iter().find(|layer| layer["name"] == "kiln.lock").unwrap();
            let lock_digest = lock_layer["digest"].as_str().unwrap();
            if !manifest.exists() && std::env::var_os("KILN_BLESS").is_some() {
                fs::copy(stored(&digest), &manifest).unwrap();
                fs::copy(stored(lock_digest), &lock).unwrap();
                for file in [&manifest, &lock] {
                    fs::set_permissions(file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
                }
            }
            let (manifest, lock) = (fs::read(manifest).unwrap(), fs::read(lock).unwrap());
            let what = format!("{} {checkpoint} {scheme}", version.display());
            let epoch = serde_json::from_slice::<serde_json::Value>(&lock).unwrap()["epoch"].clone();
            if epoch != kiln::manifest::EPOCH {
                // Other bytes by intention: whoever has the old model is told that this kiln cannot check it.
                assert_ne!(Digest::of(&manifest).to_string(), digest, "{what}: the epoch was raised for nothing");
                continue;
            }
            assert_eq!(Digest::of(&lock).to_string(), lock_digest, "{what}");
            assert_eq!(Digest::of(&manifest).to_string(), digest, "{what}");
            // The published bytes in the place of those that were made just now.
            fs::remove_file(stored(&digest)).unwrap();
            fs::write(stored(&digest), &manifest).unwrap();
            let verified = place.kiln("verify model --level rebuild --json --store model");
            assert_eq!(verified.expect(0).last_object()["event"], "verified", "{what}");
        }
    }
}
