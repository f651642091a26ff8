use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::{Extensions, HeaderMap, HeaderName, Request};

use crate::hush::Hush;

use super::{Name, NameBuf, Named};

static X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The address of the peer of the connection that a request came over, as a request extension for [`ClientIp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// Finds the address of a connection's peer.
type Peer = dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync;

/// Names an HTTP request by the address of its client.
///
/// The address is that of the connection's peer: a [`PeerAddr`] among the request's extensions, or what
/// [`from_fn`](Self::from_fn) finds there. Behind proxies of your own say how many with
/// [`trusted_proxies`](Self::trusted_proxies); nothing that a client wrote itself is ever believed then.
///
/// IPv4 addresses count one by one, also when they are written as IPv6 (`::ffff:192.0.2.1`). IPv6 addresses count by
/// their first 64 bits, which is what one client commonly has to itself.
///
/// Requests whose client cannot be told share the one name `unknown client`, and are logged at most once a second.
///
/// ```
/// use http::{Extensions, Request};
/// use tower_floodgate::name::{ClientIp, Name, NameBuf, Named};
/// # #[derive(Clone)] struct ConnectInfo<T>(T);
///
/// // The peer's address as axum's `into_make_service_with_connect_info` provides it.
/// let client = ClientIp::from_fn(|extensions: &Extensions| {
///     extensions.get::<ConnectInfo<std::net::SocketAddr>>().map(|peer| peer.0.ip())
/// });
///
/// let peer = ConnectInfo("[2001:db8::7]:4000".parse().unwrap());
/// let req = Request::get("/").extension::<ConnectInfo<std::net::SocketAddr>>(peer).body(()).unwrap();
/// let mut buf = NameBuf::new();
/// assert_eq!(client.name(&req, &mut buf), Named::Yes);
/// assert_eq!(buf.as_bytes(), b"2001:db8::/64");
/// ```
#[derive(Clone)]
pub struct ClientIp {
    peer: Arc<Peer>,
    trusted_proxies: usize,
    ipv6_prefix: u8,
}

impl ClientIp {
    /// By the [`PeerAddr`] among the request's extensions, which no server inserts by itself. With axum's `ConnectInfo` use
    /// [`from_fn`](Self::from_fn) as shown above; without either, all clients share one name.
    pub fn new() -> Self {
        Self::from_fn(|extensions| extensions.get::<PeerAddr>().map(|peer| peer.0.ip()))
    }

    /// By the address that `peer` finds among the request's extensions.
    pub fn from_fn(peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        Self { peer: Arc::new(peer), trusted_proxies: 0, ipv6_prefix: 64 }
    }

    /// Says that requests come through `hops` proxies which each append to `X-Forwarded-For` whom they got them from:
    /// the client is then the entry number `hops` from the right, over all fields of that name.
    ///
    /// Fewer entries than that, or no address in that place, mean that the client cannot be told. With 0, the default,
    /// the header is not read. The service must then be out of reach except through the proxies.
    #[must_use]
    pub fn trusted_proxies(mut self, hops: usize) -> Self {
        self.trusted_proxies = hops;
        self
    }

    /// Counts IPv6 addresses by their first `bits` bits, 64 by default.
    ///
    /// # Panics
    ///
    /// If `bits` is 0 or more than 128.
    #[must_use]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        assert!((1..=128).contains(&bits), "an IPv6 prefix has 1 to 128 bits, not {bits}");
        self.ipv6_prefix = bits;
        self
    }

    fn address<B>(&self, req: &Request<B>) -> Option<IpAddr> {
        match self.trusted_proxies.checked_sub(1) {
            None => (self.peer)(req.extensions()),
            Some(skip) => forwarded_for(req.headers(), skip),
        }
    }
}

impl Default for ClientIp {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> Name<Request<B>> for ClientIp {
    fn name(&self, req: &Request<B>, name: &mut NameBuf) -> Named {
        static HUSH: Hush = Hush::new();
        match self.address(req).map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => name.push_fmt(format_args!("{address}")),
            Some(IpAddr::V6(address)) => {
                name.push_fmt(format_args!("{}/{}", network(address, self.ipv6_prefix), self.ipv6_prefix));
            }
            None => {
                if HUSH.due() {
                    tracing::warn!(
                        trusted_proxies = self.trusted_proxies,
                        "requests whose client address cannot be told share one name"
                    );
                }
                name.push_str("unknown client");
            }
        }
        Named::Yes
    }
}

impl fmt::Debug for ClientIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIp")
            .field("trusted_proxies", &self.trusted_proxies)
            .field("ipv6_prefix", &self.ipv6_prefix)
            .finish_non_exhaustive()
    }
}

fn network(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let host_bits = 128_u32.saturating_sub(u32::from(prefix));
    Ipv6Addr::from_bits(address.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0))
}

/// The entry of `X-Forwarded-For` that has `skip` entries to its right. Empty entries count: to step over one would be
/// to believe the entry before it, which nobody vouches for.
fn forwarded_for(headers: &HeaderMap, skip: usize) -> Option<IpAddr> {
    let mut entries =
        headers.get_all(&X_FORWARDED_FOR).iter().rev().flat_map(|value| value.as_bytes().rsplit(|&byte| byte == b','));
    address(std::str::from_utf8(entries.nth(skip)?).ok()?.trim_matches([' ', '\t']))
}

/// An address, with or without brackets and port: some proxies append those.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.parse().ok();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|socket| socket.ip());
    bare.or_else(bracketed).or_else(with_port)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
            (usize::MAX, &["203.0.113.9"], "unknown client"),
        ];
        for (hops, values, expected) in cases {
            let client = ClientIp::new().trusted_proxies(*hops);
            assert_eq!(name_of(&client, &forwarded(values)).unwrap(), *expected, "{hops} {values:?}");
        }
    }

    proptest! {
        #[test]
        fn what_a_client_sends_changes_nothing(sent in proptest::collection::vec("[ -~]{0,20}", 0..4)) {
            let mut values: Vec<&str> = sent.iter().map(String::as_str).collect();
            values.push("203.0.113.9");
            let client = ClientIp::new().trusted_proxies(1);
            prop_assert_eq!(name_of(&client, &forwarded(&values)).unwrap(), "203.0.113.9");
        }

        #[test]
        fn any_bytes_are_answered(value in proptest::collection::vec(32u8..=255, 0..40), hops in 0usize..4) {
            if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                let mut req = Request::new(());
                req.headers_mut().insert("x-forwarded-for", value);
                prop_assert!(name_of(&ClientIp::new().trusted_proxies(hops), &req).is_some());
            }
        }
    }
}
