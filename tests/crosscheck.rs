//! MLX itself, held against the kernels and against stored models. What it needs on Linux, `ci/mlx/linux.sh` makes.

#![allow(clippy::unwrap_used)] // in functions that tests share

mod model;

use std::fs;
use std::path::Path;
use std::process::Command;

use kiln::manifest::layer_name;
use kiln::ops::crosscheck::{Crosschecked, Options, crosscheck};
use kiln::ops::inspect::show;
use kiln::ops::source::Places;
use kiln::ops::verify::{Finding, Outcome};
use kiln::plan::{Profile, Request};
use kiln::quant::{self, Float, Mlx, Quantized, Scheme};
use kiln::{ErrorKind, Progress};
use serde_json::Value;
use tempfile::TempDir;

use model::{Kiln, array, checkpoint, copy_of};

/// The codes, scales and biases that the kernels give.
fn kernels(scheme: Scheme, float: Float, input: &[u8]) -> [Vec<u8>; 3] {
    let elements = input.len() / float.size();
    let mut packed = vec![0; scheme.packed_len(elements)];
    let mut scales = vec![0; scheme.scales_len(elements, float)];
    let mut biases = vec![0; scheme.biases_len(elements, float)];
    let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
    quant::quantize(scheme, float, input, out).unwrap();
    [packed, scales, biases]
}

const COLUMNS: usize = 256;

/// Elements of both signs in 64 rows: every mantissa, and magnitudes from 2^-7, or 2^-3, up to 2.
fn weights(float: Float) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let random = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x915F_77F5).wrapping_add(0x6A09_E667);
        state.rotate_left(16)
    });
    let random = random.take(64 * COLUMNS);
    match float {
        Float::Bf16 => random.flat_map(|bits| (bits as u16 & 0x83FF | 0x3C00).to_le_bytes()).collect(),
        Float::F16 => random.flat_map(|bits| (bits as u16 & 0x8FFF | 0x3000).to_le_bytes()).collect(),
        Float::F32 => random.flat_map(|bits| (bits & 0x83FF_FFFF | 0x3C00_0000).to_le_bytes()).collect(),
    }
}

#[test]
fn mlx_gives_the_bytes_of_the_kernels_for_every_scheme_and_type() {
    let mlx = Mlx::start().unwrap();
    for float in [Float::Bf16, Float::F16, Float::F32] {
        let input = weights(float);
        for scheme in Scheme::all() {
            let theirs = mlx.quantize(scheme, float, COLUMNS, &input).unwrap();
            assert!(kernels(scheme, float, &input) == theirs, "{scheme} {float:?}");
        }
    }
}

#[test]
fn what_mlx_does_not_take_is_an_error_and_not_the_end_of_the_process() {
    let mlx = Mlx::start().unwrap();
    let row = [0; 64 * 4];
    let no_such = Scheme::Affine { bits: 7, group: 64 };
    for (scheme, columns, input, sentence) in [
        (Scheme::INT4, 48, &row[..48 * 4], "MLX refused to quantize: "),
        (no_such, 64, &row, "MLX refused to quantize: "),
        (Scheme::INT4, 48, &row, "256 bytes are not rows of 48 elements"),
        (Scheme::INT4, 0, &row, "256 bytes are not rows of 0 elements"),
        (Scheme::INT4, 1 << 40, &[], "MLX has no matrix of this size"),
    ] {
        let error = mlx.quantize(scheme, Float::F32, columns, input).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CouldNotCheck);
        assert!(error.chain().starts_with(sentence), "{}", error.chain());
    }
    assert!(mlx.quantize(Scheme::INT4, Float::F32, 64, &row).is_ok());
}

impl Kiln {
    fn crosscheck(&self, source: &Path) -> Crosschecked {
        let (source, places) = (Some(source.to_owned()), Places::default());
        let options = Options { name: self.name.clone(), source, draft: None, places, threads: 1 };
        crosscheck(&self.store, &options, &Progress::silent()).unwrap()
    }

    /// The one difference.
    fn difference(&self, source: &Path) -> Finding {
        let Crosschecked { findings, .. } = self.crosscheck(source);
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!(finding.outcome, Outcome::NotReproduced);
        finding.clone()
    }
}

#[test]
fn mlx_makes_every_quantized_tensor_of_a_model_as_it_is_stored() {
    for (name, profile, scheme) in [
        ("qwen3-moe-12e-bf16", Profile::Ollama, Some("int4")),
        ("mixtral-bf16", Profile::Ollama, Some("nvfp4")),
        ("gemma4-moe-vl-bf16", Profile::Ollama, Some("mxfp4")),
        ("gpt-oss-bf16", Profile::Ollama, Some("mxfp8")),
        ("llama-f16", Profile::Ollama, Some("affine3-g32")),
        ("llama-f32", Profile::Ollama, Some("affine5-g64")),
        ("fp8-llama-192x320", Profile::Ollama, None),
        ("fp8-qwen3-moe", Profile::Ollama, Some("affine6-g128")),
        ("qwen3_5-moe-vl-stacked-bf16", Profile::Mlx, Some("int8")),
        ("nemotron-h-bf16", Profile::Mlx, Some("affine2-g32")),
        ("llama-f32", Profile::Mlx, Some("mxfp4")),
    ] {
        let source = checkpoint(name);
        let scheme = scheme.map(|scheme| scheme.parse().unwrap());
        let kiln = Kiln::created(&source, Request { profile, scheme, ..Request::default() });
        let crosschecked = kiln.crosscheck(&source);
        assert_eq!(crosschecked.outcome(), Outcome::Ok, "{name} {:?}", crosschecked.findings);
        let tensors = show(&kiln.store, &kiln.name).unwrap().tensors;
        let quantized = tensors.iter().filter(|tensor| tensor.scheme.is_some()).count();
        assert!(quantized > 0 && crosschecked.tensors == quantized as u64, "{name} {quantized} {crosschecked:?}");
    }
}

#[test]
fn values_that_a_profile_casts_are_cast_before_mlx_sees_them() {
    let source = TempDir::new().unwrap();
    copy_of(&checkpoint("llama-f32"), source.path());
    let config = source.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"dtype\": \"float32\"", "\"torch_dtype\": \"bfloat16\"")).unwrap();
    let request = Request { profile: Profile::Mlx, scheme: Some(Scheme::INT4), ..Request::default() };
    let kiln = Kiln::created(source.path(), request);
    assert_eq!(show(&kiln.store, &kiln.name).unwrap().tensors[0].dtype, "BF16");
    assert_eq!(kiln.crosscheck(source.path()).outcome(), Outcome::Ok);
}

const TENSOR: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn one_flipped_bit_of_a_stored_part_is_named_with_its_tensor() {
    let source = checkpoint("qwen3-moe-bf16");
    for (suffix, part) in [("", "packed"), (".bias", "biases"), (".scale", "scales")] {
        let kiln = Kiln::holding(&source, Some("int4"));
        let mut flipped = 0;
        kiln.replace(TENSOR, |bytes| {
            let at = array(bytes, &format!("{TENSOR}{suffix}")).start + 5;
            bytes[at] ^= 1;
            flipped = bytes[at];
        });
        let finding = kiln.difference(&source);
        assert_eq!((finding.layer.as_deref(), finding.tensor.as_deref()), (Some(TENSOR), Some(TENSOR)));
        assert_eq!((finding.part, finding.bytes), (Some(part), Some(1)));
        let place = format!("the first at 5: {flipped:#04x} is stored, MLX has {:#04x}", flipped ^ 1);
        assert!(finding.message.ends_with(&place), "{}", finding.message);
        assert!(finding.cause.unwrap().contains("the stored layer was altered"));
    }
}

#[test]
fn one_changed_weight_of_the_source_is_told_as_another_source() {
    let changed = TempDir::new().unwrap();
    copy_of(&checkpoint("llama-f16"), changed.path());
    let shard = changed.path().join("model.safetensors");
    let mut bytes = fs::read(&shard).unwrap();
    let place = array(&bytes, TENSOR);
    // The sign of the first weight.
    bytes[place.start + 1] ^= 0x80;
    fs::write(&shard, bytes).unwrap();
    let finding = Kiln::holding(&checkpoint("llama-f16"), Some("mxfp8")).difference(changed.path());
    assert_eq!((finding.tensor.as_deref(), finding.part), (Some(TENSOR), Some("packed")));
    assert!(finding.cause.unwrap().starts_with("the source is another one"));
}

#[test]
fn a_layer_that_rotted_is_corrupt_and_one_of_another_scheme_is_named() {
    let source = checkpoint("llama-f16");
    let kiln = Kiln::holding(&source, Some("int4"));
    let other = Kiln::holding(&source, Some("affine4-g32"));
    let layer = |kiln: &Kiln| {
        let manifest = kiln.manifest();
        let layer = manifest.layers.into_iter().find(|layer| layer_name(layer) == TENSOR).unwrap();
        kiln.store.blob_path(&layer.digest)
    };
    let bytes = fs::read(layer(&other)).unwrap();
    kiln.replace(TENSOR, |stored| *stored = bytes);
    assert_eq!(kiln.difference(&source).part, Some("header"));
    let rotted = layer(&kiln);
    fs::remove_file(&rotted).unwrap();
    fs::write(&rotted, "rot").unwrap();
    assert_eq!(kiln.crosscheck(&source).outcome(), Outcome::Corrupt);
}

#[test]
fn a_model_without_quantized_tensors_could_not_be_checked() {
    let source = checkpoint("llama-f16");
    let crosschecked = Kiln::holding(&source, None).crosscheck(&source);
    assert_eq!((crosschecked.outcome(), crosschecked.tensors), (Outcome::CouldNotCheck, 0));
}

#[test]
fn the_command_prints_the_verdict_and_ends_with_it() {
    let source = checkpoint("llama-f16");
    let kiln = Kiln::holding(&source, Some("int4"));
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command.args(["crosscheck", "model:a", "--progress", "off", "--store"]).arg(kiln.place.path().join("store"));
        let output = command.args(words).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, printed) = run(&[]);
    assert_eq!(code, Some(0), "{printed}");
    assert!(printed.contains("\ncompared with MLX 0.32.2: "), "{printed}");
    assert!(printed.ends_with("\nresult: ok\n"), "{printed}");
    kiln.replace(TENSOR, |bytes| {
        let place = array(bytes, &format!("{TENSOR}.scale"));
        bytes[place.start] ^= 1;
    });
    let (code, printed) = run(&["--source", source.to_str().unwrap(), "--json"]);
    assert_eq!(code, Some(4), "{printed}");
    let object: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&object["event"], &object["result"]), (&"crosschecked".into(), &"not-reproduced".into()));
    assert_eq!((&object["findings"][0]["tensor"], &object["findings"][0]["part"]), (&TENSOR.into(), &"scales".into()));
}
