//! Whether locks did what they promise, found out from a [`History`].
//!
//! What is known are intervals: somebody *surely* holds from after the acquiring until before the release, and *possibly*
//! from well before to well after. Two sure holds that exclude each other are wrong. A waiter is wrong to wait only where
//! nobody even possibly holds, and nothing else can have held it up.
//!
//! A hold may end early, by its lease, and the holder learns it later. But whose release finds its place has had it all
//! the time. And a lease only ends early if its renewals were held up: because the process was stopped, or another one that
//! was stopped in the middle of a write, or because the machine was busy. All that is written down too ([`stalls`]), so a
//! loss without such a reason is wrong, and until the first such reason the hold is sure.

use crate::history::{Attempt, Failure, History, How, Id, Life, Span, Want};
use std::{collections::HashMap, fmt};

const MS: u64 = 1_000_000;

/// After whatever disturbs: a death or an offer that nobody took is noticed within this.
const GRACE: u64 = 350 * MS;
/// From a grant to the moment when the one to whom it was granted writes it down, usually.
const HANDOVER: u64 = 10 * MS;
/// From the drop of a guard or an attempt to its effect, usually.
const EFFECT: u64 = 5 * MS;
/// Who has asked so long ago stands in the line, usually.
const SETTLED: u64 = 50 * MS;
/// The same where "usually" is not enough.
const SLACK: u64 = 500 * MS;
/// Nobody waits longer than this while there is room for all who wait.
const STUCK: u64 = 1_000 * MS;
/// A silence between two beats that counts as a stall, and the silence that is in order.
const SILENCE: u64 = 100 * MS;
const BEAT: u64 = 25 * MS;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Violation {
    /// These held at the same time, and may not have.
    TooMany { holders: Vec<Id>, at: u64 },
    /// The second surely got it after the first, without a greater fence.
    Fence { earlier: Id, later: Id },
    /// There was room for all who waited, and they waited this long.
    Stuck { waiters: Vec<Id>, at: u64, free: u64 },
    /// The second asked much later and got it first.
    Overtaken { waiter: Id, by: Id },
    /// It waited this much longer than its patience.
    Late { waiter: Id, by: u64 },
    /// It lost its place though nothing held up its renewals.
    LostForNothing { holder: Id },
    /// The other had its place, and it was not told.
    NotTold { holder: Id, rival: Id },
    /// It was told that it had lost its place, but had it.
    ToldForNothing { holder: Id },
    /// The store refused it though it had its place.
    RefusedForNothing { holder: Id },
    /// The cache could not be written, though nothing held it up or damaged it.
    FailedForNothing { waiter: Id },
}

impl Violation {
    /// Whom it is about.
    pub(crate) fn about(&self) -> Vec<Id> {
        match self {
            Violation::TooMany { holders: ids, .. } | Violation::Stuck { waiters: ids, .. } => ids.clone(),
            Violation::Fence { earlier: one, later: other }
            | Violation::Overtaken { waiter: one, by: other }
            | Violation::NotTold { holder: one, rival: other } => vec![*one, *other],
            Violation::Late { waiter: id, .. }
            | Violation::FailedForNothing { waiter: id }
            | Violation::LostForNothing { holder: id }
            | Violation::ToldForNothing { holder: id }
            | Violation::RefusedForNothing { holder: id } => vec![*id],
        }
    }
}

/// Everything that is wrong.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let facts = Facts::of(history);
    let mut names: HashMap<&str, Vec<&Attempt>> = HashMap::new();
    for attempt in &history.attempts {
        names.entry(&attempt.want.name).or_default().push(attempt);
    }
    let mut all: Vec<Violation> = names
        .values()
        .flat_map(|attempts| {
            let mut found = too_many(attempts, &facts);
            found.extend(fences(attempts, &facts));
            found.extend(stuck(attempts, &facts));
            found.extend(overtaken(attempts, &facts));
            found.extend(not_told(attempts, &facts));
            found
        })
        .collect();
    all.extend(history.attempts.iter().filter_map(|attempt| wrong_alone(attempt, &facts)));
    all
}

/// What is asked of a history again and again.
struct Facts<'a> {
    history: &'a History,
    /// When something may have held up renewals.
    stalls: Vec<Span>,
    /// When something may have held up waiters.
    unrest: Vec<Span>,
}

impl Facts<'_> {
    fn of(history: &History) -> Facts<'_> {
        let lives = || history.lives.values();
        let stalls = merged(lives().flat_map(stalls).collect());
        let deaths = lives().filter_map(|life| life.killed);
        let unrest =
            stalls.iter().copied().chain(deaths).map(|span| Span::new(span.from, span.to.saturating_add(GRACE)));
        let unrest = merged(unrest.collect());
        Facts { history, stalls, unrest }
    }

    /// How a hold ended: until when it was sure, and whether it was until its end.
    fn sure(&self, attempt: &Attempt) -> Option<Hold> {
        let (got, fence) = attempt.got?;
        let died = self.history.end(attempt.id.process);
        let end = attempt.leaves.unwrap_or(died).min(died);
        let left = attempt.left.map(|left| left.1);
        // A release takes its time too.
        let until = attempt.left.map_or(end, |left| left.0);
        let doubt = match left {
            Some(How::Kept) => None,
            _ => held_up(&self.stalls, &Span::new(attempt.asked, until), attempt.want.lease),
        };
        let lost = left == Some(How::Lost) || (attempt.told.is_some() && left != Some(How::Kept));
        let least = attempt.asked.saturating_add(attempt.want.lease);
        let to = match doubt {
            Some(from) => end.min(least.max(from)),
            // Lost, and nobody knows why: that is wrong by itself.
            None if lost => end.min(least),
            None => end,
        };
        let to = to.max(attempt.asked.saturating_add(attempt.want.at_least));
        Some(Hold {
            span: Span::new(got, to),
            fence,
            whole: !lost && doubt.is_none(),
            lost_for_nothing: lost && doubt.is_none(),
        })
    }

    /// When it possibly held, at the most.
    fn possible(&self, attempt: &Attempt) -> Option<Span> {
        let late = |at: u64| at.saturating_add(EFFECT);
        let gone = self.history.lives.get(&attempt.id.process).and_then(|life| life.killed).map(|killed| killed.to);
        let (since, until) = match (attempt.got, attempt.failed) {
            (Some((got, _)), _) => (got, attempt.left.map(|left| late(left.0)).or(gone)),
            (None, Some((at, _))) => (at, Some(late(at))),
            (None, None) => (gone?, gone),
        };
        let since = if attempt.want.lazy { 0 } else { since.saturating_sub(HANDOVER) };
        Some(Span::new(since.max(attempt.asked), until.unwrap_or(u64::MAX)))
    }

    fn waited(&self, attempt: &Attempt) -> Span {
        let ended = attempt.got.map(|got| got.0).or(attempt.failed.map(|failed| failed.0));
        Span::new(attempt.asked, ended.unwrap_or_else(|| self.history.end(attempt.id.process)))
    }

    fn is_quiet(&self, span: &Span) -> bool {
        overlap(&self.unrest, span) == 0
    }
}

struct Hold {
    span: Span,
    fence: u64,
    /// It was sure until its end.
    whole: bool,
    lost_for_nothing: bool,
}

/// When the process was stopped or did not get to run.
fn stalls(life: &Life) -> Vec<Span> {
    let next = life.beats.iter().skip(1).copied().chain(life.killed.map(|killed| killed.from));
    let silences = life.beats.iter().zip(next).filter(|&(beat, next)| next.saturating_sub(*beat) > SILENCE);
    let silences = silences.map(|(beat, next)| Span::new(beat + BEAT, next));
    life.stops.iter().copied().chain(silences).collect()
}

fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.from <= last.to => last.to = last.to.max(span.to),
            _ => merged.push(span),
        }
    }
    merged
}

/// Those of the merged spans that meet the span, cut to it.
fn within<'a>(merged: &'a [Span], span: &'a Span) -> impl Iterator<Item = Span> + 'a {
    let first = merged.partition_point(|other| other.to <= span.from);
    merged[first..].iter().take_while(|other| other.from < span.to).map(|other| other.and(span))
}

fn overlap(merged: &[Span], span: &Span) -> u64 {
    within(merged, span).map(|common| common.length()).sum()
}

/// From when on the renewals of a lease may have been held up for too long. They are due after a third of the lease, so
/// it takes two thirds to lose it; half of that is left to a busy machine.
fn held_up(stalls: &[Span], hold: &Span, lease: u64) -> Option<u64> {
    within(stalls, hold)
        .find(|stall| overlap(stalls, &Span::new(stall.from, stall.from.saturating_add(lease)).and(hold)) >= lease / 3)
        .map(|stall| stall.from)
}

fn excludes(a: &Attempt, b: &Attempt) -> bool {
    u64::from(a.want.weight) + u64::from(b.want.weight) > u64::from(a.want.capacity.min(b.want.capacity))
}

fn too_many(attempts: &[&Attempt], facts: &Facts<'_>) -> Vec<Violation> {
    let mut holds: Vec<(&Attempt, Span)> =
        attempts.iter().filter_map(|attempt| Some((*attempt, facts.sure(attempt)?.span))).collect();
    holds.sort_unstable_by_key(|(attempt, span)| (span.from, attempt.id));
    let mut inside: Vec<(&Attempt, Span)> = Vec::new();
    let mut found = Vec::new();
    for (attempt, span) in holds {
        inside.retain(|held| held.1.to > span.from);
        if span.length() == 0 {
            continue;
        }
        inside.push((attempt, span));
        let weight: u64 = inside.iter().map(|(held, _)| u64::from(held.want.weight)).sum();
        let capacity = inside.iter().map(|(held, _)| held.want.capacity).min();
        if weight > capacity.map_or(0, u64::from) {
            found.push(Violation::TooMany { holders: inside.iter().map(|held| held.0.id).collect(), at: span.from });
        }
    }
    found
}

/// Fences grow in the order in which a name was surely acquired.
fn fences(attempts: &[&Attempt], facts: &Facts<'_>) -> Vec<Violation> {
    let mut holds: Vec<(&Attempt, Hold)> =
        attempts.iter().filter_map(|attempt| Some((*attempt, facts.sure(attempt)?))).collect();
    holds.sort_unstable_by_key(|(attempt, hold)| (hold.span.from, attempt.id));
    let mut found = Vec::new();
    let mut compare = |earlier: Option<&(&Attempt, Hold)>, later: &(&Attempt, Hold)| {
        if let Some(earlier) = earlier.filter(|earlier| earlier.1.fence >= later.1.fence) {
            found.push(Violation::Fence { earlier: earlier.0.id, later: later.0.id });
        }
    };
    let greater = |one: Option<usize>, other: usize| match one {
        Some(one) if holds[one].1.fence >= holds[other].1.fence => Some(one),
        _ => Some(other),
    };
    // Who had it before another asked, got it before.
    let mut by_asking: Vec<usize> = (0..holds.len()).collect();
    by_asking.sort_unstable_by_key(|&at| holds[at].0.asked);
    let (mut next, mut greatest) = (0, None);
    for later in by_asking {
        while next < holds.len() && holds[next].1.span.from < holds[later].0.asked {
            greatest = greater(greatest, next);
            next += 1;
        }
        compare(greatest.map(|at| &holds[at]), &holds[later]);
    }
    // Of two that exclude each other and kept it to the end, the one that knew it first got it first. Enough to look at
    // those who exclude everybody.
    let (mut alone, mut any) = (None, None);
    for at in (0..holds.len()).filter(|&at| holds[at].1.whole) {
        let excludes_all = holds[at].0.want.weight >= holds[at].0.want.capacity;
        compare((if excludes_all { any } else { alone }).map(|at: usize| &holds[at]), &holds[at]);
        any = greater(any, at);
        if excludes_all {
            alone = greater(alone, at);
        }
    }
    found.dedup();
    found
}

/// A walk through the time of one name: who waits, and how much of the capacity is possibly in use. A waiter that nobody
/// calls is found by it; so is capacity that does not come back, where holds are long and somebody always waits.
fn stuck(attempts: &[&Attempt], facts: &Facts<'_>) -> Vec<Violation> {
    enum Step {
        Unrest(bool),
        Hold(bool, u64),
        Wait(bool, usize),
    }
    let mut steps = Vec::new();
    let mut add = |span: &Span, step: &dyn Fn(bool) -> Step| {
        if span.length() > 0 {
            steps.push((span.from, step(true)));
            steps.push((span.to, step(false)));
        }
    };
    for span in &facts.unrest {
        add(span, &Step::Unrest);
    }
    for (nth, attempt) in attempts.iter().enumerate() {
        if let Some(span) = facts.possible(attempt) {
            add(&span, &|begins| Step::Hold(begins, attempt.want.weight.into()));
        }
        if !attempt.want.lazy {
            let Span { from, to } = facts.waited(attempt);
            let settled = Span::new(from + SETTLED, to.saturating_sub(HANDOVER).max(from + SETTLED));
            add(&settled, &|begins| Step::Wait(begins, nth));
        }
    }
    steps.sort_by_key(|step| step.0);
    let (mut quiet, mut held, mut before, mut free) = (true, 0, 0, 0);
    let mut waiting: Vec<usize> = Vec::new();
    let mut found = Vec::new();
    for (at, step) in steps {
        let fits = |want: &Want| held + u64::from(want.weight) <= want.capacity.into();
        if waiting.is_empty() || !waiting.iter().all(|&nth| fits(&attempts[nth].want)) {
            // A handover takes a while, but not half of the time.
            free = u64::saturating_sub(free, at - before);
        } else if quiet {
            free += at - before;
        }
        if free > STUCK {
            let waiters = waiting.iter().map(|&nth| attempts[nth].id).collect();
            found.push(Violation::Stuck { waiters, at, free });
            free = 0;
        }
        before = at;
        match step {
            Step::Unrest(begins) => quiet = !begins,
            Step::Hold(true, weight) => held += weight,
            Step::Hold(false, weight) => held -= weight,
            Step::Wait(true, nth) => waiting.push(nth),
            Step::Wait(false, nth) => waiting.retain(|&other| other != nth),
        }
    }
    found
}

/// First come, first served, as far as the order of coming is sure and nothing disturbs.
fn overtaken(attempts: &[&Attempt], facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (nth, waiter) in attempts.iter().enumerate().filter(|(_, waiter)| !waiter.want.lazy) {
        let waited = facts.waited(waiter);
        let later = attempts[nth..].iter().skip_while(|by| by.asked < waited.from.saturating_add(SLACK));
        let later = later.take_while(|by| by.asked < waited.to);
        // Two that do not exclude each other may get it at once, and it is by chance who is the first to take it.
        let first = |by: &Attempt, got: u64, fence: u64| match waiter.got {
            Some(own) if excludes(by, waiter) => fence < own.1,
            _ => got + if excludes(by, waiter) { 0 } else { SLACK } < waited.to,
        };
        let before = |by: &&&Attempt| {
            by.got.is_some_and(|(got, fence)| {
                first(by, got, fence) && facts.is_quiet(&Span::new(waited.from, got.min(waited.to)))
            })
        };
        found.extend(later.filter(before).map(|by| Violation::Overtaken { waiter: waiter.id, by: by.id }).next());
    }
    found
}

/// Who lost its place to another must be told by a renewal, a third of the lease later.
fn not_told(attempts: &[&Attempt], facts: &Facts<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for holder in attempts {
        let (Some((got, _)), Some(leaves)) = (holder.got, holder.leaves) else { continue };
        if holder.left.is_some_and(|(_, how)| how == How::Kept) {
            continue;
        }
        let told = holder.told.unwrap_or(u64::MAX).min(leaves);
        let untold = |rival: &&&Attempt| {
            let Some(from) = rival.got.map(|got| got.0).filter(|from| (got + 1..told).contains(from)) else {
                return false;
            };
            let held = excludes(holder, rival) && facts.sure(rival).is_some_and(|hold| hold.span.length() > 0);
            let ignorant = Span::new(from, told);
            held && ignorant.length() - overlap(&facts.unrest, &ignorant) > holder.want.lease / 3 + SLACK
        };
        let untold = attempts.iter().filter(untold);
        found.extend(untold.map(|rival| Violation::NotTold { holder: holder.id, rival: rival.id }).next());
    }
    found
}

/// What an attempt says against itself.
fn wrong_alone(attempt: &Attempt, facts: &Facts<'_>) -> Option<Violation> {
    let holder = attempt.id;
    let left = attempt.left.map(|left| left.1);
    let hold = facts.sure(attempt);
    if left == Some(How::Kept) && attempt.told.is_some() {
        return Some(Violation::ToldForNothing { holder });
    }
    if hold.as_ref().is_some_and(|hold| hold.lost_for_nothing) {
        return Some(Violation::LostForNothing { holder });
    }
    // Only where all holders exclude each other does an older fence say that the place was lost.
    let alone = attempt.want.weight >= attempt.want.capacity;
    if alone && attempt.refused.is_some_and(|at| hold.is_some_and(|hold| at < hold.span.to)) {
        return Some(Violation::RefusedForNothing { holder });
    }
    let for_nothing = match attempt.failed {
        Some((_, Failure::Cache)) => facts.is_quiet(&facts.waited(attempt)),
        Some((_, Failure::Damaged)) => true,
        _ => false,
    };
    if for_nothing {
        return Some(Violation::FailedForNothing { waiter: attempt.id });
    }
    let until = attempt
        .got
        .map(|got| got.0)
        .or(attempt.failed.filter(|failed| failed.1 != Failure::Dropped).map(|failed| failed.0))?;
    let patience = attempt.want.patience.filter(|_| !attempt.want.lazy)?;
    let waited = Span::new(attempt.asked, until);
    let by = waited.length().saturating_sub(overlap(&facts.unrest, &waited)).saturating_sub(patience);
    (by > STUCK).then_some(Violation::Late { waiter: attempt.id, by })
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Violation::TooMany { holders, at } => write!(f, "too many hold it at {at}: {holders:?}"),
            Violation::Fence { earlier, later } => {
                write!(f, "{later:?} got it after {earlier:?}, without a greater fence")
            }
            Violation::Stuck { waiters, at, free } => {
                write!(f, "there was room for {} ms until {at}, and these waited: {waiters:?}", free / MS)
            }
            Violation::Overtaken { waiter, by } => write!(f, "{waiter:?} was overtaken by {by:?}"),
            Violation::Late { waiter, by } => write!(f, "{waiter:?} waited {} ms longer than its patience", by / MS),
            Violation::LostForNothing { holder } => write!(f, "{holder:?} lost its place for no reason"),
            Violation::NotTold { holder, rival } => write!(f, "{holder:?} was not told that {rival:?} had its place"),
            Violation::ToldForNothing { holder } => write!(f, "{holder:?} was told of a loss that was none"),
            Violation::RefusedForNothing { holder } => write!(f, "the store refused {holder:?}, which had its place"),
            Violation::FailedForNothing { waiter } => write!(f, "the cache failed {waiter:?} for no reason"),
        }
    }
}

#[cfg(test)]
mod tests;
