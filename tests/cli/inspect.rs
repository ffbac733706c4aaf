use std::fs;

use insta::assert_snapshot;
use serde_json::json;

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("list"), @r"
    List the models in the store

    Usage: kiln list [OPTIONS]

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln list
      kiln ls --json
    ");
    assert_snapshot!(help("show"), @r"
    Show a model's layers, and with --verbose its tensors

    Usage: kiln show [OPTIONS] <NAME>

    Arguments:
      <NAME>  The model's name in the store

    Options:
      -h, --help  Print help (see more with '--help')

    Global options: …

    Examples:
      kiln show llama:int4
      kiln show llama:int4 --verbose
      kiln show llama:int4 --json
    ");
}

#[test]
fn an_empty_store_has_an_empty_list() {
    let place = Place::new();
    assert_snapshot!(place.kiln("list"), @r"
    exit: 0
    --- stdout ---
    NAME  DIGEST  LAYERS  SIZE
    --- stderr ---
    ");
    assert_eq!(place.kiln("ls --json").expect(0).stdout, "");
}

#[test]
fn a_list_has_one_object_a_line() {
    let place = Place::with_model();
    place.kiln("tag demo:int4 another:name").expect(0);
    let run = place.kiln("ls --json");
    let digest = place.digest("show demo:int4");
    let [another, demo] = &*run.expect(0).objects() else { panic!("{run}") };
    assert_eq!(another["name"], "another:name");
    assert_eq!(demo["name"], "demo:int4");
    assert_eq!(demo["digest"], digest);
    assert_eq!(demo["layers"], 21);
    assert!(demo["bytes"].as_u64().unwrap() > 200_000);
    assert_eq!((&demo["state"], &demo["damaged"]), (&json!("present"), &json!(0)));
}

#[test]
fn a_model_without_its_manifest_is_listed_as_such() {
    let place = Place::with_model();
    fs::remove_file(place.blob(&place.digest("show demo:int4"))).unwrap();
    assert_snapshot!(place.kiln("list"), @r"
    exit: 0
    --- stdout ---
    NAME       DIGEST        LAYERS  SIZE
    demo:int4  [SHORT]       ?       ?
    --- stderr ---
    note: the manifest of `demo:int4` cannot be read: `kiln verify demo:int4` says why
    ");
    let object = place.kiln("list --json").last_object();
    assert_eq!((&object["state"], &object["layers"]), (&json!("unreadable"), &json!(null)));
}

#[test]
fn a_model_that_lacks_blobs_is_listed_as_degraded() {
    let place = Place::with_model();
    place.kiln("create sound:kept checkpoint").expect(0);
    let of_both = place.blob(&place.layer("model.norm.weight"));
    fs::remove_file(place.blob(&place.layer("lm_head.weight"))).unwrap();
    let experts = place.blob(&place.layer("model.layers.0.mlp.switch_mlp"));
    let bytes = fs::read(&experts).unwrap();
    fs::remove_file(&experts).unwrap();
    fs::write(&experts, &bytes[1..]).unwrap();
    assert_snapshot!(place.kiln("list"), @r"
    exit: 0
    --- stdout ---
    NAME        DIGEST        LAYERS         SIZE
    demo:int4   [SHORT]       21 (degraded)  [SIZE]
    sound:kept  [SHORT]       21             [SIZE]
    --- stderr ---
    note: `demo:int4` is degraded, 2 blobs missing or of another size: `kiln verify demo:int4 --repair` brings that again
    ");
    let [demo, sound] = &*place.kiln("list --json").objects() else { panic!() };
    assert_eq!((&demo["state"], &demo["damaged"], &demo["layers"]), (&json!("degraded"), &json!(2), &json!(21)));
    assert_eq!((&sound["state"], &sound["damaged"]), (&json!("present"), &json!(0)));
    let shown = place.kiln("show demo:int4");
    assert!(shown.expect(0).stderr.contains("is degraded, 2 blobs missing or of another size"), "{shown}");
    assert_eq!(place.kiln("show demo:int4 --json").last_object()["state"], "degraded");
    // What two models need, both lack.
    fs::remove_file(of_both).unwrap();
    let damaged: Vec<_> = place.kiln("list --json").objects().iter().map(|it| it["damaged"].clone()).collect();
    assert_eq!(damaged, [3, 1]);
    place.kiln("verify demo:int4 --repair").expect(3);
    assert!(place.kiln("list --json").objects().iter().all(|it| it["state"] == "present"));
}

#[test]
fn show_has_the_facts_and_the_layers() {
    let run = Place::with_model().kiln("show demo:int4");
    let head: Vec<&str> = run.expect(0).stdout.lines().take(10).collect();
    assert_snapshot!(crate::place::settle(&head.join("\n")), @r"
    name     demo:int4
    digest   sha256:[DIGEST]
    type     application/vnd.docker.distribution.manifest.v2+json
    profile  ollama
    scheme   int4
    layers   21, [SIZE]
    tensors  15: 7 BF16, 4 int4, 4 int8

    DIGEST        BYTES   LAYER
    [SHORT]       22072   lm_head.weight
    ");
    let layers = run.stdout.lines().skip_while(|line| !line.starts_with("DIGEST")).skip(1);
    assert_eq!(layers.count(), 21);
    assert!(run.stdout.ends_with("kiln.lock\n"), "{run}");
}

#[test]
fn show_in_detail_has_the_tensors() {
    let run = Place::with_model().kiln("show demo:int4 --verbose");
    let tensors: Vec<&str> = run.expect(0).stdout.lines().skip_while(|line| !line.starts_with("SCHEME")).collect();
    assert_snapshot!(tensors.join("\n"), @r"
    SCHEME  DTYPE  SHAPE         TENSOR
    int8    BF16   [320, 64]     lm_head.weight
    -       BF16   [320, 64]     model.embed_tokens.weight
    -       BF16   [64]          model.layers.0.input_layernorm.weight
    -       BF16   [12, 64]      model.layers.0.mlp.gate.weight
    -       BF16   [64]          model.layers.0.post_attention_layernorm.weight
    -       BF16   [16]          model.layers.0.self_attn.k_norm.weight
    int8    BF16   [32, 64]      model.layers.0.self_attn.k_proj.weight
    int4    BF16   [64, 64]      model.layers.0.self_attn.o_proj.weight
    -       BF16   [16]          model.layers.0.self_attn.q_norm.weight
    int4    BF16   [64, 64]      model.layers.0.self_attn.q_proj.weight
    int8    BF16   [32, 64]      model.layers.0.self_attn.v_proj.weight
    -       BF16   [64]          model.norm.weight
    int8    BF16   [12, 64, 64]  model.layers.0.mlp.switch_mlp.down_proj.weight
    int4    BF16   [12, 64, 64]  model.layers.0.mlp.switch_mlp.gate_proj.weight
    int4    BF16   [12, 64, 64]  model.layers.0.mlp.switch_mlp.up_proj.weight
    ");
}

#[test]
fn show_in_json_is_one_object() {
    let place = Place::with_model();
    let run = place.kiln("show demo:int4 --json");
    let [shown] = &*run.expect(0).objects() else { panic!("{run}") };
    assert_eq!(shown["digest"], place.kiln("list --json").last_object()["digest"]);
    assert_eq!(shown["mediaType"], "application/vnd.docker.distribution.manifest.v2+json");
    assert_eq!(shown["profile"], "ollama");
    assert_eq!(shown["scheme"], "int4");
    let layer = &shown["layers"][0];
    assert_eq!(layer["name"], "lm_head.weight");
    assert_eq!(layer["mediaType"], "application/vnd.ollama.image.tensor");
    assert_eq!(layer["size"], fs::metadata(place.blob(layer["digest"].as_str().unwrap())).unwrap().len());
    let tensors = shown["tensors"].as_array().unwrap();
    let experts = tensors.iter().find(|tensor| tensor["name"] == "model.layers.0.mlp.switch_mlp.gate_proj.weight");
    assert_eq!(
        experts.unwrap(),
        &json!({
            "name": "model.layers.0.mlp.switch_mlp.gate_proj.weight",
            "dtype": "BF16",
            "shape": [12, 64, 64],
            "scheme": "int4",
            "layer": "model.layers.0.mlp.switch_mlp",
        })
    );
    let norm = tensors.iter().find(|tensor| tensor["name"] == "model.norm.weight").unwrap();
    assert_eq!(norm["scheme"], json!(null));
}

#[test]
fn a_name_that_is_not_there_is_bad_input() {
    assert_snapshot!(Place::new().kiln("show nothing"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: No model is named `nothing:latest`

    hint: `kiln list` shows what the store holds
    ");
}
