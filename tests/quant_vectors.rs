//! The kernels against tensors that MLX's CPU backend produced, byte for byte, on every instruction set.
//!
//! `tests/vectors/` was written by mlx 0.32.4, the `mx_round_*` files by mlx 0.32.1, both on Linux x86-64.
//! Every file states in its header which rows and which scale rule it holds.

#![expect(clippy::unwrap_used, reason = "a test fails where it panics")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use kiln::quant::{
    BlockFp8, Float, Instructions, Options, Quantized, ScaleRule, Scheme, block_fp8_decode, dequantize_with, from_fp8,
    quantize, quantize_with, to_fp8,
};
use safetensors::{Dtype, SafeTensors};

const FLOATS: [(Float, &str); 3] = [(Float::Bf16, "bf16"), (Float::F16, "f16"), (Float::F32, "f32")];
const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];
const GROUPS: [u16; 3] = [32, 64, 128];

/// One vector file; counts how many of its tensors were compared with what the kernels give.
struct Vectors {
    name: String,
    tensors: BTreeMap<String, Tensor>,
    compared: Cell<usize>,
}

struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl Vectors {
    fn open(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(format!("{name}.safetensors"));
        let bytes = fs::read(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                let tensor = Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), data: view.data().to_vec() };
                (name.to_owned(), tensor)
            })
            .collect();
        Self { name: name.to_owned(), tensors, compared: Cell::new(0) }
    }

    fn get(&self, tensor: &str) -> &[u8] {
        &self.tensors[tensor].data
    }

    fn shape(&self, tensor: &str) -> &[usize] {
        &self.tensors[tensor].shape
    }

    /// The rows of a matrix that `wanted` names, one after the other.
    fn rows(&self, tensor: &str, wanted: impl Iterator<Item = usize>) -> Vec<u8> {
        let rows = self.shape(tensor)[0];
        let row = self.get(tensor).len() / rows;
        wanted
            .take_while(|&index| index < rows)
            .flat_map(|index| &self.get(tensor)[index * row..][..row])
            .copied()
            .collect()
    }

    fn compare(&self, tensor: &str, actual: &[u8]) {
        let expected = self.get(tensor);
        assert_eq!(actual.len(), expected.len(), "{}: length of `{tensor}`", self.name);
        let differing = actual.iter().zip(expected).position(|(actual, expected)| actual != expected);
        assert_eq!(differing, None, "{}: first differing byte of `{tensor}`", self.name);
        self.compared.set(self.compared.get() + 1);
    }

    /// Quantizes `input` and compares with `prefix.q`, `prefix.s` and, for affine, `prefix.b`.
    fn quantize(&self, prefix: &str, scheme: Scheme, float: Float, input: &[u8], options: &Options) {
        let (packed, scales, biases) = quantized(scheme, float, input, options);
        self.compare(&format!("{prefix}.q"), &packed);
        self.compare(&format!("{prefix}.s"), &scales);
        if scheme.has_biases() {
            self.compare(&format!("{prefix}.b"), &biases);
        }
    }

    /// Dequantizes `rows` of `prefix.q`, `.s`, `.b` to `float` and compares with `expected`.
    fn dequantize(
        &self,
        prefix: &str,
        expected: &str,
        scheme: Scheme,
        float: Float,
        rows: impl Iterator<Item = usize> + Clone,
        options: &Options,
    ) {
        let packed = self.rows(&format!("{prefix}.q"), rows.clone());
        let scales = self.rows(&format!("{prefix}.s"), rows.clone());
        let biases = if scheme.has_biases() { self.rows(&format!("{prefix}.b"), rows) } else { Vec::new() };
        let mut out = vec![0; packed.len() * 8 / scheme.bits() as usize * float.size()];
        dequantize_with(scheme, float, &packed, &scales, &biases, &mut out, options);
        self.compare(expected, &out);
    }
}

fn quantized(scheme: Scheme, float: Float, input: &[u8], options: &Options) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let elements = input.len() / float.size();
    let mut packed = vec![0xA5; scheme.packed_len(elements)];
    let mut scales = vec![0xA5; scheme.scales_len(elements, float)];
    let mut biases = vec![0xA5; scheme.biases_len(elements, float)];
    let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
    quantize_with(scheme, float, input, out, options).unwrap();
    (packed, scales, biases)
}

/// Runs `test` once per instruction set that the processor has, and adds up the compared tensors.
fn on_all_instructions(mut test: impl FnMut(Options) -> usize) -> usize {
    let counts: Vec<_> =
        Instructions::available().map(|instructions| test(Options { instructions, ..Options::default() })).collect();
    assert!(counts.iter().all(|&count| count == counts[0]));
    counts[0]
}

#[test]
fn affine() {
    let compared = on_all_instructions(|options| {
        let mut compared = 0;
        for (float, name) in FLOATS {
            let vectors = Vectors::open(&format!("affine_{name}"));
            for bits in BITS {
                for group in GROUPS {
                    let scheme = Scheme::Affine { bits, group };
                    let prefix = format!("b{bits}.g{group}");
                    vectors.quantize(&prefix, scheme, float, vectors.get("w"), &options);
                    // The rows that the file's header names.
                    let rows = [0, 8, 23, 35].into_iter();
                    vectors.dequantize(&prefix, &format!("{prefix}.dq"), scheme, float, rows, &options);
                }
            }
            compared += vectors.compared.get();
        }
        compared
    });
    assert_eq!(compared, 3 * 6 * 3 * 4);
}

#[test]
fn microscaling() {
    let compared = on_all_instructions(|options| {
        let mut compared = 0;
        for (float, name) in FLOATS {
            for (file, scale_rule) in [("mx", ScaleRule::Ceil), ("mx_round", ScaleRule::Round)] {
                let vectors = Vectors::open(&format!("{file}_{name}"));
                let options = Options { scale_rule, ..options };
                for (prefix, scheme) in [("mxfp4", Scheme::Mxfp4), ("mxfp8", Scheme::Mxfp8)] {
                    vectors.quantize(prefix, scheme, float, vectors.get("w"), &options);
                    if scale_rule == ScaleRule::Round {
                        continue;
                    }
                    for (float, name) in FLOATS {
                        let rows = (0..).step_by(3);
                        vectors.dequantize(prefix, &format!("{prefix}.dq_{name}"), scheme, float, rows, &options);
                    }
                }
                compared += vectors.compared.get();
            }
        }
        compared
    });
    assert_eq!(compared, 3 * 2 * (2 + 3 + 2));
}

#[test]
fn microscaling_scale_of_every_largest_magnitude() {
    let compared = on_all_instructions(|options| {
        let mut compared = 0;
        for (float, name) in [(Float::Bf16, "bf16"), (Float::F16, "f16")] {
            for (file, scale_rule) in [("mx_scale_table", ScaleRule::Ceil), ("mx_round_scale_table", ScaleRule::Round)]
            {
                let vectors = Vectors::open(&format!("{file}_{name}"));
                let options = Options { scale_rule, ..options };
                for (tensor, scheme) in [("mxfp4.s", Scheme::Mxfp4), ("mxfp8.s", Scheme::Mxfp8)] {
                    // Group i holds the bit pattern i and 31 zeros.
                    let groups = vectors.get(tensor).len();
                    assert_eq!(groups, if float == Float::Bf16 { 0x7F80 } else { 0x7C00 });
                    let mut input = vec![0; groups * 64];
                    for (bits, group) in (0_u16..).zip(input.chunks_exact_mut(64)) {
                        group[..2].copy_from_slice(&bits.to_le_bytes());
                    }
                    vectors.compare(tensor, &quantized(scheme, float, &input, &options).1);
                }
                compared += vectors.compared.get();
            }
        }
        compared
    });
    assert_eq!(compared, 2 * 2 * 2);
}

#[test]
fn nvfp4() {
    let compared = on_all_instructions(|options| {
        let mut compared = 0;
        for (float, name) in FLOATS {
            let vectors = Vectors::open(&format!("nvfp4_{name}"));
            for tag in ["nog", "g1", "g0.37", "g2688", "g1e-5"] {
                let global = vectors.tensors.get(&format!("{tag}.global"));
                let global_scale = global.map(|global| f32::from_le_bytes(global.data.as_slice().try_into().unwrap()));
                assert_eq!(global_scale.is_none(), tag == "nog");
                let options = Options { global_scale, ..options };
                vectors.quantize(tag, Scheme::Nvfp4, float, vectors.get("w"), &options);
                if !["nog", "g0.37"].contains(&tag) {
                    continue;
                }
                for (float, name) in FLOATS {
                    // With a global scale MLX's CPU backend gives binary32 whatever was asked for.
                    let float = if global_scale.is_some() { Float::F32 } else { float };
                    let rows = (0..).step_by(3);
                    vectors.dequantize(tag, &format!("{tag}.dq_{name}"), Scheme::Nvfp4, float, rows, &options);
                }
            }
            compared += vectors.compared.get();
        }
        compared
    });
    assert_eq!(compared, 3 * (5 * 2 + 2 * 3));
}

#[test]
fn experts_are_just_more_rows() {
    let compared = on_all_instructions(|options| {
        let vectors = Vectors::open("shape3d");
        for (float, name) in FLOATS {
            for (tag, scheme) in [
                ("affine.b4.g64", Scheme::INT4),
                ("affine.b3.g32", Scheme::Affine { bits: 3, group: 32 }),
                ("mxfp4", Scheme::Mxfp4),
                ("mxfp8", Scheme::Mxfp8),
                ("nvfp4", Scheme::Nvfp4),
            ] {
                let input = vectors.get(&format!("{name}.w"));
                vectors.quantize(&format!("{name}.{tag}"), scheme, float, input, &options);
            }
        }
        vectors.compared.get()
    });
    assert_eq!(compared, 3 * (3 + 3 + 2 + 2 + 2));
}

#[test]
fn fp8_conversions() {
    let vectors = Vectors::open("fp8");
    assert_eq!(vectors.get("bytes"), (0..=255).collect::<Vec<u8>>());
    let decoded: Vec<f32> = vectors.get("bytes").iter().map(|&code| from_fp8(code)).collect();
    let bits = |value: &f32| value.to_bits();
    vectors.compare("from_fp8.f32", &decoded.iter().flat_map(|value| bits(value).to_le_bytes()).collect::<Vec<_>>());
    // The narrow types hold every value exactly; 1 * value in their own arithmetic shows it.
    for (float, name) in [(Float::Bf16, "from_fp8.bf16"), (Float::F16, "from_fp8.f16")] {
        let mut out = vec![0; 512];
        dequantize_with(Scheme::Mxfp8, float, vectors.get("bytes"), &[127; 8], &[], &mut out, &Options::default());
        vectors.compare(name, &out);
    }

    let encoded = |values: &mut dyn Iterator<Item = f32>| values.map(to_fp8).collect::<Vec<_>>();
    let mut every_bf16 = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16));
    vectors.compare("to_fp8.all_bf16", &encoded(&mut every_bf16));
    let every_f16: Vec<u8> = (0..=u16::MAX).flat_map(|bits| bits.to_le_bytes()).collect();
    let mut every_f16 = every_f16.chunks_exact(2).map(widened_f16);
    vectors.compare("to_fp8.all_f16", &encoded(&mut every_f16));
    let (input, _) = vectors.get("to_fp8.f32_in").as_chunks::<4>();
    vectors.compare("to_fp8.f32_out", &encoded(&mut input.iter().map(|&bytes| f32::from_le_bytes(bytes))));
    assert_eq!(vectors.compared.get(), 6);
}

/// A binary16 as binary32, computed in another way than the library does.
fn widened_f16(bytes: &[u8]) -> f32 {
    let bits = u16::from_le_bytes([bytes[0], bytes[1]]);
    let sign = if bits & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(bits >> 10 & 31), f32::from(bits & 0x3FF));
    let magnitude = match exponent {
        0 => mantissa * 2.0_f32.powi(-24),
        31 => return if mantissa == 0.0 { sign * f32::INFINITY } else { f32::NAN.copysign(sign) },
        _ => (1024.0 + mantissa) * 2.0_f32.powi(exponent - 25),
    };
    sign * magnitude
}

#[test]
fn block_fp8() {
    let vectors = Vectors::open("block_fp8");
    for case in ["a", "b", "c", "d", "e_nan"] {
        let codes = vectors.get(&format!("{case}.w8"));
        let shape = vectors.shape(&format!("{case}.w8"));
        let [rows, columns] = shape[shape.len() - 2..] else { unreachable!() };
        for (scale, name) in FLOATS {
            let shape = BlockFp8 { rows, columns, block: BlockFp8::BLOCK, scale };
            let scales = vectors.get(&format!("{case}.scale_{name}"));
            let mut whole = vec![0; codes.len() * 2];
            block_fp8_decode(shape, 0, codes, scales, &mut whole);
            vectors.compare(&format!("{case}.out_{name}"), &whole);
            let mut by_rows = Vec::new();
            for (index, codes) in codes.chunks(3 * columns).enumerate() {
                let mut part = vec![0; codes.len() * 2];
                block_fp8_decode(shape, 3 * index, codes, scales, &mut part);
                by_rows.extend(part);
            }
            assert_eq!(by_rows, whole);
        }
        if vectors.tensors.contains_key(&format!("{case}.mxfp8_f32.q")) {
            let input = vectors.get(&format!("{case}.out_f32"));
            let prefix = format!("{case}.mxfp8_f32");
            vectors.quantize(&prefix, Scheme::Mxfp8, Float::Bf16, input, &Options::default());
        }
    }
    assert_eq!(vectors.compared.get(), 5 * 3 + 2 * 2);
}

#[test]
fn a_weight_that_is_not_finite_is_reported() {
    let mut reported = 0;
    for (float, name) in FLOATS {
        let vectors = Vectors::open(&format!("nonfinite_{name}"));
        let row = 64 * float.size();
        for input in vectors.get("w").chunks_exact(row) {
            let first = input.chunks_exact(float.size()).position(|element| is_not_finite(float, element)).unwrap();
            for scheme in Scheme::all().filter(|scheme| scheme.group_size() <= 64) {
                for instructions in Instructions::available() {
                    let options = Options { instructions, ..Options::default() };
                    // Behind finite groups, the index still counts from the start of the input.
                    let input = [&vec![0; row][..], input].concat();
                    let mut packed = vec![0; scheme.packed_len(128)];
                    let mut scales = vec![0; scheme.scales_len(128, float)];
                    let mut biases = vec![0; scheme.biases_len(128, float)];
                    let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
                    let error = quantize_with(scheme, float, &input, out, &options).unwrap_err();
                    assert_eq!(error.index, 64 + first, "{scheme}, {name}");
                    assert_eq!(error.to_string(), format!("Element `{}` is not finite", 64 + first));
                }
                reported += 1;
            }
        }
    }
    assert_eq!(reported, 3 * 7 * (6 * 2 + 3));
}

fn is_not_finite(float: Float, element: &[u8]) -> bool {
    match (float, element) {
        (Float::Bf16, &[low, high]) => u16::from_le_bytes([low, high]) & 0x7FFF >= 0x7F80,
        (Float::F16, &[low, high]) => u16::from_le_bytes([low, high]) & 0x7FFF >= 0x7C00,
        _ => !f32::from_le_bytes(element.try_into().unwrap()).is_finite(),
    }
}

#[test]
fn unaligned_slices_give_the_same_bytes() {
    let vectors = Vectors::open("affine_f32");
    assert_eq!(vectors.tensors["w"].dtype, Dtype::F32);
    let input = [&[0][..], vectors.get("w")].concat();
    let elements = vectors.get("w").len() / 4;
    let mut packed = vec![0; 1 + Scheme::INT4.packed_len(elements)];
    let mut scales = vec![0; 1 + Scheme::INT4.scales_len(elements, Float::F32)];
    let mut biases = vec![0; 1 + Scheme::INT4.biases_len(elements, Float::F32)];
    let out = Quantized { packed: &mut packed[1..], scales: &mut scales[1..], biases: &mut biases[1..] };
    quantize(Scheme::INT4, Float::F32, &input[1..], out).unwrap();
    vectors.compare("b4.g64.q", &packed[1..]);
    vectors.compare("b4.g64.s", &scales[1..]);
    vectors.compare("b4.g64.b", &biases[1..]);
}
