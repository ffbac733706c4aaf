//! Importing what is quantized already: every code, scale and bias is where the runtime looks for it, byte for
//! byte, and stands for the values of the model it was made from.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kiln::Progress;
use kiln::manifest::Dialect;
use kiln::oci::{MediaType, Reference};
use kiln::ops::create::{Options, create, preview};
use kiln::ops::inspect::{ShownTensor, show};
use kiln::ops::source::Source;
use kiln::ops::verify::{self, Level, Outcome, verify};
use kiln::plan::Request;
use kiln::quant::{Float, Quantized, Scheme, dequantize, quantize};
use kiln::store::Store;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoints").join(name)
}

/// An array of a safetensors file.
#[derive(Clone, Debug, PartialEq)]
struct Array {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Arrays = BTreeMap<String, Array>;

fn arrays(file: &[u8]) -> Arrays {
    let array = |view: safetensors::tensor::TensorView<'_>| Array {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    SafeTensors::deserialize(file).unwrap().tensors().into_iter().map(|(name, view)| (name, array(view))).collect()
}

/// Every array of a checkpoint.
fn source(name: &str) -> Arrays {
    let files = fs::read_dir(checkpoint(name)).unwrap().map(|entry| entry.unwrap().path());
    let shards = files.filter(|file| file.extension().is_some_and(|ending| ending == "safetensors"));
    shards.flat_map(|file| arrays(&fs::read(file).unwrap())).collect()
}

struct Made {
    _place: TempDir,
    store: Store,
    name: Reference,
    notes: Vec<String>,
}

fn made(source: &Path, scheme: Option<&str>) -> kiln::Result<Made> {
    let place = TempDir::new().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let name: Reference = "model:prequantized".parse().unwrap();
    let request = Request { scheme: scheme.map(|scheme| scheme.parse().unwrap()), ..Request::default() };
    let options = Options {
        name: name.clone(),
        source: Source::Directory(source.to_owned()),
        request,
        dialect: Dialect::Ollama,
        threads: 2,
    };
    let (told, notes) = std::sync::mpsc::channel();
    let progress = Progress::new(move |event| {
        if let kiln::Event::Note { message } = event {
            told.send(message).unwrap();
        }
    });
    create(&store, &options, &progress)?;
    drop(progress);
    Ok(Made { _place: place, store, name, notes: notes.into_iter().collect() })
}

impl Made {
    /// Every array of every layer.
    fn arrays(&self) -> Arrays {
        let layers = show(&self.store, &self.name).unwrap().layers.into_iter().map(|layer| layer.descriptor);
        let tensors = layers.filter(|layer| layer.media_type == MediaType::OLLAMA_TENSOR);
        tensors.flat_map(|layer| arrays(&self.store.read_blob(&layer).unwrap())).collect()
    }

    fn tensors(&self) -> Vec<ShownTensor> {
        show(&self.store, &self.name).unwrap().tensors
    }

    /// The values of a tensor, whatever it is stored as.
    fn values(&self, tensor: &ShownTensor) -> Vec<f32> {
        let arrays = self.arrays();
        let array = |suffix: &str| arrays.get(&format!("{}{suffix}", tensor.name)).cloned();
        let stored = array("").unwrap();
        let Some(scheme) = &tensor.scheme else { return floats(&stored) };
        let scheme: Scheme = scheme.parse().unwrap();
        let (scales, biases) = (array(".scale").unwrap(), array(".bias"));
        let float = if scales.dtype == Dtype::U8 { Float::F32 } else { float(scales.dtype) };
        let elements = tensor.shape.iter().product::<u64>() as usize;
        let mut out = vec![0; elements * float.size()];
        let biases = biases.map(|biases| biases.bytes).unwrap_or_default();
        dequantize(scheme, float, &stored.bytes, &scales.bytes, &biases, &mut out);
        let mut values = floats(&Array { dtype: dtype(float), shape: vec![elements], bytes: out });
        if let Some(global) = array(".global_scale") {
            let globals = floats(&global);
            let each = elements / globals.len();
            values.iter_mut().enumerate().for_each(|(index, value)| *value *= globals[index / each]);
        }
        values
    }
}

fn float(dtype: Dtype) -> Float {
    match dtype {
        Dtype::BF16 => Float::Bf16,
        Dtype::F16 => Float::F16,
        Dtype::F32 => Float::F32,
        other => panic!("{other:?} is no float"),
    }
}

fn dtype(float: Float) -> Dtype {
    match float {
        Float::Bf16 => Dtype::BF16,
        Float::F16 => Dtype::F16,
        Float::F32 => Dtype::F32,
    }
}

fn floats(array: &Array) -> Vec<f32> {
    match array.dtype {
        Dtype::BF16 => {
            let bits = array.bytes.as_chunks::<2>().0.iter().map(|bytes| u32::from(u16::from_le_bytes(*bytes)) << 16);
            bits.map(f32::from_bits).collect()
        }
        Dtype::F32 => array.bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        other => panic!("{other:?} is not read here"),
    }
}

/// Where MLX's part `P.scales` is: beside its weight.
fn beside(name: &str) -> String {
    for (theirs, ours) in [(".scales", ".weight.scale"), (".biases", ".weight.bias")] {
        if let Some(stem) = name.strip_suffix(theirs) {
            return format!("{stem}{ours}");
        }
    }
    name.to_owned()
}

#[test]
fn what_mlx_quantized_is_copied_byte_for_byte() {
    for name in
        ["mlx-qwen3-moe-mixed", "mlx-qwen3-moe-nvfp4", "mlx-llama8l-recipe36", "mlx-llama-mxfp4", "mlx-qwen3_5-moe-q4"]
    {
        let expected: Arrays = source(name).into_iter().map(|(name, array)| (beside(&name), array)).collect();
        let made = made(&checkpoint(name), None).unwrap();
        assert_eq!(made.arrays(), expected, "{name}");
    }
}

#[test]
fn a_layer_has_the_scheme_that_the_configuration_gives_it() {
    for (name, tensor, scheme) in [
        ("mlx-qwen3-moe-mixed", "model.embed_tokens.weight", Some("int8")),
        ("mlx-qwen3-moe-mixed", "model.layers.0.self_attn.q_proj.weight", None),
        ("mlx-qwen3-moe-mixed", "model.layers.1.self_attn.q_proj.weight", Some("int4")),
        ("mlx-qwen3-moe-mixed", "model.layers.0.mlp.switch_mlp.gate_proj.weight", Some("int4")),
        ("mlx-qwen3-moe-mixed", "model.layers.0.mlp.switch_mlp.down_proj.weight", Some("affine6-g32")),
        ("mlx-llama8l-recipe36", "model.layers.0.self_attn.q_proj.weight", Some("affine3-g64")),
        ("mlx-llama8l-recipe36", "model.layers.0.self_attn.v_proj.weight", Some("affine6-g64")),
        ("mlx-gemma4-moe-q4", "language_model.model.layers.0.router.proj.weight", Some("int8")),
        ("mlx-qwen3_5-moe-q4", "language_model.model.layers.1.mlp.gate.weight", Some("int8")),
        ("mlx-llama-mxfp4", "lm_head.weight", Some("mxfp4")),
    ] {
        let tensors = made(&checkpoint(name), None).unwrap().tensors();
        let found = tensors.iter().find(|shown| shown.name == tensor).unwrap_or_else(|| panic!("{tensor}"));
        assert_eq!(found.scheme.as_deref(), scheme, "{name} {tensor}");
    }
}

#[test]
fn gate_and_up_of_gemma4_are_fused_with_their_scales_and_biases() {
    let expected = source("mlx-gemma4-moe-q4");
    let made = made(&checkpoint("mlx-gemma4-moe-q4"), None).unwrap().arrays();
    for layer in 0..2 {
        let layer = format!("language_model.model.layers.{layer}");
        for (theirs, ours) in [(".weight", ""), (".scales", ".scale"), (".biases", ".bias")] {
            let part = |projection: &str| &expected[&format!("{layer}.experts.switch_glu.{projection}_proj{theirs}")];
            let fused = &made[&format!("{layer}.moe.switch_mlp.gate_up_proj.weight{ours}")];
            let (gate, up) = (part("gate"), part("up"));
            assert_eq!(fused.shape, [gate.shape[0], 2 * gate.shape[1], gate.shape[2]]);
            let each = gate.bytes.len() / gate.shape[0];
            let pairs = gate.bytes.chunks(each).zip(up.bytes.chunks(each));
            assert_eq!(fused.bytes, pairs.flat_map(|(gate, up)| [gate, up].concat()).collect::<Vec<_>>());
            assert_eq!(made[&format!("{layer}.moe.switch_mlp.down_proj.weight{ours}")], *part("down"));
        }
    }
}

#[test]
fn another_scheme_is_a_second_quantization_and_said_to_be_one() {
    let schemes = |scheme| {
        let made = made(&checkpoint("mlx-qwen3-moe-mixed"), scheme).unwrap();
        let tensors = made.tensors();
        let scheme = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap().scheme.clone();
        let second = made.notes.iter().filter(|note| note.contains("second quantization")).count();
        let names = ["model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.switch_mlp.up_proj"];
        (names.map(|name| scheme(&format!("{name}.weight")).unwrap_or_default()), second)
    };
    assert_eq!(schemes(None), (["int8", "", "int4"].map(str::to_owned), 0));
    // What the policy keeps stays as the source has it; what is in the scheme already is not touched.
    assert_eq!(schemes(Some("int4")), (["int8", "int4", "int4"].map(str::to_owned), 1));
    assert_eq!(schemes(Some("mxfp8")), (["int8", "mxfp8", "mxfp8"].map(str::to_owned), 1));
}

#[test]
fn rebuilds_of_every_prequantized_checkpoint_agree() {
    for name in ["mlx-qwen3-moe-mixed", "mlx-gemma4-moe-q4", "ct-nvfp4a16-qwen3-moe", "modelopt-nvfp4-qwen3-moe"] {
        for scheme in [None, Some("mxfp8")] {
            let source = checkpoint(name);
            let made = made(&source, scheme).unwrap();
            let options = verify::Options::new(made.name.clone(), Level::Rebuild);
            let options = verify::Options { source: Some(source), threads: 3, ..options };
            let verified = verify(&made.store, &options, &Progress::silent()).unwrap();
            assert_eq!(verified.outcome(), Outcome::Ok, "{name} {scheme:?} {:?}", verified.findings);
        }
    }
}

/// The relative error against `parent`, in the norm of L2, of every tensor in `scheme`; those of one `group` together.
fn errors(made: &Made, parent: &Arrays, scheme: &str, group: fn(&str) -> String) -> Vec<f64> {
    let mut sums: BTreeMap<String, [f64; 2]> = BTreeMap::new();
    for tensor in made.tensors().into_iter().filter(|tensor| tensor.scheme.as_deref() == Some(scheme)) {
        let parent = floats(&parent[&tensor.name]);
        let values = made.values(&tensor);
        assert_eq!(values.len(), parent.len(), "{}", tensor.name);
        let sum = sums.entry(group(&tensor.name)).or_default();
        for (value, parent) in values.into_iter().zip(parent) {
            sum[0] += f64::from(value - parent).powi(2);
            sum[1] += f64::from(parent).powi(2);
        }
    }
    sums.into_values().map(|[difference, norm]| (difference / norm).sqrt()).collect()
}

/// A checkpoint, what its quantized weights were made from, and how far apart the two were, by another's arithmetic.
#[test]
fn values_are_those_of_the_model_that_was_quantized() {
    for (name, parent, tensors, range) in [
        ("ct-nvfp4-llama", "llama-tied-bf16", 14, 0.0933..0.0963),
        ("ct-nvfp4a16-qwen3-moe", "qwen3-moe-bf16", 14, 0.0935..0.0967),
        ("modelopt-nvfp4-qwen3-moe", "qwen3-moe-bf16", 14, 0.0929..0.0969),
        ("mlx-qwen3-moe-nvfp4", "qwen3-moe-bf16", 14, 0.08..0.11),
    ] {
        let parent = made(&checkpoint(parent), None).unwrap().arrays();
        let made = made(&checkpoint(name), None).unwrap();
        let errors = errors(&made, &parent, "nvfp4", str::to_owned);
        assert!(errors.len() >= tensors, "{name}: {errors:?}");
        for error in errors {
            assert!(range.start * 0.99 < error && error < range.end * 1.01, "{name}: {error}");
        }
    }
}

#[test]
fn nvfp4_is_copied_and_its_global_scale_is_the_factor_of_the_scales() {
    for (name, codes, global, divides) in [
        ("ct-nvfp4-llama", "weight_packed", "weight_global_scale", true),
        ("ct-nvfp4a16-qwen3-moe", "weight_packed", "weight_global_scale", true),
        ("modelopt-nvfp4-qwen3-moe", "weight", "weight_scale_2", false),
    ] {
        let source = source(name);
        let made = made(&checkpoint(name), None).unwrap();
        let arrays = made.arrays();
        assert!(
            !arrays.keys().any(|name| name.contains("input_") && !name.contains("norm")),
            "scales of activations are left out"
        );
        let quantized: Vec<ShownTensor> =
            made.tensors().into_iter().filter(|tensor| tensor.scheme.as_deref() == Some("nvfp4")).collect();
        assert!(quantized.len() >= 14, "{name}");
        for ShownTensor { name: weight, shape, .. } in quantized {
            let stem = weight.strip_suffix(".weight").unwrap();
            // One by one, or those of all experts.
            let stems: Vec<String> = match (&shape[..], stem.split_once("switch_mlp")) {
                (&[experts, _, _], Some((home, projection))) => {
                    (0..experts).map(|expert| format!("{home}experts.{expert}{projection}")).collect()
                }
                _ => vec![stem.to_owned()],
            };
            let all = |part: &str| -> Vec<u8> {
                stems.iter().flat_map(|stem| source[&format!("{stem}.{part}")].bytes.clone()).collect()
            };
            assert_eq!(arrays[&weight].dtype, Dtype::U32);
            assert_eq!(arrays[&weight].bytes, all(codes), "{weight}");
            let scales = &arrays[&format!("{weight}.scale")];
            assert_eq!((scales.dtype, &scales.bytes), (Dtype::U8, &all("weight_scale")), "{weight}");
            let factor = |global: f32| if divides { 1.0 / global } else { global };
            let expected = Array { dtype: Dtype::F32, shape: vec![], bytes: all(global) };
            let expected: Vec<f32> = floats(&expected).into_iter().map(factor).collect();
            let global = &arrays[&format!("{weight}.global_scale")];
            assert_eq!(floats(global), expected, "{weight}");
            assert_eq!(global.shape, if shape.len() == 3 { vec![stems.len()] } else { vec![] });
        }
    }
}

#[test]
fn gpt_oss_is_what_mlx_makes_of_it() {
    let expected: Arrays =
        source("mlx-gpt-oss-mxfp4").into_iter().map(|(name, array)| (beside(&name), array)).collect();
    let made = made(&checkpoint("gpt-oss-mxfp4"), None).unwrap();
    assert_eq!(made.arrays(), expected);
    let parent = self::made(&checkpoint("gpt-oss-bf16"), None).unwrap().arrays();
    // Gate and up are one tensor in the source, and its figure is that of both.
    let errors = errors(&made, &parent, "mxfp4", |name| name.replace(".gate_proj", ".up_proj"));
    assert_eq!(errors.len(), 4);
    assert!(errors.iter().all(|error| (0.1193..0.1238).contains(error)), "{errors:?}");
}

#[test]
fn both_forms_of_gpt_oss_have_the_same_layers() {
    for scheme in [None, Some("mxfp8")] {
        let layers = |name: &str| {
            let made = made(&checkpoint(name), scheme).unwrap();
            let layers = show(&made.store, &made.name).unwrap().layers.into_iter();
            let tensors = layers.filter(|layer| layer.descriptor.media_type == MediaType::OLLAMA_TENSOR);
            tensors.map(|layer| (layer.name, layer.descriptor.digest)).collect::<Vec<_>>()
        };
        assert_eq!(layers("gpt-oss-mxfp4"), layers("mlx-gpt-oss-mxfp4"), "{scheme:?}");
    }
}

#[test]
fn the_experts_of_gpt_oss_are_turned_round_and_taken_apart() {
    let (source, made) = (source("gpt-oss-bf16"), made(&checkpoint("gpt-oss-bf16"), None).unwrap().arrays());
    let home = "model.layers.1.mlp.experts";
    let element = |array: &Array, index: usize| array.bytes[2 * index..][..2].to_vec();
    let (both, down) = (&source[&format!("{home}.gate_up_proj")], &source[&format!("{home}.down_proj")]);
    let [experts, hidden, twice] = both.shape[..] else { panic!("{:?}", both.shape) };
    let width = twice / 2;
    for (name, half) in [("gate_proj", 0), ("up_proj", 1)] {
        let ours = &made[&format!("{home}.{name}.weight")];
        assert_eq!(ours.shape, [experts, width, hidden]);
        let bias = &made[&format!("{home}.{name}.bias")];
        assert_eq!(bias.shape, [experts, width]);
        let both_biases = &source[&format!("{home}.gate_up_proj_bias")];
        for (expert, row) in (0..experts).flat_map(|expert| (0..width).map(move |row| (expert, row))) {
            let at = expert * twice + 2 * row + half;
            assert_eq!(element(bias, expert * width + row), element(both_biases, at));
            for column in 0..hidden {
                let theirs = element(both, (expert * hidden + column) * twice + 2 * row + half);
                assert_eq!(element(ours, (expert * width + row) * hidden + column), theirs, "{name} {expert} {row}");
            }
        }
    }
    let ours = &made[&format!("{home}.down_proj.weight")];
    assert_eq!(ours.shape, [experts, hidden, width]);
    for index in 0..experts * hidden * width {
        let (expert, row, column) = (index / (hidden * width), index / width % hidden, index % width);
        assert_eq!(element(ours, index), element(down, (expert * width + column) * hidden + row));
    }
}

/// A copy of a checkpoint with another config.
fn with_config(name: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let place = TempDir::new().unwrap();
    for file in fs::read_dir(checkpoint(name)).unwrap().map(|entry| entry.unwrap().path()) {
        fs::copy(&file, place.path().join(file.file_name().unwrap())).unwrap();
    }
    let config = place.path().join("config.json");
    let mut value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    change(&mut value);
    fs::write(config, value.to_string()).unwrap();
    place
}

#[test]
fn global_scales_of_experts_that_a_runtime_ignores_are_not_lost() {
    let place = with_config("modelopt-nvfp4-qwen3-moe", |config| {
        config["architectures"] = json!(["Qwen3NextForCausalLM"]);
        config["model_type"] = json!("qwen3_next");
    });
    let made = made(place.path(), None).unwrap();
    let said = |words: &str| made.notes.iter().any(|note| note.contains(words));
    assert!(said("global scales of experts") && said("`mxfp8` is a second quantization"), "{:?}", made.notes);
    let (source, arrays) = (source("modelopt-nvfp4-qwen3-moe"), made.arrays());
    let mut compared = 0;
    for tensor in made.tensors() {
        let Some((home, projection)) = tensor.name.split_once("switch_mlp") else {
            assert_ne!(tensor.scheme.as_deref(), Some("mxfp8"), "{}", tensor.name);
            continue;
        };
        let values = (0..tensor.shape[0]).flat_map(|expert| {
            let stem = format!("{home}experts.{expert}{}", projection.strip_suffix(".weight").unwrap());
            let part = |part: &str| &source[&format!("{stem}.{part}")];
            let codes = part("weight");
            let mut out = vec![0; codes.bytes.len() * 2 * 4];
            dequantize(Scheme::Nvfp4, Float::F32, &codes.bytes, &part("weight_scale").bytes, &[], &mut out);
            let global = floats(part("weight_scale_2"))[0];
            let values = floats(&Array { dtype: Dtype::F32, shape: vec![], bytes: out });
            values.into_iter().flat_map(move |value| bfloat16(value * global)).collect::<Vec<u8>>()
        });
        let values: Vec<u8> = values.collect();
        let mut packed = vec![0; values.len() / 2];
        let mut scales = vec![0; values.len() / 64];
        let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut [] };
        quantize(Scheme::Mxfp8, Float::Bf16, &values, out).unwrap();
        assert_eq!(arrays[&tensor.name].bytes, packed, "{}", tensor.name);
        assert_eq!(arrays[&format!("{}.scale", tensor.name)].bytes, scales, "{}", tensor.name);
        compared += 1;
    }
    assert_eq!(compared, 6);
}

/// The bfloat16 nearest to `value`, ties to even.
fn bfloat16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    (((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes()
}

/// A checkpoint of these tensors.
fn written(config: &Value, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> TempDir {
    let place = TempDir::new().unwrap();
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &place.path().join("model.safetensors")).unwrap();
    fs::write(place.path().join("config.json"), config.to_string()).unwrap();
    place
}

/// Why it cannot be planned.
fn refusal(place: &TempDir) -> kiln::Error {
    let source = Source::Directory(place.path().to_owned());
    preview(&source, Request::default(), 1, &Progress::silent()).map(|_| ()).unwrap_err()
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// 1, 2, 0.5 and -1.5.
const CODES: [u8; 4] = [0x38, 0x40, 0x30, 0xBC];

#[test]
fn fp8_of_other_blocks_is_code_times_scale() {
    let by = |method: &str| json!({"quantization_config": {"quant_method": method}});
    let blocks = json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [1, 2]}});
    for (config, shape, scale_name, scale_shape, scales, expected) in [
        (by("fp8"), &[2, 2][..], "a.weight_scale", &[][..], &[2.0][..], [2.0, 4.0, 1.0, -3.0]),
        (by("modelopt"), &[2, 2], "a.weight_scale", &[1], &[2.0], [2.0, 4.0, 1.0, -3.0]),
        (by("fbgemm_fp8"), &[2, 2], "a.weight_scale", &[2, 1], &[2.0, 3.0], [2.0, 4.0, 1.5, -4.5]),
        (by("compressed-tensors"), &[2, 2], "a.weight_scale", &[2], &[2.0, 3.0], [2.0, 4.0, 1.5, -4.5]),
        (blocks, &[1, 4], "a.weight_scale_inv", &[1, 2], &[2.0, 3.0], [2.0, 4.0, 1.5, -4.5]),
        (json!({}), &[2, 1, 2], "a.weight_scale", &[2], &[2.0, 3.0], [2.0, 4.0, 1.5, -4.5]),
    ] {
        let place = written(
            &config,
            &[
                ("a.weight", Dtype::F8_E4M3, shape, CODES.to_vec()),
                (scale_name, Dtype::F32, scale_shape, f32s(scales)),
                ("a.input_scale", Dtype::F32, &[], f32s(&[9.0])),
            ],
        );
        let made = made(place.path(), None).unwrap();
        let arrays = made.arrays();
        assert_eq!(arrays.keys().collect::<Vec<_>>(), ["a.weight"], "{config} {scale_shape:?}");
        assert_eq!(arrays["a.weight"].dtype, Dtype::BF16);
        assert_eq!(floats(&arrays["a.weight"]), expected, "{config} {scale_shape:?}");
        assert!(made.notes.iter().any(|note| note.contains("activations are left out")), "{:?}", made.notes);
    }
}

#[test]
fn every_layer_of_a_mixed_checkpoint_is_what_its_own_tensors_say() {
    let place = written(
        &json!({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}),
        &[
            ("a.weight", Dtype::U8, &[2, 8], vec![0x21; 16]),
            ("a.weight_scale", Dtype::F8_E4M3, &[2, 1], vec![0x38, 0x40]),
            ("a.weight_scale_2", Dtype::F32, &[], f32s(&[0.5])),
            ("b.weight", Dtype::F8_E4M3, &[2, 2], CODES.to_vec()),
            ("b.weight_scale", Dtype::F32, &[], f32s(&[2.0])),
            ("c.weight", Dtype::BF16, &[1, 2], vec![0x80, 0x3F, 0x00, 0x40]),
        ],
    );
    let made = made(place.path(), None).unwrap();
    let schemes: Vec<Option<String>> = made.tensors().into_iter().map(|tensor| tensor.scheme).collect();
    assert_eq!(schemes, [Some("nvfp4".to_owned()), None, None]);
    assert_eq!(made.values(&made.tensors()[0])[..4], [0.25, 0.5, 0.25, 0.5]);
    assert_eq!(made.values(&made.tensors()[0])[16..20], [0.5, 1.0, 0.5, 1.0]);
    assert_eq!(made.values(&made.tensors()[1]), [2.0, 4.0, 1.0, -3.0]);
    assert_eq!(made.values(&made.tensors()[2]), [1.0, 2.0]);
}

#[test]
fn what_cannot_be_read_is_refused_by_name_before_anything_is_written() {
    let mlx = |more: Value| {
        let mut settings = json!({"group_size": 64, "bits": 4});
        settings.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({ "quantization": settings })
    };
    let affine = |words: usize| {
        let part = |role: &str, dtype, shape: [usize; 2]| (format!("a.{role}"), dtype, shape);
        vec![
            part("weight", Dtype::U32, [2, words]),
            part("scales", Dtype::BF16, [2, 1]),
            part("biases", Dtype::BF16, [2, 1]),
        ]
    };
    let named = |rows: &[(&str, Dtype, [usize; 2])]| -> Vec<_> {
        rows.iter().map(|(name, dtype, shape)| ((*name).to_owned(), *dtype, *shape)).collect()
    };
    let nvfp4 = named(&[("a.weight", Dtype::U8, [2, 8]), ("a.weight_scale", Dtype::F8_E4M3, [2, 1])]);
    let foreign = named(&[("a.qweight", Dtype::I32, [2, 2]), ("a.scales", Dtype::F16, [2, 1])]);
    let bytes = named(&[("a.weight", Dtype::I8, [2, 2]), ("a.SCB", Dtype::F32, [2, 1])]);
    let fp8 = named(&[("a.weight", Dtype::F8_E4M3, [4, 4]), ("a.weight_scale", Dtype::F32, [2, 2])]);
    let by = |method: &str| json!({"quantization_config": {"quant_method": method}});
    for (config, tensors, words) in [
        (mlx(json!({})), affine(9), "`a.weight` cannot be read"),
        (mlx(json!({"a": {"group_size": 64, "bits": 8}})), affine(8), "`a.scales` is BF16 [2, 1]"),
        (mlx(json!({"a": false})), affine(8), "says that it is not quantized"),
        (mlx(json!({"bits": 7})), affine(8), "which is no scheme"),
        (mlx(json!({"mode": "mxfp4", "group_size": 32})), affine(8), "`a.scales` is BF16"),
        (mlx(json!({})), affine(8)[..2].to_vec(), "`a.biases` is missing"),
        (json!({}), affine(8), "does not say how many bits"),
        (by("modelopt"), nvfp4, "`a.weight_scale_2` is missing"),
        (by("awq"), foreign.clone(), "kind `prequantized (awq)` is not supported: `a.qweight`"),
        (by("hqq"), foreign, "kind `prequantized (hqq)` is not supported"),
        (by("bitsandbytes"), bytes, "kind `prequantized (bitsandbytes)` is not supported: `a.weight`"),
        (by("fp8"), fp8, "kind `prequantized (fp8)` is not supported: `a.weight`"),
    ] {
        let data = |(name, dtype, shape): &(String, Dtype, [usize; 2])| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            (name.clone(), *dtype, *shape, vec![0; bytes])
        };
        let tensors: Vec<_> = tensors.iter().map(data).collect();
        let tensors: Vec<_> =
            tensors.iter().map(|(name, dtype, shape, bytes)| (&**name, *dtype, &shape[..], bytes.clone())).collect();
        let place = written(&config, &tensors);
        let error = refusal(&place);
        assert!(error.to_string().contains(words), "{config}: {error}");
        assert!(error.hint_text().is_some(), "{error}");
    }
}

#[test]
fn what_mlx_changed_so_that_ollama_would_misread_it_is_refused() {
    let error = |config: Value, tensors: &[(&str, &[usize])]| {
        let tensors: Vec<_> = tensors
            .iter()
            .map(|(name, shape)| (*name, Dtype::BF16, *shape, vec![0; 2 * shape.iter().product::<usize>()]))
            .collect();
        refusal(&written(&config, &tensors)).to_string()
    };
    let glm = json!({"architectures": ["Glm4MoeLiteForCausalLM"]});
    let attention = "model.layers.0.self_attn.embed_q.weight";
    assert!(error(glm, &[("model.embed_tokens.weight", &[2, 2]), (attention, &[2, 2, 2])]).contains("kv_b_proj"));
    let qwen = json!({"architectures": ["Qwen3_5ForCausalLM"]});
    let embedding: (&str, &[usize]) = ("model.embed_tokens.weight", &[2, 2]);
    let turned: (&str, &[usize]) = ("model.layers.0.linear_attn.conv1d.weight", &[2, 4, 1]);
    assert!(error(qwen, &[embedding, turned, ("mtp.norm.weight", &[2])]).contains("shifted twice"));
}
