//! Which owners may hold a lock together: pure rules.

use super::owner::Owner;

/// Holders that a rule is shown at most.
pub(super) const HOLDERS_MAX: usize = 1_000;

/// A holder of a lock, as a [`Rule`] sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its owner.
    pub owner: Owner,
    /// How often it has entered and not yet left.
    pub entered: u32,
    /// How much it takes of the lock's capacity; 1 where a rule has no [`Demand`].
    pub weight: u32,
}

/// What a lock is asked for, in numbers. An owner may enter beside others while the weights of all together are at most
/// the capacity.
///
/// Every process can judge a demand without the code of the [`Rule`]: a release offers the lock to all waiters that now
/// fit, whichever process they wait in.
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

/// Decides whether one more owner may hold a lock: a pure function of its holders. It may run several times for one
/// decision, inside a transaction that holds up the whole machine, so it must be quick and must not use the cache. A
/// panic counts as a failed cache.
///
/// A rule with a [`demand`](Rule::demand) is decided by numbers, and may let in as many as there is room for. A rule
/// without one is shown all holders, which takes the longer the more they are: at most 1,000. Whoever it would let in
/// beyond that gets [`TooManyHolders`](super::AcquireError::TooManyHolders).
///
/// All users of a name should have the same rule. Waiters are served in the order in which they came. None overtakes
/// another, except an owner that is inside already.
pub trait Rule: Send + Sync + 'static {
    /// Whether `candidate` may enter beside `holders`. Where there is a [`demand`](Rule::demand) it is only asked about an
    /// owner that is inside, whether it may enter once more, and is shown a place of that owner alone.
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

/// At most so many holders at a time; zero counts as one. A permit costs the same beside ten others and beside
/// thousands, each of which takes some 250 bytes of the cache's [state](crate::Builder::state_size). After the number was
/// lowered, the holders may finish, and none is admitted until they are fewer. Where some requests weigh more than others,
/// see [`weight`](Semaphore::weight).
#[derive(Clone, Copy, Debug)]
pub struct Semaphore(pub u32);

impl Semaphore {
    /// The rule of a holder that takes `weight` places at once: at least one, at most all.
    pub fn weighing(self, weight: u32) -> Weighing {
        Weighing(Demand::new(self.0, weight))
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

/// The rule of a holder that takes several places of a [`Semaphore`], or one of the two sides of [`ReadWrite`].
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

/// Many readers at a time, or one writer. All wait in one line, so writers do not starve: a reader that comes behind a
/// waiting writer waits for it.
///
/// Under a barrier, HTTP requests with a safe method (`GET`, `HEAD`, `OPTIONS`, `TRACE`) read, others write.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReadWrite;

impl ReadWrite {
    /// The rule of a reader.
    pub fn read(self) -> Weighing {
        Weighing(Demand::new(u32::MAX, 1))
    }

    /// The rule of a writer.
    pub fn write(self) -> Weighing {
        Weighing(Demand::new(u32::MAX, u32::MAX))
    }
}

/// One owner at a time, who may enter again: the rule of [`RLock`](crate::RLock).
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
