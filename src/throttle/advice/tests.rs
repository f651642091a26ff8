use super::*;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// Mon, 13 Jun 2022 11:48:53 GMT.
const NOW: u64 = 1_655_120_933;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + secs(NOW)
}

/// Header lines as in a trace.
fn headers(lines: &str) -> HeaderMap {
    let lines = lines.lines().filter_map(|line| line.trim().split_once(": "));
    lines.map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())).fold(
        HeaderMap::new(),
        |mut headers, (name, value)| {
            headers.append(name, value);
            headers
        },
    )
}

fn read(status: u16, lines: &str) -> Advice {
    let status = StatusCode::from_u16(status).unwrap();
    Advice::read_at(status, &headers(lines), wall()).cut(secs(3_600))
}

fn remaining(lines: &str) -> Option<(u32, Duration)> {
    read(200, lines).remaining
}

fn hold(status: u16, lines: &str) -> Option<Duration> {
    read(status, lines).hold
}

fn advice(hold: Option<u64>, left: (u32, u64), limit: Option<u32>, window: Option<u64>) -> Advice {
    Advice { hold: hold.map(secs), remaining: Some((left.0, secs(left.1))), limit, window: window.map(secs) }
}

#[test]
fn nothing_said_is_no_advice() {
    assert_eq!(read(200, ""), Advice::default());
    assert_eq!(read(429, "content-type: text/html"), Advice::default());
    // Shopify's leaky bucket says neither when nor how much in words of ours.
    assert_eq!(read(200, "X-Shopify-Shop-Api-Call-Limit: 32/40"), Advice::default());
    assert_eq!(read(429, "").pause(), None);
}

#[test]
fn retry_after_holds_what_was_refused() {
    assert_eq!(hold(429, "retry-after: 120"), Some(secs(120)));
    assert_eq!(hold(503, "retry-after: 120"), Some(secs(120)));
    assert_eq!(hold(429, "retry-after: 2.0"), Some(secs(2)), "Shopify");
    assert_eq!(hold(429, "retry-after-ms: 1250\nretry-after: 2"), Some(millis(1_250)), "Azure");
    assert_eq!(hold(429, &format!("retry-after: {}", NOW + 9)), Some(secs(9)), "a moment, by mistake");
    for status in [200, 301, 404, 500] {
        assert_eq!(hold(status, "retry-after: 120"), None, "{status}");
    }
    for value in ["0", "-1", "", "soon", "1e3", "+5", "0x10", "12 s", "Fri, 31 Dec 1999 23:59:59 GMT"] {
        assert_eq!(hold(429, &format!("retry-after: {value}")), None, "{value}");
    }
}

#[test]
fn a_date_counts_from_the_date_of_the_answer() {
    // The server's clock is years behind ours.
    let theirs = "date: Fri, 31 Dec 1999 23:58:59 GMT\nretry-after: Fri, 31 Dec 1999 23:59:59 GMT";
    assert_eq!(hold(503, theirs), Some(secs(60)));
    assert_eq!(hold(503, "retry-after: Mon, 13 Jun 2022 11:49:03 GMT"), Some(secs(10)));
    assert_eq!(hold(503, "retry-after: Monday, 13-Jun-22 11:49:03 GMT"), Some(secs(10)));
    assert_eq!(hold(503, "retry-after: Mon Jun 13 11:49:03 2022"), Some(secs(10)));
    assert_eq!(hold(503, "date: yesterday\nretry-after: Mon, 13 Jun 2022 11:49:03 GMT"), Some(secs(10)));
    assert_eq!(
        remaining("x-ratelimit-remaining: 3\nx-ratelimit-reset: 2022-06-13T11:49:03.5Z"),
        Some((3, millis(10_500)))
    );
    assert_eq!(remaining("x-ratelimit-remaining: 3\nx-ratelimit-reset: 2022-06-13 11:49:03"), None);
}

#[test]
fn a_stored_answer_tells_nothing_of_today() {
    let lines = "age: 10\nretry-after: 30\nratelimit: \"default\";r=0;t=30";
    assert_eq!(read(429, lines), Advice { hold: Some(secs(20)), ..Advice::default() });
    assert_eq!(hold(429, "age: 31\nretry-after: 30"), None);
    assert_eq!(hold(429, "age: 0\nretry-after: 30"), Some(secs(30)));
}

#[test]
fn the_examples_of_the_draft() {
    let lines = "ratelimit-policy: \"burst\";q=100;w=60,\"daily\";q=1000;w=86400\nratelimit: \"default\";r=50;t=30";
    assert_eq!(read(200, lines), advice(None, (50, 30), None, None));
    let lines = "ratelimit-policy: \"default\";q=100;w=10\nratelimit: \"default\";r=50;t=5";
    assert_eq!(read(200, lines), advice(None, (50, 5), Some(100), Some(10)));
    let lines = "ratelimit-policy: \"permin\";q=50;w=60,\"perhr\";q=1000;w=3600\n\
                 ratelimit: \"permin\";r=20;t=23, \"perhr\";r=9;t=2402";
    assert_eq!(read(200, lines), advice(None, (9, 2_402), Some(1_000), Some(3_600)));
    assert_eq!(remaining("ratelimit: \"default\";r=999;pk=:dHJpYWwxMjEzMjM=:"), None);
    assert_eq!(remaining("ratelimit: \"default\";r=300000000;t=60;pk=:QXBwLTk5OQ==:"), Some((300_000_000, secs(60))));
    assert_eq!(remaining("ratelimit: \"problemPolicy\";r=0;t=10"), Some((0, secs(10))));
    assert_eq!(remaining("ratelimit: problemPolicy;r=0, t=10"), None, "as misprinted in a draft");
    // The window comes back in full at the latest when it is over.
    assert_eq!(remaining("ratelimit-policy: \"a\";q=5;w=10\nratelimit: \"a\";r=2"), Some((2, secs(10))));
}

#[test]
fn units_other_than_requests() {
    let policy = "ratelimit-policy: \"peruser\";q=65535;qu=\"content-bytes\";w=10;pk=:sdfjLJUOUH==:";
    assert_eq!(read(200, &format!("{policy}\nratelimit: \"peruser\";r=0;t=7")), advice(None, (0, 7), None, Some(10)));
    let policy = "ratelimit-policy: \"parallel\";q=5;qu=\"concurrent-requests\", \"all\";q=50;qu=\"requests\";w=60";
    let lines = format!("{policy}\nratelimit: \"parallel\";r=0;t=1, \"all\";r=40;t=50");
    assert_eq!(read(200, &lines), advice(None, (40, 50), Some(50), Some(60)));
}

#[test]
fn structured_names_are_split_in_the_right_places() {
    let lines = r#"ratelimit-policy: "a,b;r=0\";t=\\";q=10;w=60;r=0
                   ratelimit: "a,b;r=0\";t=\\"; r=7 ;t=5 , "c";t=9;r=8"#;
    assert_eq!(read(200, lines), advice(None, (7, 5), Some(10), Some(60)));
    assert_eq!(remaining("ratelimit: \"a\";r=7;t=5\nratelimit: \"b\";r=6;t=9"), Some((6, secs(9))), "two fields");
    assert_eq!(remaining("ratelimit: \"a\";r=7;t=5;r=3"), Some((3, secs(5))), "the last one counts");
    assert_eq!(remaining("ratelimit: \"open;r=7;t=5"), None);
    assert_eq!(remaining("ratelimit: \"a\";r=-1;t=5, ;;, \"b\";r=2;t=3"), Some((2, secs(3))), "one bad item");
    assert_eq!(remaining("ratelimit: \"a\";r;t=5"), None);
    let long = (0..40).map(|n| format!("\"{n}\";r={};t=1", 100 - n)).collect::<Vec<_>>().join(",");
    assert_eq!(remaining(&format!("ratelimit: {long}")), Some((69, secs(1))), "no more than 32 items");
    let short = format!("ratelimit: {};r=1;t=1", "a".repeat(2_000));
    assert_eq!(remaining(&short), Some((1, secs(1))));
    assert_eq!(remaining(&short.replacen(';', &format!("{};", "b".repeat(49)), 1)), None, "no line of more than 2 KiB");
}

#[test]
fn the_older_drafts() {
    let lines = "ratelimit: limit=100, remaining=50, reset=30\nratelimit-policy: 10;w=1, 100;w=60;comment=\"a, b\"";
    assert_eq!(read(200, lines), advice(None, (50, 30), Some(100), Some(60)));
    assert_eq!(remaining("ratelimit: remaining=1,reset=7"), Some((1, secs(7))));
    let lines = "ratelimit-limit: 10\nratelimit-policy: 10;w=1;burst=1000, 1000;w=3600\n\
                 ratelimit-remaining: 9\nratelimit-reset: 1";
    assert_eq!(read(200, lines), advice(None, (9, 1), Some(10), Some(1)));
    let lines = "RateLimit-Limit: 5000, 1000;w=3600, 5000;w=86400\nRateLimit-Remaining: 100\nRateLimit-Reset: 36000";
    assert_eq!(read(200, lines), advice(None, (100, 3_600), Some(5_000), Some(86_400)));
    assert_eq!(remaining("ratelimit-remaining: 100"), None);
}

#[test]
fn github() {
    let lines = "Date: Mon, 13 Jun 2022 11:48:53 GMT\nX-RateLimit-Limit: 30\nX-RateLimit-Remaining: 14\n\
                 X-RateLimit-Reset: 1655120964\nX-RateLimit-Used: 16\nX-RateLimit-Resource: search";
    assert_eq!(read(200, lines), advice(None, (14, 31), Some(30), None));
    // The secondary limit says no while the primary one is far away.
    let secondary = read(403, &format!("{lines}\nRetry-After: 60"));
    assert_eq!(secondary, advice(Some(60), (14, 31), Some(30), None));
    assert_eq!(secondary.pause(), Some(secs(60)));
    let primary = read(403, "x-ratelimit-limit: 60\nx-ratelimit-remaining: 0\nx-ratelimit-reset: 1655121033");
    assert_eq!((primary.hold, primary.pause()), (None, Some(secs(100))));
}

#[test]
fn gitlab() {
    let lines = "Date: Thu, 30 Jan 2020 14:14:16 GMT\nRateLimit-Limit: 600\nRateLimit-Observed: 5\n\
                 RateLimit-Remaining: 595\nRateLimit-Reset: 1580393717\n\
                 RateLimit-ResetTime: Thu, 30 Jan 2020 14:15:17 GMT";
    assert_eq!(read(429, lines), advice(None, (595, 61), Some(600), None));
    let lines = "RateLimit-Limit: 60\nRateLimit-Name: throttle_authenticated_web\nRateLimit-Observed: 67\n\
                 RateLimit-Remaining: 0\nRateLimit-Reset: 1655120963\nRetry-After: 30";
    assert_eq!(read(429, lines), advice(Some(30), (0, 30), Some(60), None));
}

#[test]
fn x() {
    let lines = "x-rate-limit-limit: 900\nx-rate-limit-remaining: 0\nx-rate-limit-reset: 1655121833";
    let advised = read(429, lines);
    assert_eq!(advised, advice(None, (0, 900), Some(900), None));
    assert_eq!(advised.pause(), Some(secs(900)));
}

#[test]
fn stripe_and_cloudflare() {
    assert_eq!(read(429, "stripe-rate-limited-reason: global-rate"), Advice::default());
    assert_eq!(hold(429, "stripe-should-retry: true\nretry-after: 1"), Some(secs(1)));
    let lines = "Ratelimit: \"default\";r=0;t=30\nRatelimit-Policy: \"default\";q=1200;w=300\nRetry-After: 30";
    assert_eq!(read(429, lines), advice(Some(30), (0, 30), Some(1_200), Some(300)));
    let dated = "x-ratelimit-limit: 1200\nx-ratelimit-remaining: 0\nx-ratelimit-reset: Mon, 13 Jun 2022 11:49:23 GMT";
    assert_eq!(read(429, dated), advice(None, (0, 30), Some(1_200), None));
}

#[test]
fn openai_and_anthropic() {
    let lines = "x-ratelimit-limit-requests: 60\nx-ratelimit-limit-tokens: 150000\nx-ratelimit-remaining-requests: 59\n\
                 x-ratelimit-remaining-tokens: 149984\nx-ratelimit-reset-requests: 1s\nx-ratelimit-reset-tokens: 6m0s";
    assert_eq!(read(200, lines), advice(None, (59, 1), Some(60), None));
    let out_of_tokens = lines.replace("149984", "0");
    assert_eq!(read(200, &out_of_tokens), advice(None, (0, 360), None, None));
    assert_eq!(read(200, &out_of_tokens).pause(), Some(secs(360)));
    let lines = "x-ratelimit-remaining-requests: 4999\nx-ratelimit-reset-requests: 12ms";
    assert_eq!(remaining(lines), Some((4_999, millis(12))));

    let lines = "anthropic-ratelimit-requests-limit: 50\nanthropic-ratelimit-requests-remaining: 49\n\
                 anthropic-ratelimit-requests-reset: 2022-06-13T11:48:55Z\n\
                 anthropic-ratelimit-input-tokens-limit: 40000\nanthropic-ratelimit-input-tokens-remaining: 0\n\
                 anthropic-ratelimit-input-tokens-reset: 2022-06-13T11:49:53Z";
    assert_eq!(read(429, lines), advice(None, (0, 60), None, None));
    assert_eq!(read(200, &lines.replace("remaining: 0", "remaining: 39000")), advice(None, (49, 2), Some(50), None));
}

#[test]
fn discord_reddit_and_envoy() {
    let lines = "X-RateLimit-Limit: 5\nX-RateLimit-Remaining: 0\nX-RateLimit-Reset: 1470173023.123\n\
                 X-RateLimit-Reset-After: 1.25\nX-RateLimit-Bucket: abcd1234";
    let advised = read(429, lines);
    assert_eq!((advised.remaining, advised.pause()), (Some((0, millis(1_250))), Some(millis(1_250))));
    let without_delay =
        "date: Tue, 02 Aug 2016 21:23:42 GMT\nx-ratelimit-remaining: 1\nx-ratelimit-reset: 1470173023.123";
    assert_eq!(remaining(without_delay), Some((1, millis(1_123))));

    let lines = "x-ratelimit-used: 1\nx-ratelimit-remaining: 599.0\nx-ratelimit-reset: 322";
    assert_eq!(read(200, lines), advice(None, (599, 322), None, None));

    let lines = "x-ratelimit-limit: 4, 4;w=1;name=\"one\", 1000;w=3600\nx-ratelimit-remaining: 3\nx-ratelimit-reset: 1";
    assert_eq!(read(200, lines), advice(None, (3, 1), Some(4), Some(1)));
}

#[test]
fn grpc_pushes_back() {
    let ours = "content-type: application/grpc\ngrpc-status: 8\ngrpc-retry-pushback-ms: 1500";
    assert_eq!(hold(200, ours), Some(millis(1_500)));
    assert_eq!(hold(200, "grpc-status: 14\ngrpc-retry-pushback-ms: 20"), Some(millis(20)));
    assert_eq!(hold(200, "grpc-status: 14\nretry-after: 2"), Some(secs(2)));
    assert_eq!(hold(200, "grpc-status: 8\ngrpc-retry-pushback-ms: -1"), None, "do not retry");
    assert_eq!(hold(200, "grpc-status: 0\ngrpc-retry-pushback-ms: 1500"), None);
    assert_eq!(hold(200, "grpc-status: 3\ngrpc-retry-pushback-ms: 1500"), None);
}

#[test]
fn the_tightest_of_many_counts() {
    let lines = "ratelimit: \"a\";r=5;t=1, \"b\";r=0;t=2, \"c\";r=0;t=40, \"d\";r=0\nx-ratelimit-remaining: 1\n\
                 x-ratelimit-reset: 1000";
    assert_eq!(remaining(lines), Some((0, secs(40))), "the longest of the empty ones that say how long");
    assert_eq!(remaining("ratelimit: \"a\";r=0, \"b\";r=1;t=2"), Some((1, secs(2))));
    let lines = "x-ratelimit-limit-minute: 5\nx-ratelimit-remaining-minute: 4\nratelimit-limit: 5\n\
                 ratelimit-remaining: 4\nratelimit-reset: 19";
    assert_eq!(read(200, lines), advice(None, (4, 19), Some(5), None), "Kong");
}

#[test]
fn a_pause_is_what_was_asked_for_or_an_empty_budget() {
    let pause = |status, lines: &str| read(status, lines).pause();
    let lines = "retry-after: 31\nratelimit: \"a\";r=0;t=30";
    assert_eq!((pause(429, lines), pause(200, lines)), (Some(secs(31)), Some(secs(30))));
    assert_eq!(pause(429, &lines.replace("31", "29")), Some(secs(29)), "the draft: Retry-After takes precedence");
    assert_eq!(pause(429, "ratelimit: \"a\";r=1;t=30"), None);
    assert_eq!(pause(429, "ratelimit: \"a\";r=0;t=0"), None);
    assert_eq!(pause(429, "ratelimit: \"a\";r=0"), None);
}

#[test]
fn absurd_values_are_cut() {
    let endless = "9".repeat(400);
    assert_eq!(hold(429, &format!("retry-after: {endless}")), Some(secs(3_600)));
    assert_eq!(hold(429, "retry-after: Fri, 31 Dec 9999 23:59:59 GMT"), Some(secs(3_600)));
    assert_eq!(hold(429, &format!("retry-after: {endless}h{endless}d")), Some(secs(3_600)));
    assert_eq!(remaining(&format!("ratelimit: a;r={endless};t={endless}")), Some((u32::MAX, secs(3_600))));
    let lines = format!("ratelimit: a;r=1;t=1\nratelimit-policy: a;q=0;w={endless}");
    assert_eq!(read(200, &lines), advice(None, (1, 1), None, None));
    let lines = headers("retry-after: 86400\nratelimit: a;r=0;t=86400");
    let day = Advice::read_at(StatusCode::TOO_MANY_REQUESTS, &lines, wall()).cut(secs(100_000));
    assert_eq!(day, advice(Some(86_400), (0, 86_400), None, None));
    let before = Advice::read_at(StatusCode::OK, &lines, SystemTime::UNIX_EPOCH - secs(1)).cut(secs(5));
    assert_eq!(before.remaining, Some((0, secs(5))));
}

const NAMES: [&str; 19] = [
    "date",
    "age",
    "retry-after",
    "retry-after-ms",
    "grpc-status",
    "grpc-retry-pushback-ms",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-ratelimit-reset-after",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "anthropic-ratelimit-requests-remaining",
    "anthropic-ratelimit-requests-reset",
];

/// Bytes that may stand in a field, of which some look as if they meant something.
fn values() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(32..=255_u8, 0..40),
        "[\"\\\\;,=:.rtqwu0-9 TZ-]{0,60}".prop_map(String::into_bytes),
        "[0-9]{1,30}(\\.[0-9]{0,12})?(ms|s|m|h|d)?([0-9]{1,30}(ms|s|m|h|d))?".prop_map(String::into_bytes),
        "[0-9]{1,20}-[0-9]{1,3}-[0-9]{1,3}T[0-9]{1,25}:[0-9]{1,25}:[0-9]{1,25}Z".prop_map(String::into_bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(6585),
        failure_persistence: None,
        ..ProptestConfig::with_cases(4_000)
    })]

    #[test]
    fn any_answer_is_read(
        status in prop_oneof![Just(200), Just(429), 100..1000_u16],
        fields in prop::collection::vec((prop::sample::select(&NAMES[..]), values()), 0..12),
        since in 0..u64::from(u32::MAX), longest in 1..100_000_u64,
    ) {
        let mut lines = HeaderMap::new();
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                lines.append(name, value);
            }
        }
        let status = StatusCode::from_u16(status).unwrap();
        let advised = Advice::read_at(status, &lines, SystemTime::UNIX_EPOCH + secs(since)).cut(secs(longest));
        prop_assert!(advised.hold.is_none_or(|hold| hold <= secs(longest) && !hold.is_zero()));
        prop_assert!(advised.remaining.is_none_or(|(_, reset)| reset <= secs(longest)));
        prop_assert!(advised.pause().is_none_or(|pause| pause <= secs(longest) && !pause.is_zero()));
        prop_assert!(advised.limit != Some(0) && advised.window != Some(Duration::ZERO));
    }

    /// Every way to tell one moment, at any time from 2001 to 2100, whatever our own clock says.
    #[test]
    fn all_spellings_mean_the_same(now in 1_000_000_000..4_102_444_800_u64, delay in 0..100_000_u64, wrong: u32) {
        let moment = SystemTime::UNIX_EPOCH + secs(now + delay);
        let date = httpdate::fmt_http_date(moment);
        let parts: Vec<&str> = date.split([' ', ',']).collect();
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let month = months.iter().position(|month| *month == parts[3]).unwrap() + 1;
        let spellings = [
            delay.to_string(),
            format!("{delay}.000"),
            format!("{}h{}m{}s", delay / 3_600, delay / 60 % 60, delay % 60),
            (now + delay).to_string(),
            ((now + delay) * 1_000).to_string(),
            ((now + delay) * 1_000_000).to_string(),
            format!("{}-{month:02}-{}T{}Z", parts[4], parts[2], parts[5]),
            date,
        ];
        let ours = SystemTime::UNIX_EPOCH + secs(wrong.into());
        for spelling in spellings {
            let mut lines = headers("x-ratelimit-remaining: 1");
            lines.insert("date", httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + secs(now)).parse().unwrap());
            lines.insert("x-ratelimit-reset", spelling.parse().unwrap());
            let advised = Advice::read_at(StatusCode::OK, &lines, ours);
            prop_assert_eq!(advised.remaining, Some((1, secs(delay))), "{}", spelling);
        }
    }

    /// What a server that keeps to the draft writes, with any names, is read as it was meant.
    #[test]
    fn lists_are_read_as_written(
        budgets in prop::collection::btree_map("[ -~]{0,12}", (1..99_u32, 0..99_u64, 1..99_u32, 1..99_u64), 1..6),
    ) {
        let (mut state, mut policy) = (Vec::new(), Vec::new());
        for (name, (r, t, q, w)) in &budgets {
            let name = name.replace('\\', "\\\\").replace('"', "\\\"");
            state.push(format!("\"{name}\";r={r};t={t}"));
            policy.push(format!("\"{name}\";q={q};w={w}"));
        }
        let lines = format!("ratelimit: {}\nratelimit-policy: {}", state.join(", "), policy.join(","));
        let advised = read(200, &lines);
        let (r, t, ..) = *budgets.values().min_by_key(|(r, t, ..)| (*r, Reverse(*t))).unwrap();
        let whole = budgets.values().filter(|budget| (budget.0, budget.1) == (r, t));
        prop_assert_eq!(advised.remaining, Some((r, secs(t))));
        let limits: Vec<_> = whole.map(|&(_, _, q, w)| (Some(q), Some(secs(w)))).collect();
        prop_assert!(limits.contains(&(advised.limit, advised.window)), "{:?} {}", advised, lines);
    }
}
