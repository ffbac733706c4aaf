//! Whether Ollama finds what kiln writes: its loaders of May 2026 (v0.23.1) and August 2026 (v0.33), as small models of
//! their own. They see what a loader sees, the headers of the blobs in the order of the manifest, rename the keys as it
//! does, and look for names in its order. A family that neither has says so in its row.

#![allow(clippy::unwrap_used, reason = "all of this is a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use kiln::arch::{DRAFTS, FAMILIES, Family};
use kiln::blobs::Layout;
use kiln::inventory::{Dtype, Inventory, SourceKind, Tensor};
use kiln::plan::{Plan, Request, Transform};
use kiln::source::Checkpoint;
use serde_json::{Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Runtime {
    May,
    August,
}
use Runtime::{August, May};

/// The version of [`May`]: a family that asks for a later one does not load there.
const MAY_VERSION: [u32; 3] = [0, 23, 1];

/// What a runtime knows of a family.
struct Loader {
    family: &'static str,
    /// Where it looks for the embedding; whatever is found there is in front of all names but the head's.
    containers: &'static [&'static str],
    embedding: &'static str,
    norm: &'static str,
    /// Linear layers of a layer, and its other tensors.
    layer: fn(&Layer<'_>) -> (Vec<&'static str>, Vec<&'static str>),
    router: &'static str,
    /// Where it looks for routed experts, in this order.
    experts: fn(Runtime) -> &'static [Form],
    /// Whether it looks at the down projection of the experts apart from the others.
    lone_down: fn(Runtime) -> bool,
    /// Whether it multiplies experts in the mode that the first quantized layer names.
    model_mode: fn(Runtime) -> bool,
    /// Whether it has the family at all.
    has: fn(Runtime) -> bool,
}

/// A form in which a loader takes the experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// `<home>.{gate,up,down}_proj.weight` or without `.weight`, `[experts, out, in]`.
    Apart(&'static str),
    /// `<home>.{gate_up,down}_proj`, with `.weight` or without.
    Fused(&'static str),
    /// `<home>.{gate_up,down}_proj` without `.weight`: never quantized.
    Plain(&'static str),
    /// `<home>.{up,down}_proj`.
    Gateless(&'static str),
    /// `<home>.<number>.{gate,up,down}_proj.weight`.
    Singly(&'static str),
}
use Form::{Apart, Fused, Gateless, Plain, Singly};

const ATTENTION: [&str; 4] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
const QUERY_KEY_NORMS: [&str; 2] = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"];
const NORMS: [&str; 2] = ["input_layernorm.weight", "post_attention_layernorm.weight"];
const GEMMA_NORMS: [&str; 2] = ["pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"];
const DENSE: [&str; 3] = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
const SHARED_EXPERT: [&str; 3] =
    ["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"];
const SHARED_EXPERTS: [&str; 3] =
    ["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj", "mlp.shared_experts.down_proj"];

const LLAMA_CONTAINERS: &[&str] = &["model.", "language_model.model."];

/// A dense row, which the others change.
const ROW: Loader = Loader {
    family: "",
    containers: LLAMA_CONTAINERS,
    embedding: "embed_tokens.weight",
    norm: "norm.weight",
    layer: |_| ([&ATTENTION[..], &DENSE].concat(), NORMS.to_vec()),
    router: "mlp.gate.weight",
    experts: |_| &[],
    lone_down: |_| false,
    model_mode: |_| false,
    has: |_| true,
};

/// Families that neither runtime loads from safetensors.
const NEITHER: [&str; 5] = ["deepseek_v3", "gpt_oss", "mistral", "mixtral", "qwen3_moe"];

const LOADERS: [Loader; 10] = [
    Loader {
        family: "cohere2_moe",
        containers: &["model."],
        layer: |layer| {
            let mlp = match (layer.routed, layer.has("mlp.shared_experts.gate_proj.weight")) {
                (false, _) => &DENSE[..],
                (true, true) => &SHARED_EXPERTS,
                (true, false) => &SHARED_EXPERT,
            };
            ([&ATTENTION[..], mlp, layer.if_routed(&["mlp.gate"])].concat(), vec![NORMS[0]])
        },
        experts: |_| &[Apart("mlp.experts"), Apart("mlp.switch_mlp")],
        has: |runtime| runtime == August,
        ..ROW
    },
    Loader {
        family: "gemma3",
        layer: |_| ([&ATTENTION[..], &DENSE].concat(), [&NORMS[..], &GEMMA_NORMS, &QUERY_KEY_NORMS].concat()),
        ..ROW
    },
    Loader {
        family: "gemma4",
        containers: &[
            "",
            "language_model.",
            "model.language_model.",
            "model.",
            "language_model.model.",
            "model.language_model.model.",
        ],
        layer: |layer| {
            // A layer whose keys are its values has no projection for these.
            let full = layer.config["layer_types"][layer.number] == "full_attention";
            let shared = layer.config["attention_k_eq_v"] == true && full;
            let attention: Vec<&str> =
                ATTENTION.into_iter().filter(|name| !(shared && *name == "self_attn.v_proj")).collect();
            let plain = [&NORMS[..], &GEMMA_NORMS, &QUERY_KEY_NORMS].concat();
            let routed = [
                // `router.scale` under the name to which the runtime changes it.
                "router_scale",
                "router.per_expert_scale",
                "post_feedforward_layernorm_1.weight",
                "post_feedforward_layernorm_2.weight",
                "pre_feedforward_layernorm_2.weight",
            ];
            (
                [&attention[..], &DENSE, layer.if_routed(&["router.proj"])].concat(),
                [&plain[..], layer.if_routed(&routed)].concat(),
            )
        },
        router: "router.proj.weight",
        experts: |runtime| match runtime {
            May => &[Plain("experts"), Plain("moe"), Fused("moe.switch_mlp"), Singly("moe.experts")],
            August => &[Fused("experts"), Fused("moe"), Fused("moe.switch_mlp"), Singly("moe.experts")],
        },
        ..ROW
    },
    Loader {
        family: "glimmer",
        containers: &["model.language_model.", "model."],
        layer: |layer| {
            let norms = match layer.prefix.starts_with("model.language_model.") {
                true => [&NORMS[..], &GEMMA_NORMS].concat(),
                false => [&NORMS[..], &["post_attn_norm.weight", "post_ffn_norm.weight"]].concat(),
            };
            let gate = ["self_attn.gate_proj", "self_attn.output_gate_proj"];
            let gate = gate.into_iter().find(|gate| layer.has(&format!("{gate}.weight")));
            ([&ATTENTION[..], &DENSE, &[gate.unwrap()]].concat(), norms)
        },
        has: |runtime| runtime == August,
        ..ROW
    },
    Loader {
        family: "glm4_moe_lite",
        containers: &["model."],
        layer: |layer| {
            let latent = [
                "self_attn.q_a_proj",
                "self_attn.q_b_proj",
                "self_attn.kv_a_proj_with_mqa",
                "self_attn.kv_b_proj",
                "self_attn.o_proj",
            ];
            let mlp = if layer.routed { [&SHARED_EXPERTS[..], &["mlp.gate"]].concat() } else { DENSE.to_vec() };
            let norms = ["self_attn.q_a_layernorm.weight", "self_attn.kv_a_layernorm.weight"];
            let bias = layer.if_routed(&["mlp.gate.e_score_correction_bias"]);
            ([&latent[..], &mlp].concat(), [&NORMS[..], &norms, bias].concat())
        },
        experts: |runtime| match runtime {
            May => &[Singly("mlp.experts")],
            August => &[Apart("mlp.experts"), Apart("mlp.switch_mlp"), Singly("mlp.experts")],
        },
        model_mode: |_| true,
        ..ROW
    },
    Loader {
        family: "laguna",
        containers: &[
            "model.",
            "",
            "language_model.model.",
            "language_model.",
            "model.language_model.model.",
            "model.language_model.",
        ],
        layer: |layer| {
            let mlp = if layer.routed { [&SHARED_EXPERT[..], &["mlp.gate"]].concat() } else { DENSE.to_vec() };
            let bias = layer.if_routed(&["mlp.experts.e_score_correction_bias"]);
            ([&ATTENTION[..], &["self_attn.g_proj"], &mlp].concat(), [&NORMS[..], &QUERY_KEY_NORMS, bias].concat())
        },
        experts: |_| &[Apart("mlp.switch_mlp"), Apart("mlp.experts"), Singly("mlp.experts")],
        lone_down: |runtime| runtime == August,
        ..ROW
    },
    Loader { family: "llama", ..ROW },
    Loader {
        family: "nemotron_h",
        containers: &[
            "language_model.backbone.",
            "backbone.",
            "model.language_model.backbone.",
            "language_model.model.backbone.",
            "model.backbone.",
        ],
        embedding: "embeddings.weight",
        norm: "norm_f.weight",
        layer: |layer| match layer.config["hybrid_override_pattern"].as_str().unwrap().as_bytes()[layer.number] {
            b'M' => (
                vec!["mixer.in_proj", "mixer.out_proj"],
                vec![
                    "norm.weight",
                    "mixer.conv1d.weight",
                    "mixer.dt_bias",
                    "mixer.A_log",
                    "mixer.D",
                    "mixer.norm.weight",
                ],
            ),
            b'*' => (vec!["mixer.q_proj", "mixer.k_proj", "mixer.v_proj", "mixer.o_proj"], vec!["norm.weight"]),
            b'-' => (vec!["mixer.up_proj", "mixer.down_proj"], vec!["norm.weight"]),
            _ => (
                vec!["mixer.gate", "mixer.shared_experts.up_proj", "mixer.shared_experts.down_proj"],
                vec!["norm.weight", "mixer.gate.e_score_correction_bias"],
            ),
        },
        router: "mixer.gate.weight",
        experts: |_| &[Gateless("mixer.experts"), Singly("mixer.experts")],
        has: |runtime| runtime == August,
        ..ROW
    },
    Loader {
        family: "qwen3",
        layer: |_| ([&ATTENTION[..], &DENSE].concat(), [&NORMS[..], &QUERY_KEY_NORMS].concat()),
        ..ROW
    },
    Loader {
        family: "qwen3_5",
        containers: &[
            "model.",
            "language_model.model.",
            "language_model.",
            "model.language_model.model.",
            "model.language_model.",
        ],
        layer: |layer| {
            let linear =
                ["linear_attn.conv1d.weight", "linear_attn.norm.weight", "linear_attn.dt_bias", "linear_attn.A_log"];
            let inputs: &[&str] = match layer.has("linear_attn.in_proj_qkvz.weight") {
                true => &["linear_attn.in_proj_qkvz", "linear_attn.in_proj_ba"],
                false => &[
                    "linear_attn.in_proj_qkv",
                    "linear_attn.in_proj_z",
                    "linear_attn.in_proj_b",
                    "linear_attn.in_proj_a",
                ],
            };
            let (mut linears, plain) = match layer.config["layer_types"][layer.number] == "linear_attention" {
                true => ([inputs, &["linear_attn.out_proj"]].concat(), [&NORMS[..], &linear].concat()),
                false => (ATTENTION.to_vec(), [&NORMS[..], &QUERY_KEY_NORMS].concat()),
            };
            match layer.routed {
                true => linears.extend([&SHARED_EXPERT[..], &["mlp.gate", "mlp.shared_expert_gate"]].concat()),
                false => linears.extend(DENSE),
            }
            (linears, plain)
        },
        experts: |runtime| match runtime {
            May => &[Apart("mlp.switch_mlp"), Apart("mlp.experts"), Fused("mlp.experts"), Singly("mlp.experts")],
            August => &[Fused("mlp.experts"), Apart("mlp.switch_mlp"), Apart("mlp.experts"), Singly("mlp.experts")],
        },
        lone_down: |runtime| runtime == August,
        model_mode: |runtime| runtime == May,
        ..ROW
    },
];

/// The row for a family; some share one.
fn loader(family: &Family) -> Option<&'static Loader> {
    let row = match family.name {
        "qwen3_next" => "qwen3_5",
        "gemma4_unified" => "gemma4",
        name => name,
    };
    LOADERS.iter().find(|loader| loader.family == row)
}

/// What a runtime holds after it opened the blobs.
struct Loaded {
    /// Shapes, by the names under which the loaders look.
    tensors: BTreeMap<String, Vec<u64>>,
    /// Quantization type and group size of a weight.
    schemes: BTreeMap<String, (String, u64)>,
    /// The type that the first layer with one for all of its tensors names.
    first: Option<String>,
}

impl Loaded {
    fn of(plan: &Plan) -> Self {
        let mut raw: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        let (mut schemes, mut first) = (BTreeMap::new(), None);
        for blob in &plan.blobs {
            let bytes = Layout::of(blob).header;
            let mut header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..]).unwrap();
            let metadata = header.remove("__metadata__").unwrap_or_default();
            if let Some(kind) = metadata["quant_type"].as_str() {
                first.get_or_insert_with(|| kind.to_owned());
            }
            for name in header.keys() {
                if name.ends_with(".scale") || name.ends_with(".bias") || !header.contains_key(&format!("{name}.scale"))
                {
                    continue;
                }
                let value = |key: &str| {
                    let own = metadata[format!("{name}.{key}")].as_str();
                    own.or(metadata[key].as_str()).unwrap_or_else(|| panic!("no {key} of {name}")).to_owned()
                };
                schemes.insert(name.clone(), (value("quant_type"), value("group_size").parse().unwrap()));
            }
            for (name, entry) in header {
                let shape = entry["shape"].as_array().unwrap().iter().map(|axis| axis.as_u64().unwrap()).collect();
                assert!(raw.insert(name.clone(), shape).is_none(), "{name} is there twice");
            }
        }
        let scaled: BTreeSet<String> =
            raw.keys().filter_map(|name| name.strip_suffix(".scale")).map(str::to_owned).collect();
        let rename = |name: String| match (name.strip_suffix(".scale"), name.strip_suffix(".bias")) {
            (Some(base), _) => format!("{base}_scale"),
            (_, Some(base)) if scaled.contains(base) => format!("{base}_qbias"),
            _ => name,
        };
        Self { tensors: raw.into_iter().map(|(name, shape)| (rename(name), shape)).collect(), schemes, first }
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The type of a weight, `None` when it is not quantized.
    ///
    /// # Errors
    /// It is not there, or its codes, scales and biases are not what the type makes of a matrix.
    fn weight(&self, name: &str) -> Result<Option<&str>, String> {
        let codes = self.tensors.get(name).ok_or_else(|| format!("{name} is not found"))?;
        let Some(scales) = self.tensors.get(&format!("{name}_scale")) else { return Ok(None) };
        let (kind, group) = self.schemes.get(name).ok_or_else(|| format!("{name} has no type"))?;
        let (bits, affine) = match kind.as_str() {
            "int4" => (4, true),
            "int8" => (8, true),
            "nvfp4" | "mxfp4" => (4, false),
            "mxfp8" => (8, false),
            other => return Err(format!("{name} has the type {other}")),
        };
        let biases = self.tensors.get(&format!("{name}_qbias"));
        let ([rest @ .., codes], [scale_rest @ .., scales]) = (&codes[..], &scales[..]) else {
            return Err(format!("{name} is a scalar"));
        };
        let fits = codes * 32 / bits == scales * group && rest == scale_rest && biases.is_some() == affine;
        fits.then_some(Some(kind.as_str())).ok_or_else(|| format!("{name} does not fit its scales"))
    }
}

/// The mode of MLX's kernels for a type.
fn mode(kind: &str) -> &str {
    if kind.starts_with("int") { "affine" } else { kind }
}

/// One layer, as a loader sees it.
struct Layer<'a> {
    loaded: &'a Loaded,
    config: &'a Value,
    prefix: String,
    number: usize,
    /// Whether it has a router, and so experts.
    routed: bool,
}

impl Layer<'_> {
    fn has(&self, name: &str) -> bool {
        self.loaded.has(&format!("{}.{name}", self.prefix))
    }

    fn if_routed<'a>(&self, names: &'a [&'static str]) -> &'a [&'static str] {
        if self.routed { names } else { &[] }
    }

    /// The experts in the first form that is there, with the types of their projections.
    fn experts(&self, lone_down: bool, forms: &[Form]) -> Result<(Form, Vec<Option<&str>>), String> {
        for form in forms {
            let (names, endings): (Vec<String>, &[&str]) = match form {
                Apart(home) => {
                    (["gate", "up", "down"].map(|name| format!("{home}.{name}_proj")).into(), &[".weight", ""])
                }
                Fused(home) => (["gate_up", "down"].map(|name| format!("{home}.{name}_proj")).into(), &[".weight", ""]),
                Plain(home) => (["gate_up", "down"].map(|name| format!("{home}.{name}_proj")).into(), &[""]),
                Gateless(home) => (["up", "down"].map(|name| format!("{home}.{name}_proj")).into(), &[".weight", ""]),
                Singly(home) => (["up", "down"].map(|name| format!("{home}.0.{name}_proj")).into(), &[".weight"]),
            };
            let Some(ending) = endings.iter().find(|ending| self.has(&format!("{}{ending}", names[0]))) else {
                continue;
            };
            let keys = names.iter().map(|name| format!("{}.{name}{ending}", self.prefix));
            let kinds: Vec<Option<&str>> = keys.map(|key| self.loaded.weight(&key)).collect::<Result<_, _>>()?;
            // One-sided scales are read as if there were none.
            let is_plain = matches!(form, Plain(_)) && kinds.iter().any(Option::is_some);
            let together = if lone_down { &kinds[..kinds.len() - 1] } else { &kinds[..] };
            if is_plain || together.iter().any(Option::is_some) != together.iter().all(Option::is_some) {
                return Err(format!("{form:?} of {} is misread: {kinds:?}", self.prefix));
            }
            return Ok((*form, kinds));
        }
        Err(format!("the experts of {} are not found", self.prefix))
    }
}

impl Loader {
    /// Loads a model as the runtime does, and says in which form it found each group of experts.
    fn load(&self, runtime: Runtime, loaded: &Loaded, config: &Value) -> Result<Vec<Form>, String> {
        let text = ["text_config", "llm_config"].into_iter().find(|key| config[key].is_object());
        let text = text.map_or(config, |key| &config[key]);
        let embedding = |container: &&&str| loaded.has(&format!("{container}{}", self.embedding));
        let container = self.containers.iter().find(embedding).ok_or("there is no embedding")?;
        loaded.weight(&format!("{container}{}", self.embedding))?;
        loaded.weight(&format!("{container}{}", self.norm))?;
        let inner = ["model.backbone.", "backbone.", "model."];
        let outer = inner.iter().find_map(|inner| container.strip_suffix(inner)).unwrap_or(container);
        let outer = if outer.is_empty() || outer.ends_with('.') { outer } else { container };
        let heads = [format!("{outer}lm_head.weight"), "lm_head.weight".to_owned()];
        match heads.iter().find(|name| loaded.has(name)) {
            Some(head) => _ = loaded.weight(head)?,
            None if loaded.tensors.keys().any(|name| name.ends_with("lm_head.weight")) => {
                return Err("the head is not found".to_owned());
            }
            None => {}
        }
        let mut found = Vec::new();
        for number in 0..text["num_hidden_layers"].as_u64().unwrap() as usize {
            let prefix = format!("{container}layers.{number}");
            let routed = loaded.has(&format!("{prefix}.{}", self.router));
            let layer = Layer { loaded, config: text, prefix, number, routed };
            let (linears, plain) = (self.layer)(&layer);
            for name in linears {
                loaded.weight(&format!("{}.{name}.weight", layer.prefix))?;
            }
            for name in plain {
                if loaded.weight(&format!("{}.{name}", layer.prefix))?.is_some() {
                    return Err(format!("{name} is quantized"));
                }
            }
            if routed {
                let (form, kinds) = layer.experts((self.lone_down)(runtime), (self.experts)(runtime))?;
                for kind in kinds.into_iter().flatten() {
                    let first = loaded.first.as_deref();
                    if (self.model_mode)(runtime) && first.map(mode) != Some(mode(kind)) {
                        return Err(format!("experts are {kind}, but the first layer says {first:?}"));
                    }
                }
                found.push(form);
            }
        }
        Ok(found)
    }
}

fn plan(inventory: &Inventory, scheme: &str) -> Plan {
    let scheme = (scheme != "none").then(|| scheme.parse().unwrap());
    Plan::new(inventory, Request { scheme, ..Request::default() }).unwrap()
}

const SCHEMES: [&str; 6] = ["none", "int4", "int8", "nvfp4", "mxfp4", "mxfp8"];

/// What mlx-lm has divided, which is refused, and codes of three bits, which no runtime knows and kiln warns of.
const NOT_FOR_OLLAMA: [&str; 3] = ["mlx-glm4-moe-lite-bf16", "mlx-glm4-moe-lite-q4", "mlx-llama8l-recipe36"];

fn checkpoints() -> Vec<(String, Inventory)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints");
    let paths = directory.read_dir().unwrap().map(|entry| entry.unwrap().path());
    let whole = paths.filter(|path| path.join("config.json").exists());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let listed = whole.map(|path| (name(&path), Inventory::of(&Checkpoint::open(&path).unwrap()).unwrap()));
    listed.filter(|(name, _)| !NOT_FOR_OLLAMA.contains(&name.as_str())).collect()
}

/// A model of the names that a class of which there is no checkpoint has; `{}` stands for the layer.
fn made_up(config: Value, names: &[&str]) -> Inventory {
    let names = names.iter().flat_map(|name| match name.contains("{}") {
        true => (0..2).map(|layer| name.replace("{}", &layer.to_string())).collect(),
        false => vec![(*name).to_owned()],
    });
    let shape = |name: &str| if name.contains("norm") { vec![128] } else { vec![128, 128] };
    let tensors = names.map(|name| (name.clone(), Tensor { dtype: Dtype::Bf16, shape: shape(&name) })).collect();
    Inventory {
        config,
        tensors,
        sidecars: Vec::new(),
        kind: SourceKind::Float,
        coded: BTreeMap::new(),
        activations: BTreeSet::new(),
        template: None,
        notes: Vec::new(),
        generation: Value::Null,
    }
}

fn glimmer() -> Inventory {
    let config = json!({
        "architectures": ["MuseGlimmerForConditionalGeneration"], "has_vision": true,
        "text_config": { "num_hidden_layers": 2, "hidden_size": 128, "vocab_size": 128 },
    });
    let layer = [&ATTENTION[..], &DENSE, &["self_attn.output_gate_proj"]].concat();
    let weights = layer.iter().map(|name| format!("{name}.weight"));
    let norms = [&NORMS[..], &GEMMA_NORMS].concat().into_iter().map(str::to_owned);
    let mut names: Vec<String> =
        weights.chain(norms).map(|name| format!("model.language_model.layers.{{}}.{name}")).collect();
    let outside = ["model.language_model.embed_tokens.weight", "model.language_model.norm.weight", "lm_head.weight"];
    names.extend(outside.map(str::to_owned));
    made_up(config, &names.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn the_runtimes_find_what_kiln_writes() {
    let mut loads: BTreeSet<(&str, bool)> = BTreeSet::new();
    for (name, inventory) in checkpoints().into_iter().chain([("glimmer".to_owned(), glimmer())]) {
        for scheme in SCHEMES {
            let plan = plan(&inventory, scheme);
            let Some(loader) = loader(plan.family) else { continue };
            let loaded = Loaded::of(&plan);
            for runtime in [May, August] {
                let asks_later = version(plan.requires.unwrap()) > MAY_VERSION;
                if !(loader.has)(runtime) {
                    assert!(asks_later, "{name}: nothing says that it does not run in {runtime:?}");
                    continue;
                }
                let found = loader.load(runtime, &loaded, &inventory.config);
                if runtime == May && asks_later {
                    // It is what the version is for: the older runtime looks elsewhere.
                    assert!(found.is_err(), "{name} {scheme}: {runtime:?} finds all of it");
                    continue;
                }
                let found = found.unwrap_or_else(|why| panic!("{name} {scheme} in {runtime:?}: {why}"));
                let target = plan.family.experts.map(|layout| layout.target);
                for form in found {
                    let (Apart(home) | Fused(home) | Gateless(home)) = form else {
                        panic!("{name} {scheme}: {form:?}")
                    };
                    assert_eq!(Some(home), target, "{name} {scheme} in {runtime:?}");
                }
                loads.insert((plan.family.name, runtime == May));
            }
        }
    }
    let both = ["gemma3", "gemma4", "laguna", "llama", "qwen3_5", "qwen3_next"];
    let august = ["cohere2_moe", "glimmer", "glm4_moe_lite", "nemotron_h"];
    let expected = both.into_iter().flat_map(|family| [(family, true), (family, false)]);
    assert_eq!(loads, expected.chain(august.map(|family| (family, false))).collect());
}

fn version(text: &str) -> [u32; 3] {
    text.split('.').map(|part| part.parse().unwrap()).collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn every_family_has_a_row_or_asks_for_no_version() {
    for family in FAMILIES {
        let is_known = loader(family).is_some();
        assert_eq!(is_known, family.requires.is_some(), "{}", family.name);
        assert_eq!(is_known, !NEITHER.contains(&family.name), "{}", family.name);
    }
    for draft in DRAFTS {
        assert!(draft.requires.is_some(), "{}", draft.name);
    }
}

/// August's loaders of drafts look for the names of the source behind `draft.`; May's has none. Halves that are put
/// together when they are loaded must have one type.
#[test]
fn drafts_are_found_under_the_names_of_their_source() {
    let layer = [&ATTENTION[..], &DENSE].concat();
    let weights = layer.iter().map(|name| format!("{name}.weight"));
    let norms = [&NORMS[..], &QUERY_KEY_NORMS].concat().into_iter().map(str::to_owned);
    let dflash: Vec<String> = weights.chain(norms).map(|name| format!("layers.{{}}.{name}")).collect();
    let queries = [ATTENTION[0], ATTENTION[3]];
    let weights = [&queries[..], &DENSE].concat().into_iter().map(|name| format!("{name}.weight"));
    let norms = [&NORMS[..], &GEMMA_NORMS, &[QUERY_KEY_NORMS[0]]].concat().into_iter().map(str::to_owned);
    let gemma: Vec<String> = weights.chain(norms).map(|name| format!("model.layers.{{}}.{name}")).collect();
    let ends = ["pre_projection.weight", "post_projection.weight", "model.embed_tokens.weight", "model.norm.weight"];
    for (class, outside, layers) in [
        ("DFlashDraftModel", &["fc.weight", "hidden_norm.weight", "norm.weight"][..], &dflash),
        ("DFlashLagunaForCausalLM", &["fc.weight", "hidden_norm.weight", "norm.weight"], &dflash),
        ("MuseGlimmerAssistantModel", &["fc.weight", "hidden_norm.weight", "norm.weight"], &dflash),
        ("Gemma4AssistantForCausalLM", &ends, &gemma),
        ("Gemma4UnifiedAssistantForCausalLM", &ends, &gemma),
    ] {
        let config = json!({ "architectures": [class], "text_config": { "num_hidden_layers": 2 } });
        let names: Vec<&str> = outside.iter().copied().chain(layers.iter().map(String::as_str)).collect();
        let inventory = made_up(config, &names);
        for scheme in SCHEMES {
            let plan = plan(&inventory, scheme);
            assert!(plan.family.is_draft(), "{class}");
            let loaded = Loaded::of(&plan);
            for name in inventory.tensors.keys() {
                let kind = loaded.weight(name).unwrap_or_else(|why| panic!("{class} {scheme}: {why}"));
                let twins = [("k_proj", "v_proj"), ("gate_proj", "up_proj")];
                for (one, other) in twins.into_iter().filter(|(one, _)| name.contains(one)) {
                    assert_eq!(kind, loaded.weight(&name.replace(one, other)).unwrap(), "{class} {scheme} {name}");
                }
            }
        }
    }
}

/// Both runtimes add one to the norms of qwen3.5 when a name has `mtp.` in it or a convolution still has the layout of
/// training; August's refuses a model whose config and tensors disagree about vision.
#[test]
fn what_tells_raw_norms_from_shifted_ones_is_kept() {
    let mut seen = 0;
    for (name, inventory) in checkpoints() {
        for scheme in SCHEMES {
            let plan = plan(&inventory, scheme);
            if loader(plan.family).is_none_or(|loader| loader.family != "qwen3_5") {
                continue;
            }
            let loaded = Loaded::of(&plan);
            let is_raw = |name: &str, shape: &[u64]| {
                name.contains("mtp.")
                    || name.contains(".linear_attn.conv1d.weight") && shape.len() == 3 && shape[2] != 1
            };
            let of_source = inventory.tensors.iter().filter(|(name, tensor)| is_raw(name, &tensor.shape)).count();
            let of_model = loaded.tensors.iter().filter(|(name, shape)| is_raw(name, shape)).count();
            // What mlx-lm converted has shifted norms, turned convolutions and no `mtp.`.
            let is_raw = !name.starts_with("mlx-");
            assert_eq!((of_source > 0, of_model > 0), (is_raw, is_raw), "{name} {scheme}");
            let norms = plan.blobs.iter().flat_map(|blob| &blob.tensors).filter(|tensor| tensor.name.contains("norm"));
            for norm in norms {
                assert_eq!((norm.transform, norm.scheme), (Transform::Copy, None), "{name} {scheme} {}", norm.name);
            }
            let roots = ["vision_tower.", "model.visual.", "visual."];
            let tower = roots.iter().any(|root| loaded.has(&format!("{root}patch_embed.proj.bias")));
            assert_eq!(tower, inventory.config["vision_config"].is_object(), "{name} {scheme}");
            seen += 1;
        }
    }
    assert_eq!(seen, 6 * SCHEMES.len());
}

/// The models of the loaders refuse what the loaders would misread.
#[test]
fn a_loader_is_not_pleased_with_anything() {
    let checkpoints = checkpoints();
    let of = |name: &str| &checkpoints.iter().find(|(found, _)| found == name).unwrap().1;
    let refusal = |name: &str, scheme: &str, runtime: Runtime, change: &dyn Fn(&mut Loaded)| {
        let plan = plan(of(name), scheme);
        let mut loaded = Loaded::of(&plan);
        change(&mut loaded);
        loader(plan.family).unwrap().load(runtime, &loaded, &of(name).config).unwrap_err()
    };
    let rename = |from: &'static str, to: &'static str| {
        move |loaded: &mut Loaded| {
            let moved = |name: &String| name.replace(from, to);
            loaded.tensors = loaded.tensors.iter().map(|(name, shape)| (moved(name), shape.clone())).collect();
            loaded.schemes = loaded.schemes.iter().map(|(name, kind)| (moved(name), kind.clone())).collect();
        }
    };
    let gemma = "gemma4-moe-vl-bf16";
    let as_august_writes = |loaded: &mut Loaded| {
        rename("moe.switch_mlp.gate_up_proj.weight", "experts.gate_up_proj")(loaded);
        rename("moe.switch_mlp.down_proj.weight", "experts.down_proj")(loaded);
    };
    for (name, scheme, runtime, change, words) in [
        (
            "llama-tied-bf16",
            "int4",
            May,
            &rename("q_proj.weight", "q_proj") as &dyn Fn(&mut Loaded),
            "q_proj.weight is not found",
        ),
        ("laguna-bf16", "none", August, &rename("switch_mlp", "stacked"), "are not found"),
        ("nemotron-h-bf16", "none", August, &rename("mixer.experts", "mixer.switch_mlp"), "are not found"),
        // August's own layout, which May reads as plain words.
        (gemma, "int4", May, &as_august_writes, "is misread"),
        (gemma, "int4", August, &rename("down_proj.weight_scale", "down_proj.weight.lost"), "is misread"),
        (
            "qwen3_5-moe-vl-stacked-bf16",
            "nvfp4",
            May,
            &|loaded| loaded.first = Some("mxfp8".into()),
            "the first layer says",
        ),
        ("llama-tied-bf16", "nvfp4", August, &|loaded| loaded.schemes.clear(), "has no type"),
    ] {
        let why = refusal(name, scheme, runtime, change);
        assert!(why.contains(words), "{name} {scheme}: {why}");
    }
}
