//! How a rate is written.

use super::{Invalid, Rate};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr, time::Duration};

/// From the largest: the times that [`Rate`] displays in.
const SHOWN: [(&str, u128); 4] = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.per.as_nanos();
        let [.., nanosecond] = SHOWN;
        let (unit, of) = SHOWN.into_iter().find(|(_, of)| nanos.is_multiple_of(*of)).unwrap_or(nanosecond);
        write!(f, "{}/{}{unit}", self.count, nanos / of)?;
        if self.burst != self.count {
            write!(f, " burst {}", self.burst)?;
        }
        Ok(())
    }
}

impl FromStr for Rate {
    type Err = ParseRateError;

    fn from_str(text: &str) -> Result<Self, ParseRateError> {
        parse(text).map_err(|problem| ParseRateError { text: text.chars().take(SHOWN_CHARS).collect(), problem })
    }
}

fn parse(text: &str) -> Result<Rate, Problem> {
    let (count, rest) = text.split_once('/').ok_or(Problem::Slash)?;
    let (per, burst) = match rest.split_once("burst") {
        Some((per, burst)) => (per, Some(number(burst).ok_or(Problem::Burst)?)),
        None => (rest, None),
    };
    let count = number(count).ok_or(Problem::Count)?;
    let rate = Rate::checked(count, duration(per).ok_or(Problem::Time)?).map_err(Problem::Rate)?;
    burst.map_or(Ok(rate), |burst| rate.checked_burst(burst).map_err(Problem::Rate))
}

/// Digits only: `u32::from_str` would take a plus sign too.
pub(in crate::throttle) fn number<T: FromStr>(text: &str) -> Option<T> {
    let text = text.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A number and a unit, a unit alone for one of it, or a number alone for seconds. Not the crate humantime: it panics on
/// `18446744073709551615s 1000000000ns`, and has months of 30.44 days.
pub(in crate::throttle) fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (digits, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let many: u64 = if digits.is_empty() && !unit.is_empty() { 1 } else { number(digits)? };
    let seconds = |each: u64| many.checked_mul(each).map(Duration::from_secs);
    match unit.trim_start() {
        "ns" => Some(Duration::from_nanos(many)),
        "us" | "µs" => Some(Duration::from_micros(many)),
        "ms" => Some(Duration::from_millis(many)),
        "" | "s" | "sec" | "second" | "seconds" => seconds(1),
        "m" | "min" | "minute" | "minutes" => seconds(60),
        "h" | "hour" | "hours" => seconds(60 * 60),
        "d" | "day" | "days" => seconds(24 * 60 * 60),
        _ => None,
    }
}

/// A text that is no [`Rate`]. Says what is wrong with it, and what a rate looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseRateError {
    text: Box<str>,
    problem: Problem,
}

/// How much of a wrong text the error keeps.
const SHOWN_CHARS: usize = 60;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    Slash,
    Count,
    Time,
    Burst,
    Rate(Invalid),
}

impl fmt::Display for ParseRateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no rate: ", self.text)?;
        match &self.problem {
            Problem::Slash => write!(f, "there is no '/' between a count and a time"),
            Problem::Count => write!(f, "before the '/' there must be a whole number up to {}", u32::MAX),
            Problem::Time => {
                write!(f, "after the '/' there must be a whole number with one of the units ns, us, ms, s, m, h and d")
            }
            Problem::Burst => write!(f, "after \"burst\" there must be a whole number up to {}", u32::MAX),
            Problem::Rate(invalid) => write!(f, "{invalid}"),
        }?;
        write!(f, "; a rate looks like \"100/60s\", \"5/500ms\", \"10/s\" or \"100/1m burst 20\"")
    }
}

impl std::error::Error for ParseRateError {}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate like \"100/60s\" or \"100/1m burst 20\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}
