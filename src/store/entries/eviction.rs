//! Eviction: what has ended goes first, then what is not read.
//!
//! It is S3-FIFO. A new entry begins in a small queue. Leaving that unread, it is evicted; read, it goes on into the main
//! queue, over which a hand goes round: it takes a hit back from each entry that was read, and evicts the others. A name
//! that comes back soon after it was evicted counts as read. So what is asked for once harms little, however much it is.
//!
//! No row is moved for it. All entries stand in one order, by the places that they got when they were stored; where the
//! main queue ends and where the hand is are two numbers. The hits are in the [use table](super::use_table).

use super::{
    entry::Claims,
    ledger::Ledger,
    shard::Entries,
    table::{
        ENTRIES, FAMILY_MAX, FoundBy, INDEX, ORDER, family_members, key_of, load_ledger, remove, remove_found,
        save_ledger, split_index_key,
    },
    use_table::{USES_MAX, UseTable},
};
use crate::{error::Error, store::lmdb::transaction::Txn};
use std::{ops::Bound, sync::atomic::Ordering::Relaxed};

/// Rows that one write clears away, besides the rows whose room it needs.
pub(super) const BITE: usize = 16;

/// The small queue may take this part of the budget: a fiftieth.
const SMALL: u64 = 50;

/// Entries that are spared one after the other, before one of them goes though it is used.
const SPARED_MAX: usize = 32;

/// The result of a step of clearing away.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trimmed {
    /// There is more to clear away than the step was allowed.
    pub(super) more: bool,
    pub(super) changed: bool,
}

impl Entries {
    /// Clears away some entries that have ended and, while `incoming` bytes more would exceed the budget, those that are
    /// not used: `most` rows at most.
    pub(super) fn trim(
        &self,
        txn: &mut Txn<'_>,
        ledger: &mut Ledger,
        now: u64,
        incoming: u64,
        most: usize,
    ) -> Result<Trimmed, Error> {
        let mut cleared = 0;
        let mut ended = true;
        while ended && cleared < most {
            // Rows are read a bite at a time: mostly the first one says that nothing need be done.
            let bite = BITE.min(most - cleared);
            let rows = txn.rows(INDEX, Bound::Unbounded, bite, |key, _| split_index_key(key))?;
            ended = rows.len() == bite;
            for (expires, key) in rows {
                if expires > now {
                    ended = false;
                    break;
                }
                remove_found(txn, ledger, &key, FoundBy::End(expires))?;
                cleared += 1;
            }
        }
        let budget = self.budget();
        while cleared < most && ledger.bytes.saturating_add(incoming) > budget {
            if !evict(txn, ledger, budget, Some(&self.uses))? {
                return Ok(Trimmed { more: false, changed: cleared > 0 });
            }
            self.counts.evicted.fetch_add(1, Relaxed);
            cleared += 1;
        }
        Ok(Trimmed { more: cleared == most, changed: cleared > 0 })
    }

    /// Makes room in a family that is about to get one more entry: the names of its entries may come from requests.
    pub(super) fn trim_family(&self, txn: &mut Txn<'_>, ledger: &mut Ledger, family: u64) -> Result<(), Error> {
        let members = family_members(txn, family, FAMILY_MAX)?;
        if members.len() < FAMILY_MAX {
            return Ok(());
        }
        let unused = members.iter().find(|key| self.uses.count(key) == 0);
        if unused.is_none() {
            members.iter().for_each(|key| self.uses.take(key));
        }
        if let Some(key) = unused.or(members.first()) {
            remove(txn, ledger, key)?;
            self.counts.evicted.fetch_add(1, Relaxed);
        }
        Ok(())
    }
}

/// Evicts one entry, if there is any.
fn evict(txn: &mut Txn<'_>, ledger: &mut Ledger, budget: u64, uses: Option<&UseTable>) -> Result<bool, Error> {
    let mut spared: Vec<(u16, Candidate)> = Vec::new();
    for _ in 0..SPARED_MAX {
        let Some(candidate) = candidate(txn, ledger, budget)? else { break };
        let &Candidate { place, ref key, is_small } = &candidate;
        let bytes = txn.get(ENTRIES, key)?.map_or(0, Claims::footprint);
        // What would push many others out must be read more often.
        let least = if is_small && bytes > budget / SMALL { USES_MAX } else { 1 };
        let used = uses.map_or(0, |uses| uses.count(key));
        let is_spared = used >= least;
        if !is_small {
            ledger.hand = place;
            uses.inspect(|uses| uses.take(key));
        } else if is_spared {
            ledger.main_end = place;
            ledger.small = ledger.small.saturating_sub(bytes);
        } else if let Some(uses) = uses {
            uses.evicted(key, ledger.epoch);
            ledger.count_eviction(txn.len(ENTRIES)?);
        }
        if is_spared {
            spared.push((used, candidate));
        } else if remove_found(txn, ledger, key, FoundBy::Place(place))? > 0 {
            return Ok(true);
        }
    }
    // All are used. The least used goes, the oldest of them.
    let Some((_, least)) = spared.iter().min_by_key(|(used, _)| *used) else { return Ok(false) };
    Ok(remove_found(txn, ledger, &least.key, FoundBy::Place(least.place))? > 0)
}

struct Candidate {
    place: u64,
    key: [u8; 16],
    /// It stands in the small queue.
    is_small: bool,
}

/// The entry that is to be looked at next.
fn candidate(txn: &Txn<'_>, ledger: &mut Ledger, budget: u64) -> Result<Option<Candidate>, Error> {
    let small = first_after(txn, ledger.main_end)?;
    if small.is_none() {
        ledger.small = 0;
    }
    let main = if small.is_some() && ledger.small > budget / SMALL { None } else { next_of_main(txn, ledger)? };
    let is_small = main.is_none();
    Ok(main.or(small).map(|(place, key)| Candidate { place, key, is_small }))
}

/// The entry of the main queue behind the hand. At the end, the hand begins anew.
fn next_of_main(txn: &Txn<'_>, ledger: &Ledger) -> Result<Option<(u64, [u8; 16])>, Error> {
    for hand in [ledger.hand, 0] {
        let next = first_after(txn, hand)?.filter(|(place, _)| *place <= ledger.main_end);
        if next.is_some() {
            return Ok(next);
        }
    }
    Ok(None)
}

fn first_after(txn: &Txn<'_>, place: u64) -> Result<Option<(u64, [u8; 16])>, Error> {
    let from = place.saturating_add(1).to_be_bytes();
    let rows = txn.rows(ORDER, Bound::Included(&from), 1, |place, key| {
        (place.try_into().map_or(u64::MAX, u64::from_be_bytes), key_of(key))
    })?;
    Ok(rows.first().copied())
}

/// Called when the map or the disk is full: drops some entries, the oldest of the small queue and those at the hand.
pub(crate) fn make_room(txn: &mut Txn<'_>) -> Result<bool, Error> {
    let mut ledger = load_ledger(&txn.reader())?;
    let mut changed = false;
    for _ in 0..BITE {
        changed |= evict(txn, &mut ledger, 0, None)?;
    }
    save_ledger(txn, &ledger)?;
    Ok(changed)
}
