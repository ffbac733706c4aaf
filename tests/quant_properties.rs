//! What holds for the kernels whatever the weights are.

use kiln::quant::{Float, Instructions, NonFinite, Options, Quantized, Scheme, dequantize, quantize_with};
use proptest::collection::vec;
use proptest::prelude::*;

/// Codes, scales and biases.
type Parts = [Vec<u8>; 3];

fn quantized(scheme: Scheme, float: Float, input: &[u8], instructions: Instructions) -> Result<Parts, NonFinite> {
    let elements = input.len() / float.size();
    let mut packed = vec![0; scheme.packed_len(elements)];
    let mut scales = vec![0; scheme.scales_len(elements, float)];
    let mut biases = vec![0; scheme.biases_len(elements, float)];
    let out = Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases };
    quantize_with(scheme, float, input, out, &Options { instructions, ..Options::default() })?;
    Ok([packed, scales, biases])
}

fn scheme() -> impl Strategy<Value = Scheme> {
    prop::sample::select(Scheme::all().collect::<Vec<_>>())
}

fn float() -> impl Strategy<Value = Float> {
    prop::sample::select(vec![Float::Bf16, Float::F16, Float::F32])
}

fn instructions() -> impl Strategy<Value = Instructions> {
    prop::sample::select(Instructions::available().collect::<Vec<_>>())
}

/// The bits of infinity.
fn infinity(float: Float) -> u32 {
    match float {
        Float::Bf16 => 0x7F80,
        Float::F16 => 0x7C00,
        Float::F32 => 0x7F80_0000,
    }
}

/// Any finite elements: the patterns are folded into the finite range.
fn finite(float: Float, patterns: &[u32]) -> Vec<u8> {
    let sign = 1 << (float.size() * 8 - 1);
    let element = |pattern: &u32| ((pattern % infinity(float)) | pattern & sign).to_le_bytes();
    patterns.iter().flat_map(|pattern| element(pattern)[..float.size()].to_vec()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_group_depends_on_nothing_but_itself(
        scheme in scheme(),
        float in float(),
        instructions in instructions(),
        patterns in vec(any::<u32>(), 128 * 5),
        groups in 0_usize..=5,
    ) {
        let input = finite(float, &patterns);
        let (first, second) = input.split_at(groups * 128 * float.size());
        let first = quantized(scheme, float, first, instructions)?;
        let second = quantized(scheme, float, second, Instructions::PORTABLE)?;
        let whole = quantized(scheme, float, &input, instructions)?;
        for (whole, (first, second)) in whole.iter().zip(first.iter().zip(&second)) {
            prop_assert_eq!(whole, &[first.as_slice(), second].concat());
        }
    }

    #[test]
    fn only_codes_that_stand_for_numbers_come_out(
        float in float(),
        instructions in instructions(),
        patterns in vec(any::<u32>(), 96),
    ) {
        let input = finite(float, &patterns);
        for scheme in [Scheme::Mxfp4, Scheme::Nvfp4] {
            let [packed, _, _] = quantized(scheme, float, &input, instructions)?;
            // Negative zero.
            prop_assert!(packed.iter().all(|byte| byte & 0xF != 8 && byte >> 4 != 8));
        }
        let [packed, _, _] = quantized(Scheme::Mxfp8, float, &input, instructions)?;
        prop_assert!(packed.iter().all(|code| code & 0x7F != 0x7F));
        let [_, scales, _] = quantized(Scheme::Nvfp4, float, &input, instructions)?;
        prop_assert!(scales.iter().all(|scale| *scale <= 0x7E));
    }

    #[test]
    fn a_power_of_two_moves_microscaling_scales_and_nothing_else(
        instructions in instructions(),
        patterns in vec(any::<u32>(), 64),
        shift in -40_i32..40,
    ) {
        let scaled = |factor: f32| -> Vec<u8> {
            let element = |pattern: &u32| (*pattern as i32 as f32 * 2.0_f32.powi(-31) * factor).to_le_bytes();
            patterns.iter().flat_map(element).collect()
        };
        for scheme in [Scheme::Mxfp4, Scheme::Mxfp8] {
            let [codes, scales, _] = quantized(scheme, Float::F32, &scaled(1.0), instructions)?;
            let [moved_codes, moved_scales, _] =
                quantized(scheme, Float::F32, &scaled(2.0_f32.powi(shift)), instructions)?;
            prop_assert_eq!(codes, moved_codes);
            let moved: Vec<_> = scales.iter().map(|&scale| (i32::from(scale) + shift) as u8).collect();
            prop_assert_eq!(moved, moved_scales);
        }
    }

    #[test]
    fn microscaling_restores_every_element_within_half_a_step_of_the_largest(
        instructions in instructions(),
        patterns in vec(any::<u32>(), 64),
    ) {
        let values: Vec<f32> = patterns.iter().map(|&pattern| pattern as i32 as f32 * 2.0_f32.powi(-31)).collect();
        let input: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        // The widest gap between codes, 2 of 6 and 32 of 448, in units of the power of two that is the scale.
        for (scheme, half_a_step) in [(Scheme::Mxfp4, 1.0), (Scheme::Mxfp8, 16.0)] {
            let [codes, scales, biases] = quantized(scheme, Float::F32, &input, instructions)?;
            let mut restored = vec![0; input.len()];
            dequantize(scheme, Float::F32, &codes, &scales, &biases, &mut restored);
            let (restored, _) = restored.as_chunks::<4>();
            for (index, (value, restored)) in values.iter().zip(restored).enumerate() {
                let power = 2.0_f32.powi(i32::from(scales[index / 32]) - 127);
                let error = (value - f32::from_le_bytes(*restored)).abs();
                prop_assert!(error <= half_a_step * power, "{} of {}", error, value);
            }
        }
    }

    #[test]
    fn the_first_weight_that_is_not_finite_is_reported(
        scheme in scheme(),
        float in float(),
        instructions in instructions(),
        patterns in vec(any::<u32>(), 128 * 3),
        positions in vec(0_usize..128 * 3, 1..4),
        payload in any::<u32>(),
    ) {
        let mut input = finite(float, &patterns);
        for position in &positions {
            let sign = 1 << (float.size() * 8 - 1);
            let bits = infinity(float) | payload & !sign & (sign - 1) | payload & sign;
            input[position * float.size()..][..float.size()].copy_from_slice(&bits.to_le_bytes()[..float.size()]);
        }
        let error = quantized(scheme, float, &input, instructions).unwrap_err();
        prop_assert_eq!(Some(error.index), positions.into_iter().min());
    }
}
