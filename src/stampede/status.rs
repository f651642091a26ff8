//! What the cache did for a request.

use http::HeaderValue;
use std::{io::Write as _, time::Duration};

/// What the cache did for a request; in the extensions of its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheStatus {
    /// Answered from the cache.
    #[non_exhaustive]
    Hit {
        /// How long the answer is still fresh.
        ttl: Duration,
    },
    /// Answered from the cache, by an answer that has ended: a new one is being computed, or cannot be just now.
    #[non_exhaustive]
    Stale {
        /// How long ago the answer has ended.
        over: Duration,
    },
    /// Answered from the cache, by an answer that has ended: the service was asked and has failed, or takes too long.
    #[non_exhaustive]
    Bridged {
        /// How long ago the answer has ended.
        over: Duration,
    },
    /// Computed for this request, and kept; or on its way, and kept unless it breaks off.
    #[non_exhaustive]
    Stored {
        /// How long the answer is fresh.
        ttl: Duration,
    },
    /// Computed for this request and on its way; to be kept, if it turns out to be short enough.
    #[non_exhaustive]
    Recording {
        /// How long the answer is fresh.
        ttl: Duration,
    },
    /// Answered by the computation of another request that was under way.
    #[non_exhaustive]
    Collapsed {
        /// How long the answer is fresh.
        ttl: Duration,
    },
    /// Computed for this request, and not kept.
    #[non_exhaustive]
    NotStored {
        /// Why not, as an RFC 8941 token.
        reason: &'static str,
    },
    /// The cache stayed out of the way: the request has no name, or may not be answered from a cache.
    Bypassed,
}

impl CacheStatus {
    /// The member of `Cache-Status` (RFC 9211) that says so.
    pub(super) fn to_header(self) -> HeaderValue {
        // Longer than any of them, and on the stack: this is part of each hit.
        let mut text = [0; 96];
        let mut rest = &mut text[..];
        let _ = match self {
            CacheStatus::Hit { ttl } => write!(rest, "floodgate; hit; ttl={}", ttl.as_secs()),
            CacheStatus::Stale { over } => write!(rest, "floodgate; hit; ttl={}", ended(over)),
            CacheStatus::Bridged { over } => write!(rest, "floodgate; fwd=stale; ttl={}; detail=bridged", ended(over)),
            CacheStatus::Stored { ttl } => write!(rest, "floodgate; fwd=miss; stored; ttl={}", ttl.as_secs()),
            CacheStatus::Recording { ttl } => {
                write!(rest, "floodgate; fwd=miss; ttl={}; detail=recording", ttl.as_secs())
            }
            CacheStatus::Collapsed { ttl } => write!(rest, "floodgate; fwd=miss; collapsed; ttl={}", ttl.as_secs()),
            CacheStatus::NotStored { reason } => write!(rest, "floodgate; fwd=miss; detail={reason}"),
            CacheStatus::Bypassed => write!(rest, "floodgate; fwd=bypass"),
        };
        let left = rest.len();
        HeaderValue::from_bytes(&text[..text.len() - left]).unwrap_or(HeaderValue::from_static("floodgate"))
    }
}

/// The life of what has ended: in whole seconds, below zero.
fn ended(over: Duration) -> i64 {
    let seconds = over.as_secs().saturating_add(u64::from(over.subsec_nanos() > 0));
    i64::try_from(seconds).map_or(i64::MIN, |seconds| -seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said() {
        let ttl = Duration::from_millis(59_999);
        for (status, said) in [
            (CacheStatus::Hit { ttl }, "floodgate; hit; ttl=59"),
            (CacheStatus::Stale { over: ttl }, "floodgate; hit; ttl=-60"),
            (CacheStatus::Bridged { over: ttl }, "floodgate; fwd=stale; ttl=-60; detail=bridged"),
            (CacheStatus::Stored { ttl }, "floodgate; fwd=miss; stored; ttl=59"),
            (CacheStatus::Collapsed { ttl: Duration::ZERO }, "floodgate; fwd=miss; collapsed; ttl=0"),
            (CacheStatus::NotStored { reason: "no-store" }, "floodgate; fwd=miss; detail=no-store"),
            (CacheStatus::Bypassed, "floodgate; fwd=bypass"),
        ] {
            assert_eq!(status.to_header(), said);
        }
    }
}
