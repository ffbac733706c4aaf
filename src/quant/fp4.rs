//! FP4 E2M1: a sign, two bits of exponent, one of mantissa.
//!
//! The codes 0 to 7 stand for 0, 0.5, 1, 1.5, 2, 3, 4 and 6, and 8 to 15 for their negatives. MLX's CPU
//! backend picks the nearest value by an argmin over that table, so a tie goes to the lower code
//! and the code 8, negative zero, is never chosen.

use super::lanes::Lanes;
use super::mx::Code;

/// The values of the codes.
const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Below this magnitude the difference to each value rounds so little that [`encode`] is exact.
pub(super) const EXACT: f32 = 16_777_216.0;

/// FP4 as the element type of an MX scheme.
#[derive(Clone, Copy, Debug)]
pub(super) struct E2M1;

impl Code<4> for E2M1 {
    const LARGEST: f32 = 6.0;

    #[inline(always)]
    fn encode<L: Lanes>(values: L) -> L {
        encode(values)
    }

    #[inline(always)]
    fn decode<L: Lanes>(codes: L) -> L {
        decode(codes)
    }
}

/// The codes nearest to `values`, whose magnitudes are below [`EXACT`].
#[inline(always)]
pub(super) fn encode<L: Lanes>(values: L) -> L {
    const ONE: u32 = 1.0_f32.to_bits();
    const SIX: u32 = 6.0_f32.to_bits();
    /// Just less than half a step.
    const HALF_STEP: u32 = 0x1F_FFFF;
    let magnitude = values.magnitude();
    // From 1 on a code is the exponent and the first bit of the mantissa. Adding just less than half
    // a step before the rest is cut off rounds to the nearest, ties toward zero.
    let clamped = magnitude.greater(L::splat(ONE)).lesser(L::splat(SIX));
    let above_one = clamped.minus(L::splat(ONE - HALF_STEP)).shifted_right::<22>();
    // Below there is a step at 0.25 and one at 0.75. All bits of an integer are -1.
    let is_some = L::number(0.25).is_less(magnitude);
    let is_more = L::number(0.75).is_less(magnitude);
    let code = above_one.minus(is_some).minus(is_more);
    code.or(values.and(is_some).shifted_right::<28>().and(L::splat(8)))
}

/// The code nearest to `value` with every distance rounded to binary32, as MLX computes it.
///
/// From 2^25 on the distances round to the same number and the lowest code wins, so that large
/// values do not saturate; NaN and infinity give 0.
pub(super) fn encode_by_distance(value: f32) -> u8 {
    let mut nearest = 0;
    let mut least = f32::INFINITY;
    for (code, candidate) in (0..).zip(VALUES) {
        let distance = (value - candidate).abs();
        if distance < least {
            (nearest, least) = (code, distance);
        }
    }
    nearest
}

/// The values of `codes`.
#[inline(always)]
pub(super) fn decode<L: Lanes>(codes: L) -> L {
    const MAGNITUDES: [u32; 8] = {
        let mut magnitudes = [0; 8];
        let mut code = 0;
        while code < 8 {
            magnitudes[code] = VALUES[code].to_bits();
            code += 1;
        }
        magnitudes
    };
    codes.look_up(MAGNITUDES).or(codes.and(L::splat(8)).shifted_left::<28>())
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Plain;
    use super::*;

    fn encode(value: f32) -> u8 {
        super::encode(Plain::number(value)).lanes()[0] as u8
    }

    /// Halfway between neighbouring magnitudes.
    const MIDPOINTS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

    #[test]
    fn decodes_the_table() {
        for (code, value) in (0..).zip(VALUES) {
            assert_eq!(decode(Plain::splat(code)).lanes()[0], value.to_bits());
        }
    }

    #[test]
    fn rounding_is_the_argmin() {
        for (code, value) in (0..).zip(VALUES) {
            assert_eq!(encode(value), if code == 8 { 0 } else { code });
        }
        for midpoint in MIDPOINTS {
            for sign in [1.0, -1.0] {
                for ulps in 0..20_000_u32 {
                    for bits in [midpoint.to_bits() - ulps, midpoint.to_bits() + ulps] {
                        let value = sign * f32::from_bits(bits);
                        assert_eq!(encode(value), encode_by_distance(value), "{value}");
                    }
                }
            }
        }
        let limit = 2.0_f32.powi(24).to_bits();
        for bits in (0..limit).step_by(1013) {
            for value in [f32::from_bits(bits), -f32::from_bits(bits)] {
                assert_eq!(encode(value), encode_by_distance(value), "{value}");
            }
        }
    }

    #[test]
    fn large_values_lose_the_argmin() {
        for (value, code) in [(2.0_f32.powi(24), 7), (2.0_f32.powi(40), 0), (f32::INFINITY, 0), (f32::NAN, 0)] {
            assert_eq!(encode_by_distance(value), code, "{value}");
        }
    }
}
