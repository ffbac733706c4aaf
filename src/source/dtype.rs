//! The element types of the safetensors format, spelled as its headers spell them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result, quoted};

/// The type of a tensor's elements.
///
/// The names are those of safetensors 0.8:
/// <https://docs.rs/safetensors/0.8.0/safetensors/tensor/enum.Dtype.html>. The types of less than a
/// byte (`F4`, `F6_E2M3`, `F6_E3M2`) are refused by name when parsed: no checkpoint in use has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Dtype {
    /// A byte that is 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    U8,
    /// Signed, 8 bits.
    I8,
    /// Unsigned, 16 bits.
    U16,
    /// Signed, 16 bits.
    I16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 32 bits.
    I32,
    /// Unsigned, 64 bits.
    U64,
    /// Signed, 64 bits.
    I64,
    /// 4 exponent and 3 mantissa bits, no infinities.
    F8E4M3,
    /// 5 exponent and 2 mantissa bits.
    F8E5M2,
    /// A power of two: 8 exponent bits, no sign.
    F8E8M0,
    /// As [`Dtype::F8E4M3`], finite and without a negative zero, another bias.
    F8E4M3Fnuz,
    /// As [`Dtype::F8E5M2`], finite and without a negative zero, another bias.
    F8E5M2Fnuz,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary64.
    F64,
    /// Two binary32: a complex number.
    C64,
}

const NAMES: [(&str, Dtype, u64); 19] = [
    ("BOOL", Dtype::Bool, 1),
    ("U8", Dtype::U8, 1),
    ("I8", Dtype::I8, 1),
    ("U16", Dtype::U16, 2),
    ("I16", Dtype::I16, 2),
    ("U32", Dtype::U32, 4),
    ("I32", Dtype::I32, 4),
    ("U64", Dtype::U64, 8),
    ("I64", Dtype::I64, 8),
    ("F8_E4M3", Dtype::F8E4M3, 1),
    ("F8_E5M2", Dtype::F8E5M2, 1),
    ("F8_E8M0", Dtype::F8E8M0, 1),
    ("F8_E4M3FNUZ", Dtype::F8E4M3Fnuz, 1),
    ("F8_E5M2FNUZ", Dtype::F8E5M2Fnuz, 1),
    ("F16", Dtype::F16, 2),
    ("BF16", Dtype::Bf16, 2),
    ("F32", Dtype::F32, 4),
    ("F64", Dtype::F64, 8),
    ("C64", Dtype::C64, 8),
];

impl Dtype {
    /// The name in a safetensors header: `BF16`.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].0
    }

    /// The size of one element in bytes.
    pub fn bytes(self) -> u64 {
        NAMES[self as usize].2
    }

    /// Whether an element is a floating-point number of 16 bits or more, which is what a weight
    /// that nobody quantized consists of.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32 | Self::F64)
    }
}

impl FromStr for Dtype {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some((_, dtype, _)) = NAMES.iter().find(|(name, ..)| *name == text) {
            return Ok(*dtype);
        }
        Err(Error::input(match text {
            "F4" | "F6_E2M3" | "F6_E3M2" => format!("The dtype `{text}` has elements of less than a byte"),
            _ => format!("The dtype {} is unknown", quoted(text)),
        }))
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_read_back() {
        for (at, (name, dtype, bytes)) in NAMES.into_iter().enumerate() {
            assert_eq!(dtype as usize, at, "{name}");
            assert_eq!(name.parse::<Dtype>().unwrap(), dtype);
            assert_eq!((dtype.to_string().as_str(), dtype.bytes()), (name, bytes));
        }
    }

    #[test]
    fn names_and_sizes_are_those_of_the_reference_library() {
        let reference = |dtype: safetensors::Dtype| (dtype.to_string(), dtype.bitsize() as u64 / 8);
        use safetensors::Dtype as D;
        let theirs = [
            D::BOOL,
            D::U8,
            D::I8,
            D::U16,
            D::I16,
            D::U32,
            D::I32,
            D::U64,
            D::I64,
            D::F8_E4M3,
            D::F8_E5M2,
            D::F8_E8M0,
            D::F8_E4M3FNUZ,
            D::F8_E5M2FNUZ,
            D::F16,
            D::BF16,
            D::F32,
            D::F64,
            D::C64,
        ];
        for (ours, theirs) in NAMES.iter().zip(theirs.map(reference)) {
            assert_eq!((ours.0.to_owned(), ours.2), theirs);
        }
    }

    #[test]
    fn other_names_are_refused_by_name() {
        for name in ["", "bf16", "Q4_K", "F31", "F8_E4M3FN", "F4", "F6_E2M3", "a\nb"] {
            let message = name.parse::<Dtype>().unwrap_err().to_string();
            assert!(message.contains(&format!("`{}`", name.escape_debug())), "{message}");
        }
    }
}
