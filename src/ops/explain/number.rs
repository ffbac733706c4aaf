//! What the bits of one stored element say, and how far two of them are apart.

use crate::inventory::Dtype;
use crate::quant::{Float, Scheme, from_fp8};

/// One element as it is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Number {
    /// Its bits.
    pub bits: u64,
    /// What they stand for; `None` for what is no number, or of a type whose values kiln does not read. Of a code it is
    /// the weight that code, scale and bias give.
    pub value: Option<f64>,
}

/// How an array's elements are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Elements of the array's own type.
    Plain(Dtype),
    /// Scales that are stored as bytes and are floats.
    Scales(Scheme),
    /// Packed codes.
    Codes(Scheme),
}

impl Form {
    /// An element with these bits. The value of a code needs more than its bits.
    pub(super) fn number(self, bits: u64) -> Number {
        let value = match self {
            Self::Plain(dtype) => value(dtype, bits),
            Self::Scales(Scheme::Nvfp4) => value(Dtype::F8E4M3, bits),
            Self::Scales(_) => value(Dtype::F8E8M0, bits),
            Self::Codes(_) => None,
        };
        Number { bits, value: value.filter(|value| !value.is_nan()) }
    }

    /// How many floats of this type lie between two of them, the second counted; `None` where there is no such count.
    pub(super) fn ulp(self, ours: &Number, theirs: &Number) -> Option<u64> {
        let bits = match self {
            Self::Plain(Dtype::F64) => 64,
            Self::Plain(Dtype::F32) => 32,
            Self::Plain(Dtype::F16 | Dtype::Bf16) => 16,
            Self::Plain(Dtype::F8E4M3 | Dtype::F8E5M2) | Self::Scales(Scheme::Nvfp4) => 8,
            // No sign: the bits count up.
            Self::Plain(Dtype::F8E8M0) | Self::Scales(_) => 9,
            Self::Plain(_) | Self::Codes(_) => return None,
        };
        ours.value.and(theirs.value)?;
        // The bits of floats of one sign are in the order of their values.
        let rank = |number: &Number| {
            let magnitude = i128::from(number.bits & !(1 << (bits - 1)));
            if number.bits >> (bits - 1) & 1 == 1 { -magnitude } else { magnitude }
        };
        u64::try_from(rank(ours).abs_diff(rank(theirs))).ok()
    }
}

/// The value of an element of a type; `None` where kiln does not read it.
fn value(dtype: Dtype, bits: u64) -> Option<f64> {
    let float = |float: Float, bits: u64| f64::from(float.widen(&bits.to_le_bytes()));
    Some(match dtype {
        Dtype::Bool | Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => bits as f64,
        Dtype::I8 => f64::from(bits as i8),
        Dtype::I16 => f64::from(bits as i16),
        Dtype::I32 => f64::from(bits as i32),
        Dtype::I64 => bits as i64 as f64,
        Dtype::F16 => float(Float::F16, bits),
        Dtype::Bf16 => float(Float::Bf16, bits),
        Dtype::F32 => float(Float::F32, bits),
        Dtype::F64 => f64::from_bits(bits),
        Dtype::F8E4M3 => f64::from(from_fp8(bits as u8)),
        // The upper half of a binary16.
        Dtype::F8E5M2 => float(Float::F16, bits << 8),
        Dtype::F8E8M0 if bits == 0xFF => f64::NAN,
        Dtype::F8E8M0 => 2_f64.powi(bits as i32 - 127),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_their_type() {
        for (dtype, bits, value) in [
            (Dtype::Bf16, 0x3F80, Some(1.0)),
            (Dtype::F16, 0xC000, Some(-2.0)),
            (Dtype::F32, 0x3F00_0000, Some(0.5)),
            (Dtype::F64, 0x4008_0000_0000_0000, Some(3.0)),
            (Dtype::F8E4M3, 0x38, Some(1.0)),
            (Dtype::F8E5M2, 0x3C, Some(1.0)),
            (Dtype::F8E8M0, 0x80, Some(2.0)),
            (Dtype::F8E8M0, 0xFF, None),
            (Dtype::Bf16, 0x7FC0, None),
            (Dtype::I8, 0xFF, Some(-1.0)),
            (Dtype::I64, u64::MAX, Some(-1.0)),
            (Dtype::U32, 7, Some(7.0)),
            (Dtype::F8E4M3Fnuz, 1, None),
        ] {
            assert_eq!(Form::Plain(dtype).number(bits).value, value, "{dtype} {bits:#x}");
        }
        assert_eq!(Form::Scales(Scheme::Mxfp4).number(0x7E).value, Some(0.5));
        assert_eq!(Form::Scales(Scheme::Nvfp4).number(0x38).value, Some(1.0));
    }

    #[test]
    fn floats_are_counted_across_zero() {
        let ulp = |form: Form, a, b| form.ulp(&form.number(a), &form.number(b));
        let (bf16, f32) = (Form::Plain(Dtype::Bf16), Form::Plain(Dtype::F32));
        assert_eq!(ulp(bf16, 0x3F80, 0x3F81), Some(1));
        assert_eq!(ulp(bf16, 0x8001, 0x0001), Some(2));
        assert_eq!(ulp(bf16, 0x8000, 0x0000), Some(0), "two spellings of zero");
        assert_eq!(ulp(bf16, 0x7FC0, 0x3F80), None, "not a number");
        assert_eq!(ulp(f32, 0xFF7F_FFFF, 0x7F7F_FFFF), Some(2 * 0x7F7F_FFFF));
        assert_eq!(ulp(Form::Scales(Scheme::Mxfp8), 0x7F, 0x82), Some(3));
        assert_eq!(ulp(Form::Scales(Scheme::Nvfp4), 0x38, 0x39), Some(1));
        assert_eq!(ulp(Form::Plain(Dtype::I32), 1, 2), None);
        assert_eq!(ulp(Form::Plain(Dtype::F64), 0x8000_0000_0000_0001, 1), Some(2));
    }
}
