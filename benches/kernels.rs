//! Throughput of the kernels on one thread, in GB/s of bfloat16: two bytes for each element that is read when
//! quantizing and written when dequantizing, whatever its type. `cargo bench --bench kernels` takes a minute;
//! further arguments name the kernels, instruction sets and types to be measured, all of them by default.
//!
//! The figure is that of the fastest of many short repetitions: what else runs on a machine only ever adds time.

#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use kiln::quant::{
    BlockFp8, Float, Instructions, NonFinite, Options, Quantized, Scheme, block_fp8_decode, dequantize_with,
    quantize_with,
};

/// Fits the second-level cache together with what comes out: the kernels are measured, not the memory.
const ELEMENTS: usize = 256 * 1024 / 2;

/// How long one figure is measured.
const TIME: Duration = Duration::from_millis(150);

const FLOATS: [(&str, Float); 3] = [("bf16", Float::Bf16), ("f16", Float::F16), ("f32", Float::F32)];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let is_wanted = |row: &[&str]| wanted.is_empty() || wanted.iter().all(|word| row.contains(&word.as_str()));
    println!("{:<10} {:<12} {:<9} {:>6} {:>6}", "kernel", "scheme", "set", "type", "GB/s");
    for instructions in Instructions::available() {
        let set = instructions.to_string();
        let options = Options { instructions, ..Options::default() };
        let measure = |row: [&str; 3], run: &mut dyn FnMut()| {
            let [kernel, scheme, float] = row;
            if is_wanted(&[kernel, scheme, float, &set]) {
                println!("{kernel:<10} {scheme:<12} {set:<9} {float:>6} {:>6.2}", throughput(run));
            }
        };
        for scheme in schemes() {
            for (name, float) in FLOATS {
                let mut model = Model::new(scheme, float);
                let row = [&scheme.to_string(), name];
                model.quantize(&options).expect("the weights are finite");
                measure(["quantize", row[0], row[1]], &mut || {
                    let _ = black_box(&mut model).quantize(&options);
                });
                measure(["dequantize", row[0], row[1]], &mut || black_box(&mut model).dequantize(&options));
            }
        }
    }
    if is_wanted(&["decode", "block-fp8"]) {
        let shape = BlockFp8 { rows: ELEMENTS / 1024, columns: 1024, block: BlockFp8::BLOCK, scale: Float::F32 };
        let codes: Vec<u8> = (0..ELEMENTS).map(|element| (element * 31) as u8 & 0xBF).collect();
        let scales = vec![0x3C; shape.scales_len()];
        let mut decoded = vec![0; ELEMENTS * 2];
        let speed = throughput(&mut || block_fp8_decode(shape, 0, black_box(&codes), &scales, &mut decoded));
        let set = Instructions::default().to_string();
        println!("{:<10} {:<12} {set:<9} {:>6} {speed:>6.2}", "decode", "block-fp8", "bf16");
    }
}

fn schemes() -> [Scheme; 10] {
    [
        Scheme::INT4,
        Scheme::INT8,
        Scheme::Mxfp8,
        Scheme::Mxfp4,
        Scheme::Nvfp4,
        Scheme::Affine { bits: 4, group: 32 },
        Scheme::Affine { bits: 2, group: 64 },
        Scheme::Affine { bits: 3, group: 64 },
        Scheme::Affine { bits: 5, group: 64 },
        Scheme::Affine { bits: 6, group: 64 },
    ]
}

/// GB/s of bfloat16 when `run` takes [`ELEMENTS`], from its fastest repetition.
fn throughput(run: &mut dyn FnMut()) -> f64 {
    let started = Instant::now();
    let mut least = Duration::MAX;
    while started.elapsed() < TIME {
        let repetition = Instant::now();
        run();
        least = least.min(repetition.elapsed());
    }
    2.0 * ELEMENTS as f64 / least.as_secs_f64() / 1e9
}

struct Model {
    scheme: Scheme,
    float: Float,
    weights: Vec<u8>,
    packed: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
    restored: Vec<u8>,
}

impl Model {
    fn new(scheme: Scheme, float: Float) -> Self {
        Self {
            scheme,
            float,
            weights: weights(float),
            packed: vec![0; scheme.packed_len(ELEMENTS)],
            scales: vec![0; scheme.scales_len(ELEMENTS, float)],
            biases: vec![0; scheme.biases_len(ELEMENTS, float)],
            restored: vec![0; ELEMENTS * float.size()],
        }
    }

    fn quantize(&mut self, options: &Options) -> Result<(), NonFinite> {
        let Self { scheme, float, weights, packed, scales, biases, .. } = self;
        quantize_with(*scheme, *float, weights, Quantized { packed, scales, biases }, options)
    }

    fn dequantize(&mut self, options: &Options) {
        let Self { scheme, float, packed, scales, biases, restored, .. } = self;
        dequantize_with(*scheme, *float, packed, scales, biases, restored, options);
    }
}

/// Finite weights around ±0.02, from a fixed linear congruential sequence.
fn weights(float: Float) -> Vec<u8> {
    let mut state = 1_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let mut out = Vec::with_capacity(ELEMENTS * float.size());
    for _ in 0..ELEMENTS {
        let bits = ((uniform() + uniform() + uniform() + uniform()) * 0.03).to_bits();
        match float {
            Float::Bf16 => out.extend((bits >> 16).to_le_bytes()[..2].iter()),
            // Cut off, not rounded: any binary16 will do. Below the normal ones there is zero.
            Float::F16 => {
                let magnitude = ((bits & 0x7FFF_FFFF) >> 13).saturating_sub(112 << 10);
                out.extend(((bits >> 16 & 0x8000) | magnitude).to_le_bytes()[..2].iter());
            }
            Float::F32 => out.extend(bits.to_le_bytes()),
        }
    }
    out
}
