//! The stampede cache's layer: what is kept, under which name, for how long.

use super::{codec::Serde, core::Core, http::recorded::Recorded, service::StampedeCache, settings::Settings};
use crate::{
    cache::Scope,
    error::Error,
    name::{self, Args, Name, Target},
    store::Kind,
};
use http::{request, response};
use std::{sync::Arc, time::Duration};
use tower::Layer;

/// Keeps responses, and lets one request compute what many want; see the [module](super).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct StampedeCacheLayer<N = Target, C = Recorded> {
    settings: Settings<N, C>,
}

impl StampedeCacheLayer {
    /// Keeps HTTP responses. `expire` is the life of a response that names none itself; zero: only those that do are
    /// kept.
    pub fn new(scope: Scope, expire: Duration) -> Self {
        let core = Core::new(scope, Kind::Response, expire, Recorded::default());
        StampedeCacheLayer { settings: Settings { core, name: Target::new() } }
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
        let core = Core::new(scope, Kind::Memo, expire, Serde);
        StampedeCacheLayer { settings: Settings { core, name: Args::new() } }
    }
}

impl<N, C> StampedeCacheLayer<N, C> {
    /// Under which name a response is kept: [`Target`] for HTTP, [`Args`] for the rest, unless said otherwise. Whatever
    /// a response depends on must be in it.
    pub fn name<M>(self, name: M) -> StampedeCacheLayer<M, C> {
        StampedeCacheLayer { settings: Settings { core: self.settings.core, name } }
    }

    core_setters!(settings.core);

    /// How long it is remembered that the answers of a name may not be stored, so that its requests do not wait for one
    /// another: 5 s unless said otherwise. Zero: not at all.
    pub fn uncacheable_for(mut self, span: Duration) -> Self {
        self.settings.core.uncacheable_for = span;
        self
    }

    /// The name of a request; `None`: it passes by the cache. Text that is no UTF-8 is shown with replacement characters.
    pub fn name_of<Req>(&self, request: &Req) -> Option<String>
    where
        N: Name<Req>,
    {
        name::written(&self.settings.name, request).map(|name| name.to_string())
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
        self.purge(request, false).await
    }

    /// As [`remove`](StampedeCacheLayer::remove), but softly: what is kept has ended from then on. It is still served within
    /// [`stale_while_revalidate`](StampedeCacheLayer::stale_while_revalidate) and
    /// [`stale_if_error`](StampedeCacheLayer::stale_if_error), which begin then.
    ///
    /// # Errors
    ///
    /// As [`Cache::evict`](crate::Cache::evict).
    pub async fn make_stale<Req>(&self, request: &Req) -> Result<(), Error>
    where
        N: Name<Req>,
    {
        self.purge(request, true).await
    }

    async fn purge<Req>(&self, request: &Req, soft: bool) -> Result<(), Error>
    where
        N: Name<Req>,
    {
        match name::written(&self.settings.name, request) {
            Some(name) => self.settings.core.scope.purge_name(&self.settings.core.key(name.as_bytes()), soft).await,
            None => Ok(()),
        }
    }
}

impl<C> StampedeCacheLayer<Target, C> {
    /// Query parameters that do not count; `utm_*` stands for all that begin so. See [`Target::ignore`].
    pub fn ignore<T: AsRef<str>>(mut self, parameters: impl IntoIterator<Item = T>) -> Self {
        self.settings.name = self.settings.name.ignore(parameters);
        self
    }

    /// Request headers that count. See [`Target::vary`].
    pub fn vary<T: AsRef<str>>(mut self, headers: impl IntoIterator<Item = T>) -> Self {
        self.settings.name = self.settings.name.vary(headers);
        self
    }

    /// Requests that accept different media types have different names. See [`Target::typed`].
    pub fn typed(mut self) -> Self {
        self.settings.name = self.settings.name.typed();
        self
    }
}

impl<C> StampedeCacheLayer<Args, C> {
    /// Fields that do not count. See [`Args::ignore`].
    pub fn ignore<T: AsRef<str>>(mut self, fields: impl IntoIterator<Item = T>) -> Self {
        self.settings.name = self.settings.name.ignore(fields);
        self
    }

    /// Values of different types have different names. See [`Args::typed`].
    pub fn typed(mut self) -> Self {
        self.settings.name = self.settings.name.typed();
        self
    }
}

impl<N> StampedeCacheLayer<N, Recorded> {
    /// Bytes that a body may have to be kept: 1 MiB unless said otherwise. Larger ones stream through.
    pub fn body_limit(mut self, bytes: usize) -> Self {
        self.settings.core.codec.limit = bytes;
        self
    }

    /// Says that the name accounts for the request's body: since a [`BodyDigestLayer`](super::BodyDigestLayer) has read it
    /// before, or since no answer depends on it. Unless this is said, requests with a body pass by the cache, all gRPC calls among them, and
    /// so do methods other than `GET` and `HEAD`, which the name must then tell apart too.
    pub fn bodies_named(mut self) -> Self {
        self.settings.core.codec.bodies_named = true;
        self
    }

    /// How long 404 and 410, or over gRPC `NOT_FOUND`, are kept where they name no life themselves: not at all unless said
    /// otherwise.
    pub fn negative(mut self, life: Duration) -> Self {
        self.settings.core.codec.negative = life;
        self
    }

    /// The life of a response, by the heads of its request and itself; zero: it is not kept. `None`: as without this. What
    /// may not be kept for other reasons is not kept all the same.
    pub fn life_of<F>(mut self, life_of: F) -> Self
    where
        F: Fn(&request::Parts, &response::Parts) -> Option<Duration> + Send + Sync + 'static,
    {
        self.settings.core.codec.life_of = Some(Arc::new(life_of));
        self
    }

    /// Tags of a response, by the heads of its request and itself, besides those of the layer and of its `Cache-Tag`.
    pub fn tags<F, T>(mut self, tags_of: F) -> Self
    where
        F: Fn(&request::Parts, &response::Parts) -> T + Send + Sync + 'static,
        T: IntoIterator<Item: Into<String>>,
    {
        let tags_of = move |request: &_, response: &_| tags_of(request, response).into_iter().map(Into::into).collect();
        self.settings.core.codec.tags_of = Some(Arc::new(tags_of));
        self
    }

    /// Failures are shared: all requests of this process that wait for the same answer get the failed response, instead
    /// of trying one after the other. Private responses are not shared.
    pub fn share_failures(mut self) -> Self {
        self.settings.core.share_failures = true;
        self
    }

    /// Gives up on a service that has not begun to respond after this long. An answer that has ended is served within
    /// [`stale_if_error`](StampedeCacheLayer::stale_if_error); otherwise the answer is 504. No limit unless said otherwise.
    pub fn hard_timeout(mut self, patience: Duration) -> Self {
        self.settings.core.hard_timeout = Some(patience);
        self
    }
}

impl<S, N: Clone, C: Clone> Layer<S> for StampedeCacheLayer<N, C> {
    type Service = StampedeCache<S, N, C>;

    fn layer(&self, inner: S) -> Self::Service {
        StampedeCache { inner, settings: self.settings.clone() }
    }
}
