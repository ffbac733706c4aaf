//! Throughput of the kernels on one thread, in bytes of bfloat16: read when quantizing, written when
//! dequantizing. `cargo bench --bench kernels` takes about a minute.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use kiln::quant::{
    BlockFp8, Float, Instructions, Options, Quantized, Scheme, block_fp8_decode, dequantize_with, quantize_with,
};

/// Fits the second-level cache together with what comes out: the kernels are measured, not the memory.
const ELEMENTS: usize = 256 * 1024 / 2;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let weights = weights();
    for (name, options) in instruction_sets() {
        let mut group = small(&mut criterion, format!("quantize/{name}"));
        for scheme in schemes() {
            let mut packed = vec![0; scheme.packed_len(ELEMENTS)];
            let mut scales = vec![0; scheme.scales_len(ELEMENTS, Float::Bf16)];
            let mut biases = vec![0; scheme.biases_len(ELEMENTS, Float::Bf16)];
            group.bench_function(scheme.to_string(), |bencher| {
                bencher.iter(|| {
                    let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
                    quantize_with(scheme, Float::Bf16, black_box(&weights), out, &options)
                });
            });
        }
        group.finish();

        let mut group = small(&mut criterion, format!("dequantize/{name}"));
        for scheme in schemes() {
            let mut packed = vec![0; scheme.packed_len(ELEMENTS)];
            let mut scales = vec![0; scheme.scales_len(ELEMENTS, Float::Bf16)];
            let mut biases = vec![0; scheme.biases_len(ELEMENTS, Float::Bf16)];
            let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
            quantize_with(scheme, Float::Bf16, &weights, out, &options).expect("the weights are finite");
            let mut restored = vec![0; weights.len()];
            group.bench_function(scheme.to_string(), |bencher| {
                bencher.iter(|| {
                    let packed = black_box(&packed);
                    dequantize_with(scheme, Float::Bf16, packed, &scales, &biases, &mut restored, &options);
                });
            });
        }
        group.finish();
    }

    let shape = BlockFp8 { rows: ELEMENTS / 1024, columns: 1024, block: BlockFp8::BLOCK, scale: Float::F32 };
    let codes: Vec<u8> = weights.iter().map(|byte| byte & 0xBF).take(ELEMENTS).collect();
    let scales = vec![0x3C; shape.scales_len()];
    let mut decoded = vec![0; ELEMENTS * 2];
    let mut group = small(&mut criterion, "decode".to_owned());
    group.bench_function("block-fp8", |bencher| {
        bencher.iter(|| block_fp8_decode(shape, 0, black_box(&codes), &scales, &mut decoded));
    });
    group.finish();
}

fn schemes() -> [Scheme; 10] {
    [
        Scheme::Affine { bits: 2, group: 64 },
        Scheme::Affine { bits: 3, group: 64 },
        Scheme::INT4,
        Scheme::Affine { bits: 4, group: 32 },
        Scheme::Affine { bits: 5, group: 64 },
        Scheme::Affine { bits: 6, group: 64 },
        Scheme::INT8,
        Scheme::Mxfp4,
        Scheme::Mxfp8,
        Scheme::Nvfp4,
    ]
}

/// Every set that this processor has, with its name.
fn instruction_sets() -> impl Iterator<Item = (String, Options)> {
    Instructions::available()
        .map(|instructions| (instructions.to_string(), Options { instructions, ..Options::default() }))
}

fn small(criterion: &mut Criterion, name: String) -> BenchmarkGroup<'_, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600));
    group.throughput(Throughput::Bytes(ELEMENTS as u64 * 2));
    group
}

/// Finite bfloat16 weights around ±0.02, from a fixed linear congruential sequence.
fn weights() -> Vec<u8> {
    let mut state = 1_u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    let weight = |_| {
        let weight = (uniform() + uniform() + uniform() + uniform()) * 0.03;
        ((weight.to_bits() >> 16) as u16).to_le_bytes()
    };
    (0..ELEMENTS).flat_map(weight).collect()
}
