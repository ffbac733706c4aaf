use std::fs;
use std::os::unix::fs::MetadataExt;

use insta::assert_snapshot;
use kiln::oci::Digest;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("export"), @r"
    Put a model into another program's store

    Usage: kiln export [OPTIONS] --to <TO> <NAME>

    Arguments:
      <NAME>  The model's name in the store

    Options:
          --to <TO>     Whose store [possible values: ollama]
          --dir <DIR>   The directory of that store [default: OLLAMA_MODELS, else ~/.ollama/models]
          --link <HOW>  How all files share their bytes with the store [default: the cheapest way that
                        works] [possible values: reflink, hard, copy]
      -h, --help        Print help (see more with '--help')

    Global options: …

    Examples:
      kiln export llama:int4 --to ollama
      kiln export llama:int4 --to ollama --dir /usr/share/ollama/.ollama/models
    ");
}

#[test]
fn ollama_has_the_model_and_shares_its_bytes() {
    let place = Place::with_model();
    assert_snapshot!(place.kiln("export demo:int4 --to ollama --link hard"), @r"
    exit: 0
    --- stdout ---
    exported demo:int4 to ollama as demo:int4 sha256:[DIGEST] (22 blobs, [SIZE]: 22 hard-linked)
    --- stderr ---
    export: 22 blobs, [SIZE]
    ");
    let models = place.path("home/.ollama/models");
    let manifest = fs::read(models.join("manifests/registry.ollama.ai/library/demo/int4")).unwrap();
    assert_eq!(Digest::of(&manifest).to_string(), place.digest("show demo:int4"));
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]);
    for layer in layers {
        let digest = layer["digest"].as_str().unwrap();
        let there = models.join("blobs").join(digest.replace(':', "-"));
        assert_eq!(Digest::of(&fs::read(&there).unwrap()).to_string(), digest);
        assert_eq!(fs::metadata(&there).unwrap().ino(), fs::metadata(place.blob(digest)).unwrap().ino());
    }
    // Nothing but the blobs: what was staged is gone.
    assert_eq!(fs::read_dir(models.join("blobs")).unwrap().count(), 22);
    // And it is found there as a source.
    place.kiln("create demo:bf16 checkpoint").expect(0);
    place.kiln("export demo:bf16 --to ollama").expect(0);
    place.kiln("create again ollama:demo:bf16 --dry-run").expect(0);
}

#[test]
fn what_is_there_stays_and_what_is_damaged_is_replaced() {
    let place = Place::with_model();
    place.kiln("export demo:int4 --to ollama --dir models --link copy").expect(0);
    let digest = place.layer("config.json");
    let there = place.path("models/blobs").join(digest.replace(':', "-"));
    let length = fs::metadata(&there).unwrap().len() as usize;
    fs::write(&there, vec![0; length]).unwrap();
    let again = place.kiln("export demo:int4 --to ollama --dir models --link copy --json --progress off").last_object();
    assert_eq!((again["event"].as_str(), again["present"].as_u64()), (Some("exported"), Some(21)));
    assert_eq!(again["links"]["copy"], 1);
    assert_eq!(Digest::of(&fs::read(&there).unwrap()).to_string(), digest);
}

#[test]
fn a_name_is_what_ollama_makes_of_it() {
    let place = Place::with_model();
    for (name, path) in [
        ("ada/demo", "registry.ollama.ai/ada/demo/latest"),
        ("registry.example:5000/team/demo:x", "registry.example:5000/team/demo/x"),
    ] {
        place.kiln(&format!("tag demo:int4 {name}")).expect(0);
        place.kiln(&format!("export {name} --to ollama --dir models")).expect(0);
        assert!(place.path("models/manifests").join(path).is_file(), "{name}");
    }
    for name in ["a/b/demo", "registry.example/demo", "registry.example/a/b/demo"] {
        place.kiln(&format!("tag demo:int4 {name}")).expect(0);
        place.kiln(&format!("export {name} --to ollama --dir models")).expect(2);
    }
}

#[test]
fn what_ollama_would_not_load_or_is_damaged_is_not_exported() {
    let place = Place::with_model();
    place.kiln("create demo:modelpack checkpoint --dialect modelpack").expect(0);
    place.kiln("create demo:hf checkpoint --profile hf").expect(0);
    for name in ["demo:modelpack", "demo:hf", "nothing"] {
        place.kiln(&format!("export {name} --to ollama --dir models")).expect(6);
    }
    assert!(!place.path("models").exists());
    place.damage(&place.layer("lm_head.weight"), 500);
    place.kiln("export demo:int4 --to ollama --dir models").expect(3);
    assert!(!place.path("models/manifests").exists());
}
