//! Whether a lock was held twice, found out from a [`History`].
//!
//! A hold is sure from after the acquiring until its release began, if that found its place: then it had it all the time.
//! Where the release did not find it, or nobody knows, the lease that was granted with it is all that is sure.

use crate::history::{Attempt, Failure, History, How, Span};
use std::collections::HashMap;

/// What is wrong.
pub(crate) fn check(history: &History) -> Vec<String> {
    let mut names: HashMap<&str, Vec<Hold<'_>>> = HashMap::new();
    for attempt in &history.attempts {
        if let Some(hold) = Hold::of(attempt, history) {
            names.entry(&attempt.want.name).or_default().push(hold);
        }
    }
    names.values().flat_map(|holds| too_many(holds).into_iter().chain(fences(holds)).chain(refused(holds))).collect()
}

/// Those that got no answer from the cache: why, and from when until when they asked.
pub(crate) fn failures(history: &History) -> impl Iterator<Item = (Failure, Span)> {
    let failed = history.attempts.iter().filter_map(|attempt| Some((attempt.asked, attempt.failed?)));
    failed.map(|(asked, (at, why))| (why, Span::new(asked, at)))
}

struct Hold<'a> {
    attempt: &'a Attempt,
    fence: u64,
    sure: Span,
}

impl Hold<'_> {
    fn of<'a>(attempt: &'a Attempt, history: &History) -> Option<Hold<'a>> {
        let (got, fence) = attempt.got?;
        let died = history.lives.get(&attempt.id.process).and_then(|life| life.killed).map(|killed| killed.from);
        let end = attempt.leaves.or(died).unwrap_or(u64::MAX);
        let is_kept = attempt.left.is_some_and(|(_, how)| how == How::Kept);
        let until = match is_kept {
            true => end,
            false => end.min(attempt.asked.saturating_add(attempt.want.lease)).min(attempt.told.unwrap_or(end)),
        };
        Some(Hold { attempt, fence, sure: Span::new(got, until) })
    }
}

fn too_many(holds: &[Hold<'_>]) -> Vec<String> {
    let mut by_begin: Vec<&Hold<'_>> = holds.iter().filter(|hold| hold.sure.length() > 0).collect();
    by_begin.sort_unstable_by_key(|hold| hold.sure.from);
    let mut inside: Vec<&Hold<'_>> = Vec::new();
    let mut found = Vec::new();
    for hold in by_begin {
        inside.retain(|held| held.sure.to > hold.sure.from);
        inside.push(hold);
        let weight: u64 = inside.iter().map(|held| u64::from(held.attempt.want.weight)).sum();
        if weight > u64::from(hold.attempt.want.capacity) {
            let held: Vec<_> = inside.iter().map(|held| (held.attempt, held.sure)).collect();
            found.push(format!("held by too many: {held:?}"));
        }
    }
    found
}

/// Fences grow in the order in which a name was surely acquired.
fn fences(holds: &[Hold<'_>]) -> Vec<String> {
    let mut by_end: Vec<&Hold<'_>> = holds.iter().collect();
    by_end.sort_unstable_by_key(|hold| hold.sure.from);
    let mut by_asking: Vec<&Hold<'_>> = holds.iter().collect();
    by_asking.sort_unstable_by_key(|hold| hold.attempt.asked);
    let mut earlier = by_end.into_iter().peekable();
    let mut greatest: Option<&Hold<'_>> = None;
    let mut found = Vec::new();
    for hold in by_asking {
        while let Some(before) = earlier.next_if(|before| before.sure.from < hold.attempt.asked) {
            greatest = greatest.filter(|greatest| greatest.fence > before.fence).or(Some(before));
        }
        if let Some(before) = greatest.filter(|before| before.fence >= hold.fence) {
            found.push(format!("{:?} came after {:?}, whose fence is not less", hold.attempt, before.attempt));
        }
    }
    found
}

/// Where all holders exclude each other, what the lock guards has seen no greater fence than that of who surely holds it.
fn refused(holds: &[Hold<'_>]) -> Vec<String> {
    let is_alone = |hold: &&Hold<'_>| hold.attempt.want.weight == hold.attempt.want.capacity;
    let is_refused = |hold: &&Hold<'_>| hold.attempt.refused.is_some_and(|at| at < hold.sure.to);
    let refused = holds.iter().filter(is_alone).filter(is_refused);
    refused.map(|hold| format!("refused though it held the lock: {:?}", hold.attempt)).collect()
}

#[cfg(test)]
mod tests;
