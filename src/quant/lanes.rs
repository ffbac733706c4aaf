//! Eight lanes of 32 bits: what the kernels compute on.
//!
//! A kernel is written once, over [`Lanes`], and compiled for each implementation: [`Plain`] is arrays, for every
//! processor, and `avx2::Avx2` registers. Each operation is one of IEEE binary32 or of unsigned integers with a single
//! result, so that both give the same bits. That a kernel runs on whole registers is then stated, and not left to how a
//! compiler unrolls a loop.

use super::float::{from_f16, to_f16};

/// Lanes of one value.
pub(super) const LANES: usize = 8;

/// Eight lanes, each an unsigned integer or the bits of a binary32.
pub(super) trait Lanes: Copy {
    fn new(lanes: [u32; LANES]) -> Self;
    fn lanes(self) -> [u32; LANES];

    /// The integers of 16 bits in `halves`, little-endian.
    fn from_halves(halves: &[[u8; 2]; LANES]) -> Self;
    /// The integers, each below 2^16.
    fn to_halves(self) -> [[u8; 2]; LANES];
    /// The binary16 numbers in `halves`; a NaN may become a quiet one.
    fn from_f16(halves: &[[u8; 2]; LANES]) -> Self;
    /// The numbers as binary16, to nearest with ties to even; NaN becomes `0x7D00` with its sign.
    fn to_f16(self) -> [[u8; 2]; LANES];
    /// The numbers rounded to binary16. NaN stays one.
    fn round_to_f16(self) -> Self;
    fn from_bytes(bytes: [u8; LANES]) -> Self;
    /// The integers of 4 bits in `nibbles`, that in the lower half of a byte before the other.
    fn from_nibbles(nibbles: &[u8; 2 * LANES]) -> [Self; 4];
    /// The integers of four, each below 2^8.
    fn to_bytes(of: [Self; 4]) -> [u8; 4 * LANES];
    /// The integers of four, each below 2^4, two in a byte and the first in its lower half.
    fn to_nibbles(of: [Self; 4]) -> [u8; 2 * LANES];
    /// The integers of four, each below 2^`BITS`, eight of them in the low bits of one, the first lowest.
    fn to_eights<const BITS: usize>(of: [Self; 4]) -> [u64; 4];

    /// What stands in `table` at the lowest three bits of each integer.
    fn look_up(self, table: [u32; 8]) -> Self;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    /// Wraps around.
    fn plus(self, other: Self) -> Self;
    /// Wraps around.
    fn minus(self, other: Self) -> Self;
    fn shifted_left<const BY: i32>(self) -> Self;
    fn shifted_right<const BY: i32>(self) -> Self;
    /// The lesser integer.
    fn lesser(self, other: Self) -> Self;
    /// The greater integer.
    fn greater(self, other: Self) -> Self;
    /// All bits where the integer is above the other, both below 2^31, and none elsewhere.
    fn is_above(self, other: Self) -> Self;

    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    /// The sign of a NaN is not said.
    fn multiply(self, other: Self) -> Self;
    fn divide(self, other: Self) -> Self;
    /// The number, or `least` where it is not above that or NaN.
    fn at_least(self, least: Self) -> Self;
    /// The number, or `most` where it is not below that or NaN.
    fn at_most(self, most: Self) -> Self;
    /// All bits where the number is less than the other, and none elsewhere.
    fn is_less(self, other: Self) -> Self;
    /// All bits where the number is NaN, and none elsewhere.
    fn is_nan(self) -> Self;
    /// The integer nearest to the number, ties to even, where that is 0 to 2^22.
    fn to_integer(self) -> Self;
    /// The number of an integer below 2^23.
    fn to_number(self) -> Self;

    /// `then` where all bits are set, `otherwise` where none is.
    fn choose(self, then: Self, otherwise: Self) -> Self;

    /// The least and the largest of `values`, a multiple of sixteen, in the total order of IEEE 754.
    fn edges_of_halves(values: &[[u8; 2]]) -> (i16, i16);
    /// The least and the largest of `values`, a multiple of eight, in the total order of IEEE 754.
    fn edges_of_words(values: &[[u8; 4]]) -> (i32, i32);
    /// The largest of `values`, a multiple of sixteen, without their signs.
    fn magnitude_of_halves(values: &[[u8; 2]]) -> u16;
    /// The largest of `values`, a multiple of eight, without their signs.
    fn magnitude_of_words(values: &[[u8; 4]]) -> u32;

    #[inline(always)]
    fn splat(bits: u32) -> Self {
        Self::new([bits; LANES])
    }

    #[inline(always)]
    fn number(value: f32) -> Self {
        Self::splat(value.to_bits())
    }

    #[inline(always)]
    fn numbers(values: &[f32; LANES]) -> Self {
        let mut lanes = [0; LANES];
        for lane in 0..LANES {
            lanes[lane] = values[lane].to_bits();
        }
        Self::new(lanes)
    }

    #[inline(always)]
    fn to_numbers(self) -> [f32; LANES] {
        let lanes = self.lanes();
        let mut values = [0.0; LANES];
        for lane in 0..LANES {
            values[lane] = f32::from_bits(lanes[lane]);
        }
        values
    }

    /// Eight of `values`, from `start` on.
    #[inline(always)]
    fn eight_of<const N: usize>(values: &[f32; N], start: usize) -> Self {
        let mut lanes = [0.0; LANES];
        lanes.copy_from_slice(&values[start..start + LANES]);
        Self::numbers(&lanes)
    }

    #[inline(always)]
    fn magnitude(self) -> Self {
        self.and(Self::splat(super::float::MAGNITUDE))
    }
}

/// Lanes in an array.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain([u32; LANES]);

impl Plain {
    #[inline(always)]
    fn each(self, other: Self, of: impl Fn(u32, u32) -> u32) -> Self {
        let mut out = [0; LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            *out = of(self.0[lane], other.0[lane]);
        }
        Self(out)
    }

    #[inline(always)]
    fn each_number(self, other: Self, of: impl Fn(f32, f32) -> f32) -> Self {
        self.each(other, |left, right| of(f32::from_bits(left), f32::from_bits(right)).to_bits())
    }
}

/// All bits, or none.
#[inline(always)]
fn mask(is: bool) -> u32 {
    if is { u32::MAX } else { 0 }
}

impl Lanes for Plain {
    #[inline(always)]
    fn new(lanes: [u32; LANES]) -> Self {
        Self(lanes)
    }

    #[inline(always)]
    fn lanes(self) -> [u32; LANES] {
        self.0
    }

    #[inline(always)]
    fn from_halves(halves: &[[u8; 2]; LANES]) -> Self {
        Self(halves.map(|half| u16::from_le_bytes(half).into()))
    }

    #[inline(always)]
    fn to_halves(self) -> [[u8; 2]; LANES] {
        self.0.map(|lane| (lane as u16).to_le_bytes())
    }

    #[inline(always)]
    fn from_f16(halves: &[[u8; 2]; LANES]) -> Self {
        Self(halves.map(|half| from_f16(u16::from_le_bytes(half)).to_bits()))
    }

    #[inline(always)]
    fn to_f16(self) -> [[u8; 2]; LANES] {
        self.0.map(|lane| to_f16(f32::from_bits(lane)).to_le_bytes())
    }

    #[inline(always)]
    fn round_to_f16(self) -> Self {
        Self::from_f16(&self.to_f16())
    }

    #[inline(always)]
    fn from_bytes(bytes: [u8; LANES]) -> Self {
        Self(bytes.map(u32::from))
    }

    #[inline(always)]
    fn from_nibbles(nibbles: &[u8; 2 * LANES]) -> [Self; 4] {
        let mut of = [Self([0; LANES]); 4];
        for (lanes, nibbles) in of.iter_mut().zip(nibbles.as_chunks::<{ LANES / 2 }>().0) {
            for lane in 0..LANES {
                lanes.0[lane] = u32::from(nibbles[lane / 2] >> (lane % 2 * 4) & 15);
            }
        }
        of
    }

    #[inline(always)]
    fn to_bytes(of: [Self; 4]) -> [u8; 4 * LANES] {
        let mut bytes = [0; 4 * LANES];
        for (bytes, lanes) in bytes.as_chunks_mut::<LANES>().0.iter_mut().zip(of) {
            *bytes = lanes.0.map(|lane| lane as u8);
        }
        bytes
    }

    #[inline(always)]
    fn to_nibbles(of: [Self; 4]) -> [u8; 2 * LANES] {
        let bytes = Self::to_bytes(of);
        let mut nibbles = [0; 2 * LANES];
        for (nibbles, [low, high]) in nibbles.iter_mut().zip(bytes.as_chunks().0) {
            *nibbles = low | high << 4;
        }
        nibbles
    }

    #[inline(always)]
    fn to_eights<const BITS: usize>(of: [Self; 4]) -> [u64; 4] {
        let mut eights = [0; 4];
        for (eight, lanes) in eights.iter_mut().zip(of) {
            for (index, lane) in lanes.0.into_iter().enumerate() {
                *eight |= u64::from(lane) << (index * BITS);
            }
        }
        eights
    }

    #[inline(always)]
    fn look_up(self, table: [u32; 8]) -> Self {
        self.each(self, |lane, _| table[(lane & 7) as usize])
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        self.each(other, |left, right| left & right)
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        self.each(other, |left, right| left | right)
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        self.each(other, u32::wrapping_add)
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        self.each(other, u32::wrapping_sub)
    }

    #[inline(always)]
    fn shifted_left<const BY: i32>(self) -> Self {
        self.each(self, |lane, _| lane << BY)
    }

    #[inline(always)]
    fn shifted_right<const BY: i32>(self) -> Self {
        self.each(self, |lane, _| lane >> BY)
    }

    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        self.each(other, u32::min)
    }

    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        self.each(other, u32::max)
    }

    #[inline(always)]
    fn is_above(self, other: Self) -> Self {
        self.each(other, |left, right| mask(left > right))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.each_number(other, |left, right| left + right)
    }

    #[inline(always)]
    fn subtract(self, other: Self) -> Self {
        self.each_number(other, |left, right| left - right)
    }

    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        self.each_number(other, |left, right| left * right)
    }

    #[inline(always)]
    fn divide(self, other: Self) -> Self {
        self.each_number(other, |left, right| left / right)
    }

    #[inline(always)]
    fn at_least(self, least: Self) -> Self {
        self.each_number(least, |value, least| if value > least { value } else { least })
    }

    #[inline(always)]
    fn at_most(self, most: Self) -> Self {
        self.each_number(most, |value, most| if value < most { value } else { most })
    }

    #[inline(always)]
    fn is_less(self, other: Self) -> Self {
        self.each(other, |left, right| mask(f32::from_bits(left) < f32::from_bits(right)))
    }

    #[inline(always)]
    fn is_nan(self) -> Self {
        self.each(self, |lane, _| mask(f32::from_bits(lane).is_nan()))
    }

    #[inline(always)]
    fn to_integer(self) -> Self {
        /// Its unit in the last place is 1, so adding it rounds to an integer in the low bits.
        const MAGIC: f32 = 8_388_608.0;
        self.each(self, |lane, _| (f32::from_bits(lane) + MAGIC).to_bits() - MAGIC.to_bits())
    }

    #[inline(always)]
    fn to_number(self) -> Self {
        self.each(self, |lane, _| (lane as f32).to_bits())
    }

    #[inline(always)]
    fn choose(self, then: Self, otherwise: Self) -> Self {
        let then = self.and(then);
        then.or(self.each(otherwise, |mask, lane| !mask & lane))
    }

    #[inline(always)]
    fn edges_of_halves(values: &[[u8; 2]]) -> (i16, i16) {
        let (mut least, mut largest) = ([i16::MAX; LANES], [i16::MIN; LANES]);
        for values in values.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                let bits = i16::from_le_bytes(values[lane]);
                let order = bits ^ ((bits >> 15) as u16 >> 1) as i16;
                least[lane] = least[lane].min(order);
                largest[lane] = largest[lane].max(order);
            }
        }
        (least.into_iter().fold(i16::MAX, i16::min), largest.into_iter().fold(i16::MIN, i16::max))
    }

    #[inline(always)]
    fn edges_of_words(values: &[[u8; 4]]) -> (i32, i32) {
        let (mut least, mut largest) = ([i32::MAX; LANES], [i32::MIN; LANES]);
        for values in values.as_chunks::<LANES>().0 {
            for lane in 0..LANES {
                let bits = i32::from_le_bytes(values[lane]);
                let order = bits ^ ((bits >> 31) as u32 >> 1) as i32;
                least[lane] = least[lane].min(order);
                largest[lane] = largest[lane].max(order);
            }
        }
        (least.into_iter().fold(i32::MAX, i32::min), largest.into_iter().fold(i32::MIN, i32::max))
    }

    #[inline(always)]
    fn magnitude_of_halves(values: &[[u8; 2]]) -> u16 {
        values.iter().fold(0, |largest, value| largest.max(u16::from_le_bytes(*value) & 0x7FFF))
    }

    #[inline(always)]
    fn magnitude_of_words(values: &[[u8; 4]]) -> u32 {
        values.iter().fold(0, |largest, value| largest.max(u32::from_le_bytes(*value) & 0x7FFF_FFFF))
    }
}
