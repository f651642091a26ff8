//! The purge rule: which purges match an entry, and what they leave of it.

use super::{
    entry::{Entry, KEPT_NAME_MAX, Life},
    table::{PREFIXED, PURGES, SEQUENCE, SOFT, number},
};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::Reader,
        record::{key::ScopeId, row::u64_at},
    },
};
use std::ops::Bound;

/// Bytes that a prefix may have: as many as are kept of a name beside its entry.
pub(crate) const PREFIX_MAX: usize = KEPT_NAME_MAX;

/// The subject of a purge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    All,
    Scope(ScopeId),
    Tag(u64),
    Name([u8; 16]),
    /// What belongs to a name of a scope, see [`Key::family`](crate::store::Key::family).
    Family(ScopeId, u64),
    /// A prefix of the names of a scope, at most [`PREFIX_MAX`] bytes.
    Prefix(ScopeId, Vec<u8>),
}

/// The first byte of the rows of [`Subject::Name`] and [`Subject::Prefix`].
pub(super) const NAME: u8 = 3;
const PREFIX: u8 = 4;
pub(super) const FAMILY: u8 = 5;
/// Added to the first byte of the row of a soft purge.
pub(super) const SOFTLY: u8 = 0x80;

impl Subject {
    pub(super) fn key(&self, soft: bool) -> PurgeKey {
        let mut key = PurgeKey::of(&[if soft { self.kind() | SOFTLY } else { self.kind() }]);
        match self {
            Subject::All => {}
            Subject::Tag(tag) => key.push(&tag.to_be_bytes()),
            Subject::Family(scope, family) => {
                key.push(scope);
                key.push(&family.to_be_bytes());
            }
            Subject::Scope(id) | Subject::Name(id) => key.push(id),
            Subject::Prefix(scope, prefix) => {
                key.push(scope);
                key.push(&prefix[..prefix.len().min(PREFIX_MAX)]);
            }
        }
        key
    }

    /// The first byte of its rows.
    fn kind(&self) -> u8 {
        match self {
            Subject::All => 0,
            Subject::Scope(_) => 1,
            Subject::Tag(_) => 2,
            Subject::Name(_) => NAME,
            Subject::Prefix(..) => PREFIX,
            Subject::Family(..) => FAMILY,
        }
    }
}

/// The key of a purge's row.
#[derive(Clone, Copy, Debug)]
pub(super) struct PurgeKey {
    bytes: [u8; Self::MAX],
    len: usize,
}

impl PurgeKey {
    const MAX: usize = 1 + 16 + PREFIX_MAX;

    fn push(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    pub(super) fn of(row: &[u8]) -> PurgeKey {
        let len = row.len().min(Self::MAX);
        let mut key = PurgeKey { bytes: [0; Self::MAX], len };
        key.bytes[..len].copy_from_slice(&row[..len]);
        key
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// When the purges of a row were made, by sequence and clock, the last one last. Soft purges are listed as long as
/// there may be entries that each of them has ended.
pub(super) fn times(row: &[u8]) -> impl DoubleEndedIterator<Item = (u64, u64)> {
    row.chunks_exact(16).filter_map(|time| Some((u64_at(time, 0)?, u64_at(time, 8)?)))
}

/// The time of the first purge of a row since `sequence`.
fn first_since(row: &[u8], sequence: u64) -> Option<u64> {
    times(row).find(|(purge, _)| *purge > sequence).map(|(_, time)| time)
}

/// The time of the first purge since `sequence`.
fn purged_since(reader: &Reader<'_>, subject: &Subject, soft: bool, sequence: u64) -> Result<Option<u64>, Error> {
    let row = reader.get(PURGES, subject.key(soft).as_bytes())?;
    Ok(row.and_then(|row| first_since(row, sequence)))
}

/// The time of the first purge since `sequence` by a prefix of the name.
fn purged_by_prefix_since(
    reader: &Reader<'_>,
    scope: ScopeId,
    name: &[u8],
    soft: bool,
    sequence: u64,
) -> Result<Option<u64>, Error> {
    let all = Subject::Prefix(scope, Vec::new()).key(soft);
    let mut since = None;
    reader.any(PURGES, (Bound::Included(all.as_bytes()), Bound::Unbounded), |key, row| {
        let Some(prefix) = key.strip_prefix(all.as_bytes()) else { return true };
        if name.starts_with(prefix)
            && let Some(time) = first_since(row, sequence)
        {
            since = Some(since.map_or(time, |since: u64| since.min(time)));
        }
        false
    })?;
    Ok(since)
}

/// The life that an entry has left after the purges that are newer than the start of its computation: none, or one that
/// may have ended early.
pub(super) fn standing(reader: &Reader<'_>, key: &[u8; 16], name: &[u8], entry: &Entry) -> Result<Option<Life>, Error> {
    standing_at(reader, number(reader, SEQUENCE)?, key, name, entry)
}

/// As `standing`, where the sequence of the newest purge is known.
pub(super) fn standing_at(
    reader: &Reader<'_>,
    newest: u64,
    key: &[u8; 16],
    name: &[u8],
    entry: &Entry,
) -> Result<Option<Life>, Error> {
    if entry.sequence >= newest {
        return Ok(Some(entry.life));
    }
    let may_be = |what: &[u8]| Ok::<_, Error>(entry.sequence < number(reader, what)?);
    let (soft, prefixed) = (may_be(SOFT)?, may_be(PREFIXED)?);
    let mut life = entry.life;
    let fixed = [Subject::All, Subject::Scope(entry.scope), Subject::Name(*key)];
    let family = (entry.family != 0).then_some(Subject::Family(entry.scope, entry.family));
    for subject in fixed.into_iter().chain(family).chain(entry.tags.iter().copied().map(Subject::Tag)) {
        if purged_since(reader, &subject, false, entry.sequence)?.is_some() {
            return Ok(None);
        }
        if soft && let Some(at) = purged_since(reader, &subject, true, entry.sequence)? {
            life = life.ended_at(at);
        }
    }
    if prefixed {
        if purged_by_prefix_since(reader, entry.scope, name, false, entry.sequence)?.is_some() {
            return Ok(None);
        }
        if let Some(at) = purged_by_prefix_since(reader, entry.scope, name, true, entry.sequence)? {
            life = life.ended_at(at);
        }
    }
    Ok(Some(life))
}
