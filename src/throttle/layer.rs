//! The throttle's layer: what is counted, how fast, and what becomes of the rest.

use super::{limit::Ask, rate::Rate, service::Throttle};
use crate::{
    answer::{Http, Patient},
    cache::Scope,
    name::{self, All, Name},
};
use std::time::Duration;
use tower::Layer;

/// Lets so many requests per time pass for each name; see the [module](super).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct ThrottleLayer<N = All, A = Http, C = One> {
    pub(super) scope: Scope,
    pub(super) ask: Ask,
    pub(super) name: N,
    pub(super) answer: A,
    pub(super) cost: C,
    pub(super) fail_closed: bool,
}

impl ThrottleLayer {
    /// `count` requests per `per`, all at once if need be, for all requests together unless there is a
    /// [`name`](ThrottleLayer::name). Further ones are refused: 429 over HTTP.
    ///
    /// After a rest nearly twice `count` may pass within one `per`: the burst, and what is regained meanwhile.
    /// [`burst(1)`](ThrottleLayer::burst) spaces requests evenly.
    ///
    /// # Panics
    ///
    /// If `count` or `per` is zero, or the rate is above one a nanosecond.
    #[track_caller]
    pub fn new(scope: Scope, count: u32, per: Duration) -> Self {
        ThrottleLayer {
            scope,
            ask: Ask { rate: Rate::new(count, per), cost: 1, patience: Duration::ZERO, tag: 0, retention: 0 },
            name: All,
            answer: Http::new(),
            cost: One,
            fail_closed: false,
        }
    }
}

impl<N, A, C> ThrottleLayer<N, A, C> {
    /// What is counted together: each name has a budget of its own. See [`name`](crate::name) for ready-made ones.
    pub fn name<M>(self, name: M) -> ThrottleLayer<M, A, C> {
        let ThrottleLayer { scope, ask, answer, cost, fail_closed, .. } = self;
        ThrottleLayer { scope, ask, name, answer, cost, fail_closed }
    }

    /// Room for `burst` at once, in place of `count`. 1 spaces requests evenly.
    ///
    /// # Panics
    ///
    /// If it is zero, or takes more than 100 years to regain.
    #[track_caller]
    pub fn burst(mut self, burst: u32) -> Self {
        self.ask.rate = self.ask.rate.burst(burst);
        self
    }

    /// What a request takes from the budget: 1 unless said otherwise. More than the burst is always refused.
    pub fn cost<D>(self, cost: D) -> ThrottleLayer<N, A, D> {
        let ThrottleLayer { scope, ask, name, answer, fail_closed, .. } = self;
        ThrottleLayer { scope, ask, name, answer, cost, fail_closed }
    }

    /// A tag, by which [`Cache::evict`](crate::Cache::evict) makes the budgets full again.
    pub fn tag(mut self, tag: &str) -> Self {
        self.ask.tag = self.scope.tag(tag);
        self
    }

    /// How long a name's cell is kept at least. Once it is full again it means nothing, so there is rarely a need.
    pub fn expire(mut self, retention: Duration) -> Self {
        self.ask.retention = u64::try_from(retention.as_nanos()).unwrap_or(u64::MAX);
        self
    }

    /// Refused requests are answered by this: [`Http`] unless said otherwise.
    pub fn answer<B>(self, answer: B) -> ThrottleLayer<N, B, C> {
        let ThrottleLayer { scope, ask, name, cost, fail_closed, .. } = self;
        ThrottleLayer { scope, ask, name, answer, cost, fail_closed }
    }

    /// Lets a request wait for its turn if that comes within `patience`, and refuses it at once if not.
    pub fn wait_at_most(mut self, patience: Duration) -> Self {
        self.ask.patience = patience;
        self
    }

    /// Lets requests wait for their turn, however long, as python-diskcache's `throttle` does. It cannot refuse, so response and error types
    /// stay those of the inner service. What can never be admitted (a cost above the burst), and what comes while the
    /// cache fails, passes at once.
    pub fn wait(self) -> WaitingThrottleLayer<N, C> {
        WaitingThrottleLayer(self.wait_at_most(Duration::MAX).answer(Patient::new()))
    }

    /// Refuses requests while the cache cannot be used, in place of letting them pass.
    pub fn fail_closed(mut self) -> Self {
        self.fail_closed = true;
        self
    }

    /// The name of a request; `None`: it passes untouched. Text that is no UTF-8 is shown with replacement characters.
    pub fn name_of<Req>(&self, request: &Req) -> Option<String>
    where
        N: Name<Req>,
    {
        name::written(&self.name, request).map(|name| name.to_string())
    }
}

impl<S, N: Clone, A: Clone, C: Clone> Layer<S> for ThrottleLayer<N, A, C> {
    type Service = Throttle<S, N, A, C>;

    fn layer(&self, inner: S) -> Self::Service {
        Throttle { inner, layer: self.clone() }
    }
}

/// A [`ThrottleLayer`] that never refuses; see [`ThrottleLayer::wait`].
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct WaitingThrottleLayer<N = All, C = One>(ThrottleLayer<N, Patient, C>);

impl<N, C> WaitingThrottleLayer<N, C> {
    /// See [`ThrottleLayer::name`].
    pub fn name<M>(self, name: M) -> WaitingThrottleLayer<M, C> {
        WaitingThrottleLayer(self.0.name(name))
    }

    /// See [`ThrottleLayer::burst`].
    ///
    /// # Panics
    ///
    /// If it is zero, or takes more than 100 years to regain.
    #[track_caller]
    pub fn burst(self, burst: u32) -> Self {
        WaitingThrottleLayer(self.0.burst(burst))
    }

    /// See [`ThrottleLayer::cost`].
    pub fn cost<D>(self, cost: D) -> WaitingThrottleLayer<N, D> {
        WaitingThrottleLayer(self.0.cost(cost))
    }

    /// See [`ThrottleLayer::tag`].
    pub fn tag(self, tag: &str) -> Self {
        WaitingThrottleLayer(self.0.tag(tag))
    }

    /// See [`ThrottleLayer::expire`].
    pub fn expire(self, retention: Duration) -> Self {
        WaitingThrottleLayer(self.0.expire(retention))
    }

    /// See [`ThrottleLayer::name_of`].
    pub fn name_of<Req>(&self, request: &Req) -> Option<String>
    where
        N: Name<Req>,
    {
        self.0.name_of(request)
    }
}

impl<S, N: Clone, C: Clone> Layer<S> for WaitingThrottleLayer<N, C> {
    type Service = Throttle<S, N, Patient, C>;

    fn layer(&self, inner: S) -> Self::Service {
        self.0.layer(inner)
    }
}

/// What a request takes from the budget. Any `Fn(&Req) -> u32` is one.
pub trait Cost<Req> {
    /// Units of the rate; 0 passes without being counted.
    fn cost(&self, request: &Req) -> u32;
}

/// Every request costs 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct One;

impl<Req> Cost<Req> for One {
    fn cost(&self, _: &Req) -> u32 {
        1
    }
}

impl<Req, F: Fn(&Req) -> u32> Cost<Req> for F {
    fn cost(&self, request: &Req) -> u32 {
        self(request)
    }
}
