//! FP8 E4M3 (the variant without infinity), and weights stored in it with a scale per block.
//!
//! Encoding rounds to nearest, ties to even, and saturates at 448; it never gives the NaN codes.
//! The types follow OCP 8-bit Floating Point Specification 1.0, the conversions MLX's CPU backend.

use std::marker::PhantomData;

use super::Float;
use super::float::{Bf16, Element, F16, F32};
use super::instructions::{Instructions, Kernel};
use super::lanes::{LANES, Lanes, Plain};
use super::mx::Code;

/// FP8 as the element type of an MX scheme.
#[derive(Clone, Copy, Debug)]
pub(super) struct E4M3;

impl Code<8> for E4M3 {
    const LARGEST: f32 = 448.0;

    #[inline(always)]
    fn encode<L: Lanes>(values: L) -> L {
        encode(values)
    }

    #[inline(always)]
    fn decode<L: Lanes>(codes: L) -> L {
        decode(codes)
    }
}

/// The E4M3 code nearest to `value`: 448 for whatever is larger, infinite or NaN; the sign is kept.
pub fn to_fp8(value: f32) -> u8 {
    encode(Plain::number(value)).lanes()[0] as u8
}

/// The value of the E4M3 `code`, exactly. The codes `0x7F` and `0xFF` are NaN.
pub fn from_fp8(code: u8) -> f32 {
    decode(Plain::splat(code.into())).to_numbers()[0]
}

/// As [`to_fp8`], of many.
#[inline(always)]
pub(super) fn encode<L: Lanes>(values: L) -> L {
    /// 2^-6, the smallest normal E4M3.
    const SMALLEST_NORMAL: u32 = 0x3C80_0000;
    /// From the exponent bias of binary32 to that of E4M3, and just less than half a step back.
    const REBIAS: u32 = ((127 - 7) << 23) - 0x7_FFFF;
    /// 2^14: its unit in the last place is 2^-9, that of a subnormal E4M3.
    const MAGIC: f32 = 16384.0;
    let sign = values.shifted_right::<24>().and(L::splat(0x80));
    let magnitude = values.magnitude();
    // A carry out of the mantissa moves the exponent on.
    let odd = magnitude.shifted_right::<20>().and(L::splat(1));
    let normal = magnitude.plus(odd).minus(L::splat(REBIAS)).shifted_right::<20>();
    let subnormal = magnitude.add(L::number(MAGIC)).minus(L::number(MAGIC));
    let is_subnormal = L::splat(SMALLEST_NORMAL).is_above(magnitude);
    // The code of 448 is the largest.
    is_subnormal.choose(subnormal, normal.lesser(L::splat(0x7E))).or(sign)
}

/// As [`from_fp8`], of many.
#[inline(always)]
pub(super) fn decode<L: Lanes>(codes: L) -> L {
    /// From the exponent bias of E4M3 to that of binary32.
    const REBIAS: u32 = (127 - 7) << 23;
    /// 2^-9, the unit of a subnormal E4M3.
    const UNIT: f32 = 1.0 / 512.0;
    let magnitude = codes.and(L::splat(0x7F));
    let normal = magnitude.shifted_left::<20>().plus(L::splat(REBIAS));
    let subnormal = magnitude.to_number().multiply(L::number(UNIT));
    let finite = L::splat(8).is_above(magnitude).choose(subnormal, normal);
    let value = magnitude.is_above(L::splat(0x7E)).choose(L::splat(0x7FF0_0000), finite);
    value.or(codes.and(L::splat(0x80)).shifted_left::<24>())
}

/// The shape of block-scaled E4M3 matrices: one scale per block of rows and columns, where the last block of a
/// row or column may be ragged. Several matrices (experts) follow each other, and so do their scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFp8 {
    /// Rows of one matrix.
    pub rows: usize,
    /// Columns of one matrix.
    pub columns: usize,
    /// Rows and columns of a block; neither is 0.
    pub block: [usize; 2],
    /// Type of the scales.
    pub scale: Float,
}

impl BlockFp8 {
    /// The block in which DeepSeek publishes.
    pub const BLOCK: [usize; 2] = [128, 128];

    /// Bytes of the scales of one matrix.
    pub fn scales_len(&self) -> usize {
        let [high, wide] = self.block;
        self.rows.div_ceil(high) * self.columns.div_ceil(wide) * self.scale.size()
    }
}

/// Decodes whole rows of E4M3 `codes` to bfloat16, multiplying each block by its scale.
///
/// `first_row` is the number of rows before them, counted through all matrices; `scales` are those of
/// all matrices. The product is computed in binary32 and rounded once. A NaN code gives NaN
/// (`0x7FC0`).
///
/// # Panics
/// When `codes` are not whole rows, `out` is not two bytes for each, or scales are missing.
pub fn block_fp8_decode(shape: BlockFp8, first_row: usize, codes: &[u8], scales: &[u8], out: &mut [u8]) {
    assert_eq!(out.len(), codes.len() * Bf16::SIZE, "length of the decoded rows");
    if codes.is_empty() {
        return;
    }
    assert!(codes.len().is_multiple_of(shape.columns), "{} codes are not rows of {}", codes.len(), shape.columns);
    let instructions = Instructions::default();
    match shape.scale {
        Float::Bf16 => instructions.run(Decode::<Bf16> { shape, first_row, codes, scales, out, scale: PhantomData }),
        Float::F16 => instructions.run(Decode::<F16> { shape, first_row, codes, scales, out, scale: PhantomData }),
        Float::F32 => instructions.run(Decode::<F32> { shape, first_row, codes, scales, out, scale: PhantomData }),
    }
}

struct Decode<'a, S> {
    shape: BlockFp8,
    first_row: usize,
    codes: &'a [u8],
    scales: &'a [u8],
    out: &'a mut [u8],
    scale: PhantomData<S>,
}

impl<S: Element> Kernel for Decode<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let BlockFp8 { rows, columns, block: [high, wide], .. } = self.shape;
        let (block_rows, block_columns) = (rows.div_ceil(high), columns.div_ceil(wide));
        let decoded = self.codes.chunks_exact(columns).zip(Bf16::elements_mut(self.out).chunks_exact_mut(columns));
        let scales = S::elements(self.scales);
        for (row, (codes, out)) in (self.first_row..).zip(decoded) {
            let block_row = row / rows * block_rows + row % rows / high;
            let scales = &scales[block_row * block_columns..][..block_columns];
            let blocks = codes.chunks(wide).zip(out.chunks_mut(wide));
            for ((codes, out), scale) in blocks.zip(scales) {
                let scale = S::widen(*scale);
                let (whole, rest) = codes.as_chunks::<LANES>();
                let (whole_out, rest_out) = out.as_chunks_mut::<LANES>();
                for (codes, out) in whole.iter().zip(whole_out) {
                    *out = times::<L>(*codes, scale);
                }
                // What is left of a row is filled up to eight codes.
                let mut codes = [0; LANES];
                codes[..rest.len()].copy_from_slice(rest);
                rest_out.copy_from_slice(&times::<L>(codes, scale)[..rest.len()]);
            }
        }
    }
}

/// The products of eight codes and their scale.
#[inline(always)]
fn times<L: Lanes>(codes: [u8; LANES], scale: f32) -> [[u8; 2]; LANES] {
    Bf16::store(decode(L::from_bytes(codes)).multiply(L::number(scale)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_but_nan_reads_back() {
        for code in 0..=u8::MAX {
            if code & 0x7F == 0x7F {
                assert!(from_fp8(code).is_nan());
            } else {
                assert_eq!(to_fp8(from_fp8(code)), code);
            }
        }
    }

    #[test]
    fn rounds_to_the_nearest_code_and_ties_to_even() {
        for code in 0..0x7E_u8 {
            let (low, high) = (from_fp8(code), from_fp8(code + 1));
            let middle = f32::midpoint(low, high);
            assert_eq!(to_fp8(middle), code + (code & 1), "{middle}");
            assert_eq!(to_fp8(middle.next_down()), code, "{middle}");
            assert_eq!(to_fp8(middle.next_up()), code + 1, "{middle}");
            assert_eq!(to_fp8(-middle), 0x80 | (code + (code & 1)), "{middle}");
        }
    }

    #[test]
    fn saturates_and_keeps_the_sign() {
        for (value, code) in [
            (448.0, 0x7E),
            (449.0, 0x7E),
            (f32::MAX, 0x7E),
            (f32::NEG_INFINITY, 0xFE),
            (f32::NAN, 0x7E),
            (-0.0, 0x80),
            (-1e-30, 0x80),
        ] {
            assert_eq!(to_fp8(value), code, "{value}");
        }
    }

    #[test]
    fn a_block_of_rows_takes_the_scales_of_its_matrix() {
        // Two matrices of 130 x 129: four blocks each, two of them one row or column wide.
        let shape = BlockFp8 { rows: 130, columns: 129, block: BlockFp8::BLOCK, scale: Float::F32 };
        assert_eq!(shape.scales_len(), 16);
        let scales: Vec<u8> = (1..=8).flat_map(|scale| (scale as f32).to_le_bytes()).collect();
        let codes = vec![to_fp8(2.0); 260 * 129];
        let mut whole = vec![0; codes.len() * 2];
        block_fp8_decode(shape, 0, &codes, &scales, &mut whole);
        let at = |row: usize, column: usize| Bf16::widen(Bf16::elements(&whole)[row * 129 + column]);
        for (row, column, scale) in
            [(0, 0, 1.0), (127, 128, 2.0), (128, 127, 3.0), (129, 128, 4.0), (130, 0, 5.0), (259, 128, 8.0)]
        {
            assert_eq!(at(row, column), 2.0 * scale, "{row}, {column}");
        }
        let mut part = vec![0; 3 * 129 * 2];
        block_fp8_decode(shape, 128, &codes[..3 * 129], &scales, &mut part);
        assert_eq!(part, whole[128 * 129 * 2..131 * 129 * 2]);
    }

    #[test]
    fn a_block_may_be_a_row_or_a_matrix() {
        let codes = vec![to_fp8(1.5); 4 * 3];
        let scales: Vec<u8> = (1..=4).flat_map(|scale| (scale as f32).to_le_bytes()).collect();
        let decoded = |rows, block| {
            let mut out = vec![0; codes.len() * 2];
            let shape = BlockFp8 { rows, columns: 3, block, scale: Float::F32 };
            block_fp8_decode(shape, 0, &codes, &scales, &mut out);
            Bf16::elements(&out).chunks_exact(3).map(|row| Bf16::widen(row[2])).collect::<Vec<_>>()
        };
        assert_eq!(decoded(4, [1, 3]), [1.5, 3.0, 4.5, 6.0], "one scale per row");
        assert_eq!(decoded(2, [2, 3]), [1.5, 1.5, 3.0, 3.0], "one per matrix of two rows");
        assert_eq!(decoded(4, [4, 3]), [1.5; 4], "one for all");
    }
}
