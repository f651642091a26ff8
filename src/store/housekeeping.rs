//! The chores of an opening's worker threads: they serve the write queues, renew holdings, check the files and tidy.
//!
//! `state/` and `entries/` have a thread each, so that no lock waits for a bulk of answers.

use super::{
    commit::{
        worker::Worker,
        write_queue::{Served, WriteQueue},
    },
    shared::Shared,
};
use std::{
    sync::{Arc, PoisonError, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

/// How long a worker thread waits at gates before it looks at its other chores.
const SLICE: Duration = Duration::from_millis(5);
/// How long it waits at one gate at least.
const SLICE_MIN: Duration = Duration::from_micros(100);
/// How often readers and files of dead processes are cleared away and expired entries swept.
const TIDY: Duration = Duration::from_secs(10);
/// How often the files are checked.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between the steps of the walk that follows a purge.
const WALK: Duration = Duration::from_millis(20);
/// The watching thread sleeps until it is notified.
const UNTIL_NOTIFIED: Duration = Duration::from_secs(3600);

impl Shared {
    /// Gives the threads their chores. They hold no reference that would keep the opening alive while they rest.
    pub(super) fn start_serving(self: &Arc<Self>) {
        let serve = |worker: &Worker, chores: fn(&Shared) -> Duration| {
            let shared = Arc::downgrade(self);
            worker.serve(move || shared.upgrade().map(|shared| chores(&shared)));
        };
        serve(&self.workers.state, Shared::look_after_state);
        serve(&self.workers.entries, Shared::look_after_entries);
        serve(&self.workers.watcher, Shared::watch_queues);
    }

    fn look_after_state(&self) -> Duration {
        // From here on, a new holding notifies the worker, unless it is due later than planned.
        self.planned.store(u64::MAX, SeqCst);
        self.state.queue.env.change_generation_if_due();
        self.look_at_files();
        let next = self.holdings.renew(TIDY).min(LOOK);
        self.wake_ups.ensure_listening();
        self.planned.store(self.since_began(Instant::now() + next), SeqCst);
        serve([&*self.state.queue], next)
    }

    fn look_after_entries(&self) -> Duration {
        self.entries.iter().for_each(|shard| shard.queue.env.change_generation_if_due());
        let next = self.tidy().min(self.remove_old_entries());
        serve(self.entries.iter().map(|shard| &*shard.queue), next)
    }

    fn watch_queues(&self) -> Duration {
        self.queues().filter_map(WriteQueue::watch).min().unwrap_or(UNTIL_NOTIFIED)
    }

    fn look_at_files(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.at_files.elapsed() < LOOK {
            return;
        }
        looked.at_files = Instant::now();
        self.state.queue.env.look();
        self.state.queue.env.remove_old_generations();
        self.instances.keep_own_file();
        if looked.for_dead.elapsed() >= TIDY {
            looked.for_dead = Instant::now();
            self.queues().for_each(|queue| queue.env.clear_stale_readers());
            self.instances.tidy();
            // Where nobody stores, the files of old answers are let go of too.
            self.workers.entries.start();
        }
    }

    fn remove_old_entries(&self) -> Duration {
        let envs = self.entries.iter().map(|shard| &shard.queue.env);
        let mut old: Vec<_> = envs.filter(|env| env.has_old_generations()).collect();
        let mut tidied = self.tidied.lock().unwrap_or_else(PoisonError::into_inner);
        if !old.is_empty() && tidied.old.elapsed() >= LOOK {
            tidied.old = Instant::now();
            old.iter().for_each(|env| env.remove_old_generations());
            old.retain(|env| env.has_old_generations());
        }
        if old.is_empty() { TIDY } else { LOOK }
    }

    fn tidy(&self) -> Duration {
        let mut tidied = self.tidied.lock().unwrap_or_else(PoisonError::into_inner);
        let all = tidied.all.elapsed() >= TIDY;
        if !all && tidied.some.elapsed() < WALK {
            return WALK;
        }
        tidied.some = Instant::now();
        if all {
            tidied.all = tidied.some;
            // Where nobody throttles or locks, dead processes are cleared away too.
            self.workers.state.start();
        }
        let mut more = false;
        for shard in &self.entries {
            let untidy = shard.is_untidy();
            if all || untidy {
                shard.tidy();
            }
            more |= untidy;
        }
        if more { WALK } else { TIDY.saturating_sub(tidied.all.elapsed()) }
    }
}

/// Serves the queues, a batch each. Returns after how long to go on: after `next`, where nothing is left.
fn serve<'a>(queues: impl IntoIterator<Item = &'a WriteQueue>, next: Duration) -> Duration {
    let queues: Vec<_> = queues.into_iter().filter(|queue| queue.has_queued()).collect();
    let slice = (SLICE / (queues.len() as u32).max(1)).max(SLICE_MIN);
    let left = queues.into_iter().map(|queue| match queue.serve(slice) {
        Served::All => next,
        Served::More => Duration::ZERO,
        Served::Behind => SLICE,
    });
    left.min().unwrap_or(next)
}
