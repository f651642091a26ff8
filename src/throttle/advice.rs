//! What the answer of a foreign API says about our budget there, as a pure function of its headers.
//!
//! Read are `Retry-After` (RFC 9110, section 10.2.3), `RateLimit` and `RateLimit-Policy` of
//! draft-ietf-httpapi-ratelimit-headers-10 and its forerunners, the `X-RateLimit-*` fields that came before any draft,
//! and gRPC's retry pushback. The text is foreign: what is malformed is ignored, as the draft demands.
//!
//! The fields are read by a tolerant splitter and not by a parser of structured fields (RFC 9651): most of what servers
//! send was never one (`10, 10;w=1` beside dates, floats and `6m0s`), and a strict parser would drop the whole list for
//! one bad item in it.

use super::limit::calendar::utc::first_day_of_month;
use http::{HeaderMap, StatusCode};
use std::{
    cmp::Reverse,
    iter,
    time::{Duration, SystemTime},
};

/// Items of one list that are looked at, and bytes of one line of it, so that a hostile list costs little time.
const MOST_ITEMS: usize = 32;
const LONGEST_LINE: usize = 2_048;

/// Seconds from which a number is a moment since 1970 and not a delay: 31 years, or September 2001.
const FIRST_EPOCH: Duration = Duration::from_secs(1_000_000_000);

/// From here a moment counts in smaller units than seconds: the year 5138, or 1973 in milliseconds.
const LAST_EPOCH: Duration = Duration::from_secs(100_000_000_000);

/// What one answer says about the budget that its request counted against.
///
/// The advice is of the moment at which the answer was made. It may be missing from any answer, and differ in the next.
/// For what [`read`](Advice::read) does not understand (a field in the body, another protocol), make one with
/// [`hold_for`](Advice::hold_for) or [`left`](Advice::left), and give it to
/// [`learn_by`](super::ThrottleLayer::learn_by).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Advice {
    /// The server refused, and wants nothing for this long, which is above zero. It goes before `remaining`.
    pub hold: Option<Duration>,
    /// What is left of the tightest budget, and how long until there is more of it.
    ///
    /// Tokens or bytes left are told as if they were requests: each request takes at least one, so that no more
    /// requests than this can pass.
    pub remaining: Option<(u32, Duration)>,
    /// The whole of that budget, above zero, where it is counted in requests.
    pub limit: Option<u32>,
    /// The time for which `limit` is given, from one second.
    pub window: Option<Duration>,
}

impl Advice {
    /// The server refused, and wants nothing for `delay`.
    pub fn hold_for(delay: Duration) -> Advice {
        Advice { hold: Some(delay), ..Advice::default() }
    }

    /// Of the server's budget, `remaining` requests are left; in `reset` there is more of it.
    pub fn left(remaining: u32, reset: Duration) -> Advice {
        Advice { remaining: Some((remaining, reset)), ..Advice::default() }
    }

    /// Reads the advice in an answer that has arrived just now: as [`read_at`](Advice::read_at), by the system's clock.
    pub fn read(status: StatusCode, headers: &HeaderMap) -> Advice {
        Advice::read_at(status, headers, SystemTime::now())
    }

    /// Reads the advice in an answer that arrived at `wall`: `Retry-After` and its like where the server refused,
    /// `RateLimit` and `RateLimit-Policy` of the IETF draft and its forerunners, `X-RateLimit-*` and the like. Fields that
    /// make no sense are as good as missing.
    ///
    /// Moments are taken relative to the answer's own `Date`, so that it does not matter whose clock is wrong; only
    /// without one does `wall` count. A stored answer (`Age` above zero) tells nothing about the budget of today, and
    /// its `hold` has run for that long.
    pub fn read_at(status: StatusCode, headers: &HeaderMap, wall: SystemTime) -> Advice {
        let now = text(headers, "date").and_then(date).unwrap_or_else(|| since_1970(wall));
        let age = text(headers, "age").and_then(decimal).unwrap_or_default();
        let hold = hold(status, headers, now).map(|hold| hold.saturating_sub(age));
        let hold = hold.filter(|hold| !hold.is_zero());
        match tightest(headers, now).filter(|_| age.is_zero()) {
            Some(Budget { remaining, reset, limit, window }) => {
                Advice { hold, remaining: reset.map(|reset| (remaining, reset)), limit, window }
            }
            None => Advice { hold, ..Advice::default() },
        }
    }

    /// How long to send nothing at all, above zero: `hold`, or until there is more of a budget that is used up.
    pub fn pause(&self) -> Option<Duration> {
        let used_up = || self.remaining.filter(|&(left, reset)| left == 0 && !reset.is_zero()).map(|(_, reset)| reset);
        self.hold.or_else(used_up)
    }

    /// No span of it is longer than `longest`: what the text says is foreign.
    pub(super) fn cut(self, longest: Duration) -> Advice {
        Advice {
            hold: self.hold.map(|hold| hold.min(longest)),
            remaining: self.remaining.map(|(left, reset)| (left, reset.min(longest))),
            ..self
        }
    }
}

/// How long a server that refused wants to be left alone. GitHub refuses with 403; gRPC with a status of its own
/// (RESOURCE_EXHAUSTED or UNAVAILABLE), in a response that is 200.
fn hold(status: StatusCode, headers: &HeaderMap, now: Duration) -> Option<Duration> {
    let refused =
        matches!(status, StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
            || matches!(text(headers, "grpc-status"), Some("8" | "14"));
    if !refused {
        return None;
    }
    let millis = |field| text(headers, field).and_then(decimal).map(|millis| millis / 1_000);
    millis("grpc-retry-pushback-ms")
        .or_else(|| millis("retry-after-ms"))
        .or_else(|| delay(text(headers, "retry-after")?, now))
}

/// One budget of possibly many.
#[derive(Clone, Copy, Debug)]
struct Budget {
    remaining: u32,
    reset: Option<Duration>,
    limit: Option<u32>,
    window: Option<Duration>,
}

impl Budget {
    fn new(remaining: u32, reset: Option<Duration>, limit: Option<u32>, window: Option<Duration>) -> Budget {
        // Where no reset is told, all of it is back after one window at the latest.
        Budget { remaining, reset: reset.or(window), limit: limit.filter(|&limit| limit > 0), window }
    }
}

/// The budget with the least left; of those the one that takes longest to come back. One that does not say when it
/// comes back is of use only if no other does.
fn tightest(headers: &HeaderMap, now: Duration) -> Option<Budget> {
    let separate = FIELDS.iter().filter_map(|fields| separate(fields, headers, now));
    listed(headers, now)
        .chain(keyed(headers, now))
        .chain(separate)
        .min_by_key(|budget| (budget.reset.is_none(), budget.remaining, Reverse(budget.reset)))
}

/// Since draft 8: `RateLimit: "name";r=50;t=30` and `RateLimit-Policy: "name";q=100;w=60`.
fn listed(headers: &HeaderMap, now: Duration) -> impl Iterator<Item = Budget> {
    items(headers, "ratelimit").filter_map(move |item| {
        let remaining = count(item.parameter("r")?)?;
        let reset = item.parameter("t").and_then(|reset| delay(reset, now));
        let policy = items(headers, "ratelimit-policy").find(|policy| policy.name() == item.name());
        let of_policy = |key| policy.and_then(|policy| policy.parameter(key));
        let limit = of_policy("q").and_then(count);
        let window = of_policy("w").and_then(seconds);
        match of_policy("qu").map_or("requests", unquoted) {
            "requests" | "request" => Some(Budget::new(remaining, reset, limit, window)),
            // Comes back whenever a request ends: nothing to wait for.
            "concurrent-requests" => None,
            _ => Some(Budget::new(remaining, reset, None, window)),
        }
    })
}

/// Draft 7: `RateLimit: limit=100, remaining=50, reset=30` and `RateLimit-Policy: 100;w=60`.
fn keyed(headers: &HeaderMap, now: Duration) -> Option<Budget> {
    let value = |key| {
        items(headers, "ratelimit").find_map(|item| {
            let (found, value) = item.head().split_once('=')?;
            (found.trim() == key).then(|| value.trim())
        })
    };
    let remaining = count(value("remaining")?)?;
    let limit = value("limit").and_then(count);
    let reset = value("reset").and_then(|reset| delay(reset, now));
    let window = limit.and_then(|limit| window_of(limit, items(headers, "ratelimit-policy")));
    Some(Budget::new(remaining, reset, limit, window))
}

/// The names of fields that tell of one budget together.
struct Fields {
    limit: &'static str,
    remaining: &'static str,
    /// The first of them that is there counts.
    reset: &'static [&'static str],
    /// Whether it is requests that are counted.
    requests: bool,
}

const fn fields(limit: &'static str, remaining: &'static str, reset: &'static [&'static str]) -> Fields {
    Fields { limit, remaining, reset, requests: true }
}

const fn tokens(limit: &'static str, remaining: &'static str, reset: &'static [&'static str]) -> Fields {
    Fields { limit, remaining, reset, requests: false }
}

/// Drafts 0 to 6; everybody; X; OpenAI and those who are compatible with it; Anthropic.
static FIELDS: [Fields; 9] = [
    fields("ratelimit-limit", "ratelimit-remaining", &["ratelimit-reset"]),
    // Discord also sends the delay, which is exact without a clock.
    fields("x-ratelimit-limit", "x-ratelimit-remaining", &["x-ratelimit-reset-after", "x-ratelimit-reset"]),
    fields("x-rate-limit-limit", "x-rate-limit-remaining", &["x-rate-limit-reset"]),
    fields("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", &["x-ratelimit-reset-requests"]),
    tokens("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", &["x-ratelimit-reset-tokens"]),
    fields(
        "anthropic-ratelimit-requests-limit",
        "anthropic-ratelimit-requests-remaining",
        &["anthropic-ratelimit-requests-reset"],
    ),
    tokens(
        "anthropic-ratelimit-tokens-limit",
        "anthropic-ratelimit-tokens-remaining",
        &["anthropic-ratelimit-tokens-reset"],
    ),
    tokens(
        "anthropic-ratelimit-input-tokens-limit",
        "anthropic-ratelimit-input-tokens-remaining",
        &["anthropic-ratelimit-input-tokens-reset"],
    ),
    tokens(
        "anthropic-ratelimit-output-tokens-limit",
        "anthropic-ratelimit-output-tokens-remaining",
        &["anthropic-ratelimit-output-tokens-reset"],
    ),
];

/// One field each for the limit, what remains and the reset. Windows may follow the limit (`10, 10;w=1, 1000;w=3600`:
/// the first drafts, Envoy) or be in `RateLimit-Policy`.
fn separate(fields: &Fields, headers: &HeaderMap, now: Duration) -> Option<Budget> {
    let first = |field| items(headers, field).next().and_then(|item| count(item.head()));
    let remaining = first(fields.remaining)?;
    let reset = fields.reset.iter().find_map(|field| delay(text(headers, field)?, now));
    let limit = first(fields.limit);
    let policies = items(headers, fields.limit).skip(1).chain(items(headers, "ratelimit-policy"));
    let window = limit.and_then(|limit| window_of(limit, policies));
    Some(Budget::new(remaining, reset, limit.filter(|_| fields.requests), window))
}

/// The window of the policy that allows `limit`, in the form of the older drafts: `100;w=60`.
fn window_of<'a>(limit: u32, mut policies: impl Iterator<Item = Item<'a>>) -> Option<Duration> {
    policies.find(|policy| count(policy.head()) == Some(limit))?.parameter("w").and_then(seconds)
}

/// A field that is one value, if it is plain text.
fn text<'a>(headers: &'a HeaderMap, field: &str) -> Option<&'a str> {
    headers.get(field)?.to_str().ok().map(str::trim)
}

/// The items of a list, over all fields of that name.
fn items<'a>(headers: &'a HeaderMap, field: &'static str) -> impl Iterator<Item = Item<'a>> {
    let lines = headers.get_all(field).iter().filter(|line| line.len() <= LONGEST_LINE);
    let lines = lines.filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| pieces(line, ',')).take(MOST_ITEMS).map(Item)
}

/// An item with parameters: `head;key=value;key=value`.
#[derive(Clone, Copy)]
struct Item<'a>(&'a str);

impl<'a> Item<'a> {
    fn head(self) -> &'a str {
        pieces(self.0, ';').next().unwrap_or_default().trim()
    }

    /// The head without its quotes: drafts differ in whether it has any. Escapes stay, as two names that are the same
    /// are escaped the same.
    fn name(self) -> &'a str {
        unquoted(self.head())
    }

    /// The last parameter of that name, as in structured fields.
    fn parameter(self, key: &str) -> Option<&'a str> {
        let parameters = pieces(self.0, ';').skip(1).filter_map(|piece| piece.split_once('='));
        parameters.filter(|(found, _)| found.trim() == key).last().map(|(_, value)| value.trim())
    }
}

fn unquoted(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// Splits where `separator` stands outside of quotes.
fn pieces(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |symbol| {
        let outside = !quoted;
        match symbol {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        outside && symbol == separator
    })
}

/// How long from `now`: a number, a span such as `1m30s`, or a date.
///
/// A number is seconds to wait, or a moment in seconds since 1970, or in thousandths of them: no server means a delay
/// of 31 years, nor a moment before 2001. A delay in milliseconds cannot be told from one in seconds.
fn delay(text: &str, now: Duration) -> Option<Duration> {
    match decimal(text) {
        Some(number) if number < FIRST_EPOCH => Some(number),
        Some(mut moment) => {
            while moment >= LAST_EPOCH {
                moment /= 1_000;
            }
            Some(moment.saturating_sub(now))
        }
        None => span(text).or_else(|| Some(date(text)?.saturating_sub(now))),
    }
}

/// `6m0s`, `1h2m3.5s`, `12ms`: durations as Go prints them, but for those below a millisecond.
fn span(mut text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    loop {
        let (number, rest) = text.split_at(text.find(|symbol: char| !symbol.is_ascii_digit() && symbol != '.')?);
        let (unit, rest) = rest.split_at(rest.find(|symbol: char| !symbol.is_ascii_alphabetic()).unwrap_or(rest.len()));
        let number = decimal(number)?;
        total = total.saturating_add(match unit {
            "ms" => number / 1_000,
            "s" => number,
            "m" => number.saturating_mul(60),
            "h" => number.saturating_mul(3_600),
            "d" => number.saturating_mul(86_400),
            _ => return None,
        });
        if rest.is_empty() {
            return Some(total);
        }
        text = rest;
    }
}

/// A moment since 1970, of an HTTP date in any of its three forms or of RFC 3339 in UTC.
fn date(text: &str) -> Option<Duration> {
    httpdate::parse_http_date(text).map(since_1970).ok().or_else(|| rfc_3339(text))
}

fn since_1970(moment: SystemTime) -> Duration {
    moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// `2024-11-08T14:30:00Z`.
fn rfc_3339(text: &str) -> Option<Duration> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, separator: char| -> Option<[Duration; 3]> {
        let mut numbers = text.splitn(3, separator).map(decimal);
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    };
    let [year, month, day] = numbers(date, '-')?.map(|number| number.as_secs());
    let [hour, minute, second] = numbers(time, ':')?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = first_day_of_month((year - 1_970) * 12 + month - 1) + day - 1;
    let clock = hour.saturating_mul(3_600).saturating_add(minute.saturating_mul(60)).saturating_add(second);
    Some(Duration::from_secs(86_400 * days).saturating_add(clock))
}

/// How many: whole or with a fraction, which is left off (Reddit sends `599.0`).
fn count(text: &str) -> Option<u32> {
    Some(u32::try_from(decimal(text)?.as_secs()).unwrap_or(u32::MAX))
}

/// A window: whole seconds from one up to a year.
fn seconds(text: &str) -> Option<Duration> {
    let window = decimal(text)?.as_secs();
    (1..=31_622_400).contains(&window).then(|| Duration::from_secs(window))
}

/// A number without sign or exponent, as seconds. One that is too large is the largest.
fn decimal(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|symbol| symbol.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) {
        return None;
    }
    let seconds = whole.parse().unwrap_or(u64::MAX);
    let places = fraction.bytes().chain(iter::repeat(b'0')).take(9);
    Some(Duration::new(seconds, places.fold(0, |nanos, place| nanos * 10 + u32::from(place - b'0'))))
}

#[cfg(test)]
mod tests;
