use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::{Extensions, Request};

use crate::log_limit::LogLimit;

use self::forwarded::{MAX_ENTRIES, Source};
use super::{
    buf::NameBuf,
    header::header_name,
    networks::Networks,
    traits::{Name, Named},
};

mod forwarded;

/// The address of the peer of the connection that a request came over, as a request extension for [`ClientIp`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddr(pub SocketAddr);

/// Finds the address of a connection's peer.
type Peer = dyn Fn(&Extensions) -> Option<IpAddr> + Send + Sync;

/// Names an HTTP request by the address of its client.
///
/// The address is that of the connection's peer: a [`PeerAddr`] among the request's extensions, or what
/// [`from_fn`](Self::from_fn) finds there. Behind proxies of your own say which with
/// [`trusted_networks`](Self::trusted_networks), or how many with [`trusted_proxies`](Self::trusted_proxies). One
/// header is read then, from the right: `X-Forwarded-For`, [`Forwarded`](Self::forwarded) or one of [another
/// name](Self::header), and nothing that a client wrote into it itself is ever believed. It must be the one that your
/// proxies write: what they hand on as it came is the client's own word.
///
/// IPv4 addresses count one by one, also when they are written as IPv6 (`::ffff:192.0.2.1`). IPv6 addresses count by
/// their first 64 bits, which is what one client commonly has to itself. Brackets and ports are left out.
///
/// Requests whose client cannot be told share the one name `unknown client`, and are logged at most once a second:
/// where there is no peer or no header, where the entry is no address (`unknown`, `_hidden`, one with a zone, text that
/// is not well-formed), and where it lies beyond the last 64 entries or 8 KiB, which is as far as anything is read.
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
///
/// // And behind a balancer in 10.0.0.0/8.
/// let client = client.trusted_networks(["10.0.0.0/8"]);
/// let peer = ConnectInfo("10.0.0.7:4000".parse().unwrap());
/// let req = Request::get("/").header("x-forwarded-for", "6.6.6.6, 203.0.113.9");
/// let req = req.extension::<ConnectInfo<std::net::SocketAddr>>(peer).body(()).unwrap();
/// buf.clear();
/// assert_eq!(client.name(&req, &mut buf), Named::Yes);
/// assert_eq!(buf.as_bytes(), b"203.0.113.9");
/// ```
#[derive(Clone)]
pub struct ClientIp {
    peer: Arc<Peer>,
    trust: Trust,
    source: Source,
    ipv6_prefix: u8,
}

/// Whose word in the header is believed.
#[derive(Clone, Debug)]
enum Trust {
    Nobody,
    /// That of so many proxies, at least one, the last of which is the peer.
    Hops(usize),
    /// That of these.
    Networks(Networks),
}

impl ClientIp {
    /// By the [`PeerAddr`] among the request's extensions, which no server inserts by itself. With axum's `ConnectInfo`
    /// use [`from_fn`](Self::from_fn) as shown above; without either, all clients share one name.
    pub fn new() -> Self {
        Self::from_fn(|extensions| extensions.get::<PeerAddr>().map(|peer| peer.0.ip()))
    }

    /// By the address that `peer` finds among the request's extensions.
    pub fn from_fn(peer: impl Fn(&Extensions) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        Self { peer: Arc::new(peer), trust: Trust::Nobody, source: Source::XForwardedFor, ipv6_prefix: 64 }
    }

    /// Says that requests come through `hops` proxies, each of which appends to the header the address that it got the
    /// request from: the client is then the entry number `hops` from the right, over all fields of that name.
    ///
    /// Fewer entries than that, or no address in that place, mean that the client cannot be told. With 0, the default,
    /// the header is not read. The peer is not looked at, so the service must be out of reach except through all of the
    /// proxies; where it is not, or where some requests pass fewer of them,
    /// [`trusted_networks`](Self::trusted_networks) is the one to take.
    ///
    /// # Panics
    ///
    /// If `hops` is more than 64, or above 0 beside trusted networks: it is either how many or which.
    #[must_use]
    #[track_caller]
    pub fn trusted_proxies(mut self, hops: usize) -> Self {
        assert!(hops <= MAX_ENTRIES, "no more than {MAX_ENTRIES} proxies can be trusted, not {hops}");
        self.trust = match (self.trust, hops) {
            (Trust::Networks(networks), 0) => Trust::Networks(networks),
            (Trust::Networks(networks), _) if !networks.is_empty() => panic_for_both(hops, &networks),
            (_, 0) => Trust::Nobody,
            _ => Trust::Hops(hops),
        };
        self
    }

    /// Says that the proxies in these networks are to be believed. If the peer of the connection is none of them, it is
    /// the client, and the header is not read. Otherwise the entries are walked from the right, over all fields of that
    /// name and past those within the networks: the first one outside is the client.
    ///
    /// Where every entry is within the networks, or there is none, the client cannot be told, and neither can it where
    /// an entry on the way is no address. So the networks should hold the proxies and no clients: those would share a
    /// name, and could write what they like into the header.
    ///
    /// Takes text such as `"10.0.0.0/8, fd00::/8"`, arrays and vectors of it, or [`Networks`] that were parsed before.
    /// With an empty list, no header is believed.
    ///
    /// # Panics
    ///
    /// If a text is no list of networks, with the text in the message, and beside
    /// [`trusted_proxies`](Self::trusted_proxies) above 0 unless the list is empty: it is either how many or which.
    #[must_use]
    #[track_caller]
    pub fn trusted_networks<N>(mut self, networks: N) -> Self
    where
        N: TryInto<Networks>,
        N::Error: fmt::Display,
    {
        let networks = Networks::or_panic(networks);
        self.trust = match self.trust {
            Trust::Hops(hops) if networks.is_empty() => Trust::Hops(hops),
            Trust::Hops(hops) => panic_for_both(hops, &networks),
            _ => Trust::Networks(networks),
        };
        self
    }

    /// Reads `Forwarded` (RFC 7239) in place of `X-Forwarded-For`: the `for` of its elements. Whether its word is taken
    /// is for [`trusted_networks`](Self::trusted_networks) or [`trusted_proxies`](Self::trusted_proxies) to say.
    ///
    /// An element that is not well-formed, or that has a comma within quotes, ends the reading: the client cannot be
    /// told.
    #[must_use]
    pub fn forwarded(mut self) -> Self {
        self.source = Source::Forwarded;
        self
    }

    /// Reads a header that holds nothing but the client's address, such as `CF-Connecting-IP` or `X-Real-IP`, in place
    /// of
    /// `X-Forwarded-For`. Whether its word is taken is for [`trusted_networks`](Self::trusted_networks) or
    /// [`trusted_proxies`](Self::trusted_proxies) to say; how many of these there are makes no difference.
    ///
    /// The proxies must replace what the client sends under this name. Two fields, or a list, mean that the client
    /// cannot be told.
    ///
    /// # Panics
    ///
    /// If `header` is not a valid name of a header.
    #[must_use]
    #[track_caller]
    pub fn header(mut self, header: impl AsRef<str>) -> Self {
        self.source = Source::Single(header_name(header.as_ref()));
        self
    }

    /// Counts IPv6 addresses by their first `bits` bits, 64 by default.
    ///
    /// # Panics
    ///
    /// If `bits` is 0 or more than 128.
    #[must_use]
    #[track_caller]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        assert!((1..=128).contains(&bits), "an IPv6 prefix has 1 to 128 bits, not {bits}");
        self.ipv6_prefix = bits;
        self
    }

    /// The whole address of the client, IPv4 as such, if it can be told.
    pub fn address<B>(&self, req: &Request<B>) -> Option<IpAddr> {
        let address = match &self.trust {
            Trust::Nobody => (self.peer)(req.extensions()),
            Trust::Hops(hops) => {
                let mut passed = 0;
                self.source.client(req.headers(), |_| {
                    passed += 1;
                    passed < *hops
                })
            }
            Trust::Networks(networks) => {
                let own = |address: Option<IpAddr>| address.is_some_and(|address| networks.contains(address));
                let peer = (self.peer)(req.extensions());
                if own(peer) { self.source.client(req.headers(), own) } else { peer }
            }
        };
        address.map(|address| address.to_canonical())
    }

    /// Whether a request's client is within these networks, for lists of clients to let pass or to turn away. A client
    /// that cannot be told is in no list, so where an unknown one must be turned away too, ask whether
    /// [`address`](Self::address) is `None`. Takes what [`trusted_networks`](Self::trusted_networks) takes.
    ///
    /// ```
    /// use http::Request;
    /// use tower_floodgate::name::{ClientIp, PeerAddr};
    ///
    /// let from_the_office = ClientIp::new().is_in(["198.51.100.0/24", "2001:db8:7::/48"]);
    ///
    /// let peer = PeerAddr("198.51.100.7:4000".parse().unwrap());
    /// assert!(from_the_office(&Request::get("/").extension(peer).body(()).unwrap()));
    /// assert!(!from_the_office(&Request::get("/").body(()).unwrap()));
    /// ```
    ///
    /// # Panics
    ///
    /// If a text is no list of networks, with the text in the message.
    #[track_caller]
    pub fn is_in<B, N>(&self, networks: N) -> impl Fn(&Request<B>) -> bool + Clone + Send + Sync + 'static + use<B, N>
    where
        N: TryInto<Networks>,
        N::Error: fmt::Display,
    {
        let (client, networks) = (self.clone(), Networks::or_panic(networks));
        move |req| client.address(req).is_some_and(|address| networks.contains(address))
    }
}

#[track_caller]
fn panic_for_both(hops: usize, networks: &Networks) -> ! {
    panic!("trust either so many proxies or those in some networks, not both {hops} and {networks}")
}

impl Default for ClientIp {
    fn default() -> Self {
        Self::new()
    }
}

impl<B> Name<Request<B>> for ClientIp {
    fn name(&self, req: &Request<B>, name: &mut NameBuf) -> Named {
        static LIMIT: LogLimit = LogLimit::new();
        match self.address(req) {
            Some(IpAddr::V4(address)) => name.push_fmt(format_args!("{address}")),
            Some(IpAddr::V6(address)) => {
                name.push_fmt(format_args!("{}/{}", network(address, self.ipv6_prefix), self.ipv6_prefix));
            }
            None => {
                if LIMIT.allows() {
                    tracing::warn!(
                        trust = ?self.trust,
                        header = %self.source.header(),
                        "requests whose client address cannot be told share one name: {}",
                        match (&self.trust, (self.peer)(req.extensions())) {
                            (Trust::Nobody | Trust::Networks(_), None) =>
                                "no peer's address among the extensions, take `ClientIp::from_fn` or insert a `PeerAddr`",
                            _ => "none in the header",
                        }
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
            .field("trust", &self.trust)
            .field("source", &self.source)
            .field("ipv6_prefix", &self.ipv6_prefix)
            .finish_non_exhaustive()
    }
}

fn network(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let host_bits = 128_u32.saturating_sub(u32::from(prefix));
    Ipv6Addr::from_bits(address.to_bits() & u128::MAX.checked_shl(host_bits).unwrap_or(0))
}

#[cfg(test)]
mod tests;
