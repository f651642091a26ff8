//! The purge rule: which purges match an entry, and what they leave of it.

use super::{
    entry::{Entry, KEPT_NAME_MAX, Life},
    table::{PURGES, SEQUENCE, WALKED, WANTED, number},
};
use crate::{
    error::Error,
    store::{
        lmdb::transaction::Reader,
        record::{key::ScopeId, row::u64_at},
    },
};

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

/// The first byte of the rows of a subject.
const ALL: u8 = 0;
const SCOPE: u8 = 1;
const TAG: u8 = 2;
const NAME: u8 = 3;
const PREFIX: u8 = 4;
const FAMILY: u8 = 5;
/// Added to the first byte of the row of a soft purge.
const SOFTLY: u8 = 0x80;

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
            Subject::All => ALL,
            Subject::Scope(_) => SCOPE,
            Subject::Tag(_) => TAG,
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

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The purges with which it is forgotten.
    pub(super) fn group(&self) -> Group {
        let mut group = Group::ALL;
        let scope = match self.bytes[0] & !SOFTLY {
            ALL | TAG => return group,
            // The last bytes of a key tell the scope of its name.
            NAME => &self.bytes[1 + 16 - Group::MARK..1 + 16],
            _ => &self.bytes[1..1 + Group::MARK],
        };
        group.0[0] = 1;
        group.0[1..].copy_from_slice(scope);
        group
    }

    /// Whether its entries are gone with the purge itself.
    pub(super) fn is_applied_at_once(&self) -> bool {
        matches!(self.bytes[0] & !SOFTLY, NAME | FAMILY)
    }
}

/// The purges that are forgotten together: those of a scope, or those that know no scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group(pub(super) [u8; 1 + Group::MARK]);

impl Group {
    /// Bytes that tell scopes apart, see [`scope_mark`](crate::store::scope_mark).
    const MARK: usize = 4;
    pub(super) const ALL: Group = Group([0; 1 + Self::MARK]);

    pub(super) fn of_scope(scope: &ScopeId) -> Group {
        Subject::Scope(*scope).key(false).group()
    }

    /// The key of the row by which a purge of the group is found by its age.
    pub(super) fn aged(&self, sequence: u64) -> [u8; 13] {
        let mut key = [0; 13];
        key[..5].copy_from_slice(&self.0);
        key[5..].copy_from_slice(&sequence.to_be_bytes());
        key
    }

    /// The group and the sequence of such a key.
    pub(super) fn split(aged: &[u8]) -> (Group, u64) {
        let split = aged.split_first_chunk().and_then(|(group, age)| Some((*group, *age.first_chunk()?)));
        split.map_or((Group::ALL, 0), |(group, age)| (Group(group), u64::from_be_bytes(age)))
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

/// The time of the first purge since `sequence` by a prefix of the name. The number of prefixes does not matter.
fn purged_by_prefix_since(
    reader: &Reader<'_>,
    scope: ScopeId,
    name: &[u8],
    soft: bool,
    sequence: u64,
) -> Result<Option<u64>, Error> {
    let shortest = Subject::Prefix(scope, Vec::new()).key(soft).len;
    let mut longest = Subject::Prefix(scope, name[..name.len().min(PREFIX_MAX)].to_vec()).key(soft);
    let mut since: Option<u64> = None;
    while let Some((key, row)) = reader.at_or_before(PURGES, longest.as_bytes())? {
        let common = key.iter().zip(longest.as_bytes()).take_while(|(one, other)| one == other).count();
        // A prefix that is longer than what the row has in common with the name would stand between the two.
        longest.truncate(common);
        if common == key.len() && common >= shortest {
            if let Some(time) = first_since(row, sequence) {
                since = Some(since.map_or(time, |since| since.min(time)));
            }
            longest.truncate(common - 1);
        }
        if longest.len < shortest {
            break;
        }
    }
    Ok(since)
}

/// The sequence up to which the entries are as purges have left them: to a stored entry, only later ones matter.
pub(super) fn applied(reader: &Reader<'_>) -> Result<u64, Error> {
    let walked = number(reader, WALKED)?;
    if walked >= number(reader, WANTED)? { number(reader, SEQUENCE) } else { Ok(walked) }
}

/// The life that a stored entry has left after the purges that are newer than the start of its computation: none, or one
/// that may have ended early.
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
    let since = entry.sequence.max(applied(reader)?);
    if since >= newest { Ok(Some(entry.life)) } else { standing_since(reader, since, key, name, entry) }
}

/// The life that an entry has left after the purges that are newer than `since`.
pub(super) fn standing_since(
    reader: &Reader<'_>,
    since: u64,
    key: &[u8; 16],
    name: &[u8],
    entry: &Entry,
) -> Result<Option<Life>, Error> {
    let mut life = entry.life;
    let fixed = [Subject::All, Subject::Scope(entry.scope), Subject::Name(*key)];
    let family = (entry.family != 0).then_some(Subject::Family(entry.scope, entry.family));
    for subject in fixed.into_iter().chain(family).chain(entry.tags.iter().copied().map(Subject::Tag)) {
        if purged_since(reader, &subject, false, since)?.is_some() {
            return Ok(None);
        }
        if let Some(at) = purged_since(reader, &subject, true, since)? {
            life = life.ended_at(at);
        }
    }
    if purged_by_prefix_since(reader, entry.scope, name, false, since)?.is_some() {
        return Ok(None);
    }
    if let Some(at) = purged_by_prefix_since(reader, entry.scope, name, true, since)? {
        life = life.ended_at(at);
    }
    Ok(Some(life))
}
