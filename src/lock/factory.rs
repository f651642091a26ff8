//! How the rule and the owner of a lock are chosen for a request.

use super::{
    guard::Hold,
    owner::Owner,
    rule::{Demand, Holder, Lock, OneOwner, ReadWrite, Rule, Semaphore, Weighing},
};
use http::Request;
use std::time::Duration;

/// Chooses the [`Rule`] of a request's lock, and the request's [`Owner`].
///
/// [`Lock`], [`RLock`], [`Semaphore`] and [`ReadWrite`] are factories; so is any `Fn(&Req) -> impl Rule`.
pub trait LockFactory<Req> {
    /// The rule that it chooses.
    type Rule: Rule;

    /// The rule of this request's lock. All requests of one name should get the same.
    fn rule(&self, request: &Req) -> Self::Rule;

    /// The owner that the request belongs to. `None`: a new random one.
    fn owner(&self, _request: &Req) -> Option<Owner> {
        None
    }

    /// Called first of all for each request, also for one that will pass without a lock. It is the place to remove from
    /// the request what only the layer may put there.
    fn arrive(&self, _request: &mut Req) {}

    /// Tells the request what it holds, once the lock is held.
    fn hand_over(&self, _request: &mut Req, _hold: &Hold) {}

    /// A lease of its own, in place of the layer's; brought into the range of 10 ms to a year.
    fn lease(&self, _request: &Req) -> Option<Duration> {
        None
    }
}

impl<F, R, Req> LockFactory<Req> for F
where
    F: Fn(&Req) -> R,
    R: Rule,
{
    type Rule = R;

    fn rule(&self, request: &Req) -> R {
        self(request)
    }
}

impl<Req> LockFactory<Req> for Lock {
    type Rule = Lock;

    fn rule(&self, _: &Req) -> Lock {
        Lock
    }
}

impl Semaphore {
    /// For barriers: each request takes as many places as `weight` says, at least one and at most all.
    pub fn weight<F>(self, weight: F) -> Weighted<F> {
        Weighted { places: self.0, weight }
    }
}

impl<Req> LockFactory<Req> for Semaphore {
    type Rule = Semaphore;

    fn rule(&self, _: &Req) -> Semaphore {
        *self
    }
}

/// A [`Semaphore`] of which requests take as many places as they weigh.
#[derive(Clone, Copy, Debug)]
pub struct Weighted<F> {
    places: u32,
    weight: F,
}

impl<Req, F: Fn(&Req) -> u32> LockFactory<Req> for Weighted<F> {
    type Rule = Weighing;

    fn rule(&self, request: &Req) -> Weighing {
        Semaphore(self.places).weighing((self.weight)(request))
    }
}

impl<B> LockFactory<Request<B>> for ReadWrite {
    type Rule = Weighing;

    fn rule(&self, request: &Request<B>) -> Weighing {
        if request.method().is_safe() { self.read() } else { self.write() }
    }
}

/// One owner at a time, who may enter again: a request nested in one that holds the lock passes.
///
/// An HTTP request belongs to the [`Owner`] in its extensions, which the layer mints for a request that has none. No
/// client can put anything there. For other requests, or owners known otherwise, see [`RLock::owned_by`].
///
/// Without a barrier, a nested call names the [owner](super::Acquire::owner):
///
/// ```
/// # use tower_floodgate::{Cache, RLock};
/// # let cache = Cache::temporary()?;
/// let lock = cache.lock("tree").rule(RLock::new());
/// let outer = lock.clone().acquire_blocking()?;
/// let inner = lock.clone().owner(outer.owner().clone()).try_acquire_blocking()?;
/// assert!(lock.try_acquire_blocking().is_err(), "a stranger");
/// # drop((outer, inner));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct RLock<F = Minted> {
    owner_of: F,
}

/// Owners are minted by the layer and travel in the extensions of HTTP requests.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Minted;

impl RLock {
    /// Owners are minted by the layer and travel in the extensions of HTTP requests.
    pub fn new() -> Self {
        RLock::default()
    }
}

impl<F> RLock<F> {
    /// The owner is what `owner_of` finds in the request, for input that is trusted: a token that a client could choose
    /// would let it into another's lock. `None`: a new random owner, so it enters once.
    pub fn owned_by<Req>(owner_of: F) -> Self
    where
        F: Fn(&Req) -> Option<Owner>,
    {
        RLock { owner_of }
    }
}

impl Rule for RLock<Minted> {
    fn admits(&self, holders: &[Holder], candidate: &Owner) -> bool {
        OneOwner.admits(holders, candidate)
    }

    fn demand(&self) -> Option<Demand> {
        OneOwner.demand()
    }
}

impl<B> LockFactory<Request<B>> for RLock<Minted> {
    type Rule = OneOwner;

    fn rule(&self, _: &Request<B>) -> OneOwner {
        OneOwner
    }

    fn owner(&self, request: &Request<B>) -> Option<Owner> {
        request.extensions().get().cloned()
    }

    fn hand_over(&self, request: &mut Request<B>, hold: &Hold) {
        request.extensions_mut().insert(hold.owner().clone());
    }
}

impl<Req, F: Fn(&Req) -> Option<Owner>> LockFactory<Req> for RLock<F> {
    type Rule = OneOwner;

    fn rule(&self, _: &Req) -> OneOwner {
        OneOwner
    }

    fn owner(&self, request: &Req) -> Option<Owner> {
        (self.owner_of)(request)
    }
}
