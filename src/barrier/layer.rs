//! The barrier's layer: which lock, for which name, for how long.

use super::service::Barrier;
use crate::{
    answer::Http,
    cache::Scope,
    lock::{self, Lock},
    name::{self, All, Name},
};
use std::time::Duration;
use tower::Layer;

/// How long a request waits for the lock, unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lets requests of one name through as a lock allows; see the [module](super).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct BarrierLayer<L = Lock, N = All, A = Http> {
    pub(super) scope: Scope,
    pub(super) lock: L,
    pub(super) name: N,
    pub(super) answer: A,
    pub(super) patience: Option<Duration>,
    pub(super) lease: Duration,
    pub(super) tag: u64,
    pub(super) fail_open: bool,
}

impl<L> BarrierLayer<L> {
    /// One lock for all requests together, unless there is a [`name`](BarrierLayer::name). A request waits up to 30
    /// seconds for it.
    pub fn new(scope: Scope, lock: L) -> Self {
        BarrierLayer {
            scope,
            lock,
            name: All,
            answer: Http::new(),
            patience: Some(PATIENCE),
            lease: lock::LEASE,
            tag: 0,
            fail_open: false,
        }
    }
}

impl<L, N, A> BarrierLayer<L, N, A> {
    /// What is locked together: each name has a lock of its own. See [`name`](crate::name) for ready-made ones.
    pub fn name<M>(self, name: M) -> BarrierLayer<L, M, A> {
        let BarrierLayer { scope, lock, answer, patience, lease, tag, fail_open, .. } = self;
        BarrierLayer { scope, lock, name, answer, patience, lease, tag, fail_open }
    }

    /// Requests that wait longer are refused: 30 s unless said otherwise, zero never waits, [`Duration::MAX`] waits for
    /// ever.
    pub fn wait_at_most(mut self, patience: Duration) -> Self {
        self.patience = (patience != Duration::MAX).then_some(patience);
        self
    }

    /// How long the lock stays held once its process has died or hangs: 30 s unless said otherwise. It is renewed while
    /// the request lives.
    ///
    /// # Panics
    ///
    /// Below 10 ms or above a year.
    #[track_caller]
    pub fn expire(mut self, lease: Duration) -> Self {
        self.lease = lock::check_lease(lease);
        self
    }

    /// A tag, kept beside the lock for those who look at the files. Evicting it never frees a held lock.
    pub fn tag(mut self, tag: &str) -> Self {
        self.tag = self.scope.tag(tag);
        self
    }

    /// Refused requests are answered by this: [`Http`] unless said otherwise.
    pub fn answer<B>(self, answer: B) -> BarrierLayer<L, N, B> {
        let BarrierLayer { scope, lock, name, patience, lease, tag, fail_open, .. } = self;
        BarrierLayer { scope, lock, name, answer, patience, lease, tag, fail_open }
    }

    /// Lets requests pass, unlocked, while the cache cannot be used, in place of refusing them.
    pub fn fail_open(mut self) -> Self {
        self.fail_open = true;
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

impl<S, L: Clone, N: Clone, A: Clone> Layer<S> for BarrierLayer<L, N, A> {
    type Service = Barrier<S, L, N, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Barrier { inner, layer: self.clone() }
    }
}
