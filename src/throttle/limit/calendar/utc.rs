//! Hours, days and months of the UTC calendar as numbers from 1970.

use std::fmt;

pub(super) const HOUR: u64 = 3_600_000_000_000;
const DAY: u64 = 24 * HOUR;

/// A unit of the UTC calendar. Windows are numbered from 1970; the last one that has an end in u64 ns is in 2554.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Unit {
    Hour,
    Day,
    Month,
}

impl Unit {
    pub(super) const ALL: [(Unit, &str); 3] =
        [(Unit::Hour, "utc-hour"), (Unit::Day, "utc-day"), (Unit::Month, "utc-month")];

    pub(super) fn window_at(self, wall: u64) -> u32 {
        let number = match self {
            Unit::Hour => wall / HOUR,
            Unit::Day => wall / DAY,
            Unit::Month => month_of_day(wall / DAY),
        };
        // At most 5,124,095 hours.
        number as u32
    }

    /// The wall time at which a window begins, or the end of time.
    pub(super) fn start(self, window: u32) -> u64 {
        match self {
            Unit::Hour => u64::from(window).saturating_mul(HOUR),
            Unit::Day => u64::from(window).saturating_mul(DAY),
            Unit::Month => first_day_of_month(window.into()).saturating_mul(DAY),
        }
    }

    pub(super) fn length(self, window: u32) -> u64 {
        self.start(window.saturating_add(1)) - self.start(window)
    }

    /// Half of the shortest window.
    pub(super) fn half(self) -> u64 {
        match self {
            Unit::Hour => HOUR / 2,
            Unit::Day => DAY / 2,
            Unit::Month => 14 * DAY,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Unit::ALL[*self as usize].1)
    }
}

// Years are taken from March on, so that the leap day is the last of them: H. Hinnant, "chrono-Compatible Low-Level Date
// Algorithms", 2013. A date crate would be 30,000 lines (chrono) to 110,000 (jiff) for these two functions.

/// Days from 1 March of year 0 to 1 January 1970.
const TO_1970: u64 = 719_468;

/// The month, from January 1970 = 0, that contains the day, from 1 January 1970 = 0.
fn month_of_day(day: u64) -> u64 {
    let day = day + TO_1970;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // January 1970 is the 11th month from March 1969.
    (era * 400 + year) * 12 + (5 * day + 2) / 153 - (1_969 * 12 + 10)
}

/// The day, from 1 January 1970 = 0, with which a month begins, from January 1970 = 0.
pub(in crate::throttle) fn first_day_of_month(month: u64) -> u64 {
    let month = month + 1_969 * 12 + 10;
    let (year, month) = (month / 12, month % 12);
    365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 - TO_1970
}

#[cfg(test)]
mod tests;
