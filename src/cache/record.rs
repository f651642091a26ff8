//! Keys and stored frames: pure encode and decode. What does not decode is no record, never a panic.

use hyper::body::Bytes;
use siphasher::sip128::{Hasher128, SipHasher13, SipHasher24};
use std::{hash::Hasher, ops::Range};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The longest part of a name that is kept beside a value, to be read by people and compared on a hit.
pub(crate) const ECHO_MAX: usize = 256;
/// Tags a record can carry.
pub(crate) const TAGS_MAX: usize = 64;

/// Kinds of rows; part of every key, so that a throttle and a barrier of one name never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Scope = 0,
    Tag = 1,
    Throttle = 2,
    Lock = 3,
    Response = 4,
    Value = 5,
    Memo = 6,
    Variant = 7,
    Owner = 8,
    Claim = 9,
    Mark = 10,
}

/// The 16-byte key of a row, with a second, independent digest that is compared with the one in the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) hash: [u8; 16],
    pub(crate) echo: u64,
}

impl Key {
    /// The tag of entries that belong to the one under this key, such as variants of a response.
    pub(crate) fn own_tag(&self) -> u64 {
        self.echo.max(1)
    }
}

/// A scope's share in a key.
pub(crate) type ScopeId = [u8; 16];

/// The random keys of the hashes. Names come from requests: without a secret, collisions can be made on purpose.
#[derive(Clone, Copy)]
pub(crate) struct Secret {
    row: [u8; 16],
    echo: u64,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    pub(crate) const LEN: usize = 32;

    pub(crate) fn new(bytes: [u8; Self::LEN]) -> Self {
        let (row, echo) = bytes.split_at(16);
        let echo: [u8; 16] = echo.try_into().expect("16 bytes");
        let [low, high] = halves(&echo);
        Secret { row: row.try_into().expect("16 bytes"), echo: low ^ high }
    }

    pub(crate) fn scope(&self, name: &str) -> ScopeId {
        self.key(Kind::Scope, &[0; 16], name.as_bytes()).hash
    }

    pub(crate) fn tag(&self, tag: &str) -> u64 {
        // Zero says "no tag".
        (digest(&self.row, Kind::Tag, &[0; 16], tag.as_bytes()) as u64).max(1)
    }

    pub(crate) fn key(&self, kind: Kind, scope: &ScopeId, name: &[u8]) -> Key {
        // A different function altogether: names that meet in one do not in the other.
        let [scope_half, _] = halves(scope);
        let echo = xxh3_64_with_seed(name, self.echo ^ scope_half ^ kind as u64);
        let mut hash = digest(&self.row, kind, scope, name).to_le_bytes();
        // Of the scope's own key the last bytes are zero, the first tell it from others.
        hash[SCOPE_MARK..].copy_from_slice(&scope[..16 - SCOPE_MARK]);
        Key { hash, echo }
    }

    /// Proves that a message was written by who knows the secret: SipHash-2-4 of 128 bits, under a key of its own for
    /// each kind and scope.
    pub(crate) fn mac(&self, kind: Kind, scope: &ScopeId, message: &[u8]) -> u128 {
        let key = digest(&self.row, kind, scope, b"").to_le_bytes();
        let mut hasher = SipHasher24::new_with_key(&key);
        hasher.write(message);
        hasher.finish128().as_u128()
    }
}

/// The last bytes of a key tell scopes apart. The order of the keys is that of names, whatever their scope.
const SCOPE_MARK: usize = 12;

/// What the keys of one scope have in common, and those of two do not.
pub(crate) fn scope_mark(key: &[u8; 16]) -> &[u8] {
    &key[SCOPE_MARK..]
}

fn halves(bytes: &[u8; 16]) -> [u64; 2] {
    let whole = u128::from_le_bytes(*bytes);
    [whole as u64, (whole >> 64) as u64]
}

fn digest(key: &[u8; 16], kind: Kind, scope: &ScopeId, name: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new_with_key(key);
    let mut head = [0; 17];
    head[0] = kind as u8;
    head[1..].copy_from_slice(scope);
    hasher.write(&head);
    hasher.write(name);
    hasher.finish128().as_u128()
}

/// A row of `state/`: what it means ends at `expires` (ns of machine time).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) expires: u64,
    /// Digest of its tag, 0 for none.
    pub(crate) tag: u64,
    pub(crate) payload: &'a [u8],
}

/// What a state row turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Absent,
    Row(Row<'a>),
    Damaged,
}

const ROW_VERSION: u8 = 1;
const ROW_HEAD: usize = 25;
const ROW_CHECK: usize = 4;

/// Calls `with` with the bytes of a state row: version, expires, echo, tag, payload, checksum. Small ones, which are nearly
/// all, stay on the stack.
pub(crate) fn with_row<T>(key: &Key, row: &Row<'_>, with: impl FnOnce(&[u8]) -> T) -> T {
    let len = ROW_HEAD + row.payload.len() + ROW_CHECK;
    let (mut small, mut large) = ([0; 160], Vec::new());
    let bytes = match small.get_mut(..len) {
        Some(bytes) => bytes,
        None => {
            large.resize(len, 0);
            &mut large[..]
        }
    };
    let (body, check) = bytes.split_at_mut(len - ROW_CHECK);
    body[0] = ROW_VERSION;
    body[1..9].copy_from_slice(&row.expires.to_le_bytes());
    body[9..17].copy_from_slice(&key.echo.to_le_bytes());
    body[17..ROW_HEAD].copy_from_slice(&row.tag.to_le_bytes());
    body[ROW_HEAD..].copy_from_slice(row.payload);
    check.copy_from_slice(&(xxh3_64(body) as u32).to_le_bytes());
    with(bytes)
}

/// Decodes the row of `key`. A row of another name under the same key counts as absent.
pub(crate) fn decode_row<'a>(bytes: Option<&'a [u8]>, key: &Key) -> Found<'a> {
    match bytes.map(decode_any_row) {
        None => Found::Absent,
        Some(None) => Found::Damaged,
        Some(Some((echo, _))) if echo != key.echo => Found::Absent,
        Some(Some((_, row))) => Found::Row(row),
    }
}

/// Decodes a row whose name is not known, with its name's digest.
pub(crate) fn decode_any_row(bytes: &[u8]) -> Option<(u64, Row<'_>)> {
    let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(ROW_CHECK)?)?;
    if body.len() < ROW_HEAD || body[0] != ROW_VERSION || check != (xxh3_64(body) as u32).to_le_bytes() {
        return None;
    }
    let row = Row { expires: u64_at(body, 1)?, tag: u64_at(body, 17)?, payload: &body[ROW_HEAD..] };
    Some((u64_at(body, 9)?, row))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// When a stored answer may be used, in ns of machine time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) stored: u64,
    /// Until then it answers.
    pub(crate) fresh: u64,
    /// Until then it may be served while a new answer is computed.
    pub(crate) revalidate: u64,
    /// Until then it may be served where a new answer cannot be had, or not in time.
    pub(crate) if_error: u64,
}

impl Life {
    /// One that ends for good when it is no longer fresh.
    pub(crate) fn without_grace(stored: u64, fresh: u64) -> Life {
        Life { stored, fresh, revalidate: fresh, if_error: fresh }
    }

    /// When it is of no use any more.
    pub(crate) fn ends(&self) -> u64 {
        self.fresh.max(self.revalidate).max(self.if_error)
    }

    /// What was stored in the future was stored by a clock that is no more.
    pub(crate) fn is_over(&self, now: u64) -> bool {
        now < self.stored || self.ends() <= now
    }

    /// As if it had ended at a time; what may follow its end is no longer than before.
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
    /// What it costs to compute, in ns: an estimate from this computation and those before.
    pub(crate) cost: u64,
    /// How far computations were from that on average, in ns.
    pub(crate) spread: u64,
    /// The purge sequence read when its computation started.
    pub(crate) sequence: u64,
    pub(crate) scope: ScopeId,
    pub(crate) tags: Vec<u64>,
    pub(crate) payload: Bytes,
    /// It is no answer, but something remembered of a name.
    pub(crate) is_mark: bool,
}

const ENTRY_VERSION: u8 = 2;
const MARK_VERSION: u8 = 3;
const ENTRY_HEAD: usize = 96;
const ENTRY_CHECK: usize = 8;

/// Bytes that [`encode_entry`] adds to a payload at most.
pub(crate) const ENTRY_OVERHEAD: usize = ENTRY_HEAD + ENTRY_CHECK + 8 * TAGS_MAX + ECHO_MAX;

/// The bytes of an entry: head, tags, name, payload, checksum. The name makes the row readable from outside.
pub(crate) fn encode_entry(key: &Key, name: &[u8], entry: &Entry) -> Vec<u8> {
    let tags = &entry.tags[..entry.tags.len().min(TAGS_MAX)];
    let name_echo = &name[..name.len().min(ECHO_MAX)];
    let mut out = Vec::with_capacity(ENTRY_HEAD + tags.len() * 8 + name_echo.len() + entry.payload.len() + ENTRY_CHECK);
    out.push(if entry.is_mark { MARK_VERSION } else { ENTRY_VERSION });
    out.push(tags.len() as u8);
    let Life { stored, fresh, revalidate, if_error } = entry.life;
    for number in [entry.life.ends(), stored, entry.cost, entry.sequence, key.echo] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(&(name_echo.len() as u16).to_le_bytes());
    out.extend_from_slice(&entry.scope);
    for number in [fresh, revalidate, if_error, entry.spread] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    for tag in tags {
        out.extend_from_slice(&tag.to_le_bytes());
    }
    out.extend_from_slice(name_echo);
    out.extend_from_slice(&entry.payload);
    let check = xxh3_64(&out);
    out.extend_from_slice(&check.to_le_bytes());
    out
}

/// The expiry an entry's bytes claim, unchecked: for indexes that must be kept even of damaged entries.
pub(crate) fn claimed_expiry(bytes: &[u8]) -> u64 {
    u64_at(bytes, 2).unwrap_or(0)
}

/// Whether an entry's bytes claim to be a mark, unchecked: for the count of those.
pub(crate) fn claims_to_be_mark(bytes: &[u8]) -> bool {
    bytes.first() == Some(&MARK_VERSION)
}

/// What stands under a key of `entries/`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The entry of the name asked for.
    Entry(Entry),
    /// The entry of another name, whose key happens to be the same.
    Other,
    Damaged,
}

/// Decodes the entry of `key` and `name`; the payload is a slice of `bytes`.
pub(crate) fn decode_entry(bytes: &Bytes, key: &Key, name: &[u8]) -> Stored {
    let Some(head) = decode_head(bytes).filter(|_| checksum_holds(bytes)) else { return Stored::Damaged };
    if head.echo != key.echo || head.name_len as usize != name.len() || !name.starts_with(head.name_echo) {
        return Stored::Other;
    }
    Stored::Entry(Entry { payload: bytes.slice(head.payload), ..head.entry })
}

/// What tells one row of an entry from another: its head, with all its times, and its checksum.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowDigest([u8; ENTRY_HEAD], [u8; ENTRY_CHECK], usize);

impl RowDigest {
    pub(crate) fn of(bytes: &[u8]) -> Option<RowDigest> {
        Some(RowDigest(*bytes.first_chunk()?, *bytes.last_chunk()?, bytes.len()))
    }
}

/// Everything of an entry but its payload, and the beginning of its name; unchecked against damage of the payload.
pub(crate) fn decode_without_payload(bytes: &[u8]) -> Option<(Entry, &[u8])> {
    decode_head(bytes).map(|head| (head.entry, head.name_echo))
}

/// The bytes of an entry with another life and sequence.
pub(crate) fn with_life(bytes: &[u8], life: &Life, sequence: u64) -> Option<Vec<u8>> {
    if !checksum_holds(bytes) || decode_head(bytes)?.entry.life.stored != life.stored {
        return None;
    }
    let mut out = bytes.to_vec();
    let Life { fresh, revalidate, if_error, .. } = *life;
    for (at, number) in [(2, life.ends()), (26, sequence), (64, fresh), (72, revalidate), (80, if_error)] {
        out[at..at + 8].copy_from_slice(&number.to_le_bytes());
    }
    let (body, check) = out.split_at_mut(bytes.len() - ENTRY_CHECK);
    check.copy_from_slice(&xxh3_64(body).to_le_bytes());
    Some(out)
}

/// Whether an entry's bytes are as they were stored.
pub(crate) fn checksum_holds(bytes: &[u8]) -> bool {
    let (body, check) = bytes.split_at(bytes.len().saturating_sub(ENTRY_CHECK));
    check == xxh3_64(body).to_le_bytes()
}

struct Head<'a> {
    entry: Entry,
    echo: u64,
    name_len: u32,
    name_echo: &'a [u8],
    payload: Range<usize>,
}

fn decode_head(bytes: &[u8]) -> Option<Head<'_>> {
    let body = &bytes[..bytes.len().checked_sub(ENTRY_CHECK)?];
    if body.len() < ENTRY_HEAD || !matches!(body[0], ENTRY_VERSION | MARK_VERSION) {
        return None;
    }
    let tags_end = ENTRY_HEAD + body[1] as usize * 8;
    let name_end = tags_end + u16::from_le_bytes(body[46..48].try_into().ok()?) as usize;
    let name_echo = body.get(tags_end..name_end)?;
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
        tags: body[ENTRY_HEAD..tags_end].chunks_exact(8).filter_map(|tag| u64_at(tag, 0)).collect(),
        payload: Bytes::new(),
        is_mark: body[0] == MARK_VERSION,
    };
    let name_len = u32::from_le_bytes(body[42..46].try_into().ok()?);
    Some(Head { entry, echo: u64_at(body, 34)?, name_len, name_echo, payload: name_end..body.len() })
}

#[cfg(test)]
mod tests;
