//! Codes on the way in: they become values row by row, with the scales of those rows.

use crate::error::{Error, Result, quoted};
use crate::plan::{Decode, PlannedTensor, SourceTensor};
use crate::quant::{self, BlockFp8, Float, Scheme};
use crate::source::{Checkpoint, Dtype, TensorInfo};

use super::write::stored;

/// What is needed to decode whole rows of one source.
pub(super) struct Decoder<'a> {
    /// Bytes of a row in the source, and of its values.
    pub(super) row: [u64; 2],
    codes: Codes<'a>,
}

enum Codes<'a> {
    Fp8 {
        shape: BlockFp8,
        scales: Vec<u8>,
    },
    Scheme(Coded<'a>),
    /// The name of the global scale.
    Reciprocal(&'a str),
}

/// The codes of a scheme.
struct Coded<'a> {
    scheme: Scheme,
    /// The type of the values, and of scales and biases in the affine schemes.
    float: Float,
    columns: usize,
    /// Rows of a matrix with a global scale of its own.
    matrix: u64,
    checkpoint: &'a Checkpoint,
    scales: &'a TensorInfo,
    biases: Option<&'a TensorInfo>,
    globals: Vec<f32>,
}

impl<'a> Decoder<'a> {
    /// The decoder of a source, which hashes what belongs to its codes; `None` for values as they are.
    ///
    /// # Errors
    /// When a part of it cannot be read, or has a type that is not supported.
    pub(super) fn of(
        tensor: &'a PlannedTensor,
        source: usize,
        checkpoint: &'a Checkpoint,
        hashers: &mut [blake3::Hasher],
    ) -> Result<Option<Self>> {
        let Some(decode) = tensor.sources[source].decode else { return Ok(None) };
        let part = |index: usize| stored(checkpoint, &tensor.sources[index].name);
        let whole = |index: usize, hashers: &mut [blake3::Hasher]| {
            let info = part(index)?;
            let mut bytes = vec![0; info.len() as usize];
            checkpoint.read_at(info, 0, &mut bytes)?;
            hashers[index].update(&bytes);
            Ok::<_, Error>(bytes)
        };
        let last = |index: usize| tensor.sources[index].shape.last().copied().unwrap_or_default();
        Ok(Some(match decode {
            Decode::Reciprocal => Self { row: [4, 4], codes: Codes::Reciprocal(&tensor.sources[source].name) },
            Decode::Fp8 { scales, rows, block } => {
                let (info, columns) = (part(scales)?, last(source));
                let (scale, bytes) = widened(info, whole(scales, hashers)?)?;
                let block = block.map(|edge| edge as usize);
                let shape = BlockFp8 { rows: rows as usize, columns: columns as usize, block, scale };
                Self { row: [columns, 2 * columns], codes: Codes::Fp8 { shape, scales: bytes } }
            }
            Decode::Scheme { scheme, scales, biases, global } => {
                // Codes are packed in more than one way; there is one scale for each group in all of them.
                let columns = last(scales) * scheme.group_size() as u64;
                let float = tensor.read_as().unwrap_or(Float::Bf16);
                for index in [Some(scales), biases].into_iter().flatten() {
                    hash(checkpoint, part(index)?, &mut hashers[index])?;
                }
                let globals = match global {
                    Some(index) => {
                        let SourceTensor { name, decode, .. } = &tensor.sources[index];
                        let mut bytes = whole(index, hashers)?;
                        if *decode == Some(Decode::Reciprocal) {
                            reciprocals(name, &mut bytes)?;
                        }
                        bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
                    }
                    None => Vec::new(),
                };
                let coded = Coded {
                    scheme,
                    float,
                    columns: columns as usize,
                    matrix: match tensor.sources[source].shape[..] {
                        [.., rows, _] => rows,
                        _ => 1,
                    },
                    checkpoint,
                    scales: part(scales)?,
                    biases: biases.map(part).transpose()?,
                    globals,
                };
                let bytes = columns / 8 * u64::from(scheme.bits());
                Self { row: [bytes, columns * float.size() as u64], codes: Codes::Scheme(coded) }
            }
        }))
    }

    /// The values of whole rows, of which the first is row `first` of the source, in `rows`.
    pub(super) fn decode<'b>(&self, first: u64, codes: &[u8], rows: &'b mut Vec<u8>) -> Result<&'b [u8]> {
        let [from, to] = self.row;
        rows.resize((codes.len() as u64 / from * to) as usize, 0);
        match &self.codes {
            Codes::Reciprocal(name) => {
                rows.copy_from_slice(codes);
                reciprocals(name, rows)?;
            }
            Codes::Fp8 { shape, scales } => quant::block_fp8_decode(*shape, first as usize, codes, scales, rows),
            Codes::Scheme(coded) => coded.decode(first, codes, rows)?,
        }
        Ok(rows)
    }
}

impl Coded<'_> {
    fn decode(&self, first: u64, codes: &[u8], out: &mut [u8]) -> Result<()> {
        let elements = out.len() / self.float.size();
        let groups = (self.columns / self.scheme.group_size()) as u64;
        let read = |info: &TensorInfo, length: usize| {
            let mut bytes = vec![0; length];
            let group = if self.scheme.has_biases() { self.float.size() as u64 } else { 1 };
            self.checkpoint.read_at(info, first * groups * group, &mut bytes).map(|()| bytes)
        };
        let scales = read(self.scales, self.scheme.scales_len(elements, self.float))?;
        let biases = match self.biases {
            Some(biases) => read(biases, self.scheme.biases_len(elements, self.float))?,
            None => Vec::new(),
        };
        if self.globals.is_empty() {
            quant::dequantize(self.scheme, self.float, codes, &scales, &biases, out);
            return Ok(());
        }
        let (code_row, scale_row) = (self.columns / 2, groups as usize);
        let rows = codes.chunks_exact(code_row).zip(scales.chunks_exact(scale_row));
        for ((row, (codes, scales)), out) in (first..).zip(rows).zip(out.chunks_exact_mut(2 * self.columns)) {
            let global = match &self.globals[..] {
                [one] => *one,
                each => each[(row / self.matrix) as usize],
            };
            quant::nvfp4_decode(global, codes, scales, out);
        }
        Ok(())
    }
}

/// Adds the bytes of a tensor to a hash, without holding them.
fn hash(checkpoint: &Checkpoint, info: &TensorInfo, hasher: &mut blake3::Hasher) -> Result<()> {
    const CHUNK: u64 = 1 << 16;
    for at in (0..info.len()).step_by(CHUNK as usize) {
        let mut bytes = vec![0; CHUNK.min(info.len() - at) as usize];
        checkpoint.read_at(info, at, &mut bytes)?;
        hasher.update(&bytes);
    }
    Ok(())
}

/// Replaces each binary32 by one divided by it.
fn reciprocals(name: &str, bytes: &mut [u8]) -> Result<()> {
    for bytes in bytes.as_chunks_mut().0 {
        let divisor = f32::from_le_bytes(*bytes);
        let factor = 1.0 / divisor;
        if !factor.is_normal() {
            return Err(Error::input(format!("The global scale {} is {divisor}", quoted(name)))
                .hint("download the checkpoint again, and compare its files"));
        }
        *bytes = factor.to_le_bytes();
    }
    Ok(())
}

/// The scales of FP8, in a type that multiplies.
fn widened(scales: &TensorInfo, bytes: Vec<u8>) -> Result<(Float, Vec<u8>)> {
    Ok(match scales.dtype {
        Dtype::Bf16 => (Float::Bf16, bytes),
        Dtype::F16 => (Float::F16, bytes),
        Dtype::F32 => (Float::F32, bytes),
        Dtype::F8E8M0 => (Float::F32, bytes.iter().flat_map(|&byte| power_of_two(byte).to_le_bytes()).collect()),
        other => return Err(Error::input(format!("Scales have the dtype {other}, which is not supported"))),
    })
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
