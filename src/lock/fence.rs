//! Fencing tokens, and how a store goes by them.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::{
    fmt,
    num::ParseIntError,
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

/// A fencing token: a number that tells which holder came later. Each time a lock is acquired, its holder gets a
/// greater one than all holders before, over all processes, restarts and losses of the cache's files.
///
/// A lease cannot stop a holder that was suspended and goes on when others hold the lock already. What it writes to
/// can, by a [`Watermark`]: it refuses tokens that are less than one it has seen. (M. Kleppmann, "How to do distributed
/// locking", 2016.)
///
/// Numbers are below 2^53 until the year 2255, so they survive JSON. They grow by more than one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(u64);

impl Fence {
    /// The token of a number.
    pub fn from_u64(number: u64) -> Self {
        Fence(number)
    }

    /// Its number.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// The token in a header of a request; `None` if there is none, several, or something else.
    pub fn from_headers(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let mut values = headers.get_all(name).iter();
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        value.to_str().ok()?.parse().ok()
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Fence {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        text.parse().map(Fence)
    }
}

impl From<Fence> for HeaderValue {
    fn from(fence: Fence) -> HeaderValue {
        fence.0.into()
    }
}

/// The greatest token that a guarded store has seen.
///
/// ```
/// use tower_floodgate::lock::{Fence, Watermark};
///
/// let store = Watermark::new();
/// store.admit(Fence::from_u64(33))?;
/// store.admit(Fence::from_u64(34))?;
/// assert!(store.admit(Fence::from_u64(33)).is_err(), "its holder was suspended, and lost the lock");
/// store.admit(Fence::from_u64(34))?;
/// # Ok::<(), tower_floodgate::lock::StaleFence>(())
/// ```
///
/// It lives in memory: a store that outlives its process keeps the [`highest`](Watermark::highest) with its data, in the
/// same transaction, and [starts](Watermark::starting_at) from there.
#[derive(Debug, Default)]
pub struct Watermark(AtomicU64);

impl Watermark {
    /// Of a store that has seen no token.
    pub fn new() -> Self {
        Watermark::default()
    }

    /// Of a store that has seen this token.
    pub fn starting_at(fence: Fence) -> Self {
        Watermark(AtomicU64::new(fence.0))
    }

    /// Admits the token of the present holder, or of the last one.
    ///
    /// # Errors
    ///
    /// [`StaleFence`] if a greater token was seen: somebody else holds or held the lock since.
    pub fn admit(&self, fence: Fence) -> Result<(), StaleFence> {
        let seen = self.0.fetch_max(fence.0, SeqCst);
        if seen > fence.0 { Err(StaleFence { given: fence, seen: Fence(seen) }) } else { Ok(()) }
    }

    /// The greatest token that was seen; zero if none was.
    pub fn highest(&self) -> Fence {
        Fence(self.0.load(SeqCst))
    }
}

/// A fencing token that is not the greatest any more: its holder has lost the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StaleFence {
    /// The token that was shown.
    pub given: Fence,
    /// The greatest that was seen before.
    pub seen: Fence,
}

impl fmt::Display for StaleFence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the fencing token {} is stale: {} was seen; acquire the lock again", self.given, self.seen)
    }
}

impl std::error::Error for StaleFence {}
