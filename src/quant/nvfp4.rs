//! `nvfp4`: FP4 codes with an E4M3 scale per 16 of them, and optionally one binary32 scale for all.
//!
//! With a global scale the group scales are counted in units of it, divided by 2688, the largest value that
//! a code and a group scale can express.

use std::marker::PhantomData;

use super::float::{Element, INFINITY, largest_magnitude, multiply};
use super::instructions::Kernel;
use super::pack::{pack, unpack};
use super::{NonFinite, Quantized, TILE, fp4, fp8};

/// Elements of a group.
const GROUP: usize = 16;

/// A group in the units of the bit stream.
const EIGHTS: usize = GROUP / 8;

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
        let (packed, _) = self.out.packed.as_chunks_mut::<4>();
        let tiles = self.input.chunks(TILE * GROUP * E::SIZE).zip(packed.chunks_mut(TILE * EIGHTS));
        for (index, ((input, packed), scales)) in tiles.zip(self.out.scales.chunks_mut(TILE)).enumerate() {
            let mut largest = [0.0; TILE];
            for (largest, group) in largest.iter_mut().zip(input.chunks_exact(GROUP * E::SIZE)) {
                let magnitude = largest_magnitude::<GROUP>(&E::load(group));
                if magnitude >= INFINITY {
                    return Err(NonFinite::first_in::<E>(input, index * TILE * GROUP));
                }
                *largest = f32::from_bits(magnitude);
            }

            let mut divisors = [0.0; TILE];
            let mut scale_codes = [0; TILE];
            for ((code, divisor), largest) in scale_codes.iter_mut().zip(&mut divisors).zip(largest) {
                *code = fp8::to_fp8(E::round(largest / LARGEST_CODE) * encoding_scale);
                *divisor = fp8::from_fp8(*code);
            }
            scales.copy_from_slice(&scale_codes[..scales.len()]);

            let mut codes = [[0; 8]; TILE * EIGHTS];
            let groups = input.chunks_exact(GROUP * E::SIZE).zip(codes.as_chunks_mut::<EIGHTS>().0);
            for ((input, codes), (largest, divisor)) in groups.zip(largest.into_iter().zip(divisors)) {
                let scaled = |value: f32| E::round(value / divisor) * encoding_scale;
                let values: [f32; GROUP] = E::load(input);
                let codes = codes.as_flattened_mut().iter_mut().zip(values);
                if scaled(largest).abs() < fp4::EXACT {
                    codes.for_each(|(code, value)| *code = fp4::encode(scaled(value)));
                } else {
                    // A large global scale, or a group scale that rounded to zero.
                    codes.for_each(|(code, value)| *code = fp4::encode_by_distance(scaled(value)));
                }
            }
            packed.copy_from_slice(&pack(codes)[..packed.len()]);
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

/// Decodes codes and group scales that a third scale multiplies.
pub(super) struct DequantizeTimes<'a, E> {
    pub(super) factor: f32,
    pub(super) packed: &'a [u8],
    pub(super) scales: &'a [u8],
    pub(super) out: &'a mut [u8],
    pub(super) element: PhantomData<E>,
}

impl<E: Element> Kernel for DequantizeTimes<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (packed, _) = self.packed.as_chunks::<4>().0.as_chunks::<EIGHTS>();
        let groups = packed.iter().zip(self.scales).zip(self.out.chunks_exact_mut(GROUP * E::SIZE));
        for ((packed, &scale), out) in groups {
            let scale = fp8::from_fp8(scale);
            let codes = unpack(*packed);
            let mut values = [0.0; GROUP];
            for (value, code) in values.iter_mut().zip(codes.as_flattened()) {
                // The first product has at most six bits: it is exact.
                *value = multiply(multiply(fp4::decode(*code), scale), self.factor);
            }
            E::store_all(values, out);
        }
    }
}
