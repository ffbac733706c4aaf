//! `kiln verify` of a model at a registry: as strict as in the store, and nothing is kept.

use std::fs;

use insta::assert_snapshot;
use registry_fixtures::{Fault, Fixture, Trigger};
use serde_json::json;

use crate::place::Place;

/// A registry that has the model, a place that does not, and what it is called there.
fn published() -> (Fixture, Place, String) {
    let registry = Fixture::start();
    let place = Place::with_model();
    let name = format!("{}/team/demo:int4", registry.host());
    place.kiln(&format!("push demo:int4 {name}")).expect(0);
    fs::rename(place.path("store"), place.path("elsewhere")).unwrap();
    registry.clear_requests();
    (registry, place, name)
}

#[test]
fn a_sound_model_is_checked_as_far_as_asked_and_not_kept() {
    let (registry, place, name) = published();
    assert_snapshot!(place.kiln(&format!("verify {name}")), @r"
    exit: 0
    --- stdout ---
    127.0.0.1:[PORT]/team/demo:int4 sha256:[DIGEST]
    checked: structure, digests, tensors (23 blobs)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: ok
    --- stderr ---
    verify: 22 blobs, [SIZE]
    ");
    let reads = registry.requests().iter().filter(|it| it.method == "GET" && it.path.contains("/blobs/")).count();
    // Each layer once, and once more the lock and the config, which are read whole.
    assert_eq!(reads, 22 + 2);
    registry.clear_requests();
    place.kiln(&format!("verify {name} --level structure")).expect(0);
    assert!(registry.requests().iter().all(|it| it.method == "HEAD" || !it.path.contains("/blobs/")));
    assert!(!place.path("store").exists());
}

#[test]
fn a_rebuild_is_compared_with_what_is_published() {
    let (registry, place, name) = published();
    place.kiln(&format!("verify {name} --level rebuild")).expect(5);
    let run = place.kiln(&format!("verify {name} --source checkpoint --json"));
    assert_eq!(run.expect(0).last_object()["notChecked"], json!(["trust"]));
    // Published under a name that says otherwise.
    let other = format!("{}/team/demo:other", registry.host());
    place.checkpoint("llama-untied-bf16", "other");
    place.kiln("create demo:other other --quantize int4").expect(0);
    place.kiln(&format!("push demo:other {other}")).expect(0);
    let run = place.kiln(&format!("verify {other} --remote --source checkpoint --json"));
    let verified = run.expect(4).last_object();
    assert_eq!(verified["result"], "not-reproduced");
}

#[test]
fn damage_at_the_registry_is_found() {
    let (registry, place, name) = published();
    let blobs = registry.blobs("team/demo");
    registry.corrupt_blob(&blobs[3]);
    let run = place.kiln(&format!("verify {name} --json"));
    let verified = run.expect(3).last_object();
    assert_eq!(verified["result"], "corrupt");
    assert!(verified["findings"][0]["message"].as_str().unwrap().contains(&blobs[3]), "{run}");
    assert!(registry.remove_blob("team/demo", &blobs[5]));
    for level in ["structure", "digests"] {
        let run = place.kiln(&format!("verify {name} --level {level} --json"));
        let verified = run.expect(3).last_object();
        assert!(verified["findings"][0]["message"].as_str().unwrap().contains("is missing"), "{run}");
    }
}

#[test]
fn what_cannot_be_answered_is_no_verdict() {
    let (registry, place, name) = published();
    registry.inject(Trigger::on("GET", "/blobs/").always(), Fault::Instead(403));
    let run = place.kiln(&format!("verify {name}"));
    assert_eq!(run.code(), 7, "{run}");
    assert!(!run.stdout.contains("result"), "{run}");
    place.kiln(&format!("verify {}/team/none:int4", registry.host())).expect(6);
}

#[test]
fn a_registry_without_head_is_asked_for_a_byte() {
    let (registry, place, name) = published();
    registry.inject(Trigger::on("HEAD", "/blobs/").always(), Fault::Instead(405));
    place.kiln(&format!("verify {name} --level structure")).expect(0);
    registry.remove_blob("team/demo", &registry.blobs("team/demo")[0]);
    place.kiln(&format!("verify {name} --level structure")).expect(3);
}

#[test]
fn the_store_comes_first_and_a_part_is_of_the_store_alone() {
    let (_registry, place, name) = published();
    for option in ["--repair", "--max-duration 5"] {
        let run = place.kiln(&format!("verify {name} {option}"));
        assert!(run.expect(2).stderr.contains(&format!("hint: `kiln pull {name}`")), "{run}");
    }
    place.kiln(&format!("verify {name} --sample 1/2")).expect(0);
    place.kiln(&format!("pull {name}")).expect(0);
    let shown = place.kiln(&format!("show {name} --json")).last_object();
    place.damage(shown["layers"][0]["digest"].as_str().unwrap(), 50);
    place.kiln(&format!("verify {name}")).expect(3);
    place.kiln(&format!("verify {name} --remote")).expect(0);
    place.kiln("verify demo:int4 --remote").expect(2);
}
