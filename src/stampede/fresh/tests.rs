use super::*;
use crate::name::announces_body;
use http::header::CACHE_CONTROL;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const DEFAULT: Duration = Duration::from_secs(60);

type Lines<'a> = &'a [(&'a str, &'a str)];

fn headers(lines: Lines<'_>) -> HeaderMap {
    lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn wall() -> SystemTime {
    NOW + Duration::from_secs(1_790_000_000)
}

fn at(offset: i64) -> String {
    let now = 1_790_000_000i64;
    httpdate::fmt_http_date(NOW + Duration::from_secs((now + offset) as u64))
}

fn judged_at(status: StatusCode, headers: &HeaderMap, access: Access, life: Duration, wall: SystemTime) -> Judged {
    let (lives, negative, chosen) = (Lives::without_grace(life), Duration::ZERO, None);
    storable(&Case { status, headers, access, wall, lives, negative, chosen })
}

type Judged = Result<Terms, Refusal>;

fn judged(status: u16, access: Access, lines: Lines<'_>) -> Judged {
    let status = StatusCode::from_u16(status).unwrap();
    judged_at(status, &headers(lines), access, DEFAULT, wall())
}

fn life(lines: Lines<'_>) -> Option<u64> {
    match judged(200, Access::Shared, lines) {
        Ok(terms) => Some(terms.lives.fresh.as_secs()),
        Err(_) => None,
    }
}

#[test]
fn requests() {
    use Access::{Bypass, Personal, Shared};
    let cases: &[(Lines<'_>, Access)] = &[
        (&[], Shared),
        (&[("accept", "*/*"), ("content-length", "0")], Shared),
        (&[("cache-control", "no-cache, max-age=0")], Shared),
        (&[("if-none-match", "\"a\"")], Shared),
        (&[("authorization", "Basic YTpi")], Personal),
        (&[("cookie", "")], Personal),
        (&[("proxy-authorization", "Basic YTpi")], Personal),
        (&[("range", "bytes=0-")], Bypass),
        (&[("if-range", "\"a\"")], Bypass),
        (&[("if-match", "\"a\"")], Bypass),
        (&[("if-unmodified-since", "yesterday")], Bypass),
        (&[("cache-control", "max-age=0, No-Store")], Bypass),
        (&[("cache-control", "no-store;x")], Bypass),
        (&[("upgrade", "websocket")], Bypass),
        (&[("transfer-encoding", "chunked")], Shared),
        (&[("cookie", "a=b"), ("range", "bytes=0-")], Bypass),
    ];
    for (lines, expected) in cases {
        assert_eq!(access(&headers(lines)), *expected, "{lines:?}");
    }
    for announcement in [("transfer-encoding", "chunked"), ("content-length", "3"), ("content-length", "no number")] {
        assert!(announces_body(&headers(&[announcement])), "{announcement:?}");
    }
    assert!(!announces_body(&headers(&[("content-length", "0"), ("cookie", "a=b")])));
}

#[test]
fn what_must_not_leak_is_not_stored() {
    use Access::{Bypass, Personal, Shared};
    #[rustfmt::skip]
    let cases: &[(u16, Access, Lines<'_>, &str)] = &[
        (200, Personal, &[], "personal"),
        (200, Personal, &[("cache-control", "max-age=60")], "personal"),
        (200, Personal, &[("cache-control", "max-age=60, must-revalidate")], "personal"),
        (200, Personal, &[("cache-control", "public=\"x\"")], "personal"),
        (200, Personal, &[("cache-control", "public"), ("set-cookie", "a=b")], "set-cookie"),
        (200, Bypass, &[("cache-control", "public, max-age=60")], "bypass"),
        (200, Shared, &[("set-cookie", "a=b")], "set-cookie"),
        (200, Shared, &[("cache-control", "private")], "private"),
        (200, Shared, &[("cache-control", "public, PRIVATE")], "private"),
        (200, Shared, &[("cache-control", "private=\"x, y\", max-age=60")], "private"),
        (200, Shared, &[("cache-control", "private=x")], "private"),
        (200, Shared, &[("cache-control", "no-store")], "no-store"),
        (200, Shared, &[("cache-control", "max-age=60"), ("cache-control", "no-store")], "no-store"),
        (200, Shared, &[("cache-control", ",,\t no-store ,")], "no-store"),
        (200, Shared, &[("cache-control", "x=\"\\\"\", no-store")], "no-store"),
        (200, Shared, &[("cache-control", "max-age=60, no-cache")], "no-cache"),
        (200, Shared, &[("cache-control", "no-cache=\"set-cookie\", max-age=60")], "no-cache"),
        (200, Shared, &[("pragma", "No-Cache")], "pragma-no-cache"),
        (200, Shared, &[("vary", "*")], "vary-any"),
        (200, Shared, &[("vary", "accept, *")], "vary-any"),
        (200, Shared, &[("vary", "accept"), ("vary", "*")], "vary-any"),
        (200, Shared, &[("vary", "two words")], "vary-any"),
        (206, Shared, &[("cache-control", "max-age=60")], "status"),
        (200, Shared, &[("content-range", "bytes 0-1/2")], "content-range"),
        (200, Shared, &[("content-type", "Text/Event-Stream ;charset=utf-8")], "stream"),
        (200, Shared, &[("cache-control", "s-maxage=0, max-age=60")], "no-freshness"),
        (200, Shared, &[("cache-control", "max-age=0")], "no-freshness"),
        (200, Shared, &[("expires", "0")], "no-freshness"),
        (200, Shared, &[("expires", &at(-1))], "no-freshness"),
        (200, Shared, &[("expires", &at(300)), ("date", &at(400))], "no-freshness"),
        (200, Shared, &[("expires", &at(10)), ("expires", "0")], "no-freshness"),
        (200, Shared, &[("cache-control", "max-age=60"), ("age", "60")], "aged"),
        (200, Shared, &[("cache-control", "max-age=60"), ("age", "0, 61")], "aged"),
        (200, Shared, &[("cache-control", "max-age=60"), ("age", "old")], "aged"),
        (200, Shared, &[("age", "60")], "aged"),
    ];
    for (status, access, lines, reason) in cases {
        let found = judged(*status, *access, lines);
        assert_eq!(found.unwrap_err().reason, *reason, "{status} {access:?} {lines:?}");
    }
}

#[test]
fn what_cannot_be_parsed_is_not_stored() {
    for value in [
        "max-age",
        "max-age=",
        "max-age=-1",
        "max-age=1.5",
        "max-age=60s",
        "max-age='60'",
        "max-age =60",
        "max-age= 60",
        "max-age=60, max-age=x",
        "max-age=\"6\\0\"",
        "max-age=60; private",
        "private; max-age=60",
        "max-age=60 no-store",
        "max-age=60, x=\"no-store",
        "x=\"\\\", no-store",
        "=, max-age=60",
        "\"max-age=60\"",
    ] {
        assert_eq!(life(&[("cache-control", value)]), None, "{value}");
    }
}

#[test]
fn life_is_the_first_that_is_said() {
    let (in_ten, in_thirty, ago) = (at(10), at(30), at(-20));
    let cases: &[(Lines<'_>, u64)] = &[
        (&[], 60),
        (&[("cache-control", "public")], 60),
        (&[("cache-control", "max-age=7")], 7),
        (&[("cache-control", "MAX-age=\"7\"")], 7),
        (&[("cache-control", "max-age=007,")], 7),
        (&[("cache-control", "x=\"s-maxage=9, max-age=8\", y, max-age=7")], 7),
        (&[("cache-control", "max-age=7, s-maxage=9")], 9),
        (&[("cache-control", "s-maxage=9"), ("cache-control", "max-age=7")], 9),
        (&[("cache-control", "max-age=9, max-age=7, max-age=8")], 7),
        (&[("cache-control", "max-age=99999999999999999999999999")], 1 << 31),
        (&[("cache-control", "max-age=2147483648")], 1 << 31),
        (&[("cache-control", "max-age=7"), ("expires", "0")], 7),
        (&[("cache-control", "max-age=7"), ("pragma", "no-cache")], 7),
        (&[("expires", &in_ten)], 10),
        (&[("expires", &in_ten), ("date", &ago)], 30),
        (&[("expires", &in_ten), ("date", "never")], 10),
        (&[("expires", &in_ten), ("expires", &in_thirty)], 10),
        (&[("cache-control", "max-age=7"), ("age", "2")], 5),
        (&[("expires", &in_thirty), ("age", "2")], 28),
        (&[("age", "1, 2"), ("age", "3")], 57),
    ];
    for (lines, expected) in cases {
        assert_eq!(life(lines), Some(*expected), "{lines:?}");
    }
}

#[test]
fn no_default_life_leaves_what_the_response_allows() {
    let of = |lines: Lines<'_>| {
        let lines = headers(lines);
        judged_at(StatusCode::OK, &lines, Access::Shared, Duration::ZERO, wall())
    };
    assert_eq!(of(&[]).unwrap_err().reason, "no-freshness");
    assert!(of(&[("cache-control", "max-age=1")]).is_ok());
}

#[test]
fn statuses() {
    let by_default = [200, 203, 204, 301, 308];
    let when_explicit = [300, 302, 303, 307, 404, 405, 410, 414, 451, 501];
    for status in 100..=999 {
        let stored = |lines: Lines<'_>| judged(status, Access::Shared, lines).is_ok();
        let default = by_default.contains(&status);
        let explicit = default || when_explicit.contains(&status);
        assert_eq!(stored(&[]), default, "{status}");
        assert_eq!(stored(&[("cache-control", "public")]), default, "{status}");
        assert_eq!(stored(&[("cache-control", "max-age=60")]), explicit, "{status}");
        assert_eq!(stored(&[("cache-control", "s-maxage=60")]), explicit, "{status}");
        assert_eq!(stored(&[("expires", &at(60))]), explicit, "{status}");
    }
}

#[test]
fn only_what_is_for_everyone_answers_personal_requests() {
    for (value, public) in [("max-age=60", false), ("public", true), ("s-maxage=60", true)] {
        let found = judged(200, Access::Shared, &[("cache-control", value), ("age", "1")]);
        let life = Duration::from_secs(59);
        assert_eq!(found, Ok(Terms { lives: Lives::without_grace(life), age: 1, public }), "{value}");
        let stored = judged(200, Access::Personal, &[("cache-control", value)]);
        assert_eq!(stored.is_ok(), public, "{value}");
    }
}

#[test]
fn vary_lists_names_once_and_in_order() {
    let of = |lines: Lines<'_>| {
        let names = vary(&headers(lines))?;
        Some(names.iter().map(|name| name.to_string()).collect::<Vec<_>>())
    };
    assert_eq!(of(&[]), Some(vec![]));
    assert_eq!(of(&[("vary", " , ")]), Some(vec![]));
    let lines = [("vary", "X-B,accept-Language ,"), ("vary", "accept, x-b")];
    let names = ["accept", "accept-language", "x-b"].map(String::from);
    assert_eq!(of(&lines), Some(names.to_vec()));
    assert_eq!(of(&[("vary", "accept, a b")]), None);
    assert_eq!(of(&[("vary", "accept"), ("vary", "*")]), None);
}

#[test]
fn grpc_is_a_success_only_with_status_zero() {
    let grpc = ("content-type", "application/GRPC+proto");
    let (zero, five) = (("grpc-status", "0"), ("grpc-status", "5"));
    let cases: &[(Lines<'_>, Option<Lines<'_>>, bool)] = &[
        (&[], None, true),
        (&[("content-type", "text/plain")], Some(&[]), true),
        (&[grpc], None, false),
        (&[grpc], Some(&[]), false),
        (&[grpc, zero], None, true),
        (&[grpc], Some(&[zero]), true),
        (&[grpc], Some(&[five]), false),
        (&[grpc, zero], Some(&[five]), false),
        (&[grpc, zero, five], None, false),
        (&[five], None, false),
        (&[("content-type", "application/grpc-web")], None, false),
    ];
    for (head, trailers, expected) in cases {
        let trailers = trailers.map(headers);
        let found = super::grpc(&headers(head), trailers.as_ref()) == Grpc::Fine;
        assert_eq!(found, *expected, "{head:?} {trailers:?}");
    }
}

fn bytes() -> impl Strategy<Value = HeaderValue> {
    let special = prop::sample::select(b"\",;= \\*0123456789abcmx-\t\xff".to_vec());
    prop::collection::vec(special, 0..40).prop_map(|b| HeaderValue::from_bytes(&b).unwrap())
}

fn fixed() -> ProptestConfig {
    ProptestConfig { cases: 256, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(fixed())]

    #[test]
    fn no_header_panics(control in bytes(), other in bytes(), date in "[A-Za-z0-9 :,]{0,40}") {
        let date = HeaderValue::from_str(&date).unwrap();
        let mut lines = HeaderMap::new();
        for name in [CACHE_CONTROL, AGE, VARY, PRAGMA, CONTENT_TYPE, EXPIRES] {
            lines.append(name.clone(), control.clone());
            lines.append(name, other.clone());
        }
        access(&lines);
        announces_body(&lines);
        vary(&lines);
        grpc(&lines, Some(&lines));
        for wall in [NOW, wall()] {
            lines.insert(EXPIRES, date.clone());
            let _ = judged_at(StatusCode::OK, &lines, Access::Shared, DEFAULT, wall);
            lines.insert(DATE, date.clone());
            let _ = judged_at(StatusCode::OK, &lines, Access::Shared, DEFAULT, wall);
        }
    }

    /// A forbidding directive holds wherever it stands and whatever stands around it.
    #[test]
    fn forbidding_is_never_overheard(
        before in bytes(),
        after in bytes(),
        forbids in prop::sample::select(vec!["no-store", "private", "no-cache", "max-age=0"]),
    ) {
        let mut lines = HeaderMap::new();
        lines.append(CACHE_CONTROL, before);
        lines.append(CACHE_CONTROL, HeaderValue::from_static(forbids));
        lines.append(CACHE_CONTROL, after);
        let found = judged_at(StatusCode::OK, &lines, Access::Shared, DEFAULT, wall());
        let s_maxage = Directives::of(&lines).s_maxage.is_some();
        prop_assert!(found.is_err() || (forbids == "max-age=0" && s_maxage));
    }

    /// More said never makes a response live longer or be seen by more, as long as the more is only numbers.
    #[test]
    fn the_strictest_of_several_counts(ages in prop::collection::vec(0u64..1 << 40, 1..5)) {
        let mut lines = HeaderMap::new();
        for age in &ages {
            lines.append(CACHE_CONTROL, format!("max-age={age}").parse().unwrap());
        }
        let least = (*ages.iter().min().unwrap()).min(FOREVER.into());
        prop_assert_eq!(Directives::of(&lines).life(), Some(Duration::from_secs(least)));
    }
}

const HOUR: Duration = Duration::from_secs(3600);

/// With an hour of both graces by the layer.
fn graced(lines: Lines<'_>) -> Judged {
    let lives = Lives { fresh: DEFAULT, revalidate: HOUR, if_error: HOUR };
    let (negative, chosen, headers) = (Duration::ZERO, None, headers(lines));
    let access = Access::Shared;
    storable(&Case { status: StatusCode::OK, headers: &headers, access, wall: wall(), lives, negative, chosen })
}

#[test]
fn graces() {
    let cases: &[(Lines<'_>, [u64; 3])] = &[
        (&[], [60, 3600, 3600]),
        (&[("cache-control", "max-age=5")], [5, 3600, 3600]),
        (&[("cache-control", "max-age=5, stale-while-revalidate=7")], [5, 7, 3600]),
        (&[("cache-control", "max-age=5, Stale-If-Error=\"8\", stale-while-revalidate=0")], [5, 0, 8]),
        (&[("cache-control", "max-age=5, stale-if-error=8, stale-if-error=9")], [5, 3600, 8]),
        (&[("cache-control", "max-age=5, stale-if-error=soon")], [5, 3600, 0]),
        (&[("cache-control", "max-age=5, must-revalidate, stale-if-error=8")], [5, 0, 0]),
        (&[("cache-control", "max-age=5, proxy-revalidate")], [5, 0, 0]),
        (&[("cache-control", "s-maxage=5")], [5, 0, 0]),
        (&[("cache-control", "s-maxage=5, stale-while-revalidate=7")], [5, 7, 0]),
        (&[("cache-control", "max-age=0, stale-while-revalidate=7")], [0, 7, 3600]),
        (&[("cache-control", "max-age=5, stale-while-revalidate=7"), ("age", "9")], [0, 3, 3596]),
        (&[("cache-control", "max-age=5"), ("age", "2")], [3, 3600, 3600]),
    ];
    for (lines, [fresh, revalidate, if_error]) in cases {
        let [fresh, revalidate, if_error] = [fresh, revalidate, if_error].map(|seconds| Duration::from_secs(*seconds));
        assert_eq!(graced(lines).unwrap().lives, Lives { fresh, revalidate, if_error }, "{lines:?}");
    }
    for (lines, reason) in [
        (&[("cache-control", "max-age=0")][..], "no-freshness"),
        (&[("cache-control", "max-age=5"), ("age", "9")], "aged"),
        (&[("cache-control", "max-age=0, must-revalidate, stale-while-revalidate=7")], "no-freshness"),
        (&[("cache-control", "max-age=5, stale-while-revalidate=7, stale-if-error=7"), ("age", "12")], "aged"),
    ] {
        assert_eq!(graced(lines).unwrap_err().reason, reason, "{lines:?}");
    }
}

#[test]
fn lives_that_are_chosen_and_those_of_what_is_not_there() {
    let of = |status: u16, lines: Lines<'_>, negative: u64, chosen: Option<u64>| {
        let (status, headers) = (StatusCode::from_u16(status).unwrap(), headers(lines));
        let (negative, chosen) = (Duration::from_secs(negative), chosen.map(Duration::from_secs));
        let (access, lives) = (Access::Shared, Lives { fresh: DEFAULT, revalidate: HOUR, if_error: HOUR });
        storable(&Case { status, headers: &headers, access, wall: wall(), lives, negative, chosen })
            .map(|terms| terms.lives.fresh.as_secs())
            .map_err(|refusal| (refusal.reason, refusal.kind))
    };
    let max_age = &[("cache-control", "max-age=5")];
    assert_eq!(of(404, &[], 0, None), Err(("status", Kind::Uncacheable)));
    assert_eq!(of(404, &[], 9, None), Ok(9));
    assert_eq!(of(410, max_age, 9, None), Ok(5), "its own word counts");
    assert_eq!(of(403, &[], 9, Some(9)), Err(("status", Kind::Uncacheable)));
    assert_eq!(of(500, &[], 9, Some(9)), Err(("failure", Kind::Failure)));
    assert_eq!(of(200, max_age, 0, Some(9)), Ok(9), "it was chosen for this very response");
    assert_eq!(of(302, &[], 0, Some(9)), Ok(9));
    assert_eq!(of(200, &[], 0, Some(0)), Err(("life", Kind::Uncacheable)));
    assert_eq!(of(200, &[("cache-control", "private")], 0, Some(9)), Err(("private", Kind::Uncacheable)));
    assert_eq!(of(200, &[("set-cookie", "a=b")], 0, Some(9)), Err(("set-cookie", Kind::Uncacheable)));
}

#[test]
fn grpc_statuses() {
    let judge =
        |status: &str| grpc(&headers(&[("content-type", "application/grpc+proto"), ("grpc-status", status)]), None);
    assert_eq!(
        (judge("0"), judge("5"), judge("14"), judge("7")),
        (Grpc::Fine, Grpc::NotFound, Grpc::Failure, Grpc::Other)
    );
    let both = grpc(&headers(&[("grpc-status", "0")]), Some(&headers(&[("grpc-status", "14")])));
    assert_eq!(both, Grpc::Failure, "the worst counts");
    assert_eq!(grpc(&headers(&[("content-type", "application/grpc")]), None), Grpc::Other, "it has none");
    assert_eq!(grpc(&headers(&[]), None), Grpc::Fine);
}

proptest! {
    #![proptest_config(fixed())]

    #[test]
    fn jitter_only_shortens(life in 0..1_u64 << 60, share in 0.0..=1.0_f64, draw in 0.0..1.0_f64) {
        prop_assert!(super::jittered(Duration::MAX, share, draw) <= Duration::from_secs(FOREVER.into()));
        let life = Duration::from_nanos(life);
        let jittered = jittered(life, share, draw);
        prop_assert!(jittered <= life + Duration::from_nanos(1));
        prop_assert!(jittered.as_secs_f64() >= life.as_secs_f64() * (1.0 - share) - 1e-6);
    }
}
