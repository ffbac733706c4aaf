//! What `SOURCE` may be: a directory, an entry of the Hugging Face cache, a model of a store.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use insta::assert_snapshot;

use crate::place::Place;
use crate::published::{Layout, Published, Writer};

/// A place whose home has the Hugging Face cache with `acme/tiny-llama` in it.
pub(crate) fn with_cache() -> Place {
    let place = Place::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints/hf-cache-llama/.");
    let hub = place.path("home/.cache/huggingface/hub");
    fs::create_dir_all(&hub).unwrap();
    // With its symbolic links, as `hf download` makes them.
    let copied = Command::new("cp").arg("-R").args([from, hub]).status().unwrap();
    assert!(copied.success());
    place
}

const COMMIT: &str = "233aeac2ded397627419c0730c82feb48f9dcc9a";

#[test]
fn a_model_of_the_hub_is_found_in_the_cache() {
    let place = with_cache();
    let entry = place.path("home/.cache/huggingface/hub/models--acme--tiny-llama");
    let digest = place.digest(&format!("create a {}", entry.display()));
    for source in ["acme/tiny-llama", "hf:acme/tiny-llama", "acme/tiny-llama@main", "acme/tiny-llama@233aeac"] {
        assert_eq!(place.digest(&format!("create b {source}")), digest, "{source}");
    }
    assert_eq!(place.digest(&format!("create b hf:acme/tiny-llama@{COMMIT}")), digest);
    place.kiln("verify b --level rebuild").expect(0);
    place.kiln("verify b --source acme/tiny-llama").expect(0);

    fs::rename(place.path("home/.cache/huggingface"), place.path("elsewhere")).unwrap();
    for (variable, path) in [("HF_HOME", "elsewhere"), ("HF_HUB_CACHE", "elsewhere/hub")] {
        let mut command = place.command("create c acme/tiny-llama");
        command.env(variable, place.path(path));
        place.run(command).expect(0);
    }
}

#[test]
fn what_is_not_in_the_cache_is_not_downloaded() {
    let place = with_cache();
    assert_snapshot!(place.kiln("create a acme/other@v2"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: Nothing here is called `acme/other@v2`
    caused by: The Hugging Face cache `[PLACE]/home/.cache/huggingface/hub` has no entry `acme/other`

    hint: `hf download acme/other --revision v2` puts it there; kiln downloads from registries only
    ");
    assert_snapshot!(place.kiln("create a hf:acme/tiny-llama@v2"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: The cache entry `[PLACE]/home/.cache/huggingface/hub/models--acme--tiny-llama` does not hold the revision `v2`

    hint: finish the download: `hf download` completes a cache entry, with `--revision` for other than `main`
    ");
    assert_snapshot!(place.kiln("create a hf:other"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: The Hugging Face cache `[PLACE]/home/.cache/huggingface/hub` has no entry `other`

    hint: `hf download other` puts it there; kiln downloads from registries only
    ");
    assert_snapshot!(place.kiln("create a ref:nothing"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: No model is named `nothing:latest`

    hint: `kiln list` shows what the store holds
    ");
    assert!(!place.path("store").exists());
}

#[test]
fn a_path_that_is_there_is_meant_before_any_name() {
    let place = with_cache();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    let cached = place.digest("create a acme/tiny-llama");
    let other = place.digest("create checkpoint checkpoint");
    assert_eq!(place.digest("create b checkpoint"), other);
    fs::create_dir(place.path("acme")).unwrap();
    fs::rename(place.path("checkpoint"), place.path("acme/tiny-llama")).unwrap();
    assert_eq!(place.digest("create b acme/tiny-llama"), other);
    assert_eq!(place.digest("create b hf:acme/tiny-llama"), cached);
    // Under another name it is not there: that of the store is meant.
    assert_ne!(place.digest("create b checkpoint"), other);
}

#[test]
fn a_name_that_may_mean_two_things_is_refused() {
    let place = with_cache();
    place.kiln("create acme/tiny-llama acme/tiny-llama").expect(0);
    assert_snapshot!(place.kiln("create b acme/tiny-llama"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: `acme/tiny-llama` is a model in the store and an entry of the Hugging Face cache

    hint: write which one is meant: `ref:acme/tiny-llama` or `hf:acme/tiny-llama`
    ");
    place.kiln("create b hf:acme/tiny-llama").expect(0);
    place.kiln("create b ref:acme/tiny-llama").expect(0);
}

#[test]
fn a_plan_is_made_of_what_is_here() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    place.kiln("create a checkpoint").expect(0);
    let run = place.kiln("create b ref:a --dry-run --json --progress off");
    assert_eq!(run.expect(0).last_object()["family"], "qwen3_moe");
    assert_snapshot!(place.kiln("create b registry.invalid/team/a --dry-run"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: `registry.invalid/team/a:latest` is not in the store

    hint: kiln pull registry.invalid/team/a:latest
    ");
}

/// Every file below `root`, with its bytes and when it was written.
fn contents(root: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                let written = path.metadata().unwrap().modified().unwrap();
                found.insert(path.clone(), (fs::read(path).unwrap(), written));
            }
        }
    }
    found
}

#[test]
fn a_model_of_ollamas_store_is_read_and_nothing_there_is_touched() {
    let place = Place::new();
    let root = place.path("home/.ollama/models");
    let model = Published::of("qwen3-moe-12e-bf16", Layout::Stacked, Writer::Go);
    model.put_ollama(&root, "registry.ollama.ai/library/demo/old");
    let before = contents(&root);
    model.put(&place, "old");
    let digest = place.digest("create a old");
    assert_eq!(place.digest("create b ollama:demo:old"), digest);
    place.kiln("verify b --level rebuild").expect(0);
    assert!(before == contents(&root));

    fs::rename(&root, place.path("models")).unwrap();
    assert_snapshot!(place.kiln("create c ollama:demo:old"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: Ollama has no model `demo:old` in `[PLACE]/home/.ollama/models`

    hint: `ollama list` shows what it has
    ");
    let mut command = place.command("create c ollama:demo:old --json --progress off");
    command.env("OLLAMA_MODELS", place.path("models"));
    let created = place.run(command).expect(0).last_object();
    assert!(created["republished"]["source"].as_str().unwrap().starts_with("ollama:demo:old@sha256:"), "{created}");
}

#[test]
fn what_ollamas_store_has_damaged_or_as_gguf_is_refused() {
    let place = Place::new();
    let root = place.path("home/.ollama/models");
    let mut model = Published::of("qwen3-moe-12e-bf16", Layout::Stacked, Writer::Go);
    model.put_ollama(&root, "registry.ollama.ai/library/demo/latest");
    let largest = fs::read_dir(root.join("blobs")).unwrap().map(|entry| entry.unwrap().path());
    let largest = largest.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(&largest).unwrap();
    bytes[5000] ^= 1;
    fs::write(&largest, &bytes).unwrap();
    assert_snapshot!(place.kiln("create a ollama:demo"), @r"
    exit: 3
    --- stdout ---
    --- stderr ---
    check: 18 blobs, [SIZE]
    error: The layer `model.layers.0.mlp.experts` of `ollama:demo:latest@sha256:[DIGEST]` has other bytes, of digest `sha256:[DIGEST]`

    hint: pull the model again: only what is damaged is fetched
    ");
    fs::write(&largest, &bytes[1..]).unwrap();
    place.kiln("create a ollama:demo").expect(3);
    fs::remove_file(&largest).unwrap();
    place.kiln("create a ollama:demo").expect(3);

    model.layers = vec![("application/vnd.ollama.image.model", None, b"GGUF".to_vec())];
    model.put_ollama(&root, "registry.ollama.ai/library/small/latest");
    assert_snapshot!(place.kiln("create a ollama:small"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: `ollama:small:latest@sha256:[DIGEST]` is a GGUF model

    hint: use the original safetensors checkpoint: a GGUF file is quantized already
    ");
    model.put(&place, "small");
    place.kiln("create a small").expect(6);
    place.kiln("create a ollama:../../x").expect(2);
}
