//! What every way of counting can do: pure functions over a small state.

use crate::decision::Quota;
use std::fmt;

/// 100 years in ns. No span, debt or hold is longer, so that a time of today plus some of them stays below `u64::MAX`.
pub(in crate::throttle) const LONGEST_SPAN: u64 = 100 * 31_557_600 * 1_000_000_000;

/// When something is decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// Machine time in ns: the same in all processes, deaf to clock steps, never runs back.
    pub(crate) now: u64,
    /// The calendar's time, in ns since the Unix epoch; it may step.
    pub(crate) wall: u64,
}

/// What one admission took, so that it can be given back. Its numbers mean something to its algorithm only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// How much of a budget is spent, in terms that every algorithm understands: what becomes of a running budget when its
/// limit is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spent {
    /// The share of the budget that is spent, rounded up, of [`WHOLE`](Spent::WHOLE).
    pub(crate) share: u64,
    /// Machine time of the last turn that was given out; in the future if a request waits.
    pub(crate) last_turn: u64,
}

impl Spent {
    pub(crate) const WHOLE: u64 = 1 << 32;
}

/// One way of counting. Times are machine time in ns unless they say otherwise.
pub(crate) trait Algorithm {
    /// What is kept for a name, with as much of the limit's parameters as [`spent`](Algorithm::spent) needs.
    type State: Clone + fmt::Debug + PartialEq;

    /// Whether it reads [`Moment::wall`].
    const READS_WALL: bool = false;

    /// A budget that nothing was taken from.
    fn fresh(&self, at: Moment) -> Self::State;

    /// Whether the state was made with just these parameters.
    fn made(&self, state: &Self::State) -> bool;

    /// How much is spent, whatever the parameters are now.
    fn spent(state: &Self::State, at: Moment) -> Spent;

    /// The state of a limit that took the place of another.
    fn with_spent(&self, spent: Spent, at: Moment) -> Self::State;

    /// Brings the state up to the moment. `rebooted`: the machine has started since it was written, so no request
    /// waits.
    fn advance(&self, state: &mut Self::State, at: Moment, rebooted: bool);

    /// The earliest time, not before `from`, at which `cost` fits. `None`: never. `from` is not before the last `advance`.
    fn earliest(&self, state: &Self::State, from: u64, cost: u32) -> Option<u64>;

    /// Takes `cost` for a turn that [`earliest`](Algorithm::earliest) answered.
    fn take(&self, state: &mut Self::State, turn: u64, cost: u32) -> Slot;

    /// Gives back the last `units` of what a slot took: all of it when a waiter left, a part when the request cost less.
    /// Called at most once a slot; what is given back is never more than what time has not given back meanwhile.
    fn free(&self, state: &mut Self::State, slot: Slot, units: u32, now: u64);

    /// Takes `units` more without asking; the budget may go into debt.
    fn charge(&self, state: &mut Self::State, units: u32, now: u64);

    /// What is left, as of the last `advance`.
    fn quota(&self, state: &Self::State, now: u64) -> Quota;

    /// When the state will be as good as fresh, if nothing happens.
    fn ends(&self, state: &Self::State) -> u64;

    /// Appends the stored form.
    fn encode(state: &Self::State, out: &mut Vec<u8>);

    /// Reads the stored form; `None`: damaged. Arbitrary bytes are survived.
    fn decode(bytes: &[u8]) -> Option<Self::State>;
}
