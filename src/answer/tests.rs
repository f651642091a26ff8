use super::*;
use crate::{
    body::Body,
    decision::{Decision, Quota},
    rejection::{Reason, Rejection},
};
use ::http::{HeaderMap, Request, Response};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use sfv::{BareItem, List, ListEntry, Parser};
use std::{convert::Infallible, ops::ControlFlow, sync::Arc, time::Duration};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const SECOND: Duration = Duration::from_secs(1);

/// `limit` per `window` seconds, `remaining` left, whole again after `reset` seconds.
fn quota(name: &str, limit: u32, window: u32, remaining: u32, reset: u32) -> Quota {
    let name = (!name.is_empty()).then(|| name.into());
    Quota { name, limit, remaining, reset: reset * SECOND, window: window * SECOND }
}

fn decision(scope: &str, quota: Quota, others: Vec<Quota>) -> Decision {
    Decision { others, ..Decision::new(&scope.into(), quota) }
}

fn rejection(reason: Reason, retry_after: Option<Duration>, quota: Option<Quota>) -> Rejection {
    Rejection { retry_after, quota, ..Rejection::new(reason, &"api".into()) }
}

fn refuse(answer: &Http, content_type: &str, why: Rejection) -> Response<Body<String>> {
    let request = Request::builder().header("content-type", content_type).body(()).unwrap();
    let refused: ControlFlow<Result<_, Infallible>> = answer.refuse(&request, why);
    let ControlFlow::Break(Ok(response)) = refused else { panic!("not refused") };
    response
}

fn admit(answer: &Http, response: Response<String>, decision: Decision) -> Response<Body<String>> {
    let admission = Admission { decision: Some(decision), ..Admission::default() };
    Answer::<Request<()>, _, Infallible>::admit(answer, response, admission)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

fn list(field: &str) -> List {
    Parser::new(field).parse().unwrap_or_else(|error| panic!("{field}: {error}"))
}

/// The name and the parameters' integers of each item.
fn items(field: &str) -> Vec<(String, Vec<i64>)> {
    let item = |entry: ListEntry| {
        let ListEntry::Item(item) = entry else { panic!("not an item: {entry:?}") };
        let BareItem::String(name) = &item.bare_item else { panic!("not a string: {item:?}") };
        let integers = item.params.values().map(|value| value.as_integer().unwrap().into()).collect();
        (name.as_str().to_owned(), integers)
    };
    list(field).into_iter().map(item).collect()
}

fn problem(response: Response<Body<String>>) -> serde_json::Value {
    use http_body_util::BodyExt;
    let body = tokio_test::block_on(response.into_body().collect()).unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

#[test]
fn the_drafts_own_examples() {
    // Sections 3, 3.2, 4.2 and appendix B of draft-ietf-httpapi-ratelimit-headers-11. Two fields of one example where it
    // has both; otherwise the other was made up.
    let examples = [
        (
            vec![quota("burst", 100, 60, 1, 1), quota("daily", 1000, 86400, 1, 1)],
            "ratelimit-policy",
            r#""burst";q=100;w=60,"daily";q=1000;w=86400"#,
        ),
        (
            vec![quota("permin", 50, 60, 1, 1), quota("perhr", 1000, 3600, 1, 1)],
            "ratelimit-policy",
            r#""permin";q=50;w=60,"perhr";q=1000;w=3600"#,
        ),
        (vec![quota("default", 100, 10, 1, 1)], "ratelimit-policy", r#""default";q=100;w=10"#),
        (vec![quota("default", 100, 60, 50, 30)], "ratelimit", r#""default";r=50;t=30"#),
        (vec![quota("dayLimit", 5000, 86400, 100, 36000)], "ratelimit", r#""dayLimit";r=100;t=36000"#),
        (vec![quota("basic", 100, 60, 60, 58)], "ratelimit-policy", r#""basic";q=100;w=60"#),
        (vec![quota("basic", 100, 60, 60, 58)], "ratelimit", r#""basic";r=60;t=58"#),
        (vec![quota("fixedwindow", 100, 60, 99, 50)], "ratelimit", r#""fixedwindow";r=99;t=50"#),
        (vec![quota("dynamic", 15, 20, 0, 20)], "ratelimit-policy", r#""dynamic";q=15;w=20"#),
        (vec![quota("dynamic", 15, 20, 0, 20)], "ratelimit", r#""dynamic";r=0;t=20"#),
    ];
    for (mut quotas, field, example) in examples {
        let told = decision("api", quotas.remove(0), quotas);
        let response = admit(&Http::new().quota_headers(), Response::default(), told);
        assert_eq!(list(text(response.headers(), field).unwrap()), list(example));
    }

    // Section 5.1 and appendix B.1.4.
    let why = rejection(Reason::Throttled, Some(5 * SECOND), Some(quota("default", 100, 60, 0, 5)));
    let refused = refuse(&Http::new(), "text/plain", why);
    assert_eq!((refused.status().as_u16(), text(refused.headers(), "retry-after")), (429, Some("5")));
    assert_eq!(text(refused.headers(), "ratelimit"), Some(r#""default";r=0;t=5"#));
    let problem = problem(refused);
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(problem["violated-policies"], serde_json::json!(["default"]));
    assert_eq!(problem["status"], 429);
}

#[test]
fn each_reason_in_its_own_words() {
    const TYPES: &str = "https://iana.org/assignments/http-problem-types#";
    let spent = || Some(quota("", 10, 60, 0, 60));
    let second = Some(SECOND);
    let table = [
        (Reason::Throttled, second, spent(), 429, Some("quota-exceeded"), "Quota Exceeded", Code::ResourceExhausted),
        (Reason::TooCostly, None, spent(), 429, Some("quota-exceeded"), "Quota Exceeded", Code::ResourceExhausted),
        (Reason::QueueFull, second, spent(), 429, Some("quota-exceeded"), "Quota Exceeded", Code::ResourceExhausted),
        (
            Reason::Blocked,
            second,
            spent(),
            429,
            Some("abnormal-usage-detected"),
            "Abnormal Usage Detected",
            Code::ResourceExhausted,
        ),
        (
            Reason::Blocked,
            second,
            None,
            429,
            Some("abnormal-usage-detected"),
            "Abnormal Usage Detected",
            Code::ResourceExhausted,
        ),
        (Reason::Denied, None, None, 403, None, "Forbidden", Code::PermissionDenied),
        (Reason::QueueFull, second, None, 503, None, "Service Unavailable", Code::Unavailable),
        (Reason::Busy, second, None, 503, None, "Service Unavailable", Code::Unavailable),
        (Reason::Lost, second, None, 503, None, "Service Unavailable", Code::Aborted),
        (Reason::CacheFailed, second, None, 503, None, "Service Unavailable", Code::Unavailable),
    ];
    for (reason, retry_after, quota, status, kind, title, code) in table {
        let why = rejection(reason, retry_after, quota);
        let limited = why.quota.is_some();
        let words = why.to_string();

        let refused = refuse(&Http::new(), "application/json", why.clone());
        assert_eq!(refused.status().as_u16(), status, "{reason:?}");
        assert_eq!(text(refused.headers(), "retry-after"), retry_after.map(|_| "1"), "{reason:?}");
        assert_eq!(refused.headers().contains_key("ratelimit"), limited, "{reason:?}");
        assert_eq!(refused.extensions().get(), Some(&why));
        let problem = problem(refused);
        let mut expected = serde_json::json!({ "title": title, "status": status, "detail": words });
        if let Some(kind) = kind {
            expected["type"] = format!("{TYPES}{kind}").into();
        }
        if limited {
            expected["violated-policies"] = serde_json::json!(["api"]);
        }
        assert_eq!(problem, expected, "{reason:?}");

        let refused = refuse(&Http::new(), "application/grpc+proto", why.clone());
        assert_eq!(
            (refused.status().as_u16(), text(refused.headers(), "content-type")),
            (200, Some("application/grpc+proto"))
        );
        assert!(hyper::body::Body::is_end_stream(refused.body()), "trailers only");
        assert!(!refused.headers().contains_key("retry-after") && !refused.headers().contains_key("ratelimit"));
        let pushback = match reason {
            Reason::TooCostly | Reason::Denied => "-1",
            _ => "1000",
        };
        assert_eq!(text(refused.headers(), "grpc-retry-pushback-ms"), Some(pushback), "{reason:?}");
        let told = Status::from_header_map(refused.headers()).unwrap();
        assert_eq!((told.code(), told.message()), (code, words.as_str()));
        assert_eq!(refused.headers().contains_key("grpc-status-details-bin"), reason != Reason::Denied);
        let details = told.check_error_details().unwrap();
        assert_eq!(details.retry_info().and_then(|info| info.retry_delay), retry_after, "{reason:?}");
        let violations = details.quota_failure().map_or(&[][..], |failure| &failure.violations);
        let violations: Vec<_> = violations.iter().map(|told| (&*told.subject, &*told.description)).collect();
        assert_eq!(violations, if limited { vec![("api", r#"limit "api" allows 10 in 60s"#)] } else { vec![] });
    }
}

#[test]
fn policies_stay_as_they_are_whichever_limit_is_the_tightest() {
    let second = |left| quota("", 10, 1, left, 1);
    let hour = |left| quota("", 1000, 3600, left, 3000);
    let named = |left| quota("tokens", 500, 60, left, 30);
    let answer = Http::new().quota_headers();
    let policy = r#""api-1";q=10;w=1, "tokens";q=500;w=60, "api-2";q=1000;w=3600"#;
    let state = r#""api-1";r=3;t=1, "tokens";r=9;t=30, "api-2";r=7;t=3000"#;
    for (tightest, others) in [
        (second(3), vec![named(9), hour(7)]),
        (hour(7), vec![second(3), named(9)]),
        (named(9), vec![hour(7), second(3)]),
    ] {
        let response = admit(&answer, Response::default(), decision("api", tightest.clone(), others.clone()));
        assert_eq!(text(response.headers(), "ratelimit-policy"), Some(policy));
        assert_eq!(text(response.headers(), "ratelimit"), Some(state));

        let name = tightest.name.as_deref().unwrap_or(if tightest.limit == 10 { "api-1" } else { "api-2" }).to_owned();
        let why = Rejection { others, ..rejection(Reason::Throttled, Some(SECOND), Some(tightest)) };
        let refused = refuse(&answer, "text/plain", why);
        assert_eq!(text(refused.headers(), "ratelimit-policy"), Some(policy));
        assert_eq!(problem(refused)["violated-policies"], serde_json::json!([name]));
    }
    // Limits of one size have a name each all the same, the tightest the first.
    let response = admit(&answer, Response::default(), decision("api", second(3), vec![hour(7), second(9)]));
    assert_eq!(text(response.headers(), "ratelimit"), Some(r#""api-1";r=3;t=1, "api-2";r=9;t=1, "api-3";r=7;t=3000"#));
    // Beside named ones, a single unnamed limit needs no number.
    let response = admit(&answer, Response::default(), decision("api", second(3), vec![named(9)]));
    assert_eq!(text(response.headers(), "ratelimit"), Some(r#""api";r=3;t=1, "tokens";r=9;t=30"#));
}

#[test]
fn a_refusal_names_one_time() {
    // Half a budget is left, too little for this request: it fits after 2.5 s, and all is back after 30 s.
    let why = rejection(Reason::Throttled, Some(Duration::from_millis(2_500)), Some(quota("", 10, 60, 5, 30)));
    let refused = refuse(&Http::new().x_ratelimit(), "text/plain", why);
    assert_eq!(text(refused.headers(), "retry-after"), Some("3"));
    assert_eq!(text(refused.headers(), "ratelimit"), Some(r#""api";r=5;t=3"#));
    assert_eq!(text(refused.headers(), "x-ratelimit-reset"), Some("3"));

    // Who is blocked has nothing, whatever the budget would be.
    let why = rejection(Reason::Blocked, Some(3_600 * SECOND), Some(quota("", 10, 60, 5, 30)));
    let refused = refuse(&Http::new(), "text/plain", why);
    assert_eq!(text(refused.headers(), "ratelimit"), Some(r#""api";r=0;t=3600"#));

    let never = rejection(Reason::TooCostly, None, Some(quota("", 10, 60, 5, 30)));
    let refused = refuse(&Http::new(), "text/plain", never);
    assert_eq!(text(refused.headers(), "ratelimit"), Some(r#""api";r=5;t=30"#));
}

#[test]
fn x_ratelimit_is_of_the_tightest_limit() {
    let told = |response: &Response<Body<String>>| {
        ["limit", "remaining", "reset"].map(|part| {
            let values: Vec<_> = response.headers().get_all(format!("x-ratelimit-{part}")).iter().cloned().collect();
            values.iter().map(|value| value.to_str().unwrap().parse::<u32>().unwrap()).collect::<Vec<_>>()
        })
    };
    let budget = |left| decision("api", quota("", 10, 60, left, 30), vec![quota("", 1000, 3600, 900, 200)]);
    let answer = Http::new().x_ratelimit();
    assert_eq!(
        told(&admit(&answer, Response::default(), budget(4))),
        [const { Vec::<u32>::new() }; 3],
        "refusals only"
    );
    let answer = answer.quota_headers();
    assert_eq!(told(&admit(&answer, Response::default(), budget(4))), [vec![10], vec![4], vec![30]]);
    // Around another layer, the tighter one is told of.
    for (inner, left) in [("3", 3), ("5", 4), ("many", 4)] {
        let response = Response::builder()
            .header("x-ratelimit-limit", "10")
            .header("x-ratelimit-remaining", inner)
            .header("x-ratelimit-reset", "30")
            .body(String::new())
            .unwrap();
        assert_eq!(told(&admit(&answer, response, budget(4))), [vec![10], vec![left], vec![30]]);
    }
    let why = rejection(Reason::Throttled, Some(6 * SECOND), Some(quota("", 10, 60, 0, 60)));
    assert_eq!(told(&refuse(&answer, "text/plain", why)), [vec![10], vec![0], vec![6]]);
}

#[test]
fn numbers_beyond_what_the_formats_hold() {
    let endless = Quota { reset: Duration::MAX, window: Duration::MAX, ..quota("", u32::MAX, 1, u32::MAX, 1) };
    let why = rejection(Reason::Throttled, Some(Duration::MAX), Some(endless));
    let refused = refuse(&Http::new().x_ratelimit(), "text/plain", why.clone());
    let greatest = 999_999_999_999_999;
    let [policy, state] = ["ratelimit-policy", "ratelimit"].map(|field| items(text(refused.headers(), field).unwrap()));
    assert_eq!(policy, [("api".to_owned(), vec![u32::MAX.into(), greatest])]);
    assert_eq!(state, [("api".to_owned(), vec![u32::MAX.into(), greatest])]);
    assert_eq!(text(refused.headers(), "retry-after"), Some("18446744073709551615"));

    let refused = refuse(&Http::new(), "application/grpc", why);
    assert_eq!(text(refused.headers(), "grpc-retry-pushback-ms"), Some("2147483647"));
    let details = Status::from_header_map(refused.headers()).unwrap().check_error_details().unwrap();
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(315_576_000_000)));

    let instant = Quota { window: Duration::from_nanos(1), ..quota("", 1, 1, 1, 0) };
    let response = admit(&Http::new().quota_headers(), Response::default(), decision("api", instant, vec![]));
    assert_eq!(text(response.headers(), "ratelimit-policy"), Some(r#""api";q=1;w=1"#), "zero is no window");
}

/// What was percent-encoded, as it was.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            _ => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Default::default() })]

    /// Whatever limits and scopes are called, every parser reads those names and nothing else.
    #[test]
    fn hostile_names(
        scope in "[^%]{0,24}",
        names in prop::collection::vec(prop::option::of("[^%]{0,24}|[\"\\\\,;=\r\n\t\0\u{7f} ]{1,8}"), 1..4),
    ) {
        let quotas: Vec<Quota> = names.iter().zip(1..).map(|(name, at)| Quota {
            name: name.as_deref().map(Arc::from),
            ..quota("", 10 * at, 60 * at, 0, 60)
        }).collect();
        let unnamed = names.iter().filter(|name| name.is_none()).count();
        let mut number = 0;
        let expected: Vec<String> = names.iter().map(|name| name.clone().unwrap_or_else(|| {
            number += 1;
            if unnamed == 1 { scope.clone() } else { format!("{scope}-{number}") }
        })).collect();

        let why = Rejection {
            quota: Some(quotas[0].clone()),
            others: quotas[1..].to_vec(),
            retry_after: Some(60 * SECOND),
            ..Rejection::new(Reason::Throttled, &scope.as_str().into())
        };
        let refused = refuse(&Http::new(), "text/plain", why.clone());
        for field in ["ratelimit-policy", "ratelimit"] {
            let items = items(text(refused.headers(), field).unwrap());
            prop_assert_eq!(items.iter().map(|(name, _)| decoded(name)).collect::<Vec<_>>(), expected.clone());
            for ((_, integers), at) in items.iter().zip(1..) {
                let told = if field == "ratelimit" { [0, 60] } else { [10 * at, 60 * at] };
                prop_assert_eq!(&integers[..], told);
            }
        }
        let problem = problem(refused);
        let violated = problem["violated-policies"].as_array().unwrap();
        prop_assert_eq!(violated.len(), 1);
        prop_assert_eq!(decoded(violated[0].as_str().unwrap()), expected[0].as_str());

        let refused = refuse(&Http::new(), "application/grpc", why);
        let details = Status::from_header_map(refused.headers()).unwrap().check_error_details().unwrap();
        prop_assert_eq!(&details.quota_failure().unwrap().violations[0].subject, &scope);
    }
}
