//! `RateLimit`, `RateLimit-Policy` and `X-RateLimit-*`: what a throttle's limits look like to clients.

use crate::{
    decision::{Decision, Quota},
    rejection::{Reason, Rejection},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use std::{fmt::Write as _, time::Duration};

static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
static X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
static X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
static X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The greatest integer of a structured field (RFC 9651, section 3.3.1).
const GREATEST: u128 = 999_999_999_999_999;

/// The limits of one throttle, as of one decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    scope: &'a str,
    /// The one that refused, or else will first.
    tightest: &'a Quota,
    others: &'a [Quota],
    /// What is left of the tightest, and for how long there is no more than that.
    remaining: u32,
    reset: Duration,
}

impl<'a> Limits<'a> {
    pub(super) fn admitted(decision: &'a Decision) -> Self {
        let Decision { scope, quota, others, .. } = decision;
        Limits { scope, tightest: quota, others, remaining: quota.remaining, reset: quota.reset }
    }

    /// `None` where no limit refused.
    pub(super) fn refused(why: &'a Rejection) -> Option<Self> {
        let quota = why.quota.as_ref()?;
        let remaining = if why.reason == Reason::Blocked { 0 } else { quota.remaining };
        // Both headers name one time: Retry-After should not be earlier than the end of the window (section 6).
        let reset = why.retry_after.unwrap_or(quota.reset);
        Some(Limits { scope: &why.scope, tightest: quota, others: &why.others, remaining, reset })
    }

    /// The name of the tightest limit, in quotes, as [`write`](Self::write) has it.
    pub(super) fn tightest_name(&self) -> String {
        self.name(self.tightest)
    }

    /// In words, what was asked too much of.
    pub(super) fn violation(&self) -> String {
        let Quota { limit, window, .. } = self.tightest;
        format!("limit {} allows {limit} in {window:?}", self.tightest_name())
    }

    /// `RateLimit-Policy: "name";q=100;w=60` and `RateLimit: "name";r=0;t=12`, with an item for each limit, behind those
    /// of other layers.
    pub(super) fn write(&self, headers: &mut HeaderMap) {
        let (mut policy, mut state) = (String::with_capacity(64), String::with_capacity(64));
        for quota in self.in_order() {
            if !policy.is_empty() {
                policy.push_str(", ");
                state.push_str(", ");
            }
            let name = self.name(quota);
            let (remaining, reset) = match std::ptr::eq(quota, self.tightest) {
                true => (self.remaining, self.reset),
                false => (quota.remaining, quota.reset),
            };
            let _ = write!(policy, "{name};q={};w={}", quota.limit, seconds(quota.window).max(1));
            let _ = write!(state, "{name};r={remaining};t={}", seconds(reset));
        }
        for (header, value) in [(&RATELIMIT_POLICY, policy), (&RATELIMIT, state)] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.append(header, value);
            }
        }
    }

    /// `X-RateLimit-*` of the tightest limit, unless an inner layer told of a tighter one.
    pub(super) fn write_x(&self, headers: &mut HeaderMap) {
        let inner = headers.get(&X_REMAINING).and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
        if inner.is_none_or(|inner| self.remaining < inner) {
            headers.insert(&X_LIMIT, self.tightest.limit.into());
            headers.insert(&X_REMAINING, self.remaining.into());
            headers.insert(&X_RESET, seconds(self.reset).into());
        }
    }

    fn all(&self) -> impl Iterator<Item = &'a Quota> {
        std::iter::once(self.tightest).chain(self.others)
    }

    /// Shortest window first, whichever is the tightest now: clients compare policies from answer to answer.
    fn in_order(&self) -> Vec<&'a Quota> {
        let mut all: Vec<_> = self.all().collect();
        all.sort_by_key(|quota| rank(quota));
        all
    }

    /// In quotes: a limit's own name, or else the scope's, with a number behind it where several limits have none.
    fn name(&self, quota: &Quota) -> String {
        if let Some(name) = &quota.name {
            return quoted(name);
        }
        let unnamed = || self.all().filter(|other| other.name.is_none());
        if unnamed().nth(1).is_none() {
            return quoted(self.scope);
        }
        // Of limits of one rank the tightest is first: nothing else tells them apart.
        let before = self.in_order().into_iter().filter(|other| other.name.is_none());
        let number = 1 + before.take_while(|other| !std::ptr::eq(*other, quota)).count();
        quoted(&format!("{}-{number}", self.scope))
    }
}

fn rank(quota: &Quota) -> (Duration, u32) {
    (quota.window, quota.limit)
}

/// Whole seconds, rounded up.
fn seconds(span: Duration) -> u64 {
    // At most GREATEST, which is a u64.
    span.as_nanos().div_ceil(1_000_000_000).min(GREATEST) as u64
}

/// `text` as a string of a structured field (RFC 9651, section 3.3.3), which is a JSON string too. What is not printable
/// ASCII, which is all that the former can have, is percent-encoded.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => {
                let _ = write!(quoted, "%{byte:02X}");
            }
        }
    }
    quoted.push('"');
    quoted
}
