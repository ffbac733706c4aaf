//! Quantization schemes and their kernels: slices of little-endian bytes in, slices out.
//!
//! The arithmetic is that of MLX's CPU backend, bit for bit, for every finite input
//! (<https://github.com/ml-explore/mlx/tree/v0.32.4/mlx/backend/cpu>); [`NUMERICS`] names it. Everything
//! is IEEE binary32 with one rounding per operation: no contraction, no fast-math, no mathematical
//! library, so that every processor gives the same bytes. A non-finite weight is reported, never
//! quantized.

mod affine;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod convert;
mod float;
mod fp4;
mod fp8;
mod instructions;
mod lanes;
mod mlx;
mod mx;
mod nvfp4;
mod pack;
#[cfg(test)]
mod reference;
mod scheme;

pub use convert::Step;
pub use float::Float;
pub use fp8::{BlockFp8, block_fp8_decode, from_fp8, to_fp8};
pub use instructions::Instructions;
pub use mlx::{MLX_VERSION, Mlx};
pub use mx::ScaleRule;
pub use scheme::Scheme;

use float::{Bf16, Element, F16, F32};

/// The name of the arithmetic in this room. It changes when any output byte does.
pub const NUMERICS: &str = "mlx-cpu-1";

/// Groups whose scales are computed before any of their codes: a lane each, in four registers. The
/// divisions behind one scale wait for each other; those of several groups overlap.
const TILE: usize = 4 * lanes::LANES;

/// Where the parts of a quantized tensor go. Codes and scales of a tensor are in the order of its
/// elements: rows follow each other, and a group never crosses the end of a row.
#[derive(Debug)]
pub struct Quantized<'a> {
    /// The codes: a bit stream, lowest bit first; [`Scheme::packed_len`] bytes.
    pub packed: &'a mut [u8],
    /// One scale per group; [`Scheme::scales_len`] bytes.
    pub scales: &'a mut [u8],
    /// One bias per group; [`Scheme::biases_len`] bytes, empty for all but the affine schemes.
    pub biases: &'a mut [u8],
}

/// A weight that is NaN or infinite, so that its group has no quantized form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Element `{index}` is not finite")]
pub struct NonFinite {
    /// Position of the first such element in the input, counted in elements.
    pub index: usize,
}

impl NonFinite {
    /// The first such element of `elements`, which holds one and begins at element `start` of the input.
    #[cold]
    fn first_in<E: Element>(elements: &[E::Bytes], start: usize) -> Self {
        let within = elements.iter().position(|element| !E::widen(*element).is_finite());
        Self { index: start + within.unwrap_or_default() }
    }
}

/// Whether all of `values`, one for each group of a tile, are finite.
#[inline(always)]
fn are_finite(values: &[f32; TILE]) -> bool {
    let mut are_finite = true;
    for value in values {
        are_finite &= value.is_finite();
    }
    are_finite
}

/// What a caller may choose beyond the scheme. The default is what [`NUMERICS`] stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Options {
    /// How the MX schemes choose the exponent of a group.
    pub scale_rule: ScaleRule,
    /// The second-level scale of `nvfp4`; the other schemes have none.
    pub global_scale: Option<f32>,
    /// The instructions to run on. They never change a byte.
    pub instructions: Instructions,
}

/// Quantizes `input`, a whole number of groups of `float` elements, into `out`.
///
/// # Errors
/// [`NonFinite`] when `input` holds NaN or infinity. What `out` holds then is unspecified.
///
/// # Panics
/// When the length of a slice is not the one that `scheme` gives, or `scheme` is no existing one.
pub fn quantize(scheme: Scheme, float: Float, input: &[u8], out: Quantized<'_>) -> Result<(), NonFinite> {
    quantize_with(scheme, float, input, out, &Options::default())
}

/// [`quantize`] with other than the default options.
///
/// # Errors
/// As [`quantize`].
///
/// # Panics
/// As [`quantize`], and when a scheme other than `nvfp4` is given a global scale.
pub fn quantize_with(
    scheme: Scheme,
    float: Float,
    input: &[u8],
    out: Quantized<'_>,
    options: &Options,
) -> Result<(), NonFinite> {
    let elements = elements(scheme, input.len(), float);
    check_parts(scheme, float, elements, out.packed, out.scales, out.biases, options);
    match float {
        Float::Bf16 => quantize_elements::<Bf16>(scheme, input, out, options),
        Float::F16 => quantize_elements::<F16>(scheme, input, out, options),
        Float::F32 => quantize_elements::<F32>(scheme, input, out, options),
    }
}

/// Checks that `input`, elements of type `float`, has neither NaN nor infinity.
///
/// # Errors
/// [`NonFinite`], at the first of them.
pub fn check_finite(float: Float, input: &[u8]) -> Result<(), NonFinite> {
    // Infinity and NaN are what has every bit of the exponent set.
    let first = match float {
        Float::Bf16 => first_with::<2>(input, |bytes| u16::from_le_bytes(bytes) & 0x7F80 == 0x7F80),
        Float::F16 => first_with::<2>(input, |bytes| u16::from_le_bytes(bytes) & 0x7C00 == 0x7C00),
        Float::F32 => first_with::<4>(input, |bytes| u32::from_le_bytes(bytes) & 0x7F80_0000 == 0x7F80_0000),
    };
    first.map_or(Ok(()), |index| Err(NonFinite { index }))
}

/// The first element that `is` accepts. Whole blocks are looked through without branches.
fn first_with<const SIZE: usize>(input: &[u8], is: impl Fn([u8; SIZE]) -> bool) -> Option<usize> {
    const BLOCK: usize = 1024;
    let (elements, _) = input.as_chunks::<SIZE>();
    let found = elements.chunks(BLOCK).position(|block| block.iter().fold(false, |any, bytes| any | is(*bytes)))?;
    let within = elements[found * BLOCK..].iter().position(|bytes| is(*bytes))?;
    Some(found * BLOCK + within)
}

fn quantize_elements<E: Element>(
    scheme: Scheme,
    input: &[u8],
    out: Quantized<'_>,
    options: &Options,
) -> Result<(), NonFinite> {
    let run = options.instructions;
    match scheme {
        Scheme::Affine { bits, group } => run.run(affine::Quantize::<E>::new(bits, group, input, out)),
        Scheme::Mxfp4 => run.run(mx::Quantize::<E, fp4::E2M1, 4>::new(options.scale_rule, input, out)),
        Scheme::Mxfp8 => run.run(mx::Quantize::<E, fp8::E4M3, 8>::new(options.scale_rule, input, out)),
        Scheme::Nvfp4 => run.run(nvfp4::Quantize::<E>::new(options.global_scale, input, out)),
    }
}

/// Restores `out`, elements of type `float`, from their quantized form.
///
/// For the affine schemes `float` is also the type of `scales` and `biases`.
///
/// # Panics
/// When the length of a slice is not the one that `scheme` gives, or `scheme` is no existing one.
pub fn dequantize(scheme: Scheme, float: Float, packed: &[u8], scales: &[u8], biases: &[u8], out: &mut [u8]) {
    dequantize_with(scheme, float, packed, scales, biases, out, &Options::default());
}

/// [`dequantize`] with other than the default options.
///
/// # Panics
/// As [`dequantize`]; when a scheme other than `nvfp4` is given a global scale; and when `nvfp4` is
/// given one and `float` is not [`Float::F32`], the only type that then comes out.
pub fn dequantize_with(
    scheme: Scheme,
    float: Float,
    packed: &[u8],
    scales: &[u8],
    biases: &[u8],
    out: &mut [u8],
    options: &Options,
) {
    let elements = elements(scheme, out.len(), float);
    check_parts(scheme, float, elements, packed, scales, biases, options);
    match float {
        Float::Bf16 => dequantize_elements::<Bf16>(scheme, packed, scales, biases, out, options),
        Float::F16 => dequantize_elements::<F16>(scheme, packed, scales, biases, out, options),
        Float::F32 => dequantize_elements::<F32>(scheme, packed, scales, biases, out, options),
    }
}

fn dequantize_elements<E: Element>(
    scheme: Scheme,
    packed: &[u8],
    scales: &[u8],
    biases: &[u8],
    out: &mut [u8],
    options: &Options,
) {
    let run = options.instructions;
    match scheme {
        Scheme::Affine { bits, group } => {
            run.run(affine::Dequantize::<E>::new(bits, group, packed, scales, biases, out));
        }
        Scheme::Mxfp4 => run.run(mx::Dequantize::<E, fp4::E2M1, 4>::new(packed, scales, out)),
        Scheme::Mxfp8 => run.run(mx::Dequantize::<E, fp8::E4M3, 8>::new(packed, scales, out)),
        Scheme::Nvfp4 => run.run(nvfp4::Dequantize::<E>::new(options.global_scale, packed, scales, out)),
    }
}

/// Restores `out`, bfloat16, from `nvfp4` codes and scales that a third scale multiplies, as NVIDIA's tools write
/// them: code times group scale, which is exact, times `factor` in binary32, rounded once to bfloat16.
///
/// # Panics
/// When the length of a slice is not the one that `nvfp4` gives.
pub fn nvfp4_decode(factor: f32, packed: &[u8], scales: &[u8], out: &mut [u8]) {
    let elements = elements(Scheme::Nvfp4, out.len(), Float::Bf16);
    check_parts(Scheme::Nvfp4, Float::Bf16, elements, packed, scales, &[], &Options::default());
    Instructions::default().run(nvfp4::Dequantize::<Bf16>::times(factor, packed, scales, out));
}

/// The number of elements in `bytes` bytes, which must be a whole number of groups.
fn elements(scheme: Scheme, bytes: usize, float: Float) -> usize {
    assert!(scheme.exists(), "`{scheme}` does not exist");
    let group = scheme.group_size() * float.size();
    assert!(bytes.is_multiple_of(group), "{bytes} bytes are not a whole number of groups of `{scheme}`");
    bytes / float.size()
}

fn check_parts(
    scheme: Scheme,
    float: Float,
    elements: usize,
    packed: &[u8],
    scales: &[u8],
    biases: &[u8],
    options: &Options,
) {
    assert_eq!(packed.len(), scheme.packed_len(elements), "length of the codes of `{scheme}`");
    assert_eq!(scales.len(), scheme.scales_len(elements, float), "length of the scales of `{scheme}`");
    assert_eq!(biases.len(), scheme.biases_len(elements, float), "length of the biases of `{scheme}`");
    assert!(options.global_scale.is_none() || scheme == Scheme::Nvfp4, "`{scheme}` has no global scale");
}
