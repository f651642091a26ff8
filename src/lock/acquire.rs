//! Acquiring a lock: which rule, which lease, how patiently.

use super::{
    acquiring::{Acquiring, Named},
    error::AcquireError,
    guard::{Guard, Hold},
    options::{LockOptions, check_lease},
    owner::Owner,
    row::{
        attempt::{LockRequest, WaitOptions},
        encoding,
    },
    rule::{Lock, Rule},
};
use crate::{
    cache::{Cache, Scope},
    store::{Key, Kind, block_on_until},
    time::nanos,
};
use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

/// The lease of a claim: how long it stays held once its process hangs.
const CLAIM_LEASE: Duration = Duration::from_secs(10);

/// A lock about to be acquired: choose rule, lease and patience, then [`acquire`](Acquire::acquire) it.
///
/// Waiters are served in the order in which they came, over all processes. A waiter that does not take the lock within
/// 250 ms of its turn, because it is not polled or its process is suspended, is passed over and keeps its place in the
/// line.
#[derive(Clone, Debug)]
#[must_use = "nothing is locked until it is acquired"]
pub struct Acquire<R = Lock> {
    scope: Scope,
    first: Named,
    /// More names, which are acquired with the first.
    others: Vec<Named>,
    rule: R,
    options: LockOptions,
}

fn named(scope: &Scope, name: &[u8]) -> Named {
    (scope.key(Kind::Lock, name), encoding::write_label(scope.name(), name))
}

impl Acquire {
    /// The right to compute what is kept under `of`, as of a purge sequence, on the whole machine. It has no label, is in no
    /// list of locks and not counted among them.
    pub(crate) fn claim(scope: &Scope, of: &Key, sequence: u64, patience: Duration) -> Acquire {
        let mut name = [0; 24];
        name[..16].copy_from_slice(&of.hash);
        name[16..].copy_from_slice(&sequence.to_le_bytes());
        let key = scope.key(Kind::Claim, &name);
        let options = LockOptions { lease: CLAIM_LEASE, patience, ..LockOptions::new() };
        Acquire { scope: scope.clone(), first: (key, Arc::default()), others: Vec::new(), rule: Lock, options }
    }
}

impl<R> Acquire<R> {
    pub(crate) fn new(scope: &Scope, name: &[u8], rule: R, options: LockOptions) -> Self {
        Acquire { scope: scope.clone(), first: named(scope, name), others: Vec::new(), rule, options }
    }

    /// Acquires locks of these names as well.
    pub(crate) fn and(mut self, name: &[u8]) -> Self {
        self.others.push(named(&self.scope, name));
        self
    }

    /// Who may hold the lock: [`Lock`] (exclusive) unless said otherwise. All users of a name should agree.
    pub fn rule<Q: Rule>(self, rule: Q) -> Acquire<Q> {
        let Acquire { scope, first, others, options, .. } = self;
        Acquire { scope, first, others, rule, options }
    }

    /// The owner to enter as: a new random one unless said otherwise.
    pub fn owner(mut self, owner: Owner) -> Self {
        self.options.owner = Some(owner);
        self
    }

    /// How long the lock stays held when its process hangs: 30 s unless said otherwise. It is renewed while the guard lives,
    /// and free within 100 ms when the process dies.
    ///
    /// # Panics
    ///
    /// Below 10 ms or above a year.
    #[track_caller]
    pub fn expire(mut self, lease: Duration) -> Self {
        self.options.lease = check_lease(lease);
        self
    }

    /// The lock is held for this long at least, even if the guard is dropped before, or its process dies: for work that
    /// must not be done again too soon. Not at all unless said otherwise.
    pub fn at_least(mut self, hold: Duration) -> Self {
        self.options.at_least = hold;
        self
    }

    /// Gives up after this long; zero tries once, [`Duration::MAX`] waits for ever, as it does unless said otherwise.
    pub fn wait_at_most(mut self, patience: Duration) -> Self {
        self.options.patience = patience;
        self
    }

    /// Gives up at once if so many wait already, in all processes together. There is no limit unless said otherwise.
    pub fn queue_at_most(mut self, waiters: u32) -> Self {
        self.options.queue_at_most = waiters;
        self
    }
}

impl<R: Rule> Acquire<R> {
    /// Waits for the lock; equal to awaiting `self`. It is asked for at once. Dropped early, nothing stays held.
    ///
    /// # Errors
    ///
    /// [`AcquireError::Busy`] when the patience is over, [`AcquireError::QueueFull`] if too many wait,
    /// [`AcquireError::TooManyHolders`] if a rule without a demand would have to be shown too many, and
    /// [`AcquireError::Cache`] if the cache cannot be written, no thread can be started
    /// ([`Error::NoThread`](crate::Error::NoThread)) or the lock's record is damaged
    /// ([`Error::DamagedLock`](crate::Error::DamagedLock)).
    pub fn acquire(self) -> Acquiring<R> {
        let Acquire { scope, mut first, others: mut rest, rule, options } = self;
        if !rest.is_empty() {
            // All processes take them in the same order, so there are no deadlocks.
            rest.push(first);
            rest.sort_unstable_by_key(|(key, _)| std::cmp::Reverse(key.hash));
            rest.dedup_by_key(|(key, _)| key.hash);
            first = rest.pop().expect("there is one at least");
        }
        let request = LockRequest {
            rule,
            is_new_owner: options.owner.is_none(),
            owner: options.owner.unwrap_or_else(Owner::random),
            lease: nanos(options.lease),
            at_least: nanos(options.at_least),
            tag: options.tag,
            instance: scope.instance().unwrap_or(0),
            wait_options: WaitOptions {
                waits: !options.patience.is_zero(),
                queue_at_most: options.queue_at_most,
                deadline: nanos(options.deadline),
            },
        };
        Acquiring::start(scope, first, rest, request, options.patience)
    }

    /// Takes the lock if it is free, and does not wait.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn try_acquire(self) -> Acquiring<R> {
        self.wait_at_most(Duration::ZERO).acquire()
    }

    /// Waits for the lock, but no longer than this.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn acquire_timeout(self, patience: Duration) -> Acquiring<R> {
        self.wait_at_most(patience).acquire()
    }

    /// Holds the lock while `work` runs, and gives it the [`Hold`]. Dropped early, the lock is released.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let cache = tower_floodgate::Cache::temporary()?;
    /// let fence = cache.lock("report").with(|hold| async move { hold.fence() }).await?;
    /// assert!(cache.lock("report").acquire().await?.fence() > fence);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub async fn with<F: Future>(self, work: impl FnOnce(Hold) -> F) -> Result<F::Output, AcquireError> {
        let guard = self.acquire().await?;
        let output = work(guard.hold()).await;
        drop(guard);
        Ok(output)
    }

    /// As [`acquire`](Acquire::acquire), for plain threads: blocks this one. It needs no runtime.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn acquire_blocking(mut self) -> Result<Guard, AcquireError> {
        // Real time, as the thread sleeps in it. An attempt that does not wait must be known to the row.
        let patience = self.options.patience;
        if !patience.is_zero() {
            self.options.patience = Duration::MAX;
        }
        let mut acquiring = self.acquire();
        let deadline = Instant::now().checked_add(patience).filter(|_| !patience.is_zero());
        let acquired = block_on_until(Pin::new(&mut acquiring), deadline);
        acquired.unwrap_or_else(|| Err(acquiring.busy()))
    }

    /// As [`try_acquire`](Acquire::try_acquire), for plain threads.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn try_acquire_blocking(self) -> Result<Guard, AcquireError> {
        self.wait_at_most(Duration::ZERO).acquire_blocking()
    }

    /// As [`acquire_timeout`](Acquire::acquire_timeout), for plain threads: blocks this one. It needs no runtime.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn acquire_timeout_blocking(self, patience: Duration) -> Result<Guard, AcquireError> {
        self.wait_at_most(patience).acquire_blocking()
    }

    /// As [`with`](Acquire::with), for plain threads.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Acquire::acquire).
    pub fn with_blocking<T>(self, work: impl FnOnce(Hold) -> T) -> Result<T, AcquireError> {
        let guard = self.acquire_blocking()?;
        let output = work(guard.hold());
        drop(guard);
        Ok(output)
    }
}

impl<R: Rule> IntoFuture for Acquire<R> {
    type Output = Result<Guard, AcquireError>;
    type IntoFuture = Acquiring<R>;

    fn into_future(self) -> Acquiring<R> {
        self.acquire()
    }
}

impl Scope {
    /// A lock of this scope, by name: exclusive unless [`Acquire::rule`] says otherwise.
    pub fn lock(&self, name: &str) -> Acquire {
        Acquire::new(self, name.as_bytes(), Lock, LockOptions::new())
    }

    /// Several locks of this scope at once, under one guard. They are acquired in an order of their own, whatever the
    /// order of the names, so there are no deadlocks. Equal names count once.
    ///
    /// # Panics
    ///
    /// Without any name.
    #[track_caller]
    pub fn locks<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Acquire {
        let mut names = names.into_iter();
        let first = names.next().expect("no names: there is nothing to lock");
        let first = Acquire::new(self, first.as_bytes(), Lock, LockOptions::new());
        names.fold(first, |acquire, name| acquire.and(name.as_bytes()))
    }
}

impl Cache {
    /// [`Scope::lock`] of the [root](Cache::root) scope.
    pub fn lock(&self, name: &str) -> Acquire {
        self.root().lock(name)
    }

    /// [`Scope::locks`] of the [root](Cache::root) scope.
    ///
    /// # Panics
    ///
    /// Without any name.
    #[track_caller]
    pub fn locks<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Acquire {
        self.root().locks(names)
    }
}
