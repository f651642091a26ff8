//! How responses are turned into bytes and back.

use super::status::CacheStatus;
use crate::cache::{decode_value, encode_value};
use hyper::body::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    future::Future,
    time::{Duration, SystemTime},
};

pub(super) use super::fresh::Access;

/// How a [`StampedeCacheLayer`](super::StampedeCacheLayer) keeps responses: [`Buffered`](super::Buffered) for HTTP,
/// [`Serde`] for everything else. Sealed.
pub trait Codec<Req, Res>: sealed::Codec<Req, Res> {}
impl<Req, Res, C: sealed::Codec<Req, Res>> Codec<Req, Res> for C {}

/// What a computed response turned out to be.
#[derive(Debug)]
pub struct Recorded<Out> {
    /// [`tell`](sealed::Codec::tell) it what became of it.
    pub(super) response: Out,
    pub(super) kept: Result<Kept, &'static str>,
}

/// What is to be stored.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) payload: Bytes,
    pub(super) life: Duration,
    pub(super) tags: Vec<String>,
    /// What distinguishes this variant from others of the name.
    pub(super) variant: Option<Vec<u8>>,
}

/// What a stored answer is to a request.
#[derive(Debug)]
pub enum Replay<Out> {
    /// Its answer.
    Answer(Out),
    /// The answer to another variant; ours has this suffix to its name.
    Other(Vec<u8>),
    /// Nothing that may serve it.
    Unusable,
}

/// What a request asks for, as far as the cache must know.
#[derive(Debug)]
pub struct Asked<'a, H> {
    pub(super) access: Access,
    /// It asks for everything but the body.
    pub(super) bodiless: bool,
    pub(super) head: &'a H,
}

/// What a request asked for that has been given to the service.
#[derive(Debug)]
pub(super) struct Gone<H> {
    access: Access,
    bodiless: bool,
    head: H,
}

impl<H: Clone> Asked<'_, H> {
    pub(super) fn kept(&self) -> Gone<H> {
        Gone { access: self.access, bodiless: self.bodiless, head: self.head.clone() }
    }
}

impl<H> Gone<H> {
    pub(super) fn asked(&self) -> Asked<'_, H> {
        Asked { access: self.access, bodiless: self.bodiless, head: &self.head }
    }
}

/// What is known when a response is recorded.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub(super) default_life: Duration,
    pub(super) wall: SystemTime,
    /// Bytes that fit into the cache.
    pub(super) largest: usize,
    /// Tags that may be added.
    pub(super) tags: usize,
    /// There is a place for a variant.
    pub(super) variants: bool,
}

pub(super) mod sealed {
    use super::*;

    pub trait Codec<Req, Res> {
        /// What comes out of the layer.
        type Response;
        /// What of a request is needed once the request itself has been given to the service.
        type Head: Clone + Send + Sync + 'static;

        fn asked<'a>(&self, request: &'a Req) -> Asked<'a, Self::Head>;

        /// Makes a request fit for everyone who will be served its answer.
        fn for_everyone(&self, request: &mut Req);

        /// A stored answer, as an answer to this request, `since` after it was stored.
        fn replay(
            &self,
            payload: &Bytes,
            asked: &Asked<'_, Self::Head>,
            since: Duration,
            status: CacheStatus,
        ) -> Replay<Self::Response>;

        fn record(
            &self,
            response: Res,
            asked: &Asked<'_, Self::Head>,
            terms: Terms,
        ) -> impl Future<Output = Recorded<Self::Response>> + Send;

        /// Says in a response what the cache did.
        fn tell(&self, response: Self::Response, status: CacheStatus) -> Self::Response;

        /// A response that is not to be kept.
        fn pass(&self, response: Res, status: CacheStatus) -> Self::Response;
    }
}

/// Keeps any response that serde can write and read, as MessagePack.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Serde;

impl<Req, Res> sealed::Codec<Req, Res> for Serde
where
    Res: Serialize + DeserializeOwned + Send,
{
    type Response = Res;
    type Head = ();

    fn asked<'a>(&self, _: &'a Req) -> Asked<'a, ()> {
        Asked { access: Access::Shared, bodiless: false, head: &() }
    }

    fn for_everyone(&self, _: &mut Req) {}

    fn replay(&self, payload: &Bytes, _: &Asked<'_, ()>, _: Duration, _: CacheStatus) -> Replay<Res> {
        decode_value(payload).map_or(Replay::Unusable, Replay::Answer)
    }

    fn record(&self, response: Res, _: &Asked<'_, ()>, terms: Terms) -> impl Future<Output = Recorded<Res>> + Send {
        let kept = match encode_value(&response) {
            _ if terms.default_life.is_zero() => Err("life"),
            Ok(payload) if payload.len() > terms.largest => Err("too-large"),
            Ok(payload) => {
                Ok(Kept { payload: payload.into(), life: terms.default_life, tags: Vec::new(), variant: None })
            }
            Err(error) => {
                tracing::warn!(%error, "a response is not kept");
                Err("not-serialisable")
            }
        };
        std::future::ready(Recorded { response, kept })
    }

    fn tell(&self, response: Res, _: CacheStatus) -> Res {
        response
    }

    fn pass(&self, response: Res, _: CacheStatus) -> Res {
        response
    }
}
