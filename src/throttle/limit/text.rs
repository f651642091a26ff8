//! How limits are written: what their texts have in common.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

/// How much of a wrong text the error keeps.
const SHOWN_CHARS: usize = 60;

/// A text that is no limit. It says what is wrong with it, and what limits look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseLimitError {
    text: Box<str>,
    reason: Cow<'static, str>,
    other_kind: bool,
}

impl ParseLimitError {
    pub(super) fn new(text: &str, reason: impl Into<Cow<'static, str>>) -> Self {
        let text = text.chars().take(SHOWN_CHARS).collect();
        ParseLimitError { text, reason: reason.into(), other_kind: false }
    }

    /// The text is not even of the shape: it may be a limit of another kind.
    pub(super) fn other_kind(text: &str, shape: &'static str) -> Self {
        ParseLimitError { other_kind: true, ..Self::new(text, shape) }
    }

    pub(super) fn is_other_kind(&self) -> bool {
        self.other_kind
    }
}

impl fmt::Display for ParseLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no limit: {}; write `100/60s`, `10/s burst 20`, `100/60s sliding` or `1000/utc-day`",
            self.text, self.reason
        )
    }
}

impl std::error::Error for ParseLimitError {}

/// Digits only: `u32::from_str` would take a plus sign too.
pub(super) fn number<T: FromStr>(text: &str) -> Option<T> {
    let text = text.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A number and a unit, a unit alone for one of it, or a number alone for seconds. Not the crate humantime: it panics on
/// `18446744073709551615s 1000000000ns`, and has months of 30.44 days.
pub(super) fn duration(text: &str) -> Option<Duration> {
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

/// A span in the largest unit, up to seconds, that tells it exactly: what [`duration`] reads.
pub(super) struct Span(pub(super) Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
        let (unit, of) = units.into_iter().find(|(_, of)| nanos.is_multiple_of(*of)).unwrap_or(("ns", 1));
        write!(f, "{}{unit}", nanos / of)
    }
}
