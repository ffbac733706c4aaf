//! The three float types of a checkpoint, and their exact conversions from and to binary32.
//!
//! Every conversion is written without branches on integers and exact float operations, so that a
//! compiler can run it on many elements at once; rounding is to nearest, ties to even, with gradual
//! underflow. NaN becomes the pattern that MLX's CPU backend gives on x86-64.

use super::lanes::{LANES, Lanes};

/// The type of an element of a float tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Float {
    /// bfloat16: the upper half of binary32.
    Bf16,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

impl Float {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }

    /// The value of the element that `bytes` start with, exactly.
    ///
    /// # Panics
    /// When there are fewer than [`Float::size`] bytes.
    pub fn widen(self, bytes: &[u8]) -> f32 {
        match self {
            Self::Bf16 => Bf16::widen(Bf16::elements(bytes)[0]),
            Self::F16 => F16::widen(F16::elements(bytes)[0]),
            Self::F32 => F32::widen(F32::elements(bytes)[0]),
        }
    }
}

/// Bits of a binary32 infinity; whatever is at least this, sign apart, is not finite.
pub(super) const INFINITY: u32 = 0x7F80_0000;
/// All bits of a binary32 but its sign.
pub(super) const MAGNITUDE: u32 = 0x7FFF_FFFF;

/// A [`Float`] as a type, so that a kernel is compiled for each.
pub(super) trait Element: Copy {
    const FLOAT: Float;
    /// Bytes of one element.
    const SIZE: usize;
    /// The bytes of a zero.
    const ZERO: Self::Bytes;

    /// An element as it is stored, little-endian.
    type Bytes: Copy;

    /// `bytes` as elements; a part of one at the end is left out.
    fn elements(bytes: &[u8]) -> &[Self::Bytes];

    /// As [`Element::elements`].
    fn elements_mut(bytes: &mut [u8]) -> &mut [Self::Bytes];

    /// The value of an element, exactly.
    fn widen(element: Self::Bytes) -> f32;

    /// `value` rounded to this type.
    fn narrow(value: f32) -> Self::Bytes;

    /// The values of finite elements, exactly.
    fn load<L: Lanes>(elements: &[Self::Bytes; LANES]) -> L;

    /// The elements nearest to `values`.
    fn store<L: Lanes>(values: L) -> [Self::Bytes; LANES];

    /// `values` rounded to this type. NaN stays one if all that is beyond this type in it is zero.
    fn round<L: Lanes>(values: L) -> L;

    /// `left * right` on its way to [`Element::store`], with the NaN that x86-64 gives: the first operand that is NaN, else a
    /// negative one. The language leaves sign and payload of a NaN open.
    #[inline(always)]
    fn multiply<L: Lanes>(left: L, right: L) -> L {
        let product = left.multiply(right);
        let operand = right.is_nan().choose(right, L::splat(0xFFC0_0000));
        product.is_nan().choose(left.is_nan().choose(left, operand), product)
    }

    /// The least and the largest of `elements`, a multiple of sixteen, in the total order of IEEE 754: -0 before +0, and
    /// NaN beyond the infinities of either sign.
    fn edges<L: Lanes>(elements: &[Self::Bytes]) -> (f32, f32);

    /// The largest magnitude in `elements`, a multiple of sixteen; NaN or infinite when one of them is.
    fn magnitude<L: Lanes>(elements: &[Self::Bytes]) -> f32;
}

/// What is the same for all types but for the integers of their width.
macro_rules! as_integers {
    ($size:literal, $unsigned:ty, $signed:ty, $edges:ident, $magnitude:ident) => {
        const SIZE: usize = $size;
        const ZERO: [u8; $size] = [0; $size];

        type Bytes = [u8; $size];

        #[inline(always)]
        fn elements(bytes: &[u8]) -> &[[u8; $size]] {
            bytes.as_chunks().0
        }

        #[inline(always)]
        fn elements_mut(bytes: &mut [u8]) -> &mut [[u8; $size]] {
            bytes.as_chunks_mut().0
        }

        #[inline(always)]
        fn edges<L: Lanes>(elements: &[[u8; $size]]) -> (f32, f32) {
            let (least, largest) = L::$edges(elements);
            // The order of the order is the number again.
            let number = |order: $signed| order ^ ((order >> (<$signed>::BITS - 1)) as $unsigned >> 1) as $signed;
            (Self::widen(number(least).to_le_bytes()), Self::widen(number(largest).to_le_bytes()))
        }

        #[inline(always)]
        fn magnitude<L: Lanes>(elements: &[[u8; $size]]) -> f32 {
            Self::widen(L::$magnitude(elements).to_le_bytes())
        }
    };
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16;

#[derive(Clone, Copy, Debug)]
pub(super) struct F16;

#[derive(Clone, Copy, Debug)]
pub(super) struct F32;

impl Element for Bf16 {
    const FLOAT: Float = Float::Bf16;

    as_integers!(2, u16, i16, edges_of_halves, magnitude_of_halves);

    #[inline(always)]
    fn widen(element: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(element)) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> [u8; 2] {
        to_bf16(value).to_le_bytes()
    }

    #[inline(always)]
    fn load<L: Lanes>(elements: &[[u8; 2]; LANES]) -> L {
        L::from_halves(elements).shifted_left::<16>()
    }

    #[inline(always)]
    fn store<L: Lanes>(values: L) -> [[u8; 2]; LANES] {
        let nan = L::splat(0x7FC0_0000);
        values.is_nan().choose(nan, Self::round(values)).shifted_right::<16>().to_halves()
    }

    #[inline(always)]
    fn round<L: Lanes>(values: L) -> L {
        let odd = values.shifted_right::<16>().and(L::splat(1));
        values.plus(L::splat(0x7FFF)).plus(odd).and(L::splat(0xFFFF_0000))
    }

    #[inline(always)]
    fn multiply<L: Lanes>(left: L, right: L) -> L {
        // Stored, one NaN is as the other.
        left.multiply(right)
    }
}

impl Element for F16 {
    const FLOAT: Float = Float::F16;

    as_integers!(2, u16, i16, edges_of_halves, magnitude_of_halves);

    #[inline(always)]
    fn widen(element: [u8; 2]) -> f32 {
        from_f16(u16::from_le_bytes(element))
    }

    #[inline(always)]
    fn narrow(value: f32) -> [u8; 2] {
        to_f16(value).to_le_bytes()
    }

    #[inline(always)]
    fn load<L: Lanes>(elements: &[[u8; 2]; LANES]) -> L {
        L::from_f16(elements)
    }

    #[inline(always)]
    fn store<L: Lanes>(values: L) -> [[u8; 2]; LANES] {
        values.to_f16()
    }

    #[inline(always)]
    fn round<L: Lanes>(values: L) -> L {
        values.round_to_f16()
    }
}

impl Element for F32 {
    const FLOAT: Float = Float::F32;

    as_integers!(4, u32, i32, edges_of_words, magnitude_of_words);

    #[inline(always)]
    fn widen(element: [u8; 4]) -> f32 {
        f32::from_le_bytes(element)
    }

    #[inline(always)]
    fn narrow(value: f32) -> [u8; 4] {
        value.to_le_bytes()
    }

    #[inline(always)]
    fn load<L: Lanes>(elements: &[[u8; 4]; LANES]) -> L {
        let mut lanes = [0; LANES];
        for lane in 0..LANES {
            lanes[lane] = u32::from_le_bytes(elements[lane]);
        }
        L::new(lanes)
    }

    #[inline(always)]
    fn store<L: Lanes>(values: L) -> [[u8; 4]; LANES] {
        let lanes = values.lanes();
        let mut elements = [[0; 4]; LANES];
        for lane in 0..LANES {
            elements[lane] = lanes[lane].to_le_bytes();
        }
        elements
    }

    #[inline(always)]
    fn round<L: Lanes>(values: L) -> L {
        values
    }
}

/// `value` as bfloat16; NaN becomes `0x7FC0`, whatever its sign.
#[inline(always)]
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16;
    let nan = bits & MAGNITUDE > INFINITY;
    (if nan { 0x7FC0 } else { rounded }) as u16
}

/// `value` as binary16; NaN becomes `0x7D00` with its sign.
#[inline(always)]
pub(super) fn to_f16(value: f32) -> u16 {
    /// 2^-14, the smallest normal binary16.
    const SMALLEST_NORMAL: u32 = 0x3880_0000;
    let sign = (value.to_bits() >> 16) & 0x8000;
    let magnitude = value.to_bits() & MAGNITUDE;
    // The exponent moves from bias 127 to 15; a carry out of the mantissa moves it on, up to infinity.
    let normal = (magnitude.wrapping_sub(112 << 23).wrapping_add(0xFFF + ((magnitude >> 13) & 1)) >> 13).min(0x7C00);
    // The unit in the last place of 0.5 is 2^-24, that of a subnormal binary16: the sum rounds to it.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let finite = if magnitude < SMALLEST_NORMAL { subnormal } else { normal };
    let rounded = if magnitude > INFINITY { 0x7D00 } else { finite };
    (sign | rounded) as u16
}

/// The binary16 `bits` as binary32, exactly.
#[inline(always)]
pub(super) fn from_f16(bits: u16) -> f32 {
    /// From the exponent bias of binary16 to that of binary32.
    const REBIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    /// The exponent of binary16 where that of binary32 begins.
    const EXPONENT: u32 = 0x7C00 << 13;
    // The sign is extended to the place where a binary32 has it, exponent and mantissa meet theirs.
    let placed = (i32::from(bits as i16) << 13) as u32 & (1 << 31 | EXPONENT | 0x3FF << 13);
    // The product is exact, of a subnormal number too.
    let finite = (f32::from_bits(placed) * REBIAS).to_bits();
    let value = if placed & EXPONENT == EXPONENT { finite | INFINITY } else { finite };
    f32::from_bits(value)
}

/// 2^`exponent` for -149 <= `exponent` <= 127, subnormal below -126.
#[inline(always)]
pub(super) fn power_of_two(exponent: i32) -> f32 {
    debug_assert!((-149..=127).contains(&exponent));
    let bits = if exponent < -126 { 1 << (exponent + 149) } else { (exponent + 127) << 23 };
    f32::from_bits(bits as u32)
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Plain;
    use super::*;

    /// `value`, finite, rounded to a multiple of the unit that `precision` significant bits and
    /// the smallest exponent `least` leave it, ties to even, by arithmetic in binary64.
    fn round_by_division(value: f32, precision: i32, least: i32) -> f64 {
        let exponent = if value == 0.0 { least } else { (f64::from(value).to_bits() >> 52 & 0x7FF) as i32 - 1023 };
        let unit = 2.0_f64.powi(exponent.max(least) - precision + 1);
        (f64::from(value) / unit).round_ties_even() * unit
    }

    #[test]
    fn both_narrow_types_read_back_every_pattern() {
        for bits in 0..=u16::MAX {
            if bits & 0x7FFF <= 0x7F80 {
                assert_eq!(to_bf16(Bf16::widen(bits.to_le_bytes())), bits);
            }
            if bits & 0x7FFF <= 0x7C00 {
                assert_eq!(to_f16(F16::widen(bits.to_le_bytes())), bits);
            }
        }
    }

    #[test]
    fn narrowing_rounds_to_nearest_even() {
        let mut bits = 0_u32;
        for _ in 0..1_000_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Half of the samples in the range of binary16, a quarter of all near its ties.
            let mut sample = bits;
            if bits & 0x100 != 0 {
                sample = sample & 0x87FF_FFFF | 0x3800_0000;
                sample = if sample & 0x0400_0000 != 0 { sample & !0x3800_0000 | 0x3000_0000 } else { sample };
            }
            if bits & 0x200 != 0 {
                sample = sample & !0x1FFF | 0x1000;
            }
            let value = f32::from_bits(sample);
            if !value.is_finite() {
                continue;
            }
            let expected = round_by_division(value, 11, -14);
            let expected = if expected.abs() > 65504.0 { f64::INFINITY.copysign(expected) } else { expected };
            assert_eq!(f64::from(F16::widen(F16::narrow(value))), expected, "{sample:#x}");
            let expected = round_by_division(value, 8, -126);
            let expected =
                if expected.abs() >= 2.0_f64.powi(128) { f64::INFINITY.copysign(expected) } else { expected };
            assert_eq!(f64::from(Bf16::widen(Bf16::narrow(value))), expected, "{sample:#x}");
        }
    }

    #[test]
    fn nan_and_infinity() {
        for (bits, bf16, f16) in [
            (0x7F80_0000, 0x7F80, 0x7C00),
            (0xFF80_0000, 0xFF80, 0xFC00),
            (0x7FC0_0000, 0x7FC0, 0x7D00),
            (0xFF80_0001, 0x7FC0, 0xFD00),
            (0xFFFF_FFFF, 0x7FC0, 0xFD00),
        ] {
            assert_eq!(to_bf16(f32::from_bits(bits)), bf16, "{bits:#x}");
            assert_eq!(to_f16(f32::from_bits(bits)), f16, "{bits:#x}");
        }
        assert!(from_f16(0x7C01).is_nan());
        assert_eq!(from_f16(0xFC00), f32::NEG_INFINITY);
    }

    #[test]
    fn edges_and_magnitudes_are_in_the_total_order_of_the_standard_library() {
        let mut random = 1_u32;
        for round in 0..5000 {
            let values: Vec<f32> = (0..32)
                .map(|_| {
                    random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    // Zeros of both signs, subnormals, anything, and non-finite numbers.
                    let bits = [random & 1 << 31, random >> 10, random, random | 0x7F80_0000][round % 4];
                    f32::from_bits(bits & 0xFFFF_0000)
                })
                .collect();
            let expected = |of: &dyn Fn(f32) -> f32| {
                let mut sorted: Vec<f32> = values.iter().map(|value| of(*value)).collect();
                sorted.sort_by(f32::total_cmp);
                (sorted[0].to_bits(), sorted[31].to_bits())
            };
            let words: Vec<[u8; 4]> = values.iter().map(|value| value.to_le_bytes()).collect();
            let halves: Vec<[u8; 2]> =
                values.iter().map(|value| ((value.to_bits() >> 16) as u16).to_le_bytes()).collect();
            let bits = |(least, largest): (f32, f32)| (least.to_bits(), largest.to_bits());
            assert_eq!(bits(F32::edges::<Plain>(&words)), expected(&|value| value));
            assert_eq!(bits(Bf16::edges::<Plain>(&halves)), expected(&|value| value));
            assert_eq!(F32::magnitude::<Plain>(&words).to_bits(), expected(&f32::abs).1);
            assert_eq!(Bf16::magnitude::<Plain>(&halves).to_bits(), expected(&f32::abs).1);
        }
    }

    #[test]
    fn products_that_are_nan() {
        let nan = f32::from_bits(0x7FF0_0000);
        for (a, b, bits) in [
            (nan, 2.0, 0x7FF0_0000),
            (2.0, -nan, 0xFFF0_0000),
            (0.0, f32::INFINITY, 0xFFC0_0000),
            (f32::NEG_INFINITY, 0.0, 0xFFC0_0000),
            (-2.0, 3.0, 0xC0C0_0000),
        ] {
            let product = F32::multiply(Plain::number(a), Plain::number(b)).lanes()[0];
            assert_eq!(product, bits, "{a} {b}");
        }
    }

    #[test]
    fn powers_of_two() {
        for exponent in -149..=127 {
            assert_eq!(f64::from(power_of_two(exponent)), 2.0_f64.powi(exponent));
        }
    }
}
