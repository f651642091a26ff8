//! Who is counted: clients behind proxies, whatever they write into headers, and names made of several.

#[path = "support/probe.rs"]
mod probe;

use axum::{Router, body::Body as AxumBody, extract::MatchedPath, routing::get};
use http::{HeaderValue, Request, Response};
use probe::{MINUTE, cache, soon};
use proptest::{prelude::*, test_runner::RngSeed};
use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::{IpAddr, SocketAddr},
    path::Path as FilePath,
    time::Duration,
};
use tower::{Layer, Service, ServiceExt, service_fn, util::ServiceFn};
use tower_floodgate::{
    BarrierLayer, Body, Cache, Lock, StampedeCacheLayer, ThrottleLayer,
    name::{ApiKey, ClientIp, GrpcMethod, Header, Name, NameBuf, Path, PeerAddr, Target, extension},
};

const HOUR: Duration = Duration::from_secs(3_600);

type Hello = ServiceFn<fn(Request<String>) -> Ready<Result<Response<String>, Infallible>>>;

fn hello() -> Hello {
    service_fn(|_| ready(Ok(Response::new("hello".into()))))
}

async fn ask<L, S>(layer: &L, request: Request<String>) -> Response<Body<String>>
where
    L: Layer<Hello, Service = S>,
    S: Service<Request<String>, Response = Response<Body<String>>, Error = Infallible>,
{
    soon(layer.layer(hello()).oneshot(request)).await.unwrap()
}

/// One request an hour for each name.
fn once<N>(cache: &Cache, scope: &str, name: N) -> ThrottleLayer<N> {
    ThrottleLayer::new(cache.scope(scope), 1, HOUR).name(name)
}

fn name_of<B>(name: &impl Name<Request<B>>, request: &Request<B>) -> String {
    let mut buffer = NameBuf::new();
    let _ = name.name(request, &mut buffer);
    buffer.to_string()
}

/// The ways of telling clients apart behind proxies.
#[derive(Clone, Copy, Debug)]
enum Via {
    /// `X-Forwarded-For`, so many proxies.
    For(usize),
    /// `X-Forwarded-For`, proxies in `OWN`.
    ForOwn,
    /// `Forwarded`, so many proxies.
    Fwd(usize),
    /// `Forwarded`, proxies in `OWN`.
    FwdOwn,
    /// `CF-Connecting-IP`, proxies in `OWN`.
    OneOwn,
}
use Via::*;

const ALL: [Via; 8] = [For(1), For(2), For(3), ForOwn, Fwd(1), Fwd(2), FwdOwn, OneOwn];
const OWN: &str = "10.0.0.0/8, fd00::/8";

impl Via {
    fn name(self) -> ClientIp {
        let client = ClientIp::new();
        match self {
            For(hops) => client.trusted_proxies(hops),
            ForOwn => client.trusted_networks(OWN),
            Fwd(hops) => client.trusted_proxies(hops).forwarded(),
            FwdOwn => client.forwarded().trusted_networks(OWN),
            OneOwn => client.header("CF-Connecting-IP").trusted_networks(OWN),
        }
    }

    fn header(self) -> &'static str {
        match self {
            For(_) | ForOwn => "x-forwarded-for",
            Fwd(_) | FwdOwn => "forwarded",
            OneOwn => "cf-connecting-ip",
        }
    }

    /// What the proxies say of a client.
    fn entries(self, client: &str) -> Vec<String> {
        let proxies = match self {
            For(hops) | Fwd(hops) => hops - 1,
            ForOwn | FwdOwn => 2,
            OneOwn => 0,
        };
        let addresses = [client, "10.9.9.9", "fd00::9"].into_iter().take(1 + proxies);
        match self {
            Fwd(_) | FwdOwn => {
                addresses.map(|a| format!("proto=https;For=\"{}\"", a.parse::<IpAddr>().map(node).unwrap())).collect()
            }
            _ => addresses.map(str::to_owned).collect(),
        }
    }

    fn honest(self, client: &str) -> Request<String> {
        self.request("10.0.0.1", &[self.entries(client).join(", ")])
    }

    fn request<V: AsRef<[u8]>>(self, peer: &str, values: &[V]) -> Request<String> {
        let mut request = Request::new(String::new());
        request.extensions_mut().insert(PeerAddr(SocketAddr::new(peer.parse().unwrap(), 4711)));
        for value in values {
            request.headers_mut().append(self.header(), HeaderValue::from_bytes(value.as_ref()).unwrap());
        }
        request
    }
}

fn node(address: IpAddr) -> String {
    SocketAddr::new(address, 80).to_string()
}

const ADA: &str = "203.0.113.9";
const BOB: &str = "198.51.100.77";
const ADA6: &str = "2001:db8:9::1";
const UNKNOWN: &str = "unknown";

/// How it is told, the peer, the fields, and whose request it is.
type Forged = (Via, &'static str, &'static [&'static str], &'static str);

const LB: &str = "10.0.0.1";

/// 6.6.6.6 is who the sender would like to be.
const FORGED: &[Forged] = &[
    // One proxy: the last entry, whatever precedes it.
    (For(1), LB, &["6.6.6.6, 203.0.113.9"], ADA),
    (For(1), LB, &["6.6.6.6", "203.0.113.9"], ADA),
    (For(1), LB, &["6.6.6.6,,,\t203.0.113.9 "], ADA),
    (For(1), LB, &["\"6.6.6.6, 203.0.113.9"], ADA),
    (For(1), LB, &["for=6.6.6.6; 203.0.113.9, 203.0.113.9:4711"], ADA),
    (For(1), LB, &["6.6.6.6, ::ffff:203.0.113.9"], ADA),
    (For(1), LB, &["6.6.6.6, [::ffff:203.0.113.9]:80"], ADA),
    (For(1), LB, &["2001:db8:1::1, [2001:db8:9:0:ffff::7]:80"], ADA6),
    (For(1), LB, &["2001:db8:1::1, 2001:DB8:9::2"], ADA6),
    (For(1), LB, &[], UNKNOWN),
    (For(1), LB, &[""], UNKNOWN),
    (For(1), LB, &["6.6.6.6, "], UNKNOWN),
    (For(1), LB, &["6.6.6.6", ""], UNKNOWN),
    (For(1), LB, &["6.6.6.6, unknown"], UNKNOWN),
    (For(1), LB, &["6.6.6.6, _hidden"], UNKNOWN),
    (For(1), LB, &["6.6.6.6, fe80::1%eth0"], UNKNOWN),
    (For(1), LB, &["6.6.6.6, [fe80::1%1]:80"], UNKNOWN),
    (For(1), LB, &["6.6.6.6, 203.0.113.009"], UNKNOWN),
    (For(1), LB, &["6.6.6.6, 3405803785"], UNKNOWN),
    (For(1), LB, &["6.6.6.6, 203.0.113.9 6.6.6.6"], UNKNOWN),
    (For(1), LB, &["6.6.6.6;203.0.113.9"], UNKNOWN),
    // Two: whoever comes past the outer one has too few.
    (For(2), LB, &["6.6.6.6, 203.0.113.9, 10.0.0.2"], ADA),
    (For(2), LB, &["6.6.6.6", "203.0.113.9", "unknown"], ADA),
    (For(2), LB, &["6.6.6.6, 203.0.113.9,"], ADA),
    (For(2), LB, &["203.0.113.9"], UNKNOWN),
    (For(2), LB, &["6.6.6.6, , 203.0.113.9"], UNKNOWN),
    // By network: the peer, else the first from the right who is none of them.
    (ForOwn, ADA, &["6.6.6.6"], ADA),
    (ForOwn, ADA, &["6.6.6.6, 10.0.0.2"], ADA),
    (ForOwn, "::ffff:203.0.113.9", &["6.6.6.6, 10.0.0.2"], ADA),
    (ForOwn, "2001:db8:9::5", &["fd00::1"], ADA6),
    (ForOwn, LB, &["6.6.6.6, 203.0.113.9"], ADA),
    (ForOwn, LB, &["10.6.6.6, 203.0.113.9, 10.0.0.2"], ADA),
    (ForOwn, "::ffff:10.0.0.1", &["10.6.6.6", "203.0.113.9, fd00::2", "::ffff:10.0.0.3"], ADA),
    (ForOwn, "fd00::1", &["6.6.6.6, 10.6.6.6, [2001:db8:9::1]:443, 10.0.0.2:80"], ADA6),
    (ForOwn, LB, &[], UNKNOWN),
    (ForOwn, LB, &["10.6.6.6, fd00::2"], UNKNOWN),
    (ForOwn, LB, &["6.6.6.6, unknown, 10.0.0.2"], UNKNOWN),
    (ForOwn, LB, &["6.6.6.6, , 10.0.0.2"], UNKNOWN),
    (ForOwn, LB, &["6.6.6.6, fd00::1%1"], UNKNOWN),
    (ForOwn, LB, &["6.6.6.6, 10.0.0.0/8"], UNKNOWN),
    // RFC 7239.
    (Fwd(1), LB, &["for=6.6.6.6, for=203.0.113.9"], ADA),
    (Fwd(1), LB, &["for=6.6.6.6", "proto=http;FOR=\"203.0.113.9:_x\";by=10.0.0.1"], ADA),
    (Fwd(1), LB, &["for=\"6.6.6.6, for=203.0.113.9"], ADA),
    (Fwd(1), LB, &["for=6.6.6.6;x=\"\\, For=203.0.113.9;host=\"a;for=6.6.6.6\""], ADA),
    (Fwd(1), LB, &["for=\"[2001:db8:1::1]\", for=\"[2001:db8:9::7]:4711\""], ADA6),
    (Fwd(1), LB, &["for=6.6.6.6;x=\", for=203.0.113.9;host=a\""], UNKNOWN),
    (Fwd(1), LB, &["for=203.0.113.9;for=6.6.6.6"], UNKNOWN),
    (Fwd(1), LB, &["for=6.6.6.6, for=unknown"], UNKNOWN),
    (Fwd(1), LB, &["for=6.6.6.6, for=_6.6.6.6"], UNKNOWN),
    (Fwd(1), LB, &["for=6.6.6.6, by=10.0.0.1;proto=http"], UNKNOWN),
    (Fwd(1), LB, &["for=6.6.6.6, 203.0.113.9"], UNKNOWN),
    (Fwd(1), LB, &["for=6.6.6.6, for=\"[fe80::1%25eth0]\""], UNKNOWN),
    (Fwd(1), LB, &["for=6.6.6.6,"], UNKNOWN),
    (Fwd(2), LB, &["for=6.6.6.6, for=203.0.113.9;proto=https", "for=_inner"], ADA),
    (Fwd(2), LB, &["for=203.0.113.9, for=10.0.0.2;host=\"a,for=6.6.6.6,b\""], UNKNOWN),
    (Fwd(2), LB, &["for=6.6.6.6, for=203.0.113.9, for=10.0.0.2;host=a\""], UNKNOWN),
    (FwdOwn, ADA, &["for=6.6.6.6"], ADA),
    (FwdOwn, LB, &["for=10.6.6.6, for=203.0.113.9, for=\"[fd00::2]:80\""], ADA),
    (FwdOwn, LB, &["for=6.6.6.6;x=\"", "for=203.0.113.9", "for=\"\\10.0.0.2\""], ADA),
    (FwdOwn, LB, &["for=6.6.6.6, for=_proxy"], UNKNOWN),
    (FwdOwn, LB, &["for=10.0.0.3, for=10.0.0.2"], UNKNOWN),
    // A header that is set by the proxy.
    (OneOwn, ADA, &["6.6.6.6"], ADA),
    (OneOwn, LB, &["203.0.113.9"], ADA),
    (OneOwn, LB, &["6.6.6.6, 203.0.113.9"], UNKNOWN),
    (OneOwn, LB, &["6.6.6.6", "203.0.113.9"], UNKNOWN),
    (OneOwn, LB, &["203.0.113.9", "203.0.113.9"], UNKNOWN),
];

#[tokio::test]
async fn a_forged_header_spends_the_budget_of_its_sender() {
    let cache = cache();
    for (row, (via, peer, values, whose)) in FORGED.iter().enumerate() {
        let layer = once(&cache, &format!("row {row}"), via.name());
        let honest = if *whose == UNKNOWN { via.request(LB, &[] as &[&str]) } else { via.honest(whose) };
        let forged = via.request(peer, values);
        assert_eq!(layer.name_of(&forged), layer.name_of(&honest), "{via:?} {values:?} from {peer}");
        let mut seen = Vec::new();
        for request in [honest, forged, via.honest(BOB), via.honest(BOB)] {
            seen.push(ask(&layer, request).await.status().as_u16());
        }
        assert_eq!(seen, [200, 429, 200, 429], "{via:?} {values:?} from {peer}");
    }
    let told = |of: fn(&Via) -> bool| FORGED.iter().filter(|forged| of(&forged.0)).count();
    assert!(told(|via| matches!(via, For(_) | ForOwn)) >= 40);
    assert!(told(|via| matches!(via, Fwd(_) | FwdOwn)) >= 20);
}

#[test]
fn honest_clients_have_their_own_names() {
    for via in ALL {
        let name = |client| name_of(&via.name(), &via.honest(client));
        assert_eq!(
            [name(ADA), name(BOB), name(ADA6), name("2001:db8:9::2"), name("2001:db8:a::1")],
            [ADA, BOB, "2001:db8:9::/64", "2001:db8:9::/64", "2001:db8:a::/64"],
            "{via:?}"
        );
        let wide = via.name().ipv6_prefix(56);
        assert_eq!(name_of(&wide, &via.honest("2001:db8:9:1ff::1")), "2001:db8:9:100::/56", "{via:?}");
    }
}

#[test]
fn only_the_header_that_was_chosen_is_read() {
    for via in ALL {
        let mut request = via.honest(ADA);
        for header in ["x-forwarded-for", "forwarded", "cf-connecting-ip", "x-real-ip", "x-client-ip", "client-ip"] {
            if header != via.header() {
                for value in ["6.6.6.6", "for=6.6.6.6"] {
                    request.headers_mut().append(header, HeaderValue::from_static(value));
                }
            }
        }
        assert_eq!(name_of(&via.name(), &request), ADA, "{via:?}");
    }
}

#[test]
fn no_more_than_the_last_entries_are_read() {
    let within = |proxies: usize| {
        let own: Vec<_> = std::iter::once(ADA).chain(std::iter::repeat_n("10.0.0.2", proxies)).collect();
        name_of(&ForOwn.name(), &ForOwn.request(LB, &[own.join(",")]))
    };
    assert_eq!([within(63), within(64)], [ADA, "unknown client"]);
    let padded = |bytes: usize| {
        let value = format!("{ADA},{}10.0.0.2", " ".repeat(bytes));
        name_of(&ForOwn.name(), &ForOwn.request(LB, &[value]))
    };
    assert_eq!([padded(8_000), padded(8_192), padded(1 << 20)], [ADA, "unknown client", "unknown client"]);
}

/// What somebody sends who knows the grammars.
fn sent() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            ",", ", ", ";", "\"", "\\", "=", " ", "for=", "For=\"", "6.6.6.6", "10.0.0.2", "[fd00::2]", ":80",
            "unknown", "x=\"", "\\\"", "_x", "%1", "for=6.6.6.6", "for=10.0.0.3",
        ]).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec((32u8..=255).prop_filter("no control", |byte| *byte != 127), 0..8),
    ];
    let field = prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
    prop::collection::vec(field, 0..4)
}

fn via() -> impl Strategy<Value = Via> {
    prop::sample::select(ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(7239),
        failure_persistence: None,
        ..ProptestConfig::with_cases(4_000)
    })]

    #[test]
    fn what_is_put_in_front_changes_nobodys_name(
        via in via().prop_filter("set by the proxy, not added to", |via| !matches!(via, OneOwn)),
        mut sent in sent(),
        (joined, blank) in (0usize..4, any::<bool>()),
    ) {
        // Proxies add a field each, or to the last one there is.
        for (nth, entry) in via.entries(ADA).into_iter().enumerate() {
            match sent.last_mut() {
                Some(last) if nth < joined => {
                    last.extend_from_slice(if blank { b", " } else { b"," });
                    last.extend_from_slice(entry.as_bytes());
                }
                _ => sent.push(entry.into_bytes()),
            }
        }
        prop_assert_eq!(name_of(&via.name(), &via.request(LB, &sent)), ADA);
    }

    #[test]
    fn whatever_is_sent_from_outside_is_the_peers(via in via(), sent in sent()) {
        let name = name_of(&via.name(), &via.request(ADA, &sent));
        prop_assert!(matches!(via, For(_) | Fwd(_)) || name == ADA);
    }

    #[test]
    fn any_bytes_are_answered(via in via(), sent in sent(), peer in prop::sample::select(vec![LB, ADA, "fd00::1"])) {
        let request = via.request(peer, &sent);
        let address = via.name().address(&request);
        prop_assert_eq!(address.is_none(), name_of(&via.name(), &request) == "unknown client");
    }

    /// Elements of every spelling that RFC 7239 allows, but for commas within quotes.
    #[test]
    fn forwarded_is_read_as_it_is_written(
        elements in prop::collection::vec(
            (any::<IpAddr>(), 0usize..5, any::<[bool; 5]>(), prop::sample::select(vec!["for", "For", "FOR", "fOr"])),
            1..6,
        ),
        hops in 1usize..7,
    ) {
        let mut values: Vec<String> = Vec::new();
        for (address, port, [quoted, escaped, before, after, field], parameter) in &elements {
            let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
            let mut value = host + ["", ":0", ":65535", ":_a-b", ":_.."][*port];
            if *quoted || value.contains(':') {
                if *escaped {
                    value = value.chars().flat_map(|symbol| ['\\', symbol]).collect();
                }
                value = format!("\"{value}\"");
            }
            let element = [
                if *before { r#"by="\"a;for=6.6.6.6\\";"# } else { "" },
                parameter, "=", &value,
                if *after { ";proto=https;host=\"for=\"" } else { "" },
            ].concat();
            match values.last_mut() {
                Some(last) if !field => *last = format!("{last}, {element}"),
                _ => values.push(element),
            }
        }
        let expected = elements.len().checked_sub(hops).map(|at| elements[at].0.to_canonical());
        let client = ClientIp::new().forwarded().trusted_proxies(hops);
        prop_assert_eq!(client.address(&Fwd(hops).request(LB, &values)), expected);
    }
}

#[test]
fn lists_of_clients() {
    /// What a layer asks of a predicate.
    fn fits<B>(
        predicate: impl Fn(&Request<B>) -> bool + Clone + Send + Sync + 'static,
    ) -> impl Fn(&Request<B>) -> bool {
        predicate
    }
    let list = String::from("203.0.113.0/24, 2001:db8:9::1");
    let listed = fits(ForOwn.name().is_in(list.as_str()));
    drop(list);
    assert_eq!(
        [ADA, BOB, ADA6, "2001:db8:9::2"].map(|client| listed(&ForOwn.honest(client))),
        [true, false, true, false]
    );
    // Not by the header of somebody else, and unknown ones are in no list, even one of all.
    assert!(!listed(&ForOwn.request(BOB, &[ADA])));
    let all = fits(ForOwn.name().is_in(["0.0.0.0/0", "::/0"]));
    assert!(all(&ForOwn.honest(BOB)) && !all(&ForOwn.request(LB, &["unknown"])) && !all(&Request::new(String::new())));
}

fn keyed(path: &str, key: &str) -> Request<String> {
    Request::post(path).header("authorization", format!("Bearer {key}")).body(String::new()).unwrap()
}

#[tokio::test]
async fn a_route_and_a_client_in_axum() {
    let cache = cache();
    let route = extension(|route: &MatchedPath| route.as_str().to_owned());
    let client = ClientIp::new().trusted_networks([LB]);
    let app = Router::new()
        .route("/users/{id}", get(|| async {}))
        .nest("/api", Router::new().route("/users/{id}", get(|| async {})))
        .route_layer(once(&cache, "routes", (route, client)));
    let mut seen = Vec::new();
    for (path, client) in [
        ("/users/1", ADA),
        ("/users/2", ADA),
        ("/users/2", BOB),
        ("/api/users/1", ADA),
        ("/api/users/3", ADA),
        ("/api/users/3", BOB),
    ] {
        let mut request = Request::get(path).header("x-forwarded-for", client).body(AxumBody::empty()).unwrap();
        request.extensions_mut().insert(PeerAddr(SocketAddr::new(LB.parse().unwrap(), 1)));
        seen.push(soon(app.clone().oneshot(request)).await.unwrap().status().as_u16());
    }
    assert_eq!(seen, [200, 429, 200, 200, 429, 200]);
}

#[tokio::test]
async fn a_grpc_method_and_a_key() {
    let cache = cache();
    let layer = once(&cache, "methods", (GrpcMethod::new(), ApiKey::bearer()));
    let mut seen = Vec::new();
    for (method, key) in [("/a.B/C", "ada"), ("/a.B/C", "ada"), ("/a.B/D", "ada"), ("/a.B/C", "bob"), ("/a.B/C", "bob")]
    {
        let mut request = keyed(method, key);
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let response = ask(&layer, request).await;
        seen.push(response.headers().get("grpc-status").map(|status| status.to_str().unwrap().to_owned()));
    }
    assert_eq!(seen.iter().map(Option::as_deref).collect::<Vec<_>>(), [None, Some("8"), None, None, Some("8")]);
}

#[tokio::test]
async fn a_path_a_client_and_a_key() {
    let cache = cache();
    let layer = once(&cache, "all three", (Path, ForOwn.name(), ApiKey::header("x-api-key")));
    let request = |path: &str, client: &str, key: &'static str| {
        let mut request = ForOwn.honest(client);
        *request.uri_mut() = path.parse().unwrap();
        request.headers_mut().insert("x-api-key", HeaderValue::from_static(key));
        request
    };
    let mut seen = Vec::new();
    for (path, client, key) in [
        ("/a?x", ADA, "1"),
        ("/a?y", ADA, "1"),
        ("/b", ADA, "1"),
        ("/a", BOB, "1"),
        ("/a", ADA, "2"),
        ("/a", ADA6, "2"),
        ("/a", "2001:db8:9::ffff", "2"),
    ] {
        seen.push(ask(&layer, request(path, client, key)).await.status().as_u16());
    }
    assert_eq!(seen, [200, 429, 200, 200, 200, 200, 429]);
}

#[tokio::test]
async fn a_client_and_a_tenant() {
    #[derive(Clone)]
    struct Tenant(u32);
    let cache = cache();
    let layer = once(&cache, "tenants", (ForOwn.name(), extension(|tenant: &Tenant| tenant.0)));
    let mut seen = Vec::new();
    for (client, tenant) in [(ADA, 1), (ADA, 1), (ADA, 2), (BOB, 1)] {
        let mut request = ForOwn.honest(client);
        request.extensions_mut().insert(Tenant(tenant));
        seen.push(ask(&layer, request).await.status().as_u16());
    }
    assert_eq!(seen, [200, 429, 200, 200]);
}

/// Whether a file in this directory, or below it, has these bytes.
fn holds(directory: &FilePath, secret: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, secret);
        }
        std::fs::read(&path).unwrap().windows(secret.len()).any(|bytes| bytes == secret)
    })
}

/// Sends a key through all three layers, named by `name`, and looks for `wanted` in the files.
async fn is_kept<N>(name: N, wanted: &str) -> bool
where
    N: Name<Request<String>> + Clone + Send + Sync + 'static,
{
    let directory = tempfile::tempdir().unwrap();
    let cache = Cache::builder(directory.path()).size(4 << 20).state_size(1 << 20).open().unwrap();
    let throttle = ThrottleLayer::new(cache.scope("keys"), 9, MINUTE).name(name.clone());
    let barrier = BarrierLayer::new(cache.scope("keys"), Lock).name(name.clone());
    let stampede = StampedeCacheLayer::new(cache.scope("keys"), MINUTE).name((Target::new(), name));
    let request = || Request::get("/").header("x-api-key", SECRET).body(String::new()).unwrap();
    assert_eq!(ask(&throttle, request()).await.status(), 200);
    let held = ask(&barrier, request()).await;
    let stored = soon(stampede.layer(hello()).oneshot(request())).await.unwrap();
    assert_eq!((held.status().as_u16(), stored.status().as_u16()), (200, 200));
    assert!(!format!("{:?}", held.extensions()).contains(SECRET));
    holds(directory.path(), wanted.as_bytes())
}

const SECRET: &str = "sk-live-4f9a0c7d21";

#[tokio::test]
async fn keys_are_in_no_file() {
    let key = ApiKey::header("x-api-key");
    let request = Request::get("/").header("x-api-key", SECRET).body(String::new()).unwrap();
    let name = name_of(&key, &request);
    assert!(!name.contains(SECRET) && !format!("{key:?}").contains(SECRET));
    // The files do hold names, so the search can find what it is looking for.
    assert!(is_kept(Header::new("x-api-key"), SECRET).await);
    assert!(is_kept(key.clone(), &name).await);
    assert!(!is_kept(key, SECRET).await);
}
