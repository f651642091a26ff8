//! Who may hold a lock: pure rules.

use super::owner::Owner;

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
}

impl Rule for Semaphore {
    fn admits(&self, _: &[Holder], _: &Owner) -> bool {
        false
    }

    fn demand(&self) -> Option<Demand> {
        Some(Demand::new(self.0, 1))
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
