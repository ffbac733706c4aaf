//! What the plan promises about expert groups and order, on inventories made for it: no weights are needed
//! to see which bytes go where.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::{BTreeMap, BTreeSet};

use kiln::inventory::{Dtype, Inventory, SourceKind, Tensor};
use kiln::plan::{Plan, PlannedBlob, Request, Segment, Transform};
use serde_json::{Value, json};

/// What the layer of a model has besides the tensors that a test is about.
const REST: [&str; 16] = [
    "input_layernorm",
    "mlp.down_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "pre_feedforward_layernorm",
    "self_attn.k_norm",
    "self_attn.k_proj",
    "self_attn.kv_a_layernorm",
    "self_attn.kv_a_proj_with_mqa",
    "self_attn.kv_b_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.q_proj",
    "self_attn.v_proj",
];

fn inventory(config: Value, tensors: &[(&str, &[u64])]) -> Inventory {
    let tensor = |shape: &[u64]| Tensor { dtype: Dtype::Bf16, shape: shape.to_vec() };
    let shape: fn(&str) -> &'static [u64] = |name| if name.ends_with("norm") { &[128] } else { &[128, 128] };
    let rest = REST.iter().map(|name| (format!("model.layers.0.{name}.weight"), tensor(shape(name))));
    let norm = ("model.norm.weight".to_owned(), tensor(&[128]));
    Inventory {
        config,
        tensors: tensors
            .iter()
            .map(|(name, shape)| ((*name).to_owned(), tensor(shape)))
            .chain(rest)
            .chain([norm])
            .collect(),
        sidecars: Vec::new(),
        kind: SourceKind::Float,
        coded: BTreeMap::new(),
        activations: BTreeSet::new(),
        template: None,
        generation: Value::Null,
        notes: Vec::new(),
    }
}

fn plan(inventory: &Inventory, scheme: Option<&str>) -> Plan {
    Plan::new(inventory, Request { scheme: scheme.map(|scheme| scheme.parse().unwrap()), ..Request::default() })
        .unwrap()
}

/// The blob with the experts.
fn group(plan: &Plan) -> &PlannedBlob {
    plan.blobs.iter().find(|blob| blob.tensors.len() > 1).unwrap()
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.blobs.iter().map(|blob| &*blob.name).collect()
}

/// A model of one layer with four experts of 64 x 128, one by one.
fn mixture(class: &str) -> Inventory {
    let config = json!({ "architectures": [class], "num_hidden_layers": 1, "num_experts": 4, "hidden_size": 128 });
    let mut inventory = inventory(
        config,
        &[
            ("lm_head.weight", &[320, 128]),
            ("model.embed_tokens.weight", &[320, 128]),
            ("model.layers.0.mlp.gate.weight", &[4, 128]),
            ("model.layers.0.mlp.gate.e_score_correction_bias", &[4]),
        ],
    );
    for expert in 0..4 {
        for (projection, shape) in [("gate_proj", [64, 128]), ("up_proj", [64, 128]), ("down_proj", [128, 64])] {
            let name = format!("model.layers.0.mlp.experts.{expert}.{projection}.weight");
            inventory.tensors.insert(name, Tensor { dtype: Dtype::Bf16, shape: shape.to_vec() });
        }
    }
    inventory
}

#[test]
fn single_tensors_come_first_and_then_expert_groups() {
    for scheme in [None, Some("int4"), Some("mxfp8")] {
        let plan = plan(&mixture("Qwen3_5MoeForCausalLM"), scheme);
        assert_eq!(names(&plan).last(), Some(&"model.layers.0.mlp.switch_mlp"), "{scheme:?}");
        assert_eq!(names(&plan)[0], "lm_head.weight");
    }
}

#[test]
fn the_first_layer_that_names_a_mode_names_the_experts() {
    for class in ["Qwen3_5MoeForCausalLM", "Glm4MoeLiteForCausalLM"] {
        for scheme in ["int4", "int8", "nvfp4", "mxfp4", "mxfp8"] {
            let plan = plan(&mixture(class), Some(scheme));
            let first = plan.blobs.iter().find_map(PlannedBlob::uniform_scheme).unwrap();
            let expert =
                plan.blobs.iter().flat_map(|blob| &blob.tensors).find(|tensor| tensor.name.contains("switch_mlp"));
            assert_eq!(first.mode(), expert.unwrap().scheme.unwrap().mode(), "{class} {scheme}");
        }
    }
}

#[test]
fn a_mixed_group_names_the_scheme_of_each_tensor() {
    let plan = plan(&mixture("Qwen3MoeForCausalLM"), Some("int4"));
    let group = group(&plan);
    let prefix = "model.layers.0.mlp.switch_mlp";
    let entry =
        |projection: &str, key: &str, value: &str| (format!("{prefix}.{projection}.weight.{key}"), value.to_owned());
    let expected = BTreeMap::from([
        entry("down_proj", "group_size", "64"),
        entry("down_proj", "quant_type", "int8"),
        entry("gate_proj", "group_size", "64"),
        entry("gate_proj", "quant_type", "int4"),
        entry("up_proj", "group_size", "64"),
        entry("up_proj", "quant_type", "int4"),
    ]);
    assert_eq!(group.metadata(), expected);
}

#[test]
fn gemma4_is_fused_gate_rows_first_whatever_form_it_comes_in() {
    let config = json!({ "architectures": ["Gemma4ForCausalLM"], "num_hidden_layers": 1, "num_experts": 2 });
    let outer: [(&str, &[u64]); 1] = [("model.embed_tokens.weight", &[320, 128])];
    let split: [(&str, &[u64]); 3] = [
        ("model.layers.0.moe.gate_proj", &[2, 64, 128]),
        ("model.layers.0.moe.up_proj", &[2, 64, 128]),
        ("model.layers.0.moe.down_proj", &[2, 128, 64]),
    ];
    let one_by_one: [(&str, &[u64]); 6] = [
        ("model.layers.0.moe.experts.0.gate_proj.weight", &[64, 128]),
        ("model.layers.0.moe.experts.1.gate_proj.weight", &[64, 128]),
        ("model.layers.0.moe.experts.0.up_proj.weight", &[64, 128]),
        ("model.layers.0.moe.experts.1.up_proj.weight", &[64, 128]),
        ("model.layers.0.moe.experts.0.down_proj.weight", &[128, 64]),
        ("model.layers.0.moe.experts.1.down_proj.weight", &[128, 64]),
    ];
    let bytes = 64 * 128 * 2;
    let segment = |source, offset| Segment::run(source, offset, bytes);
    for (tensors, segments) in [
        (&split[..], [segment(0, 0), segment(1, 0), segment(0, bytes), segment(1, bytes)]),
        (&one_by_one[..], [segment(0, 0), segment(2, 0), segment(1, 0), segment(3, 0)]),
    ] {
        let plan = plan(&inventory(config.clone(), &[&outer, tensors].concat()), None);
        let group = group(&plan);
        assert_eq!(group.name, "model.layers.0.moe.switch_mlp");
        let fused = &group.tensors[1];
        assert_eq!(fused.name, "model.layers.0.moe.switch_mlp.gate_up_proj.weight");
        assert_eq!((fused.shape.as_slice(), fused.transform), (&[2, 128, 128][..], Transform::Fuse));
        assert_eq!(fused.segments, segments);
    }
}

#[test]
fn splitting_takes_the_gate_rows_and_the_up_rows_of_every_expert() {
    let config = json!({ "architectures": ["Qwen3_5MoeForCausalLM"], "num_hidden_layers": 1, "num_experts": 2 });
    let tensors: [(&str, &[u64]); 3] = [
        ("model.embed_tokens.weight", &[320, 128]),
        ("model.layers.0.mlp.experts.down_proj", &[2, 128, 64]),
        ("model.layers.0.mlp.experts.gate_up_proj", &[2, 128, 128]),
    ];
    let plan = plan(&inventory(config, &tensors), None);
    let bytes = 64 * 128 * 2;
    let [down, gate, up] = &group(&plan).tensors[..] else { panic!("{:?}", names(&plan)) };
    assert_eq!(down.segments, [Segment::run(0, 0, 2 * bytes)]);
    let halves = |first| [first, first + 2 * bytes].map(|offset| Segment::run(0, offset, bytes));
    assert_eq!(gate.segments, halves(0));
    assert_eq!(up.segments, halves(bytes));
}

#[test]
fn a_scheme_that_ollama_would_misread_is_noted() {
    let noted =
        |scheme| plan(&mixture("Qwen3MoeForCausalLM"), Some(scheme)).notes.iter().any(|note| note.contains("misread"));
    assert!(noted("affine3-g64"));
    // The metadata name the group, so that four and eight bits are read right in any.
    assert!(!noted("int4") && !noted("affine4-g128") && !noted("nvfp4"));
}

#[test]
fn experts_are_quantized_together_or_not_at_all() {
    let config = json!({ "architectures": ["Gemma4ForCausalLM"], "num_hidden_layers": 1, "num_experts": 2 });
    // Rows of 48 are no groups of 64, those of 128 are.
    let tensors: [(&str, &[u64]); 3] = [
        ("model.embed_tokens.weight", &[320, 128]),
        ("model.layers.0.experts.gate_up_proj", &[2, 96, 128]),
        ("model.layers.0.experts.down_proj", &[2, 128, 48]),
    ];
    let inventory = inventory(config, &tensors);
    for (scheme, quantized) in [("int4", false), ("mxfp8", false), ("nvfp4", true)] {
        let plan = plan(&inventory, Some(scheme));
        let schemes: Vec<bool> = group(&plan).tensors.iter().map(|tensor| tensor.scheme.is_some()).collect();
        assert_eq!(schemes, [quantized, quantized], "{scheme}");
    }
}
