//! The row of a cell, opened and put back.

use super::{
    cell::Cell,
    limit::{algorithm::Moment, limits::Limits},
};
use crate::{
    cache::Scope,
    store::{Change, Found},
};
use std::time::UNIX_EPOCH;

/// Brings cells up to date; read before the transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) booted: u64,
    /// How far the wall clock was ahead of machine time.
    pub(super) lead: i64,
}

impl Times {
    pub(super) fn of(scope: &Scope, limits: &Limits) -> Times {
        let handle = scope.handle();
        let lead = match limits.iter().any(|limit| limit.rule.reads_wall()) {
            true => {
                let wall = handle.wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
                i64::try_from(wall).unwrap_or(i64::MAX).wrapping_sub_unsigned(handle.now())
            }
            false => 0,
        };
        Times { booted: handle.shared.booted, lead }
    }

    fn at(self, now: u64) -> Moment {
        Moment { now, wall: now.saturating_add_signed(self.lead) }
    }
}

/// A cell's row, opened for some limits.
pub(super) struct Opened {
    pub(super) cell: Cell,
    pub(super) tag: u64,
    pub(super) at: Moment,
}

impl Opened {
    #[inline]
    pub(super) fn new(found: Found<'_>, limits: &Limits, times: Times, now: u64) -> Opened {
        let at = times.at(now);
        let spent;
        let (payload, tag) = match found {
            Found::Row(row) => (Some(row.payload), row.tag),
            // A damaged cell is counted, and as good as a full budget.
            Found::Absent | Found::Damaged => (None, 0),
            Found::Lost { at } => {
                spent = Self::spent(limits, times, at.min(now)).write();
                (Some(&spent[..]), 0)
            }
        };
        Opened { cell: Cell::open(payload, limits, at, times.booted), tag, at }
    }

    /// A cell of which nothing was left at that time: its row was lost.
    #[cold]
    fn spent(limits: &Limits, times: Times, at: u64) -> Cell {
        let mut cell = Cell::open(None, limits, times.at(at), times.booted);
        cell.leave_at_most(0, at);
        cell
    }

    pub(super) fn put(&self, tag: u64, retention: u64) -> Change {
        let tag = if tag == 0 { self.tag } else { tag };
        let expires = self.cell.ends().max(self.at.now.saturating_add(retention));
        Change::Put { expires, tag, payload: self.cell.write() }
    }
}
