//! What is taken of a budget, as a server's timetable.
//!
//! An admission of `n` units takes an interval of `n` steps on a line of positions, disjoint from all others. The line
//! is served at the speed of time: a position is a machine time plus `ahead`. An interval lies within one span from the
//! turn of its request, so all whose turns lie in a window `w` share `w + span` of the line. This alone gives the bound:
//! at most `burst + w * rate` in any window.
//!
//! Free are the tail from `tat` (the theoretical arrival time of GCRA) on, and the holes before it, which were given
//! back. While a request waits, time passes over the holes. While none does, all that is taken was taken for requests
//! that have come, and may be served early; so a hole is skipped when time reaches it, or when its room is needed. To
//! skip it, positions move ahead of time by its length. What is taken is then just what a token bucket lacks.
//!
//! Why the intervals keep their positions, instead of moving `tat` back by what is given back: if the first of two
//! intervals is given back and its room taken by a third, the second is served at once, and what it can give back later
//! is what is left of it then. Its position tells that; measured from an unmoved end it would give back what is the
//! third's.

use crate::throttle::limit::algorithm::{LONGEST_SPAN, Slot, Spent};

/// No more holes are kept. Beyond, one is skipped early if no request waits, else the last of the shortest is lost.
pub(super) const MOST_HOLES: usize = 32;

/// From a position to another.
type Hole = (u64, u64);

/// What is taken of a budget.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// All from this position on is free.
    tat: u64,
    /// The span of the rate that made it.
    span: u64,
    /// When it was made. A slot of an earlier life of the name is told by it.
    born: u64,
    /// How far positions are ahead of machine time.
    ahead: u64,
    /// The last turn that came later than this limit demanded, because of another limit; 0 if it has come.
    held: u64,
    /// Free, sorted, apart from each other, not empty, before `tat`.
    holes: Vec<Hole>,
    /// The time of the last advance. Not stored.
    seen: u64,
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        // All but `seen`, which does not outlive a decision.
        let stored = |s: &State| (s.tat, s.span, s.born, s.ahead, s.held);
        stored(self) == stored(other) && self.holes == other.holes
    }
}

impl State {
    pub(super) fn new(span: u64, now: u64) -> Self {
        State { tat: now, span, born: now, ahead: 0, held: 0, holes: Vec::new(), seen: now }
    }

    pub(super) fn with_spent(span: u64, spent: Spent, now: u64) -> Self {
        let held = spent.last_turn.min(now.saturating_add(LONGEST_SPAN));
        let share = u128::from(spent.share.min(Spent::WHOLE)) * u128::from(span);
        // At most the span.
        let debt = share.div_ceil(u128::from(Spent::WHOLE)) as u64;
        let tat = held.max(now).saturating_add(debt);
        State { tat, held: if held > now { held } else { 0 }, ..Self::new(span, now) }
    }

    pub(super) fn span(&self) -> u64 {
        self.span
    }

    fn position(&self, time: u64) -> u64 {
        time.saturating_add(self.ahead)
    }

    fn time(&self, position: u64) -> u64 {
        position.saturating_sub(self.ahead)
    }

    /// The last turn that anybody can be waiting for. An interval that had to wait ends one span after its turn.
    fn last_turn(&self) -> u64 {
        self.held.max(self.time(self.tat).saturating_sub(self.span))
    }

    pub(super) fn nobody_waits(&self) -> bool {
        self.last_turn() <= self.seen
    }

    /// When all that is taken will be served, if no request comes: the holes after the last turn will be skipped.
    pub(super) fn full_at(&self) -> u64 {
        let from = self.position(self.last_turn());
        let skipped = self.holes.iter().map(|&(start, end)| end.saturating_sub(start.max(from))).sum();
        self.time(self.tat).saturating_sub(skipped)
    }

    /// How much can be taken at once.
    pub(super) fn room(&self, now: u64) -> u64 {
        if self.nobody_waits() {
            return self.span.saturating_sub(self.full_at().saturating_sub(now));
        }
        let (first, last) = (self.position(now), self.position(now).saturating_add(self.span));
        let free = self.holes.iter().copied().chain([(self.tat, u64::MAX)]);
        free.map(|(start, end)| end.min(last).saturating_sub(start.max(first))).max().unwrap_or(0)
    }

    pub(super) fn spent(&self, now: u64) -> Spent {
        let last = self.last_turn();
        let debt = self.full_at().saturating_sub(last.max(now)).min(self.span);
        let share = (u128::from(debt) * u128::from(Spent::WHOLE)).div_ceil(u128::from(self.span.max(1)));
        // At most WHOLE.
        Spent { share: share as u64, last_turn: if last > now { last } else { 0 } }
    }

    pub(super) fn reboot(&mut self, now: u64) {
        let tat = self.time(self.tat).min(now.saturating_add(self.span));
        *self = State { tat, ..Self::new(self.span, now) };
    }

    pub(super) fn advance(&mut self, now: u64) {
        self.seen = now;
        let last = self.last_turn();
        self.pass(self.position(last.min(now)));
        if last <= now {
            self.held = 0;
            while self.holes.first().is_some_and(|&(start, _)| start <= self.position(now)) {
                self.skip();
            }
        }
        if self.ahead > LONGEST_SPAN {
            self.rebase();
        }
    }

    /// Time has passed over what is free before `position`.
    fn pass(&mut self, position: u64) {
        if self.holes.first().is_some_and(|&(start, _)| start < position) {
            self.holes.retain(|&(_, end)| end > position);
            if let Some((start, _)) = self.holes.first_mut() {
                *start = position.max(*start);
            }
        }
    }

    /// Serves what comes after the first hole earlier, by its length. Only while no request waits.
    ///
    /// Of an interval before the hole, too, less can be given back from now on.
    fn skip(&mut self) {
        let (start, end) = self.holes.remove(0);
        self.ahead = self.ahead.saturating_add(end - start);
    }

    /// Positions must not run away under a budget that is given back most of what it gives, for years.
    fn rebase(&mut self) {
        let ahead = std::mem::take(&mut self.ahead);
        self.born = self.seen;
        self.tat = self.tat.saturating_sub(ahead);
        for hole in &mut self.holes {
            *hole = (hole.0.saturating_sub(ahead), hole.1.saturating_sub(ahead));
        }
        self.holes.retain(|&(start, end)| start < end);
    }

    /// The first hole that has room for `length` from `floor` on, and the position there.
    fn hole_for(&self, floor: u64, length: u64) -> Option<(usize, u64)> {
        self.holes.iter().enumerate().find_map(|(i, &(start, end))| {
            let start = start.max(floor);
            (end.saturating_sub(start) >= length).then_some((i, start))
        })
    }

    pub(super) fn earliest(&self, from: u64, length: u64) -> Option<u64> {
        // Not saturating: a time that stands still at its end would admit everyone.
        let floor = from.checked_add(self.ahead)?;
        let tail = self.tat.max(floor).checked_add(length)?;
        let end = if self.nobody_waits() {
            // Holes are skipped as far as need be.
            self.full_at().max(from).checked_add(length)?
        } else {
            let hole = self.hole_for(floor, length);
            self.time(hole.map_or(tail, |(_, start)| start + length))
        };
        Some(from.max(end.saturating_sub(self.span)))
    }

    pub(super) fn take(&mut self, turn: u64, length: u64) -> Slot {
        let waits = turn > self.seen;
        let end = match self.hole_for(self.position(turn), length) {
            Some((nth, start)) => self.take_hole(nth, start, start.saturating_add(length)),
            None => self.take_tail(turn, length),
        };
        if waits && end < self.position(turn).saturating_add(self.span) {
            self.held = self.held.max(turn);
        }
        Slot { start: self.born, end }
    }

    fn take_hole(&mut self, nth: usize, start: u64, end: u64) -> u64 {
        if let Some(&hole) = self.holes.get(nth) {
            let left = [(hole.0, start), (end, hole.1)];
            self.holes.splice(nth..=nth, left.into_iter().filter(|(start, end)| start < end));
            self.keep_bound();
        }
        end
    }

    fn take_tail(&mut self, turn: u64, length: u64) -> u64 {
        if self.nobody_waits() {
            self.skip_until(turn, length);
        }
        let start = self.tat.max(self.position(turn));
        // A request that waits for another limit leaves room for those that come before it.
        let gap = (self.tat.max(self.position(self.seen)), start);
        self.tat = start.saturating_add(length);
        if turn > self.seen && gap.0 < gap.1 {
            self.add_hole(gap);
        }
        self.tat
    }

    /// Skips holes until `length` fits behind all that is taken, within the span from `turn` on.
    fn skip_until(&mut self, turn: u64, length: u64) {
        let over = |s: &State| {
            let from = s.position(turn);
            s.tat.max(from).saturating_add(length) > from.saturating_add(s.span)
        };
        while !self.holes.is_empty() && over(self) {
            self.skip();
        }
    }

    pub(super) fn free(&mut self, slot: Slot, length: u64, now: u64) {
        let end = slot.end;
        let start = end.saturating_sub(length).max(self.position(now));
        if slot.start != self.born || start >= end || end > self.tat {
            return;
        }
        self.add_hole((start, end));
    }

    /// What is free up to the tail becomes the tail's.
    fn add_hole(&mut self, mut hole: Hole) {
        let before = self.holes.partition_point(|other| other.1 < hole.0);
        let touched = self.holes.partition_point(|other| other.0 <= hole.1);
        for other in self.holes.drain(before..touched.max(before)) {
            hole = (hole.0.min(other.0), hole.1.max(other.1));
        }
        if hole.1 >= self.tat {
            self.tat = hole.0;
            // A request that waits for another limit has an interval after the turn.
            self.held = self.held.min(self.time(self.tat));
        } else {
            self.holes.insert(before, hole);
            self.keep_bound();
        }
    }

    fn keep_bound(&mut self) {
        while self.holes.len() > MOST_HOLES {
            if self.nobody_waits() {
                self.skip();
            } else if let Some((shortest, _)) =
                self.holes.iter().enumerate().rev().min_by_key(|(_, hole)| hole.1 - hole.0)
            {
                self.holes.remove(shortest);
            }
        }
    }

    pub(super) fn charge(&mut self, length: u64, now: u64) {
        let nobody_waits = self.nobody_waits();
        let from = self.position(now);
        let most = from.saturating_add(LONGEST_SPAN).min(u64::MAX - 1);
        self.tat = self.tat.max(self.tat.max(from).saturating_add(length).min(most));
        if nobody_waits {
            self.skip_until(now, 0);
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |number: u64| out.extend_from_slice(&number.to_le_bytes());
        [self.tat, self.span, self.born].into_iter().for_each(&mut put);
        if self.ahead != 0 || self.held != 0 || !self.holes.is_empty() {
            [self.ahead, self.held].into_iter().for_each(&mut put);
            self.holes.iter().flat_map(|hole| [hole.0, hole.1]).for_each(put);
        }
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks::<8>() else { return None };
        let mut numbers = numbers.iter().map(|number| u64::from_le_bytes(*number));
        let (tat, span, born) = (numbers.next()?, numbers.next()?, numbers.next()?);
        let ahead = numbers.next();
        let held = if ahead.is_some() { numbers.next()? } else { 0 };
        if numbers.len() % 2 != 0 || numbers.len() / 2 > MOST_HOLES {
            return None;
        }
        let holes = holes(numbers, tat)?;
        let ahead = ahead.unwrap_or(0);
        let sound = (1..=LONGEST_SPAN).contains(&span) && ahead <= tat;
        sound.then_some(State { tat, span, born, ahead, held, holes, seen: 0 })
    }
}

/// The holes before `tat`, if they are as they must be.
fn holes(mut numbers: impl ExactSizeIterator<Item = u64>, tat: u64) -> Option<Vec<Hole>> {
    let mut holes = Vec::with_capacity(numbers.len() / 2);
    let mut free_from = 0;
    while let (Some(start), Some(end)) = (numbers.next(), numbers.next()) {
        if start < free_from || start >= end || end >= tat {
            return None;
        }
        // The next one is not even next to it.
        free_from = end + 1;
        holes.push((start, end));
    }
    Some(holes)
}

#[cfg(test)]
impl State {
    /// The rule that looks right and is not: moves the tail back, whatever was given back.
    pub(super) fn free_by_moving_back(&mut self, slot: Slot, length: u64, now: u64) {
        let start = slot.end.saturating_sub(length).max(now);
        self.tat = self.tat.saturating_sub(slot.end.saturating_sub(start)).max(now);
    }

    pub(super) fn holes(&self) -> &[Hole] {
        &self.holes
    }

    /// The time of the tail, if no hole is skipped.
    pub(super) fn tail(&self) -> u64 {
        self.time(self.tat)
    }

    /// A slot of this life that ends at `end`.
    pub(super) fn slot_to(&self, end: u64) -> Slot {
        Slot { start: self.born, end }
    }
}
