//! Importing block-fp8: the values that are quantized are those MLX itself decodes from the same codes
//! and scales, whatever the shape, and a kept weight is stored as the bfloat16 it stands for.

#![allow(clippy::unwrap_used)] // in functions that tests share

use std::fs;
use std::path::{Path, PathBuf};

use kiln::manifest::Dialect;
use kiln::oci::Reference;
use kiln::ops::create::{Options, create};
use kiln::ops::inspect::show;
use kiln::ops::verify::{self, Level, Outcome, verify};
use kiln::plan::Request;
use kiln::quant::{Float, Quantized, Scheme, quantize};
use kiln::store::Store;
use kiln::{ErrorKind, Progress};
use safetensors::SafeTensors;
use tempfile::TempDir;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

struct Made {
    _place: TempDir,
    store: Store,
    name: Reference,
}

fn made(source: &Path, scheme: Option<&str>) -> kiln::Result<(Made, Vec<String>)> {
    let place = TempDir::new().unwrap();
    let store = Store::open(&place.path().join("store")).unwrap();
    let name: Reference = "model:fp8".parse().unwrap();
    let request = Request { scheme: scheme.map(|scheme| scheme.parse().unwrap()), ..Request::default() };
    let options =
        Options { name: name.clone(), source: source.to_owned().into(), request, dialect: Dialect::Ollama, threads: 2 };
    let (told, notes) = std::sync::mpsc::channel();
    let progress = Progress::new(move |event| {
        if let kiln::Event::Note { message } = event {
            told.send(message).unwrap();
        }
    });
    create(&store, &options, &progress)?;
    drop(progress);
    Ok((Made { _place: place, store, name }, notes.into_iter().collect()))
}

impl Made {
    /// The array `name` of the layer that holds `tensor`.
    fn array(&self, tensor: &str, suffix: &str) -> Vec<u8> {
        let shown = show(&self.store, &self.name).unwrap();
        let layer = &shown.tensors.iter().find(|shown| shown.name == tensor).unwrap().layer;
        let layer = shown.layers.iter().find(|shown| shown.name == *layer).unwrap();
        let blob = self.store.read_blob(&layer.descriptor).unwrap();
        let arrays = SafeTensors::deserialize(&blob).unwrap();
        arrays.tensor(&format!("{tensor}{suffix}")).unwrap().data().to_vec()
    }
}

#[test]
fn decoded_weights_are_those_of_mlx() {
    let oracle = fs::read(here("oracle/deepseek-v3-from-fp8/model.safetensors")).unwrap();
    let oracle = SafeTensors::deserialize(&oracle).unwrap();
    let (made, _) = made(&here("checkpoints/fp8-deepseek-v3"), None).unwrap();
    let mut compared = [0, 0];
    for tensor in show(&made.store, &made.name).unwrap().tensors {
        // MLX takes `kv_b_proj` apart for its attention, so that there is nothing to compare with.
        let Ok(expected) = oracle.tensor(&tensor.name) else {
            assert!(tensor.name.contains("kv_b_proj"), "{}", tensor.name);
            continue;
        };
        let expected = expected.data();
        match tensor.scheme.as_deref() {
            None => assert_eq!(made.array(&tensor.name, ""), expected, "{}", tensor.name),
            Some("mxfp8") => {
                let elements = expected.len() / 2;
                let mut packed = vec![0; Scheme::Mxfp8.packed_len(elements)];
                let mut scales = vec![0; Scheme::Mxfp8.scales_len(elements, Float::Bf16)];
                let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut [] };
                quantize(Scheme::Mxfp8, Float::Bf16, expected, out).unwrap();
                assert_eq!(made.array(&tensor.name, ""), packed, "{}", tensor.name);
                assert_eq!(made.array(&tensor.name, ".scale"), scales, "{}", tensor.name);
            }
            Some(other) => panic!("{} is {other}", tensor.name),
        }
        compared[usize::from(tensor.scheme.is_some())] += 1;
    }
    assert!(compared[0] >= 10 && compared[1] >= 10, "{compared:?}");
}

#[test]
fn only_what_was_quantized_is_quantized_again_unless_asked() {
    let schemes = |scheme| {
        let (made, notes) = made(&here("checkpoints/fp8-qwen3-moe"), scheme).unwrap();
        assert!(notes.iter().any(|note| note.contains("second quantization")), "{notes:?}");
        let tensors = show(&made.store, &made.name).unwrap().tensors;
        assert!(tensors.iter().all(|tensor| !tensor.name.contains("scale")), "scales are not tensors of the model");
        let scheme = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap().scheme.clone();
        [scheme("lm_head.weight"), scheme("model.layers.0.mlp.switch_mlp.gate_proj.weight")]
    };
    assert_eq!(schemes(None), [None, Some("mxfp8".to_owned())]);
    assert_eq!(schemes(Some("int4")), [Some("int8".to_owned()), Some("int4".to_owned())]);
}

#[test]
fn rebuilds_of_every_block_fp8_checkpoint_agree() {
    for name in ["fp8-qwen3-moe", "fp8-llama-192x320", "ct-fp8block-llama-192x320", "fp8-qwen3_5-moe-vl"] {
        for scheme in [None, Some("nvfp4")] {
            let source = here("checkpoints").join(name);
            let (made, _) = made(&source, scheme).unwrap();
            let options = verify::Options::new(made.name.clone(), Level::Rebuild);
            let options = verify::Options { source: Some(source), threads: 3, ..options };
            let verified = verify(&made.store, &options, &Progress::silent()).unwrap();
            assert_eq!(verified.outcome(), Outcome::Ok, "{name} {:?}", verified.findings);
        }
    }
}

#[test]
fn a_code_that_is_not_a_number_is_refused() {
    let place = TempDir::new().unwrap();
    for file in fs::read_dir(here("checkpoints/fp8-llama-192x320")).unwrap().map(|entry| entry.unwrap().path()) {
        let mut bytes = fs::read(&file).unwrap();
        if file.extension().is_some_and(|ending| ending == "safetensors") {
            let header = kiln::source::safetensors::parse_header(&bytes, bytes.len() as u64).unwrap();
            if let Some(entry) = header.tensors.iter().find(|entry| entry.dtype.name() == "F8_E4M3") {
                bytes[(header.data_start + entry.begin) as usize + 5] = 0x7F;
            }
        }
        fs::write(place.path().join(file.file_name().unwrap()), bytes).unwrap();
    }
    let Err(error) = made(place.path(), None).map(|_| ()) else { panic!("a NaN was imported") };
    assert_eq!(error.kind(), ErrorKind::Input);
    assert!(error.to_string().contains("is not finite at element 5"), "{error}");
}

#[test]
fn a_matrix_without_columns_is_kept() {
    let place = TempDir::new().unwrap();
    let header = concat!(
        r#"{"a.weight":{"dtype":"F8_E4M3","shape":[128,0],"data_offsets":[0,0]},"#,
        r#""a.weight_scale_inv":{"dtype":"F32","shape":[1,0],"data_offsets":[0,0]},"#,
        r#""b.weight":{"dtype":"F8_E4M3","shape":[1,1],"data_offsets":[0,1]},"#,
        r#""b.weight_scale_inv":{"dtype":"F32","shape":[1,1],"data_offsets":[1,5]}}"#
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[0x38, 0, 0, 0x80, 0x3f]);
    fs::write(place.path().join("model.safetensors"), bytes).unwrap();
    let config = r#"{"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}"#;
    fs::write(place.path().join("config.json"), config).unwrap();
    let (made, _) = made(place.path(), None).unwrap();
    assert!(made.array("a.weight", "").is_empty());
    assert_eq!(made.array("b.weight", ""), [0x80, 0x3f]);
}
