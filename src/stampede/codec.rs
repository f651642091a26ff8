//! How responses are turned into bytes and back.

use super::{lives::Lives, status::CacheStatus};
use crate::{
    cache::{Task, decode_value, encode_value},
    store::{SharedValue, Weight},
};
use hyper::body::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};

/// How a [`StampedeCacheLayer`](super::StampedeCacheLayer) keeps responses: [`Recorded`](super::Recorded) for HTTP,
/// [`Serde`] for everything else. Sealed.
pub trait Codec<Req, Res>: SealedCodec<Req, Res> {}
impl<Req, Res, C: SealedCodec<Req, Res>> Codec<Req, Res> for C {}

/// What a request lets a shared cache do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anyone's stored answer may serve it, and its answer may serve anyone.
    Shared,
    /// It identifies its caller: only an answer that is explicitly for everyone may be stored or served.
    Personal,
    /// The cache stays out of the way.
    Bypass,
}

/// A computed response, and whether it is kept.
#[derive(Debug)]
pub struct Recording<Out> {
    /// Still without [a status](SealedCodec::with_status).
    pub(super) response: Out,
    pub(super) verdict: Verdict,
}

/// Whether a response is kept.
#[derive(Debug)]
pub(super) enum Verdict {
    Known(Result<Kept, NotKept>),
    /// Its body is still on its way.
    Streaming(Streaming),
}

/// A response whose body is being recorded.
pub(super) struct Streaming {
    /// Its status until it is known whether it is kept.
    pub(super) status: CacheStatus,
    /// For [`read_along`](SealedCodec::read_along).
    pub(super) along: Option<SharedValue>,
    pub(super) ended: Pin<Box<dyn Future<Output = Ended> + Send>>,
}

impl fmt::Debug for Streaming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streaming").field("status", &self.status).finish_non_exhaustive()
    }
}

/// How a recording has ended.
pub(super) struct Ended {
    pub(super) kept: Result<Kept, NotKept>,
    /// To be dropped when it is stored: readers of the response see its end then.
    pub(super) end: Option<Box<dyn Send>>,
}

/// What is to be stored.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) payload: Bytes,
    pub(super) lives: Lives,
    pub(super) tags: Vec<String>,
    /// What distinguishes this variant from others of the name.
    pub(super) variant: Option<Vec<u8>>,
}

/// Why a response is not stored.
#[derive(Debug)]
pub(super) struct NotKept {
    /// An RFC 8941 token.
    pub(super) reason: &'static str,
    pub(super) kind: Kind,
    /// The response, for the requests that have waited for it.
    pub(super) shared: Option<Bytes>,
}

impl NotKept {
    pub(super) fn new(reason: &'static str, kind: Kind) -> Self {
        NotKept { reason, kind, shared: None }
    }
}

/// What a refusal to store means for other answers of the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The service has failed, and may succeed next time.
    Failure,
    /// They will not be stored either.
    Uncacheable,
    /// Nothing.
    ThisOne,
}

/// What a stored answer is to a request.
#[derive(Debug)]
pub enum Replay<Out> {
    /// Its answer.
    Answer(Out),
    /// The answer to another variant. The wanted one has this suffix to its name.
    Other(Vec<u8>),
    /// It may not serve the request.
    Unusable,
}

/// What a request asks for, as far as the cache must know.
#[derive(Debug)]
pub struct Asked<'a, H> {
    pub(super) access: Access,
    /// It wants no body.
    pub(super) bodiless: bool,
    pub(super) head: &'a H,
}

/// What is kept of a request that has been sent to the service.
#[derive(Clone, Debug)]
pub struct SentRequest<K> {
    pub(super) access: Access,
    pub(super) bodiless: bool,
    pub(super) kept: K,
}

/// What is known when a response is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What applies where the response says nothing.
    pub(super) lives: Lives,
    pub(super) wall: SystemTime,
    /// Bytes that fit into the cache.
    pub(super) largest: usize,
    /// Tags that may be added.
    pub(super) tags: usize,
    /// There is a place for a variant.
    pub(super) variants: bool,
    /// Failures are recorded for the requests that wait for them.
    pub(super) share_failures: bool,
}

/// What a [`Codec`] does. Not exported, which is what seals it.
pub trait SealedCodec<Req, Res> {
    /// What comes out of the layer.
    type Response;
    /// What of a request decides whether a stored answer is its answer.
    type Head;
    /// What of a request is needed once the request itself has been given to the service.
    type Kept: Clone + Send + Sync + 'static;
    /// A stored answer that need not be decoded again.
    type Decoded: Weight + Send + Sync + 'static;

    fn asked<'a>(&self, request: &'a Req) -> Asked<'a, Self::Head>;

    fn keep(&self, request: &Req) -> SentRequest<Self::Kept>;

    fn of_sent<'a>(&self, sent: &'a SentRequest<Self::Kept>) -> Asked<'a, Self::Head>;

    /// Changes a request so that its answer may serve everyone.
    fn for_everyone(&self, request: &mut Req);

    /// `None`: nothing that this version has stored.
    fn decode(&self, payload: &Bytes) -> Option<Self::Decoded>;

    /// A stored answer, as an answer to this request, `since` after it was stored.
    fn replay(
        &self,
        payload: &Bytes,
        decoded: &Self::Decoded,
        asked: &Asked<'_, Self::Head>,
        since: Duration,
        status: CacheStatus,
    ) -> Replay<Self::Response>;

    /// The answer of a computation that is still being recorded.
    fn read_along(&self, _: &SharedValue, _: &Asked<'_, Self::Head>) -> Option<Self::Response> {
        None
    }

    fn record(
        &self,
        response: Res,
        sent: SentRequest<Self::Kept>,
        terms: Terms,
    ) -> impl Future<Output = Recording<Self::Response>> + Send;

    /// The response, with what the cache did.
    fn with_status(&self, response: Self::Response, status: CacheStatus) -> Self::Response;

    /// A response that is not to be kept.
    fn pass(&self, response: Res, status: CacheStatus) -> Self::Response;

    /// A response whose body runs what records it.
    fn drive(&self, response: Self::Response, recording: Task) -> Self::Response;

    /// The answer where the service has taken too long.
    fn timed_out(&self) -> Option<Self::Response>;
}

/// Keeps any response that serde can write and read, as MessagePack.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Serde;

impl SentRequest<()> {
    pub(super) fn as_asked(&self) -> Asked<'_, ()> {
        Asked { access: self.access, bodiless: self.bodiless, head: &self.kept }
    }
}

impl<Req, Res> SealedCodec<Req, Res> for Serde
where
    Res: Serialize + DeserializeOwned + Send,
{
    type Response = Res;
    type Head = ();
    type Kept = ();
    type Decoded = ();

    fn asked<'a>(&self, _: &'a Req) -> Asked<'a, ()> {
        Asked { access: Access::Shared, bodiless: false, head: &() }
    }

    fn keep(&self, _: &Req) -> SentRequest<()> {
        SentRequest { access: Access::Shared, bodiless: false, kept: () }
    }

    fn of_sent<'a>(&self, sent: &'a SentRequest<()>) -> Asked<'a, ()> {
        sent.as_asked()
    }

    fn for_everyone(&self, _: &mut Req) {}

    fn decode(&self, _: &Bytes) -> Option<()> {
        Some(())
    }

    fn replay(&self, payload: &Bytes, (): &(), _: &Asked<'_, ()>, _: Duration, _: CacheStatus) -> Replay<Res> {
        decode_value(payload).map_or(Replay::Unusable, Replay::Answer)
    }

    fn record(&self, response: Res, _: SentRequest<()>, terms: Terms) -> impl Future<Output = Recording<Res>> + Send {
        let kept = match encode_value(&response) {
            _ if terms.lives.fresh.is_zero() => Err(NotKept::new("life", Kind::Uncacheable)),
            Ok(payload) if payload.len() > terms.largest => Err(NotKept::new("too-large", Kind::Uncacheable)),
            Ok(payload) => Ok(Kept { payload: payload.into(), lives: terms.lives, tags: Vec::new(), variant: None }),
            Err(error) => {
                tracing::warn!(%error, "a response is not kept");
                Err(NotKept::new("not-serialisable", Kind::Uncacheable))
            }
        };
        std::future::ready(Recording { response, verdict: Verdict::Known(kept) })
    }

    fn with_status(&self, response: Res, _: CacheStatus) -> Res {
        response
    }

    fn pass(&self, response: Res, _: CacheStatus) -> Res {
        response
    }

    fn drive(&self, response: Res, _: Task) -> Res {
        response
    }

    fn timed_out(&self) -> Option<Res> {
        None
    }
}
