//! The calendar window: so many in each hour, day or month of the UTC calendar.

mod used;
pub(crate) mod utc;

use self::{
    used::{MOST_RUNS, Used},
    utc::{HOUR, Unit},
};
use super::{
    algorithm::{Algorithm, Moment, Slot, Spent},
    text::{ParseLimitError, number},
};
use crate::decision::Quota;
use std::{fmt, str::FromStr, time::Duration};

/// How long a spent window is remembered after its end: more than any mistaken time zone turns the clock back.
const KEPT: u64 = 26 * HOUR;

/// At most `count` in each hour, day or month of the UTC calendar: for quotas.
///
/// All of it comes back at once when the next window begins, so requests at the end of one window and at the beginning
/// of the next get twice the count in a short time; a [`Rate`](crate::throttle::Rate) beside it prevents that. Waiting
/// requests are given a turn at the beginning of the first of the next windows that has room for their whole cost.
///
/// # When the clock is wrong
///
/// The calendar is read from the wall clock, which may step; how long a window lasts is measured in machine time, which
/// does not. A window is opened by the first request, for the calendar window that contains the wall clock's time, and
/// ends when both are true: as much machine time has passed as was left of it by the wall clock, and the wall clock shows
/// another calendar window. Therefore
///
/// - no step of the wall clock, in whatever direction, ends a window early;
/// - a clock that is set back an hour after midnight stays in the new day, whose window then lasts an hour longer;
/// - a window that was opened by a clock a year ahead ends after its own length, not a year later.
///
/// A window that follows one which ended, through such steps, in the second half of a calendar window lasts until the end
/// of the next one. So the first window may be short, since it begins with the first request, but each further one has at
/// least half its length (14 days for a month) to itself, whatever the wall clock does.
///
/// Machine time does not tell how long the machine was off. If it has started since, the window ends as soon as the
/// wall clock shows a later calendar window; as long as the wall clock shows an earlier one (1970, say) the window goes
/// on, for its own length at most. Waiters are forgotten then.
///
/// A spent window is remembered for 26 hours after its end: a clock that is set back by more, after the end and with no
/// request in between, opens it again. Turns of waiting requests are machine time: if the wall clock steps meanwhile, they
/// are off the calendar by as much, and are still counted in the window for which they were given out.
///
/// Displays as `50/utc-hour`, `1000/utc-day` or `20000/utc-month`, and parses from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CalendarWindow {
    count: u32,
    unit: Unit,
}

impl CalendarWindow {
    /// `count` in each hour of the UTC calendar.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    #[track_caller]
    pub fn per_utc_hour(count: u32) -> Self {
        CalendarWindow::new(count, Unit::Hour)
    }

    /// `count` in each day of the UTC calendar.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    #[track_caller]
    pub fn per_utc_day(count: u32) -> Self {
        CalendarWindow::new(count, Unit::Day)
    }

    /// `count` in each month of the UTC calendar.
    ///
    /// # Panics
    ///
    /// If `count` is zero.
    #[track_caller]
    pub fn per_utc_month(count: u32) -> Self {
        CalendarWindow::new(count, Unit::Month)
    }

    #[track_caller]
    fn new(count: u32, unit: Unit) -> Self {
        assert!(count > 0, "a calendar window needs a count above 0, not {count} per {unit}");
        CalendarWindow { count, unit }
    }

    /// How many are admitted in each window; also the greatest cost that one request can have.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Ends the open window and opens the one that the wall clock shows, with what was already given out of it.
    fn open_next(&self, book: &mut Book, at: Moment) {
        let shown = self.unit.window_at(at.wall);
        let into = at.wall - self.unit.start(shown);
        let (passed, next) = match at.now.checked_sub(book.ends) {
            // Only after a reboot: machine time does not know yet, the calendar counts.
            None => (shown - book.window, shown),
            Some(late) => {
                let half = self.unit.half();
                let next = if into.saturating_sub(late) > half { shown + 1 } else { shown };
                // Waiters have machine times: theirs is the window that was to begin nearest to this one.
                let planned = self.unit.start(book.window + 1).saturating_add(late.saturating_sub(into));
                (self.unit.window_at(planned.saturating_add(half)).saturating_sub(book.window), next)
            }
        };
        let ends = at.now.saturating_add(self.unit.start(next + 1).saturating_sub(at.wall));
        book.plan(passed, next, ends);
        book.adrift = false;
    }
}

/// The state of a [`CalendarWindow`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Book {
    rule: CalendarWindow,
    /// Which calendar window is open, and the machine time before which it does not end.
    window: u32,
    ends: u64,
    /// A reboot with the wall clock before the window: `ends` is the latest end then, the calendar may end it earlier.
    adrift: bool,
    /// By how much the turns of waiters may come before their windows, since these begin later than was planned.
    early: u64,
    /// A number for the open window that no other has had, the next ones counted on. Slots name their window by it.
    serial: u64,
    /// What was taken from the open window and the next ones.
    used: Used,
}

impl Book {
    /// The machine time at which the window so many after the open one begins. `None`: beyond the end of time.
    fn turn(&self, ahead: u32) -> Option<u64> {
        if ahead == 0 {
            return Some(0);
        }
        let unit = self.rule.unit;
        let first = unit.start(self.window.checked_add(1)?);
        let start = Some(unit.start(self.window.checked_add(ahead)?)).filter(|&start| start < u64::MAX)?;
        self.ends.checked_add(start - first)
    }

    /// How many windows after the open one a machine time lies, if the wall clock agrees.
    fn ahead(&self, time: u64) -> u32 {
        match time.checked_sub(self.ends) {
            None => 0,
            Some(after) => {
                let unit = self.rule.unit;
                let wall = unit.start(self.window.saturating_add(1)).saturating_add(after);
                unit.window_at(wall).saturating_sub(self.window)
            }
        }
    }

    /// After so many windows this one is open, until then. Waiters do not know of it.
    fn plan(&mut self, passed: u32, window: u32, ends: u64) {
        let planned = self.turn(passed.saturating_add(1)).unwrap_or(u64::MAX);
        self.used.drop_first(passed);
        self.serial = self.serial.saturating_add(passed.into());
        self.early = if self.used.len() < 2 { 0 } else { self.early.saturating_add(ends.saturating_sub(planned)) };
        (self.window, self.ends) = (window, ends);
    }

    fn last_turn(&self) -> u64 {
        self.turn(self.used.len().saturating_sub(1)).unwrap_or(u64::MAX)
    }
}

impl Algorithm for CalendarWindow {
    const READS_WALL: bool = true;

    type State = Book;

    fn fresh(&self, at: Moment) -> Book {
        let window = self.unit.window_at(at.wall);
        let ends = at.now.saturating_add(self.unit.start(window + 1) - at.wall);
        Book { rule: *self, window, ends, adrift: false, early: 0, serial: at.now, used: Used::default() }
    }

    fn made(&self, book: &Book) -> bool {
        *self == book.rule
    }

    fn spent(book: &Book, at: Moment) -> Spent {
        let mut book = book.clone();
        let rule = book.rule;
        rule.advance(&mut book, at, false);
        let last = book.used.len().saturating_sub(1);
        let used = book.used.of(0).max(book.used.of(last)).min(rule.count);
        let share = (u64::from(used) * Spent::WHOLE).div_ceil(rule.count.into());
        Spent { share, last_turn: book.last_turn() }
    }

    fn with_spent(&self, spent: Spent, at: Moment) -> Book {
        let mut book = self.fresh(at);
        let units = (spent.share.min(Spent::WHOLE) * u64::from(self.count)).div_ceil(Spent::WHOLE);
        // The turns of the waiters are not known, so the windows up to the last of them count as full.
        let last = book.ahead(spent.last_turn);
        book.used.push(last, self.count);
        book.used.push(1, units as u32);
        book.used.tidy();
        book
    }

    fn advance(&self, book: &mut Book, at: Moment, rebooted: bool) {
        let shown = self.unit.window_at(at.wall);
        let end_shown = at.now.saturating_add(self.unit.start(shown + 1).saturating_sub(at.wall));
        if rebooted {
            // Those whose turn has come by machine time may have had it.
            book.used.keep_first(book.ahead(at.now.saturating_add(book.early)).saturating_add(1));
            book.adrift = true;
            book.ends = book.ends.min(at.now.saturating_add(self.unit.length(book.window)));
        }
        if book.adrift && shown == book.window {
            book.adrift = false;
            book.plan(0, shown, end_shown);
        }
        let later = book.adrift && shown > book.window;
        if later || (at.now >= book.ends && shown != book.window) {
            self.open_next(book, at);
        } else if at.now >= book.ends {
            book.plan(0, shown, end_shown);
        }
    }

    fn earliest(&self, book: &Book, from: u64, cost: u32) -> Option<u64> {
        let most = self.count.checked_sub(cost)?;
        if cost == 0 {
            return Some(from);
        }
        let ahead = book.used.first_with(most, book.ahead(from));
        Some(book.turn(ahead)?.max(from))
    }

    fn take(&self, book: &mut Book, turn: u64, cost: u32) -> Slot {
        let ahead = book.ahead(turn);
        if cost > 0 {
            book.used.set(ahead, book.used.of(ahead).saturating_add(cost));
        }
        Slot { start: book.serial.saturating_add(ahead.into()), end: cost.into() }
    }

    fn free(&self, book: &mut Book, slot: Slot, units: u32, _: u64) {
        let ahead = slot.start.checked_sub(book.serial).and_then(|ahead| u32::try_from(ahead).ok());
        let Some(ahead) = ahead.filter(|&ahead| ahead < book.used.len()) else { return };
        let units = units.min(slot.end.try_into().unwrap_or(u32::MAX));
        book.used.set(ahead, book.used.of(ahead).saturating_sub(units));
    }

    fn charge(&self, book: &mut Book, units: u32, _: u64) {
        book.used.fill(units, self.count);
    }

    fn quota(&self, book: &Book, now: u64) -> Quota {
        let windows = book.used.len();
        let until = if windows == 0 { now } else { book.turn(windows).unwrap_or(u64::MAX) };
        Quota {
            name: None,
            limit: self.count,
            remaining: self.count.saturating_sub(book.used.of(0)),
            reset: Duration::from_nanos(until.saturating_sub(now)),
            window: Duration::from_nanos(self.unit.length(book.window)),
        }
    }

    fn ends(&self, book: &Book) -> u64 {
        match book.used.len() {
            0 => 0,
            windows => book.turn(windows).unwrap_or(u64::MAX).saturating_add(KEPT),
        }
    }

    fn encode(book: &Book, out: &mut Vec<u8>) {
        out.extend_from_slice(&[book.rule.unit as u8, u8::from(book.adrift)]);
        out.extend_from_slice(&book.rule.count.to_le_bytes());
        out.extend_from_slice(&book.window.to_le_bytes());
        out.extend_from_slice(&book.early.to_le_bytes());
        out.extend_from_slice(&book.ends.to_le_bytes());
        out.extend_from_slice(&book.serial.to_le_bytes());
        for run in book.used.runs() {
            out.extend_from_slice(&run.windows.to_le_bytes());
            out.extend_from_slice(&run.used.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Option<Book> {
        let (&[unit, adrift], bytes) = bytes.split_first_chunk()?;
        let (count, bytes) = bytes.split_first_chunk()?;
        let (window, bytes) = bytes.split_first_chunk()?;
        let (early, bytes) = bytes.split_first_chunk()?;
        let (ends, bytes) = bytes.split_first_chunk()?;
        let (serial, bytes) = bytes.split_first_chunk()?;
        let (runs, rest) = bytes.as_chunks::<4>();
        let (runs, odd) = runs.as_chunks::<2>();
        let (unit, _) = *Unit::ALL.get(usize::from(unit))?;
        let count = Some(u32::from_le_bytes(*count)).filter(|&count| count > 0)?;
        // The last window is the one that contains the end of time.
        let window = Some(u32::from_le_bytes(*window)).filter(|&window| window <= unit.window_at(u64::MAX) + 1)?;
        if !(rest.is_empty() && odd.is_empty() && runs.len() <= MOST_RUNS && adrift < 2) {
            return None;
        }
        let mut used = Used::default();
        for [windows, units] in runs {
            used.push(u32::from_le_bytes(*windows), u32::from_le_bytes(*units));
        }
        used.tidy();
        Some(Book {
            rule: CalendarWindow { count, unit },
            window,
            ends: u64::from_le_bytes(*ends),
            adrift: adrift == 1,
            early: u64::from_le_bytes(*early),
            serial: u64::from_le_bytes(*serial),
            used,
        })
    }
}

impl fmt::Display for CalendarWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, self.unit)
    }
}

impl FromStr for CalendarWindow {
    type Err = ParseLimitError;

    fn from_str(text: &str) -> Result<Self, ParseLimitError> {
        let shape = || ParseLimitError::other_kind(text, "it is not a count, a `/` and a unit that begins with `utc-`");
        let (count, name) = text.split_once('/').ok_or_else(shape)?;
        let name = name.trim();
        let known = Unit::ALL.iter().find(|(_, unit)| *unit == name);
        let (unit, _) = match known {
            Some(known) => known,
            None if name.starts_with("utc") => {
                return Err(ParseLimitError::new(text, "the unit must be `utc-hour`, `utc-day` or `utc-month`"));
            }
            None => return Err(shape()),
        };
        let count = number(count).filter(|&count| count > 0);
        let count = count.ok_or_else(|| ParseLimitError::new(text, "the count must be from 1 to 4294967295"))?;
        Ok(CalendarWindow { count, unit: *unit })
    }
}

#[cfg(test)]
mod tests;
