//! Who may hold a lock: pure rules, and how they are chosen for a request.

use super::guard::Hold;
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

/// One who has a place in a lock now, as a [`Rule`] sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Who it is.
    pub owner: Owner,
    /// How often they have entered and not yet left.
    pub entered: u32,
    /// How much they take of the lock's capacity; 1 where a rule has no [`Demand`].
    pub weight: u32,
}

/// What a lock is asked for, in numbers: one may enter beside others as long as the weights of all together are at most
/// its capacity.
///
/// Others can judge a demand without the code of a [`Rule`]: whoever releases a lock offers it to all waiters that now fit,
/// whichever process they wait in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    capacity: u32,
    weight: u32,
}

impl Demand {
    /// `weight` of a lock that has `capacity` in all. Zero counts as one; a weight above the capacity takes all of it.
    pub fn new(capacity: u32, weight: u32) -> Self {
        let capacity = capacity.max(1);
        Demand { capacity, weight: weight.clamp(1, capacity) }
    }

    /// How much the lock has in all.
    pub fn capacity(self) -> u32 {
        self.capacity
    }

    /// How much of it is asked for.
    pub fn weight(self) -> u32 {
        self.weight
    }

    /// Whether there is room beside what others have taken.
    pub(crate) fn fits(self, taken: u64) -> bool {
        taken + u64::from(self.weight) <= u64::from(self.capacity)
    }
}

/// Decides whether one more may hold a lock: a pure function of those who do. It may run several times for one decision,
/// inside a transaction that holds up the whole machine, so it must be quick and must not use the cache. A panic counts
/// as a failed cache. A lock has 1,000 holders at most, whatever the rule says; more wait.
///
/// All users of a name should have the same rule. Whoever waits is served in the order of coming: nobody overtakes, save
/// an owner that is inside already.
pub trait Rule: Send + Sync + 'static {
    /// Whether `candidate` may enter beside `holders`. Where there is a [`demand`](Rule::demand) it is only asked about an
    /// owner that is inside: whether it may enter once more.
    fn admits(&self, holders: &[Holder], candidate: &Owner) -> bool;

    /// The rule in numbers, where it is that simple. Without, each waiter is asked when it is the first.
    fn demand(&self) -> Option<Demand> {
        None
    }
}

impl<F: Fn(&[Holder], &Owner) -> bool + Send + Sync + 'static> Rule for F {
    fn admits(&self, holders: &[Holder], candidate: &Owner) -> bool {
        self(holders, candidate)
    }
}

/// Chooses the [`Rule`] of a request's lock, and who the request is to it.
///
/// [`Lock`], [`RLock`], [`Semaphore`] and [`ReadWrite`] are factories; so is any `Fn(&Req) -> impl Rule`.
pub trait LockFactory<Req> {
    /// The rule that it chooses.
    type Rule: Rule;

    /// The rule of this request's lock. All requests of one name should get the same.
    fn rule(&self, request: &Req) -> Self::Rule;

    /// Whom the request belongs to, if it comes with an owner; a new random one otherwise.
    fn owner(&self, _request: &Req) -> Option<Owner> {
        None
    }

    /// Called first of all for each request, also for one that will pass without a lock: the place to take off it what
    /// comes from outside and only the layer may put there.
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

/// One holder at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lock;

impl Rule for Lock {
    fn admits(&self, _: &[Holder], _: &Owner) -> bool {
        false
    }

    fn demand(&self) -> Option<Demand> {
        Some(Demand::new(1, 1))
    }
}

impl<Req> LockFactory<Req> for Lock {
    type Rule = Lock;

    fn rule(&self, _: &Req) -> Lock {
        Lock
    }
}

/// At most so many holders at a time: 1 to 1,000. Zero counts as one, and above 1,000 more wait (as no lock has room for
/// more holders), though [weights](Semaphore::weight) may add up to more. Lowering the number lets those in finish and admits nobody until
/// they are fewer. Where some weigh more than others, see [`weight`](Semaphore::weight).
#[derive(Clone, Copy, Debug)]
pub struct Semaphore(pub u32);

impl Semaphore {
    /// The rule of one who takes `weight` places at once: at least one, at most all.
    pub fn weighing(self, weight: u32) -> Weighing {
        Weighing(Demand::new(self.0, weight))
    }

    /// For barriers: each request takes as many places as `weight` says, at least one and at most all.
    pub fn weight<F>(self, weight: F) -> Weighted<F> {
        Weighted { places: self.0, weight }
    }
}

impl Rule for Semaphore {
    fn admits(&self, _: &[Holder], _: &Owner) -> bool {
        false
    }

    fn demand(&self) -> Option<Demand> {
        Some(Demand::new(self.0, 1))
    }
}

impl<Req> LockFactory<Req> for Semaphore {
    type Rule = Semaphore;

    fn rule(&self, _: &Req) -> Semaphore {
        *self
    }
}

/// The rule of one who takes several places of a [`Semaphore`], or one of the two sides of [`ReadWrite`].
#[derive(Clone, Copy, Debug)]
pub struct Weighing(Demand);

impl Rule for Weighing {
    fn admits(&self, _: &[Holder], _: &Owner) -> bool {
        false
    }

    fn demand(&self) -> Option<Demand> {
        Some(self.0)
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

/// Many may read at a time, and one may write while nobody reads. As all wait in one line, writers do not starve: who
/// comes to read behind a waiting writer waits for it.
///
/// Under a barrier, HTTP requests with a safe method (`GET`, `HEAD`, `OPTIONS`, `TRACE`) read, others write. At most 1,000
/// read at a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadWrite;

impl ReadWrite {
    /// The rule of one who reads.
    pub fn read(self) -> Weighing {
        Weighing(Demand::new(u32::MAX, 1))
    }

    /// The rule of one who writes.
    pub fn write(self) -> Weighing {
        Weighing(Demand::new(u32::MAX, u32::MAX))
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
/// Without a barrier, whoever enters again says [as whom](super::Acquire::owner):
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

    fn demand(&self) -> Option<Demand> {
        Some(Demand::new(1, 1))
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
