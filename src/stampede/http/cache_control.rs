//! `Cache-Control`, read strictly: RFC 9111 section 5.2 and RFC 5861.

use crate::stampede::lives::{FOREVER, Lives};
use http::{HeaderMap, header::CACHE_CONTROL};
use std::time::Duration;

/// What the `Cache-Control` lines of a message say, taken together.
#[derive(Debug, Default)]
pub(super) struct Directives {
    pub(super) present: bool,
    pub(super) malformed: bool,
    pub(super) no_store: bool,
    /// Also in its qualified form.
    pub(super) no_cache: bool,
    /// Also in its qualified form.
    pub(super) private: bool,
    pub(super) public: bool,
    /// Seconds; the smallest of several, 0 if one of them is no number.
    max_age: Option<u32>,
    pub(super) s_maxage: Option<u32>,
    /// Also `proxy-revalidate`.
    must_revalidate: bool,
    /// RFC 5861.
    stale_while_revalidate: Option<u32>,
    stale_if_error: Option<u32>,
}

impl Directives {
    pub(super) fn of(headers: &HeaderMap) -> Self {
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
    pub(super) fn grace(&self, layers: &Lives) -> (Duration, Duration) {
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

    pub(super) fn asks_for_grace(&self) -> bool {
        self.stale_while_revalidate.or(self.stale_if_error).is_some()
    }

    pub(super) fn life(&self) -> Option<Duration> {
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
pub(super) fn delta_seconds(text: &[u8]) -> Option<u32> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    digits.then(|| {
        text.iter().fold(0u32, |seconds, digit| {
            let more = seconds.saturating_mul(10);
            more.saturating_add((digit - b'0').into()).min(FOREVER)
        })
    })
}
