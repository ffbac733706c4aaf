//! The quantization schemes: their names, group sizes, and the sizes of what they produce.

use std::fmt;
use std::str::FromStr;

use super::Float;
use crate::error::{Error, ErrorKind, Result, quoted};

/// A way to quantize a tensor.
///
/// The modes and their group sizes are those of `mx.quantize`
/// (<https://github.com/ml-explore/mlx/blob/v0.32.4/python/src/ops.cpp>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    /// Integer codes with a scale and a bias per group, both of the tensor's own type.
    Affine {
        /// Width of a code: 2, 3, 4, 5, 6 or 8.
        bits: u8,
        /// Elements that share a scale and a bias: 32, 64 or 128.
        group: u16,
    },
    /// FP4 E2M1 codes, an E8M0 scale per 32 elements (OCP Microscaling Formats 1.0).
    Mxfp4,
    /// FP8 E4M3 codes, an E8M0 scale per 32 elements (OCP Microscaling Formats 1.0).
    Mxfp8,
    /// FP4 E2M1 codes, an E4M3 scale per 16 elements.
    Nvfp4,
}

const BITS: [u8; 6] = [2, 3, 4, 5, 6, 8];
const GROUPS: [u16; 3] = [32, 64, 128];

impl Scheme {
    /// Affine, 4 bits, groups of 64.
    pub const INT4: Self = Self::Affine { bits: 4, group: 64 };
    /// Affine, 8 bits, groups of 64.
    pub const INT8: Self = Self::Affine { bits: 8, group: 64 };

    /// Every scheme there is.
    pub fn all() -> impl Iterator<Item = Self> {
        let affine = BITS.into_iter().flat_map(|bits| GROUPS.map(|group| Self::Affine { bits, group }));
        affine.chain([Self::Mxfp4, Self::Mxfp8, Self::Nvfp4])
    }

    /// Whether the widths of an affine scheme are among the supported ones.
    pub(super) fn exists(self) -> bool {
        match self {
            Self::Affine { bits, group } => BITS.contains(&bits) && GROUPS.contains(&group),
            Self::Mxfp4 | Self::Mxfp8 | Self::Nvfp4 => true,
        }
    }

    /// Elements that share a scale.
    pub fn group_size(self) -> usize {
        match self {
            Self::Affine { group, .. } => usize::from(group),
            Self::Mxfp4 | Self::Mxfp8 => 32,
            Self::Nvfp4 => 16,
        }
    }

    /// Whether the rows of `shape` divide into groups.
    pub fn divides(self, shape: &[u64]) -> bool {
        shape.last().is_some_and(|&columns| columns > 0 && columns % self.group_size() as u64 == 0)
    }

    /// Width of a code in bits.
    pub fn bits(self) -> u32 {
        match self {
            Self::Affine { bits, .. } => u32::from(bits),
            Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Mxfp8 => 8,
        }
    }

    /// Whether a group has a bias besides its scale.
    pub fn has_biases(self) -> bool {
        matches!(self, Self::Affine { .. })
    }

    /// MLX's name of the mode: `affine`, `mxfp4`, `mxfp8` or `nvfp4`.
    pub fn mode(self) -> &'static str {
        match self {
            Self::Affine { .. } => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// Bytes of the codes of `elements` elements, a whole number of groups.
    pub fn packed_len(self, elements: usize) -> usize {
        // A group is a multiple of 8 elements: dividing first loses nothing and cannot overflow.
        elements / 8 * self.bits() as usize
    }

    /// The code of element `index` in `packed`; `None` behind the end.
    pub fn code(self, packed: &[u8], index: usize) -> Option<u8> {
        let bits = self.bits() as usize;
        let (byte, shift) = (index.checked_mul(bits)? / 8, index * bits % 8);
        let low = *packed.get(byte)?;
        let high = if shift + bits > 8 { *packed.get(byte + 1)? } else { 0 };
        let mask = u16::MAX >> (16 - bits);
        Some((u16::from_le_bytes([low, high]) >> shift & mask) as u8)
    }

    /// Bytes of the scales of `elements` elements of type `float`: the tensor's own type in the
    /// affine schemes, one byte each in the others.
    pub fn scales_len(self, elements: usize, float: Float) -> usize {
        let groups = elements / self.group_size();
        if self.has_biases() { groups * float.size() } else { groups }
    }

    /// Bytes of the biases of `elements` elements of type `float`; 0 where there are none.
    pub fn biases_len(self, elements: usize, float: Float) -> usize {
        if self.has_biases() { self.scales_len(elements, float) } else { 0 }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::INT4 => f.write_str("int4"),
            Self::INT8 => f.write_str("int8"),
            Self::Affine { bits, group } => write!(f, "affine{bits}-g{group}"),
            other => f.write_str(other.mode()),
        }
    }
}

impl FromStr for Scheme {
    type Err = Error;

    /// Reads a name in any case; `q4`, `fp4`, `q8` and `fp8` are what Ollama also calls `int4` and `int8`.
    fn from_str(text: &str) -> Result<Self> {
        let name = text.to_ascii_lowercase();
        let scheme = match name.as_str() {
            "int4" | "q4" | "fp4" => Some(Self::INT4),
            "int8" | "q8" | "fp8" => Some(Self::INT8),
            _ => Self::all().find(|scheme| match *scheme {
                Self::Affine { bits, group } => name == format!("affine{bits}-g{group}"),
                other => name == other.mode(),
            }),
        };
        scheme.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("There is no quantization scheme {}", quoted(text)))
                .hint("use int4, int8, nvfp4, mxfp4, mxfp8 or affine{2,3,4,5,6,8}-g{32,64,128}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_reads_back_what_it_prints() {
        assert_eq!(Scheme::all().count(), 21);
        for scheme in Scheme::all() {
            assert_eq!(scheme.to_string().parse::<Scheme>().unwrap(), scheme);
            assert_eq!(scheme.to_string().to_uppercase().parse::<Scheme>().unwrap(), scheme);
            assert!(scheme.exists());
        }
    }

    #[test]
    fn names_and_aliases() {
        for (name, scheme, canonical) in [
            ("int4", Scheme::INT4, "int4"),
            ("FP4", Scheme::INT4, "int4"),
            ("q4", Scheme::INT4, "int4"),
            ("affine4-g64", Scheme::INT4, "int4"),
            ("Q8", Scheme::INT8, "int8"),
            ("fp8", Scheme::INT8, "int8"),
            ("affine3-g32", Scheme::Affine { bits: 3, group: 32 }, "affine3-g32"),
            ("NVFP4", Scheme::Nvfp4, "nvfp4"),
            ("mxfp8", Scheme::Mxfp8, "mxfp8"),
        ] {
            assert_eq!(name.parse::<Scheme>().unwrap(), scheme, "{name}");
            assert_eq!(scheme.to_string(), canonical, "{name}");
        }
    }

    #[test]
    fn refuses_what_does_not_exist() {
        for name in ["", "int5", "affine7-g64", "affine4-g16", "affine4", "affine04-g64", "affine", "mxfp4 "] {
            let error = name.parse::<Scheme>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
            assert!(error.hint_text().unwrap().contains("affine{2,3,4,5,6,8}-g{32,64,128}"));
        }
    }

    #[test]
    fn a_code_is_the_bits_from_its_index_times_their_number() {
        let packed = [0b1010_0101, 0b0011_1100, 0b1111_0000];
        let three = Scheme::Affine { bits: 3, group: 32 };
        for (scheme, index, code) in [
            (Scheme::INT4, 0, Some(0b0101)),
            (Scheme::INT4, 3, Some(0b0011)),
            (Scheme::INT8, 2, Some(0b1111_0000)),
            (three, 0, Some(0b101)),
            (three, 2, Some(0b010)),
            (three, 7, Some(0b111)),
            (three, 8, None),
            (Scheme::INT4, 6, None),
            (Scheme::INT4, usize::MAX, None),
        ] {
            assert_eq!(scheme.code(&packed, index), code, "{scheme} {index}");
        }
    }

    #[test]
    fn sizes_of_the_parts() {
        for (scheme, float, packed, scales, biases) in [
            (Scheme::INT4, Float::Bf16, 128, 8, 8),
            (Scheme::INT8, Float::F32, 256, 16, 16),
            (Scheme::Affine { bits: 3, group: 128 }, Float::F16, 96, 4, 4),
            (Scheme::Mxfp4, Float::F32, 128, 8, 0),
            (Scheme::Mxfp8, Float::Bf16, 256, 8, 0),
            (Scheme::Nvfp4, Float::F16, 128, 16, 0),
        ] {
            assert_eq!(scheme.packed_len(256), packed, "{scheme}");
            assert_eq!(scheme.scales_len(256, float), scales, "{scheme}");
            assert_eq!(scheme.biases_len(256, float), biases, "{scheme}");
        }
    }
}
