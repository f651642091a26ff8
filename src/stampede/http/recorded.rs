//! HTTP responses: status, headers, body, trailers, recorded while they are passed on.

use super::{
    encoding,
    freshness::{self, Case, Grpc, Refusal},
};
use crate::{
    body::{Body, Cut, Reader, Reading, Whole},
    cache::Task,
    name,
    stampede::{
        codec::{
            Access, Asked, Ended, Kept, Kind, NotKept, Recording, Replay, SealedCodec, SentRequest, Streaming, Terms,
            Verdict,
        },
        lives::Lives,
        status::CacheStatus,
    },
    store::SharedValue,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request, response};
use hyper::body::{Body as HttpBody, Bytes};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tower::BoxError;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
const CACHE_TAG: HeaderName = HeaderName::from_static("cache-tag");

/// Bytes of a body that is kept, unless said otherwise.
const BODY_LIMIT: usize = 1 << 20;

type LifeOf = dyn Fn(&request::Parts, &response::Parts) -> Option<Duration> + Send + Sync;
type TagsOf = dyn Fn(&request::Parts, &response::Parts) -> Vec<String> + Send + Sync;

/// Keeps HTTP responses whose body ends within a limit.
#[derive(Clone)]
pub struct Recorded {
    pub(in crate::stampede) limit: usize,
    /// The name accounts for the request's body.
    pub(in crate::stampede) bodies_named: bool,
    /// How long 404 and 410 are kept where they name no life.
    pub(in crate::stampede) negative: Duration,
    pub(in crate::stampede) life_of: Option<Arc<LifeOf>>,
    pub(in crate::stampede) tags_of: Option<Arc<TagsOf>>,
}

impl Default for Recorded {
    fn default() -> Self {
        Recorded { limit: BODY_LIMIT, bodies_named: false, negative: Duration::ZERO, life_of: None, tags_of: None }
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// The head of a response that is to be kept once its body is known.
struct Head {
    status: StatusCode,
    public: bool,
    age: u32,
    lives: Lives,
    negative: Duration,
    vary: Vec<HeaderName>,
    tags: Vec<String>,
    largest: usize,
    /// It is a failure, and only for the requests that wait for it.
    has_failed: bool,
}

impl Head {
    /// The stored form, of so much of the body.
    fn encode(&self, headers: &HeaderMap, whole: &Whole, sent: &SentRequest<request::Parts>) -> Bytes {
        let mut payload = Vec::with_capacity(whole.data.len() + 512);
        encoding::encode(
            &mut payload,
            &encoding::Parts {
                status: self.status,
                headers,
                body: &whole.data,
                trailers: whole.trailers.as_ref(),
                public: self.public,
                bodiless: sent.bodiless,
                age: self.age,
                vary: &self.vary,
                request: &sent.kept.headers,
            },
        );
        payload.into()
    }

    /// What is to be stored of the whole response.
    fn keep(mut self, headers: &HeaderMap, whole: &Whole, sent: &SentRequest<request::Parts>) -> Result<Kept, NotKept> {
        match freshness::grpc(headers, whole.trailers.as_ref()) {
            Grpc::Fine => {}
            Grpc::NotFound if !self.negative.is_zero() => self.lives = Lives::without_grace(self.negative),
            Grpc::Failure => return Err(NotKept::new("grpc-status", Kind::Failure)),
            Grpc::NotFound | Grpc::Other => return Err(NotKept::new("grpc-status", Kind::ThisOne)),
        }
        if whole.trailers.as_ref().is_some_and(|trailers| trailers.contains_key(header::SET_COOKIE)) {
            return Err(NotKept::new("set-cookie", Kind::Uncacheable));
        }
        let payload = self.encode(headers, whole, sent);
        if payload.len() > self.largest {
            return Err(NotKept::new("too-large", Kind::Uncacheable));
        }
        if self.has_failed {
            return Err(NotKept { shared: Some(payload), ..NotKept::new("failure", Kind::Failure) });
        }
        Ok(Kept {
            payload,
            lives: self.lives,
            tags: self.tags,
            variant: (!self.vary.is_empty()).then(|| variant(self.vary.iter(), &sent.kept.headers)),
        })
    }
}

/// A response to be read while it is recorded.
struct Along<B> {
    /// All of it but its body.
    stored: encoding::Stored,
    ttl: Duration,
    reader: Mutex<Reader<B>>,
}

impl Recorded {
    /// A stored answer without its body.
    fn replay_head(
        &self,
        stored: &encoding::Stored,
        asked: &Asked<'_, HeaderMap>,
        since: Duration,
        status: CacheStatus,
    ) -> Replay<Response<()>> {
        if !encoding::selects(&stored.vary, asked.head) {
            return Replay::Other(variant(stored.vary.iter().map(|(name, _)| name), asked.head));
        }
        if (asked.access == Access::Personal && !stored.public) || (stored.bodiless && !asked.bodiless) {
            return Replay::Unusable;
        }
        let age = since.as_secs().saturating_add(stored.age.into());
        let mut response = Response::new(());
        *response.status_mut() = stored.status;
        *response.headers_mut() = stored.headers.clone();
        response.headers_mut().insert(header::AGE, age.into());
        Replay::Answer(with_status(response, status))
    }

    /// Whether a response may be kept, by its head.
    fn judge(
        &self,
        parts: &response::Parts,
        sent: &SentRequest<request::Parts>,
        terms: &Terms,
    ) -> Result<Head, NotKept> {
        let case = Case {
            status: parts.status,
            headers: &parts.headers,
            access: sent.access,
            wall: terms.wall,
            lives: terms.lives,
            negative: self.negative,
            chosen: self.life_of.as_ref().and_then(|life_of| life_of(&sent.kept, parts)),
        };
        let judged = freshness::storable(&case);
        let has_failed = matches!(judged, Err(Refusal { kind: Kind::Failure, .. }));
        // A failure that would be kept, if it were none, may be seen by all.
        let as_success = Case { status: StatusCode::OK, chosen: Some(Duration::from_secs(1)), ..case };
        let shared = (has_failed && terms.share_failures).then(|| freshness::storable(&as_success).ok()).flatten();
        let allowed = match shared {
            Some(shared) => shared,
            None => judged.map_err(|Refusal { reason, kind }| NotKept::new(reason, kind))?,
        };
        let mut tags = tags(&parts.headers);
        if let Some(tags_of) = &self.tags_of {
            tags.extend(tags_of(&sent.kept, parts));
            tags.sort_unstable();
            tags.dedup();
        }
        if tags.len() > terms.tags {
            // An eviction by one that is left out would miss it.
            return Err(NotKept::new("too-many-tags", Kind::Uncacheable));
        }
        let vary = freshness::vary(&parts.headers).filter(|vary| vary.is_empty() || terms.variants);
        let vary = vary.ok_or(NotKept::new("vary", Kind::ThisOne))?;
        Ok(Head {
            status: parts.status,
            public: allowed.public,
            age: allowed.age,
            lives: allowed.lives,
            negative: self.negative,
            vary,
            tags,
            largest: terms.largest,
            has_failed,
        })
    }
}

impl<A, B> SealedCodec<Request<A>, Response<B>> for Recorded
where
    A: HttpBody,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body<B>>;
    type Head = HeaderMap;
    type Kept = request::Parts;
    type Decoded = encoding::Stored;

    fn asked<'a>(&self, request: &'a Request<A>) -> Asked<'a, HeaderMap> {
        let bodiless = *request.method() == Method::HEAD;
        // The answer may depend on a body, and the name does not. HTTP/2 need not announce one. A name of the user's
        // may not tell methods apart, and a stored answer does not do what an unsafe method asks for.
        let unnamed = || {
            name::announces_body(request.headers())
                || !request.body().is_end_stream()
                || !matches!(*request.method(), Method::GET | Method::HEAD)
        };
        let access = match freshness::access(request.headers()) {
            Access::Shared | Access::Personal if !self.bodies_named && unnamed() => Access::Bypass,
            access => access,
        };
        Asked { access, bodiless, head: request.headers() }
    }

    fn keep(&self, request: &Request<A>) -> SentRequest<request::Parts> {
        let Asked { access, bodiless, .. } = SealedCodec::<Request<A>, Response<B>>::asked(self, request);
        let (mut kept, ()) = Request::new(()).into_parts();
        kept.method = request.method().clone();
        kept.uri = request.uri().clone();
        kept.headers = request.headers().clone();
        SentRequest { access, bodiless, kept }
    }

    fn of_sent<'a>(&self, sent: &'a SentRequest<request::Parts>) -> Asked<'a, HeaderMap> {
        Asked { access: sent.access, bodiless: sent.bodiless, head: &sent.kept.headers }
    }

    fn for_everyone(&self, request: &mut Request<A>) {
        freshness::make_unconditional(request.headers_mut());
    }

    fn decode(&self, payload: &Bytes) -> Option<encoding::Stored> {
        encoding::decode(payload)
    }

    fn replay(
        &self,
        _: &Bytes,
        stored: &encoding::Stored,
        asked: &Asked<'_, HeaderMap>,
        since: Duration,
        status: CacheStatus,
    ) -> Replay<Self::Response> {
        match self.replay_head(stored, asked, since, status) {
            Replay::Answer(head) if asked.bodiless => Replay::Answer(head.map(|()| Body::default())),
            Replay::Answer(head) => {
                Replay::Answer(head.map(|()| Body::stored(stored.body.clone(), stored.trailers.clone())))
            }
            Replay::Other(suffix) => Replay::Other(suffix),
            Replay::Unusable => Replay::Unusable,
        }
    }

    fn read_along(&self, shared: &SharedValue, asked: &Asked<'_, HeaderMap>) -> Option<Self::Response> {
        let along = shared.downcast_ref::<Along<B>>()?;
        let status = CacheStatus::Collapsed { ttl: along.ttl };
        let replayed = self.replay_head(&along.stored, asked, Duration::ZERO, status);
        let Replay::Answer(head) = replayed else { return None };
        let reader = along.reader.lock().unwrap_or_else(PoisonError::into_inner).another()?;
        Some(head.map(|()| if asked.bodiless { Body::default() } else { Body::taped(reader) }))
    }

    async fn record(
        &self,
        response: Response<B>,
        sent: SentRequest<request::Parts>,
        terms: Terms,
    ) -> Recording<Self::Response> {
        let (parts, body) = response.into_parts();
        let judged = self.judge(&parts, &sent, &terms);
        let pass = |parts, body, not_kept| {
            let response = Response::from_parts(parts, body);
            Recording { response, verdict: Verdict::Known(Err(not_kept)) }
        };
        let limit = self.limit.min(terms.largest);
        let head = match judged {
            Ok(_) if body.size_hint().lower() > limit as u64 => {
                return pass(parts, Body::inner(body), NotKept::new("too-large", Kind::Uncacheable));
            }
            Ok(head) => head,
            Err(not_kept) => return pass(parts, Body::inner(body), not_kept),
        };
        let ttl = head.lives.fresh;
        let mut reading = Reading::new(body, limit, announced_length(&parts, &sent));
        match reading.read_ready().await {
            Some(Ok(())) => {
                let whole = reading.whole();
                let kept = head.keep(&parts.headers, &whole, &sent);
                let response = Response::from_parts(parts, Body::stored(whole.data, whole.trailers));
                Recording { response, verdict: Verdict::Known(kept) }
            }
            Some(Err(cut)) => {
                let not_kept = match &cut {
                    Cut::TooLong => NotKept::new("too-large", Kind::Uncacheable),
                    Cut::Broken(_) => NotKept::new("body-failed", Kind::Failure),
                };
                pass(parts, Body::resumed(reading.resume(cut)), not_kept)
            }
            None => {
                let headers = parts.headers.clone();
                let fits = reading.is_known_to_fit();
                let status = match fits {
                    true => CacheStatus::Stored { ttl },
                    false => CacheStatus::Recording { ttl },
                };
                let (recorder, reader) = reading.tape();
                let along = reader.another().filter(|_| fits && !head.has_failed).and_then(|reader| {
                    let nothing = Whole { data: Bytes::new(), trailers: None };
                    let stored = encoding::decode(&head.encode(&headers, &nothing, &sent))?;
                    Some(Arc::new(Along { stored, ttl, reader: Mutex::new(reader) }) as SharedValue)
                });
                let ended = async move {
                    match recorder.record().await {
                        Ok((whole, end)) => {
                            Ended { kept: head.keep(&headers, &whole, &sent), end: Some(Box::new(end)) }
                        }
                        Err(cut) => {
                            let kind = if cut == "too-large" { Kind::Uncacheable } else { Kind::Failure };
                            Ended { kept: Err(NotKept::new(cut, kind)), end: None }
                        }
                    }
                };
                let verdict = Verdict::Streaming(Streaming { status, along, ended: Box::pin(ended) });
                Recording { response: Response::from_parts(parts, Body::taped(reader)), verdict }
            }
        }
    }

    fn with_status(&self, response: Self::Response, status: CacheStatus) -> Self::Response {
        with_status(response, status)
    }

    fn pass(&self, response: Response<B>, status: CacheStatus) -> Self::Response {
        with_status(response.map(|body| Body::inner(body)), status)
    }

    fn drive(&self, response: Self::Response, recording: Task) -> Self::Response {
        response.map(|body| body.driving(recording))
    }

    fn timed_out(&self) -> Option<Self::Response> {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
        Some(response)
    }
}

/// The announced length of the body. A body that is shorter has broken off.
fn announced_length(parts: &response::Parts, sent: &SentRequest<request::Parts>) -> Option<u64> {
    let bodiless = sent.bodiless || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = parts.headers.get(header::CONTENT_LENGTH).filter(|_| !bodiless)?;
    length.to_str().ok()?.parse().ok()
}

fn with_status<B>(mut response: Response<B>, status: CacheStatus) -> Response<B> {
    // Behind the members of caches nearer to the origin (RFC 9211, section 2).
    response.headers_mut().append(CACHE_STATUS, status.to_header());
    response.extensions_mut().insert(status);
    response
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
