//! Codes of 2 to 8 bits as one bit stream, lowest bit first.
//!
//! Eight codes fill exactly `BITS` bytes, so a stream is packed eight codes at a time. MLX's 32-bit
//! words are this stream read little-endian.

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

/// Moves the upper of every two neighbouring fields of `width` bits down by `gap`.
#[inline(always)]
fn close_gaps(fields: u64, width: u32, gap: u32) -> u64 {
    let low = low_halves(width);
    fields & low | (fields & !low) >> gap
}

/// Undoes [`close_gaps`]: of every `2 * width` bits, moves those from `width - gap` on up by `gap`.
#[inline(always)]
fn open_gaps(fields: u64, width: u32, gap: u32) -> u64 {
    let low = low_halves(width);
    let kept = low & low >> gap;
    fields & kept | fields << gap & !low
}

/// Packs `codes`, each below 2^`BITS`.
#[inline(always)]
pub(super) fn pack<const BITS: usize, const EIGHTS: usize>(codes: [[u8; 8]; EIGHTS]) -> [[u8; BITS]; EIGHTS] {
    let mut packed = [[0; BITS]; EIGHTS];
    if BITS == 4 {
        // By far the commonest width, and two codes are a byte: one step instead of three.
        let (pairs, _) = codes.as_flattened().as_chunks::<2>();
        for (byte, pair) in packed.as_flattened_mut().iter_mut().zip(pairs) {
            let pair = u16::from_le_bytes(*pair);
            *byte = (pair | pair >> 4) as u8;
        }
        return packed;
    }
    let gap = 8 - BITS as u32;
    for (packed, codes) in packed.iter_mut().zip(codes) {
        let pairs = close_gaps(u64::from_le_bytes(codes), 8, gap);
        let fours = close_gaps(pairs, 16, 2 * gap);
        let eights = close_gaps(fours, 32, 4 * gap);
        packed.copy_from_slice(&eights.to_le_bytes()[..BITS]);
    }
    packed
}

/// Restores the codes of `packed`.
#[inline(always)]
pub(super) fn unpack<const BITS: usize, const EIGHTS: usize>(packed: [[u8; BITS]; EIGHTS]) -> [[u8; 8]; EIGHTS] {
    let mut codes = [[0; 8]; EIGHTS];
    let gap = 8 - BITS as u32;
    for (codes, packed) in codes.iter_mut().zip(packed) {
        let mut eights = [0; 8];
        eights[..BITS].copy_from_slice(&packed);
        let fours = open_gaps(u64::from_le_bytes(eights), 32, 4 * gap);
        let pairs = open_gaps(fours, 16, 2 * gap);
        *codes = open_gaps(pairs, 8, gap).to_le_bytes();
    }
    codes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds_for<const BITS: usize>() {
        let codes: Vec<u8> =
            (0..64_u32).map(|j| (j.wrapping_mul(2_654_435_761) >> 13) as u8 & (0xFF >> (8 - BITS))).collect();
        let eights: [[u8; 8]; 8] = *codes.as_chunks().0.first_chunk().unwrap();
        let packed_eights = pack::<BITS, 8>(eights);
        let packed = packed_eights.as_flattened();
        for (j, code) in codes.iter().enumerate() {
            for bit in 0..BITS {
                let at = j * BITS + bit;
                assert_eq!(packed[at / 8] >> (at % 8) & 1, code >> bit & 1, "bit {bit} of code {j} of {BITS} bits");
            }
        }
        assert_eq!(unpack(packed_eights), eights);
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
