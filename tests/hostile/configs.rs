//! `config.json`, and what is beside the weights.

use std::fs::{self, File};

use crate::files::{CONFIG, pieces, sound};
use crate::place::Place;
use crate::trial::{Effect, Row};

/// A configuration that is refused, beside sound weights.
fn refused(id: &'static str, what: &str, config: impl Into<String>, says: &[&str]) -> Row {
    let config = config.into();
    Row::new(id, what, "create evil checkpoint", 6).says(["config"]).says(says.iter().copied()).lay(move |place| {
        sound(&place.path("checkpoint"));
        fs::write(place.path("checkpoint/config.json"), &config).unwrap();
    })
}

/// The configuration of a checkpoint of the tests, changed.
fn changed(id: &'static str, what: &str, checkpoint: &'static str, field: &'static str, value: &str, code: i32) -> Row {
    let value: serde_json::Value = serde_json::from_str(value).unwrap();
    let row = Row::new(id, what, "create evil checkpoint --quantize int4", code).lay(move |place| {
        place.checkpoint(checkpoint, "checkpoint");
        let path = place.path("checkpoint/config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[field] = value.clone();
        fs::write(path, config.to_string()).unwrap();
    });
    if code == 0 { row.effect(Effect::Stored) } else { row }
}

/// A configuration that no family knows, beside sound weights.
fn generic(what: &str, config: &'static str) -> Row {
    let row = Row::new("C6", what, "create evil checkpoint", 0).effect(Effect::Stored);
    row.says(["has no rules of its own: the generic policy is used"]).lay(move |place| {
        sound(&place.path("checkpoint"));
        fs::write(place.path("checkpoint/config.json"), config).unwrap();
    })
}

/// A checkpoint that was damaged.
fn damaged(id: &'static str, checkpoint: &'static str, says: &[&str]) -> Row {
    Row::new(id, checkpoint, "create evil checkpoint --quantize int4", 6)
        .says(says.iter().copied())
        .lay(move |place| place.checkpoint(&format!("damaged/{checkpoint}"), "checkpoint"))
}

/// A sound checkpoint and one more file.
fn beside(id: &'static str, name: &'static str, text: &'static str) -> Row {
    Row::new(id, name, "create evil checkpoint", 0).effect(Effect::Stored).lay(move |place| {
        sound(&place.path("checkpoint"));
        fs::write(place.path("checkpoint").join(name), text).unwrap();
    })
}

fn long(place: &Place, start: &str, piece: &str, count: usize, end: &str) {
    sound(&place.path("checkpoint"));
    let text = std::iter::once(start.to_owned()).chain(std::iter::repeat_n(piece.repeat(1000), count / 1000));
    pieces(&place.path("checkpoint/config.json"), text.chain([end.to_owned()]));
}

pub(crate) fn rows() -> Vec<Row> {
    let moe = "qwen3-moe-12e-bf16";
    let llama = "llama-tied-bf16";
    vec![
        refused("C1", "empty", "", &["`config.json` is empty"]),
        refused("C1", "an array", "[]", &["is not a JSON object"]),
        refused("C1", "a text", "\"a\"", &["is not a JSON object"]),
        refused("C1", "NaN", "NaN", &["`config.json` is malformed"]),
        refused("C1", "a key twice", r#"{"a":1,"a":1}"#, &["duplicate key `a`"]),
        refused("C1", "a key twice, deep", r#"{"a":[{"b":{"c":1,"c":2}}]}"#, &["duplicate key `c`"]),
        refused("C1", "200 deep", format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200)), &["is malformed"]),
        refused("C1", "100,000 deep", "[".repeat(100_000), &["is malformed"]),
        refused("C1", "text behind it", "{} {}", &["is malformed"]),
        refused("C1", "no UTF-8", "\u{fffd}", &["is malformed"]),
        Row::new("C1", "1 GB", "create evil checkpoint", 6).says(["`config.json`", "1073741824 bytes"]).lay(|place| {
            sound(&place.path("checkpoint"));
            File::create(place.path("checkpoint/config.json")).unwrap().set_len(1 << 30).unwrap();
        }),
        Row::new("C1", "two million zeros", "create evil checkpoint", 6).says(["`config.json`", "more values"]).lay(|place| {
            long(place, r#"{"a":["#, "0,", 2_000_000, "0]}");
        }),
        Row::new("C1", "a million objects", "create evil checkpoint", 6).says(["`config.json`", "more values"]).lay(|place| {
            long(place, r#"{"a":["#, "{\"\":0},", 800_000, "0]}");
        }),
        Row::new("C1", "a million times NaN", "create evil checkpoint", 6).says(["`config.json`"]).lay(|place| {
            long(place, r#"{"a":["#, "NaN,", 1_000_000, "0]}");
        }),
        Row::new("C1", "8 MB of spaces", "create evil checkpoint", 6).says(["config.json"]).lay(|place| {
            long(place, "", " ", 8_000_000, "");
        }),
        changed("C2", "no experts", moe, "num_experts", "0", 6).says(["12 experts, but the config says 0"]),
        changed("C2", "2^31 experts", moe, "num_experts", "2147483648", 6),
        changed("C2", "2^64 - 1 experts", moe, "num_experts", "18446744073709551615", 6),
        changed("C2", "one expert more", moe, "num_experts", "13", 6).says(["Expert 12", "is missing"]),
        changed("C2", "one expert less", moe, "num_experts", "11", 6),
        changed("C2", "10^9 layers", llama, "num_hidden_layers", "1000000000", 6).says(["1000000000 layers"]),
        changed("C2", "2^64 - 1 layers", llama, "num_hidden_layers", "18446744073709551615", 6),
        changed("C3", "a negative number of layers", llama, "num_hidden_layers", "-1", 6).says(["`-1` for `num_hidden_layers`"]),
        changed("C3", "a fraction of layers", llama, "num_hidden_layers", "1.5", 6).says(["`1.5` for `num_hidden_layers`"]),
        changed("C3", "layers as a text", llama, "num_hidden_layers", "\"1\"", 6).says(["for `num_hidden_layers`, which is no count"]),
        changed("C3", "a negative number of experts", moe, "num_experts", "-12", 6).says(["`-12` for `num_experts`"]),
        refused("C3", "NaN layers", r#"{"architectures":["OddForCausalLM"],"num_hidden_layers":NaN}"#, &["`num_hidden_layers`, which is no count"]),
        refused("C3", "1e309", r#"{"architectures":["OddForCausalLM"],"model_type":"odd","a":1e309}"#, &["number out of range"]),
        refused("C3", "nan", r#"{"a":nan}"#, &["is malformed"]),
        // Where nothing is counted by it: transformers writes its defaults so, and the file is kept byte for byte.
        Row::new("C3", "NaN and Infinity, as Python writes them", "create evil checkpoint", 0).effect(Effect::Stored).lay(|place| {
            sound(&place.path("checkpoint"));
            let config = r#"{"architectures":["OddForCausalLM"],"model_type":"odd","a":[NaN,-Infinity]}"#;
            fs::write(place.path("checkpoint/config.json"), config).unwrap();
        }),
        // "Refuse, or record and pass through": the tensors decide what is quantized, and these are BF16 whatever the
        // config claims. What is stored is quantized by kiln; `tests/prequantized.rs` has those that are codes.
        changed("C4", "a method that nobody knows", llama, "quantization_config", r#"{"quant_method":"magic"}"#, 0),
        changed("C4", "a text for a method", llama, "quantization_config", "\"gptq\"", 0),
        changed("C4", "gptq", llama, "quantization_config", r#"{"quant_method":"gptq","bits":4}"#, 0),
        beside("C5", "modeling_odd.py", "import os\nos.system('touch executed')\n"),
        beside("C5", "configuration_odd.py", "raise SystemExit(1)\n"),
        Row::new("C5", "auto_map", "create evil checkpoint", 0).effect(Effect::Stored).lay(|place| {
            sound(&place.path("checkpoint"));
            let config = r#"{"architectures":["OddForCausalLM"],"model_type":"odd","auto_map":{"AutoModel":"evil/repo--modeling.Odd"}}"#;
            fs::write(place.path("checkpoint/config.json"), config).unwrap();
        }),
        // "Pass-through rule stated": the note of the run states it, for no architecture, too.
        generic("no architecture", "{}"),
        generic("an architecture that is a number", r#"{"architectures":[1],"model_type":2}"#),
        Row::new("C6", "a name that moves the cursor", "create evil checkpoint", 0).effect(Effect::Any).lay(|place| {
            sound(&place.path("checkpoint"));
            let config = r#"{"architectures":["\u001b[2J"],"model_type":"\u202e"}"#;
            fs::write(place.path("checkpoint/config.json"), config).unwrap();
        }),
        generic("one that nobody knows", CONFIG),
        beside("C7", "tokenizer.json", "{{ not json \u{1b}[2J"),
        beside("C7", "chat_template.jinja", "{% for x in range(10**9) %}{{ ''.__class__.__mro__ }}{% endfor %}"),
        beside("C7", "special_tokens_map.json", "{\"a\":1,\"a\":2}"),
        Row::new("C7", "a tokenizer of 60 MB", "create evil checkpoint", 0).effect(Effect::Stored).lay(|place| {
            sound(&place.path("checkpoint"));
            File::create(place.path("checkpoint/tokenizer.json")).unwrap().set_len(60 << 20).unwrap();
        }),
        Row::new("C7", "a tokenizer configuration that is none", "create evil checkpoint", 6).says(["`tokenizer_config.json` is malformed"]).lay(|place| {
            sound(&place.path("checkpoint"));
            fs::write(place.path("checkpoint/tokenizer_config.json"), "{").unwrap();
        }),
        damaged("C8", "moe-expert-gap", &["Expert 2 of `model.layers.0` is missing"]),
        damaged("C8", "moe-expert-missing", &["The `up_proj` of expert 2"]),
        damaged("C8", "moe-expert-shape-mismatch", &["experts.1.gate_proj.weight"]),
        damaged("C8", "moe-expert-dtype-mix", &["experts.3.down_proj.weight"]),
        damaged("C8", "moe-both-layouts", &["are there twice"]),
        Row::new("C8", "twelve experts, in numeric order", "create evil checkpoint --quantize int4", 0).effect(Effect::Stored).lay(move |place| place.checkpoint(moe, "checkpoint")),
    ]
}
