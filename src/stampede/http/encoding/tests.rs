use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
}

fn names(names: &[&'static str]) -> Vec<HeaderName> {
    names.iter().map(|name| HeaderName::from_static(name)).collect()
}

fn encoded(parts: &Parts<'_>) -> Bytes {
    let mut out = Vec::new();
    encode(&mut out, parts);
    out.into()
}

fn parts<'a>(headers: &'a HeaderMap, request: &'a HeaderMap, vary: &'a [HeaderName]) -> Parts<'a> {
    Parts {
        status: StatusCode::OK,
        headers,
        body: b"hello",
        trailers: None,
        public: false,
        bodiless: false,
        age: 0,
        vary,
        request,
    }
}

fn lines(map: &HeaderMap) -> Vec<(&str, &[u8])> {
    map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

#[test]
fn order_and_multiplicity_survive() {
    let fields = headers(&[("x-b", "1"), ("content-type", "text/plain"), ("link", "<a>"), ("link", "<b>"), ("a", "")]);
    let none = HeaderMap::new();
    let stored = decode(&encoded(&parts(&fields, &none, &[]))).unwrap();
    assert_eq!(lines(&stored.headers), lines(&fields));
    assert_eq!(&stored.body[..], b"hello");
}

#[test]
fn the_body_is_a_slice() {
    let none = HeaderMap::new();
    let bytes = encoded(&parts(&none, &none, &[]));
    let stored = decode(&bytes).unwrap();
    assert!(bytes.as_ptr_range().contains(&stored.body.as_ptr()));
}

#[test]
fn fields_of_one_connection_or_one_answer_are_left_out() {
    let fields = headers(&[
        ("connection", "close, X-Mine ,"),
        ("connection", "x-other"),
        ("x-mine", "1"),
        ("x-other", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
        ("proxy-authorization", "x"),
        ("proxy-connection", "close"),
        ("te", "trailers"),
        ("trailer", "x-sum"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("age", "5"),
        ("cache-status", "x; hit"),
        ("x-kept", "1"),
        ("proxy-status", "kept"),
    ]);
    let none = HeaderMap::new();
    let trailers = headers(&[("connection", "a"), ("x-sum", "1")]);
    let parts = Parts { trailers: Some(&trailers), ..parts(&fields, &none, &[]) };
    let stored = decode(&encoded(&parts)).unwrap();
    let kept: [(&str, &[u8]); 2] = [("x-kept", b"1"), ("proxy-status", b"kept")];
    assert_eq!(lines(&stored.headers), kept);
    assert_eq!(stored.trailers, Some(headers(&[("x-sum", "1")])));
}

#[test]
fn a_variant_answers_requests_that_select_it() {
    let vary = names(&["accept", "accept-language", "x-flag"]);
    let none = HeaderMap::new();
    let stored_for = |request: &[(&str, &str)]| {
        let request = headers(request);
        decode(&encoded(&parts(&none, &request, &vary))).unwrap().vary
    };
    type Lines = &'static [(&'static str, &'static str)];
    let cases: &[(Lines, Lines, bool)] = &[
        (&[], &[], true),
        (&[], &[("x-other", "1")], true),
        (&[("accept", "a")], &[("accept", "a")], true),
        (&[("accept", "a")], &[("accept", " \ta ")], true),
        (&[("accept", "a")], &[("accept", "A")], false),
        (&[("accept", "a")], &[], false),
        (&[], &[("accept", "a")], false),
        (&[], &[("x-flag", "")], false),
        (&[("x-flag", "")], &[], false),
        (&[("x-flag", "")], &[("x-flag", " ")], true),
        (&[("accept", "a, b")], &[("accept", "a"), ("accept", "b ")], true),
        (&[("accept", "a"), ("accept", "b")], &[("accept", "a, b")], true),
        (&[("accept", "a"), ("accept", "b")], &[("accept", "b"), ("accept", "a")], false),
        (&[("accept", "a")], &[("accept", "a"), ("accept", "")], false),
        (&[("accept", "ab")], &[("accept", "a")], false),
        (&[("accept", "a")], &[("accept", "ab")], false),
        (&[("accept", "a")], &[("accept-language", "a")], false),
    ];
    for (stored, asked, expected) in cases {
        let found = selects(&stored_for(stored), &headers(asked));
        assert_eq!(found, *expected, "{stored:?} {asked:?}");
    }
    assert!(selects(&[], &headers(&[("accept", "a")])));
}

#[test]
fn every_frequent_name_has_its_place() {
    for (at, name) in FREQUENT.iter().enumerate() {
        assert_eq!(index(name), Some(at as u8), "{name}");
        assert!(!NOT_STORED.contains(name), "{name}");
    }
    assert_eq!(index(&NOT_STORED[0]), None);
}

/// Entries outlive the program that wrote them: a change of these bytes takes another version.
#[test]
fn the_stored_form_is_what_it_was() {
    let fields = headers(&[("etag", "\"1\""), ("x-a", "b")]);
    let request = headers(&[("accept", "c")]);
    let trailers = headers(&[("grpc-status", "0")]);
    let vary = names(&["accept", "host"]);
    let parts = Parts {
        status: StatusCode::NOT_FOUND,
        trailers: Some(&trailers),
        public: true,
        age: 258,
        ..parts(&fields, &request, &vary)
    };
    let head = [2, 3, 0x94, 1, 2, 1, 0, 0];
    let vary = b"\x02\0\0\0\0\x02c\xff\x04host\0";
    let fields = b"\x02\0\0\0\x16\x03\"1\"\xff\x03x-a\x01b";
    let trailers = b"\x01\0\0\0\x19\x010";
    let expected = [&head[..], vary, fields, trailers, b"\x05hello"].concat();
    assert_eq!(encoded(&parts), expected);
}

#[test]
fn lying_lengths_are_refused() {
    let none = HeaderMap::new();
    let good = encoded(&parts(&none, &none, &[])).to_vec();
    assert!(decode(&good.clone().into()).is_some());
    let mut longer = good.clone();
    longer.push(0);
    assert!(decode(&longer.into()).is_none());
    for at in [8, 12] {
        let mut huge = good.clone();
        huge[at..at + 4].fill(0xff);
        assert!(decode(&huge.into()).is_none());
    }
    let mut endless = good[..16].to_vec();
    endless.extend([0xff; 40]);
    assert!(decode(&endless.into()).is_none());
    let mut wrapping = good[..16].to_vec();
    wrapping.extend(b"\x85\x80\x80\x80\x80\x80\x80\x80\x80\x02hello");
    assert!(decode(&wrapping.into()).is_none());
}

fn fields() -> impl Strategy<Value = HeaderMap> {
    let stored: Vec<String> = FREQUENT.iter().map(|name| name.to_string()).collect();
    let name = prop_oneof![prop::sample::select(stored), "x-[a-z0-9!-]{0,12}"];
    let value = prop::collection::vec(any::<u8>(), 0..200).prop_map(|mut value| {
        let control = |byte: &u8| byte.is_ascii_control() && *byte != b'\t';
        value.retain(|byte| !control(byte));
        value
    });
    prop::collection::vec((name, value), 0..24).prop_map(|lines| {
        let line = |(name, value): (String, Vec<u8>)| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            (name, HeaderValue::from_bytes(&value).unwrap())
        };
        lines.into_iter().map(line).collect()
    })
}

#[derive(Debug)]
struct Whole {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
    public: bool,
    bodiless: bool,
    age: u32,
    request: HeaderMap,
}

impl Whole {
    fn encoded(&self) -> Bytes {
        let mut vary: Vec<_> = self.request.keys().cloned().collect();
        vary.push(HeaderName::from_static("never-sent"));
        encoded(&Parts {
            status: StatusCode::from_u16(self.status).unwrap(),
            headers: &self.headers,
            body: &self.body,
            trailers: self.trailers.as_ref(),
            public: self.public,
            bodiless: self.bodiless,
            age: self.age,
            vary: &vary,
            request: &self.request,
        })
    }
}

fn whole() -> impl Strategy<Value = Whole> {
    let body = prop::collection::vec(any::<u8>(), 0..1000);
    let trailers = prop::option::of(fields());
    (100u16..1000, fields(), body, trailers, any::<[bool; 2]>(), any::<u32>(), fields()).prop_map(
        |(status, headers, body, trailers, [public, bodiless], age, request)| Whole {
            status,
            headers,
            body,
            trailers,
            public,
            bodiless,
            age,
            request,
        },
    )
}

fn fixed() -> ProptestConfig {
    ProptestConfig { cases: 64, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(fixed())]

    #[test]
    fn what_is_stored_comes_back(whole in whole()) {
        let stored = decode(&whole.encoded()).unwrap();
        prop_assert_eq!(stored.status.as_u16(), whole.status);
        prop_assert_eq!(lines(&stored.headers), lines(&whole.headers));
        prop_assert_eq!(&stored.body[..], &whole.body[..]);
        prop_assert_eq!(stored.trailers.as_ref().map(lines), whole.trailers.as_ref().map(lines));
        prop_assert_eq!(
            (stored.public, stored.bodiless, stored.age),
            (whole.public, whole.bodiless, whole.age)
        );
        prop_assert!(selects(&stored.vary, &whole.request));
        let other = headers(&[("never-sent", "")]);
        prop_assert!(!selects(&stored.vary, &other));
    }

    #[test]
    fn a_part_is_nothing(whole in whole(), cut in any::<prop::sample::Index>()) {
        let bytes = whole.encoded();
        prop_assert!(decode(&bytes.slice(..cut.index(bytes.len()))).is_none());
    }

    #[test]
    fn damage_never_panics(
        whole in whole(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = whole.encoded().to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        decode(&bytes.into());
    }

    #[test]
    fn noise_never_panics(mut noise in prop::collection::vec(any::<u8>(), 0..300)) {
        decode(&noise.clone().into());
        if let [version, flags, ..] = &mut noise[..] {
            (*version, *flags) = (VERSION, *flags & 7);
        }
        decode(&noise.into());
    }
}
