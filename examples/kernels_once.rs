//! Runs every kernel once, for `ci/instructions.py` to count the instructions of each: one call of `counted` per line
//! that is printed, after one that does nothing.
//!
//! `kernels_once INSTRUCTIONS ELEMENTS`

#![expect(clippy::print_stdout, reason = "the names go to the program that counts")]

use std::error::Error;
use std::hint::black_box;

use kiln::quant::{
    BlockFp8, Float, Instructions, Options, Quantized, Scheme, block_fp8_decode, dequantize_with, quantize_with,
};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, set, elements] = arguments.as_slice() else {
        return Err("usage: kernels_once INSTRUCTIONS ELEMENTS".into());
    };
    let elements: usize = elements.parse()?;
    let instructions = Instructions::available().find(|available| available.to_string() == *set);
    let instructions = instructions.ok_or_else(|| format!("this processor has no `{set}`"))?;
    instructions.choose();
    let options = Options::default();
    counted(&mut || ());
    for scheme in Scheme::all() {
        for (name, float) in [("bf16", Float::Bf16), ("f16", Float::F16), ("f32", Float::F32)] {
            let weights = weights(float, elements);
            let mut packed = vec![0; scheme.packed_len(elements)];
            let mut scales = vec![0; scheme.scales_len(elements, float)];
            let mut biases = vec![0; scheme.biases_len(elements, float)];
            let mut result = Ok(());
            counted(&mut || {
                let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
                result = quantize_with(scheme, float, black_box(&weights), out, &options);
            });
            result?;
            println!("quantize {scheme} {name}");
            let mut restored = vec![0; weights.len()];
            counted(&mut || {
                dequantize_with(scheme, float, black_box(&packed), &scales, &biases, &mut restored, &options);
            });
            println!("dequantize {scheme} {name}");
        }
    }
    let shape = BlockFp8 { rows: elements / 1024, columns: 1024, block: BlockFp8::BLOCK, scale: Float::F32 };
    let codes: Vec<u8> = (0..elements).map(|element| (element * 31) as u8 & 0xBF).collect();
    let scales = vec![0x3C; shape.scales_len()];
    let mut decoded = vec![0; elements * 2];
    counted(&mut || block_fp8_decode(shape, 0, black_box(&codes), &scales, &mut decoded));
    println!("decode block-fp8 bf16");
    Ok(())
}

#[inline(never)]
fn counted(run: &mut dyn FnMut()) {
    run();
    // Otherwise the call would be a jump, and the function end before it.
    black_box(run);
}

/// Finite weights below 0.06, from a fixed linear congruential sequence.
fn weights(float: Float, elements: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut weight = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / 16_777_216.0 - 0.5) * 0.12
    };
    // The upper half of a binary32 is a bfloat16, and of a number in this range a binary16 too.
    match float {
        Float::Bf16 | Float::F16 => {
            (0..elements).flat_map(|_| ((weight().to_bits() >> 16) as u16 & 0xBFFF).to_le_bytes()).collect()
        }
        Float::F32 => (0..elements).flat_map(|_| weight().to_le_bytes()).collect(),
    }
}
