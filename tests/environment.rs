//! The environment does not show in a digest: whatever the umask, the language, the time zone, the working
//! directory and the home are, the program gives the digests of `tests/golden/manifests.txt`.

#![allow(clippy::unwrap_used, reason = "all of this file is a test")]

#[path = "cli/place.rs"]
#[allow(dead_code, reason = "the tests of the command line use all of it")]
mod place;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use place::Place;

const MODELS: [(&str, &str); 3] =
    [("llama-tied-bf16", "nvfp4"), ("qwen3-moe-12e-bf16", "int4"), ("gemma4-moe-vl-bf16", "none")];

/// What is different for a run: the umask, variables, the working directory within the place, and how the
/// checkpoint is called from there.
struct Surroundings {
    what: &'static str,
    umask: &'static str,
    variables: &'static [(&'static str, &'static str)],
    directory: &'static str,
    source: &'static str,
}

const PLAIN: Surroundings =
    Surroundings { what: "nothing", umask: "022", variables: &[], directory: "", source: "checkpoint" };

const SURROUNDINGS: [Surroundings; 8] = [
    PLAIN,
    Surroundings { what: "files for the user only", umask: "077", ..PLAIN },
    Surroundings { what: "files for everybody", umask: "000", ..PLAIN },
    Surroundings {
        what: "a language with a dotless i",
        variables: &[("LANG", "tr_TR.UTF-8"), ("LC_ALL", "tr_TR.UTF-8"), ("LANGUAGE", "tr")],
        ..PLAIN
    },
    Surroundings { what: "a time zone with minutes", variables: &[("TZ", "Asia/Kathmandu")], ..PLAIN },
    Surroundings { what: "another temporary directory", variables: &[("TMPDIR", "elsewhere/tmp")], ..PLAIN },
    Surroundings {
        what: "another working directory",
        directory: "elsewhere",
        source: "./../elsewhere/../checkpoint",
        ..PLAIN
    },
    Surroundings {
        what: "settings of other programs",
        variables: &[
            ("RUST_LOG", "trace"),
            ("NO_COLOR", "1"),
            ("TERM", "xterm"),
            ("COLUMNS", "20"),
            ("KILN_THREADS", "5"),
        ],
        ..PLAIN
    },
];

fn golden(checkpoint: &str, scheme: &str) -> String {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/manifests.txt");
    let lines = fs::read_to_string(record).unwrap();
    let line = lines.lines().find_map(|line| line.strip_prefix(&format!("{checkpoint} {scheme} ")));
    line.unwrap_or_else(|| panic!("no digest of {checkpoint} {scheme}")).to_owned()
}

#[test]
fn the_environment_does_not_show() {
    for (checkpoint, scheme) in MODELS {
        let place = Place::new();
        place.checkpoint(checkpoint, "checkpoint");
        fs::create_dir_all(place.path("elsewhere/tmp")).unwrap();
        let expected = golden(checkpoint, scheme);
        for (number, Surroundings { what, umask, variables, directory, source }) in SURROUNDINGS.iter().enumerate() {
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_kiln")])
                .args(["create", "model:golden", source, "--json", "--store"])
                .arg(place.path(&format!("store-{number}")))
                .current_dir(place.path(directory))
                .env_clear()
                // Without a home.
                .envs(variables.iter().copied())
                .stdin(Stdio::null());
            if scheme != "none" {
                command.args(["--quantize", scheme]);
            }
            let run = place.run(command);
            run.expect(0);
            assert_eq!(run.last_object()["digest"], expected, "{checkpoint} {scheme} with {what}");
        }
    }
}

#[test]
fn without_a_home_the_store_has_to_be_named() {
    let place = Place::new();
    place.checkpoint("llama-tied-bf16", "checkpoint");
    let run = |store: Option<&str>| {
        let mut command = place.command("create model:golden checkpoint --json");
        command.env_remove("HOME").env_remove("KILN_STORE");
        store.into_iter().for_each(|store| {
            command.env("KILN_STORE", store);
        });
        place.run(command)
    };
    run(None).expect(2);
    assert_eq!(run(Some("named")).expect(0).last_object()["digest"], golden("llama-tied-bf16", "none"));
}
