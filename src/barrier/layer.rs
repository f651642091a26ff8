//! The barrier's layer: which lock, for which name, for how long.

use super::{
    deadline::NoDeadline,
    headers::{FenceHeader, OwnerHeader},
    names::Several,
    service::Barrier,
    settings::{Options, Settings},
};
use crate::{
    answer::Http,
    cache::Scope,
    lock::{self, Lock, LockOptions},
    name::{self, All, Name, header_name},
};
use std::time::Duration;
use tower::Layer;

/// How long a request waits for the lock, unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lets requests of one name through as a lock allows; see the [module](super).
#[derive(Clone, Debug)]
#[must_use = "a layer does nothing until it is added to a service"]
pub struct BarrierLayer<L = Lock, N = All, A = Http, D = NoDeadline> {
    settings: Settings<L, N, A, D>,
}

impl<L> BarrierLayer<L> {
    /// One lock for all requests together, unless there is a [`name`](BarrierLayer::name). A request waits up to 30
    /// seconds for it.
    pub fn new(scope: Scope, lock: L) -> Self {
        BarrierLayer {
            settings: Settings {
                lock,
                name: All,
                answer: Http::new(),
                deadline: NoDeadline,
                scope,
                lock_options: LockOptions { patience: PATIENCE, ..LockOptions::new() },
                options: Options::default(),
            },
        }
    }
}

impl<L, N, A, D> BarrierLayer<L, N, A, D> {
    /// What is locked together: each name has a lock of its own. See [`name`] for ready-made ones.
    pub fn name<M>(self, name: M) -> BarrierLayer<L, M, A, D> {
        BarrierLayer { settings: self.settings.with_name(name, false) }
    }

    /// Several names at once, each with a lock of its own: a closure from `&Req` to a list of what is
    /// [`IntoName`](crate::name::IntoName), in any order. Equal names count once, and without any the request passes untouched.
    ///
    /// The locks are acquired one after the other, in an order that is the same in all processes, so there are no
    /// deadlocks. A request that waits for one of them holds those before it, so the fewer the better.
    ///
    /// ```
    /// # use tower_floodgate::{BarrierLayer, Cache, Lock};
    /// # let cache = Cache::temporary()?;
    /// struct Transfer { from: u64, to: u64, cents: u64 }
    /// let layer = BarrierLayer::new(cache.scope("account"), Lock).names(|order: &Transfer| [order.from, order.to]);
    /// let order = Transfer { from: 7, to: 12, cents: 100 };
    /// assert_eq!(layer.name_of(&order).as_deref(), Some("1:7,2:12,"));
    /// # let _ = order.cents;
    /// # Ok::<(), tower_floodgate::Error>(())
    /// ```
    pub fn names<F>(self, names: F) -> BarrierLayer<L, Several<F>, A, D> {
        BarrierLayer { settings: self.settings.with_name(Several::new(names), true) }
    }

    /// Requests that wait longer are refused: 30 s unless said otherwise, zero never waits, [`Duration::MAX`] waits for
    /// ever.
    pub fn wait_at_most(mut self, patience: Duration) -> Self {
        self.settings.lock_options.patience = patience;
        self
    }

    /// Refuses at once what cannot pass at once: as [`wait_at_most`](BarrierLayer::wait_at_most) zero.
    pub fn try_only(self) -> Self {
        self.wait_at_most(Duration::ZERO)
    }

    /// Refuses at once if so many wait already for the name, in all processes together. Any number may unless said
    /// otherwise.
    pub fn queue_at_most(mut self, waiters: u32) -> Self {
        self.settings.lock_options.queue_at_most = waiters;
        self
    }

    /// How long the caller of a request still waits for its answer: a closure from `&Req` to `Option<Duration>`, such as
    /// [`grpc_timeout`](super::grpc_timeout). `None`: as long as it takes; zero: the request only tries.
    ///
    /// The request waits no longer for the lock, nor than [`wait_at_most`](BarrierLayer::wait_at_most), and is refused at
    /// once if its turn is expected to come later: as guessed from how long the lock was held of late, and how many wait.
    pub fn deadline<E>(self, deadline: E) -> BarrierLayer<L, N, A, E> {
        BarrierLayer { settings: self.settings.with_deadline(deadline) }
    }

    /// The lock is held for this long at least, also if the request ends sooner or its process dies: for what must not be
    /// done again too soon. Not at all unless said otherwise.
    pub fn at_least(mut self, hold: Duration) -> Self {
        self.settings.lock_options.at_least = hold;
        self
    }

    /// How long the lock stays held when its process hangs: 30 s unless said otherwise. It is renewed while the request
    /// lives, and free within 100 ms when the process dies.
    ///
    /// # Panics
    ///
    /// Below 10 ms or above a year.
    #[track_caller]
    pub fn expire(mut self, lease: Duration) -> Self {
        self.settings.lock_options.lease = lock::check_lease(lease);
        self
    }

    /// A tag, kept beside the lock for tools that read the files. Evicting it never frees a held lock.
    pub fn tag(mut self, tag: &str) -> Self {
        self.settings.lock_options.tag = self.settings.scope.tag(tag);
        self
    }

    /// Refused requests are answered by this: [`Http`] unless said otherwise.
    pub fn answer<B>(self, answer: B) -> BarrierLayer<L, N, B, D> {
        BarrierLayer { settings: self.settings.with_answer(answer) }
    }

    /// Lets requests pass, unlocked, while the cache cannot be used, in place of refusing them; also those that wait for
    /// the lock already. A lock whose own record is damaged ([`Error::DamagedLock`](crate::Error::DamagedLock)) lets nobody
    /// pass: somebody may hold it.
    pub fn fail_open(mut self) -> Self {
        self.settings.options.fail_open = true;
        self
    }

    /// When the lock [is lost](crate::lock::Hold::is_lost) while a request is served, drops the inner service's future and refuses the
    /// request, as [`Reason::Lost`](crate::Reason::Lost). With [`Http`], a response body that has begun fails in place of
    /// going on. Without this nothing is cancelled.
    ///
    /// This does not undo what the service has done by then; it only ends soon that two requests run at once. To be
    /// safe, let the store that is guarded refuse stale [fencing tokens](crate::lock::Fence).
    ///
    /// As the request has been passed on when its lock is lost, [`Answer::refuse`](crate::Answer::refuse) is asked for
    /// the refusal when the lock is acquired, for every request; mostly it is thrown away. An answer of your own must
    /// not count it.
    pub fn cancel_on_loss(mut self) -> Self {
        self.settings.options.cancel_on_loss = true;
        self
    }

    /// Sends the [fencing token](crate::lock::Fence) to the inner service as a header: for outbound clients and proxies,
    /// whose upstream reads it with [`Fence::from_headers`](crate::lock::Fence::from_headers). HTTP requests only.
    ///
    /// Headers of this name that come with a request are removed, also from one that passes without a lock.
    ///
    /// # Panics
    ///
    /// If `header` is not a valid name of a header.
    #[track_caller]
    pub fn fence_header(self, header: impl AsRef<str>) -> BarrierLayer<FenceHeader<L>, N, A, D> {
        let header = header_name(header.as_ref());
        BarrierLayer { settings: self.settings.map_lock(|lock, _| FenceHeader { lock, header }) }
    }

    /// The owner of a request comes as a header, from another process of this cache: a request nested in one that holds
    /// an [`RLock`](crate::RLock) there is let in as the same owner. See
    /// [`Owner::to_header`](crate::lock::Owner::to_header) for how to write the header, and for how it could be
    /// misused. HTTP requests only.
    ///
    /// A value that proves to be an owner is put into the request's extensions, where [`RLock`](crate::RLock) finds it;
    /// any other value is ignored. Either way the header is removed, also from a request that passes without a lock.
    ///
    /// # Panics
    ///
    /// If `header` is not a valid name of a header.
    #[track_caller]
    pub fn owner_header(self, header: impl AsRef<str>) -> BarrierLayer<OwnerHeader<L>, N, A, D> {
        let header = header_name(header.as_ref());
        let wrap = |lock, scope| OwnerHeader { lock, header, scope, forward: false };
        BarrierLayer { settings: self.settings.map_lock(wrap) }
    }

    /// As [`owner_header`](BarrierLayer::owner_header), and sends the owner to the inner service in that header: for
    /// outbound clients and proxies whose upstream is another process of this cache. Every request there can enter as
    /// this owner.
    ///
    /// # Panics
    ///
    /// If `header` is not a valid name of a header.
    #[track_caller]
    pub fn forward_owner(self, header: impl AsRef<str>) -> BarrierLayer<OwnerHeader<L>, N, A, D> {
        let mut layer = self.owner_header(header);
        layer.settings.lock.forward = true;
        layer
    }

    /// The name of a request; `None`: it passes untouched. Text that is no UTF-8 is shown with replacement characters.
    /// Each of [several](BarrierLayer::names) is written behind its length.
    pub fn name_of<Req>(&self, request: &Req) -> Option<String>
    where
        N: Name<Req>,
    {
        name::written(&self.settings.name, request).map(|name| name.to_string())
    }
}

impl<S, L: Clone, N: Clone, A: Clone, D: Clone> Layer<S> for BarrierLayer<L, N, A, D> {
    type Service = Barrier<S, L, N, A, D>;

    fn layer(&self, inner: S) -> Self::Service {
        Barrier { inner, settings: self.settings.clone() }
    }
}
