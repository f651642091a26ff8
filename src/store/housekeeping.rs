//! The chores of an opening's worker thread: it serves the write queues, renews holdings, checks the files and tidies.

use super::{
    commit::{worker::Chores, write_queue::WriteQueue},
    shared::Shared,
};
use std::{
    sync::{PoisonError, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

/// How long the worker thread waits at one gate before it looks at the others.
const SLICE: Duration = Duration::from_millis(5);
/// How often readers and files of dead processes are cleared away and expired entries swept.
const TIDY: Duration = Duration::from_secs(10);
/// How often the files are checked.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between the steps of the walk that follows a purge.
const WALK: Duration = Duration::from_millis(20);

impl Chores for Shared {
    fn work(&self) -> Duration {
        // From here on, a new holding notifies the worker, unless it is due later than planned.
        self.planned.store(u64::MAX, SeqCst);
        self.queues().for_each(|queue| queue.env.change_generation_if_due());
        self.look_after();
        let next = self.holdings.renew(TIDY).min(self.tidy()).min(LOOK);
        self.wake_ups.ensure_listening();
        self.planned.store(self.since_began(Instant::now() + next), SeqCst);
        self.queues().for_each(|queue| queue.serve(SLICE));
        if self.queues().any(WriteQueue::has_queued) { Duration::ZERO } else { next }
    }
}

impl Shared {
    fn look_after(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.elapsed() < LOOK {
            return;
        }
        *looked = Instant::now();
        self.state.queue.env.look();
        self.queues().for_each(|queue| queue.env.remove_old_generations());
        self.instances.keep_own_file();
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
            self.queues().for_each(|queue| queue.env.clear_stale_readers());
            self.instances.tidy();
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
