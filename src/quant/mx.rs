//! The microscaling schemes `mxfp4` and `mxfp8`: small floats with a power of two per 32 of them.
//!
//! The power is chosen so that the group's largest magnitude comes to about the largest code
//! (OCP Microscaling Formats 1.0 leaves the choice open; [`ScaleRule`] says how).

use std::marker::PhantomData;

use super::float::{Element, power_of_two};
use super::instructions::Kernel;
use super::lanes::{LANES, Lanes};
use super::pack::{BLOCK, pack, unpack};
use super::{Float, NonFinite, Quantized, TILE, are_finite};

/// Elements of a group: a block of codes.
const GROUP: usize = BLOCK;

/// The bias of an E8M0 scale byte.
const BIAS: i32 = 127;

/// How the exponent of a group is chosen from the ratio of its largest magnitude to the largest code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ScaleRule {
    /// The least power of two that is not below the ratio, so that no element saturates: MLX 0.32.2 and later.
    #[default]
    Ceil,
    /// The power of two nearest to the ratio in the logarithm, computed in the tensor's type: MLX up to 0.32.1.
    Round,
}

impl ScaleRule {
    /// The exponents, counted from [`BIAS`], for `ratios`, which are values of `float`, finite and not negative.
    #[inline(always)]
    fn exponents<L: Lanes>(self, ratios: L, float: Float) -> L {
        // A group of zeros has the exponent 0.
        let is_zero = L::splat(1).is_above(ratios);
        let (floor, fraction) = logarithm(is_zero.choose(L::number(1.0), ratios));
        let rounded_up = match self {
            Self::Ceil => fraction.is_above(L::splat(0)),
            Self::Round => {
                let mut least = floor.lanes();
                for least in &mut least {
                    *least = round_up_from(*least as i32 - BIAS, float);
                }
                fraction.is_above(L::new(least).minus(L::splat(1)))
            }
        };
        // All bits of an integer are -1.
        floor.minus(rounded_up)
    }
}

/// `values` as 2^(floor - [`BIAS`]) * (1 + fraction / 2^23), where they are positive and finite.
#[inline(always)]
fn logarithm<L: Lanes>(values: L) -> (L, L) {
    /// Makes every subnormal number normal.
    const UP: f32 = (1 << 23) as f32;
    let is_subnormal = L::number(f32::MIN_POSITIVE).is_above(values);
    let normal = is_subnormal.choose(values.multiply(L::number(UP)), values);
    let floor = normal.shifted_right::<23>().minus(is_subnormal.and(L::splat(23)));
    (floor, normal.and(L::splat(0x7F_FFFF)))
}

/// The least fraction, in units of 2^-23, for which the logarithm rounds up from `floor` to the next integer.
///
/// The logarithm of 2^floor * (1 + f) is rounded to the tensor's type, then to an integer with ties to
/// even. The first rounding moves everything within half its unit in the last place onto the tie at
/// `floor` + 1/2, so the fraction at which the result changes is 2^(1/2 - u/2) - 1 where the tie goes up
/// (`floor` is odd) and just above 2^(1/2 + u/2) - 1 where it goes down (`floor` is even). The unit u
/// depends on the binade in which `floor` + 1/2 lies: that is the row of the table.
fn round_up_from(floor: i32, float: Float) -> u32 {
    /// Thresholds where the tie goes down and up, by binade, in units of 2^-7.
    const BF16: [[u32; 2]; 9] =
        [[54, 53], [54, 53], [55, 53], [55, 52], [57, 50], [62, 46], [70, 38], [88, 25], [54, 54]];
    /// In units of 2^-10; no binary16 has a logarithm beyond the sixth binade.
    const F16: [[u32; 2]; 6] = [[425, 424], [425, 424], [426, 424], [427, 423], [429, 421], [433, 417]];
    /// In units of 2^-23.
    const F32: [[u32; 2]; 9] = [
        [0x35_04F4, 0x35_04F3],
        [0x35_04F4, 0x35_04F3],
        [0x35_04F5, 0x35_04F3],
        [0x35_04F6, 0x35_04F2],
        [0x35_04F8, 0x35_04F0],
        [0x35_04FC, 0x35_04EC],
        [0x35_0503, 0x35_04E4],
        [0x35_0513, 0x35_04D4],
        [0x35_0532, 0x35_04B5],
    ];
    let binade = (2 * floor + 1).unsigned_abs().ilog2() as usize;
    let parity = (floor & 1) as usize;
    match float {
        Float::Bf16 => BF16[binade][parity] << 16,
        Float::F16 => F16[binade][parity] << 13,
        Float::F32 => F32[binade][parity],
    }
}

/// The type of the elements of a group, `BITS` wide.
pub(super) trait Code<const BITS: usize>: Copy {
    /// The largest magnitude.
    const LARGEST: f32;

    /// The nearest codes.
    fn encode<L: Lanes>(values: L) -> L;

    /// The values of codes.
    fn decode<L: Lanes>(codes: L) -> L;
}

pub(super) struct Quantize<'a, E, C, const BITS: usize> {
    rule: ScaleRule,
    input: &'a [u8],
    out: Quantized<'a>,
    types: PhantomData<(E, C)>,
}

impl<'a, E, C, const BITS: usize> Quantize<'a, E, C, BITS> {
    pub(super) fn new(rule: ScaleRule, input: &'a [u8], out: Quantized<'a>) -> Self {
        Self { rule, input, out, types: PhantomData }
    }
}

impl<E: Element, C: Code<BITS>, const BITS: usize> Kernel for Quantize<'_, E, C, BITS> {
    type Output = Result<(), NonFinite>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Self::Output {
        let (packed, _) = self.out.packed.as_chunks_mut::<BITS>().0.as_chunks_mut();
        let tiles = E::elements(self.input).chunks(TILE * GROUP).zip(packed.chunks_mut(TILE));
        for (index, ((elements, packed), scales)) in tiles.zip(self.out.scales.chunks_mut(TILE)).enumerate() {
            let (groups, _) = elements.as_chunks::<LANES>().0.as_chunks::<{ GROUP / LANES }>();
            let mut largest = [0.0; TILE];
            for (group, largest) in groups.iter().zip(&mut largest) {
                *largest = E::magnitude::<L>(group.as_flattened());
            }
            if !are_finite(&largest) {
                return Err(NonFinite::first_in::<E>(elements, index * TILE * GROUP));
            }

            let mut scale_bytes = [L::splat(0); TILE / LANES];
            let mut factors = [[0.0; TILE]; 2];
            for (index, scale_bytes) in scale_bytes.iter_mut().enumerate() {
                let start = index * LANES;
                let ratios = E::round(L::eight_of(&largest, start).divide(L::number(C::LARGEST)));
                let exponents = self.rule.exponents(ratios, E::FLOAT);
                // An exponent below the range of E8M0 wraps around, as it does on x86-64.
                *scale_bytes = exponents.and(L::splat(0xFF));
                // To divide by a power of two is to multiply by its inverse. That of 2^-149 is no binary32, so it is the
                // product of two: with exponents of about half the size, and bias, in one number of 2 * BIAS - exponent.
                let inverse = L::splat(3 * BIAS as u32).minus(exponents);
                let half = inverse.shifted_right::<1>();
                let other = inverse.minus(half);
                factors[0][start..start + LANES].copy_from_slice(&half.shifted_left::<23>().to_numbers());
                factors[1][start..start + LANES].copy_from_slice(&other.shifted_left::<23>().to_numbers());
            }
            scales.copy_from_slice(&L::to_bytes(scale_bytes)[..scales.len()]);

            for (index, (group, packed)) in groups.iter().zip(packed).enumerate() {
                let [first, second] = [L::number(factors[0][index]), L::number(factors[1][index])];
                let mut codes = [L::splat(0); GROUP / LANES];
                for index in 0..GROUP / LANES {
                    // MLX rounds the quotient to the tensor's type; only a subnormal one can change, and those are
                    // far below what any code but zero stands for. So is what the first product may round.
                    codes[index] = C::encode(E::load::<L>(&group[index]).multiply(first).multiply(second));
                }
                *packed = pack(codes);
            }
        }
        Ok(())
    }
}

pub(super) struct Dequantize<'a, E, C, const BITS: usize> {
    packed: &'a [u8],
    scales: &'a [u8],
    out: &'a mut [u8],
    types: PhantomData<(E, C)>,
}

impl<'a, E, C, const BITS: usize> Dequantize<'a, E, C, BITS> {
    pub(super) fn new(packed: &'a [u8], scales: &'a [u8], out: &'a mut [u8]) -> Self {
        Self { packed, scales, out, types: PhantomData }
    }
}

impl<E: Element, C: Code<BITS>, const BITS: usize> Kernel for Dequantize<'_, E, C, BITS> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let (packed, _) = self.packed.as_chunks::<BITS>().0.as_chunks();
        let (out, _) = E::elements_mut(self.out).as_chunks_mut::<LANES>().0.as_chunks_mut::<{ GROUP / LANES }>();
        for ((packed, &scale), out) in packed.iter().zip(self.scales).zip(out) {
            // The byte 255 is no NaN here as in E8M0, but the next power of two: an infinity.
            let power = if scale == u8::MAX { f32::INFINITY } else { power_of_two(i32::from(scale) - BIAS) };
            let power = E::round(L::number(power));
            let codes: [L; GROUP / LANES] = unpack::<L, BITS>(packed);
            for index in 0..GROUP / LANES {
                out[index] = E::store(E::multiply(C::decode(codes[index]), power));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Plain;
    use super::*;

    #[test]
    fn logarithm_is_exact() {
        for bits in (1..f32::INFINITY.to_bits()).step_by(997).chain(1..5000) {
            let value = f32::from_bits(bits);
            let (floor, fraction) = logarithm(Plain::number(value));
            let floor = floor.lanes()[0] as i32 - BIAS;
            let restored = 2.0_f64.powi(floor) * (1.0 + f64::from(fraction.lanes()[0]) / 8_388_608.0);
            assert_eq!(f64::from(value), restored, "{bits:#x}");
        }
    }
}
