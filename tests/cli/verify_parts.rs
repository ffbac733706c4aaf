//! `kiln verify` of a part: a sample, or what there is time for, of one model or of all.

use std::collections::BTreeSet;

use insta::assert_snapshot;
use serde_json::json;

use crate::place::Place;

#[test]
fn the_samples_together_find_every_damage() {
    let place = Place::with_model();
    place.damage(&place.layer("lm_head.weight"), 5000);
    let mut left_out = 0;
    let codes: Vec<i32> = (1..=4)
        .map(|number| {
            let run = place.kiln(&format!("verify demo:int4 --sample {number}/4 --json"));
            let verified = run.last_object();
            assert_eq!((&verified["level"], &verified["blobs"]), (&json!("digests"), &json!(23)), "{run}");
            left_out += verified["blobsLeftOut"].as_u64().unwrap();
            run.code()
        })
        .collect();
    assert_eq!(codes.iter().filter(|code| **code == 3).count(), 1, "{codes:?}");
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 3, "{codes:?}");
    assert_eq!(left_out, 3 * 22, "each blob but the manifest is in one sample");
}

#[test]
fn what_a_sample_leaves_out_is_said() {
    let place = Place::with_model();
    assert_snapshot!(place.kiln("verify demo:int4 --sample 2/3"), @r"
    exit: 0
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure, digests (8 of 23 blobs)
    not checked: 15 blobs of other samples
    not checked: tensors (every tensor is in the form that lock and config say)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: ok
    --- stderr ---
    verify: 7 blobs, [SIZE]
    ");
    assert_snapshot!(place.kiln("verify demo:int4 --sample 4/3"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: Invalid value for `--sample <N/T>`
    caused by: No sample is called `4/3`

    hint: `1/7` to `7/7` are the samples of seven
    ");
    assert_snapshot!(place.kiln("verify demo:int4 --sample 2/3 --level tensors"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: `--sample` and `--max-duration` are for the level `digests`, and the level is `tensors`

    hint: leave `--level` out
    ");
}

#[test]
fn when_all_was_read_is_noted_beside_the_source() {
    let place = Place::with_model();
    let all = place.kiln("verify demo:int4 --max-duration 600 --json").expect(0).last_object();
    assert_eq!((&all["result"], &all["notChecked"]), (&json!("ok"), &json!(["tensors", "rebuild", "trust"])));
    let path = place.path("store/notes").read_dir().unwrap().next().unwrap().unwrap().path();
    let note = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&path).unwrap()).unwrap();
    let read = note();
    assert!(read["source"].is_string() && read["read"]["completed"].is_string(), "{read}");
    // A statement has the files of the source noted, too, and nothing else.
    place.kiln("attest demo:int4 --output statement.json").expect(0);
    let mut attested = note();
    let files = attested.as_object_mut().unwrap().remove("files");
    assert!(files.is_some_and(|files| !files.as_object().unwrap().is_empty()));
    assert_eq!(attested, read);
}

#[test]
fn every_model_is_verified_and_the_worst_decides() {
    let place = Place::with_model();
    place.kiln("create demo:int8 checkpoint --quantize int8").expect(0);
    place.kiln("create demo:kept checkpoint").expect(0);
    let mut objects = place.kiln("verify --all --json").expect(0).objects();
    objects.retain(|object| object["event"].as_str().unwrap().starts_with("verified"));
    let names: BTreeSet<&str> = objects[..3].iter().map(|verified| verified["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["demo:int4", "demo:int8", "demo:kept"].into());
    assert_eq!(objects[3], json!({"event": "verified-all", "models": 3, "verified": 3, "result": "ok"}));
    place.damage(&place.layer("lm_head.weight"), 5000);
    assert_snapshot!(place.kiln("verify --all"), @r"
    exit: 3
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    checked: structure, digests (23 blobs)
    corrupt: The blob `sha256:[DIGEST]` of `lm_head.weight` has other bytes, of digest `sha256:[DIGEST]`
      layer: lm_head.weight
    not checked: tensors (every tensor is in the form that lock and config say)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: corrupt
    demo:int8 sha256:[DIGEST]
    checked: structure, digests (23 blobs)
    corrupt: The blob `sha256:[DIGEST]` of `lm_head.weight` has other bytes, of digest `sha256:[DIGEST]`
      layer: lm_head.weight
    not checked: tensors (every tensor is in the form that lock and config say)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: corrupt
    demo:kept sha256:[DIGEST]
    checked: structure, digests, tensors (23 blobs)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: ok

    verified: 3 of 3 models
    result: corrupt
    --- stderr ---
    verify: 22 blobs, [SIZE]
    verify: 22 blobs, [SIZE]
    verify: 22 blobs, [SIZE]
    ");
    place.kiln("verify --all --repair").expect(3);
    place.kiln("verify --all").expect(0);
    place.kiln("verify").expect(2);
    place.kiln("verify demo:int4 --all").expect(2);
}
