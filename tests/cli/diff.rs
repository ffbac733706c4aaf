use insta::assert_snapshot;
use serde_json::json;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("diff"), @r"
    Compare two models

    Usage: kiln diff [OPTIONS] <A> <B>

    Arguments:
      <A>  A model's name in the store
      <B>  Another model's name

    Options:
          --store-b <DIR>  The store that has B [default: the one that has A]
      -h, --help           Print help (see more with '--help')

    Global options: …

    Examples:
      kiln diff llama:int4 llama:int8
      kiln diff llama:int4 llama:int4 --store-b /mnt/other/kiln
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
