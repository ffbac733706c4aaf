//! The affine schemes: a code is the distance from the group's bias in units of its scale.
//!
//! The bias is the edge of the group, minimum or maximum, that lies farther from zero; a scale counts
//! away from it, so it is negative when that is the maximum. Then that edge, and zero, are exact.

use std::marker::PhantomData;

use super::float::Element;
use super::instructions::Kernel;
use super::lanes::{LANES, Lanes};
use super::pack::{BLOCK, pack, unpack};
use super::{NonFinite, Quantized, TILE, are_finite};

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
    fn run<L: Lanes>(self) -> Self::Output {
        match self.bits {
            2 => self.quantize::<L, 2>(),
            3 => self.quantize::<L, 3>(),
            4 => self.quantize::<L, 4>(),
            5 => self.quantize::<L, 5>(),
            6 => self.quantize::<L, 6>(),
            8 => self.quantize::<L, 8>(),
            bits => unreachable!("no affine scheme has {bits} bits"),
        }
    }
}

impl<E: Element> Quantize<'_, E> {
    #[inline(always)]
    fn quantize<L: Lanes, const BITS: usize>(self) -> Result<(), NonFinite> {
        let Self { group_size, input, out, .. } = self;
        let tiles = (E::elements(input).chunks(TILE * group_size))
            .zip(out.packed.as_chunks_mut::<BITS>().0.chunks_mut(TILE * group_size / 8))
            .zip(E::elements_mut(out.scales).chunks_mut(TILE))
            .zip(E::elements_mut(out.biases).chunks_mut(TILE));
        for (index, (((elements, packed), scales), biases)) in tiles.enumerate() {
            let mut least = [0.0; TILE];
            let mut largest = [0.0; TILE];
            for ((group, least), largest) in elements.chunks_exact(group_size).zip(&mut least).zip(&mut largest) {
                // Of zeros of both signs the negative counts as the lesser: the sign of a zero reaches no output byte.
                (*least, *largest) = E::edges::<L>(group);
            }
            // In the total order the infinities and every NaN lie outside of the finite numbers.
            if !(are_finite(&least) && are_finite(&largest)) {
                return Err(NonFinite::first_in::<E>(elements, index * TILE * group_size));
            }
            let lines = Lines::through::<L, BITS>(&least, &largest);
            scales.copy_from_slice(&narrowed::<L, E>(&lines.scales)[..scales.len()]);
            biases.copy_from_slice(&narrowed::<L, E>(&lines.biases)[..biases.len()]);

            let groups = elements.chunks_exact(group_size).zip(packed.chunks_exact_mut(group_size / 8));
            for ((group, packed), (scale, bias)) in groups.zip(lines.scales.into_iter().zip(lines.biases)) {
                let (scale, bias) = (L::number(scale), L::number(bias));
                let (blocks, _) = group.as_chunks::<LANES>().0.as_chunks::<{ BLOCK / LANES }>();
                for (block, packed) in blocks.iter().zip(packed.as_chunks_mut().0) {
                    let mut codes = [L::splat(0); BLOCK / LANES];
                    for index in 0..BLOCK / LANES {
                        codes[index] = code::<L, BITS>(E::load(&block[index]), scale, bias);
                    }
                    *packed = pack(codes);
                }
            }
        }
        Ok(())
    }
}

/// The lines from codes to values, one for each group of a tile.
struct Lines {
    scales: [f32; TILE],
    biases: [f32; TILE],
}

impl Lines {
    #[inline(always)]
    fn through<L: Lanes, const BITS: usize>(least: &[f32; TILE], largest: &[f32; TILE]) -> Self {
        let mut lines = Self { scales: [0.0; TILE], biases: [0.0; TILE] };
        let steps = L::number(((1 << BITS) - 1) as f32);
        let smallest = L::number(SMALLEST_SCALE);
        for groups in (0..TILE).step_by(LANES) {
            let (least, largest) = (L::eight_of(least, groups), L::eight_of(largest, groups));
            let step = largest.subtract(least).divide(steps).at_least(smallest);
            let is_negative = largest.magnitude().is_less(least.magnitude());
            let scale = is_negative.choose(step, step.or(L::number(-0.0)));
            let edge = is_negative.choose(least, largest);
            // Moves the scale so that the edge, and with it zero, is a whole number of steps.
            let steps_to_zero = round_ties_even(edge.divide(scale));
            let is_zero = steps_to_zero.magnitude().is_less(L::splat(1));
            let scale = is_zero.choose(scale, edge.divide(steps_to_zero));
            let bias = is_zero.choose(L::splat(0), edge);
            lines.scales[groups..][..LANES].copy_from_slice(&scale.to_numbers());
            lines.biases[groups..][..LANES].copy_from_slice(&bias.to_numbers());
        }
        lines
    }
}

/// `values` rounded to the tensor's type.
#[inline(always)]
fn narrowed<L: Lanes, E: Element>(values: &[f32; TILE]) -> [E::Bytes; TILE] {
    let mut elements = [E::ZERO; TILE];
    for start in (0..TILE).step_by(LANES) {
        elements[start..start + LANES].copy_from_slice(&E::store(L::eight_of(values, start)));
    }
    elements
}

/// The codes of `values`, with the scale and bias before they are rounded to the tensor's type.
#[inline(always)]
fn code<L: Lanes, const BITS: usize>(values: L, scale: L, bias: L) -> L {
    let largest = L::number(((1 << BITS) - 1) as f32);
    let steps = values.subtract(bias).divide(scale);
    // Clamping to integers first and rounding then is the same as the reverse; 0 / 0 is code 0.
    steps.at_least(L::splat(0)).at_most(largest).to_integer()
}

/// `values` rounded to integers, ties to even.
#[inline(always)]
fn round_ties_even<L: Lanes>(values: L) -> L {
    /// From here on every number is an integer; below, adding it rounds to one.
    const INTEGERS: f32 = 8_388_608.0;
    let magic = values.and(L::number(-0.0)).or(L::number(INTEGERS));
    let rounded = values.add(magic).subtract(magic);
    values.magnitude().is_less(L::number(INTEGERS)).choose(rounded, values)
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
    fn run<L: Lanes>(self) {
        match self.bits {
            2 => self.dequantize::<L, 2>(),
            3 => self.dequantize::<L, 3>(),
            4 => self.dequantize::<L, 4>(),
            5 => self.dequantize::<L, 5>(),
            6 => self.dequantize::<L, 6>(),
            8 => self.dequantize::<L, 8>(),
            bits => unreachable!("no affine scheme has {bits} bits"),
        }
    }
}

impl<E: Element> Dequantize<'_, E> {
    #[inline(always)]
    fn dequantize<L: Lanes, const BITS: usize>(self) {
        let Self { group_size, packed, scales, biases, out, .. } = self;
        let groups = (packed.as_chunks::<BITS>().0.chunks_exact(group_size / 8))
            .zip(E::elements(scales))
            .zip(E::elements(biases))
            .zip(E::elements_mut(out).chunks_exact_mut(group_size));
        for (((packed, scale), bias), out) in groups {
            let (scale, bias) = (L::number(E::widen(*scale)), L::number(E::widen(*bias)));
            let (blocks, _) = out.as_chunks_mut::<LANES>().0.as_chunks_mut::<{ BLOCK / LANES }>();
            for (packed, block) in packed.as_chunks().0.iter().zip(blocks) {
                let codes: [L; BLOCK / LANES] = unpack::<L, BITS>(packed);
                for index in 0..BLOCK / LANES {
                    let product = E::round(E::multiply(codes[index].to_number(), scale));
                    block[index] = E::store(product.add(bias));
                }
            }
        }
    }
}
