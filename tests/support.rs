//! `docs/support.md` is what happened: every checkpoint of `tests/checkpoints`, created in every profile without
//! `--quantize` and verified, or refused with the words that stand there and nothing stored.
//! `KILN_BLESS=1 cargo test --test support` writes the table anew.

#![allow(clippy::unwrap_used)] // in functions that the test uses

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::inventory::Inventory;
use kiln::manifest::Dialect;
use kiln::ops::create::{self, Options};
use kiln::ops::verify::{self, Level, Outcome};
use kiln::plan::{Profile, Request};
use kiln::source::Checkpoint;
use kiln::store::Store;
use kiln::{ErrorKind, Progress};
use tempfile::TempDir;

const BEGIN: &str = "<!-- made by tests/support.rs -->\n";
const END: &str = "<!-- end -->";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn checkpoints() -> Vec<PathBuf> {
    let directory = root().join("tests/checkpoints");
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = entries.filter(|path| !path.ends_with("damaged")).collect();
    found.sort();
    found
}

/// The number of layers, or why there are none.
fn outcome(source: &Path, profile: Profile) -> Result<u64, String> {
    let place = TempDir::new().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let options = Options {
        name: "model:support".parse().unwrap(),
        source: source.to_owned().into(),
        request: Request { profile, ..Request::default() },
        dialect: if profile == Profile::Ollama { Dialect::Ollama } else { Dialect::ModelPack },
        threads: 2,
    };
    match create::create(&store, &options, &Progress::silent()) {
        Ok(created) => {
            let options = verify::Options::new(options.name, Level::Rebuild);
            let verified = verify::verify(&store, &options, &Progress::silent()).unwrap();
            assert_eq!(verified.outcome(), Outcome::Ok, "{} {profile}: {:?}", source.display(), verified.findings);
            Ok(created.layers)
        }
        Err(error) => {
            assert!([ErrorKind::Input, ErrorKind::Usage].contains(&error.kind()), "{}: {error}", source.display());
            assert_eq!(fs::read_dir(place.path().join("store/ingest")).map_or(0, Iterator::count), 0, "{error}");
            assert!(!place.path().join("store/blobs/sha256").read_dir().is_ok_and(|mut blobs| blobs.next().is_some()));
            Err(error.to_string())
        }
    }
}

fn table() -> String {
    let mut rows = "| checkpoint | source kind | `ollama` | `mlx` | `hf` |\n|---|---|---:|---:|---:|\n".to_owned();
    let mut refusals: Vec<String> = Vec::new();
    for source in checkpoints() {
        let name = source.file_name().unwrap().to_str().unwrap();
        let kind = Inventory::of(&Checkpoint::open(&source).unwrap()).unwrap().kind;
        let cells = Profile::ALL.map(|profile| match outcome(&source, profile) {
            Ok(layers) => format!("{layers} layers"),
            Err(refusal) => {
                let known = refusals.iter().position(|other| *other == refusal);
                let number = known.unwrap_or_else(|| {
                    refusals.push(refusal);
                    refusals.len() - 1
                });
                format!("no ({})", number + 1)
            }
        });
        writeln!(rows, "| `{name}` | {kind} | {} |", cells.join(" | ")).unwrap();
    }
    for (number, refusal) in (1..).zip(&refusals) {
        writeln!(rows, "\n{number}. {refusal}").unwrap();
    }
    rows
}

#[test]
fn the_table_of_what_is_supported_is_what_happens() {
    let path = root().join("docs/support.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (written, after) = rest.split_once(END).unwrap();
    let made = format!("\n{}\n", table());
    if std::env::var_os("KILN_BLESS").is_some() {
        fs::write(&path, format!("{before}{BEGIN}{made}{END}{after}")).unwrap();
        return;
    }
    for (line, expected) in written.lines().zip(made.lines()) {
        assert_eq!(line, expected);
    }
    assert_eq!(written, made);
}
