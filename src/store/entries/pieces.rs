//! Large payloads are kept in pieces, each in a row of its own that takes some whole pages. So the pages that others leave
//! free are of use wherever they lie, and a reader need not keep one snapshot while it copies them all.

use crate::store::record::key::Key;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const PAGE: u64 = 4096;
/// Bytes of a large value that its first page cannot hold.
const PAGE_HEAD: u64 = 16;

/// Bytes of a row that is kept whole, and of a row of a piece: some pages, filled to the last byte.
pub(super) const WHOLE_MAX: usize = (16 * PAGE - PAGE_HEAD) as usize;
/// A piece ends with its checksum.
const CHECK: usize = 8;
/// Bytes of a payload in a piece.
pub(super) const PIECE: usize = WHOLE_MAX - CHECK;

/// Bytes that a row takes on disk: small ones share pages, large ones have whole pages.
pub(super) fn footprint(len: usize) -> u64 {
    let len = len as u64;
    if len <= 2000 { len + 160 } else { (len + PAGE_HEAD).div_ceil(PAGE) * PAGE + 96 }
}

/// Bytes that a payload takes on disk, in pieces.
pub(super) fn pieces_footprint(payload_len: u64) -> u64 {
    let (whole, rest) = (payload_len / PIECE as u64, payload_len as usize % PIECE);
    whole.saturating_mul(footprint(WHOLE_MAX)) + if rest > 0 { footprint(rest + CHECK) } else { 0 }
}

/// The pieces of the payload of a key.
pub(super) fn in_pieces(key: &Key, payload: &[u8]) -> Vec<Vec<u8>> {
    let piece = |(number, piece): (usize, &[u8])| {
        let mut row = Vec::with_capacity(piece.len() + CHECK);
        row.extend_from_slice(piece);
        row.extend_from_slice(&check(key, number, piece).to_le_bytes());
        row
    };
    payload.chunks(PIECE).enumerate().map(piece).collect()
}

/// The part of a payload in the row of a piece; `None` if the row is damaged.
pub(super) fn part<'a>(key: &Key, number: usize, row: &'a [u8]) -> Option<&'a [u8]> {
    let (piece, sum) = row.split_last_chunk::<CHECK>()?;
    (u64::from_le_bytes(*sum) == check(key, number, piece)).then_some(piece)
}

fn check(key: &Key, number: usize, piece: &[u8]) -> u64 {
    xxh3_64_with_seed(piece, key.echo ^ number as u64)
}

/// The key of the row of a piece.
pub(super) fn piece_key(key: &[u8; 16], number: usize) -> [u8; 20] {
    let mut row = [0; 20];
    row[..16].copy_from_slice(key);
    row[16..].copy_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::key::{Kind, Secret};

    #[test]
    fn a_payload_is_the_sum_of_its_pieces_and_damage_is_noticed() {
        let key = Secret::new([5; 32]).key(Kind::Value, &[0; 16], b"x");
        for len in [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 7] {
            let payload: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut pieces = in_pieces(&key, &payload);
            let whole: Vec<u8> =
                pieces.iter().enumerate().flat_map(|(number, row)| part(&key, number, row).unwrap()).copied().collect();
            assert!(whole == payload, "{len}");
            assert_eq!(pieces.iter().map(|row| footprint(row.len())).sum::<u64>(), pieces_footprint(len as u64));
            assert!(pieces.iter().all(|row| row.len() <= WHOLE_MAX));
            assert!(part(&key, 1, &pieces[0]).is_none() && part(&key, 0, &[1; 7]).is_none());
            pieces[0][len / 9 % PIECE] ^= 1;
            assert!(part(&key, 0, &pieces[0]).is_none());
        }
    }
}
