//! MLX itself, held against the kernels. What it needs on Linux, `ci/mlx/linux.sh` makes.

#![allow(clippy::unwrap_used)] // in functions that tests share

use kiln::ErrorKind;
use kiln::quant::{self, Float, Mlx, Quantized, Scheme};

/// The codes, scales and biases of `input`, as `quantize` gives them.
fn parts<E>(
    scheme: Scheme,
    float: Float,
    input: &[u8],
    quantize: impl FnOnce(Quantized<'_>) -> Result<(), E>,
) -> Result<[Vec<u8>; 3], E> {
    // No byte of this may stay.
    const BEFORE: u8 = 0xAA;
    let elements = input.len() / float.size();
    let mut packed = vec![BEFORE; scheme.packed_len(elements)];
    let mut scales = vec![BEFORE; scheme.scales_len(elements, float)];
    let mut biases = vec![BEFORE; scheme.biases_len(elements, float)];
    quantize(Quantized { packed: &mut packed, scales: &mut scales, biases: &mut biases })?;
    Ok([packed, scales, biases])
}

const COLUMNS: usize = 256;

/// Elements of both signs in 64 rows: every mantissa, and magnitudes from 2^-7, or 2^-3, up to 2.
fn weights(float: Float) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let random = std::iter::repeat_with(|| {
        state = state.wrapping_mul(0x915F_77F5).wrapping_add(0x6A09_E667);
        state.rotate_left(16)
    });
    let random = random.take(64 * COLUMNS);
    match float {
        Float::Bf16 => random.flat_map(|bits| (bits as u16 & 0x83FF | 0x3C00).to_le_bytes()).collect(),
        Float::F16 => random.flat_map(|bits| (bits as u16 & 0x8FFF | 0x3000).to_le_bytes()).collect(),
        Float::F32 => random.flat_map(|bits| (bits & 0x83FF_FFFF | 0x3C00_0000).to_le_bytes()).collect(),
    }
}

#[test]
fn mlx_gives_the_bytes_of_the_kernels_for_every_scheme_and_type() {
    let mlx = Mlx::start().unwrap();
    for float in [Float::Bf16, Float::F16, Float::F32] {
        let input = weights(float);
        for scheme in Scheme::all() {
            let ours = parts(scheme, float, &input, |out| quant::quantize(scheme, float, &input, out));
            let theirs = parts(scheme, float, &input, |out| mlx.quantize(scheme, float, COLUMNS, &input, out));
            assert!(ours.unwrap() == theirs.unwrap(), "{scheme} {float:?}");
        }
    }
}

#[test]
fn what_mlx_does_not_take_is_an_error_and_not_the_end_of_the_process() {
    let mlx = Mlx::start().unwrap();
    let quantize = |scheme, columns, input: &[u8]| {
        parts(scheme, Float::F32, input, |out| mlx.quantize(scheme, Float::F32, columns, input, out))
    };
    let row = [0; 64 * 4];
    let no_such = Scheme::Affine { bits: 7, group: 64 };
    for (scheme, columns, input, sentence) in [
        (Scheme::INT4, 48, &row[..48 * 4], "MLX refused to quantize: "),
        (no_such, 64, &row, "MLX refused to quantize: "),
        (Scheme::INT4, 48, &row, "256 bytes are not rows of 48 elements"),
        (Scheme::INT4, 0, &row, "256 bytes are not rows of 0 elements"),
        (Scheme::INT4, 1 << 40, &[], "MLX has no matrix of this size"),
    ] {
        let error = quantize(scheme, columns, input).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CouldNotCheck);
        assert!(error.chain().starts_with(sentence), "{}", error.chain());
    }
    assert!(quantize(Scheme::INT4, 64, &row).is_ok());
}
