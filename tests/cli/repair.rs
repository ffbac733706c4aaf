//! `kiln verify --repair`: damage is mended from wherever the bytes still are, and is said all the same.

use std::fs;

use insta::assert_snapshot;
use registry_fixtures::Fixture;

use crate::place::Place;

/// A place whose model has a layer with a flipped bit, one that is gone, and a short file.
fn damaged() -> Place {
    let place = Place::with_model();
    damage(&place);
    place
}

fn damage(place: &Place) {
    place.damage(&place.layer("lm_head.weight"), 5000);
    fs::remove_file(place.blob(&place.layer("model.norm.weight"))).unwrap();
    let tokenizer = place.blob(&place.layer("tokenizer.json"));
    let bytes = fs::read(&tokenizer).unwrap();
    fs::remove_file(&tokenizer).unwrap();
    fs::write(&tokenizer, &bytes[1..]).unwrap();
}

fn is_sound(place: &Place) {
    place.kiln("verify demo:int4 --level digests").expect(0);
    for directory in ["store/ingest", "store/quarantine"] {
        assert!(!place.path(directory).read_dir().unwrap().any(|_| true), "{directory}");
    }
}

#[test]
fn what_is_damaged_is_created_again_from_the_source() {
    let place = damaged();
    assert_snapshot!(place.kiln("verify demo:int4 --repair"), @r"
    exit: 3
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure (23 blobs)
    corrupt: The blob `sha256:[DIGEST]` of `model.norm.weight` is missing
      layer: model.norm.weight
    corrupt: The blob `sha256:[DIGEST]` of `tokenizer.json` has 9675 bytes
      layer: tokenizer.json
    not checked: digests (every blob has the bytes its digest promises)
    not checked: tensors (every tensor is in the form that lock and config say)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: corrupt
    repaired: lm_head.weight from its source
    repaired: model.norm.weight from its source
    repaired: tokenizer.json from its source
    --- stderr ---
    repair: 22 blobs, [SIZE]
    ");
    is_sound(&place);
    place.kiln("verify demo:int4 --level rebuild").expect(0);
}

#[test]
fn a_config_that_is_damaged_is_created_again_too() {
    let place = Place::with_model();
    let manifest = fs::read(place.blob(&place.digest("show demo:int4"))).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    place.damage(manifest["config"]["digest"].as_str().unwrap(), 5);
    let repaired = place.kiln("verify demo:int4 --repair --json").expect(3).last_object();
    assert_eq!(repaired["left"], serde_json::json!([]), "{repaired}");
    assert_eq!(repaired["mended"].as_array().unwrap().len(), 1, "{repaired}");
    is_sound(&place);
}

#[test]
fn what_is_damaged_comes_from_a_registry_that_had_it() {
    let registry = Fixture::start();
    let place = Place::with_model();
    place.kiln(&format!("push demo:int4 {}/team/demo", registry.host())).expect(0);
    fs::rename(place.path("checkpoint"), place.path("moved")).unwrap();
    damage(&place);
    registry.clear_requests();
    let repaired = place.kiln("verify demo:int4 --repair --json").expect(3).last_object();
    assert_eq!(repaired["event"], "repaired");
    let mended = repaired["mended"].as_array().unwrap();
    let layers: Vec<_> = mended.iter().map(|blob| blob["layer"].as_str().unwrap()).collect();
    assert_eq!(layers.len(), 3, "{repaired}");
    let from = mended[0]["from"].as_str().unwrap();
    assert!(from.starts_with(&format!("{}/team/demo@sha256:", registry.host())), "{from}");
    assert_eq!((&repaired["left"], &repaired["failed"]), (&serde_json::json!([]), &serde_json::json!([])));
    let fetched = registry.requests().iter().filter(|it| it.method == "GET" && it.path.contains("/blobs/")).count();
    assert_eq!(fetched, 3, "only what is damaged");
    is_sound(&place);
}

#[test]
fn a_manifest_that_is_damaged_comes_again_too() {
    let registry = Fixture::start();
    let place = Place::with_model();
    place.kiln(&format!("push demo:int4 {}/team/demo", registry.host())).expect(0);
    let manifest = place.digest("show demo:int4");
    let layer = place.layer("lm_head.weight");
    place.damage(&layer, 5000);
    place.damage(&manifest, 50);
    let repaired = place.kiln("verify demo:int4 --repair --json").expect(3).last_object();
    assert_eq!(repaired["left"], serde_json::json!([]), "{repaired}");
    is_sound(&place);
}

#[test]
fn what_is_damaged_comes_from_another_store() {
    let place = Place::with_model();
    // There it has another name, and the name is another model's.
    place.kiln("create kept:int4 checkpoint --quantize int4 --store other").expect(0);
    place.kiln("create demo:int4 checkpoint --quantize int8 --store other").expect(0);
    let digest = place.digest("show demo:int4");
    fs::rename(place.path("checkpoint"), place.path("moved")).unwrap();
    damage(&place);
    let run = place.kiln("verify demo:int4 --repair --from other");
    assert_eq!(run.expect(3).stdout.lines().filter(|line| line.ends_with(" from other")).count(), 3, "{}", run.stdout);
    assert_eq!(place.digest("show demo:int4"), digest);
    is_sound(&place);
}

#[test]
fn where_nothing_helps_it_is_said_what_was_tried() {
    let place = damaged();
    fs::rename(place.path("checkpoint"), place.path("moved")).unwrap();
    assert_snapshot!(place.kiln("verify demo:int4 --repair --from nowhere"), @r"
    exit: 3
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure (23 blobs)
    corrupt: The blob `sha256:[DIGEST]` of `model.norm.weight` is missing
      layer: model.norm.weight
    corrupt: The blob `sha256:[DIGEST]` of `tokenizer.json` has 9675 bytes
      layer: tokenizer.json
    not checked: digests (every blob has the bytes its digest promises)
    not checked: tensors (every tensor is in the form that lock and config say)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: corrupt
    no help: nowhere: There is no store at `nowhere`
    no help: its source: The source `[PLACE]/checkpoint` cannot be used: There is no checkpoint at `[PLACE]/checkpoint`: No such file or directory (os error 2)
    still damaged: lm_head.weight
    still damaged: model.norm.weight
    still damaged: tokenizer.json
    moved aside: [PLACE]/store/quarantine/[DIGEST].0
    moved aside: [PLACE]/store/quarantine/[DIGEST].0
    --- stderr ---
    repair: 22 blobs, [SIZE]
    ");
    let repaired = place.kiln("verify demo:int4 --repair --json").expect(3).last_object();
    assert_eq!(repaired["left"].as_array().unwrap().len(), 3, "{repaired}");
    // What was wrong is aside: the list knows, every run says where, and it stays until somebody asks for its end.
    let named = |name: &str| place.blob(&place.layer(name)).file_name().unwrap().to_str().unwrap().to_owned();
    for name in ["lm_head.weight", "tokenizer.json"] {
        let path = place.path("store/quarantine").join(format!("{}.0", named(name)));
        assert!(repaired["aside"].as_array().unwrap().contains(&path.to_str().into()), "{repaired}");
    }
    assert_eq!(place.kiln("list --json").last_object()["damaged"], 3);
    let aside = || place.path("store/quarantine").read_dir().unwrap().count();
    assert_eq!(aside(), 2, "one was missing");
    place.kiln("gc --quarantine --dry-run").expect(0);
    fs::rename(place.path("moved"), place.path("checkpoint")).unwrap();
    place.kiln("create demo:int4 checkpoint --quantize int4").expect(0);
    assert_eq!(place.kiln("gc --json").expect(0).last_object()["quarantined"], 0);
    assert_eq!(aside(), 2);
    assert_eq!(place.kiln("gc --quarantine --json").expect(0).last_object()["quarantined"], 2);
    is_sound(&place);
}

#[test]
fn a_source_that_changed_mends_nothing() {
    let place = damaged();
    let tokenizer = place.path("checkpoint/tokenizer.json");
    fs::write(&tokenizer, "{}").unwrap();
    let repaired = place.kiln("verify demo:int4 --repair --json").expect(3).last_object();
    let left: Vec<_> = repaired["left"].as_array().unwrap().iter().map(|blob| &blob["layer"]).collect();
    assert_eq!(left, ["tokenizer.json"], "{repaired}");
    assert_eq!(repaired["mended"].as_array().unwrap().len(), 2, "{repaired}");
    place.kiln("verify demo:int4 --level digests").expect(3);
}

#[test]
fn a_repair_that_died_with_everything_aside_is_gone_on_with() {
    let place = damaged();
    for name in ["lm_head.weight", "tokenizer.json"] {
        let path = place.blob(&place.layer(name));
        let aside = format!("{}.0", path.file_name().unwrap().to_str().unwrap());
        fs::rename(&path, place.path("store/quarantine").join(aside)).unwrap();
    }
    place.kiln("gc").expect(0);
    let repaired = place.kiln("verify demo:int4 --repair --json").expect(3).last_object();
    assert_eq!(repaired["mended"].as_array().unwrap().len(), 3, "{repaired}");
    is_sound(&place);
}

#[test]
fn a_directory_in_a_blobs_place_is_moved_away() {
    let place = Place::with_model();
    let path = place.blob(&place.layer("tokenizer.json"));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    place.kiln("verify demo:int4 --repair").expect(3);
    place.kiln("verify demo:int4 --level digests").expect(0);
}
