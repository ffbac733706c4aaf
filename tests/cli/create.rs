use std::fs;
use std::io::Write as _;

use insta::assert_snapshot;
use serde_json::{Value, json};

use crate::place::Place;
use crate::shell::help;

#[test]
fn help_says_what_it_takes() {
    assert_snapshot!(help("create"), @r"
    Create a model from a checkpoint

    Usage: kiln create [OPTIONS] <NAME> <SOURCE>

    Arguments:
      <NAME>    The model's name in the store, as in `llama:int4`
      <SOURCE>  The checkpoint: a directory, `org/name[@revision]` in the Hugging Face cache, or a
                published model

    Options:
      -Q, --quantize <SCHEME>        Quantize: int4, int8, nvfp4, mxfp4, mxfp8 or
                                     affine{2,3,4,5,6,8}-g{32,64,128}
          --recipe <FILE|NAME>       Rules for each tensor's scheme: a TOML file, or ollama,
                                     mlx-default, mixed-2-6, mixed-3-4, mixed-3-6, mixed-4-6
          --profile <PROFILE>        The runtime the layers are named for [default: ollama] [possible
                                     values: ollama, mlx, hf]
          --dialect <DIALECT>        How the manifest is spelled [default: ollama; modelpack for the
                                     other profiles] [possible values: ollama, modelpack, docker]
          --modelfile <FILE>         A Modelfile: TEMPLATE, SYSTEM, LICENSE, PARAMETER, PARSER,
                                     RENDERER, REQUIRES and DRAFT are kept
          --draft <DIR>              The checkpoint of a draft, which guesses ahead for the model
          --draft-quantize <SCHEME>  Quantize the draft
          --dry-run                  Print what would be written, and write nothing
      -h, --help                     Print help (see more with '--help')

    Registry options: …

    Global options: …

    Examples:
      kiln create llama:bf16 ./Llama-3.1-8B
      kiln create llama:int4 ./Llama-3.1-8B --quantize int4
      kiln create llama:q3 ./Llama-3.1-8B --quantize affine3-g64 --dialect modelpack
      kiln create llama:mixed ./Llama-3.1-8B --recipe mixed-4-6
      kiln create llama:mine ./Llama-3.1-8B --quantize int4 --recipe ./mine.toml
      kiln create gemma:int4 ./gemma-4 --quantize int4 --draft ./gemma-4-assistant --draft-quantize int4
      kiln create llama:int4 ./Llama-3.1-8B --quantize int4 --modelfile ./Modelfile
      kiln create llama:hf ./Llama-3.1-8B --profile hf
      kiln create llama:int4 ./Llama-3.1-8B --quantize int4 --dry-run
      kiln create llama:bf16 meta-llama/Llama-3.1-8B
      kiln create llama:new ref:registry.example/team/llama:old

    SOURCE is a path that is there; else a model of the store, or `org/name[@revision]` in the
    Hugging Face cache; else a model in the registry that it names. `ref:`, `hf:` or `ollama:`
    before it says which.
    ");
}

#[test]
fn a_recipe_is_shown_rule_by_rule() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    let recipe = "scheme = 'int4'\n\n[[rule]]\nmatch = ['*_proj.weight', '*norm*']\nlayers = '0-3'\nscheme = 'nvfp4'\n";
    fs::write(place.path("my.toml"), recipe).unwrap();
    assert_snapshot!(place.kiln("create demo checkpoint --recipe my.toml --dry-run"), @r"
    exit: 0
    --- stdout ---
    BLOB                                              BYTES  SCHEME  FROM      WHY
    model.layers.0.mlp.switch_mlp                     83688
      model.layers.0.mlp.switch_mlp.down_proj.weight         nvfp4   stack 12  `my.toml` line 3: `*_proj.weight`, `*norm*` in layers `0-3`
      model.layers.0.mlp.switch_mlp.gate_proj.weight         nvfp4   stack 12  `my.toml` line 3: `*_proj.weight`, `*norm*` in layers `0-3`
      model.layers.0.mlp.switch_mlp.up_proj.weight           nvfp4   stack 12  `my.toml` line 3: `*_proj.weight`, `*norm*` in layers `0-3`
    lm_head.weight                                    11832  int4    copy      `my.toml`: the default
    model.embed_tokens.weight                         11864  int4    copy      `my.toml`: the default
    model.layers.0.input_layernorm.weight             232    BF16    copy      not a weight matrix
    model.layers.0.mlp.gate.weight                    776    int4    copy      `my.toml`: the default
    model.layers.0.post_attention_layernorm.weight    240    BF16    copy      not a weight matrix
    model.layers.0.self_attn.k_norm.weight            136    BF16    copy      not a weight matrix
    model.layers.0.self_attn.k_proj.weight            1424   nvfp4   copy      `my.toml` line 3: `*_proj.weight`, `*norm*` in layers `0-3`
    model.layers.0.self_attn.o_proj.weight            2576   nvfp4   copy      `my.toml` line 3: `*_proj.weight`, `*norm*` in layers `0-3`
    model.layers.0.self_attn.q_norm.weight            136    BF16    copy      not a weight matrix
    model.layers.0.self_attn.q_proj.weight            2576   nvfp4   copy      `my.toml` line 3: `*_proj.weight`, `*norm*` in layers `0-3`
    model.layers.0.self_attn.v_proj.weight            1424   nvfp4   copy      `my.toml` line 3: `*_proj.weight`, `*norm*` in layers `0-3`
    model.norm.weight                                 216    BF16    copy      not a weight matrix
    config.json                                       928
    generation_config.json                            292
    special_tokens_map.json                           177
    tokenizer.json                                    9676
    tokenizer_config.json                             240
    LICENSE                                           1073
    chat_template.jinja                               211

    20 layers of family qwen3_moe: 13 with tensors, 7 files, [SIZE] in all
    --- stderr ---
    ");
    assert_snapshot!(place.kiln("create demo checkpoint --recipe mixed-4-6 --quantize int4"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: The recipe `mixed-4-6` has a scheme already, `int4`

    hint: leave `--quantize` out, or take `scheme` out of the recipe
    ");
    assert_snapshot!(place.kiln("create demo checkpoint --recipe mixed-4-5"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: Could not read the recipe: `mixed-4-5`
    caused by: No such file or directory (os error 2)

    hint: use a TOML file, or one of ollama, mlx-default, mixed-2-6, mixed-3-4, mixed-3-6, mixed-4-6
    ");
    fs::write(place.path("my.toml"), recipe.replace("scheme = 'nvfp4'", "schema = 'nvfp4'")).unwrap();
    assert_snapshot!(place.kiln("create demo checkpoint --recipe my.toml"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: Line 6 of the recipe `my.toml` is wrong
    caused by: unknown field `schema`, expected one of `match`, `regex`, `layers`, `scheme`, `else`
    ");
    place.kiln("create demo checkpoint --recipe mixed-4-6").expect(0);
    place.kiln("verify demo --level rebuild").expect(0);
}

#[test]
fn a_draft_and_a_modelfile_are_shown_behind_the_model() {
    let place = Place::new();
    place.checkpoint("llama-tied-bf16", "checkpoint");
    place.checkpoint("../drafts/dflash-bf16", "draft");
    fs::write(
        place.path("Modelfile"),
        "FROM checkpoint\nSYSTEM Hello.\nPARSER mine\nMESSAGE user hello\nDRAFT draft\n",
    )
    .unwrap();
    let more = "create demo checkpoint --modelfile Modelfile --draft-quantize int4";
    let run = place.kiln(&format!("{more} --dry-run"));
    run.expect(0);
    let behind: Vec<&str> = run.stdout.lines().skip_while(|line| !line.starts_with("draft.norm.weight")).collect();
    assert_snapshot!(behind.join("\n"), @r"
    draft.norm.weight                               216     BF16    copy  norm
    config.json                                     716
    generation_config.json                          292
    special_tokens_map.json                         177
    tokenizer.json                                  21143
    tokenizer_config.json                           240
    LICENSE                                         1073
    chat_template.jinja                             211
    draft/config.json                               413
    draft/generation_config.json                    39
    modelfile/system                                6

    55 layers of family llama: 45 with tensors, 10 files, 621.01 KiB in all
    ");
    assert_snapshot!(run.stderr, @r"
    note: `MESSAGE` is left out, as Ollama does for these models
    note: Ollama v0.33 has no parser `mine`
    ");
    place.kiln(more).expect(0);
    place.kiln("verify demo --level rebuild").expect(0);
    assert_snapshot!(place.kiln(&format!("{more} --draft draft")), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: The draft is named twice: by `--draft` and by the Modelfile

    hint: leave one of them out
    ");
    fs::write(place.path("Modelfile"), "SYSTEM Hello.\nPARAMETER temprature 1\n").unwrap();
    assert_snapshot!(place.kiln("create demo checkpoint --modelfile Modelfile"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: Line 2 of the Modelfile `Modelfile` is wrong
    caused by: There is no parameter `temprature`
    ");
    assert_snapshot!(place.kiln("create demo checkpoint --draft checkpoint"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: `LlamaForCausalLM` is no architecture of drafts

    hint: use a draft of DFlashDraftModel, DFlashLagunaForCausalLM, MuseGlimmerAssistantModel, Gemma4AssistantForCausalLM, Gemma4UnifiedAssistantForCausalLM
    ");
    assert_snapshot!(place.kiln("create demo checkpoint --draft-quantize int4"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: `--draft-quantize` needs a draft

    hint: add `--draft DIR`
    ");
}

#[test]
fn a_checkpoint_becomes_a_model() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    assert_snapshot!(place.kiln("create demo:int4 checkpoint --quantize int4"), @r"
    exit: 0
    --- stdout ---
    created demo:int4 sha256:[DIGEST] (21 layers, [SIZE]; [SIZE] written)
    --- stderr ---
    create: 20 blobs, [SIZE]
    ");
    assert_snapshot!(place.kiln("list"), @r"
    exit: 0
    --- stdout ---
    NAME       DIGEST        LAYERS  SIZE
    demo:int4  [SHORT]       21      [SIZE]
    --- stderr ---
    ");
}

#[test]
fn the_same_checkpoint_gives_the_same_digest_whatever_the_threads() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    let first = place.digest("create a checkpoint --quantize nvfp4 --threads 1");
    let second = place.digest("create b checkpoint --quantize nvfp4 --threads 7 --store other");
    assert_eq!(first, second);
    let plain = place.digest("create c checkpoint");
    assert_ne!(first, plain);
}

#[test]
fn json_ends_with_what_was_created() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    let run = place.kiln("create demo:int4 checkpoint --quantize int4 --json");
    run.expect(0);
    let created = run.last_object();
    assert_eq!(created["event"], "created");
    assert_eq!(created["name"], "demo:int4");
    assert_eq!(created["layers"], 21);
    assert!(created["bytes"].as_u64().unwrap() > 200_000);
    assert_eq!(created["digest"], place.digest("show demo:int4"));
    assert_eq!(run.stderr, "");
    let events: Vec<Value> = run.objects().into_iter().map(|object| object["event"].clone()).collect();
    assert_eq!(events.iter().filter(|event| **event == "blob").count(), 20);
    let only = place.kiln("create demo:int4 checkpoint --quantize int4 --json --progress off");
    assert_eq!(only.objects().len(), 1, "{only}");
    assert_eq!(only.last_object()["bytesWritten"], 0);
}

#[test]
fn a_dry_run_prints_the_plan_and_writes_nothing() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    assert_snapshot!(place.kiln("create demo:int4 checkpoint --quantize int4 --dry-run"), @r"
    exit: 0
    --- stdout ---
    BLOB                                              BYTES   SCHEME  FROM      WHY
    lm_head.weight                                    22072   int8    copy      output head: 8 bits
    model.embed_tokens.weight                         41056   BF16    copy      embedding
    model.layers.0.input_layernorm.weight             232     BF16    copy      norm
    model.layers.0.mlp.gate.weight                    1640    BF16    copy      fewer than 1024 elements
    model.layers.0.post_attention_layernorm.weight    240     BF16    copy      norm
    model.layers.0.self_attn.k_norm.weight            136     BF16    copy      norm
    model.layers.0.self_attn.k_proj.weight            2552    int8    copy      sensitive projection: 8 bits
    model.layers.0.self_attn.o_proj.weight            2680    int4    copy      base scheme
    model.layers.0.self_attn.q_norm.weight            136     BF16    copy      norm
    model.layers.0.self_attn.q_proj.weight            2680    int4    copy      base scheme
    model.layers.0.self_attn.v_proj.weight            2552    int8    copy      sensitive projection: 8 bits
    model.norm.weight                                 216     BF16    copy      norm
    model.layers.0.mlp.switch_mlp                     108984
      model.layers.0.mlp.switch_mlp.down_proj.weight          int8    stack 12  sensitive projection: 8 bits
      model.layers.0.mlp.switch_mlp.gate_proj.weight          int4    stack 12  base scheme
      model.layers.0.mlp.switch_mlp.up_proj.weight            int4    stack 12  base scheme
    config.json                                       928
    generation_config.json                            292
    special_tokens_map.json                           177
    tokenizer.json                                    9676
    tokenizer_config.json                             240
    LICENSE                                           1073
    chat_template.jinja                               211

    20 layers of family qwen3_moe: 13 with tensors, 7 files, [SIZE] in all
    --- stderr ---
    ");
    assert!(!place.path("store").exists());
}

#[test]
fn a_dry_run_in_json_is_one_object() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    let run = place.kiln("create demo:int4 checkpoint --quantize int4 --dry-run --json");
    run.expect(0);
    let [plan] = &*run.objects() else { panic!("{run}") };
    assert_eq!(plan["event"], "planned");
    assert_eq!(plan["family"], "qwen3_moe");
    assert_eq!(plan["notes"], json!([]));
    let blobs = plan["blobs"].as_array().unwrap();
    let experts = blobs.iter().find(|blob| blob["name"] == "model.layers.0.mlp.switch_mlp").unwrap();
    assert_eq!(
        experts["tensors"][0],
        json!({
            "name": "model.layers.0.mlp.switch_mlp.down_proj.weight",
            "scheme": "int8",
            "why": "sensitive projection: 8 bits",
            "transform": "stack",
            "steps": [],
            "dtype": "BF16",
            "shape": [12, 64, 64],
            "sources": 12,
        })
    );
    let norm = blobs.iter().find(|blob| blob["name"] == "model.norm.weight").unwrap();
    assert_eq!(norm["tensors"][0]["scheme"], Value::Null);
    let bytes = |list: &Value| list.as_array().unwrap().iter().map(|item| item["bytes"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(plan["bytes"], bytes(&plan["blobs"]) + bytes(&plan["sidecars"]));
    // The sizes that were announced are those that are written.
    place.kiln("create demo:int4 checkpoint --quantize int4").expect(0);
    let shown = place.kiln("show demo:int4 --json").last_object();
    let layers = shown["layers"].as_array().unwrap();
    for planned in blobs.iter().chain(plan["sidecars"].as_array().unwrap()) {
        let layer = layers.iter().find(|layer| layer["name"] == planned["name"]).unwrap();
        assert_eq!(layer["size"], planned["bytes"], "{}", planned["name"]);
    }
}

#[test]
fn both_dialects_share_the_weights() {
    let place = Place::new();
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    place.kiln("create a checkpoint --quantize int4").expect(0);
    let second = place.kiln("create b checkpoint --quantize int4 --dialect modelpack --json");
    let created = second.expect(0).last_object();
    let share = created["bytesWritten"].as_u64().unwrap() as f64 / created["bytes"].as_u64().unwrap() as f64;
    assert!(share < 0.1, "{created}");
    let shown = place.kiln("show b --json").last_object();
    assert_eq!(shown["mediaType"], "application/vnd.oci.image.manifest.v1+json");
}

#[test]
fn an_unknown_scheme_is_answered_with_those_there_are() {
    let place = Place::new();
    assert_snapshot!(place.kiln("create a checkpoint --quantize q9"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: Invalid value for `--quantize <SCHEME>`
    caused by: There is no quantization scheme `q9`

    hint: use int4, int8, nvfp4, mxfp4, mxfp8 or affine{2,3,4,5,6,8}-g{32,64,128}
    ");
}

#[test]
fn an_unknown_dialect_is_answered_with_those_there_are() {
    assert_snapshot!(Place::new().kiln("create a checkpoint --dialect podman"), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: invalid value 'podman' for '--dialect <DIALECT>'
      [possible values: ollama, modelpack, docker]

    For more information, try '--help'.
    ");
}

#[test]
fn what_is_no_checkpoint_is_bad_input() {
    let place = Place::new();
    assert_snapshot!(place.kiln("create a nowhere"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: There is no checkpoint at `nowhere`, and no model of that name in the store

    hint: name a directory that holds `config.json` and the weights, or a model of `kiln list`
    ");
    fs::create_dir(place.path("empty")).unwrap();
    assert_snapshot!(place.kiln("create a empty"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: `empty` has no `model*.safetensors`

    hint: name the directory that has the weights and `config.json`
    ");
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    fs::remove_file(place.path("checkpoint/config.json")).unwrap();
    assert_snapshot!(place.kiln("create a checkpoint"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    error: `checkpoint/config.json` is missing

    hint: download it from the same revision as the weights
    ");
    assert!(!place.path("store").exists(), "a store was made for nothing");
}

#[test]
fn a_damaged_shard_leaves_the_store_as_it_was() {
    let place = Place::with_model();
    let before = place.kiln("list --json").stdout;
    let shard = place.path("checkpoint/model-00003-of-00005.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() - 1]).unwrap();
    let run = place.kiln("create other checkpoint --quantize int8 --json");
    run.expect(6);
    let error = run.last_object();
    assert_eq!(error["event"], "error");
    assert_eq!(error["exitCode"], 6);
    assert!(run.stderr.contains("model-00003-of-00005.safetensors"), "{run}");
    assert_eq!(place.kiln("list --json").stdout, before);
}

#[test]
fn a_new_model_is_not_named_by_a_digest() {
    let digest = "0".repeat(64);
    assert_snapshot!(Place::new().kiln(&format!("create a@sha256:{digest} checkpoint")), @r"
    exit: 2
    --- stdout ---
    --- stderr ---
    error: A new model cannot be named by a digest: `a@sha256:[DIGEST]`

    hint: leave the digest out of the name
    ");
}

#[test]
fn an_interrupted_create_leaves_the_store_sound() {
    let place = Place::new();
    // Half a gigabyte of zeros takes longer than it takes to send a signal.
    let tensors: Vec<String> = (0..4_u64)
        .map(|index| {
            let (begin, end) = (index << 27, (index + 1) << 27);
            format!(r#""layers.{index}.weight":{{"dtype":"BF16","shape":[8192,8192],"data_offsets":[{begin},{end}]}}"#)
        })
        .collect();
    let header = format!("{{{}}}", tensors.join(","));
    fs::create_dir(place.path("large")).unwrap();
    fs::write(place.path("large/config.json"), r#"{"architectures":["LargeForCausalLM"]}"#).unwrap();
    let mut file = fs::File::create(place.path("large/model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len(8 + header.len() as u64 + (4 << 27)).unwrap();

    let mut running = place.start(&mut place.command("create large large --quantize int4 --threads 1 --json"));
    running.line(r#"{"blobs":5,"#);
    running.signal("INT");
    let run = running.wait();
    run.expect(130);
    assert_eq!(run.last_object()["message"], "Interrupted");

    assert_eq!(place.kiln("list --json").expect(0).stdout, "");
    let unfinished = fs::read_dir(place.path("store/ingest")).unwrap().count();
    assert_eq!(place.kiln("gc --json").expect(0).last_object()["unfinished"], unfinished);
    assert_eq!(fs::read_dir(place.path("store/ingest")).unwrap().count(), 0);
    place.checkpoint("qwen3-moe-12e-bf16", "checkpoint");
    place.kiln("create demo:int4 checkpoint --quantize int4").expect(0);
    place.kiln("verify demo:int4").expect(0);
}

#[test]
fn dialects_are_for_those_who_load_the_profile() {
    let place = Place::with_model();
    place.kiln("create demo:docker checkpoint --dialect docker").expect(2);
    place.kiln("create demo:ollama checkpoint --profile hf --dialect ollama").expect(2);
    place.kiln("create demo:docker checkpoint --profile hf --dialect docker").expect(0);
    place.kiln("verify demo:docker --level rebuild").expect(0);
    place.kiln("checkout demo:docker out").expect(0);
    for file in fs::read_dir(place.path("checkpoint")).unwrap().map(|file| file.unwrap()) {
        assert_eq!(fs::read(file.path()).unwrap(), fs::read(place.path("out").join(file.file_name())).unwrap());
    }
}
