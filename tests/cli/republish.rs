//! Models that were published in another layout, as the source of new ones.

use std::collections::BTreeMap;
use std::fs;

use insta::assert_snapshot;
use serde_json::Value;

use crate::place::Place;
use crate::published::{Array, Arrays, Layout, Published, Writer, file, stored, tensors};

const CHECKPOINT: &str = "qwen3-moe-12e-bf16";

/// The layers of a model that are not the lock: name, and digest.
fn layers(place: &Place, name: &str) -> BTreeMap<String, String> {
    let shown = place.kiln(&format!("show {name} --json")).last_object();
    let layers = shown["layers"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    layers.map(|layer| (text(&layer["name"]), text(&layer["digest"]))).filter(|(name, _)| name != "kiln.lock").collect()
}

/// A place with a checkpoint and a model created from it; of the files beside the weights only those that older
/// models have.
fn with_fresh(checkpoint: &str) -> Place {
    let place = Place::new();
    place.checkpoint(checkpoint, "checkpoint");
    for name in ["LICENSE", "chat_template.jinja", "README.md"] {
        let _ = fs::remove_file(place.path("checkpoint").join(name));
    }
    place.kiln("create fresh checkpoint").expect(0);
    place
}

#[test]
fn every_older_layout_gives_the_layers_of_a_fresh_import() {
    let place = with_fresh(CHECKPOINT);
    let fresh = layers(&place, "fresh");
    for (layout, writer) in
        Layout::ALL.into_iter().zip([Writer::Go, Writer::Mlx, Writer::Mlx, Writer::Go, Writer::Sorted])
    {
        Published::of(CHECKPOINT, layout, writer).put(&place, "old");
        assert_ne!(layers(&place, "old"), fresh, "{layout:?} is the layout of today");
        place.kiln("create new old").expect(0);
        assert_eq!(layers(&place, "new"), fresh, "{layout:?} by {writer:?}");
        place.kiln("verify new").expect(0);
        place.kiln("verify new --level rebuild").expect(0);
    }
}

#[test]
fn a_model_that_kept_the_tensors_of_its_checkpoint_gives_the_manifest_of_a_fresh_import() {
    let place = with_fresh(CHECKPOINT);
    for layout in [Layout::PerExpert, Layout::Alone] {
        Published::of(CHECKPOINT, layout, Writer::Go).put(&place, "old");
        assert_eq!(place.digest("create new old"), place.digest("show fresh"), "{layout:?}");
    }
    // Where the tensors are others, the lock records others: the layers agree, and the manifests cannot.
    Published::of(CHECKPOINT, Layout::Stacked, Writer::Go).put(&place, "old");
    assert_ne!(place.digest("create new old"), place.digest("show fresh"));
}

#[test]
fn a_scheme_is_applied_as_to_any_checkpoint() {
    let place = with_fresh(CHECKPOINT);
    place.kiln("create fresh checkpoint --quantize int4").expect(0);
    Published::of(CHECKPOINT, Layout::Stacked, Writer::Go).put(&place, "old");
    place.kiln("create new old --quantize int4").expect(0);
    assert_eq!(layers(&place, "new"), layers(&place, "fresh"));
}

/// Gives each expert of a stacked tensor a tensor of its own.
fn unstack(array: &Array) -> Vec<Array> {
    let [experts, shape @ ..] = &*array.shape else { panic!("{:?}", array.shape) };
    let one = array.data.len() / *experts as usize;
    let expert = |data: &[u8]| Array { dtype: array.dtype.clone(), shape: shape.to_vec(), data: data.to_vec() };
    array.data.chunks_exact(one).map(expert).collect()
}

#[test]
fn gemmas_experts_of_may_become_todays() {
    const GEMMA: &str = "gemma4-moe-vl-bf16";
    let place = with_fresh(GEMMA);
    let mut blobs: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (name, array) in tensors(GEMMA) {
        let Some((layer, projection)) = name.split_once(".experts.") else {
            blobs.insert(name.clone(), vec![(name, array)]);
            continue;
        };
        let blob = blobs.entry(format!("{layer}.moe.experts")).or_default();
        for (number, expert) in unstack(&array).into_iter().enumerate() {
            blob.push((format!("{layer}.moe.experts.{number}.{projection}.weight"), expert));
        }
    }
    Published::with_blobs(GEMMA, blobs, Writer::Go).put(&place, "old");
    place.kiln("create new old").expect(0);
    assert_eq!(layers(&place, "new"), layers(&place, "fresh"));
}

#[test]
fn the_experts_of_august_that_kept_their_names_become_todays() {
    const QWEN: &str = "qwen3_5-moe-vl-stacked-bf16";
    let place = with_fresh(QWEN);
    let blobs = tensors(QWEN).into_iter().map(|(name, array)| (name.clone(), vec![(name, array)])).collect();
    Published::with_blobs(QWEN, blobs, Writer::Go).put(&place, "old");
    assert_eq!(place.digest("create new old"), place.digest("show fresh"));
}

/// How a quantized model was published.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Restacked in one blob, each tensor with its scheme in the metadata (May).
    Restacked,
    /// Stacked, each projection a blob with its scheme (August).
    Stacked,
    /// One by one, each expert's matrix a blob with its scheme (August, from a prequantized checkpoint).
    Alone,
    /// As the last, with nothing said about the scheme.
    Unlabelled,
}

/// The layers of a quantized model, in the form in which it was published; `schemes` has type and group size by the
/// number of words for a scale.
fn published(place: &Place, model: &str, form: Form, schemes: &[(u64, &str)]) -> Published {
    let mut blobs: BTreeMap<String, Arrays> = BTreeMap::new();
    for (name, array) in stored(place, model).into_iter().flatten() {
        let whole = name.strip_suffix(".scale").or_else(|| name.strip_suffix(".bias")).unwrap_or(&name).to_owned();
        match (name.split_once(".mlp.switch_mlp."), form) {
            (None, _) => blobs.entry(whole).or_default().push((name, array)),
            (Some((layer, _)), Form::Restacked) => {
                blobs.entry(format!("{layer}.mlp.experts")).or_default().push((name, array));
            }
            (Some(_), Form::Stacked) => {
                let august = |name: &str| name.replace("switch_mlp", "experts");
                blobs.entry(august(&whole)).or_default().push((august(&name), array));
            }
            (Some(_), Form::Alone | Form::Unlabelled) => {
                for (number, expert) in unstack(&array).into_iter().enumerate() {
                    let august = |name: &str| name.replace("switch_mlp", &format!("experts.{number}"));
                    blobs.entry(august(&whole)).or_default().push((august(&name), expert));
                }
            }
        }
    }
    let files = blobs.into_iter().map(|(blob, mut arrays)| {
        let find = |name: &str| arrays.iter().find(|(other, _)| other == name).map(|(_, array)| array);
        let last = |array: &Array| *array.shape.last().unwrap();
        let mut metadata: BTreeMap<String, String> = BTreeMap::new();
        for (name, codes) in &arrays {
            let Some(scale) = find(&format!("{name}.scale")) else { continue };
            let (_, said) = schemes.iter().find(|(words, _)| last(codes) == words * last(scale)).unwrap();
            let (quant_type, group_size) = said.split_once(' ').unwrap();
            let prefix = if matches!(form, Form::Restacked) { format!("{name}.") } else { String::new() };
            metadata.insert(format!("{prefix}quant_type"), quant_type.to_owned());
            metadata.insert(format!("{prefix}group_size"), group_size.to_owned());
        }
        let metadata = (!metadata.is_empty()).then(|| serde_json::to_string(&metadata).unwrap());
        arrays.reverse();
        match (form, &metadata) {
            (_, None) => (blob, file(&arrays, None, Writer::Go)),
            (Form::Unlabelled, _) => (blob, file(&arrays, None, Writer::Go)),
            (Form::Alone, _) => (blob, file(&arrays, metadata.as_deref(), Writer::Go)),
            _ => (blob, file(&arrays, metadata.as_deref(), Writer::Mlx)),
        }
    });
    Published::with_files(CHECKPOINT, files)
}

#[test]
fn quantized_models_become_todays_in_whatever_form_they_were_published() {
    let place = with_fresh(CHECKPOINT);
    let all = [Form::Restacked, Form::Stacked, Form::Alone, Form::Unlabelled];
    for (scheme, forms, schemes) in [
        ("int4", &all[..3], &[(8, "int4 64"), (16, "INT8 64")][..]),
        ("int8", &all, &[(16, "Q8 64")]),
        ("nvfp4", &all, &[(2, "nvfp4 16"), (8, "mxfp8 32")]),
    ] {
        place.kiln(&format!("create fresh checkpoint --quantize {scheme}")).expect(0);
        let fresh = layers(&place, "fresh");
        for form in forms {
            published(&place, "fresh", *form, schemes).put(&place, "old");
            assert_ne!(layers(&place, "old"), fresh, "{scheme} {form:?}");
            place.kiln("create new old").expect(0);
            assert_eq!(layers(&place, "new"), fresh, "{scheme} {form:?}");
            place.kiln("verify new --level rebuild").expect(0);
        }
    }
    // Four bits in groups of 64 and eight bits in groups of 32 look the same.
    place.kiln("create fresh checkpoint --quantize int4").expect(0);
    published(&place, "fresh", Form::Unlabelled, &[(8, "int4 64"), (16, "int8 64")]).put(&place, "old");
    assert_snapshot!(place.kiln("create new old"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    check: 53 blobs, [SIZE]
    error: The codes of `model.layers.0.mlp.experts.0.gate_proj.weight` cannot be read: their file does not say what they are

    hint: check that `config.json` belongs to these weights, and that all of them are there
    ");
    published(&place, "fresh", Form::Stacked, &[(8, "int4 48"), (16, "int8 64")]).put(&place, "old");
    assert_snapshot!(place.kiln("create new old"), @r"
    exit: 6
    --- stdout ---
    --- stderr ---
    check: 20 blobs, [SIZE]
    error: The codes of `model.layers.0.mlp.experts.gate_proj.weight` cannot be read: their file says `int4` in groups of `48`, which is no scheme

    hint: check that `config.json` belongs to these weights, and that all of them are there
    ");
}

/// Ollama of May added one to the norms of Qwen3.5, turned its convolution and dropped `mtp.*`: what runtimes take
/// for the one convention or the other. Such a model keeps its own.
#[test]
fn the_shifted_norms_of_may_stay_what_they_are() {
    const QWEN: &str = "qwen3_5-moe-vl-stacked-bf16";
    let place = Place::new();
    let mut blobs = BTreeMap::new();
    for (name, mut array) in tensors(QWEN).into_iter().filter(|(name, _)| !name.starts_with("mtp.")) {
        let name = match name.strip_prefix("model.visual.") {
            Some(rest) => format!("vision_tower.{rest}"),
            None => match name.strip_prefix("model.language_model.") {
                Some(rest) => format!("language_model.model.{rest}"),
                None => format!("language_model.{name}"),
            },
        };
        if name.ends_with("conv1d.weight") {
            array.shape.swap(1, 2); // [channels, 1, kernel] has the bytes of [channels, kernel, 1]
        }
        blobs.insert(name.clone(), vec![(name, array)]);
    }
    let old = Published::with_blobs(QWEN, blobs, Writer::Go);
    old.put(&place, "old");
    place.kiln("create new old").expect(0);
    place.kiln("verify new --level rebuild").expect(0);
    let shown = place.kiln("show new --json").last_object();
    let tensors: BTreeMap<&str, &Value> =
        shown["tensors"].as_array().unwrap().iter().map(|t| (t["name"].as_str().unwrap(), &t["shape"])).collect();
    assert_eq!(tensors["language_model.model.layers.0.linear_attn.conv1d.weight"], &serde_json::json!([128, 4, 1]));
    assert!(tensors.contains_key("language_model.model.layers.0.mlp.switch_mlp.down_proj.weight"));
    assert!(tensors.keys().any(|name| name.starts_with("vision_tower.")));
}

#[test]
fn the_report_says_which_layers_moved_and_which_stayed() {
    let place = with_fresh(CHECKPOINT);
    Published::of(CHECKPOINT, Layout::Apart, Writer::Sorted).put(&place, "old");
    assert_snapshot!(place.kiln("create new ref:old"), @r"
    exit: 0
    --- stdout ---
    created new:latest sha256:[DIGEST] (19 layers, [SIZE]; [SIZE] written)
    from ref:old:latest@sha256:[DIGEST]: 17 layers ([SIZE]) stayed, 1 layer ([SIZE]) moved, 1 layer ([SIZE]) new; 3 layers ([SIZE]) of the source are gone

    CHANGE  LAYER                          BYTES   FROM
    moved   model.layers.0.mlp.switch_mlp  295264  3 layers
    new     kiln.lock                      3571
    --- stderr ---
    check: 20 blobs, [SIZE]
    create: 18 blobs, [SIZE]
    ");
    let all = place.kiln("create new ref:old --verbose");
    assert!(all.stdout.contains("\nstayed  config.json"), "{all}");
    assert!(all.stdout.contains("\ngone    model.layers.0.mlp.experts.up_proj.weight"), "{all}");
    let run = place.kiln("create new old --json --progress off");
    let republished = &run.expect(0).last_object()["republished"];
    let names = |list: &str| -> Vec<String> {
        republished[list].as_array().unwrap().iter().map(|layer| layer["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(republished["source"], format!("ref:old:latest@{}", place.digest("show old")));
    assert_eq!(names("new"), ["kiln.lock"]);
    assert_eq!(names("moved"), ["model.layers.0.mlp.switch_mlp"]);
    assert_eq!(
        names("gone"),
        ["down", "gate", "up"].map(|projection| format!("model.layers.0.mlp.experts.{projection}_proj.weight"))
    );
    assert_eq!(republished["moved"][0]["from"], serde_json::json!(names("gone")));
    assert_eq!(names("stayed").len(), 12 + 5);
}

#[test]
fn a_push_sends_only_the_layers_that_moved() {
    let publisher = Place::new();
    Published::of(CHECKPOINT, Layout::PerExpert, Writer::Sorted).put(&publisher, "old");
    let mut server = publisher.start(&mut publisher.command("serve --addr 127.0.0.1:0"));
    let registry = server.line("listening on ");
    publisher.kiln(&format!("push old {registry}/team/demo:old")).expect(0);

    // Elsewhere, where nothing is known of it: the source is pulled.
    let place = Place::new();
    let name = format!("{registry}/team/demo");
    let run = place.kiln(&format!("create {name}:new {name}:old --json --progress off"));
    let republished = run.expect(0).last_object()["republished"].clone();
    let count = |list: &str| republished[list].as_array().unwrap().len() as u64;
    assert_eq!((count("moved"), count("new"), count("stayed")), (1, 1, 17));
    let pushed = place.kiln(&format!("push {name}:new --json")).expect(0).last_object();
    // The config, too: kiln knows another parser.
    assert_eq!(pushed["blobs_sent"], count("moved") + count("new") + 1);
    assert_eq!(pushed["blobs_skipped"], count("stayed"));
    place.kiln(&format!("verify {name}:new --level rebuild")).expect(0);
}

#[test]
fn an_older_model_is_pulled_checked_listed_and_served_as_it_is() {
    let place = Place::new();
    let digest = Published::of(CHECKPOINT, Layout::Restacked, Writer::Mlx).put(&place, "old");
    let mut server = place.start(&mut place.command("serve --addr 127.0.0.1:0"));
    let registry = server.line("listening on ");
    let elsewhere = Place::new();
    assert_eq!(elsewhere.digest(&format!("pull {registry}/old old")), digest);
    elsewhere.kiln("verify old --level structure").expect(0);
    elsewhere.kiln("verify old --level digests").expect(0);
    assert_snapshot!(elsewhere.kiln("verify old"), @r"
    exit: 5
    --- stdout ---
    old:latest sha256:[DIGEST]
    checked: structure, digests (20 blobs)
    could-not-check: The model has no `kiln.lock`: which tensors it should have is not known
    not checked: tensors (every tensor is in the form that lock and config say)
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: could-not-check
    --- stderr ---
    verify: 19 blobs, [SIZE]
    ");
    assert!(elsewhere.kiln("list").stdout.contains("old:latest"));
    let shown = elsewhere.kiln("show old --json").expect(0).last_object();
    assert_eq!((&shown["profile"], &shown["scheme"]), (&Value::Null, &Value::Null));
    assert!(
        shown["tensors"].as_array().unwrap().iter().any(|tensor| tensor["shape"] == serde_json::json!([12, 64, 64]))
    );
}

#[test]
fn a_damaged_layer_is_found_before_anything_is_written() {
    let place = Place::new();
    Published::of(CHECKPOINT, Layout::Stacked, Writer::Go).put(&place, "old");
    let digest = layers(&place, "old")["model.layers.0.mlp.experts"].clone();
    place.damage(&digest, 1000);
    let before = fs::read_dir(place.path("store/blobs/sha256")).unwrap().count();
    assert_snapshot!(place.kiln("create new old"), @r"
    exit: 3
    --- stdout ---
    --- stderr ---
    check: 18 blobs, [SIZE]
    error: The layer `model.layers.0.mlp.experts` of `ref:old:latest@sha256:[DIGEST]` has other bytes, of digest `sha256:[DIGEST]`

    hint: pull the model again: only what is damaged is fetched
    ");
    fs::remove_file(place.blob(&digest)).unwrap();
    place.kiln("create new old").expect(3);
    assert_eq!(fs::read_dir(place.path("store/blobs/sha256")).unwrap().count(), before - 1);
}

#[test]
fn a_source_that_was_named_anew_cannot_be_checked_against() {
    let place = with_fresh(CHECKPOINT);
    Published::of(CHECKPOINT, Layout::Stacked, Writer::Go).put(&place, "old");
    place.kiln("create new old").expect(0);
    place.kiln("verify new --source old").expect(0);
    // The checkpoint has other tensors than the model it was published as.
    place.kiln("verify new --source checkpoint").expect(4);
    place.kiln("tag fresh old").expect(0);
    assert_snapshot!(place.kiln("verify new --level rebuild"), @r"
    exit: 5
    --- stdout ---
    new:latest sha256:[DIGEST]
    checked: structure, digests, tensors (21 blobs)
    could-not-check: The source `ref:old:latest@sha256:[DIGEST]` cannot be used: No model is named `old:latest@sha256:[DIGEST]`
    not checked: rebuild (creating it again from its source gives the same bytes)
    not checked: trust (somebody who is trusted stands for it)
    result: could-not-check
    --- stderr ---
    verify: 20 blobs, [SIZE]
    ");
}
