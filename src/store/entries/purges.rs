//! Purges of stored answers.
//!
//! A purge is one row {subject -> sequence}. An entry carries the sequence read when its computation started and lives
//! only while no purge that matches it is newer; the storing transaction checks the same, so that an answer computed
//! before a purge cannot come back after it. A soft purge ends the life of matching entries at its own time, and leaves
//! them their grace.
//!
//! What belongs to one name goes in the transaction of its purge. [A walk](super::walk) removes or rewrites the entries
//! that other purges have hit. Then a purge may be [forgotten](super::forgetting).

use super::{
    entry::Entry,
    forgetting::{LONGEST_FLIGHT, floor, make_way},
    purge_rule::{Subject, applied, standing_since, times},
    table::{AGES, FAMILY_MAX, FLOOR, META, PURGES, SEQUENCE, family_members, number},
    walk::{apply_purges, follow, walk_on},
};
use crate::{
    error::Error,
    store::{
        commit::operation::Operation,
        lmdb::transaction::{Reader, Txn},
        os::boot::since_epoch,
    },
};

/// Soft purges of one subject that are remembered one by one.
const TIMES_MAX: usize = 16;

/// An answer that is to be stored, as the purges since its computation began have left it: the walk that follows them
/// may have passed already. `None`: it must not be stored, since one of them matches it, or it began so long ago that
/// this is not known.
pub(crate) fn as_of_now(
    reader: &Reader<'_>,
    key: &[u8; 16],
    name: &[u8],
    entry: &Entry,
) -> Result<Option<Entry>, Error> {
    if entry.cost >= LONGEST_FLIGHT || entry.sequence < floor(reader, entry.scope)? {
        return Ok(None);
    }
    let sequence = number(reader, SEQUENCE)?;
    if entry.sequence >= sequence {
        return Ok(Some(entry.clone()));
    }
    let standing = standing_since(reader, entry.sequence, key, name, entry)?;
    Ok(standing.map(|life| Entry { life, sequence, ..entry.clone() }))
}

/// The result of a purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purged {
    Done,
    /// There was no room to remember it. The walk has gone on for that by a step: it is to be tried again.
    Again,
}

pub(crate) struct Purge {
    pub(crate) subject: Subject,
    /// Matching entries have ended, and may be served as ended ones.
    pub(crate) soft: bool,
    pub(crate) now: u64,
    pub(crate) purged: Purged,
}

impl Operation for Purge {
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        self.purged = Purged::Done;
        let key = self.subject.key(self.soft);
        if txn.get(PURGES, key.as_bytes())?.is_none() && !make_way(txn, key.group())? && walk_on(txn)? {
            self.purged = Purged::Again;
            return Ok(true);
        }
        let (applied, sequence) = (applied(&txn.reader())?, number(&txn.reader(), SEQUENCE)? + 1);
        put_purge(txn, &self.subject, self.soft, (sequence, self.now))?;
        txn.raise_last_number(sequence);
        txn.put(META, SEQUENCE, &sequence.to_le_bytes())?;
        match &self.subject {
            Subject::Name(name) => apply_purges(txn, name, applied)?,
            Subject::Family(_, family) => {
                for key in family_members(txn, *family, FAMILY_MAX)? {
                    apply_purges(txn, &key, applied)?;
                }
            }
            Subject::All | Subject::Scope(_) | Subject::Tag(_) | Subject::Prefix(..) => follow(txn, sequence)?,
        }
        Ok(true)
    }
}

/// Begins the purge sequence of a new generation above that of the one before. Computations that began before are not
/// stored in it, since it knows of no purge that they may have missed.
pub(crate) fn carry_over(before: Option<&Reader<'_>>, txn: &mut Txn<'_>) -> Result<(), Error> {
    let last = match before {
        Some(before) => number(before, SEQUENCE)?,
        // No directory sees a million purges a second for long, so the calendar is above them. It may have gone back.
        None => (since_epoch() / 1_000).max(txn.last_number()),
    };
    let sequence = last.saturating_add(1);
    txn.raise_last_number(sequence);
    txn.put(META, SEQUENCE, &sequence.to_le_bytes())?;
    txn.put(META, FLOOR, &sequence.to_le_bytes())
}

fn put_purge(txn: &mut Txn<'_>, subject: &Subject, soft: bool, time: (u64, u64)) -> Result<(), Error> {
    let key = subject.key(soft);
    let mut all: Vec<_> = txn.get(PURGES, key.as_bytes())?.map(|row| times(row).collect()).unwrap_or_default();
    if let Some((last, _)) = all.last() {
        txn.delete(AGES, &key.group().aged(*last))?;
    }
    if !soft {
        all.clear();
    }
    if all.len() >= TIMES_MAX {
        // The earlier time stands for both.
        all[0].0 = all[1].0;
        all.remove(1);
    }
    all.push(time);
    let row: Vec<u8> =
        all.iter().flat_map(|(sequence, now)| [sequence.to_le_bytes(), now.to_le_bytes()]).flatten().collect();
    txn.put(AGES, &key.group().aged(time.0), key.as_bytes())?;
    txn.put(PURGES, key.as_bytes(), &row)
}

#[cfg(test)]
mod tests;
