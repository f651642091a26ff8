//! HTTP freshness and the rules of safe storing: pure functions of headers.
//!
//! This is a shared cache in the sense of RFC 9111 and reads every doubt strictly: a value that contradicts
//! another or cannot be parsed never makes a response live longer, or be seen by more people.

use super::cache_control::{Directives, delta_seconds};
use crate::stampede::{
    codec::{Access, Kind},
    lives::{FOREVER, Lives},
};
use std::time::{Duration, SystemTime};

use http::header::{
    AGE, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, COOKIE, DATE, EXPIRES, HeaderMap, HeaderName, HeaderValue,
    IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA, PROXY_AUTHORIZATION, RANGE,
    SET_COOKIE, UPGRADE, VARY,
};
use http::status::StatusCode;

/// Fields that identify the caller.
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

/// Removes the conditions that would make the origin answer 304, which serves only this client.
///
/// To be called on the request that fetches an answer for everyone.
pub(crate) fn make_unconditional(headers: &mut HeaderMap) {
    headers.remove(IF_NONE_MATCH);
    headers.remove(IF_MODIFIED_SINCE);
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
    /// The life that the user chose for this response, whatever it says itself; zero: it is not to be stored.
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
    // Followers that wait for the whole would wait for ever.
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

#[cfg(test)]
mod tests;
