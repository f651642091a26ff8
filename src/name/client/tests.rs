use super::{super::tests::name_of, *};

fn from_peer(address: &str) -> Request<()> {
    Request::get("/").extension(PeerAddr(SocketAddr::new(address.parse().unwrap(), 1))).body(()).unwrap()
}

fn forwarded(values: &[&str]) -> Request<()> {
    let mut req = from_peer("10.0.0.1");
    for value in values {
        req.headers_mut().append("x-forwarded-for", value.parse().unwrap());
    }
    req
}

#[test]
fn by_peer() {
    let client = ClientIp::new();
    let cases = [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::1", "::/64"),
    ];
    for (peer, expected) in cases {
        assert_eq!(name_of(&client, &from_peer(peer)).unwrap(), expected);
    }
}

#[test]
fn by_prefix() {
    let req = from_peer("2001:db8:1:2:3:4:5:6");
    assert_eq!(name_of(&ClientIp::new().ipv6_prefix(128), &req).unwrap(), "2001:db8:1:2:3:4:5:6/128");
    assert_eq!(name_of(&ClientIp::new().ipv6_prefix(48), &req).unwrap(), "2001:db8:1::/48");
    assert_eq!(name_of(&ClientIp::new().ipv6_prefix(1), &req).unwrap(), "::/1");
}

#[test]
#[should_panic(expected = "not 129")]
fn a_prefix_past_128_panics() {
    let _ = ClientIp::new().ipv6_prefix(129);
}

#[test]
fn what_cannot_be_meant_panics_and_names_the_value() {
    let says = |make: fn() -> ClientIp, what: &str| {
        let panic = std::panic::catch_unwind(make).unwrap_err();
        let message = panic.downcast::<String>().unwrap();
        assert!(message.contains(what), "{message}");
    };
    says(|| ClientIp::new().trusted_proxies(65), "not 65");
    says(|| ClientIp::new().trusted_networks(["10.0.0.0/8", "10.0.0.300"]), "\"10.0.0.300\"");
    says(|| ClientIp::new().header("x ip"), "\"x ip\"");
    says(|| ClientIp::new().trusted_proxies(2).trusted_networks("::1"), "not both 2 and ::1");
    says(|| ClientIp::new().trusted_networks("::1").trusted_proxies(2), "not both 2 and ::1");
}

#[test]
fn nothing_to_trust_takes_nothing_back() {
    let trusts = |client: ClientIp| format!("{:?}", client.trust);
    let new = ClientIp::new;
    assert_eq!(trusts(new().trusted_proxies(0)), "Nobody");
    assert_eq!(trusts(new().trusted_proxies(2).trusted_proxies(0)), "Nobody");
    assert_eq!(trusts(new().trusted_proxies(2).trusted_networks("")), "Hops(2)");
    assert_eq!(trusts(new().trusted_networks("").trusted_proxies(2)), "Hops(2)");
    assert_eq!(trusts(new().trusted_networks("::1").trusted_proxies(0)), "Networks(Networks(::1))");
    assert_eq!(trusts(new().trusted_networks("::1").trusted_networks("::2")), "Networks(Networks(::2))");
    let nobody = new().trusted_networks("");
    assert_eq!(name_of(&nobody, &forwarded(&["203.0.113.9"])).unwrap(), "10.0.0.1");
}

#[test]
fn who_cannot_be_told_shares_a_name() {
    assert_eq!(name_of(&ClientIp::new(), &Request::new(())).unwrap(), "unknown client");
    assert_eq!(name_of(&ClientIp::from_fn(|_| None), &from_peer("192.0.2.1")).unwrap(), "unknown client");
}

#[test]
fn proxies_are_counted_from_the_right() {
    let cases: &[(usize, &[&str], &str)] = &[
        (0, &["203.0.113.9"], "10.0.0.1"),
        (1, &["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (1, &["6.6.6.6", "203.0.113.9"], "203.0.113.9"),
        (2, &["6.6.6.6, 203.0.113.9", "10.0.0.2"], "203.0.113.9"),
        (2, &["6.6.6.6, 203.0.113.9,10.0.0.2"], "203.0.113.9"),
        (2, &["203.0.113.9"], "unknown client"),
        (1, &[], "unknown client"),
        (1, &[""], "unknown client"),
        (1, &["203.0.113.9, "], "unknown client"),
        (1, &["203.0.113.9, unknown"], "unknown client"),
        (1, &["203.0.113.9:4711"], "203.0.113.9"),
        (1, &["[2001:db8::1]:4711"], "2001:db8::/64"),
        (1, &["[2001:db8::1]"], "2001:db8::/64"),
        (1, &["2001:db8::1"], "2001:db8::/64"),
        (1, &["::ffff:203.0.113.9"], "203.0.113.9"),
        (64, &["203.0.113.9"], "unknown client"),
    ];
    for (hops, values, expected) in cases {
        let client = ClientIp::new().trusted_proxies(*hops);
        assert_eq!(name_of(&client, &forwarded(values)).unwrap(), *expected, "{hops} {values:?}");
    }
}
