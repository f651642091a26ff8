//! Who may hold a lock: pure rules, and how they are chosen for a request.

use http::Request;
use std::{fmt, time::Duration};

/// The random token of whoever holds a lock.
///
/// [`RLock`] mints one for each outermost request and leaves it in the request's extensions. Whoever makes a nested
/// request passes it on: `nested.extensions_mut().insert(request.extensions().get::<Owner>().unwrap().clone())`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Owner(pub(crate) u128);

impl Owner {
    /// A token that nobody else has.
    pub fn random() -> Self {
        Owner(rand::random())
    }

    /// A token of the user's own, for input that is trusted: whoever knows it may enter as this owner.
    pub fn from_u128(token: u128) -> Self {
        Owner(token)
    }
}

impl fmt::Debug for Owner {
    /// Hides the token: who knows it can enter.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner")
    }
}

/// One who holds a lock now, as a [`Rule`] sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Who it is.
    pub owner: Owner,
    /// How often they have entered and not yet left.
    pub entered: u32,
    /// Machine time in ns at which they entered first.
    pub(crate) since: u64,
    /// Machine time in ns at which they lose their place unless they renew.
    pub(crate) lease: u64,
}

/// Decides whether one more may hold a lock: a pure function of those who do. It may run several times for one decision,
/// inside a transaction that holds up the whole machine, so it must be quick. A panic counts as a failed cache.
pub trait Rule: Send + Sync + 'static {
    /// Whether `candidate` may enter beside `holders`.
    fn admits(&self, holders: &[Holder], candidate: &Owner) -> bool;
}

impl<F: Fn(&[Holder], &Owner) -> bool + Send + Sync + 'static> Rule for F {
    fn admits(&self, holders: &[Holder], candidate: &Owner) -> bool {
        self(holders, candidate)
    }
}

/// Chooses the [`Rule`] of a request's lock, and who the request is to it.
///
/// [`Lock`], [`RLock`] and [`Semaphore`] are factories; so is any `Fn(&Req) -> impl Rule`.
pub trait LockFactory<Req> {
    /// The rule that it chooses.
    type Rule: Rule;

    /// The rule of this request's lock. All requests of one name should get the same.
    fn rule(&self, request: &Req) -> Self::Rule;

    /// Whom the request belongs to, if it comes with an owner; a new random one otherwise.
    fn owner(&self, _request: &Req) -> Option<Owner> {
        None
    }

    /// Tells the request whom it belongs to, once the lock is held.
    fn hand_over(&self, _request: &mut Req, _owner: &Owner) {}

    /// A lease of its own, in place of the layer's.
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

/// One holder at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lock;

impl Rule for Lock {
    fn admits(&self, holders: &[Holder], _: &Owner) -> bool {
        holders.is_empty()
    }
}

impl<Req> LockFactory<Req> for Lock {
    type Rule = Lock;

    fn rule(&self, _: &Req) -> Lock {
        Lock
    }
}

/// At most so many holders at a time, at least one. Lowering the number lets those in finish and admits nobody until
/// they are fewer.
#[derive(Clone, Copy, Debug)]
pub struct Semaphore(pub u32);

impl Rule for Semaphore {
    fn admits(&self, holders: &[Holder], _: &Owner) -> bool {
        (holders.len() as u64) < u64::from(self.0.max(1))
    }
}

impl<Req> LockFactory<Req> for Semaphore {
    type Rule = Semaphore;

    fn rule(&self, _: &Req) -> Semaphore {
        *self
    }
}

/// One owner at a time, who may enter again: a request nested in one that holds the lock passes.
///
/// An HTTP request belongs to the [`Owner`] in its extensions, which the layer mints for a request that has none. No
/// client can put anything there. For other requests, or owners known otherwise, see [`RLock::owned_by`].
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
    /// would let it into another's lock. `None`: nobody's, so it enters once.
    pub fn owned_by<Req>(owner_of: F) -> Self
    where
        F: Fn(&Req) -> Option<Owner>,
    {
        RLock { owner_of }
    }
}

/// One owner at a time, who may enter again: the rule of [`RLock`].
#[derive(Clone, Copy, Debug, Default)]
pub struct OneOwner;

impl Rule for OneOwner {
    fn admits(&self, holders: &[Holder], candidate: &Owner) -> bool {
        holders.iter().all(|holder| holder.owner == *candidate)
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

    fn hand_over(&self, request: &mut Request<B>, owner: &Owner) {
        request.extensions_mut().insert(owner.clone());
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
