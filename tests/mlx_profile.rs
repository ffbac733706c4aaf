//! Profile `mlx` against mlx-lm's own conversions: every tensor by name, type, shape and bytes, and the config by
//! value. `tests/twins/` has what `mlx_lm.convert` of mlx-lm 0.32.2 with mlx 0.32.4 on the CPU made of the checkpoints in
//! `tests/checkpoints/`: a line for each array, with the SHA-256 of its bytes, and its `config.json`.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use kiln::inventory::{Dtype, Inventory, SourceKind, Tensor};
use kiln::manifest::{Dialect, Lock};
use kiln::oci::Digest;
use kiln::ops::checkout::{Options as CheckoutOptions, checkout};
use kiln::ops::create::{Options, create, preview};
use kiln::ops::verify::{Level, Options as VerifyOptions, Outcome, verify};
use kiln::plan::{Plan, Profile, Recipe, Request};
use kiln::store::Store;
use kiln::{ErrorKind, Progress};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn checkpoint(name: &str) -> PathBuf {
    root().join("tests/checkpoints").join(name)
}

fn request(scheme: &str, recipe: Option<Recipe>) -> Request {
    let scheme = (scheme != "none").then(|| scheme.parse().unwrap());
    Request::new(Profile::Mlx, scheme, recipe).unwrap()
}

/// A model, laid out as a directory.
struct Made {
    _place: TempDir,
    directory: PathBuf,
    store: Store,
}

impl Made {
    fn of(source: &Path, request: Request, dialect: Dialect) -> Self {
        let place = TempDir::new().unwrap();
        let store = Store::open(&place.path().join("store")).unwrap();
        let directory = place.path().join("model");
        let name: kiln::oci::Reference = "model:mlx".parse().unwrap();
        let options = Options { name: name.clone(), source: source.to_owned().into(), request, dialect, threads: 2 };
        create(&store, &options, &Progress::silent()).unwrap();
        let options = CheckoutOptions { name, directory: directory.clone(), link: None, threads: 2 };
        checkout(&store, &options, &Progress::silent()).unwrap();
        Self { _place: place, directory, store }
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.directory.join(name)).unwrap()).unwrap()
    }

    /// The files that mlx-lm looks for.
    fn shards(&self) -> Vec<String> {
        let names =
            fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> =
            names.filter(|name| name.starts_with("model") && name.ends_with(".safetensors")).collect();
        names.sort();
        names
    }

    /// A line for each array, as in `tests/twins/`, and the file it is in.
    fn arrays(&self) -> BTreeMap<String, String> {
        let mut arrays = BTreeMap::new();
        for shard in self.shards() {
            let bytes = fs::read(self.directory.join(&shard)).unwrap();
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let shape: Vec<String> = view.shape().iter().map(usize::to_string).collect();
                let digest = Digest::of(view.data()).to_string();
                let line = format!("{name} {} {} {}", view.dtype(), shape.join("x"), &digest["sha256:".len()..]);
                assert!(arrays.insert(line, shard.clone()).is_none());
            }
        }
        arrays
    }
}

const MIXED: &str = r#"
scheme = "int4"

[[rule]]
match = "*.mlp.gate.weight"
scheme = "keep"

[[rule]]
match = "*.layers.0.self_attn.*"
scheme = "keep"

[[rule]]
match = "*.down_proj.weight"
scheme = "affine6-g32"

[[rule]]
match = ["lm_head.weight", "*embed_tokens.weight"]
scheme = "int8"
"#;

#[test]
fn every_twin_is_what_mlx_lm_made() {
    let twins = [
        ("llama-bf16", "llama-untied-bf16", "none"),
        ("llama-q4", "llama-untied-bf16", "int4"),
        ("llama-q8", "llama-untied-bf16", "int8"),
        ("llama-mxfp4", "llama-untied-bf16", "mxfp4"),
        ("llama-mxfp8", "llama-untied-bf16", "mxfp8"),
        ("llama-nvfp4", "llama-untied-bf16", "nvfp4"),
        ("llama8l-recipe36", "llama-8l-bf16", "mixed-3-6"),
        ("qwen3-moe-bf16", "qwen3-moe-bf16", "none"),
        ("qwen3-moe-q4", "qwen3-moe-bf16", "int4"),
        ("qwen3-moe-q4", "qwen3-moe-stacked-bf16", "int4"),
        ("qwen3-moe-nvfp4", "qwen3-moe-bf16", "nvfp4"),
        ("qwen3-moe-mixed", "qwen3-moe-bf16", "by hand"),
        ("qwen3_5-moe-bf16", "qwen3_5-moe-vl-stacked-bf16", "none"),
        ("qwen3_5-moe-q4", "qwen3_5-moe-vl-stacked-bf16", "int4"),
        ("gemma4-moe-bf16", "gemma4-moe-vl-bf16", "none"),
        ("gemma4-moe-q4", "gemma4-moe-vl-bf16", "int4"),
        ("glm4-moe-lite-bf16", "glm4-moe-lite-bf16", "none"),
        ("glm4-moe-lite-q4", "glm4-moe-lite-bf16", "int4"),
        ("deepseek-v3-from-fp8-bf16", "fp8-deepseek-v3", "none"),
        ("gpt-oss-mxfp4", "gpt-oss-mxfp4", "none"),
        // What mlx-lm wrote is kept.
        ("gpt-oss-mxfp4", "mlx-gpt-oss-mxfp4", "none"),
        ("llama-mxfp4", "mlx-llama-mxfp4", "none"),
        ("llama8l-recipe36", "mlx-llama8l-recipe36", "none"),
        ("qwen3-moe-mixed", "mlx-qwen3-moe-mixed", "none"),
        ("qwen3_5-moe-q4", "mlx-qwen3_5-moe-q4", "none"),
        ("gemma4-moe-q4", "mlx-gemma4-moe-q4", "none"),
    ];
    for (twin, source, asked) in twins {
        let request = match asked {
            "mixed-3-6" => request("none", Recipe::built_in(asked).unwrap()),
            "by hand" => request("none", Some(Recipe::parse("mixed.toml", MIXED).unwrap())),
            scheme => request(scheme, None),
        };
        let made = Made::of(&checkpoint(source), request, Dialect::Ollama);
        let arrays = made.arrays();
        let expected = fs::read_to_string(root().join(format!("tests/twins/{twin}.txt"))).unwrap();
        let differences: Vec<&str> = expected.lines().filter(|line| !arrays.contains_key(*line)).collect();
        assert_eq!(differences, [""; 0], "{twin} from {source}");
        assert_eq!(arrays.len(), expected.lines().count(), "{twin} from {source}");
        let expected = fs::read(root().join(format!("tests/twins/{twin}.json"))).unwrap();
        let expected: Value = serde_json::from_slice(&expected).unwrap();
        if source != "qwen3-moe-stacked-bf16" {
            assert_eq!(made.json("config.json"), expected, "{twin} from {source}");
        }
        // The index leads to every array.
        let index = made.json("model.safetensors.index.json");
        let map: BTreeMap<&str, &str> =
            arrays.iter().map(|(line, shard)| (line.split(' ').next().unwrap(), &**shard)).collect();
        assert_eq!(index["weight_map"], json!(map), "{twin}");
        let verified = verify(
            &made.store,
            &VerifyOptions {
                source: Some(checkpoint(source)),
                threads: 2,
                ..VerifyOptions::new("model:mlx".parse().unwrap(), Level::Rebuild)
            },
            &Progress::silent(),
        );
        let verified = verified.unwrap();
        assert_eq!(verified.outcome(), Outcome::Ok, "{twin}: {:?}", verified.findings);
    }
}

#[test]
fn a_layer_is_a_file_and_so_is_every_module_beside_them() {
    for dialect in [Dialect::Ollama, Dialect::ModelPack] {
        let made = Made::of(&checkpoint("qwen3_5-moe-vl-stacked-bf16"), request("int4", None), dialect);
        let expected = [
            "model-language_model.lm_head.safetensors",
            "model-language_model.model.embed_tokens.safetensors",
            "model-language_model.model.layers.0.safetensors",
            "model-language_model.model.layers.1.safetensors",
            "model-language_model.model.norm.safetensors",
        ];
        assert_eq!(made.shards(), expected);
        // Canonical: what is behind the last name in the header is the last in the data.
        let bytes = fs::read(made.directory.join(expected[2])).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut places: Vec<(String, usize)> = tensors
            .tensors()
            .iter()
            .map(|(name, view)| (name.clone(), view.data().as_ptr() as usize - bytes.as_ptr() as usize))
            .collect();
        places.sort();
        assert!(places.is_sorted_by(|a, b| a.1 < b.1), "{places:?}");
        assert!(places[0].0.ends_with(".biases") || places.iter().any(|(name, _)| name.ends_with(".biases")));
    }
}

#[test]
fn what_is_done_to_values_is_in_the_lock() {
    let made = Made::of(&checkpoint("qwen3_5-moe-vl-stacked-bf16"), request("none", None), Dialect::Ollama);
    let lock = Lock::parse(&fs::read(made.directory.join("kiln.lock")).unwrap()).unwrap();
    let steps = |name: &str| {
        let tensor = lock.tensors.iter().find(|tensor| tensor.name.ends_with(name)).unwrap();
        let hashed = tensor.sources.iter().all(|source| source.blake3.is_some());
        (tensor.steps.join(" "), &*tensor.dtype, hashed)
    };
    assert_eq!(lock.profile, "mlx");
    assert_eq!(steps("layers.1.self_attn.q_norm.weight"), ("add-one".to_owned(), "BF16", true));
    assert_eq!(steps("layers.0.linear_attn.norm.weight"), ("cast".to_owned(), "BF16", true));
    assert_eq!(steps("layers.0.linear_attn.A_log"), (String::new(), "F32", false));
    assert_eq!(steps("layers.1.self_attn.q_proj.weight"), (String::new(), "BF16", false));
}

#[test]
fn what_mlx_lm_does_not_load_is_left_out_and_said() {
    let plan =
        preview(&checkpoint("gemma4-moe-vl-bf16").into(), request("none", None), 1, &Progress::silent()).unwrap().plan;
    let note = "16 tensors are left out, `model.embed_vision.embedding_projection.weight` the first: \
                mlx-lm does not load them";
    assert!(plan.notes.iter().any(|found| found == note), "{:?}", plan.notes);
    let made: BTreeSet<&str> =
        plan.sidecars.iter().filter(|file| file.made.is_some()).map(|file| &*file.name).collect();
    assert_eq!(made, ["config.json", "model.safetensors.index.json"].into());
}

/// A llama of one layer, as an inventory.
fn llama(change: impl FnOnce(&mut Inventory)) -> kiln::Result<Plan> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1,
        "torch_dtype": "float16", "tie_word_embeddings": false,
    });
    let layer = [
        "input_layernorm",
        "post_attention_layernorm",
        "mlp.down_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "self_attn.k_proj",
        "self_attn.o_proj",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ];
    let layer = layer.map(|module| format!("model.layers.0.{module}.weight")).into_iter();
    let outer = ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"].map(str::to_owned);
    let tensor = |name: String| {
        let shape = if name.contains("norm") { vec![64] } else { vec![64, 64] };
        (name, Tensor { dtype: Dtype::Bf16, shape })
    };
    let mut inventory = Inventory {
        config,
        tensors: layer.chain(outer).map(tensor).collect(),
        sidecars: Vec::new(),
        kind: SourceKind::Float,
        coded: BTreeMap::new(),
        activations: BTreeSet::new(),
        template: None,
        generation: Value::Null,
        notes: Vec::new(),
    };
    change(&mut inventory);
    Plan::new(&inventory, request("int4", None))
}

#[test]
fn a_model_that_mlx_lm_would_not_load_is_refused() {
    type Change = fn(&mut Inventory);
    let cases: [(Change, &str); 5] = [
        (
            |inventory| _ = inventory.tensors.remove("model.layers.0.mlp.up_proj.weight"),
            "There is no tensor `model.layers.0.mlp.up_proj.weight`",
        ),
        (
            // Without a word in the config, mlx-lm's Qwen3 has a head of its own.
            |inventory| {
                inventory.config = json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"});
                inventory.config["num_hidden_layers"] = 1.into();
                for norm in ["q_norm", "k_norm"] {
                    let tensor = Tensor { dtype: Dtype::Bf16, shape: vec![64] };
                    inventory.tensors.insert(format!("model.layers.0.self_attn.{norm}.weight"), tensor);
                }
                inventory.tensors.remove("lm_head.weight");
            },
            "mlx-lm needs `lm_head.weight`, which is missing",
        ),
        (
            |inventory| {
                let tensor = Tensor { dtype: Dtype::Bf16, shape: vec![64] };
                inventory.tensors.insert("model.layers.0.self_attn.q_norm.weight".to_owned(), tensor);
            },
            "mlx-lm has no parameter `model.layers.0.self_attn.q_norm.weight` in this model",
        ),
        (
            |inventory| inventory.config["model_type"] = "llama9".into(),
            "mlx-lm has no model of type `llama9` for the family `llama`",
        ),
        (
            |inventory| {
                inventory.config = json!({"architectures": ["Cohere2MoeForCausalLM"], "model_type": "cohere2_moe"})
            },
            "mlx-lm has no model of type `cohere2_moe` for the family `cohere2_moe`",
        ),
    ];
    for (change, message) in cases {
        let error = llama(change).unwrap_err();
        assert_eq!((error.kind(), &*error.to_string()), (ErrorKind::Input, message));
    }
    assert_eq!(llama(|_| {}).unwrap().blobs.len(), 4);
    // Tied, the head is dropped.
    let tied = llama(|inventory| inventory.config["tie_word_embeddings"] = true.into()).unwrap();
    assert_eq!(tied.blobs.len(), 3);
    assert_eq!(tied.notes, ["The tensor `lm_head.weight` is left out: mlx-lm does not load it"]);
}
