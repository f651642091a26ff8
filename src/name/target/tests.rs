use proptest::{prelude::*, test_runner::RngSeed};

use super::{
    super::tests::{bytes_of, name_of},
    *,
};

fn get(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

fn with(mut req: Request<()>, headers: &[(&'static str, &str)]) -> Request<()> {
    for (header, value) in headers {
        req.headers_mut().append(*header, value.parse().unwrap());
    }
    req
}

fn name(req: &Request<()>) -> String {
    name_of(&Target::new(), req).unwrap()
}

#[test]
fn reads_as_a_request_line() {
    assert_eq!(name(&get("https://Example.com/Path?b=2&a=1")), "GET https://example.com/Path?a=1&b=2");
    assert_eq!(name(&with(get("/p"), &[("host", "Example.com:8080")])), "GET //example.com:8080/p");
    assert_eq!(name(&get("/p")), "GET ///p");
    assert_eq!(name(&Request::head("http://h").body(()).unwrap()), "HEAD http://h/");
}

#[test]
fn only_get_and_head_without_content_have_a_name() {
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "get"] {
        let req = Request::builder().method(method).uri("/p").body(()).unwrap();
        assert_eq!(name_of(&Target::new(), &req), None, "{method}");
    }
    assert_eq!(name_of(&Target::new(), &with(get("/p"), &[("content-length", "5")])), None);
    assert_eq!(name_of(&Target::new(), &with(get("/p"), &[("transfer-encoding", "chunked")])), None);
    assert_eq!(name(&with(get("/p"), &[("content-length", "0")])), "GET ///p");
}

#[test]
fn default_ports_are_dropped() {
    let cases = [
        ("http://h:80/", "GET http://h/"),
        ("https://h:443/", "GET https://h/"),
        ("https://h:80/", "GET https://h:80/"),
        ("http://h:/", "GET http://h/"),
        ("HTTP://h:80/", "GET http://h/"),
        ("http://[2001:DB8::80]/", "GET http://[2001:db8::80]/"),
        ("http://[2001:db8::1]:80/", "GET http://[2001:db8::1]/"),
        ("http://user@h:80/", "GET http://user@h/"),
    ];
    for (uri, expected) in cases {
        assert_eq!(name(&get(uri)), expected, "{uri}");
    }
    // Without a scheme nobody knows which port is the default.
    assert_eq!(name(&with(get("/"), &[("host", "h:80")])), "GET //h:80/");
}

#[test]
fn hosts_that_differ_all_count() {
    let host = |uri: &str, hosts: &[&str]| {
        let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
        name(&with(get(uri), &headers))
    };
    assert_eq!(host("http://good/", &["GOOD:80"]), "GET http://good/");
    assert_eq!(host("http://good/", &["evil"]), "GET http://good,evil/");
    assert_eq!(host("http://good/", &["good", "evil"]), "GET http://good,good,evil/");
    assert_eq!(host("/", &["good", "evil"]), "GET //,good,evil/");
    assert_eq!(host("/", &["good,evil"]), "GET //good%2cevil/");
    assert_eq!(host("/b", &["h/a"]), "GET //h%2fa/b");
    assert_eq!(host("/b", &["h%2Fa"]), "GET //h%252fa/b");
}

#[test]
fn parameters_are_sorted_and_repeated_ones_keep_their_order() {
    let cases = [
        ("b=2&a=1", "a=1&b=2"),
        ("a=2&b=1&a=1", "a=2&a=1&b=1"),
        ("b&a&b=", "a&b&b="),
        ("b=1&&a=2", "&a=2&b=1"),
        // Spellings of one parameter, to one framework or another.
        ("b=0&%61=2&a=1", "%61=2&a=1&b=0"),
        ("b=0&a=1&%61=2", "a=1&%61=2&b=0"),
        ("A=2&a=1", "A=2&a=1"),
        ("a_b=2&a.b=1", "a_b=2&a.b=1"),
        ("a[]=2&a=1&a[0]=0", "a[]=2&a=1&a[0]=0"),
        ("a[9]=2&a=1", "a[9]=2&a=1"),
        ("a+b=2&a%20b=1&a%2Bb=0", "a+b=2&a%20b=1&a%2Bb=0"),
        ("%zz=1&%=2&%4=3", "%=2&%4=3&%zz=1"),
        // Two parameters to some, three to others.
        ("b=1&a=x;b=2", "b=1&a=x;b=2"),
    ];
    for (query, expected) in cases {
        assert_eq!(name(&get(&format!("/?{query}"))), format!("GET ///?{expected}"), "{query}");
    }
    assert_eq!(name(&get("/?")), "GET ///?");
}

#[test]
fn ignored_parameters_are_left_out() {
    let target = Target::new().ignore(["utm_*", "fbclid"]).ignore(["a b"]);
    let cases = [
        ("utm_source=x&q=1&utm_=y&fbclid", "?q=1"),
        ("%75tm_source=x&f%62clid=1&q=1", "?q=1"),
        ("a+b=1&a%20b=2&q=1", "?q=1"),
        ("utm=1&fbclid2=3&Fbclid=4", "?Fbclid=4&fbclid2=3&utm=1"),
        ("utm_source=x", ""),
        // What is ignored here must not carry along what is not ignored there.
        ("utm_source=x;q=1", "?utm_source=x;q=1"),
    ];
    for (query, expected) in cases {
        assert_eq!(name_of(&target, &get(&format!("/?{query}"))).unwrap(), format!("GET ///{expected}"), "{query}");
    }
    assert_eq!(name_of(&Target::new().ignore(["*"]), &get("/?a=1&b")).unwrap(), "GET ///");
}

#[test]
fn headers_are_added_on_request() {
    let target = Target::new().vary(["X-B"]).typed().vary(["accept-language", "x-b"]);
    let req = with(get("/p"), &[("x-b", "1"), ("x-b", "2"), ("accept", ""), ("x-c", "3")]);
    assert_eq!(name_of(&target, &req).unwrap(), "GET ///p accept=0:, accept-language= x-b=1:1,1:2,");
}

#[test]
#[should_panic(expected = "not the name of a header: \"a b\"")]
fn a_bad_header_name_panics() {
    let _ = Target::new().vary(["a b"]);
}

#[test]
fn any_number_of_parameters_is_sorted() {
    for count in [31, 32, 33, 200] {
        let query: Vec<String> = (0..count).map(|i| format!("k{:03}={i}", (i * 7) % count)).collect();
        let mut sorted = query.clone();
        sorted.sort_by_key(|parameter| parameter[..4].to_owned());
        assert_eq!(name(&get(&format!("/?{}", query.join("&")))), format!("GET ///?{}", sorted.join("&")));
    }
}

/// The parts of a request that its name tells apart, worked out another way.
fn parts(req: &Request<()>) -> impl PartialEq + use<> {
    let fold = |parameter: &str| {
        let spelled = parameter.split('=').next().unwrap().replace("%61", "a").replace("%20", " ");
        let base = spelled.split('[').next().unwrap().to_owned();
        base.to_lowercase().replace(|c: char| !c.is_alphanumeric(), "")
    };
    let query = req.uri().query().map(|query| {
        let mut parameters: Vec<String> = query.split('&').map(str::to_owned).collect();
        if !query.contains(';') {
            parameters.sort_by_key(|parameter| fold(parameter));
        }
        parameters
    });
    let values = |header: &str| req.headers().get_all(header).iter().map(|v| v.as_bytes().to_vec()).collect::<Vec<_>>();
    let hosts = req.headers().get_all("host").iter().map(|host| host.to_str().unwrap().to_lowercase());
    // A lone empty host is none.
    let hosts = Some(hosts.collect::<Vec<_>>()).filter(|hosts| *hosts != [""]).unwrap_or_default();
    (req.method().to_string(), hosts, req.uri().path().to_owned(), query, values("x-a"), values("x-b"))
}

type Parts = (bool, Vec<String>, String, Option<String>, Vec<String>, Vec<String>);

fn any_parts() -> impl Strategy<Value = Parts> {
    let values = || prop::collection::vec("[a1:,]{0,2}|x-b=|[0-3]:a?,| x-b=[0-3]?:?a?,?", 0..3);
    (
        prop::bool::ANY,
        prop::collection::vec("[aA/,%?*. ]{0,3}", 0..3),
        "/[a/%:*=&,-]{0,3}",
        prop::option::of("((a|A|%61|a_|a\\[\\]|b|%20b|/|\\?)?(=[12/?;])?&?){0,4}"),
        values(),
        values(),
    )
}

fn request((head, hosts, path, query, a, b): Parts) -> Request<()> {
    let mut req = get(&query.map_or(path.clone(), |query| format!("{path}?{query}")));
    if head {
        *req.method_mut() = Method::HEAD;
    }
    for (header, values) in [("host", hosts), ("x-a", a), ("x-b", b)] {
        values.iter().for_each(|value| {
            req.headers_mut().append(header, value.parse().unwrap());
        });
    }
    req
}

/// Two requests that are mostly alike: in all parts but those chosen.
fn pair() -> impl Strategy<Value = (Request<()>, Request<()>)> {
    (any_parts(), any_parts(), prop::array::uniform6(prop::bool::weighted(0.3))).prop_map(|(one, other, differ)| {
        let mut mixed = one.clone();
        let [method, hosts, path, query, a, b] = differ;
        method.then(|| mixed.0 = other.0);
        hosts.then(|| mixed.1 = other.1);
        path.then(|| mixed.2 = other.2);
        query.then(|| mixed.3 = other.3);
        a.then(|| mixed.4 = other.4);
        b.then(|| mixed.5 = other.5);
        (request(one), request(mixed))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, rng_seed: RngSeed::Fixed(9), failure_persistence: None, ..Default::default() })]

    #[test]
    fn names_are_equal_exactly_when_the_parts_are((one, other) in pair()) {
        let target = Target::new().vary(["x-a", "x-b"]);
        prop_assert_eq!(bytes_of(&target, &one) == bytes_of(&target, &other), parts(&one) == parts(&other));
    }

    #[test]
    fn a_host_never_reaches_into_the_path(
        (host, other) in ("[aA:/,%?*]{0,3}", "[aA:/,%?*]{0,3}"),
        (path, elsewhere) in ("/[a/]{0,2}", "/[a/]{0,2}"),
        (scheme, none) in (prop::bool::ANY, prop::bool::ANY),
    ) {
        let req = |scheme: bool, host: &str, path: &str| {
            let uri = if scheme { format!("http://a{path}") } else { path.to_owned() };
            with(get(&uri), &[("host", host)])
        };
        let (one, two) = (req(scheme, &host, &path), req(none, &other, &elsewhere));
        // An empty port, and the authority's own host, say nothing.
        let bare = |scheme: bool, host: &str| {
            let host = host.to_lowercase();
            let bare = host.strip_suffix(':').filter(|bare| !bare.contains(':')).unwrap_or(&host).to_owned();
            (scheme, bare)
        };
        prop_assert_eq!(
            name(&one) == name(&two),
            bare(scheme, &host) == bare(none, &other) && path == elsewhere
        );
    }

    #[test]
    fn order_of_parameters_makes_no_difference(
            values in prop::collection::vec("[a-z0-9=%+]{0,5}", 0..40),
            seed in any::<u64>(),
        ) {
        let mut query: Vec<String> = values.iter().enumerate().map(|(i, value)| format!("p{i}={value}")).collect();
        let sorted = name(&get(&format!("/?{}", query.join("&"))));
        let len = query.len().max(1);
        for i in 0..query.len() {
            query.swap(i, (seed >> (i % 48)) as usize % len);
        }
        prop_assert_eq!(name(&get(&format!("/?{}", query.join("&")))), sorted);
    }
}
