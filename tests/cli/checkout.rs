use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use insta::assert_snapshot;
use kiln::oci::Digest;
use serde_json::{Value, json};

use crate::hostile::{keep, publish};
use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("checkout"), @r"
    Lay a model out as a directory

    Usage: kiln checkout [OPTIONS] <NAME> <DIR>

    Arguments:
      <NAME>  The model's name in the store
      <DIR>   The directory: empty, or not there

    Options:
          --link <HOW>  How all files share their bytes with the store [default: the cheapest way that
                        is safe] [possible values: reflink, hard, copy]
      -h, --help        Print help (see more with '--help')

    Global options: …

    Examples:
      kiln checkout llama:int4 ./llama
      kiln checkout llama:int4 ./llama --link copy
    ");
}

/// The files below a folder, hidden ones too.
fn files(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Nothing is in the place but what it had, and what is named here.
#[track_caller]
fn only(place: &Place, names: &[&str]) {
    let names: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(files(&place.path("")), names);
}

#[test]
fn every_layer_is_the_file_it_is_named_for() {
    let place = Place::with_model();
    place.kiln("create demo:modelpack checkpoint --quantize int4 --dialect modelpack").expect(0);
    for name in ["demo:int4", "demo:modelpack"] {
        let run = place.kiln(&format!("checkout {name} out/of/here --link copy"));
        assert_eq!(files(&place.path("out/of")), BTreeSet::from(["here".to_owned()]));
        let out = place.path("out/of/here");
        let shown = place.kiln(&format!("show {name} --json")).last_object();
        let layers = shown["layers"].as_array().unwrap();
        for layer in layers {
            let name = layer["name"].as_str().unwrap();
            let path = [out.join(name), out.join(format!("{name}.safetensors"))].into_iter().find(|path| path.exists());
            let bytes = fs::read(path.unwrap_or_else(|| panic!("{name} in {:?}", files(&out)))).unwrap();
            assert_eq!(layer["digest"], Digest::of(&bytes).to_string(), "{name}");
        }
        // And the index of the shards.
        assert_eq!(files(&out).len(), layers.len() + 1, "{run}");
        fs::remove_dir_all(place.path("out")).unwrap();
    }
}

#[test]
fn a_checkout_is_a_checkpoint_again() {
    let place = Place::new();
    place.checkpoint("llama-untied-bf16", "checkpoint");
    let created = place.digest("create demo:bf16 checkpoint");
    place.kiln("checkout demo:bf16 out").expect(0);
    assert_eq!(place.digest("create again:bf16 out"), created);
    let index: Value =
        serde_json::from_slice(&fs::read(place.path("out/model.safetensors.index.json")).unwrap()).unwrap();
    let files = fs::read_dir(place.path("out")).unwrap().map(|entry| entry.unwrap());
    let weights = files.filter(|file| file.file_name().to_str().unwrap().ends_with(".safetensors"));
    let (mut tensors, mut size) = (0, 0);
    for file in weights {
        let bytes = fs::read(file.path()).unwrap();
        let tensor = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in tensor.tensors() {
            assert_eq!(index["weight_map"][&name], file.file_name().to_str().unwrap());
            (tensors, size) = (tensors + 1, size + view.data().len());
        }
    }
    assert_eq!(
        (index["weight_map"].as_object().unwrap().len(), &index["metadata"]["total_size"]),
        (tensors, &json!(size))
    );
}

#[test]
fn it_says_how_the_files_share_their_bytes() {
    let place = Place::with_model();
    assert_snapshot!(place.kiln("checkout demo:int4 out --link copy"), @r"
    exit: 0
    --- stdout ---
    checked out demo:int4 to out sha256:[DIGEST] (21 files, [SIZE]: 21 copied)
    --- stderr ---
    checkout: 21 blobs, [SIZE]
    ");
    assert_snapshot!(place.kiln("checkout demo:int4 hard --link hard"), @r"
    exit: 0
    --- stdout ---
    checked out demo:int4 to hard sha256:[DIGEST] (21 files, [SIZE]: 21 hard-linked)
    --- stderr ---
    checkout: 21 blobs, [SIZE]
    note: hard links are the store's own files: copy one before you change it
    ");
    let done = place.kiln("checkout demo:int4 auto --json --progress off").last_object();
    assert_eq!(done["event"], "checked-out");
    assert_eq!((&done["files"], &done["index"], &done["unnamed"]), (&json!(21), &json!(true), &json!(0)));
    let number = |way: &str| done["links"][way].as_u64().unwrap();
    assert_eq!(number("reflink") + number("hard") + number("copy"), 21);
    // Where there are no reflinks, files that people edit are copies all the same.
    assert!(number("reflink") == 21 || (number("hard"), number("copy")) == (13, 8), "{done}");
}

#[test]
fn only_hard_links_are_the_stores_own_and_those_are_read_only() {
    let place = Place::with_model();
    place.kiln("checkout demo:int4 copies --link copy").expect(0);
    place.kiln("checkout demo:int4 links --link hard").expect(0);
    let blob = fs::metadata(place.blob(&place.layer("config.json"))).unwrap();
    let copy = fs::metadata(place.path("copies/config.json")).unwrap();
    let link = fs::metadata(place.path("links/config.json")).unwrap();
    assert_eq!((link.ino(), link.mode() & 0o777), (blob.ino(), 0o444));
    assert!(copy.ino() != blob.ino() && copy.mode() & 0o200 != 0);
    fs::write(place.path("copies/config.json"), "{}").unwrap();
    place.kiln("verify demo:int4 --level digests").expect(0);
}

#[test]
fn a_directory_that_has_something_is_left_alone() {
    let place = Place::with_model();
    fs::create_dir(place.path("full")).unwrap();
    fs::write(place.path("full/note"), "mine").unwrap();
    assert_snapshot!(place.kiln("checkout demo:int4 full"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: `full` is not empty

    hint: name a directory that is empty or not there
    ");
    fs::write(place.path("file"), "mine").unwrap();
    place.kiln("checkout demo:int4 file").expect(2);
    fs::create_dir(place.path("elsewhere")).unwrap();
    symlink("elsewhere", place.path("link")).unwrap();
    place.kiln("checkout demo:int4 link").expect(2);
    place.kiln("checkout demo:int4 .").expect(2);
    place.kiln("checkout nothing out").expect(6);
    assert_eq!(fs::read_to_string(place.path("full/note")).unwrap(), "mine");
    assert_eq!(files(&place.path("elsewhere")).len(), 0);
    only(&place, &["checkpoint", "elsewhere", "file", "full", "link", "store"]);
}

#[test]
fn an_empty_directory_is_filled_and_keeps_its_mode() {
    let place = Place::with_model();
    fs::create_dir(place.path("out")).unwrap();
    fs::set_permissions(place.path("out"), fs::Permissions::from_mode(0o700)).unwrap();
    place.kiln("checkout demo:int4 out").expect(0);
    assert_eq!(fs::metadata(place.path("out")).unwrap().mode() & 0o777, 0o700);
    assert!(place.path("out/config.json").is_file());
}

#[test]
fn damaged_content_gets_no_name() {
    for link in ["hard", "copy"] {
        let place = Place::with_model();
        place.damage(&place.layer("lm_head.weight"), 500);
        let run = place.kiln(&format!("checkout demo:int4 out --link {link}"));
        run.expect(3);
        assert!(run.stderr.contains("has other bytes"), "{run}");
        fs::remove_file(place.blob(&place.layer("lm_head.weight"))).unwrap();
        place.kiln(&format!("checkout demo:int4 out --link {link}")).expect(3);
        only(&place, &["checkpoint", "store"]);
    }
}

#[test]
fn no_name_in_a_manifest_leads_out_of_the_directory() {
    let place = Place::new();
    place.kiln("list").expect(0);
    let json = "application/vnd.ollama.image.json";
    let tensor = "application/vnd.ollama.image.tensor";
    for (names, code) in [
        (["../out", "b"], 6),
        (["/tmp/out", "b"], 6),
        (["a/../../out", "b"], 6),
        (["a", "a"], 6),
        (["a", "A"], 6),
        (["a", "a/b"], 6),
        ([".git/config", "b"], 6),
        (["a\\b", "b"], 6),
        (["a/b", "a/c/d"], 0),
    ] {
        let layers = names.map(|name| keep(&place, json, name, name.as_bytes()));
        publish(&place, &layers);
        let run = place.kiln("checkout evil place/out");
        assert_eq!(run.code(), code, "{names:?}: {run}");
        assert_eq!(place.path("place/out").exists(), code == 0, "{names:?}");
    }
    assert_eq!(fs::read_to_string(place.path("place/out/a/c/d")).unwrap(), "a/c/d");
    only(&place, &["place", "store"]);

    // A tensor's name gets an ending, and is no less foreign.
    publish(&place, &[keep(&place, tensor, "../w", b"w")]);
    place.kiln("checkout evil other").expect(6);
    // What stands in the store as a link to another file is not content.
    fs::write(place.path("secret"), "secret").unwrap();
    let layer = keep(&place, json, "config.json", b"secret");
    let blob = place.blob(layer["digest"].as_str().unwrap());
    fs::remove_file(&blob).unwrap();
    symlink(place.path("secret"), &blob).unwrap();
    publish(&place, &[layer]);
    for link in ["hard", "copy"] {
        place.kiln(&format!("checkout evil other --link {link}")).expect(3);
    }
    only(&place, &["place", "secret", "store"]);
}

#[test]
fn layers_without_a_name_are_counted() {
    let place = Place::new();
    place.kiln("list").expect(0);
    let mut unnamed = keep(&place, "application/vnd.ollama.image.template", "", b"{{ .Prompt }}");
    unnamed.as_object_mut().unwrap().remove("name");
    publish(&place, std::slice::from_ref(&unnamed));
    place.kiln("checkout evil out").expect(6);
    publish(&place, &[unnamed, keep(&place, "application/vnd.ollama.image.json", "config.json", b"{}")]);
    let run = place.kiln("checkout evil out");
    assert!(run.expect(0).stderr.contains("note: 1 layer without a file name left out"), "{run}");
    assert_eq!(files(&place.path("out")), BTreeSet::from(["config.json".to_owned()]));
}
