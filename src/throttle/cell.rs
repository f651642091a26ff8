//! What is stored of a name, and what is decided about it: pure functions of a cell, a moment and a request.

use super::{
    advice::Advice,
    learnt::{self, Learnt},
    limit::{
        algorithm::{LONGEST_SPAN, Moment},
        budget::{Budget, Stored},
        limits::{Limit, Limits, MOST},
    },
    slots::Slots,
};
use crate::{decision::Quota, rejection::Reason, store::u64_at};
use std::time::Duration;

/// How often the limits are asked for a turn that suits all of them: each time one of them goes on to a later gap, of which
/// none has more than 65.
const ROUNDS: usize = MOST * 65 + 1;
/// Set in the first byte if a [`Ban`] follows the budgets.
const BANNED: u8 = 0x80;
/// Set in the first byte if a [`Learnt`] comes last.
const LEARNT: u8 = 0x40;

/// The budgets of one name.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cell {
    /// Since when what was taken can be given back: since the cell was made, the machine started, or a limit changed.
    since: u64,
    first: Budget,
    others: Vec<Budget>,
    ban: Ban,
    /// Only of names that call a foreign server.
    learnt: Option<Box<Learnt>>,
    /// Not stored; see [`is_remade`](Cell::is_remade).
    remade: bool,
}

/// What keeps a name out whatever is left of its budgets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ban {
    /// Nothing is admitted before.
    until: u64,
    /// Refusals that count until `forgotten`.
    refusals: u32,
    forgotten: u64,
}

/// When a name is shut out: after so many refusals within `hold`, for that long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) refusals: u32,
    pub(super) hold: u64,
}

/// What is left of each limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Quotas {
    /// The one that refused, or else the one with the least left.
    pub(super) first: Quota,
    pub(super) others: Vec<Quota>,
}

/// Why a request is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) by: RefusedBy,
    /// A request like it is admitted after just that time, if no other comes. `None`: never.
    pub(super) after: Option<Duration>,
}

/// What refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RefusedBy {
    /// The limit of that position.
    Limit(usize),
    /// Too many refusals before, or a block by hand.
    Ban,
    /// What the answers of a foreign server have said.
    Learnt,
    /// Too many wait already.
    Queue,
}

impl Refusal {
    pub(super) fn reason(&self) -> Reason {
        match (self.by, self.after) {
            (RefusedBy::Ban, _) => Reason::Blocked,
            (RefusedBy::Queue, _) => Reason::QueueFull,
            (RefusedBy::Limit(_), Some(_)) | (RefusedBy::Learnt, _) => Reason::Throttled,
            (RefusedBy::Limit(_), None) => Reason::TooCostly,
        }
    }
}

impl Cell {
    /// The cell as it is at that moment. `booted` is when the machine started.
    #[inline]
    pub(super) fn open(stored: Option<&[u8]>, limits: &Limits, at: Moment, booted: u64) -> Cell {
        let alone = stored.and_then(|stored| Cell::reopen(stored, limits, at, booted));
        alone.unwrap_or_else(|| Cell::make(stored, limits, at, booted))
    }

    /// The shortest way, and by far the most frequent: one limit, nothing changed.
    #[inline]
    fn reopen(stored: &[u8], limits: &Limits, at: Moment, booted: u64) -> Option<Cell> {
        let (&[1], rest) = stored.split_first_chunk()? else { return None };
        let (since, budget) = rest.split_first_chunk()?;
        let since = u64::from_le_bytes(*since);
        if since < booted || !limits.others().is_empty() {
            return None;
        }
        let first = limits.first.rule.reopen(budget, at)?;
        Some(Cell { since, first, others: Vec::new(), ban: Ban::default(), learnt: None, remade: false })
    }

    fn make(stored: Option<&[u8]>, limits: &Limits, at: Moment, booted: u64) -> Cell {
        let Some(mut found) = stored.and_then(read) else {
            let open = |limit: &Limit| limit.rule.open(None, at, false).0;
            let others = limits.others().iter().map(open).collect();
            let (since, first, ban) = (at.now, open(&limits.first), Ban::default());
            return Cell { since, first, others, ban, learnt: None, remade: false };
        };
        let rebooted = found.since < booted;
        let mut same = found.others.len() == limits.others().len();
        let mut open = |place: usize, limit: &Limit| {
            let from = found.place_of(limit, place, limits);
            let (budget, kept) = limit.rule.open(found.take(from), at, rebooted);
            same &= kept && from == place;
            budget
        };
        let first = open(0, &limits.first);
        let others = limits.others().iter().enumerate().map(|(place, limit)| open(place + 1, limit)).collect();
        // Later than now: what was taken at this very moment was taken of the limits before.
        let remade = rebooted || !same;
        let since = if remade { at.now.saturating_add(1) } else { found.since };
        if let Some(learnt) = &mut found.learnt {
            learnt.advance(at.now);
        }
        Cell { since, first, others, ban: found.ban, learnt: found.learnt.map(Box::new), remade }
    }

    /// Whether it is not what was stored, but made out of that as of now. Until it is written, time changes nothing of it.
    pub(super) fn is_remade(&self) -> bool {
        self.remade
    }

    fn budgets(&self) -> impl Iterator<Item = &Budget> {
        std::iter::once(&self.first).chain(&self.others)
    }

    fn budgets_mut(&mut self) -> impl Iterator<Item = &mut Budget> {
        std::iter::once(&mut self.first).chain(&mut self.others)
    }

    /// The turn of a request that comes now. Cost 0 is always admitted at once.
    #[inline]
    pub(super) fn plan(&self, now: u64, cost: u32, patience: Duration) -> Result<u64, Refusal> {
        if cost == 0 {
            return Ok(now);
        }
        let (turn, by) = self.turn(now, cost).map_err(|place| Refusal { by: RefusedBy::Limit(place), after: None })?;
        let wait = Duration::from_nanos(turn - now);
        if wait > patience { Err(Refusal { by, after: Some(wait - patience) }) } else { Ok(turn) }
    }

    /// Takes what was planned.
    #[inline]
    pub(super) fn take(&mut self, turn: u64, cost: u32, now: u64) -> Slots {
        if cost == 0 {
            return Slots::default();
        }
        let first = self.first.take(turn, cost);
        let others = self.others.iter_mut().map(|budget| budget.take(turn, cost)).collect();
        Slots { cost, asked: now.max(self.since), first, others }
    }

    /// The earliest turn that suits every limit, and what put it off last. `Err`: the limit that never has room.
    #[inline]
    fn turn(&self, now: u64, cost: u32) -> Result<(u64, RefusedBy), usize> {
        // Beyond the end of time there is no turn, and a request without one would be taken for too costly.
        let mut turn = now.max(self.ban.until.min(now.saturating_add(LONGEST_SPAN)));
        let mut by = RefusedBy::Ban;
        if let Some(learnt) = &self.learnt
            && learnt.earliest(turn) > turn
        {
            (turn, by) = (learnt.earliest(turn), RefusedBy::Learnt);
        }
        let alone = self.others.is_empty();
        for _ in 0..ROUNDS {
            let before = turn;
            for (place, budget) in self.budgets().enumerate() {
                let earliest = budget.earliest(turn, cost).ok_or(place)?;
                if earliest > turn {
                    (turn, by) = (earliest, RefusedBy::Limit(place));
                }
            }
            if alone || turn == before {
                return Ok((turn, by));
            }
        }
        Err(0)
    }

    /// Gives back the last `units` of what was taken. What was taken before a restart or a change of the limits stays spent.
    pub(super) fn free(&mut self, slots: &Slots, units: u32, now: u64) {
        if slots.asked < self.since || units == 0 || slots.others.len() != self.others.len() {
            return;
        }
        self.first.free(slots.first, units, now);
        for (budget, slot) in self.others.iter_mut().zip(&slots.others) {
            budget.free(*slot, units, now);
        }
    }

    /// Takes `units` from every limit without asking.
    pub(super) fn charge(&mut self, units: u32, now: u64) {
        if units > 0 {
            self.budgets_mut().for_each(|budget| budget.charge(units, now));
        }
    }

    /// Admits nothing before `until`.
    pub(super) fn hold(&mut self, until: u64) {
        self.ban.until = self.ban.until.max(until);
    }

    /// Leaves at most `remaining` of every limit.
    pub(super) fn leave_at_most(&mut self, remaining: u32, now: u64) {
        for budget in self.budgets_mut() {
            // Where requests wait, what is left may be in several pieces, of which the largest counts.
            for _ in 0..ROUNDS {
                let excess = budget.quota(now).remaining.saturating_sub(remaining);
                if excess == 0 {
                    break;
                }
                // Not charged: a debt at the end of the line leaves the pieces, and would grow each time this is said.
                budget.take(now, excess);
            }
        }
    }

    /// Whether a request whose turn has come may go now, as far as bans and foreign servers are concerned.
    pub(super) fn is_open(&self, now: u64) -> bool {
        self.ban.until <= now && self.learnt.as_ref().is_none_or(|learnt| learnt.earliest(now) <= now)
    }

    fn learnt(&mut self, now: u64) -> &mut Learnt {
        let learnt = self.learnt.get_or_insert_default();
        learnt.advance(now);
        learnt
    }

    /// A request goes to a foreign server, which will [answer](Cell::answered).
    pub(super) fn sent(&mut self, now: u64) {
        self.learnt(now).sent();
    }

    /// The request that went at `sent` is back with some advice, or never will be.
    pub(super) fn answered(&mut self, sent: u64, advice: Option<&Advice>, now: u64) {
        let learnt = self.learnt(now);
        learnt.returned(sent);
        if let Some(advice) = advice {
            learnt.heed(advice, sent, now);
        }
    }

    /// Counts a refusal. `false`: there is nothing to be written down, since the name is shut out already.
    pub(super) fn refused(&mut self, block: Block, now: u64) -> bool {
        if self.ban.until > now {
            return false;
        }
        if self.ban.refusals == 0 || now > self.ban.forgotten {
            self.ban = Ban { refusals: 0, forgotten: now.saturating_add(block.hold), ..self.ban };
        }
        self.ban.refusals += 1;
        if self.ban.refusals >= block.refusals {
            self.ban = Ban { until: now.saturating_add(block.hold), ..Ban::default() };
        }
        true
    }

    /// Until when nothing is admitted, if that is in the future.
    pub(super) fn banned(&self, now: u64) -> Option<Duration> {
        (self.ban.until > now).then(|| Duration::from_nanos(self.ban.until - now))
    }

    /// Whether the turn of a waiter is still to come.
    pub(super) fn is_waited_for(&self, at: Moment) -> bool {
        self.budgets().any(|budget| budget.last_turn(at) > at.now)
    }

    /// What is left, that of `by` or else the scarcest first.
    #[inline]
    pub(super) fn quotas(&self, limits: &Limits, by: Option<RefusedBy>, now: u64) -> Quotas {
        let quota = |budget: &Budget, limit: &Limit| Quota { name: limit.name.clone(), ..budget.quota(now) };
        let mut first = quota(&self.first, &limits.first);
        if let Some(left) = self.banned(now) {
            (first.remaining, first.reset) = (0, first.reset.max(left));
        }
        if self.others.is_empty() && self.learnt.is_none() {
            return Quotas { first, others: Vec::new() };
        }
        let mut others: Vec<Quota> =
            self.others.iter().zip(limits.others()).map(|(budget, limit)| quota(budget, limit)).collect();
        let leading = match by {
            Some(RefusedBy::Limit(place)) => place,
            _ => {
                let share = |quota: &Quota| (u64::from(quota.remaining) << 32) / u64::from(quota.limit.max(1));
                let scarcest = others.iter().enumerate().min_by_key(|(_, quota)| share(quota));
                scarcest.filter(|(_, quota)| share(quota) < share(&first)).map_or(0, |(place, _)| place + 1)
            }
        };
        if let Some(other) = leading.checked_sub(1).and_then(|place| others.get_mut(place)) {
            std::mem::swap(&mut first, other);
        }
        if let Some(room) = self.learnt.as_ref().and_then(|learnt| learnt.room(now)) {
            first.remaining = first.remaining.min(room);
        }
        Quotas { first, others }
    }

    /// When the cell will mean nothing any more.
    pub(super) fn ends(&self) -> u64 {
        let budgets = self.budgets().map(Budget::ends).max().unwrap_or(0);
        let learnt = self.learnt.as_ref().map_or(0, |learnt| learnt.ends());
        budgets.max(self.ban.until).max(self.ban.forgotten).max(learnt)
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        let banned = self.ban != Ban::default();
        let learnt = if self.learnt.is_some() { LEARNT } else { 0 };
        out.push((1 + self.others.len() as u8) | if banned { BANNED } else { 0 } | learnt);
        out.extend_from_slice(&self.since.to_le_bytes());
        self.budgets().for_each(|budget| budget.write(&mut out));
        if banned {
            out.extend_from_slice(&self.ban.until.to_le_bytes());
            out.extend_from_slice(&self.ban.forgotten.to_le_bytes());
            out.extend_from_slice(&self.ban.refusals.to_le_bytes());
        }
        if let Some(learnt) = &self.learnt {
            learnt.write(&mut out);
        }
        out
    }
}

/// A cell as it was stored, by whatever limits.
struct Read {
    since: u64,
    first: Option<Stored>,
    others: Vec<Option<Stored>>,
    ban: Ban,
    learnt: Option<Learnt>,
}

impl Read {
    fn get(&self, place: usize) -> Option<&Stored> {
        match place.checked_sub(1) {
            None => self.first.as_ref(),
            Some(other) => self.others.get(other)?.as_ref(),
        }
    }

    fn take(&mut self, place: usize) -> Option<Stored> {
        match place.checked_sub(1) {
            None => self.first.take(),
            Some(other) => self.others.get_mut(other)?.take(),
        }
    }

    /// Where what a limit takes up stands: what one just like it has left behind, or else what no other of the limits is
    /// like, in its place if possible. [`MOST`] is nowhere: it starts anew.
    fn place_of(&self, limit: &Limit, place: usize, limits: &Limits) -> usize {
        let made = |limit: &Limit, at: usize| self.get(at).is_some_and(|stored| limit.rule.made(stored));
        if made(limit, place) {
            return place;
        }
        let free = |at: &usize| self.get(*at).is_some() && !limits.iter().any(|other| made(other, *at));
        let alike = (0..MOST).find(|at| made(limit, *at));
        alike.or_else(|| std::iter::once(place).chain(0..MOST).find(free)).unwrap_or(MOST)
    }
}

/// Bytes of any kind are survived: what is no cell is none.
#[inline]
fn read(bytes: &[u8]) -> Option<Read> {
    let (&head, rest) = bytes.split_first()?;
    let (since, mut rest) = rest.split_first_chunk()?;
    let first = Some(Stored::read(&mut rest)?);
    let others = (1..head & !(BANNED | LEARNT)).map(|_| Stored::read(&mut rest).map(Some)).collect::<Option<_>>()?;
    let ban = match head & BANNED {
        0 => Ban::default(),
        _ => Ban {
            until: u64_at(rest, 0)?,
            forgotten: u64_at(rest, 8)?,
            refusals: u32::from_le_bytes(rest.get(16..20)?.try_into().ok()?),
        },
    };
    let learnt = match head & LEARNT {
        0 => None,
        _ => Some(Learnt::read(rest.last_chunk::<{ learnt::SIZE }>()?)?),
    };
    Some(Read { since: u64::from_le_bytes(*since), first, others, ban, learnt })
}

#[cfg(test)]
mod tests;
