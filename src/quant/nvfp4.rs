//! `nvfp4`: FP4 codes with an E4M3 scale per 16 of them, and optionally one binary32 scale for all.
//!
//! With a global scale the group scales are counted in units of it, divided by 2688, the largest value that
//! a code and a group scale can express.

use std::marker::PhantomData;

use super::float::Element;
use super::instructions::Kernel;
use super::lanes::{LANES, Lanes};
use super::pack::{BLOCK, Packed, pack, unpack};
use super::{NonFinite, Quantized, TILE, are_finite, fp4, fp8};

/// Elements of a group: half a block of codes.
const GROUP: usize = 16;

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
    fn run<L: Lanes>(self) -> Self::Output {
        match self.global_scale {
            // A factor of one changes nothing, but it takes time.
            None => self.quantize::<L, false>(1.0),
            Some(global) => self.quantize::<L, true>(LARGEST_VALUE / global),
        }
    }
}

impl<E: Element> Quantize<'_, E> {
    #[inline(always)]
    fn quantize<L: Lanes, const SCALED: bool>(self, encoding_scale: f32) -> Result<(), NonFinite> {
        let tiles = (E::elements(self.input).chunks(TILE * GROUP))
            .zip(self.out.packed.as_chunks_mut::<4>().0.chunks_mut(TILE * GROUP / 8))
            .zip(self.out.scales.chunks_mut(TILE));
        for (index, ((elements, packed), scales)) in tiles.enumerate() {
            let mut largest = [0.0; TILE];
            for (group, largest) in elements.as_chunks::<GROUP>().0.iter().zip(&mut largest) {
                *largest = E::magnitude::<L>(group);
            }
            if !are_finite(&largest) {
                return Err(NonFinite::first_in::<E>(elements, index * TILE * GROUP));
            }
            let tile = Scales::of::<L, E, SCALED>(&largest, encoding_scale);
            scales.copy_from_slice(&tile.codes[..scales.len()]);

            let (blocks, rest) = elements.as_chunks::<BLOCK>();
            let (packed_blocks, packed_rest) = packed.as_chunks_mut();
            let (pairs, _) = tile.divisors.as_chunks();
            for ((block, packed), divisors) in blocks.iter().zip(packed_blocks).zip(pairs) {
                *packed = encode::<L, E, SCALED>(block, divisors, encoding_scale);
            }
            if !rest.is_empty() {
                // The last group of an odd number.
                let mut block = [E::ZERO; BLOCK];
                block[..GROUP].copy_from_slice(rest);
                let packed = encode::<L, E, SCALED>(&block, &pairs[blocks.len()], encoding_scale);
                packed_rest.copy_from_slice(&packed[..GROUP / 8]);
            }
            if !tile.are_exact {
                encode_large::<E>(elements, &tile.divisors, encoding_scale, packed.as_flattened_mut());
            }
        }
        Ok(())
    }
}

/// The scales of the groups of a tile.
struct Scales {
    codes: [u8; TILE],
    /// What the elements of each group are divided by.
    divisors: [f32; TILE],
    /// Whether [`fp4::encode`] is exact for what comes out.
    are_exact: bool,
}

impl Scales {
    #[inline(always)]
    fn of<L: Lanes, E: Element, const SCALED: bool>(largest: &[f32; TILE], encoding_scale: f32) -> Self {
        let encoding_scale = L::number(encoding_scale);
        let mut codes = [L::splat(0); TILE / LANES];
        let mut divisors = [0.0; TILE];
        let mut are_exact = L::splat(u32::MAX);
        for index in 0..TILE / LANES {
            let largest = L::eight_of(largest, index * LANES);
            let ratio = E::round(largest.divide(L::number(LARGEST_CODE)));
            codes[index] = fp8::encode(ratio.multiply(encoding_scale));
            // What is divided by zero is infinite or NaN, and those have the code of zero: as what is divided by infinity.
            let exact = fp8::decode(codes[index]);
            let is_zero = L::splat(1).is_above(exact.magnitude());
            let divisor = is_zero.choose(L::number(f32::INFINITY), exact);
            divisors[index * LANES..][..LANES].copy_from_slice(&divisor.to_numbers());
            let scaled = scaled::<L, E, SCALED>(largest, divisor, encoding_scale).magnitude();
            are_exact = are_exact.and(scaled.is_less(L::number(fp4::EXACT)));
        }
        Self { codes: L::to_bytes(codes), divisors, are_exact: are_exact.lanes() == [u32::MAX; LANES] }
    }
}

/// The codes of two groups.
#[inline(always)]
fn encode<L: Lanes, E: Element, const SCALED: bool>(
    block: &[E::Bytes; BLOCK],
    divisors: &[f32; 2],
    encoding_scale: f32,
) -> Packed<4> {
    let (eights, _) = block.as_chunks();
    let mut codes = [L::splat(0); BLOCK / LANES];
    for index in 0..BLOCK / LANES {
        let divisor = L::number(divisors[index / 2]);
        codes[index] = fp4::encode(scaled::<L, E, SCALED>(E::load(&eights[index]), divisor, L::number(encoding_scale)));
    }
    pack(codes)
}

/// As [`encode`], for a tile with elements that are too large for [`fp4::encode`]: a scale was saturated, or the global one
/// is not finite.
#[cold]
#[inline(never)]
fn encode_large<E: Element>(elements: &[E::Bytes], divisors: &[f32; TILE], encoding_scale: f32, packed: &mut [u8]) {
    for (index, pair) in elements.as_chunks::<2>().0.iter().enumerate() {
        let divisor = divisors[2 * index / GROUP];
        let [low, high] = pair.map(|element| {
            let value = E::widen(E::narrow(E::widen(element) / divisor)) * encoding_scale;
            fp4::encode_by_distance(value)
        });
        packed[index] = low | high << 4;
    }
}

/// `values` in units of a group's scale.
#[inline(always)]
fn scaled<L: Lanes, E: Element, const SCALED: bool>(values: L, divisors: L, encoding_scale: L) -> L {
    let values = E::round(values.divide(divisors));
    if SCALED { values.multiply(encoding_scale) } else { values }
}

pub(super) struct Dequantize<'a, E> {
    /// What multiplies the scale of a group; the product is rounded.
    of_scale: f32,
    /// What multiplies the value then.
    of_value: Option<f32>,
    packed: &'a [u8],
    scales: &'a [u8],
    out: &'a mut [u8],
    element: PhantomData<E>,
}

impl<'a, E: Element> Dequantize<'a, E> {
    pub(super) fn new(global_scale: Option<f32>, packed: &'a [u8], scales: &'a [u8], out: &'a mut [u8]) -> Self {
        let only_f32 = global_scale.is_none() || E::SIZE == 4;
        assert!(only_f32, "`nvfp4` with a global scale dequantizes to binary32 only");
        let of_scale = global_scale.map_or(1.0, |global| global / LARGEST_VALUE);
        Self { of_scale, of_value: None, packed, scales, out, element: PhantomData }
    }

    /// Decodes codes and group scales that a third scale multiplies.
    pub(super) fn times(factor: f32, packed: &'a [u8], scales: &'a [u8], out: &'a mut [u8]) -> Self {
        Self { of_scale: 1.0, of_value: Some(factor), packed, scales, out, element: PhantomData }
    }
}

impl<E: Element> Kernel for Dequantize<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (packed, packed_rest) = self.packed.as_chunks::<4>().0.as_chunks();
        let (scales, scales_rest) = self.scales.as_chunks::<2>();
        let (blocks, rest) = E::elements_mut(self.out).as_chunks_mut::<BLOCK>();
        for ((packed, scales), block) in packed.iter().zip(scales).zip(blocks) {
            *block = decode::<L, E>(packed, *scales, self.of_scale, self.of_value);
        }
        if let [scale] = *scales_rest {
            // The last group of an odd number.
            let mut packed = [[0; 4]; BLOCK / 8];
            packed[..GROUP / 8].copy_from_slice(packed_rest);
            rest.copy_from_slice(&decode::<L, E>(&packed, [scale; 2], self.of_scale, self.of_value)[..GROUP]);
        }
    }
}

/// The values of a block of codes.
#[inline(always)]
fn decode<L: Lanes, E: Element>(
    packed: &Packed<4>,
    scales: [u8; 2],
    of_scale: f32,
    of_value: Option<f32>,
) -> [E::Bytes; BLOCK] {
    let mut of_groups = [L::splat(0); 2];
    for (of_group, scale) in of_groups.iter_mut().zip(scales) {
        *of_group = E::multiply(fp8::decode(L::splat(scale.into())), L::number(of_scale));
    }
    let codes: [L; BLOCK / LANES] = unpack::<L, 4>(packed);
    let mut block = [E::ZERO; BLOCK];
    for (index, out) in block.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        // Where no factor multiplies the scale, this product has at most six bits: it is exact.
        let value = E::multiply(fp4::decode(codes[index]), of_groups[index / 2]);
        *out = E::store(match of_value {
            Some(factor) => E::multiply(value, L::number(factor)),
            None => value,
        });
    }
    block
}
