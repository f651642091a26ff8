//! The stored form of an entry: pure encoding and decoding. Bytes that do not decode are no entry, and never cause a
//! panic.

use super::pieces::{WHOLE_MAX, footprint, in_pieces, pieces_footprint};
use crate::store::record::{
    key::{Key, ScopeId},
    row::u64_at,
};
use hyper::body::Bytes;
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

/// The longest part of a name that is kept beside a value, to be read by people and compared on a hit.
pub(crate) const KEPT_NAME_MAX: usize = 256;
/// Tags a record can carry.
pub(crate) const TAGS_MAX: usize = 64;

/// When a stored answer may be used, in ns of machine time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) stored: u64,
    /// Until then it is fresh.
    pub(crate) fresh: u64,
    /// Until then it may be served while a new answer is computed.
    pub(crate) revalidate: u64,
    /// Until then it may be served where a new answer cannot be had, or not in time.
    pub(crate) if_error: u64,
}

impl Life {
    /// A life that ends for good when the answer is no longer fresh.
    pub(crate) fn without_grace(stored: u64, fresh: u64) -> Life {
        Life { stored, fresh, revalidate: fresh, if_error: fresh }
    }

    /// When the answer is of no use any more.
    pub(crate) fn ends(&self) -> u64 {
        self.fresh.max(self.revalidate).max(self.if_error)
    }

    /// Whether the life is over. An answer from the future was stored by a clock that exists no more.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        now < self.stored || self.ends() <= now
    }

    /// The life as if it had ended at a time. The grace after its end is no longer than before.
    pub(crate) fn ended_at(&self, at: u64) -> Life {
        let fresh = self.fresh.min(at);
        let earlier = self.fresh - fresh;
        let (revalidate, if_error) = (self.revalidate.saturating_sub(earlier), self.if_error.saturating_sub(earlier));
        Life { stored: self.stored, fresh, revalidate, if_error }
    }

    pub(crate) fn is_fresh(&self, now: u64) -> bool {
        self.stored <= now && now < self.fresh
    }
}

/// A stored answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) life: Life,
    /// The time that it takes to compute, in ns: an estimate from this computation and those before.
    pub(crate) cost: u64,
    /// How far computations were from that time on average, in ns.
    pub(crate) spread: u64,
    /// The purge sequence read when its computation started.
    pub(crate) sequence: u64,
    pub(crate) scope: ScopeId,
    pub(crate) tags: Vec<u64>,
    /// The [family](Key::family) of a variant or a mark, which goes with the name that it belongs to; 0 for none.
    pub(crate) family: u64,
    pub(crate) payload: Bytes,
    /// The entry is no answer, but something remembered of a name.
    pub(crate) is_mark: bool,
}

const ENTRY_VERSION: u8 = 4;
const MARK_VERSION: u8 = 5;

/// Bytes of the head of a row. Tags and kept name follow, and the payload, if that is not kept in pieces.
const HEAD: usize = 136;
/// The checksum over everything behind the head, which stays when the head changes.
const REST_CHECK: usize = 104;
const PAYLOAD_LEN: usize = 112;
const PLACE: usize = 120;
/// The checksum over the head, its last bytes.
const HEAD_CHECK: usize = 128;

/// Bytes that [`encode_entry`] adds to a payload at most.
pub(crate) const ENTRY_OVERHEAD: usize = HEAD + 8 * TAGS_MAX + KEPT_NAME_MAX;

/// The rows of an entry.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// Head, tags and name, which make it readable from outside; and a small payload. Its life, its sequence and its place
    /// may be [sealed](seal) anew.
    pub(super) row: Vec<u8>,
    /// A large payload.
    pub(super) pieces: Vec<Vec<u8>>,
}

impl Encoded {
    pub(super) fn len(&self) -> usize {
        self.row.len() + self.pieces.iter().map(Vec::len).sum::<usize>()
    }
}

pub(crate) fn encode_entry(key: &Key, name: &[u8], entry: &Entry) -> Encoded {
    let tags = &entry.tags[..entry.tags.len().min(TAGS_MAX)];
    let kept_name = &name[..name.len().min(KEPT_NAME_MAX)];
    let head = HEAD + tags.len() * 8 + kept_name.len();
    let inline = if head + entry.payload.len() <= WHOLE_MAX { &entry.payload[..] } else { &[] };
    let mut row = Vec::with_capacity(head + inline.len());
    row.push(if entry.is_mark { MARK_VERSION } else { ENTRY_VERSION });
    row.push(tags.len() as u8);
    let Life { stored, fresh, revalidate, if_error } = entry.life;
    for number in [entry.life.ends(), stored, entry.cost, entry.sequence, key.echo] {
        row.extend_from_slice(&number.to_le_bytes());
    }
    row.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
    row.extend_from_slice(&(kept_name.len() as u16).to_le_bytes());
    row.extend_from_slice(&entry.scope);
    for number in [fresh, revalidate, if_error, entry.spread, entry.family, 0, entry.payload.len() as u64] {
        row.extend_from_slice(&number.to_le_bytes());
    }
    row.resize(HEAD, 0);
    for tag in tags {
        row.extend_from_slice(&tag.to_le_bytes());
    }
    row.extend_from_slice(kept_name);
    row.extend_from_slice(inline);
    let check = xxh3_64(&row[HEAD..]);
    row[REST_CHECK..PAYLOAD_LEN].copy_from_slice(&check.to_le_bytes());
    seal(&mut row, &entry.life, entry.sequence, 0);
    let pieces = if inline.len() < entry.payload.len() { in_pieces(key, &entry.payload) } else { Vec::new() };
    Encoded { row, pieces }
}

/// Gives an entry's bytes another life, sequence and place.
pub(crate) fn seal(bytes: &mut [u8], life: &Life, sequence: u64, place: u64) {
    let Life { stored, fresh, revalidate, if_error } = *life;
    let numbers =
        [(2, life.ends()), (10, stored), (26, sequence), (64, fresh), (72, revalidate), (80, if_error), (PLACE, place)];
    for (at, number) in numbers {
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let check = xxh3_64(&bytes[..HEAD_CHECK]);
    bytes[HEAD_CHECK..HEAD].copy_from_slice(&check.to_le_bytes());
}

/// What an entry's bytes claim, unchecked: for rows that must be kept even beside damaged entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(super) expires: u64,
    /// Its place in the order of eviction.
    pub(super) place: u64,
    pub(super) family: u64,
    pub(super) is_mark: bool,
    payload_len: u64,
}

impl Claims {
    pub(super) fn of(bytes: &[u8]) -> Claims {
        let number = |at| u64_at(bytes, at).unwrap_or(0);
        let is_mark = bytes.first() == Some(&MARK_VERSION);
        Claims {
            expires: number(2),
            place: number(PLACE),
            family: number(96),
            is_mark,
            payload_len: number(PAYLOAD_LEN),
        }
    }

    /// Bytes that the entry of a row takes on disk.
    pub(super) fn footprint(row: &[u8]) -> u64 {
        let payload_len = Claims::of(row).payload_len;
        let in_pieces = if payload_len as usize > row.len() { pieces_footprint(payload_len) } else { 0 };
        footprint(row.len()) + in_pieces
    }
}

/// The value under a key of `entries/`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The entry of the name asked for.
    Entry(Entry),
    /// Such an entry, whose payload of some bytes is kept in pieces.
    InPieces(Entry, usize),
    /// The entry of another name, whose key happens to be the same.
    Other,
    Damaged,
}

/// Decodes the entry of `key` and `name`; the payload is a slice of `bytes`.
pub(crate) fn decode_entry(bytes: &Bytes, key: &Key, name: &[u8]) -> Stored {
    let Some(head) = decode_head(bytes).filter(|_| checksum_holds(bytes)) else { return Stored::Damaged };
    if head.echo != key.echo || head.name_len as usize != name.len() || !name.starts_with(head.kept_name) {
        return Stored::Other;
    }
    match head.payload {
        Some(payload) => Stored::Entry(Entry { payload: bytes.slice(payload), ..head.entry }),
        None => Stored::InPieces(head.entry, head.payload_len),
    }
}

/// A digest that tells one row of an entry from another: its head, with all its times, its place and its checksums.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowDigest([u8; HEAD], usize);

impl RowDigest {
    pub(crate) fn of(bytes: &[u8]) -> Option<RowDigest> {
        Some(RowDigest(*bytes.first_chunk()?, bytes.len()))
    }
}

/// Everything of an entry but its payload, and the beginning of its name; unchecked against damage behind the head.
pub(crate) fn decode_without_payload(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    decode_head(bytes).map(|head| (head.entry, head.kept_name))
}

/// The bytes of an entry with another life and sequence.
pub(crate) fn with_life(bytes: &[u8], life: &Life, sequence: u64) -> Option<Vec<u8>> {
    if !checksum_holds(bytes) || decode_head(bytes)?.entry.life.stored != life.stored {
        return None;
    }
    let mut out = bytes.to_vec();
    seal(&mut out, life, sequence, Claims::of(bytes).place);
    Some(out)
}

/// Whether an entry's bytes are as they were stored.
pub(crate) fn checksum_holds(bytes: &[u8]) -> bool {
    head_holds(bytes) && u64_at(bytes, REST_CHECK) == Some(xxh3_64(&bytes[HEAD..]))
}

fn head_holds(bytes: &[u8]) -> bool {
    bytes.len() >= HEAD && u64_at(bytes, HEAD_CHECK) == Some(xxh3_64(&bytes[..HEAD_CHECK]))
}

struct Head<'a> {
    entry: Entry,
    echo: u64,
    name_len: u32,
    kept_name: &'a [u8],
    payload_len: usize,
    /// `None`: it is kept in pieces.
    payload: Option<Range<usize>>,
}

fn decode_head(body: &[u8]) -> Option<Head<'_>> {
    if !head_holds(body) || !matches!(body[0], ENTRY_VERSION | MARK_VERSION) {
        return None;
    }
    let tags_end = HEAD + body[1] as usize * 8;
    let name_end = tags_end + u16::from_le_bytes(body[46..48].try_into().ok()?) as usize;
    let kept_name = body.get(tags_end..name_end)?;
    let entry = Entry {
        life: Life {
            stored: u64_at(body, 10)?,
            fresh: u64_at(body, 64)?,
            revalidate: u64_at(body, 72)?,
            if_error: u64_at(body, 80)?,
        },
        cost: u64_at(body, 18)?,
        spread: u64_at(body, 88)?,
        sequence: u64_at(body, 26)?,
        scope: body[48..64].try_into().ok()?,
        tags: body[HEAD..tags_end].chunks_exact(8).filter_map(|tag| u64_at(tag, 0)).collect(),
        family: u64_at(body, 96)?,
        payload: Bytes::new(),
        is_mark: body[0] == MARK_VERSION,
    };
    let name_len = u32::from_le_bytes(body[42..46].try_into().ok()?);
    let payload_len = usize::try_from(u64_at(body, PAYLOAD_LEN)?).ok()?;
    let payload = match body.len() - name_end {
        0 if payload_len > 0 => None,
        inline if inline == payload_len => Some(name_end..body.len()),
        _ => return None,
    };
    Some(Head { entry, echo: u64_at(body, 34)?, name_len, kept_name, payload_len, payload })
}

#[cfg(test)]
mod tests;
