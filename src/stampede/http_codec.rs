//! HTTP responses, kept whole: status, headers, body, trailers.

use super::{
    codec::{Access, Asked, Kept, Recorded, Replay, Terms, sealed},
    fresh::{self, Storable},
    status::CacheStatus,
    wire,
};
use crate::{
    body::{Body, Resumed},
    name,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use hyper::body::{Body as HttpBody, Bytes};
use std::{collections::VecDeque, future::poll_fn, time::Duration};
use tower::BoxError;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");

/// Bytes of a body that is kept, unless said otherwise.
const BODY_LIMIT: usize = 1 << 20;

/// Keeps HTTP responses whose body ends within a limit.
#[derive(Clone, Copy, Debug)]
pub struct Buffered {
    pub(super) limit: usize,
    /// The name accounts for the request's body.
    pub(super) bodies_named: bool,
}

impl Default for Buffered {
    fn default() -> Self {
        Buffered { limit: BODY_LIMIT, bodies_named: false }
    }
}

impl<A, B> sealed::Codec<Request<A>, Response<B>> for Buffered
where
    A: HttpBody,
    B: HttpBody<Data = Bytes> + Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body<B>>;
    type Head = HeaderMap;

    fn asked<'a>(&self, request: &'a Request<A>) -> Asked<'a, HeaderMap> {
        let bodiless = *request.method() == Method::HEAD;
        // The answer may depend on a body, and the name does not. HTTP/2 need not announce one. A name of the user's may
        // tell no methods apart; and what is to be done is not done by a stored answer.
        let unnamed = || {
            name::announces_body(request.headers())
                || !request.body().is_end_stream()
                || !matches!(*request.method(), Method::GET | Method::HEAD)
        };
        let access = match fresh::access(request.headers()) {
            Access::Shared | Access::Personal if !self.bodies_named && unnamed() => Access::Bypass,
            access => access,
        };
        Asked { access, bodiless, head: request.headers() }
    }

    fn for_everyone(&self, request: &mut Request<A>) {
        fresh::make_unconditional(request.headers_mut());
    }

    fn replay(
        &self,
        payload: &Bytes,
        asked: &Asked<'_, HeaderMap>,
        since: Duration,
        status: CacheStatus,
    ) -> Replay<Self::Response> {
        let Some(stored) = wire::decode(payload) else { return Replay::Unusable };
        if !wire::selects(&stored.vary, asked.head) {
            return Replay::Other(variant(stored.vary.iter().map(|(name, _)| name), asked.head));
        }
        if (asked.access == Access::Personal && !stored.public) || (stored.bodiless && !asked.bodiless) {
            return Replay::Unusable;
        }
        let age = since.as_secs().saturating_add(stored.age.into());
        let body = if asked.bodiless { Body::default() } else { Body::stored(stored.body, stored.trailers) };
        let mut response = Response::new(body);
        *response.status_mut() = stored.status;
        *response.headers_mut() = stored.headers;
        response.headers_mut().insert(header::AGE, age.into());
        Replay::Answer(tell(response, status))
    }

    async fn record(
        &self,
        response: Response<B>,
        asked: &Asked<'_, HeaderMap>,
        terms: Terms,
    ) -> Recorded<Self::Response> {
        let (parts, body) = response.into_parts();
        let pass = |parts, body, reason| Recorded { response: Response::from_parts(parts, body), kept: Err(reason) };
        let limit = self.limit.min(terms.largest);
        let tags = tags(&parts.headers);
        let allowed = match fresh::storable(parts.status, &parts.headers, asked.access, terms.default_life, terms.wall)
        {
            Storable::No(reason) => Err(reason),
            Storable::Yes(_) if body.size_hint().lower() > limit as u64 => Err("too-large"),
            // An eviction by one that is left out would miss it.
            Storable::Yes(_) if tags.len() > terms.tags => Err("too-many-tags"),
            Storable::Yes(allowed) => {
                let vary = fresh::vary(&parts.headers).filter(|vary| vary.is_empty() || terms.variants);
                vary.map(|vary| (allowed, vary)).ok_or("vary")
            }
        };
        let (allowed, vary) = match allowed {
            Ok(allowed) => allowed,
            Err(reason) => return pass(parts, Body::inner(body), reason),
        };
        let (data, trailers) = match collect(body, limit).await {
            Ok(whole) => whole,
            Err((resumed, reason)) => return pass(parts, Body::resumed(resumed), reason),
        };
        if !fresh::grpc_ok(&parts.headers, trailers.as_ref()) {
            return pass(parts, Body::stored(data, trailers), "grpc-status");
        }
        if trailers.as_ref().is_some_and(|trailers| trailers.contains_key(header::SET_COOKIE)) {
            return pass(parts, Body::stored(data, trailers), "set-cookie");
        }
        let mut payload = Vec::with_capacity(data.len() + 512);
        wire::encode(
            &mut payload,
            &wire::Parts {
                status: parts.status,
                headers: &parts.headers,
                body: &data,
                trailers: trailers.as_ref(),
                public: allowed.public,
                bodiless: asked.bodiless,
                age: allowed.age,
                vary: &vary,
                request: asked.head,
            },
        );
        if payload.len() > terms.largest {
            return pass(parts, Body::stored(data, trailers), "too-large");
        }
        let kept = Kept {
            payload: payload.into(),
            life: allowed.life,
            tags,
            variant: (!vary.is_empty()).then(|| variant(vary.iter(), asked.head)),
        };
        Recorded { response: Response::from_parts(parts, Body::stored(data, trailers)), kept: Ok(kept) }
    }

    fn tell(&self, response: Self::Response, status: CacheStatus) -> Self::Response {
        tell(response, status)
    }

    fn pass(&self, response: Response<B>, status: CacheStatus) -> Self::Response {
        tell(response.map(|body| Body::inner(body)), status)
    }
}

fn tell<B>(mut response: Response<B>, status: CacheStatus) -> Response<B> {
    // Behind the members of caches nearer to the origin (RFC 9211, section 2).
    response.headers_mut().append(CACHE_STATUS, status.to_header());
    response.extensions_mut().insert(status);
    response
}

/// The whole of a body within the limit; otherwise the body as it was, with what has been read of it.
async fn collect<B>(body: B, limit: usize) -> Result<(Bytes, Option<HeaderMap>), (Resumed<B>, &'static str)>
where
    B: HttpBody<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut rest = Box::pin(body);
    let mut read = VecDeque::new();
    let mut length = 0_usize;
    let mut trailers = None;
    let (error, reason) = loop {
        match poll_fn(|cx| rest.as_mut().poll_frame(cx)).await {
            None => break (None, None),
            Some(Err(error)) => break (Some(error.into()), Some("body-failed")),
            Some(Ok(frame)) => {
                length = length.saturating_add(frame.data_ref().map_or(0, Bytes::len));
                trailers = frame.trailers_ref().cloned().or(trailers);
                read.push_back(frame);
                // Frames of next to nothing must not pile up either: each takes a hundred bytes.
                if length > limit || read.len() > (limit / 16).max(1024) {
                    break (None, Some("too-large"));
                }
            }
        }
    };
    if let Some(reason) = reason {
        return Err((Resumed { read, error, rest }, reason));
    }
    let mut data = read.iter().filter_map(|frame| frame.data_ref());
    let whole = match (data.next(), data.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => only.clone(),
        _ => {
            let mut whole = Vec::with_capacity(length);
            read.iter().filter_map(|frame| frame.data_ref()).for_each(|data| whole.extend_from_slice(data));
            whole.into()
        }
    };
    Ok((whole, trailers))
}

/// What distinguishes the variants of a name: the values of the fields that `Vary` lists, length by length.
fn variant<'a>(vary: impl Iterator<Item = &'a HeaderName>, request: &HeaderMap) -> Vec<u8> {
    let mut suffix = Vec::new();
    for name in vary {
        suffix.push(b'\n');
        suffix.extend_from_slice(name.as_str().as_bytes());
        for value in request.get_all(name) {
            let value = value.as_bytes().trim_ascii();
            suffix.push(b':');
            suffix.extend_from_slice(value.len().to_string().as_bytes());
            suffix.push(b' ');
            suffix.extend_from_slice(value);
        }
    }
    suffix
}

fn tags(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all(CACHE_TAG).into_iter().filter_map(|line: &HeaderValue| line.to_str().ok());
    let mut tags: Vec<String> = lines
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|tag| !tag.is_empty())
        .map(str::to_owned)
        .collect();
    tags.sort_unstable();
    tags.dedup();
    tags
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn variants_never_run_into_each_other() {
        let names = ["a", "ab", "b"].map(HeaderName::from_static);
        let values = ["", "1", "1:1 1", ":", "1 b", "b:1 ", "2"];
        let fields = [(&names[0], &names[0]), (&names[0], &names[2]), (&names[1], &names[2])];
        let mut seen = HashMap::new();
        for (first, second) in fields {
            for (one, other) in values.iter().flat_map(|one| values.iter().map(move |other| (one, other))) {
                let mut request = HeaderMap::new();
                request.append(first, HeaderValue::from_static(one));
                request.append(second, HeaderValue::from_static(other));
                for listed in 0..8 {
                    let vary = || names.iter().enumerate().filter(|(n, _)| listed >> n & 1 == 1).map(|(_, name)| name);
                    let values =
                        |name| request.get_all(name).iter().map(|v| v.as_bytes().trim_ascii().to_vec()).collect();
                    let told_apart_by: Vec<Vec<Vec<u8>>> = vary().map(values).collect();
                    let before = seen.entry(variant(vary(), &request)).or_insert((listed, told_apart_by.clone()));
                    assert_eq!(*before, (listed, told_apart_by));
                }
            }
        }
        assert!(seen.len() > 100);
    }

    #[test]
    fn tags_are_listed_once_each() {
        let of = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            lines.iter().for_each(|line| {
                headers.append("cache-tag", line.parse().unwrap());
            });
            tags(&headers)
        };
        assert_eq!(of(&[]), [""; 0]);
        assert_eq!(of(&[" b,a , ,b", "user 7"]), ["a", "b", "user 7"]);
    }
}
