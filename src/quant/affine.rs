//! The affine schemes: a code is the distance from the group's bias in units of its scale.
//!
//! The bias is the edge of the group, minimum or maximum, that lies farther from zero; a scale counts
//! away from it, so it is negative when that is the maximum. Then that edge, and zero, are exact.

use std::marker::PhantomData;

use super::float::{Element, multiply};
use super::instructions::Kernel;
use super::pack::{pack, unpack};
use super::{NonFinite, Quantized, TILE, float};

/// Elements that are computed together. Every group size is a multiple.
const BLOCK: usize = 32;

/// A block in the units of the bit stream.
const EIGHTS: usize = BLOCK / 8;

/// The smallest scale: binary32 nearest to 1e-7.
const SMALLEST_SCALE: f32 = f32::from_bits(0x33D6_BF95);

pub(super) struct Quantize<'a, E> {
    bits: u8,
    group_size: usize,
    input: &'a [u8],
    out: Quantized<'a>,
    element: PhantomData<E>,
}

impl<'a, E> Quantize<'a, E> {
    pub(super) fn new(bits: u8, group: u16, input: &'a [u8], out: Quantized<'a>) -> Self {
        Self { bits, group_size: usize::from(group), input, out, element: PhantomData }
    }
}

impl<E: Element> Kernel for Quantize<'_, E> {
    type Output = Result<(), NonFinite>;

    #[inline(always)]
    fn run(self) -> Self::Output {
        match self.bits {
            2 => self.quantize::<2>(),
            3 => self.quantize::<3>(),
            4 => self.quantize::<4>(),
            5 => self.quantize::<5>(),
            6 => self.quantize::<6>(),
            8 => self.quantize::<8>(),
            bits => unreachable!("no affine scheme has {bits} bits"),
        }
    }
}

impl<E: Element> Quantize<'_, E> {
    #[inline(always)]
    fn quantize<const BITS: usize>(self) -> Result<(), NonFinite> {
        let Self { group_size, input, out, .. } = self;
        let tiles = input
            .chunks(TILE * group_size * E::SIZE)
            .zip(out.packed.chunks_mut(TILE * group_size / 8 * BITS))
            .zip(out.scales.chunks_mut(TILE * E::SIZE))
            .zip(out.biases.chunks_mut(TILE * E::SIZE));
        for (index, (((input, packed), scales), biases)) in tiles.enumerate() {
            let mut lines = [Line::default(); TILE];
            let groups = input.chunks_exact(group_size * E::SIZE);
            let parts = scales.chunks_exact_mut(E::SIZE).zip(biases.chunks_exact_mut(E::SIZE));
            for ((group, (scale, bias)), line) in groups.zip(parts).zip(&mut lines) {
                let Some((least, largest)) = extremes::<E>(group) else {
                    return Err(NonFinite::first_in::<E>(input, index * TILE * group_size));
                };
                *line = Line::through::<BITS>(least, largest);
                E::store(line.scale, scale);
                E::store(line.bias, bias);
            }

            let groups = input.chunks_exact(group_size * E::SIZE);
            for ((group, packed), line) in groups.zip(packed.chunks_exact_mut(group_size / 8 * BITS)).zip(lines) {
                let (packed, _) = packed.as_chunks_mut::<BITS>().0.as_chunks_mut::<EIGHTS>();
                for (block, packed) in group.chunks_exact(BLOCK * E::SIZE).zip(packed) {
                    let values: [f32; BLOCK] = E::load(block);
                    let mut codes = [[0; 8]; EIGHTS];
                    for (code, value) in codes.as_flattened_mut().iter_mut().zip(values) {
                        *code = line.code::<BITS>(value);
                    }
                    *packed = pack(codes);
                }
            }
        }
        Ok(())
    }
}

/// The least and the largest element of a group; `None` when one is not finite.
///
/// Of zeros of both signs the negative counts as the lesser: the sign of a zero reaches no output byte.
#[inline(always)]
fn extremes<E: Element>(group: &[u8]) -> Option<(f32, f32)> {
    let mut least = [i32::MAX; BLOCK];
    let mut largest = [i32::MIN; BLOCK];
    for block in group.chunks_exact(BLOCK * E::SIZE) {
        let values: [f32; BLOCK] = E::load(block);
        for ((least, largest), value) in least.iter_mut().zip(&mut largest).zip(values) {
            let order = float::total_order(value);
            *least = (*least).min(order);
            *largest = (*largest).max(order);
        }
    }
    let least = float::from_total_order(least.into_iter().fold(i32::MAX, i32::min));
    let largest = float::from_total_order(largest.into_iter().fold(i32::MIN, i32::max));
    // In the total order the infinities and every NaN lie outside of the finite numbers.
    (least.is_finite() && largest.is_finite()).then_some((least, largest))
}

/// The line from codes to values.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    scale: f32,
    bias: f32,
}

impl Line {
    #[inline(always)]
    fn through<const BITS: usize>(least: f32, largest: f32) -> Self {
        let steps = ((1 << BITS) - 1) as f32;
        let step = (largest - least) / steps;
        let step = if step < SMALLEST_SCALE { SMALLEST_SCALE } else { step };
        let (scale, edge) = if least.abs() > largest.abs() { (step, least) } else { (-step, largest) };
        // Moves the scale so that the edge, and with it zero, is a whole number of steps.
        let steps_to_zero = round_ties_even(edge / scale);
        if steps_to_zero == 0.0 { Self { scale, bias: 0.0 } } else { Self { scale: edge / steps_to_zero, bias: edge } }
    }

    /// The code of `value`, with the scale and bias before they are rounded to the tensor's type.
    #[inline(always)]
    fn code<const BITS: usize>(self, value: f32) -> u8 {
        /// Its unit in the last place is 1, so adding it rounds to an integer in its low bits.
        const MAGIC: f32 = 8_388_608.0;
        let largest = ((1 << BITS) - 1) as f32;
        let steps = (value - self.bias) / self.scale;
        // Clamping to integers first and rounding then is the same as the reverse; 0 / 0 is code 0.
        let steps = if steps > 0.0 { steps } else { 0.0 };
        let steps = if steps < largest { steps } else { largest };
        (steps + MAGIC).to_bits() as u8
    }
}

/// `value` rounded to an integer, ties to even.
#[inline(always)]
fn round_ties_even(value: f32) -> f32 {
    /// From here on every number is an integer; below, adding it rounds to one.
    const INTEGERS: f32 = 8_388_608.0;
    if value.abs() < INTEGERS {
        let magic = INTEGERS.copysign(value);
        value + magic - magic
    } else {
        value
    }
}

pub(super) struct Dequantize<'a, E> {
    bits: u8,
    group_size: usize,
    packed: &'a [u8],
    scales: &'a [u8],
    biases: &'a [u8],
    out: &'a mut [u8],
    element: PhantomData<E>,
}

impl<'a, E> Dequantize<'a, E> {
    pub(super) fn new(
        bits: u8,
        group: u16,
        packed: &'a [u8],
        scales: &'a [u8],
        biases: &'a [u8],
        out: &'a mut [u8],
    ) -> Self {
        Self { bits, group_size: usize::from(group), packed, scales, biases, out, element: PhantomData }
    }
}

impl<E: Element> Kernel for Dequantize<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        match self.bits {
            2 => self.dequantize::<2>(),
            3 => self.dequantize::<3>(),
            4 => self.dequantize::<4>(),
            5 => self.dequantize::<5>(),
            6 => self.dequantize::<6>(),
            8 => self.dequantize::<8>(),
            bits => unreachable!("no affine scheme has {bits} bits"),
        }
    }
}

impl<E: Element> Dequantize<'_, E> {
    #[inline(always)]
    fn dequantize<const BITS: usize>(self) {
        let Self { group_size, packed, scales, biases, out, .. } = self;
        let groups = packed
            .chunks_exact(group_size / 8 * BITS)
            .zip(scales.chunks_exact(E::SIZE))
            .zip(biases.chunks_exact(E::SIZE))
            .zip(out.chunks_exact_mut(group_size * E::SIZE));
        for (((packed, scale), bias), out) in groups {
            let (scale, bias) = (E::widen(scale), E::widen(bias));
            let (packed, _) = packed.as_chunks::<BITS>().0.as_chunks::<EIGHTS>();
            for (packed, out) in packed.iter().zip(out.chunks_exact_mut(BLOCK * E::SIZE)) {
                let codes = unpack(*packed);
                let mut values = [0.0; BLOCK];
                for (value, code) in values.iter_mut().zip(codes.as_flattened()) {
                    *value = E::round(multiply(f32::from(*code), scale)) + bias;
                }
                E::store_all(values, out);
            }
        }
    }
}
