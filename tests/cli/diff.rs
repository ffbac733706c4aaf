use std::collections::BTreeSet;
use std::fs;

use insta::assert_snapshot;
use registry_fixtures::Fixture;
use serde_json::json;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("diff"), @r"
    Compare two models

    Usage: kiln diff [OPTIONS] <A> <B>

    Arguments:
      <A>  A model's name in the store, or its reference at a registry
      <B>  Another model's

    Options:
          --store-b <DIR>  The store that has B [default: the one that has A]
          --remote         A name with a host is meant at its registry, whatever the store has
          --html <FILE>    Write a page that shows the layers of both
      -h, --help           Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln diff llama:int4 llama:int8
      kiln diff llama:int4 llama:int4 --store-b /mnt/other/kiln
      kiln diff llama:int4 registry.example/team/llama:int4
      kiln diff llama:int4 llama:int8 --html layers.html
      kiln diff llama:int4 llama:int8 --json

    Exit codes:
      0  both are the same
      4  they differ
    ");
}

#[test]
fn the_same_model_under_two_names_is_the_same() {
    let place = Place::with_model();
    place.kiln("tag demo:int4 demo:copy").expect(0);
    assert_snapshot!(place.kiln("diff demo:int4 demo:copy"), @r"
    exit: 0
    --- stdout ---
    demo:int4 sha256:[DIGEST]
    demo:copy sha256:[DIGEST]
    21 layers shared ([SIZE])
    result: same
    --- stderr ---
    ");
}

#[test]
fn another_scheme_shares_what_it_keeps() {
    let place = Place::with_model();
    place.kiln("create demo:nvfp4 checkpoint --quantize nvfp4").expect(0);
    let run = place.kiln("diff demo:int4 demo:nvfp4");
    run.expect(4);
    for part in [
        "\nCHANGE   LAYER ",
        "\nchanged  model.layers.0.self_attn.o_proj.weight ",
        "\n  cause: another scheme: `int4` here, `nvfp4` there\n",
        "\nresult: different\n",
    ] {
        assert!(run.stdout.contains(part), "{part}: {run}");
    }
    assert!(!run.stdout.contains("\nshared "), "only with --verbose: {run}");
    assert!(place.kiln("diff demo:int4 demo:nvfp4 --verbose").stdout.contains("\nshared   config.json"));
    let diffed = place.kiln("diff demo:int4 demo:nvfp4 --json").last_object();
    assert_eq!(diffed["event"], "diffed");
    assert_eq!(diffed["result"], "different");
    assert_eq!(diffed["ours"]["digest"], place.digest("show demo:int4"));
    assert_eq!(diffed["theirs"]["digest"], place.digest("show demo:nvfp4"));
    let layers = diffed["layers"].as_array().unwrap();
    let of = |change: &str| layers.iter().filter(|layer| layer["change"] == change).collect::<Vec<_>>();
    for (change, total) in diffed["totals"].as_object().unwrap() {
        assert_eq!(total["layers"], of(change).len(), "{change}");
        let side = if change == "only-there" { "theirs" } else { "ours" };
        let bytes: u64 = of(change).iter().map(|layer| layer[side]["size"].as_u64().unwrap()).sum();
        assert_eq!(total["bytes"], bytes, "{change}");
    }
    assert!(of("shared").iter().all(|layer| layer["ours"] == layer["theirs"]));
    let finding = &diffed["findings"][0];
    let members = ["arrays", "bytes", "cause", "layer", "members", "message", "part", "tensor"];
    assert_eq!(finding.as_object().unwrap().keys().collect::<Vec<_>>(), members);
}

#[test]
fn a_changed_weight_is_told_down_to_its_values() {
    let place = Place::with_model();
    let shard = place.path("checkpoint/model-00003-of-00005.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let at = bytes.len() - 1001;
    bytes[at] ^= 0x20;
    std::fs::write(&shard, bytes).unwrap();
    place.kiln("create demo:int4 checkpoint --quantize int4 --store other").expect(0);
    let run = place.kiln("diff demo:int4 demo:int4 --store-b other");
    run.expect(4);
    for part in ["bytes of its packed codes", "\n  packed: byte ", " of 768 groups differ, the first [", "    ["] {
        assert!(run.stdout.contains(part), "{part}: {run}");
    }
    assert!(
        run.stdout.contains("\n  cause: the source is another one: the bytes of `model.layers.0.mlp.experts."),
        "{run}"
    );
    let run = place.kiln("diff demo:int4 demo:int4 --store-b other --json");
    let array = run.expect(4).last_object()["findings"][0]["arrays"][0].clone();
    assert_eq!(array["part"], "packed");
    assert!(array["places"].as_array().unwrap().len() <= 8);
    assert!(array["places"][0]["ours"]["bits"].as_str().unwrap().starts_with("0x"), "{array}");
    assert!(array["places"][0]["ours"]["value"].is_number(), "{array}");
    // A rebuild tells the same.
    let run = place.kiln("verify demo:int4 --source checkpoint --json");
    assert_eq!(run.expect(4).last_object()["findings"][0]["arrays"][0], array);
}

#[test]
fn what_is_not_there_is_bad_input() {
    let place = Place::with_model();
    for words in ["diff demo:int4 nothing", "diff nothing demo:int4", "diff demo:int4 demo:int4 --store-b nowhere"] {
        place.kiln(words).expect(6);
    }
    assert!(!place.path("nowhere").exists(), "no store is made to be compared with");
    let run = place.kiln("diff demo:int4 nothing --json");
    assert_eq!(run.last_object()["message"], json!("No model is named `nothing:latest`"));
}

#[test]
fn a_model_at_a_registry_is_compared_where_it_is() {
    let registry = Fixture::start();
    let place = Place::with_model();
    let there = format!("{}/team/demo:int4", registry.host());
    place.kiln("create demo:nvfp4 checkpoint --quantize nvfp4").expect(0);
    place.kiln(&format!("push demo:int4 {there}")).expect(0);
    registry.clear_requests();
    place.kiln(&format!("diff demo:int4 {there}")).expect(0);
    let read = || {
        let requests = registry.requests().into_iter().filter(|it| it.method == "GET" && it.path.contains("/blobs/"));
        let read = requests.map(|it| it.path.rsplit('/').next().unwrap().to_owned()).collect::<BTreeSet<_>>();
        registry.clear_requests();
        read
    };
    assert_eq!(read(), [place.layer("kiln.lock")].into(), "the lock, and nothing that both have");
    // As between models of the store, for which only what differs is brought.
    let local = place.kiln("diff demo:int4 demo:nvfp4 --json").last_object();
    let run = place.kiln(&format!("diff {there} demo:nvfp4 --json"));
    let mut distant = run.expect(4).last_object();
    distant["ours"]["name"] = local["ours"]["name"].clone();
    assert_eq!(distant, local);
    let changed: BTreeSet<String> = local["layers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|layer| layer["change"] != "shared")
        .map(|layer| layer["ours"]["digest"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(&read() & &changed, changed);
    let between = place.kiln(&format!("diff {there} {there}"));
    assert!(between.expect(0).stdout.ends_with("result: same\n"), "{between}");
    assert_eq!(place.kiln("list --json").objects().len(), 2, "nothing is kept");
    place.kiln(&format!("diff demo:int4 {}/team/none:int4", registry.host())).expect(6);
}

#[test]
fn with_remote_a_name_is_meant_at_its_registry() {
    let registry = Fixture::start();
    let place = Place::with_model();
    let name = format!("{}/team/demo:a", registry.host());
    place.kiln(&format!("push demo:int4 {name}")).expect(0);
    place.kiln(&format!("tag demo:int4 {name}")).expect(0);
    place.kiln("create demo:nvfp4 checkpoint --quantize nvfp4").expect(0);
    place.kiln(&format!("tag demo:nvfp4 {name}")).expect(0);
    place.kiln(&format!("diff demo:int4 {name}")).expect(4);
    place.kiln(&format!("diff demo:int4 {name} --remote")).expect(0);
}

#[test]
fn a_page_shows_every_layer_of_both() {
    let place = Place::with_model();
    place.kiln("create demo:nvfp4 checkpoint --quantize nvfp4").expect(0);
    let run = place.kiln("diff demo:int4 demo:nvfp4 --html page.html --json");
    let diffed = run.expect(4).last_object();
    let page = fs::read_to_string(place.path("page.html")).unwrap();
    let count = |text: &str| page.matches(text).count();
    let layers = diffed["layers"].as_array().unwrap();
    let sides = |side: &str| layers.iter().filter(|layer| !layer[side].is_null()).count();
    assert_eq!(count("<rect "), sides("ours") + sides("theirs"));
    let pairs = layers.iter().filter(|layer| !layer["ours"].is_null() && !layer["theirs"].is_null()).count();
    assert_eq!(count("<path "), pairs);
    assert_eq!(count("<details>"), diffed["findings"].as_array().unwrap().len());
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("@import"), "all is in it");
    place.kiln("diff demo:int4 demo:int4 --html page.html").expect(0);
    place.kiln("diff demo:int4 demo:int4 --html none/page.html").expect(1);
}
