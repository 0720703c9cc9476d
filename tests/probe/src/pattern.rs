//! What the probe writes to disks and streams: a function of a seed and of the absolute offset of
//! a byte, so that any range can be checked without knowing how it was written.
//!
//! Word `i` (the eight bytes at offset `8 * i`, little-endian) is the output of splitmix64 for
//! the state `seed + (i + 1) * 0x9e3779b97f4a7c15`, all modulo 2⁶⁴. This file needs nothing but
//! `core`: host programs include it by `#[path]`.

/// splitmix64's increment.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The eight bytes at offset `8 * index`.
pub fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The byte at `offset`.
pub fn byte(seed: u64, offset: u64) -> u8 {
    word(seed, offset / 8).to_le_bytes()[(offset % 8) as usize]
}

/// Fills `bytes`, the first of which is at `offset`.
pub fn fill(seed: u64, mut offset: u64, mut bytes: &mut [u8]) {
    while !bytes.is_empty() && !offset.is_multiple_of(8) {
        bytes[0] = byte(seed, offset);
        bytes = &mut bytes[1..];
        offset += 1;
    }
    for (index, chunk) in (offset / 8..).zip(bytes.chunks_mut(8)) {
        chunk.copy_from_slice(&word(seed, index).to_le_bytes()[..chunk.len()]);
    }
}

/// Index of the first of `bytes`, which start at `offset`, that is not the pattern's.
pub fn first_mismatch(seed: u64, mut offset: u64, bytes: &[u8]) -> Option<usize> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        if offset.is_multiple_of(8)
            && rest.len() >= 8
            && rest[..8] == word(seed, offset / 8).to_le_bytes()
        {
            done += 8;
            offset += 8;
        } else if rest[0] == byte(seed, offset) {
            done += 1;
            offset += 1;
        } else {
            return Some(done);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_splitmix64() {
        // From the reference implementation (prng.di.unimi.it/splitmix64.c) with state 1234567.
        assert_eq!(word(1234567, 0), 6457827717110365317);
        assert_eq!(word(1234567, 1), 3203168211198807973);
        assert_eq!(word(1234567, 2), 9817491932198370423);
    }

    #[test]
    fn any_range_is_cut_from_the_same_bytes() {
        let mut whole = [0; 64];
        fill(7, 0, &mut whole);
        for start in 0..20 {
            for end in start..40 {
                let mut part = [0; 64];
                fill(7, start as u64, &mut part[start..end]);
                assert_eq!(part[start..end], whole[start..end]);
                assert_eq!(first_mismatch(7, start as u64, &whole[start..end]), None);
            }
        }
        assert_eq!(byte(7, 13), whole[13]);
    }

    #[test]
    fn the_first_byte_that_differs_is_found() {
        let mut bytes = [0; 64];
        fill(1, 100, &mut bytes);
        bytes[37] ^= 1;
        bytes[50] ^= 1;
        assert_eq!(first_mismatch(1, 100, &bytes), Some(37));
    }
}
