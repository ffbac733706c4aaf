use std::fs;

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::place::Place;
use crate::shell::help;

fn usage(place: &Place) -> Value {
    place.kiln("du --json").expect(0).last_object()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// The bytes of all files in the store.
fn all(place: &Place) -> u64 {
    let mut left = vec![place.path("store")];
    let mut bytes = 0;
    while let Some(path) = left.pop() {
        match path.is_dir() {
            true => left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path())),
            false => bytes += fs::metadata(&path).unwrap().len(),
        }
    }
    bytes
}

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("du"), @r"
    Show what takes the store's space

    Usage: kiln du [OPTIONS]

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln du
      kiln du --json
    ");
}

#[test]
fn what_a_removal_frees_is_what_no_other_name_needs() {
    let place = Place::with_model();
    place.kiln("create demo:int8 checkpoint --quantize int8").expect(0);
    assert_snapshot!(place.kiln("du"), @r"
    exit: 0
    --- stdout ---
    NAME       DIGEST        SIZE        SHARED     FREED
    demo:int4  [SHORT]       [SIZE]  [SIZE]  [SIZE]
    demo:int8  [SHORT]       [SIZE]  [SIZE]  [SIZE]

    models   [SIZE]  29 files
    reserve  [SIZE]    1 file
    other    [SIZE]    5 files
    total    [SIZE]    35 files
    --- stderr ---
    ");
    let before = usage(&place);
    let [int4, int8] = &**before["names"].as_array().unwrap() else { panic!("{before}") };
    assert_eq!(int4["digest"], place.digest("show demo:int4"));
    // Sidecars, norms and what both schemes keep.
    assert_eq!(int4["shared"], int8["shared"]);
    assert!(number(&int4["shared"]) > 10_000, "{before}");
    for name in [int4, int8] {
        assert_eq!(number(&name["bytes"]), number(&name["shared"]) + number(&name["freed"]), "{name}");
    }
    let needed = number(&int4["bytes"]) + number(&int8["freed"]);
    assert_eq!(before["needed"]["bytes"], needed);
    assert_eq!(before["unneeded"], json!({ "files": 0, "bytes": 0 }));
    assert_eq!(before["total"]["bytes"], all(&place));

    place.kiln("rm demo:int4").expect(0);
    let removed = usage(&place);
    assert_eq!(removed["unneeded"]["bytes"], int4["freed"]);
    assert_eq!(
        removed["names"],
        json!([{
            "name": "demo:int8", "digest": int8["digest"], "bytes": int8["bytes"], "shared": 0, "freed": int8["bytes"],
        }])
    );
    let collected = place.kiln("gc --json").expect(0).last_object();
    assert_eq!((&collected["bytes"], &collected["blobs"]), (&int4["freed"], &removed["unneeded"]["files"]));
    assert_eq!(usage(&place)["total"]["bytes"], all(&place));
}

#[test]
fn a_second_name_shares_all_of_a_model() {
    let place = Place::with_model();
    place.kiln("tag demo:int4 other").expect(0);
    let usage = usage(&place);
    for name in usage["names"].as_array().unwrap() {
        assert_eq!((&name["shared"], &name["freed"]), (&name["bytes"], &json!(0)), "{usage}");
    }
    assert_eq!(usage["needed"]["bytes"], usage["names"][0]["bytes"]);
}

#[test]
fn what_is_unfinished_or_put_aside_is_told_apart() {
    let place = Place::with_model();
    let store = place.path("store");
    fs::write(store.join("ingest/1-2"), [0; 1000]).unwrap();
    fs::write(store.join("ingest").join(format!("{}.partial", "ab".repeat(32))), [0; 200]).unwrap();
    fs::write(store.join("quarantine").join(format!("{}.0", "ab".repeat(32))), [0; 50]).unwrap();
    let before = usage(&place);
    assert_eq!(before["unfinished"], json!({ "files": 2, "bytes": 1200 }));
    assert_eq!(before["quarantined"], json!({ "files": 1, "bytes": 50 }));
    assert_eq!(before["total"]["bytes"], all(&place));
}

#[test]
fn without_a_manifest_nobody_knows_what_is_unneeded() {
    let place = Place::with_model();
    place.kiln("create demo:int8 checkpoint --quantize int8").expect(0);
    place.damage(&place.digest("show demo:int4"), 0);
    assert_snapshot!(place.kiln("du"), @r"
    exit: 0
    --- stdout ---
    NAME       DIGEST        SIZE        SHARED  FREED
    demo:int4  [SHORT]       ?           ?       ?
    demo:int8  [SHORT]       [SIZE]  [SIZE]     [SIZE]

    models    [SIZE]  23 files
    unneeded  ?           ?
    reserve   [SIZE]    1 file
    other     [SIZE]    5 files
    total     [SIZE]    35 files
    --- stderr ---
    note: the manifest of `demo:int4` cannot be read, so what nobody needs is not known: `kiln verify demo:int4` says why
    ");
    let usage = usage(&place);
    assert_eq!((&usage["names"][0]["bytes"], &usage["unneeded"]), (&json!(null), &json!(null)));
    assert_eq!(usage["total"]["bytes"], all(&place));
}
