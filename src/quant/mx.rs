//! The microscaling schemes `mxfp4` and `mxfp8`: small floats with a power of two per 32 of them.
//!
//! The power is chosen so that the group's largest magnitude comes to about the largest code
//! (OCP Microscaling Formats 1.0 leaves the choice open; [`ScaleRule`] says how).

use std::marker::PhantomData;

use super::float::{Element, INFINITY, largest_magnitude, multiply, power_of_two};
use super::instructions::Kernel;
use super::pack::{pack, unpack};
use super::{Float, NonFinite, Quantized, TILE};

/// Elements of a group.
const GROUP: usize = 32;

/// A group in the units of the bit stream.
const EIGHTS: usize = GROUP / 8;

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
    /// The exponent for `ratio`, which is positive, finite and a value of `float`.
    #[inline(always)]
    fn exponent(self, ratio: f32, float: Float) -> i32 {
        let (floor, fraction) = logarithm(ratio);
        match self {
            Self::Ceil => floor + i32::from(fraction > 0),
            Self::Round => floor + i32::from(fraction >= round_up_from(floor, float)),
        }
    }
}

/// `value` as 2^floor * (1 + fraction / 2^23), where it is positive and finite.
#[inline(always)]
fn logarithm(value: f32) -> (i32, u32) {
    let bits = value.to_bits();
    // A subnormal is shifted up until its leading bit is where a normal number implies it.
    let shift = bits.leading_zeros().saturating_sub(8);
    let exponent = (bits >> 23) as i32 - 127;
    let floor = if shift > 0 { exponent + 1 - shift as i32 } else { exponent };
    (floor, bits << shift & 0x7F_FFFF)
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

    fn encode(value: f32) -> u8;
    fn decode(code: u8) -> f32;
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
    fn run(self) -> Self::Output {
        let (packed, _) = self.out.packed.as_chunks_mut::<BITS>().0.as_chunks_mut::<EIGHTS>();
        let tiles = self.input.chunks(TILE * GROUP * E::SIZE).zip(packed.chunks_mut(TILE));
        for (index, ((input, packed), scales)) in tiles.zip(self.out.scales.chunks_mut(TILE)).enumerate() {
            let mut divisors = [0.0; TILE];
            for ((group, scale), divisor) in input.chunks_exact(GROUP * E::SIZE).zip(scales).zip(&mut divisors) {
                let largest = largest_magnitude::<GROUP>(&E::load(group));
                if largest >= INFINITY {
                    return Err(NonFinite::first_in::<E>(input, index * TILE * GROUP));
                }
                let ratio = E::round(f32::from_bits(largest) / C::LARGEST);
                let exponent = if ratio > 0.0 { self.rule.exponent(ratio, E::FLOAT) } else { 0 };
                // An exponent below the range of E8M0 wraps around, as it does on x86-64.
                *scale = (exponent + BIAS) as u8;
                *divisor = power_of_two(exponent);
            }

            for ((group, packed), divisor) in input.chunks_exact(GROUP * E::SIZE).zip(packed).zip(divisors) {
                let values: [f32; GROUP] = E::load(group);
                let mut codes = [[0; 8]; EIGHTS];
                for (code, value) in codes.as_flattened_mut().iter_mut().zip(values) {
                    // MLX rounds the quotient to the tensor's type; only a subnormal one can change, and
                    // those are far below what any code but zero stands for.
                    *code = C::encode(value / divisor);
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
    fn run(self) {
        let (packed, _) = self.packed.as_chunks::<BITS>().0.as_chunks::<EIGHTS>();
        let groups = packed.iter().zip(self.scales).zip(self.out.chunks_exact_mut(GROUP * E::SIZE));
        for ((packed, &scale), out) in groups {
            // The byte 255 is no NaN here as in E8M0, but the next power of two: an infinity.
            let power = if scale == u8::MAX { f32::INFINITY } else { power_of_two(i32::from(scale) - BIAS) };
            let power = E::round(power);
            let codes = unpack(*packed);
            let mut values = [0.0; GROUP];
            for (value, code) in values.iter_mut().zip(codes.as_flattened()) {
                *value = multiply(C::decode(*code), power);
            }
            E::store_all(values, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithm_is_exact() {
        for bits in (1..INFINITY).step_by(997).chain(1..5000) {
            let value = f32::from_bits(bits);
            let (floor, fraction) = logarithm(value);
            let restored = 2.0_f64.powi(floor) * (1.0 + f64::from(fraction) / 8_388_608.0);
            assert_eq!(f64::from(value), restored, "{bits:#x}");
        }
    }
}
