//! The sliding window: never more than so many in any stretch of so long.
//!
//! The state is a log of turns, in which those of the same sixteenth of the window are one piece: Figma's sliding
//! window counters (N. Mahdi, "An alternative approach to rate limiting", 2017), but with pieces that know their first
//! and last turn, so that a piece is counted until all of it is out of the window. The better known form with two
//! neighbouring windows, the former one weighted (Cloudflare, "How we built rate limiting capable of scaling to
//! millions of domains", 2017), is smaller, but takes the former window's requests for evenly spread: it admits almost
//! twice the count in one stretch to requests at the end of two windows. GCRA is as small as that and has the same
//! bound.

use super::{
    algorithm::{Algorithm, LONGEST_SPAN, Moment, Slot, Spent},
    text::{ParseLimitError, Span, duration, number},
};
use crate::{decision::Quota, varint};
use std::{fmt, str::FromStr, time::Duration};

/// Into how many pieces a window is cut. Up to this count each turn is a piece of its own.
const PIECES: u32 = 16;

/// Pieces that are kept, those of waiters included; beyond, neighbours become one.
const MOST_PIECES: usize = 64;

/// At most `count` in any stretch of `per`, wherever it begins.
///
/// A [`Rate`](crate::throttle::Rate) admits up to twice its count in one such stretch: the burst, and what comes back meanwhile. A
/// sliding window never does, and in return gives nothing back before `per` has passed since it was taken. Up to a count
/// of 16 it is exact. Above, requests of the same sixteenth of `per` are counted together until the last of them is `per`
/// old, so that one may count for up to a sixteenth of `per` longer than it should: a steady crowd is admitted at 94 % of
/// the count or more. The error is never to the other side.
///
/// Waiting requests are given the earliest turn at which they fit; a small one may fit before an earlier, costlier one,
/// which is not delayed by it. A name takes more room than with a `Rate`: some 10 bytes for each piece, mostly below 200.
///
/// Displays as `100/60s sliding`, and parses from that, with the time as a [`Rate`](crate::throttle::Rate) takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlidingWindow {
    count: u32,
    /// In ns, from 1 to `LONGEST_SPAN`.
    per: u64,
}

impl SlidingWindow {
    /// `count` in any stretch of `per`.
    ///
    /// # Panics
    ///
    /// If `count` or `per` is zero, or if `per` is longer than 100 years.
    #[track_caller]
    pub fn new(count: u32, per: Duration) -> Self {
        match SlidingWindow::checked(count, per) {
            Some(window) => window,
            None => {
                panic!("a sliding window needs a count above 0 and a time up to 100 years, not {count} per {per:?}")
            }
        }
    }

    fn checked(count: u32, per: Duration) -> Option<Self> {
        let per = u64::try_from(per.as_nanos()).ok()?;
        (count > 0 && (1..=LONGEST_SPAN).contains(&per)).then_some(SlidingWindow { count, per })
    }

    /// How many are admitted in any stretch of [`per`](Self::per); also the greatest cost that one request can have.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The length of the window.
    pub fn per(&self) -> Duration {
        Duration::from_nanos(self.per)
    }

    /// Which part of time a turn belongs to; those of the same part are one piece.
    fn part(&self, turn: u64) -> u64 {
        let length = if self.count <= PIECES { 1 } else { (self.per / u64::from(PIECES)).max(1) };
        turn / length
    }

    /// How much any one window that holds `turn` has already, at most.
    fn used(&self, log: &Log, turn: u64) -> u64 {
        if log.last_turn() <= turn {
            // No request waits: it is the window that ends with the turn.
            let within = |piece: &&Piece| turn - piece.last < self.per;
            return log.pieces.iter().filter(within).map(|piece| u64::from(piece.units)).sum();
        }
        (0..log.pieces.len()).map(|left| self.units_from(log, left, turn)).max().unwrap_or(0)
    }

    /// How much a window holds that reaches back just far enough for the piece `left`, and forth to `turn` at least.
    fn units_from(&self, log: &Log, left: usize, turn: u64) -> u64 {
        let start = log.pieces[left].last.min(turn);
        let within = |piece: &&Piece| piece.first.max(turn) - start < self.per;
        log.pieces[left..].iter().take_while(within).map(|piece| u64::from(piece.units)).sum()
    }

    /// Until when the pieces forbid a turn for which they must leave `room` units; `None` if they do not.
    fn forbidden_until(&self, log: &Log, turn: u64, room: u64) -> Option<u64> {
        if self.used(log, turn) <= room {
            return None;
        }
        // From the last: it forbids for longest.
        let left = (0..log.pieces.len()).rev().find(|&left| self.units_from(log, left, turn) > room)?;
        Some(log.pieces[left].last.saturating_add(self.per))
    }

    /// Adds a piece, together with those that touch its parts of time.
    fn add(&self, log: &mut Log, mut new: Piece) {
        let from = log.pieces.partition_point(|piece| self.part(piece.last) < self.part(new.first));
        let to = log.pieces.partition_point(|piece| self.part(piece.first) <= self.part(new.last));
        for old in log.pieces.drain(from..to) {
            new = old.and(new);
        }
        log.pieces.insert(from, new);
        while log.pieces.len() > MOST_PIECES {
            self.join_two(log);
        }
    }

    /// Makes one piece of the two that are closest to each other, if possible neither of those that may be used already
    /// nor of those that the next in the line has to look at. A piece counts as a whole, so this admits no more.
    fn join_two(&self, log: &mut Log) {
        let (begin, end) = (log.pieces.first().map_or(0, |piece| piece.last), log.last_turn());
        let price = |&right: &usize| {
            let (left, right) = (log.pieces[right - 1], log.pieces[right]);
            (left.first.saturating_sub(begin) < self.per || end - right.last < self.per, right.last - left.first)
        };
        if let Some(right) = (1..log.pieces.len()).min_by_key(price) {
            let piece = log.pieces.remove(right);
            log.pieces[right - 1] = log.pieces[right - 1].and(piece);
        }
    }
}

/// The state of a [`SlidingWindow`]: which turns were taken.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Log {
    count: u32,
    per: u64,
    /// Tells the slots of this log from those of one that another limit made.
    mark: u32,
    /// In order and disjoint, also in the parts of time that they touch.
    pieces: Vec<Piece>,
}

/// Turns that are counted together: `units` anywhere from `first` to `last`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    first: u64,
    last: u64,
    units: u32,
}

impl Piece {
    fn and(self, other: Piece) -> Piece {
        Piece {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
            units: self.units.saturating_add(other.units),
        }
    }
}

impl Log {
    fn last_turn(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.last)
    }
}

impl Algorithm for SlidingWindow {
    type State = Log;

    fn fresh(&self, at: Moment) -> Log {
        let seed = at.now ^ self.per.rotate_left(16) ^ u64::from(self.count).rotate_left(40);
        let mark = (seed ^ (seed >> 32)) as u32;
        Log { count: self.count, per: self.per, mark, pieces: Vec::new() }
    }

    fn made(&self, log: &Log) -> bool {
        (self.count, self.per) == (log.count, log.per)
    }

    fn spent(log: &Log, at: Moment) -> Spent {
        let window = SlidingWindow { count: log.count, per: log.per };
        let last = log.last_turn();
        let used = window.used(log, at.now).max(window.used(log, last.max(at.now)));
        let count = u64::from(log.count);
        let share = (used.min(count) * Spent::WHOLE).div_ceil(count);
        Spent { share, last_turn: if last > at.now { last } else { 0 } }
    }

    fn with_spent(&self, spent: Spent, at: Moment) -> Log {
        let mut log = self.fresh(at);
        let units = (spent.share.min(Spent::WHOLE) * u64::from(self.count)).div_ceil(Spent::WHOLE);
        // The turns of the waiters are not known, so they count all the time.
        let last = spent.last_turn.max(at.now);
        let units = if last > at.now { self.count } else { units as u32 };
        if units > 0 {
            self.add(&mut log, Piece { first: at.now, last, units });
        }
        log
    }

    fn advance(&self, log: &mut Log, at: Moment, rebooted: bool) {
        log.pieces.retain(|piece| piece.last.saturating_add(self.per) > at.now);
        if rebooted {
            // At worst all is spent that waiters took: some of them may have had their turn.
            for piece in std::mem::take(&mut log.pieces) {
                let units = piece.units.min(self.count);
                self.add(log, Piece { first: piece.first.min(at.now), last: piece.last.min(at.now), units });
            }
        }
    }

    fn earliest(&self, log: &Log, from: u64, cost: u32) -> Option<u64> {
        let room = u64::from(self.count.checked_sub(cost)?);
        let mut turn = from;
        if cost == 0 {
            return Some(turn);
        }
        while let Some(until) = self.forbidden_until(log, turn, room) {
            // Not past the end of machine time.
            if until <= turn {
                return None;
            }
            turn = until;
        }
        Some(turn)
    }

    fn take(&self, log: &mut Log, turn: u64, cost: u32) -> Slot {
        if cost > 0 {
            self.add(log, Piece { first: turn, last: turn, units: cost });
        }
        Slot { start: turn, end: u64::from(log.mark) << 32 | u64::from(cost) }
    }

    fn free(&self, log: &mut Log, slot: Slot, units: u32, _: u64) {
        let (mark, cost) = ((slot.end >> 32) as u32, slot.end as u32);
        let at = log.pieces.partition_point(|piece| piece.last < slot.start);
        let Some(piece) = log.pieces.get_mut(at).filter(|piece| piece.first <= slot.start && mark == log.mark) else {
            return;
        };
        piece.units = piece.units.saturating_sub(units.min(cost));
        if piece.units == 0 {
            log.pieces.remove(at);
        }
    }

    /// What there is no room for becomes a debt that is paid in whole windows, behind all waiters if it needs several.
    fn charge(&self, log: &mut Log, units: u32, now: u64) {
        let room = u64::from(self.count).saturating_sub(self.used(log, now));
        let at_once = u64::from(units).min(room) as u32;
        self.take(log, now, at_once);
        let debt = units - at_once;
        if debt == 0 {
            return;
        }
        let more = u64::from((debt - 1) / self.count);
        let from = if more > 0 { log.last_turn().max(now) } else { now };
        let limit = now.saturating_add(LONGEST_SPAN);
        if let Some(first) = self.earliest(log, from, debt.min(self.count)).filter(|&first| first <= limit) {
            let last = first.saturating_add(more.saturating_mul(self.per)).min(limit);
            self.add(log, Piece { first, last, units: debt });
        }
    }

    fn quota(&self, log: &Log, now: u64) -> Quota {
        let used = self.used(log, now).min(self.count.into()) as u32;
        let reset = log.pieces.last().map_or(0, |piece| piece.last.saturating_add(self.per).saturating_sub(now));
        Quota {
            name: None,
            limit: self.count,
            remaining: self.count - used,
            reset: Duration::from_nanos(reset),
            window: self.per(),
        }
    }

    fn ends(&self, log: &Log) -> u64 {
        log.pieces.last().map_or(0, |piece| piece.last.saturating_add(self.per))
    }

    /// The numbers of the pieces in LEB128, times as distances.
    fn encode(log: &Log, out: &mut Vec<u8>) {
        out.extend_from_slice(&log.count.to_le_bytes());
        out.extend_from_slice(&log.per.to_le_bytes());
        out.extend_from_slice(&log.mark.to_le_bytes());
        let mut end = 0;
        for piece in &log.pieces {
            for number in [piece.first - end, piece.last - piece.first, piece.units.into()] {
                varint::put(out, number);
            }
            end = piece.last;
        }
    }

    fn decode(bytes: &[u8]) -> Option<Log> {
        let (count, bytes) = bytes.split_first_chunk()?;
        let (per, bytes) = bytes.split_first_chunk()?;
        let (mark, mut bytes) = bytes.split_first_chunk()?;
        let per = Duration::from_nanos(u64::from_le_bytes(*per));
        let window = SlidingWindow::checked(u32::from_le_bytes(*count), per)?;
        let mut log = Log { count: window.count, per: window.per, mark: u32::from_le_bytes(*mark), pieces: Vec::new() };
        let mut end = 0_u64;
        while !bytes.is_empty() && log.pieces.len() < MOST_PIECES {
            let first = end.checked_add(varint::take(&mut bytes)?)?;
            let last = first.checked_add(varint::take(&mut bytes)?)?;
            let units = u32::try_from(varint::take(&mut bytes)?).ok().filter(|&units| units > 0)?;
            if !log.pieces.is_empty() && window.part(first) <= window.part(end) {
                return None;
            }
            log.pieces.push(Piece { first, last, units });
            end = last;
        }
        bytes.is_empty().then_some(log)
    }
}

impl fmt::Display for SlidingWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} sliding", self.count, Span(self.per()))
    }
}

impl FromStr for SlidingWindow {
    type Err = ParseLimitError;

    fn from_str(text: &str) -> Result<Self, ParseLimitError> {
        let fail = |reason| ParseLimitError::new(text, reason);
        let shape = || ParseLimitError::other_kind(text, "it is not a count, a `/`, a time and `sliding`");
        let limit = text.trim().strip_suffix("sliding").ok_or_else(shape)?;
        let (count, per) = limit.split_once('/').ok_or_else(shape)?;
        let per = duration(per).filter(|per| SlidingWindow::checked(1, *per).is_some());
        let per = per.ok_or_else(|| fail("the time must be above zero and up to 100 years, like `60s` or `5m`"))?;
        let window = number(count).and_then(|count| SlidingWindow::checked(count, per));
        window.ok_or_else(|| fail("the count must be from 1 to 4294967295"))
    }
}

#[cfg(test)]
mod tests;
