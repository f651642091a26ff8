//! The throttle's layer: what is counted, how fast, and what becomes of the rest.

use super::{
    cell::Block,
    limit::{
        budget::Rule,
        limits::{Limit, Limits},
        rate::Rate,
    },
    limiter::Limiter,
    policy::{Allowing, Costing, Denying, Flat, Learning, LearningBy, RateOf, Refunding, Settling},
    service::Throttle,
    settings::{Options, Settings},
    terms::{Ask, MOST_WAITING},
};
use crate::{
    answer::{Http, Patient},
    cache::Scope,
    name::{self, All, Name},
    time::nanos,
};
use std::time::Duration;
use tower::Layer;

/// Lets so many requests per time pass for each name; see the [module](super).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct ThrottleLayer<N = All, A = Http, P = Flat> {
    settings: Settings<N, A, P>,
}

impl ThrottleLayer {
    /// `count` requests per `per`, all at once if need be, for all requests together unless there is a
    /// [`name`](ThrottleLayer::name). Further ones are refused: 429 over HTTP.
    ///
    /// After a rest nearly twice `count` may pass within one `per`: the burst, and what is regained meanwhile.
    /// [`burst(1)`](ThrottleLayer::burst) spaces requests evenly; a [`SlidingWindow`](super::SlidingWindow) has another answer.
    ///
    /// # Panics
    ///
    /// If `count` or `per` is zero, or the rate is above one a nanosecond.
    #[track_caller]
    pub fn new(scope: Scope, count: u32, per: Duration) -> Self {
        Self::of(scope, Rate::new(count, per))
    }

    /// As [`new`](ThrottleLayer::new), by a [`Rate`], another kind of limit, or several [`Limits`] at once.
    pub fn of(scope: Scope, limits: impl Into<Limits>) -> Self {
        let (ask, options) = (Ask::new(limits.into()), Options::default());
        ThrottleLayer { settings: Settings { scope, ask, name: All, answer: Http::new(), policy: Flat, options } }
    }
}

impl<N, A, P> ThrottleLayer<N, A, P> {
    /// What is counted together: each name has a budget of its own. See [`name`] for ready-made ones.
    pub fn name<M>(self, name: M) -> ThrottleLayer<M, A, P> {
        ThrottleLayer { settings: self.settings.with_name(name) }
    }

    /// One more limit for every name. A request is admitted if all of them have room for it, and then taken from all:
    /// one transaction, all or nothing.
    ///
    /// # Panics
    ///
    /// If there are eight limits already.
    #[track_caller]
    pub fn and(mut self, limit: impl Into<Limit>) -> Self {
        let terms = self.settings.ask.terms_mut();
        terms.limits = terms.limits.clone().and(limit);
        self
    }

    /// Room for `burst` at once, in place of `count`. 1 spaces requests evenly.
    ///
    /// # Panics
    ///
    /// If it is zero, or takes more than 100 years to regain, or if the first limit is not a [`Rate`].
    #[track_caller]
    pub fn burst(mut self, burst: u32) -> Self {
        match &mut self.settings.ask.terms_mut().limits.first.rule {
            Rule::Rate(rate) => *rate = rate.burst(burst),
            other => panic!("a burst of {burst} is for a rate, not for {other}: give it to the `Rate`"),
        }
        self
    }

    /// Limits of its own for each request, by its plan or tenant: they take the place of the layer's.
    ///
    /// Requests of one name share one budget, so limits should be a function of the name. When they change, what is
    /// spent stays spent: the share of the budget that was used up is used up of the new one too (half of 10 becomes
    /// half of 100). Of several limits each takes over from one just like it, else from the one in its place, else from
    /// one that is gone; a limit that is new beside others starts full. A change counts from the first request after
    /// it. A waiter keeps the turn that was given out, and what was taken before is not settled any more.
    pub fn rate_of<F>(self, limits: F) -> ThrottleLayer<N, A, RateOf<P, F>> {
        self.wrap(|inner| RateOf { inner, f: limits })
    }

    /// What a request takes from the budget: 1 unless said otherwise. More than the burst is always refused; 0 passes
    /// without being counted.
    pub fn cost<F>(self, cost: F) -> ThrottleLayer<N, A, Costing<P, F>> {
        self.wrap(|inner| Costing { inner, f: cost })
    }

    /// What a request really cost, once its response says so: `keep` takes from the request what `cost` wants to know of it.
    /// The [`cost`](ThrottleLayer::cost) before was an estimate, which had to fit; now too much is given back, as far
    /// as time has not done so meanwhile, and what is missing is taken, even beyond the limit. So an estimate of 0 always
    /// passes, whatever the calls before it have cost, and is charged afterwards.
    ///
    /// If the call fails, is dropped, or the process dies in between, the estimate stays spent. The response's own
    /// [`Decision`](super::Decision) and headers tell what was left after the estimate.
    pub fn settle<K, F>(self, keep: K, cost: F) -> ThrottleLayer<N, A, Settling<P, (K, F)>> {
        self.wrap(|inner| Settling { inner, f: (keep, cost) })
    }

    /// Does not count calls whose response is like this, whatever [`settle`](ThrottleLayer::settle) says: what they took is
    /// given back, as far as time has not done so meanwhile. A call that fails without a response stays spent.
    pub fn refund_if<F>(self, uncounted: F) -> ThrottleLayer<N, A, Refunding<P, F>> {
        self.wrap(|inner| Refunding { inner, f: uncounted })
    }

    /// Requests that pass, uncounted.
    pub fn allow<F>(self, allowed: F) -> ThrottleLayer<N, A, Allowing<P, F>> {
        self.wrap(|inner| Allowing { inner, f: allowed })
    }

    /// Requests that are refused whatever is left: 403 over HTTP. A request on both lists is denied, and so is one
    /// without a name.
    pub fn deny<F>(self, denied: F) -> ThrottleLayer<N, A, Denying<P, F>> {
        let mut layer = self.wrap(|inner| Denying { inner, f: denied });
        layer.settings.options.denies = true;
        layer
    }

    /// For clients: heeds what the answers of a foreign server say of its own budget, so that all callers that share
    /// this one stop before the server has to refuse. Read are `Retry-After` where it has refused, `RateLimit`, and the
    /// many kinds of `X-RateLimit-*`: see [`Advice::read_at`](super::Advice::read_at), and
    /// [in a client](super#in-a-client) for what becomes of it.
    ///
    /// Responses must be [`http::Response`]s; for others, and for other words, there is [`learn_by`](ThrottleLayer::learn_by).
    /// A name should be what the server counts by: mostly the host, or the host and the credentials.
    pub fn learn(self) -> ThrottleLayer<N, A, Learning<P>> {
        let scope = self.settings.scope.clone();
        self.learning().wrap(|inner| Learning { inner, scope })
    }

    /// As [`learn`](ThrottleLayer::learn), by your own reading of the response.
    ///
    /// ```
    /// # use tower_floodgate::{Cache, ThrottleLayer, throttle::{Advice, Rate}};
    /// # let cache = Cache::temporary()?;
    /// let layer = ThrottleLayer::of(cache.scope("api"), Rate::per_second(50))
    ///     .learn_by(|response: &reqwest::Response| Advice::read(response.status(), response.headers()));
    /// # let _ = layer;
    /// # Ok::<(), tower_floodgate::Error>(())
    /// ```
    pub fn learn_by<F>(self, advice: F) -> ThrottleLayer<N, A, LearningBy<P, F>> {
        self.learning().wrap(|inner| LearningBy { inner, f: advice })
    }

    fn learning(mut self) -> Self {
        self.settings.ask.terms_mut().learns = true;
        self
    }

    /// The longest time for which a foreign server's answer can hold requests back; what asks for more is cut. One hour unless said
    /// otherwise. Only with [`learn`](ThrottleLayer::learn) or [`learn_by`](ThrottleLayer::learn_by) is anything held back.
    ///
    /// # Panics
    ///
    /// If it is zero.
    #[track_caller]
    pub fn hold_at_most(mut self, longest: Duration) -> Self {
        assert!(!longest.is_zero(), "a hold of {longest:?} at most never holds");
        self.settings.ask.terms_mut().longest = longest;
        self
    }

    /// A [`Policy`](super::policy::Policy) of your own, in place of all that was said by [`rate_of`](ThrottleLayer::rate_of),
    /// [`cost`](ThrottleLayer::cost), [`settle`](ThrottleLayer::settle), [`refund_if`](ThrottleLayer::refund_if),
    /// [`allow`](ThrottleLayer::allow), [`deny`](ThrottleLayer::deny), [`learn`](ThrottleLayer::learn) and
    /// [`learn_by`](ThrottleLayer::learn_by) before. What they say after it goes around it.
    pub fn policy<Q>(self, policy: Q) -> ThrottleLayer<N, A, Q> {
        self.wrap(|_| policy)
    }

    fn wrap<Q>(self, wrap: impl FnOnce(P) -> Q) -> ThrottleLayer<N, A, Q> {
        ThrottleLayer { settings: self.settings.map_policy(wrap) }
    }

    /// A tag, by which [`Cache::evict`](crate::Cache::evict) makes the budgets full again.
    pub fn tag(mut self, tag: &str) -> Self {
        self.settings.ask.terms_mut().tag = self.settings.scope.tag(tag);
        self
    }

    /// How long a name's cell is kept at least. Once it is full again it means nothing, so there is rarely a need.
    pub fn expire(mut self, retention: Duration) -> Self {
        self.settings.ask.terms_mut().retention = nanos(retention);
        self
    }

    /// Refused requests are answered by this: [`Http`] unless said otherwise.
    pub fn answer<B>(self, answer: B) -> ThrottleLayer<N, B, P> {
        ThrottleLayer { settings: self.settings.with_answer(answer) }
    }

    /// Lets a request wait for its turn if that comes within `patience`, and refuses it at once if not: at the time of asking,
    /// not after waiting.
    pub fn wait_at_most(mut self, patience: Duration) -> Self {
        self.settings.ask.patience = patience;
        self
    }

    /// Lets at most `waiting` requests of a name wait at once, in all processes together, and refuses further ones. At
    /// most 10,000, which is the default. Only with [`wait_at_most`](ThrottleLayer::wait_at_most) does anything wait.
    ///
    /// nginx's `limit_req rate=10r/s burst=20 delay=8` (pass the first 8 over the rate, delay the next 12, refuse the rest) is
    /// `Rate::per_second(10).burst(9)` with `wait_at_most(Duration::MAX)` and `queue_at_most(12)`.
    ///
    /// # Panics
    ///
    /// If it is more than 10,000.
    #[track_caller]
    pub fn queue_at_most(mut self, waiting: usize) -> Self {
        assert!(waiting <= MOST_WAITING, "a queue of {waiting} is too long: {MOST_WAITING} at most");
        self.settings.ask.terms_mut().queue = waiting;
        self
    }

    /// Blocks a name for `hold` once it was refused `refusals` times within as long. Refusals during a block do not prolong it.
    /// Counting them takes a write a refusal, which otherwise costs none.
    ///
    /// # Panics
    ///
    /// If either is zero.
    #[track_caller]
    pub fn block_for(mut self, hold: Duration, refusals: u32) -> Self {
        assert!(refusals > 0 && !hold.is_zero(), "a block of {hold:?} after {refusals} refusals never holds");
        self.settings.ask.terms_mut().block = Some(Block { refusals, hold: nanos(hold) });
        self
    }

    /// Lets requests wait for their turn, however long, as python-diskcache's `throttle` does. It cannot refuse, so response and error types
    /// stay those of the inner service. What can never be admitted (a cost above the burst), what comes while 10,000 wait,
    /// and what comes while the cache fails, passes at once.
    ///
    /// # Panics
    ///
    /// After [`deny`](ThrottleLayer::deny) or [`fail_closed`](ThrottleLayer::fail_closed), which need a layer that can
    /// refuse.
    #[track_caller]
    pub fn wait(self) -> WaitingThrottleLayer<N, P> {
        let Options { denies, fail_closed, .. } = self.settings.options;
        assert!(!denies, "`.wait()` cannot refuse whom `.deny(..)` is for: use `.wait_at_most(Duration::MAX)`");
        assert!(!fail_closed, "`.wait()` cannot refuse as `.fail_closed()` asks: use `.wait_at_most(Duration::MAX)`");
        WaitingThrottleLayer(self.wait_at_most(Duration::MAX).answer(Patient::new()))
    }

    /// Refuses requests while the cache cannot be used, in place of letting them pass.
    pub fn fail_closed(mut self) -> Self {
        self.settings.options.fail_closed = true;
        self
    }

    /// Decides and counts, but lets pass what it would refuse, without waiting: to try a limit before it bites. See
    /// [`Stats::shadowed`](crate::Stats::shadowed), and [`Decision::shadow`](super::Decision::shadow) in the extensions.
    pub fn shadow(mut self) -> Self {
        self.settings.options.shadow = true;
        self
    }

    /// The name of a request; `None`: it passes untouched. Text that is no UTF-8 is shown with replacement characters.
    pub fn name_of<Req>(&self, request: &Req) -> Option<String>
    where
        N: Name<Req>,
    {
        name::written(&self.settings.name, request).map(|name| name.to_string())
    }

    /// The budget of a name, as [`name_of`](ThrottleLayer::name_of) writes it: to look at, reset, penalise or block.
    ///
    /// It goes by the layer's own limits. For a name to which [`rate_of`](ThrottleLayer::rate_of) gives others,
    /// [`Scope::throttle`] takes those: by the wrong ones, all but the reading and the reset changes the limits of the name.
    pub fn limiter(&self, name: &str) -> Limiter {
        let mut ask = self.settings.ask.clone();
        // What it admits is answered elsewhere.
        if ask.terms.learns {
            ask.terms_mut().learns = false;
        }
        Limiter::new(&self.settings.scope, name.as_bytes(), ask)
    }
}

impl<S, N: Clone, A: Clone, P: Clone> Layer<S> for ThrottleLayer<N, A, P> {
    type Service = Throttle<S, N, A, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Throttle { inner, settings: self.settings.clone() }
    }
}

/// A [`ThrottleLayer`] that never refuses; see [`ThrottleLayer::wait`]. All else is said before that.
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct WaitingThrottleLayer<N = All, P = Flat>(ThrottleLayer<N, Patient, P>);

impl<N, P> WaitingThrottleLayer<N, P> {
    /// See [`ThrottleLayer::name`].
    pub fn name<M>(self, name: M) -> WaitingThrottleLayer<M, P> {
        WaitingThrottleLayer(self.0.name(name))
    }

    /// See [`ThrottleLayer::burst`].
    ///
    /// # Panics
    ///
    /// As that.
    #[track_caller]
    pub fn burst(self, burst: u32) -> Self {
        WaitingThrottleLayer(self.0.burst(burst))
    }

    /// See [`ThrottleLayer::cost`].
    pub fn cost<F>(self, cost: F) -> WaitingThrottleLayer<N, Costing<P, F>> {
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

impl<S, N: Clone, P: Clone> Layer<S> for WaitingThrottleLayer<N, P> {
    type Service = Throttle<S, N, Patient, P>;

    fn layer(&self, inner: S) -> Self::Service {
        self.0.layer(inner)
    }
}
