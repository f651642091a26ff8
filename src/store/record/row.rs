//! The stored form of a row of `state/`: pure encoding and decoding. Bytes that do not decode are no row, and never
//! cause a panic.

use super::key::Key;
use xxhash_rust::xxh3::xxh3_64;

/// A row of `state/`. It means nothing from `expires` on (ns of machine time).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub(crate) expires: u64,
    /// Digest of its tag, 0 for none.
    pub(crate) tag: u64,
    pub(crate) payload: &'a [u8],
}

/// The result of decoding a row of `state/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Absent,
    /// Absent, since all rows were lost at that machine time, in ns.
    Lost {
        at: u64,
    },
    Row(Row<'a>),
    Damaged,
}

const ROW_VERSION: u8 = 1;
/// The version of what stands in place of a row that was found damaged.
const DAMAGED_VERSION: u8 = 2;
const ROW_HEAD: usize = 25;
const ROW_CHECK: usize = 4;

/// Calls `with` with the bytes of a row: version, expires, echo, tag, payload, checksum. Small rows, which are nearly
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

/// Decodes a row whose name is not known; returns its name's digest too.
pub(crate) fn decode_any_row(bytes: &[u8]) -> Option<(u64, Row<'_>)> {
    let (body, check) = bytes.split_at_checked(bytes.len().checked_sub(ROW_CHECK)?)?;
    if body.len() < ROW_HEAD || body[0] != ROW_VERSION || check != (xxh3_64(body) as u32).to_le_bytes() {
        return None;
    }
    let row = Row { expires: u64_at(body, 1)?, tag: u64_at(body, 17)?, payload: &body[ROW_HEAD..] };
    Some((u64_at(body, 9)?, row))
}

/// What is put in place of a lock's row that was found damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DamagedRow {
    /// Its name, which is not known, is refused until this machine time in ns.
    pub(crate) until: u64,
    /// Its key is sound: somebody has asked for it. A garbled key would mean that another one is missing.
    pub(crate) has_sound_key: bool,
}

impl DamagedRow {
    pub(crate) fn encode(self) -> [u8; 14] {
        let mut bytes = [DAMAGED_VERSION; 14];
        bytes[1..9].copy_from_slice(&self.until.to_le_bytes());
        bytes[9] = self.has_sound_key.into();
        let check = xxh3_64(&bytes[..10]) as u32;
        bytes[10..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<DamagedRow> {
        let row = DamagedRow { until: u64_at(bytes, 1)?, has_sound_key: *bytes.get(9)? == 1 };
        (bytes == row.encode()).then_some(row)
    }
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;
