//! Block-fp8 on the way in: codes and scales become bfloat16, row by row.

use crate::error::{Error, Result, quoted};
use crate::plan::SourceTensor;
use crate::quant::{self, BlockFp8, Float};
use crate::source::Dtype;

/// The scales of a block-fp8 tensor, ready to decode whole rows of its codes.
pub(super) struct Decoder {
    shape: BlockFp8,
    scales: Vec<u8>,
}

impl Decoder {
    /// One byte of code becomes two of bfloat16.
    pub(super) const GROWTH: u64 = 2;

    pub(super) fn new(weight: &SourceTensor, scales: &SourceTensor, bytes: Vec<u8>) -> Result<Self> {
        let [.., rows, columns] = weight.shape[..] else {
            return Err(Error::input(format!("{} is F8_E4M3, but not a matrix", quoted(&weight.name))));
        };
        let (scale, scales) = match scales.dtype {
            Dtype::Bf16 => (Float::Bf16, bytes),
            Dtype::F16 => (Float::F16, bytes),
            Dtype::F32 => (Float::F32, bytes),
            Dtype::F8E8M0 => (Float::F32, bytes.iter().flat_map(|&byte| power_of_two(byte).to_le_bytes()).collect()),
            other => {
                let name = quoted(&scales.name);
                return Err(Error::input(format!("The scales {name} have the dtype {other}, which is not supported")));
            }
        };
        Ok(Self { shape: BlockFp8 { rows: rows as usize, columns: columns as usize, scale }, scales })
    }

    pub(super) fn row_bytes(&self) -> u64 {
        self.shape.columns as u64
    }

    /// The values of `codes`, which start at byte `at` of the tensor, in `rows`.
    pub(super) fn decode<'a>(&self, at: u64, codes: &[u8], rows: &'a mut Vec<u8>) -> &'a [u8] {
        rows.resize(codes.len() * Self::GROWTH as usize, 0);
        let first_row = (at / self.row_bytes()) as usize;
        quant::block_fp8_decode(self.shape, first_row, codes, &self.scales, rows);
        rows
    }
}

/// The value of an E8M0 scale; 255 is its NaN.
fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_e8m0_scale_is_a_power_of_two() {
        for (byte, expected) in
            [(0, 2.0_f32.powi(-127)), (1, f32::MIN_POSITIVE), (127, 1.0), (130, 8.0), (254, 2.0_f32.powi(127))]
        {
            assert_eq!(power_of_two(byte), expected, "{byte}");
        }
        assert!(power_of_two(255).is_nan());
    }
}
