//! Codes of 2 to 8 bits as one bit stream, lowest bit first.
//!
//! Eight codes fill exactly `BITS` bytes, so a stream is packed eight codes at a time. MLX's 32-bit
//! words are this stream read little-endian.

use super::lanes::{LANES, Lanes};

/// Keeps the low half of every field of `2 * width` bits.
const fn low_halves(width: u32) -> u64 {
    let mut mask = 0;
    let mut at = 0;
    while at < 64 {
        mask |= ((1 << width) - 1) << at;
        at += 2 * width;
    }
    mask
}

/// Of every `2 * width` bits, moves those from `width - gap` on up by `gap`.
#[inline(always)]
fn open_gaps(fields: u64, width: u32, gap: u32) -> u64 {
    let low = low_halves(width);
    let kept = low & low >> gap;
    fields & kept | fields << gap & !low
}

/// Codes that are packed at once.
pub(super) const BLOCK: usize = 4 * LANES;

/// As many codes, eight by eight.
pub(super) type Packed<const BITS: usize> = [[u8; BITS]; BLOCK / 8];

/// Packs `codes`, each below 2^`BITS`.
#[inline(always)]
pub(super) fn pack<L: Lanes, const BITS: usize>(codes: [L; 4]) -> Packed<BITS> {
    let mut packed = [[0; BITS]; BLOCK / 8];
    match BITS {
        4 => packed.as_flattened_mut().copy_from_slice(&L::to_nibbles(codes)),
        8 => packed.as_flattened_mut().copy_from_slice(&L::to_bytes(codes)),
        _ => {
            for (packed, eight) in packed.iter_mut().zip(L::to_eights::<BITS>(codes)) {
                packed.copy_from_slice(&eight.to_le_bytes()[..BITS]);
            }
        }
    }
    packed
}

/// Restores the codes of `packed`.
#[inline(always)]
pub(super) fn unpack<L: Lanes, const BITS: usize>(packed: &Packed<BITS>) -> [L; 4] {
    if BITS == 4 {
        let mut nibbles = [0; BLOCK / 2];
        nibbles.copy_from_slice(packed.as_flattened());
        return L::from_nibbles(&nibbles);
    }
    let mut codes = [L::splat(0); 4];
    let gap = 8 - BITS as u32;
    for (codes, packed) in codes.iter_mut().zip(packed) {
        let mut eights = [0; 8];
        eights[..BITS].copy_from_slice(packed);
        let fours = open_gaps(u64::from_le_bytes(eights), 32, 4 * gap);
        let pairs = open_gaps(fours, 16, 2 * gap);
        *codes = L::from_bytes(open_gaps(pairs, 8, gap).to_le_bytes());
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Plain;
    use super::*;

    fn holds_for<const BITS: usize>() {
        let codes: Vec<u32> =
            (0..32_u32).map(|j| (j.wrapping_mul(2_654_435_761) >> 13) & (0xFF >> (8 - BITS))).collect();
        let lanes: Vec<Plain> = codes.as_chunks().0.iter().map(|lanes| Plain::new(*lanes)).collect();
        let packed_eights = pack::<Plain, BITS>(*lanes.first_chunk().unwrap());
        let packed = packed_eights.as_flattened();
        for (j, code) in codes.iter().enumerate() {
            for bit in 0..BITS {
                let at = j * BITS + bit;
                let actual = u32::from(packed[at / 8] >> (at % 8) & 1);
                assert_eq!(actual, code >> bit & 1, "bit {bit} of code {j} of {BITS} bits");
            }
        }
        assert_eq!(unpack::<Plain, BITS>(&packed_eights).map(Plain::lanes).as_flattened(), codes);
    }

    #[test]
    fn element_j_is_the_bits_from_j_times_its_width() {
        holds_for::<2>();
        holds_for::<3>();
        holds_for::<4>();
        holds_for::<5>();
        holds_for::<6>();
        holds_for::<8>();
    }
}
