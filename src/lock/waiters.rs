//! How the waiters of a lock are woken, and how each process watches over the locks that it waits for.

use super::{
    owner::Owner,
    row::{
        attempt::{Looked, Moment, Turn},
        encoding::ToWake,
        transition,
    },
};
use crate::{
    cache::Scope,
    error::Error,
    store::{Key, LOCKS, Reached, Watch},
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

/// Wakes the waiters that were offered a place. A place that was offered to a dead process goes to the next waiter.
pub(super) fn deliver(scope: &Scope, key: Key, to_wake: Vec<ToWake>) {
    let unreached = to_wake.into_iter().filter(|to| scope.wake(to.instance, to.number) == Reached::No);
    let dead: Vec<u64> = unreached.map(|to| to.instance).filter(|&instance| scope.is_dead_now(instance)).collect();
    if !dead.is_empty() {
        look(scope, key, dead, None);
    }
}

/// Offers the places of dead processes, and those whose lease is over, to the waiters.
fn look(scope: &Scope, key: Key, dead: Vec<u64>, on_behalf: Option<Looking>) {
    let after = scope.clone();
    let here = scope.clone();
    scope.post_then(
        LOCKS,
        key,
        move |found, line, now| {
            let (looked, change, steps) =
                transition::look(found, line, Moment { now, dead: &dead, is_held_here: &|number| here.holds(number) });
            ((looked, now), change, steps)
        },
        move |looked| {
            let (Looked { to_wake, suspects, next, mark }, now) = match looked {
                Ok(looked) => looked,
                Err(error) => {
                    if let Error::DamagedLock { .. } = error {
                        // They are refused, and learn of it when they ask.
                        after.wake_ups().wake_all(&key);
                    }
                    return;
                }
            };
            let dead = after.dead_among(&suspects);
            if let Some(Looking { watcher, commit }) = &on_behalf {
                let (before, is_same) = {
                    let mut seen = watcher.seen();
                    (seen.commit, seen.next, seen.suspects) = (Some(*commit), next, suspects);
                    (std::mem::replace(&mut seen.at, now), seen.mark.replace(mark) == Some(mark))
                };
                // An offer may have been made and have ended since the last look, and its wake-ups may be lost.
                if !is_same && transition::may_have_lapsed(before, now) {
                    after.wake_ups().wake_all(&key);
                }
            }
            drop(on_behalf);
            deliver(&after, key, to_wake);
            if !dead.is_empty() {
                look(&after, key, dead, None);
            }
        },
    );
}

/// How often all waiters ask again, so that a waiter whose row was lost is back in the line.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// Watches over a lock, so that no death and no lost wake-up keeps its waiters waiting.
#[derive(Debug)]
pub(super) struct Watcher {
    scope: Scope,
    /// A look is under way. While the gate is shut, more of them would pile up.
    looking: AtomicBool,
    seen: Mutex<Seen>,
}

/// What the last look has found.
#[derive(Debug)]
struct Seen {
    /// The last commit before it.
    commit: Option<u64>,
    /// When it was, in ns of machine time.
    at: u64,
    /// When the next place ends by itself, in ns of machine time.
    next: u64,
    /// Instances whose end would make room.
    suspects: Vec<u64>,
    /// The lock's state, see [`Looked::mark`].
    mark: Option<u64>,
    /// When all waiters were last woken to ask again.
    asked: Instant,
}

impl Watcher {
    /// For a waiter that has waited since this machine time, in ns.
    pub(super) fn new(scope: &Scope, since: u64) -> Arc<Watcher> {
        let seen = Seen { commit: None, at: since, next: 0, suspects: Vec::new(), mark: None, asked: Instant::now() };
        Arc::new(Watcher { scope: scope.clone(), looking: AtomicBool::new(false), seen: Mutex::new(seen) })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A look under way; however it ends, the next one can begin.
struct Looking {
    watcher: Arc<Watcher>,
    commit: u64,
}

impl Drop for Looking {
    fn drop(&mut self) {
        self.watcher.looking.store(false, SeqCst);
    }
}

impl Watch for Watcher {
    fn look(self: Arc<Self>, key: Key) -> Duration {
        let (commit, now) = (self.scope.last_commit(), self.scope.handle().now());
        let mut seen = self.seen();
        let is_as_seen = seen.commit == commit && now < seen.next;
        let mut dead = Vec::new();
        if is_as_seen {
            seen.at = now;
            dead = self.scope.dead_among(&seen.suspects);
        }
        // Where the state is lost, their attempts fail and say so.
        let asks_again = seen.asked.elapsed() >= ASK_AGAIN || commit.is_none();
        if asks_again {
            seen.asked = Instant::now();
        }
        drop(seen);
        if let Some(commit) = commit
            && (!is_as_seen || !dead.is_empty())
            && !self.looking.swap(true, SeqCst)
        {
            look(&self.scope, key, dead, Some(Looking { watcher: self.clone(), commit }));
        }
        if asks_again {
            self.scope.wake_ups().wake_all(&key);
        }
        let seen = self.seen();
        match commit.is_some() && seen.commit == commit {
            true => Duration::from_nanos(seen.next.saturating_sub(now)),
            // It is still under way, or has failed.
            false => Duration::MAX,
        }
    }
}

/// A place in the line, given up when dropped.
#[derive(Debug)]
pub(super) struct InLine {
    scope: Scope,
    key: Key,
    owner: Owner,
    pub(super) turn: Turn,
    over: bool,
}

impl InLine {
    pub(super) fn new(scope: &Scope, key: Key, owner: Owner, turn: Turn) -> InLine {
        InLine { scope: scope.clone(), key, owner, turn, over: false }
    }

    /// Ends the place without giving it up: it is taken, or another value stands for it.
    pub(super) fn end(mut self) {
        self.over = true;
    }
}

impl Drop for InLine {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let (scope, key, number) = (self.scope.clone(), self.key, self.turn.number);
        let owner = self.owner.clone();
        self.scope.post_then(
            LOCKS,
            key,
            move |found, line, now| transition::leave(found, line, now, &owner, number),
            move |to_wake| deliver(&scope, key, to_wake.unwrap_or_default()),
        );
    }
}
