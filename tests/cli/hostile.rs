//! Models from elsewhere whose manifest, lock or headers were written to harm whoever looks at them. kiln
//! says what is wrong, in lines of its own, and never panics.

use std::fs;

use kiln::oci::Digest;
use serde_json::{Value, json};

use crate::place::Place;

/// Clears the screen, and goes on as if kiln said it.
const NAME: &str = "\u{1b}[2Jw\nresult: ok\u{202e}\u{7}";

/// Puts content into the store as a pull would, and gives what a manifest says about it.
pub(crate) fn keep(place: &Place, media_type: &str, name: &str, bytes: &[u8]) -> Value {
    let digest = Digest::of(bytes);
    fs::write(place.blob(&digest.to_string()), bytes).unwrap();
    json!({"mediaType": media_type, "digest": digest, "size": bytes.len(), "name": name})
}

/// Names a manifest with these layers `evil:latest`.
pub(crate) fn publish(place: &Place, layers: &[Value]) {
    let media_type = "application/vnd.docker.distribution.manifest.v2+json";
    let config = keep(place, NAME, "config", b"{}");
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
    let mut entry = keep(place, media_type, "manifest", manifest.to_string().as_bytes());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "evil:latest"});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(place.path("store/index.json"), index.to_string()).unwrap();
}

/// Looks at the model in every way there is.
#[track_caller]
fn look(place: &Place) {
    for words in [
        "list",
        "show evil",
        "show evil --verbose",
        "verify evil",
        "verify evil --level rebuild",
        "checkout evil out",
        "gc --dry-run",
    ] {
        let run = place.kiln(words);
        assert!((0..=9).contains(&run.code()) && run.code() != 1, "{words}: {run}");
        for text in [&run.stdout, &run.stderr] {
            let moves = |character: char| character.is_control() && character != '\n' || character == '\u{202e}';
            assert!(!text.contains(moves), "{words}: {text:?}");
            assert!(words.starts_with("verify") || !text.lines().any(|line| line.starts_with("result: ok")), "{text}");
        }
        if words.starts_with("verify") {
            let verdicts = run.stdout.lines().filter(|line| line.starts_with("result: ")).collect::<Vec<_>>();
            assert!(!verdicts.contains(&"result: ok") && verdicts.len() <= 1, "{words}: {run}");
        }
    }
}

#[test]
fn a_layer_is_told_as_it_is_whatever_its_name_and_header() {
    let place = Place::new();
    place.kiln("list").expect(0);
    let tensor = "application/vnd.ollama.image.tensor";
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let max = u64::MAX;
    for bytes in [
        Vec::new(),
        b"short".to_vec(),
        [0xff; 64].to_vec(),
        header("{}"),
        header(&"[".repeat(100_000)),
        header(&format!(r#"{{"w":{{"dtype":"F32","shape":[{max},{max}],"data_offsets":[0,{max}]}}}}"#)),
        header(r#"{"\u001b[2Jw":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#),
        header(r#"{"w":{"dtype":"\u001b[2J","shape":[0],"data_offsets":[0,0]}}"#),
        header(r#"{"w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"__metadata__":{"quant_type":"\u001b[2J"}}"#),
    ] {
        publish(&place, &[keep(&place, tensor, NAME, &bytes), keep(&place, NAME, "config.json", b"{}")]);
        look(&place);
    }
}

#[test]
fn sizes_that_no_disk_has_are_only_numbers() {
    let place = Place::new();
    place.kiln("list").expect(0);
    for (media_type, name) in [
        ("application/vnd.ollama.image.tensor", NAME),
        ("application/vnd.kiln.lock.v1+json", "kiln.lock"),
        ("application/vnd.ollama.image.json", "config.json"),
    ] {
        let mut layer = keep(&place, media_type, name, b"{}");
        layer["size"] = u64::MAX.into();
        publish(&place, &[layer.clone(), layer]);
        look(&place);
        assert_eq!(place.kiln("ls --json").last_object()["bytes"], u64::MAX);
    }
}

#[test]
fn a_lock_of_any_words_is_shown_on_lines_of_its_own() {
    let place = Place::new();
    place.kiln("list").expect(0);
    let tensor = json!({"dtype": NAME, "layer": NAME, "name": NAME, "scheme": NAME, "shape": [u64::MAX, u64::MAX],
        "sources": [{"dtype": NAME, "name": NAME, "shape": []}], "transform": NAME});
    let lock = json!({"epoch": 1, "kind": NAME, "normalizations": [NAME], "numerics": NAME, "profile": NAME,
        "schemaVersion": 1, "scheme": NAME, "tensors": [tensor]});
    let mut unknown = lock.clone();
    unknown[NAME] = json!(1);
    for lock in [lock, unknown, json!(NAME), json!([])] {
        let bytes = lock.to_string();
        let lock = keep(&place, "application/vnd.kiln.lock.v1+json", "kiln.lock", bytes.as_bytes());
        publish(&place, &[keep(&place, "application/vnd.ollama.image.tensor", NAME, b"w"), lock]);
        look(&place);
    }
}
