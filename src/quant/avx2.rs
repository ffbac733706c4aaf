//! Lanes in a register of AVX2. Binary16 is converted by F16C, which every processor with AVX2 has.
#![expect(unsafe_code, reason = "the intrinsics need instructions that not every processor has")]

use std::arch::x86_64::*;
use std::mem::transmute;

use super::float::MAGNITUDE;
use super::lanes::{LANES, Lanes};

/// Eight lanes. Only `Instructions::run` chooses this type, after it found AVX2 and F16C, and the kernels name none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(__m256i);

/// Runs intrinsics of AVX2 and F16C, and transmutes between registers and arrays.
macro_rules! registers {
    ($($body:tt)*) => {
        // SAFETY: the processor has AVX2 and F16C: what chose this type found them. A transmute is between an array of
        // integers and a register, of the same size as the compiler checks, and every pattern of bits is a value of both.
        unsafe { $($body)* }
    };
}

impl Avx2 {
    #[inline(always)]
    fn float(self) -> __m256 {
        registers!(_mm256_castsi256_ps(self.0))
    }

    #[inline(always)]
    fn of(float: __m256) -> Self {
        Self(registers!(_mm256_castps_si256(float)))
    }
}

/// The least of eight unsigned integers of 16 bits.
#[inline(always)]
fn least_of_halves(values: __m128i) -> u16 {
    registers!(_mm_cvtsi128_si32(_mm_minpos_epu16(values)) as u16)
}

/// `of` each lane and one that lies by half as many lanes further, thrice, so that the first lane has that of all.
macro_rules! fold_words {
    ($of:ident, $values:expr) => {{
        let four = $of(_mm256_castsi256_si128($values), _mm256_extracti128_si256::<1>($values));
        let two = $of(four, _mm_shuffle_epi32::<0b1110>(four));
        let one = $of(two, _mm_shuffle_epi32::<0b01>(two));
        _mm_cvtsi128_si32(one)
    }};
}

impl Lanes for Avx2 {
    #[inline(always)]
    fn new(lanes: [u32; LANES]) -> Self {
        Self(registers!(transmute::<[u32; LANES], __m256i>(lanes)))
    }

    #[inline(always)]
    fn lanes(self) -> [u32; LANES] {
        registers!(transmute::<__m256i, [u32; LANES]>(self.0))
    }

    #[inline(always)]
    fn from_halves(halves: &[[u8; 2]; LANES]) -> Self {
        Self(registers!(_mm256_cvtepu16_epi32(transmute::<[[u8; 2]; LANES], __m128i>(*halves))))
    }

    #[inline(always)]
    fn to_halves(self) -> [[u8; 2]; LANES] {
        registers! {
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(self.0), _mm256_extracti128_si256::<1>(self.0));
            transmute::<__m128i, [[u8; 2]; LANES]>(halves)
        }
    }

    #[inline(always)]
    fn from_f16(halves: &[[u8; 2]; LANES]) -> Self {
        Self::of(registers!(_mm256_cvtph_ps(transmute::<[[u8; 2]; LANES], __m128i>(*halves))))
    }

    #[inline(always)]
    fn to_f16(self) -> [[u8; 2]; LANES] {
        let nan = self.is_nan().0;
        registers! {
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.float());
            // The instruction keeps what it can of a NaN.
            let nan = _mm_packs_epi32(_mm256_castsi256_si128(nan), _mm256_extracti128_si256::<1>(nan));
            let signed = _mm_and_si128(halves, _mm_set1_epi16(i16::MIN));
            let nans = _mm_or_si128(signed, _mm_set1_epi16(0x7D00));
            transmute::<__m128i, [[u8; 2]; LANES]>(_mm_blendv_epi8(halves, nans, nan))
        }
    }

    #[inline(always)]
    fn round_to_f16(self) -> Self {
        Self::of(registers!(_mm256_cvtph_ps(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.float()))))
    }

    #[inline(always)]
    fn from_nibbles(nibbles: &[u8; 2 * LANES]) -> [Self; 4] {
        registers! {
            let pairs = _mm256_cvtepu8_epi16(transmute::<[u8; 2 * LANES], __m128i>(*nibbles));
            let bytes = _mm256_or_si256(pairs, _mm256_slli_epi16::<4>(pairs));
            let bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
            let (low, high) = (_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes));
            [
                Self(_mm256_cvtepu8_epi32(low)),
                Self(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(low))),
                Self(_mm256_cvtepu8_epi32(high)),
                Self(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(high))),
            ]
        }
    }

    #[inline(always)]
    fn from_bytes(bytes: [u8; LANES]) -> Self {
        Self(registers!(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)))))
    }

    #[inline(always)]
    fn to_bytes(of: [Self; 4]) -> [u8; 4 * LANES] {
        registers!(transmute::<__m256i, [u8; 4 * LANES]>(bytes(of)))
    }

    #[inline(always)]
    fn to_nibbles(of: [Self; 4]) -> [u8; 2 * LANES] {
        registers! {
            // One of every two bytes times 1 and the other times 16, added up in a half word.
            let pairs = _mm256_maddubs_epi16(bytes(of), _mm256_set1_epi16(0x1001));
            let nibbles = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
            transmute::<__m128i, [u8; 2 * LANES]>(nibbles)
        }
    }

    #[inline(always)]
    fn to_eights<const BITS: usize>(of: [Self; 4]) -> [u64; 4] {
        registers! {
            // One of every two times 1 and the other times a power of two, added up in a number of twice the width.
            let pairs = _mm256_maddubs_epi16(bytes(of), _mm256_set1_epi16(1 | 1 << (8 + BITS)));
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(1 | 1 << (16 + 2 * BITS)));
            let low = _mm256_and_si256(fours, _mm256_set1_epi64x(0xFFFF_FFFF));
            let high = _mm256_srli_epi64::<32>(fours);
            let high = _mm256_sll_epi64(high, _mm_cvtsi32_si128(4 * BITS as i32));
            transmute::<__m256i, [u64; 4]>(_mm256_or_si256(low, high))
        }
    }

    #[inline(always)]
    fn look_up(self, table: [u32; 8]) -> Self {
        Self(registers!(_mm256_permutevar8x32_epi32(transmute::<[u32; 8], __m256i>(table), self.0)))
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self(registers!(_mm256_and_si256(self.0, other.0)))
    }

    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self(registers!(_mm256_or_si256(self.0, other.0)))
    }

    #[inline(always)]
    fn plus(self, other: Self) -> Self {
        Self(registers!(_mm256_add_epi32(self.0, other.0)))
    }

    #[inline(always)]
    fn minus(self, other: Self) -> Self {
        Self(registers!(_mm256_sub_epi32(self.0, other.0)))
    }

    #[inline(always)]
    fn shifted_left<const BY: i32>(self) -> Self {
        Self(registers!(_mm256_slli_epi32::<BY>(self.0)))
    }

    #[inline(always)]
    fn shifted_right<const BY: i32>(self) -> Self {
        Self(registers!(_mm256_srli_epi32::<BY>(self.0)))
    }

    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        Self(registers!(_mm256_min_epu32(self.0, other.0)))
    }

    #[inline(always)]
    fn greater(self, other: Self) -> Self {
        Self(registers!(_mm256_max_epu32(self.0, other.0)))
    }

    #[inline(always)]
    fn is_above(self, other: Self) -> Self {
        Self(registers!(_mm256_cmpgt_epi32(self.0, other.0)))
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self::of(registers!(_mm256_add_ps(self.float(), other.float())))
    }

    #[inline(always)]
    fn subtract(self, other: Self) -> Self {
        Self::of(registers!(_mm256_sub_ps(self.float(), other.float())))
    }

    #[inline(always)]
    fn multiply(self, other: Self) -> Self {
        Self::of(registers!(_mm256_mul_ps(self.float(), other.float())))
    }

    #[inline(always)]
    fn divide(self, other: Self) -> Self {
        Self::of(registers!(_mm256_div_ps(self.float(), other.float())))
    }

    #[inline(always)]
    fn at_least(self, least: Self) -> Self {
        // The second operand where they are equal or one is NaN.
        Self::of(registers!(_mm256_max_ps(self.float(), least.float())))
    }

    #[inline(always)]
    fn at_most(self, most: Self) -> Self {
        Self::of(registers!(_mm256_min_ps(self.float(), most.float())))
    }

    #[inline(always)]
    fn is_less(self, other: Self) -> Self {
        Self::of(registers!(_mm256_cmp_ps::<_CMP_LT_OQ>(self.float(), other.float())))
    }

    #[inline(always)]
    fn is_nan(self) -> Self {
        Self::of(registers!(_mm256_cmp_ps::<_CMP_UNORD_Q>(self.float(), self.float())))
    }

    #[inline(always)]
    fn to_integer(self) -> Self {
        // Rounds as the environment says, and Rust says to nearest with ties to even.
        Self(registers!(_mm256_cvtps_epi32(self.float())))
    }

    #[inline(always)]
    fn to_number(self) -> Self {
        Self::of(registers!(_mm256_cvtepi32_ps(self.0)))
    }

    #[inline(always)]
    fn choose(self, then: Self, otherwise: Self) -> Self {
        Self(registers!(_mm256_blendv_epi8(otherwise.0, then.0, self.0)))
    }

    #[inline(always)]
    fn edges_of_halves(values: &[[u8; 2]]) -> (i16, i16) {
        registers! {
            let (mut least, mut largest) = (_mm256_set1_epi16(i16::MAX), _mm256_set1_epi16(i16::MIN));
            for sixteen in values.as_chunks::<16>().0 {
                let bits = transmute::<[[u8; 2]; 16], __m256i>(*sixteen);
                let order = _mm256_xor_si256(bits, _mm256_srli_epi16::<1>(_mm256_srai_epi16::<15>(bits)));
                least = _mm256_min_epi16(least, order);
                largest = _mm256_max_epi16(largest, order);
            }
            // With the sign turned over, the order is that of unsigned integers.
            let least = _mm_min_epi16(_mm256_castsi256_si128(least), _mm256_extracti128_si256::<1>(least));
            let least = least_of_halves(_mm_xor_si128(least, _mm_set1_epi16(i16::MIN)));
            let largest = _mm_max_epi16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
            let largest = least_of_halves(_mm_xor_si128(largest, _mm_set1_epi16(i16::MAX)));
            ((least ^ 0x8000) as i16, (largest ^ 0x7FFF) as i16)
        }
    }

    #[inline(always)]
    fn edges_of_words(values: &[[u8; 4]]) -> (i32, i32) {
        registers! {
            let (mut least, mut largest) = (_mm256_set1_epi32(i32::MAX), _mm256_set1_epi32(i32::MIN));
            for eight in values.as_chunks::<8>().0 {
                let bits = transmute::<[[u8; 4]; 8], __m256i>(*eight);
                let order = _mm256_xor_si256(bits, _mm256_srli_epi32::<1>(_mm256_srai_epi32::<31>(bits)));
                least = _mm256_min_epi32(least, order);
                largest = _mm256_max_epi32(largest, order);
            }
            (fold_words!(_mm_min_epi32, least), fold_words!(_mm_max_epi32, largest))
        }
    }

    #[inline(always)]
    fn magnitude_of_halves(values: &[[u8; 2]]) -> u16 {
        registers! {
            let mut largest = _mm256_setzero_si256();
            for sixteen in values.as_chunks::<16>().0 {
                let bits = transmute::<[[u8; 2]; 16], __m256i>(*sixteen);
                largest = _mm256_max_epi16(largest, _mm256_and_si256(bits, _mm256_set1_epi16(i16::MAX)));
            }
            let largest = _mm_max_epi16(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
            least_of_halves(_mm_xor_si128(largest, _mm_set1_epi16(-1))) ^ 0xFFFF
        }
    }

    #[inline(always)]
    fn magnitude_of_words(values: &[[u8; 4]]) -> u32 {
        registers! {
            let mut largest = _mm256_setzero_si256();
            for eight in values.as_chunks::<8>().0 {
                let bits = transmute::<[[u8; 4]; 8], __m256i>(*eight);
                largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(MAGNITUDE as i32)));
            }
            fold_words!(_mm_max_epi32, largest) as u32
        }
    }
}

/// The integers of four, each below 2^8, in their order.
#[inline(always)]
fn bytes([first, second, third, fourth]: [Avx2; 4]) -> __m256i {
    registers! {
        let halves = [_mm256_packus_epi32(first.0, second.0), _mm256_packus_epi32(third.0, fourth.0)];
        // Each half of the register packed for itself: four bytes of each operand in turn, the upper halves behind.
        let mixed = _mm256_packus_epi16(halves[0], halves[1]);
        _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }
}
