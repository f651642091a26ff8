//! How long callers still wait.

use http::Request;
use std::time::Duration;

/// How long the caller of a request still waits for its answer; see [`BarrierLayer::deadline`](super::BarrierLayer::deadline).
pub trait Deadline<Req> {
    /// From now on; `None`: as long as it takes.
    fn remaining(&self, request: &Req) -> Option<Duration>;
}

impl<Req, F: Fn(&Req) -> Option<Duration>> Deadline<Req> for F {
    fn remaining(&self, request: &Req) -> Option<Duration> {
        self(request)
    }
}

/// Callers wait as long as it takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDeadline;

impl<Req> Deadline<Req> for NoDeadline {
    fn remaining(&self, _: &Req) -> Option<Duration> {
        None
    }
}

/// How long the caller of a gRPC method still waits, from the header `grpc-timeout` (gRPC over HTTP/2: at most eight
/// digits, and a unit of `H`, `M`, `S`, `m`, `u` or `n`). `None` if there is none, several, or something else: such a call
/// waits as the layer says.
///
/// tonic's servers and channels end a call at its deadline by themselves, which gives up its place in the line. With
/// this it does not join a line that is too long for it, and is refused at once.
pub fn grpc_timeout<B>(request: &Request<B>) -> Option<Duration> {
    let mut values = request.headers().get_all("grpc-timeout").iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (unit, digits) = value.as_bytes().split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let count = digits.iter().fold(0, |count, digit| 10 * count + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(3_600 * count),
        b'M' => Duration::from_secs(60 * count),
        b'S' => Duration::from_secs(count),
        b'm' => Duration::from_millis(count),
        b'u' => Duration::from_micros(count),
        b'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::*, test_runner::RngSeed};

    fn timeout(values: &[&[u8]]) -> Option<Duration> {
        let mut request = Request::new(());
        for value in values {
            request.headers_mut().append("grpc-timeout", http::HeaderValue::from_bytes(value).unwrap());
        }
        grpc_timeout(&request)
    }

    #[test]
    fn timeouts_as_grpc_writes_them() {
        let nanos = [("2H", 7_200_000_000_000), ("3M", 180_000_000_000), ("99999999S", 99_999_999_000_000_000)];
        for (text, nanos) in nanos.into_iter().chain([("1m", 1_000_000), ("50u", 50_000), ("00000007n", 7), ("0n", 0)])
        {
            assert_eq!(timeout(&[text.as_bytes()]), Some(Duration::from_nanos(nanos)), "{text}");
        }
        for text in ["", "S", "1", "1s", "100000000S", "+1S", "-1S", "1.5S", " 1S", "1 S", "1SS", "\u{661}S"] {
            assert_eq!(timeout(&[text.as_bytes()]), None, "{text}");
        }
        assert_eq!(timeout(&[]), None);
        assert_eq!(timeout(&[b"1S", b"1S"]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(6), failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_bytes_are_read(value in prop::collection::vec(32u8..127, 0..12)) {
            let _ = timeout(&[&value]);
        }
    }
}
