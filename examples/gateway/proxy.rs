//! The stack of layers, and the client below them.

use crate::{flags::Flags, paths};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{self, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING},
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Bytes, Incoming};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{convert::Infallible, fmt, net::SocketAddr, str::FromStr};
use tower::{BoxError, Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use tower_floodgate::{
    BarrierLayer, Cache, Http, Semaphore, StampedeCacheLayer, ThrottleLayer,
    name::{self, Name, NameBuf, PeerAddr, Target},
};

type Outgoing = UnsyncBoxBody<Bytes, BoxError>;

/// What all of the stack looks like from outside, whichever layers are in it.
pub(crate) type Proxy = BoxCloneService<Request<Incoming>, Response<Outgoing>, Infallible>;

/// Throttle, then cache, then barrier, then the upstream. `port` is the one that the gateway listens on.
pub(crate) fn stack(flags: &Flags, cache: &Cache, upstream: Upstream, port: u16) -> Proxy {
    let scope = cache.scope("gateway");
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let mut proxy = boxed(service_fn(move |request| forward(client.clone(), upstream.clone(), request)));

    if let Some(places) = flags.barrier {
        let barrier = BarrierLayer::new(scope.clone(), Semaphore(places))
            .name(flags.barrier_by.name())
            .wait_at_most(flags.barrier_wait)
            .expire(flags.lease);
        proxy = boxed(barrier.layer(proxy));
    }
    if !flags.no_cache {
        // Answers of different upstreams must not meet. The demo origin is on another port each time.
        let origin = flags.upstream.as_ref().map_or("demo".to_owned(), |upstream| upstream.to_string());
        let answers = cache.scope(&format!("gateway {origin}"));
        let cache = StampedeCacheLayer::new(answers, flags.expire)
            .beta(flags.beta)
            .stale_while_revalidate(flags.stale)
            .stale_if_error(flags.stale)
            .name(target(port));
        let tagged = service_fn(move |request: Request<Incoming>| {
            let tag = paths::tag(request.uri().path());
            let answering = proxy.clone().oneshot(request);
            async move {
                let mut response = answering.await?;
                paths::add(response.headers_mut(), &tag);
                Ok(response)
            }
        });
        proxy = boxed(cache.layer(tagged).map_response(|mut response| {
            paths::take_off(response.headers_mut());
            response
        }));
    }
    if let Some((count, per)) = flags.throttle {
        let answer = if flags.quota_headers { Http::new().quota_headers().x_ratelimit() } else { Http::new() };
        let throttle = ThrottleLayer::new(scope, count, per)
            .name(flags.throttle_by.name())
            .wait_at_most(flags.throttle_wait)
            .answer(answer);
        proxy = boxed(throttle.layer(proxy));
    }
    proxy
}

/// One type for every service, so that layers can be left out.
fn boxed<S, B>(service: S) -> Proxy
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    BoxCloneService::new(
        service.map_response(|response: Response<B>| response.map(|body| body.map_err(Into::into).boxed_unsync())),
    )
}

/// Answers are named by method, host, path and query. The port does not count where it is the gateway's own, so that
/// gateways on several ports share answers. Another does: a client may write there what it likes. (Requests with a body
/// are not named at all: the cache lets them pass.)
fn target<B>(port: u16) -> impl Name<Request<B>> + Clone {
    let (target, port) = (Target::new(), format!(":{port}"));
    name::from_fn(move |request: &Request<B>, name: &mut NameBuf| {
        let mut hosts = request.headers().get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return target.name(request, name) };
        let host = host.as_bytes().strip_suffix(port.as_bytes()).and_then(|host| HeaderValue::from_bytes(host).ok());
        let Some(host) = host else { return target.name(request, name) };
        let mut portless = Request::new(());
        *portless.method_mut() = request.method().clone();
        *portless.uri_mut() = request.uri().clone();
        portless.headers_mut().insert(HOST, host);
        target.name(&portless, name)
    })
}

/// Where requests go: `http://authority`, and what comes before their paths.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    authority: Authority,
    prefix: String,
}

impl Upstream {
    fn target(&self, path: &str) -> Result<Uri, http::Error> {
        let path: PathAndQuery = match &*self.prefix {
            "" => path.parse()?,
            prefix => format!("{prefix}{path}").parse()?,
        };
        Uri::builder().scheme(Scheme::HTTP).authority(self.authority.clone()).path_and_query(path).build()
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.prefix)
    }
}

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error: http::uri::InvalidUri| error.to_string())?;
        if uri.scheme() != Some(&Scheme::HTTP) {
            return Err("it must begin with http://".into());
        }
        let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or("it names no host")?;
        if authority.as_str().contains('@') || uri.query().is_some() || text.contains('#') {
            return Err("it may have a host, a port and a path, nothing else".into());
        }
        Ok(Upstream { authority: authority.clone(), prefix: uri.path().trim_end_matches('/').into() })
    }
}

impl From<SocketAddr> for Upstream {
    fn from(address: SocketAddr) -> Self {
        let authority = Authority::from_str(&address.to_string()).expect("an address is an authority");
        Upstream { authority, prefix: String::new() }
    }
}

/// Brings what may be said in several ways into one, before any layer looks: the host is in `Host`, not in the URI, the
/// peer's address is known, and what was meant for this hop only is gone.
pub(crate) fn normalize<B>(mut request: Request<B>, peer: SocketAddr) -> Request<B> {
    request.extensions_mut().insert(PeerAddr(peer));
    let uri = request.uri();
    if let (Some(authority), Some(path)) = (uri.authority(), uri.path_and_query()) {
        // Of `user@host` the host: RFC 9110 wants no user in a `Host`.
        let host = authority.as_str().rsplit('@').next().unwrap_or_default();
        let host = HeaderValue::from_str(host);
        *request.uri_mut() = Uri::from(path.clone());
        if let Ok(host) = host {
            request.headers_mut().insert(HOST, host);
        }
    }
    // HTTP/2 may split it; nothing else may (RFC 9113 section 8.2.3).
    if request.headers().get_all(COOKIE).iter().nth(1).is_some() {
        let cookies: Vec<&[u8]> = request.headers().get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            request.headers_mut().insert(COOKIE, cookie);
        }
    }
    strip_hop_by_hop(request.headers_mut());
    request
}

/// Calls the upstream. It cannot fail: an upstream that cannot be reached is a 502.
async fn forward(
    client: Client<HttpConnector, Incoming>,
    upstream: Upstream,
    mut request: Request<Incoming>,
) -> Result<Response<Outgoing>, Infallible> {
    if request.method() == Method::CONNECT {
        return Ok(problem(StatusCode::NOT_IMPLEMENTED, "this is no tunnel"));
    }
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    match upstream.target(path) {
        Ok(target) => *request.uri_mut() = target,
        Err(_) => return Ok(problem(StatusCode::BAD_REQUEST, "the target of the request makes no URL")),
    }
    *request.version_mut() = Version::HTTP_11;
    let length_unknown = !request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH);
    if length_unknown && !request.headers().contains_key(TRANSFER_ENCODING) {
        // HTTP/2 need not say it, and the client would send a GET without its body.
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    match client.request(request).await {
        Ok(mut response) => {
            strip_hop_by_hop(response.headers_mut());
            response.headers_mut().remove(TRANSFER_ENCODING);
            // The version is the connection's, not the answer's.
            *response.version_mut() = Version::default();
            Ok(response.map(|body| body.map_err(Into::into).boxed_unsync()))
        }
        Err(error) if error.is_connect() => Ok(problem(StatusCode::BAD_GATEWAY, "the upstream cannot be reached")),
        Err(_) => Ok(problem(StatusCode::BAD_GATEWAY, "the upstream did not answer the request")),
    }
}

/// RFC 9457.
fn problem(status: StatusCode, detail: &str) -> Response<Outgoing> {
    let title = status.canonical_reason().unwrap_or_default();
    let body = serde_json::json!({ "title": title, "status": status.as_u16(), "detail": detail }).to_string();
    let mut response = Response::new(Full::from(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    response
}

/// Fields that are about one connection or one proxy (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// Removes what is about this connection, and what `Connection` says is. The fields that frame and route a message are
/// not for `Connection` to remove: what the layers took them for would no longer be what the upstream gets.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| ![HOST, CONTENT_LENGTH, TRANSFER_ENCODING].contains(name))
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
