//! Refusals over gRPC: a status in a trailers-only response, with the error details that stock clients decode.
//!
//! `grpc-status-details-bin` is a `google.rpc.Status` whose details are a `google.rpc.RetryInfo` and a
//! `google.rpc.QuotaFailure` (googleapis, google/rpc/status.proto and error_details.proto).

use super::quota_headers::Limits;
use crate::{
    body::Body,
    rejection::{Reason, Rejection},
    varint,
};
use http::{HeaderValue, Response, StatusCode, header};
use std::{fmt::Write as _, time::Duration};

/// The longest duration that protobuf has, in seconds: 10,000 years.
const LONGEST: u64 = 315_576_000_000;

/// A trailers-only response: one block of headers, no body, status 200.
pub(super) fn refuse<B>(content_type: HeaderValue, code: u8, why: &Rejection) -> Response<Body<B>> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert("grpc-status", u16::from(code).into());
    let mut put = |header: &'static str, value: String| {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(header, value);
        }
    };
    let message = why.to_string();
    put("grpc-message", percent_encoded(&message));
    let details = details(why);
    if !details.is_empty() {
        put("grpc-status-details-bin", base64(&status(code, &message, &details)));
    }
    if let Some(pushback) = pushback(why) {
        headers.insert("grpc-retry-pushback-ms", pushback);
    }
    response
}

/// When the client's library may call again by itself; -1 is never (gRFC A6). Libraries read 32 bits.
fn pushback(why: &Rejection) -> Option<HeaderValue> {
    match (why.retry_after, why.reason) {
        (Some(delay), _) => {
            let millis = i32::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
            Some(millis.into())
        }
        (None, Reason::TooCostly | Reason::Denied | Reason::Lost) => Some((-1).into()),
        _ => None,
    }
}

/// The values of a percent-encoded `grpc-message`, which leave only `%` and what is not printable ASCII to be encoded.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

/// `google.rpc.Status { int32 code = 1; string message = 2; repeated Any details = 3; }`
fn status(code: u8, message: &str, details: &[Vec<u8>]) -> Vec<u8> {
    let mut status = Vec::with_capacity(256);
    integer(&mut status, 1, code.into());
    bytes(&mut status, 2, message.as_bytes());
    for detail in details {
        bytes(&mut status, 3, detail);
    }
    status
}

fn details(why: &Rejection) -> Vec<Vec<u8>> {
    let retry = why.retry_after.map(|delay| any("RetryInfo", &retry_info(delay)));
    let quota = Limits::refused(why).map(|limits| any("QuotaFailure", &quota_failure(&why.scope, limits)));
    retry.into_iter().chain(quota).collect()
}

/// `google.protobuf.Any { string type_url = 1; bytes value = 2; }`
fn any(kind: &str, value: &[u8]) -> Vec<u8> {
    let mut any = Vec::new();
    bytes(&mut any, 1, format!("type.googleapis.com/google.rpc.{kind}").as_bytes());
    bytes(&mut any, 2, value);
    any
}

/// `RetryInfo { Duration retry_delay = 1; }`, `Duration { int64 seconds = 1; int32 nanos = 2; }`
fn retry_info(delay: Duration) -> Vec<u8> {
    let delay = delay.min(Duration::from_secs(LONGEST));
    let (mut duration, mut info) = (Vec::new(), Vec::new());
    integer(&mut duration, 1, delay.as_secs());
    integer(&mut duration, 2, delay.subsec_nanos().into());
    bytes(&mut info, 1, &duration);
    info
}

/// `QuotaFailure { repeated Violation violations = 1; }`, `Violation { string subject = 1; string description = 2; }`
fn quota_failure(scope: &str, limits: Limits<'_>) -> Vec<u8> {
    let (mut violation, mut failure) = (Vec::new(), Vec::new());
    bytes(&mut violation, 1, scope.as_bytes());
    bytes(&mut violation, 2, limits.violation().as_bytes());
    bytes(&mut failure, 1, &violation);
    failure
}

/// A field of wire type 0. Zero is what an absent one reads as.
fn integer(message: &mut Vec<u8>, field: u8, value: u64) {
    if value > 0 {
        message.push(field << 3);
        varint::put(message, value);
    }
}

/// A field of wire type 2: a string, bytes, or a message.
fn bytes(message: &mut Vec<u8>, field: u8, value: &[u8]) {
    message.push(field << 3 | 2);
    varint::put(message, value.len() as u64);
    message.extend_from_slice(value);
}

/// RFC 4648, section 4, without padding, as gRPC asks for.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().enumerate().fold(0, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        // n bytes fill n + 1 digits.
        for digit in 0..=group.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * digit) & 63) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_the_rfc_has_it() {
        // RFC 4648, section 10, less the padding.
        let vectors =
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("foobar", "Zm9vYmFy")];
        for (bytes, text) in vectors {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xef, 0xff, 0xff]), "++///w");
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent_encoded("100 % \"of\" it\n~ \u{e9}\u{7f}"), "100 %25 \"of\" it%0A~ %C3%A9%7F");
    }

    #[test]
    fn varints_of_every_length() {
        for (value, encoded) in [(0, &[0][..]), (127, &[127]), (128, &[128, 1]), (300, &[0xac, 2])] {
            let mut message = Vec::new();
            varint::put(&mut message, value);
            assert_eq!(message, encoded);
        }
        let mut longest = Vec::new();
        varint::put(&mut longest, u64::MAX);
        assert_eq!(longest, [&[0xff; 9][..], &[1]].concat());
    }
}
