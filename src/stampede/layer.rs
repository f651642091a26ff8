//! The stampede cache's layer: what is kept, under which name, for how long.

use super::{codec::Serde, http_codec::Buffered, service::StampedeCache};
use crate::{
    cache::{Key, Kind, Scope},
    error::Error,
    name::{self, Args, Name, Target},
};
use std::{sync::Arc, time::Duration};
use tower::Layer;

/// Keeps responses, and lets one request compute what many want; see the [module](super).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct StampedeCacheLayer<N = Target, C = Buffered> {
    pub(super) core: Core<C>,
    pub(super) name: N,
}

/// What the computations need of a layer.
#[derive(Clone, Debug)]
pub(super) struct Core<C> {
    pub(super) scope: Scope,
    pub(super) kind: Kind,
    pub(super) life: Duration,
    pub(super) beta: f64,
    pub(super) tags: Arc<[u64]>,
    pub(super) codec: C,
}

impl StampedeCacheLayer {
    /// Keeps HTTP responses. `expire` is the life of a response that names none itself; zero: only those that do are
    /// kept.
    pub fn new(scope: Scope, expire: Duration) -> Self {
        StampedeCacheLayer { core: Core::new(scope, Kind::Response, expire, Buffered::default()), name: Target::new() }
    }
}

impl StampedeCacheLayer<Args, Serde> {
    /// Keeps the responses of any service whose requests serde can write and whose responses it can write and read, for
    /// `expire` each. Errors are not kept.
    ///
    /// # Panics
    ///
    /// If `expire` is zero.
    #[track_caller]
    pub fn memoize(scope: Scope, expire: Duration) -> Self {
        assert!(!expire.is_zero(), "memoized responses need a life above zero, not {expire:?}");
        StampedeCacheLayer { core: Core::new(scope, Kind::Memo, expire, Serde), name: Args::new() }
    }
}

impl<C> Core<C> {
    fn new(scope: Scope, kind: Kind, life: Duration, codec: C) -> Self {
        Core { scope, kind, life, beta: 1.0, tags: Arc::new([]), codec }
    }

    pub(super) fn key(&self, name: &[u8]) -> Key {
        self.scope.key(self.kind, name)
    }
}

impl<N, C> StampedeCacheLayer<N, C> {
    /// Under which name a response is kept: [`Target`] for HTTP, [`Args`] for the rest, unless said otherwise. Whatever
    /// a response depends on must be in it.
    pub fn name<M>(self, name: M) -> StampedeCacheLayer<M, C> {
        StampedeCacheLayer { core: self.core, name }
    }

    /// How eagerly answers are refreshed before they end: 1 unless said otherwise, more is earlier, 0 is never.
    ///
    /// # Panics
    ///
    /// If it is negative or not finite.
    #[track_caller]
    pub fn beta(mut self, beta: f64) -> Self {
        assert!(beta.is_finite() && beta >= 0.0, "beta is a finite number from 0, not {beta}");
        self.core.beta = beta;
        self
    }

    /// A tag, by which [`Cache::evict`](crate::Cache::evict) drops what is kept. May be given several times.
    ///
    /// # Panics
    ///
    /// Beyond 16 tags: responses bring theirs, and 64 fit.
    #[track_caller]
    pub fn tag(mut self, tag: &str) -> Self {
        assert!(self.core.tags.len() < 16, "a layer has 16 tags at most, so that {tag:?} is one too many");
        self.core.tags = self.core.tags.iter().copied().chain([self.core.scope.tag(tag)]).collect();
        self
    }

    /// The name of a request; `None`: it passes by the cache. Text that is no UTF-8 is shown with replacement characters.
    pub fn name_of<Req>(&self, request: &Req) -> Option<String>
    where
        N: Name<Req>,
    {
        name::written(&self.name, request).map(|name| name.to_string())
    }

    /// Drops what is kept for the request's name, with all its variants, in every process, from the moment this
    /// resolves; what is being computed for it right now will not be stored.
    ///
    /// # Errors
    ///
    /// As [`Cache::evict`](crate::Cache::evict).
    pub async fn remove<Req>(&self, request: &Req) -> Result<(), Error>
    where
        N: Name<Req>,
    {
        let Some(key) = name::written(&self.name, request).map(|name| self.core.key(name.as_bytes())) else {
            return Ok(());
        };
        self.core.scope.purge_name(&key).await
    }
}

impl<C> StampedeCacheLayer<Target, C> {
    /// Query parameters that do not count; `utm_*` stands for all that begin so. See [`Target::ignore`].
    pub fn ignore<T: AsRef<str>>(mut self, parameters: impl IntoIterator<Item = T>) -> Self {
        self.name = self.name.ignore(parameters);
        self
    }

    /// Request headers that count. See [`Target::vary`].
    pub fn vary<T: AsRef<str>>(mut self, headers: impl IntoIterator<Item = T>) -> Self {
        self.name = self.name.vary(headers);
        self
    }

    /// Requests that accept different media types have different names. See [`Target::typed`].
    pub fn typed(mut self) -> Self {
        self.name = self.name.typed();
        self
    }
}

impl<C> StampedeCacheLayer<Args, C> {
    /// Fields that do not count. See [`Args::ignore`].
    pub fn ignore<T: AsRef<str>>(mut self, fields: impl IntoIterator<Item = T>) -> Self {
        self.name = self.name.ignore(fields);
        self
    }

    /// Values of different types have different names. See [`Args::typed`].
    pub fn typed(mut self) -> Self {
        self.name = self.name.typed();
        self
    }
}

impl<N> StampedeCacheLayer<N, Buffered> {
    /// Bytes that a body may have to be kept: 1 MiB unless said otherwise. Larger ones stream through.
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.core.codec.limit = bytes;
        self
    }

    /// Says that the name accounts for the request's body: by what it reads of a body that was buffered before, or since
    /// no answer depends on it. Unless this is said, requests with a body pass by the cache, all gRPC calls among them, and
    /// so do methods other than `GET` and `HEAD`, which the name must then tell apart too.
    pub fn bodies_named(mut self) -> Self {
        self.core.codec.bodies_named = true;
        self
    }
}

impl<S, N: Clone, C: Clone> Layer<S> for StampedeCacheLayer<N, C> {
    type Service = StampedeCache<S, N, C>;

    fn layer(&self, inner: S) -> Self::Service {
        StampedeCache { inner, layer: self.clone() }
    }
}
