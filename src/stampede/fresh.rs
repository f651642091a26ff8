//! HTTP freshness and the rules of safe storing: pure functions of headers.
//!
//! This is a shared cache in the sense of RFC 9111 and reads every doubt strictly: a value that contradicts
//! another or cannot be parsed never makes a response live longer, or be seen by more people.

use std::time::{Duration, SystemTime};

use http::header::{
    AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, COOKIE, DATE, EXPIRES, HeaderMap, HeaderName,
    HeaderValue, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA,
    PROXY_AUTHORIZATION, RANGE, SET_COOKIE, UPGRADE, VARY,
};
use http::status::StatusCode;

/// What a request lets a shared cache do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone's stored answer may serve it, and its answer may serve anyone.
    Shared,
    /// It says who is asking: only an answer that is explicitly for everyone may be stored or served.
    Personal,
    /// The cache stays out of the way.
    Bypass,
}

/// Fields that say who is asking.
static PERSONAL: [HeaderName; 3] = [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION];

/// Fields of requests whose answer is no plain representation, or depends on more than the headers.
static BYPASS: [HeaderName; 5] = [RANGE, IF_RANGE, IF_MATCH, IF_UNMODIFIED_SINCE, UPGRADE];

/// Reads a request's headers; methods are the name's business, and bodies are `name::announces_body`'s.
///
/// `If-None-Match` and `If-Modified-Since` stay [`Access::Shared`]: see [`make_unconditional`].
pub(crate) fn access(headers: &HeaderMap) -> Access {
    let has = |names: &[HeaderName]| names.iter().any(|name| headers.contains_key(name));
    let control = Directives::of(headers);
    if control.no_store || control.malformed || has(&BYPASS) {
        Access::Bypass
    } else if has(&PERSONAL) {
        Access::Personal
    } else {
        Access::Shared
    }
}

/// Removes the conditions that would make the origin answer 304, which serves nobody but this client.
///
/// To be called on the request that fetches an answer for everyone.
pub(crate) fn make_unconditional(headers: &mut HeaderMap) {
    headers.remove(IF_NONE_MATCH);
    headers.remove(IF_MODIFIED_SINCE);
}

/// How long an answer is fresh, and for how long after that it may bridge what follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lives {
    pub(crate) fresh: Duration,
    /// It may be served while a new one is computed.
    pub(crate) revalidate: Duration,
    /// It may be served where a new one cannot be had.
    pub(crate) if_error: Duration,
}

impl Lives {
    pub(crate) fn without_grace(fresh: Duration) -> Lives {
        Lives { fresh, ..Lives::default() }
    }
}

/// A response to be judged by its status and headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case<'a> {
    pub(crate) status: StatusCode,
    pub(crate) headers: &'a HeaderMap,
    /// That of the request it answers.
    pub(crate) access: Access,
    /// The present wall clock, which stands in for a missing `Date`.
    pub(crate) wall: SystemTime,
    /// What applies where the response says nothing. A life of zero: only those that say something are stored.
    pub(crate) lives: Lives,
    /// The life of a 404 or 410 that names none; zero: it is not stored.
    pub(crate) negative: Duration,
    /// The life that somebody chose for this response, whatever it says itself; zero: it is not to be stored.
    pub(crate) chosen: Option<Duration>,
}

/// The terms on which a response is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// From now: its `Age` is already taken off. One of them is above zero.
    pub(crate) lives: Lives,
    /// Its `Age` in seconds, 0 if it has none.
    pub(crate) age: u32,
    /// It said `public` or `s-maxage`: it may also serve requests that are [`Access::Personal`].
    pub(crate) public: bool,
}

/// Why a response may not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// An RFC 8941 token, fit for the `detail` parameter of `Cache-Status`.
    pub(crate) reason: &'static str,
    pub(crate) kind: Kind,
}

/// What a refusal to store says of other answers of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The service has failed; it may not fail again.
    Failure,
    /// They will not be stored either.
    Uncacheable,
    /// Nothing.
    ThisOne,
}

/// A failure that the next request may not meet.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS)
}

/// Whether and for how long a response may be stored.
pub(crate) fn storable(case: &Case<'_>) -> Result<Terms, Refusal> {
    let &Case { status, headers, access, wall, .. } = case;
    let refuse = |when: bool, kind, reason| if when { Err(Refusal { reason, kind }) } else { Ok(()) };
    let uncacheable = |when, reason| refuse(when, Kind::Uncacheable, reason);
    let by_status = match is_passing(status) {
        true => Refusal { reason: "failure", kind: Kind::Failure },
        false => Refusal { reason: "status", kind: Kind::Uncacheable },
    };
    let kept = Kept::of(status).ok_or(by_status)?;
    let control = Directives::of(headers);
    let public = control.public || control.s_maxage.is_some();

    refuse(access == Access::Bypass, Kind::ThisOne, "bypass")?;
    uncacheable(control.malformed, "cache-control-malformed")?;
    uncacheable(control.no_store, "no-store")?;
    uncacheable(control.private, "private")?;
    uncacheable(control.no_cache, "no-cache")?;
    uncacheable(!control.present && has_pragma_no_cache(headers), "pragma-no-cache")?;
    refuse(access == Access::Personal && !public, Kind::ThisOne, "personal")?;
    uncacheable(headers.contains_key(SET_COOKIE), "set-cookie")?;
    uncacheable(headers.contains_key(CONTENT_RANGE), "content-range")?;
    uncacheable(vary(headers).is_none(), "vary-any")?;
    // Those who wait for the whole would wait for ever.
    let endless = ["text/event-stream", "multipart/x-mixed-replace", "application/x-ndjson"];
    uncacheable(endless.iter().any(|kind| has_media_type(headers, kind)), "stream")?;
    uncacheable(case.chosen == Some(Duration::ZERO), "life")?;

    let age = age(headers);
    let own = control.life().or_else(|| expires(headers, wall));
    let (fresh, aged, grace) = match (case.chosen, own, kept) {
        (Some(chosen), ..) => (chosen, 0, control.grace(&case.lives)),
        (None, Some(own), _) => (own, age, control.grace(&case.lives)),
        (None, None, Kept::ByDefault) => (case.lives.fresh, age, control.grace(&case.lives)),
        (None, None, Kept::Negative) if !case.negative.is_zero() => (case.negative, age, Default::default()),
        (None, None, Kept::WhenExplicit | Kept::Negative) => return Err(by_status),
    };
    // What is old already has used up a part of its grace.
    let aged = Duration::from_secs(aged.into());
    let overdue = aged.saturating_sub(fresh);
    let left = |grace: Duration| grace.saturating_sub(overdue);
    let lives = Lives { fresh: fresh.saturating_sub(aged), revalidate: left(grace.0), if_error: left(grace.1) };
    // Without a life, only the grace that it asks for itself keeps it.
    let of_use = !lives.fresh.is_zero() || (control.asks_for_grace() && lives != Lives::default());
    uncacheable(!of_use, if fresh.is_zero() { "no-freshness" } else { "aged" })?;
    Ok(Terms { lives, age, public })
}

/// What a status alone says about storing.
#[derive(Clone, Copy)]
enum Kept {
    ByDefault,
    WhenExplicit,
    /// That something is not there.
    Negative,
}

impl Kept {
    /// `None` for everything not listed: partial and interim answers, answers about one client's rights or
    /// behaviour (400, 401, 403, 429), failures.
    fn of(status: StatusCode) -> Option<Self> {
        match status.as_u16() {
            200 | 203 | 204 | 301 | 308 => Some(Self::ByDefault),
            300 | 302 | 303 | 307 | 405 | 414 | 451 | 501 => Some(Self::WhenExplicit),
            404 | 410 => Some(Self::Negative),
            _ => None,
        }
    }
}

/// The longest life read from a header: RFC 9111 section 1.2.2 bounds delta-seconds here.
const FOREVER: u32 = 1 << 31;

/// What the `Cache-Control` lines of a message say, taken together.
#[derive(Debug, Default)]
struct Directives {
    present: bool,
    malformed: bool,
    no_store: bool,
    /// Also in its qualified form.
    no_cache: bool,
    /// Also in its qualified form.
    private: bool,
    public: bool,
    /// Seconds; the smallest of several, 0 if one of them is no number.
    max_age: Option<u32>,
    s_maxage: Option<u32>,
    /// Also `proxy-revalidate`.
    must_revalidate: bool,
    /// RFC 5861.
    stale_while_revalidate: Option<u32>,
    stale_if_error: Option<u32>,
}

impl Directives {
    fn of(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            directives.present = true;
            if directives.read(line.as_bytes()).is_none() {
                directives.malformed = true;
            }
        }
        directives
    }

    /// `#( token [ "=" ( token / quoted-string ) ] )`; `None` if the line is anything else.
    fn read(&mut self, mut line: &[u8]) -> Option<()> {
        loop {
            line = line.trim_ascii_start();
            match line.first() {
                None => return Some(()),
                Some(b',') => line = &line[1..],
                Some(_) => {
                    let (name, rest) = token(line)?;
                    let (value, rest) = match rest.strip_prefix(b"=") {
                        Some(rest) => argument(rest).map(|(value, rest)| (Some(value), rest))?,
                        None => (None, rest),
                    };
                    self.take(name, value);
                    line = rest.trim_ascii_start();
                    if !matches!(line.first(), None | Some(b',')) {
                        return None;
                    }
                }
            }
        }
    }

    fn take(&mut self, name: &[u8], value: Option<&[u8]>) {
        let is = |directive: &str| name.eq_ignore_ascii_case(directive.as_bytes());
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("private") {
            self.private = true;
        } else if is("public") {
            self.public |= value.is_none();
        } else if is("max-age") {
            smallest(&mut self.max_age, value);
        } else if is("s-maxage") {
            smallest(&mut self.s_maxage, value);
        } else if is("must-revalidate") || is("proxy-revalidate") {
            self.must_revalidate = true;
        } else if is("stale-while-revalidate") {
            smallest(&mut self.stale_while_revalidate, value);
        } else if is("stale-if-error") {
            smallest(&mut self.stale_if_error, value);
        }
    }

    /// How long it may be served once it is not fresh: while a new one is computed, and where none can be had.
    ///
    /// `s-maxage` forbids it as `proxy-revalidate` does (RFC 9111 section 5.2.2.10), unless the response itself allows it
    /// beside that.
    fn grace(&self, layers: &Lives) -> (Duration, Duration) {
        if self.must_revalidate {
            return Default::default();
        }
        let grace = |own: Option<u32>, layers| match own {
            Some(own) => Duration::from_secs(own.into()),
            None if self.s_maxage.is_some() => Duration::ZERO,
            None => layers,
        };
        (grace(self.stale_while_revalidate, layers.revalidate), grace(self.stale_if_error, layers.if_error))
    }

    fn asks_for_grace(&self) -> bool {
        self.stale_while_revalidate.or(self.stale_if_error).is_some()
    }

    fn life(&self) -> Option<Duration> {
        let seconds = self.s_maxage.or(self.max_age)?;
        Some(Duration::from_secs(seconds.into()))
    }
}

fn smallest(least: &mut Option<u32>, value: Option<&[u8]>) {
    let seconds = value.and_then(delta_seconds).unwrap_or(0);
    *least = Some(least.map_or(seconds, |least| least.min(seconds)));
}

/// Splits off a non-empty token.
fn token(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|&byte| !is_token_char(byte)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Splits off a token or the inside of a quoted string, with its backslashes.
fn argument(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        return token(text);
    };
    let mut escaped = false;
    let end = quoted.iter().position(|&byte| {
        let closes = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        closes
    })?;
    Some((&quoted[..end], &quoted[end + 1..]))
}

fn is_token_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A number of seconds; too large a one is [`FOREVER`].
fn delta_seconds(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| {
        text.iter().fold(0u32, |seconds, digit| {
            let more = seconds.saturating_mul(10);
            more.saturating_add((digit - b'0').into()).min(FOREVER)
        })
    })
}

/// The largest `Age`; one that is no number makes the response infinitely old.
fn age(headers: &HeaderMap) -> u32 {
    list(headers, &AGE).map(|age| delta_seconds(age).unwrap_or(FOREVER)).max().unwrap_or(0)
}

/// `Expires` less `Date`: the smallest of several, zero if it is past or no date.
fn expires(headers: &HeaderMap, wall: SystemTime) -> Option<Duration> {
    let born = headers.get(DATE).and_then(date).unwrap_or(wall);
    let life = |value| date(value)?.duration_since(born).ok();
    headers
        .get_all(EXPIRES)
        .iter()
        .map(|value| life(value).unwrap_or_default())
        .min()
        .map(|life| life.min(Duration::from_secs(FOREVER.into())))
}

fn date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

fn has_pragma_no_cache(headers: &HeaderMap) -> bool {
    list(headers, &PRAGMA).any(|pragma| pragma.eq_ignore_ascii_case(b"no-cache"))
}

fn has_media_type(headers: &HeaderMap, essence: &str) -> bool {
    list(headers, &CONTENT_TYPE).any(|value| {
        let end = value.iter().position(|&byte| byte == b';');
        let found = value[..end.unwrap_or(value.len())].trim_ascii_end();
        found.eq_ignore_ascii_case(essence.as_bytes())
    })
}

/// The members of a list field without quoted strings: of all its lines, trimmed, the empty ones left out.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).into_iter();
    lines
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}

/// The field names of `Vary`: lower-case, sorted, each once.
///
/// `None` for `*`, and for what is no field name: such a response answers its own request only.
pub(crate) fn vary(headers: &HeaderMap) -> Option<Vec<HeaderName>> {
    let name = |member: &[u8]| match member {
        b"*" => None,
        name => HeaderName::from_bytes(name).ok(),
    };
    let mut names = list(headers, &VARY).map(name).collect::<Option<Vec<_>>>()?;
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    Some(names)
}

/// What the `grpc-status` of a response means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grpc {
    /// It is no gRPC, or a success.
    Fine,
    NotFound,
    /// It may be answered another time.
    Failure,
    Other,
}

/// Judges by every `grpc-status` in headers and trailers: one that is no success outweighs those that are, and a gRPC
/// response has one.
///
/// gRPC-Web keeps its status in the body, so that its responses count as gRPC without a status.
pub(crate) fn grpc(headers: &HeaderMap, trailers: Option<&HeaderMap>) -> Grpc {
    let statuses = [Some(headers), trailers].into_iter().flatten().flat_map(|fields| fields.get_all("grpc-status"));
    let worst = statuses.map(|status| match status.as_bytes() {
        b"0" => Grpc::Fine,
        b"5" => Grpc::NotFound,
        // UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
        b"2" | b"4" | b"8" | b"10" | b"13" | b"14" | b"15" => Grpc::Failure,
        _ => Grpc::Other,
    });
    let is_grpc = list(headers, &CONTENT_TYPE).any(|value| {
        let start = value.get(..b"application/grpc".len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
    });
    worst.max_by_key(|grpc| *grpc as u8).unwrap_or(if is_grpc { Grpc::Other } else { Grpc::Fine })
}

/// A life shortened by up to a share of itself: what was stored together does not end together.
pub(crate) fn jittered(life: Duration, share: f64, draw: f64) -> Duration {
    life.min(Duration::from_secs(FOREVER.into())).mul_f64((1.0 - share * draw).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
