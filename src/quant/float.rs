//! The three float types of a checkpoint, and their exact conversions from and to binary32.
//!
//! Every conversion is written without branches on integers and exact float operations, so that a
//! compiler can run it on many elements at once; rounding is to nearest, ties to even, with gradual
//! underflow. NaN becomes the pattern that MLX's CPU backend gives on x86-64.

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
            Self::Bf16 => Bf16::widen(bytes),
            Self::F16 => F16::widen(bytes),
            Self::F32 => F32::widen(bytes),
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

    /// The value of the element in `bytes`, exactly.
    fn widen(bytes: &[u8]) -> f32;

    /// Rounds `value` and writes it to `bytes`.
    fn store(value: f32, bytes: &mut [u8]);

    /// `value` rounded to this type.
    fn round(value: f32) -> f32;

    /// The first `N` elements of `bytes`.
    #[inline(always)]
    fn load<const N: usize>(bytes: &[u8]) -> [f32; N] {
        let bytes = &bytes[..N * Self::SIZE];
        let mut values = [0.0; N];
        for (value, element) in values.iter_mut().zip(bytes.chunks_exact(Self::SIZE)) {
            *value = Self::widen(element);
        }
        values
    }

    /// Writes `N` elements to the start of `bytes`.
    #[inline(always)]
    fn store_all<const N: usize>(values: [f32; N], bytes: &mut [u8]) {
        let bytes = &mut bytes[..N * Self::SIZE];
        for (value, element) in values.into_iter().zip(bytes.chunks_exact_mut(Self::SIZE)) {
            Self::store(value, element);
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bf16;

#[derive(Clone, Copy, Debug)]
pub(super) struct F16;

#[derive(Clone, Copy, Debug)]
pub(super) struct F32;

impl Element for Bf16 {
    const FLOAT: Float = Float::Bf16;
    const SIZE: usize = 2;

    #[inline(always)]
    fn widen(bytes: &[u8]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
    }

    #[inline(always)]
    fn store(value: f32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&to_bf16(value).to_le_bytes());
    }

    #[inline(always)]
    fn round(value: f32) -> f32 {
        f32::from_bits(u32::from(to_bf16(value)) << 16)
    }
}

impl Element for F16 {
    const FLOAT: Float = Float::F16;
    const SIZE: usize = 2;

    #[inline(always)]
    fn widen(bytes: &[u8]) -> f32 {
        from_f16(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    #[inline(always)]
    fn store(value: f32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&to_f16(value).to_le_bytes());
    }

    #[inline(always)]
    fn round(value: f32) -> f32 {
        from_f16(to_f16(value))
    }
}

impl Element for F32 {
    const FLOAT: Float = Float::F32;
    const SIZE: usize = 4;

    #[inline(always)]
    fn widen(bytes: &[u8]) -> f32 {
        f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    #[inline(always)]
    fn store(value: f32, bytes: &mut [u8]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }

    #[inline(always)]
    fn round(value: f32) -> f32 {
        value
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
fn to_f16(value: f32) -> u16 {
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
fn from_f16(bits: u16) -> f32 {
    /// From the exponent bias of binary16 to that of binary32.
    const REBIAS: u32 = (127 - 15) << 23;
    /// 2^-24, the unit of a subnormal binary16.
    const UNIT: f32 = 1.0 / 16_777_216.0;
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = bits & 0x7FFF;
    let subnormal = (f32::from(magnitude) * UNIT).to_bits();
    let normal = (u32::from(magnitude) << 13) + REBIAS;
    let finite = if magnitude < 0x400 { subnormal } else { normal };
    let value = if magnitude < 0x7C00 { finite } else { u32::from(magnitude) << 13 | INFINITY };
    f32::from_bits(sign | value)
}

/// 2^`exponent` for -149 <= `exponent` <= 127, subnormal below -126.
#[inline(always)]
pub(super) fn power_of_two(exponent: i32) -> f32 {
    debug_assert!((-149..=127).contains(&exponent));
    let bits = if exponent < -126 { 1 << (exponent + 149) } else { (exponent + 127) << 23 };
    f32::from_bits(bits as u32)
}

/// `a * b`, with the NaN that x86-64 gives: the first operand that is NaN, else a negative one.
///
/// The language leaves sign and payload of a NaN open.
#[inline(always)]
pub(super) fn multiply(a: f32, b: f32) -> f32 {
    let product = a * b;
    let invalid = f32::from_bits(0xFFC0_0000);
    let operand = if b.is_nan() { b } else { invalid };
    let nan = if a.is_nan() { a } else { operand };
    if product.is_nan() { nan } else { product }
}

/// The largest magnitude in `values`; as bits, so that NaN and infinity are at least [`INFINITY`].
#[inline(always)]
pub(super) fn largest_magnitude<const N: usize>(values: &[f32; N]) -> u32 {
    values.iter().fold(0, |largest, value| largest.max(value.to_bits() & MAGNITUDE))
}

/// An integer for every bit pattern, in the total order of IEEE 754: as numbers where those are ordered,
/// -0 before +0, and NaN beyond the infinities of either sign.
#[inline(always)]
pub(super) fn total_order(value: f32) -> i32 {
    let bits = value.to_bits() as i32;
    bits ^ ((bits >> 31) as u32 >> 1) as i32
}

/// Undoes [`total_order`].
#[inline(always)]
pub(super) fn from_total_order(order: i32) -> f32 {
    f32::from_bits((order ^ ((order >> 31) as u32 >> 1) as i32) as u32)
}

#[cfg(test)]
mod tests {
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
                assert_eq!(to_bf16(Bf16::widen(&bits.to_le_bytes())), bits);
            }
            if bits & 0x7FFF <= 0x7C00 {
                assert_eq!(to_f16(F16::widen(&bits.to_le_bytes())), bits);
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
            assert_eq!(f64::from(F16::round(value)), expected, "{sample:#x}");
            let expected = round_by_division(value, 8, -126);
            let expected =
                if expected.abs() >= 2.0_f64.powi(128) { f64::INFINITY.copysign(expected) } else { expected };
            assert_eq!(f64::from(Bf16::round(value)), expected, "{sample:#x}");
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
    fn the_total_order_is_that_of_the_standard_library() {
        let patterns = [0, 1, 0x7F_FFFF, 0x80_0000, 0x3F80_0000, 0x7F7F_FFFF, 0x7F80_0000, 0x7F80_0001, 0x7FC0_0000];
        let values = patterns.map(f32::from_bits).into_iter().flat_map(|value| [value, -value]).collect::<Vec<_>>();
        for &left in &values {
            assert_eq!(from_total_order(total_order(left)).to_bits(), left.to_bits());
            for right in &values {
                assert_eq!(total_order(left).cmp(&total_order(*right)), left.total_cmp(right), "{left} {right}");
            }
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
            assert_eq!(multiply(a, b).to_bits(), bits, "{a} {b}");
        }
    }

    #[test]
    fn powers_of_two() {
        for exponent in -149..=127 {
            assert_eq!(f64::from(power_of_two(exponent)), 2.0_f64.powi(exponent));
        }
    }
}
