//! What goes into a transition of a lock's row, and what comes out of it.

use super::encoding::ToWake;
use crate::{
    lock::{
        owner::Owner,
        rule::{Demand, Rule},
    },
    store::{Change, HolderId, Step, WaitingLine},
};
use std::{sync::Arc, time::Duration};

/// How long a place is kept for the waiter that it is offered to.
pub(crate) const OFFER: u64 = Duration::from_millis(250).as_nanos() as u64;

/// What an attempt asks for.
#[derive(Clone, Debug)]
pub(crate) struct LockRequest<R> {
    pub(crate) rule: R,
    pub(crate) owner: Owner,
    /// The owner was made for this request, so it can be inside nowhere.
    pub(crate) is_new_owner: bool,
    /// In ns.
    pub(crate) lease: u64,
    /// For how many ns it is held at least.
    pub(crate) at_least: u64,
    /// Digest of its tag, 0 for none.
    pub(crate) tag: u64,
    /// The instance that asks, 0 if it is not known.
    pub(crate) instance: u64,
    pub(crate) wait_options: WaitOptions,
}

impl<R: Rule> LockRequest<R> {
    /// How much of the lock it takes.
    pub(crate) fn weight(&self) -> u32 {
        self.rule.demand().map_or(1, Demand::weight)
    }
}

/// Whether and how long an attempt waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitOptions {
    pub(crate) waits: bool,
    /// Joins the line only if fewer than so many wait.
    pub(crate) queue_at_most: u32,
    /// Joins the line only if it is not expected to take longer than this, in ns.
    pub(crate) deadline: u64,
}

/// The time of a transition, and what is known of instances.
#[derive(Clone, Copy)]
pub(crate) struct Moment<'a> {
    pub(crate) now: u64,
    /// Instances that are dead.
    pub(crate) dead: &'a [u64],
    /// Whether a number is that of a guard of this process. Its lease does not end while it lives.
    pub(crate) is_held_here: &'a dyn Fn(u64) -> bool,
}

/// A place in the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) number: u64,
    /// Machine time in ns at which it began to wait.
    pub(crate) since: u64,
}

/// What an attempt led to: a lock that is held or a turn to wait for, in whatever form, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer<Held = u64, Waiting = Turn> {
    /// In the row it is the number of the place, which is the fence.
    Held(Held),
    Waiting(Waiting),
    Busy,
    /// As many wait already as may wait.
    QueueFull,
    /// The rule must see all holders, and there are more than it may see.
    TooManyHolders,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) answer: Answer,
    /// The generation of `state/` in which its row stands.
    pub(crate) generation: u64,
    /// In how many ns it may be the turn of this attempt, if that can be guessed.
    pub(crate) wait: Option<u64>,
    pub(crate) to_wake: Vec<ToWake>,
    /// Instances in the way that may be dead.
    pub(crate) suspects: Vec<u64>,
}

/// A place that is held, as its guard knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    pub(crate) place: HolderId,
    /// The generation of `state/` in which its row stands.
    pub(crate) generation: u64,
    /// When its lease ends, in ns of machine time.
    pub(crate) lease_end: u64,
}

impl Entered {
    /// Whether its row was lost with all others, while nobody else can have been let in.
    pub(super) fn lost_its_row(&self, line: &WaitingLine<'_>, now: u64) -> bool {
        now < self.lease_end && line.has_lost(self.generation)
    }
}

/// What a guard says when it extends its lease.
#[derive(Clone, Debug)]
pub(crate) struct Renewal {
    pub(crate) entered: Entered,
    /// In ns.
    pub(crate) lease: u64,
    /// The instance in which it lives.
    pub(crate) instance: u64,
    pub(crate) weight: u32,
    pub(crate) label: Arc<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Renewed {
    /// `false`: the place is lost.
    pub(crate) ours: bool,
    pub(crate) entered: Entered,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Looked {
    pub(crate) to_wake: Vec<ToWake>,
    pub(crate) suspects: Vec<u64>,
    /// When the next place ends by itself, in ns of machine time.
    pub(crate) next: u64,
    /// While it is the same, no holder has entered or left, and no place was offered.
    pub(crate) mark: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Released {
    /// Whether it was held until now.
    pub(crate) ours: bool,
    pub(crate) to_wake: Vec<ToWake>,
}

/// What a transition answers, what becomes of the row, and what of the line.
pub(crate) type Transition<T> = (T, Change, Vec<Step>);
