//! A tag on every answer that says which path it is of, so that a path can be purged for all hosts, queries and variants.
//!
//! The cache reads tags from the response's `Cache-Tag`. What is added there below the cache is taken off above it.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt::Write as _;

const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");
const PREFIX: &str = "floodgate-path:";

/// The tag of all answers to a path, however that is percent-encoded. A query does not count.
pub(crate) fn tag(path: &str) -> String {
    let mut tag = PREFIX.to_owned();
    let mut rest = path.split('?').next().unwrap_or_default().as_bytes();
    while let [first, after @ ..] = rest {
        let (byte, after) = match rest {
            [b'%', high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (hex(*high) << 4 | hex(*low), after)
            }
            // The admin's query has turned a plus into a space already.
            [b'+', after @ ..] => (b' ', after),
            _ => (*first, after),
        };
        rest = after;
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            tag.push(byte.into());
        } else {
            let _ = write!(tag, "%{byte:02x}");
        }
    }
    tag
}

/// The value of a hexadecimal digit.
fn hex(digit: u8) -> u8 {
    (digit & 0x0f) + if digit.is_ascii_alphabetic() { 9 } else { 0 }
}

/// Adds a tag, before the upstream's own: the cache keeps so many of an answer, and this one is needed.
pub(crate) fn add(headers: &mut HeaderMap, tag: &str) {
    let own: Vec<HeaderValue> = headers.get_all(CACHE_TAG).iter().cloned().collect();
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(CACHE_TAG, tag);
        for line in own {
            headers.append(CACHE_TAG, line);
        }
    }
}

/// Takes the added tag off.
pub(crate) fn take_off(headers: &mut HeaderMap) {
    let own = |line: &&HeaderValue| !line.as_bytes().starts_with(PREFIX.as_bytes());
    let own: Vec<HeaderValue> = headers.get_all(CACHE_TAG).iter().filter(own).cloned().collect();
    headers.remove(CACHE_TAG);
    for line in own {
        headers.append(CACHE_TAG, line);
    }
}
