//! `nvfp4`: FP4 codes with an E4M3 scale per 16 of them, and optionally one binary32 scale for all.
//!
//! The global scale widens the range of the group scales; 1 / 2688, the product of the largest code
//! and the largest group scale, is its unit.

use std::marker::PhantomData;

use super::float::{self, Element, INFINITY, largest_magnitude, multiply};
use super::instructions::Kernel;
use super::pack::{pack, unpack};
use super::{NonFinite, Quantized, fp4, fp8};

/// Elements of a group.
const GROUP: usize = 16;

/// A group in the units of the bit stream.
const EIGHTS: usize = GROUP / 8;

/// Groups whose scales are computed together.
const TILE: usize = 16;

/// The largest FP4 magnitude.
const LARGEST_CODE: f32 = 6.0;

/// The largest value that codes and group scales can express: 448 * 6.
const LARGEST_VALUE: f32 = 2688.0;

pub(super) struct Quantize<'a, E> {
    global_scale: Option<f32>,
    input: &'a [u8],
    out: Quantized<'a>,
    element: PhantomData<E>,
}

impl<'a, E> Quantize<'a, E> {
    pub(super) fn new(global_scale: Option<f32>, input: &'a [u8], out: Quantized<'a>) -> Self {
        Self { global_scale, input, out, element: PhantomData }
    }
}

impl<E: Element> Kernel for Quantize<'_, E> {
    type Output = Result<(), NonFinite>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        let encoding_scale = self.global_scale.map_or(1.0, |global| LARGEST_VALUE / global);
        let (packed, _) = self.out.packed.as_chunks_mut::<4>().0.as_chunks_mut::<EIGHTS>();
        let tiles = self.input.chunks(TILE * GROUP * E::SIZE).zip(packed.chunks_mut(TILE));
        for (index, ((input, packed), scales)) in tiles.zip(self.out.scales.chunks_mut(TILE)).enumerate() {
            let mut largest = [0.0; TILE];
            for (largest, group) in largest.iter_mut().zip(input.chunks_exact(GROUP * E::SIZE)) {
                *largest = f32::from_bits(largest_magnitude::<GROUP>(&E::load(group)));
            }
            if largest.iter().any(|largest| !largest.is_finite()) {
                let within = float::first_non_finite::<E>(input).unwrap_or_default();
                return Err(NonFinite { index: index * TILE * GROUP + within });
            }

            let codes = largest.map(|largest| fp8::to_fp8(E::round(largest / LARGEST_CODE) * encoding_scale));
            let divisors = codes.map(fp8::from_fp8);
            scales.copy_from_slice(&codes[..scales.len()]);

            for (group, input) in input.chunks_exact(GROUP * E::SIZE).enumerate() {
                let scaled = |value: f32| E::round(value / divisors[group]) * encoding_scale;
                let values: [f32; GROUP] = E::load(input);
                // Beyond this limit (or with a scale of zero) the distances to the codes are rounded
                // themselves, and decide differently.
                let mut codes = [[0; 8]; EIGHTS];
                if scaled(largest[group]).abs() < fp4::EXACT {
                    for (code, value) in codes.as_flattened_mut().iter_mut().zip(values) {
                        *code = fp4::encode(scaled(value));
                    }
                } else {
                    for (code, value) in codes.as_flattened_mut().iter_mut().zip(values) {
                        *code = fp4::encode_by_distance(scaled(value));
                    }
                }
                packed[group] = pack(codes);
            }
        }
        Ok(())
    }
}

pub(super) struct Dequantize<'a, E> {
    global_scale: Option<f32>,
    packed: &'a [u8],
    scales: &'a [u8],
    out: &'a mut [u8],
    element: PhantomData<E>,
}

impl<'a, E: Element> Dequantize<'a, E> {
    pub(super) fn new(global_scale: Option<f32>, packed: &'a [u8], scales: &'a [u8], out: &'a mut [u8]) -> Self {
        let only_f32 = global_scale.is_none() || E::SIZE == 4;
        assert!(only_f32, "`nvfp4` with a global scale dequantizes to binary32 only");
        Self { global_scale, packed, scales, out, element: PhantomData }
    }
}

impl<E: Element> Kernel for Dequantize<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (packed, _) = self.packed.as_chunks::<4>().0.as_chunks::<EIGHTS>();
        let groups = packed.iter().zip(self.scales).zip(self.out.chunks_exact_mut(GROUP * E::SIZE));
        for ((packed, &scale), out) in groups {
            let scale = fp8::from_fp8(scale);
            let scale = self.global_scale.map_or(scale, |global| multiply(scale, global / LARGEST_VALUE));
            let codes = unpack(*packed);
            let mut values = [0.0; GROUP];
            for (value, code) in values.iter_mut().zip(codes.as_flattened()) {
                *value = multiply(fp4::decode(*code), scale);
            }
            E::store_all(values, out);
        }
    }
}
