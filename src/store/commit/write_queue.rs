//! The write queue, by which writes share a transaction.
//!
//! A thread that takes the gate applies its own write and those queued behind it in one transaction, then looks at the
//! queue once more. A thread that does not get the gate leaves its write in the queue and awaits the result. Only the
//! worker thread may block.
//!
//! A write that has to wait fails only if the gate stands still for the whole patience. The worker thread notices that.
//! Where it is kept from its work, perhaps by a callback of the user's, the thread that watches over it does.

use super::{
    applying::{Applied, Gated},
    backlog::{Backlog, Late, Queued, Times},
    operation::{Awaited, Awaiting, Done, Job, Nothing, Operation, Posted, finish, finish_all, prepare},
    pending::{Pending, Queue, Slot},
    worker::Worker,
};
use crate::{
    error::Error,
    store::{
        lmdb::{env::Env, gate::Held, transaction::Txn},
        os::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, SPIN, spin_loop},
    },
};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, Weak, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

/// After a batch that took much longer, the worker thread leaves the gate open for so long: the mutex is not fair, and
/// other processes may wait for it.
const BREATH: Duration = Duration::from_micros(100);
/// How long a thread tries to get the gate where no worker thread can be started.
const WITHOUT_WORKER: Duration = Duration::from_millis(1);

/// The write queue of one environment.
pub(crate) struct WriteQueue {
    pub(crate) env: Env,
    /// A thread of this process is at the gate; it looks at the queue after it has left.
    busy: AtomicBool,
    backlog: Mutex<Backlog>,
    queued: AtomicUsize,
    /// A batch of this process is being committed.
    commits: AtomicBool,
    /// The gate stood still for a whole patience: writes fail at once until it can be had.
    stuck: AtomicBool,
    /// The watching thread looks at this queue.
    watched: AtomicBool,
    worker: Arc<Worker>,
    watcher: Arc<Worker>,
    make_room: fn(&mut Txn<'_>) -> Result<bool, Error>,
    this: Weak<WriteQueue>,
}

/// A turn at the gate. Its end gives the gate back, also after a panic, which would otherwise shut the queue for ever.
struct Turn<'a> {
    queue: &'a WriteQueue,
    held: Option<Held<'a>>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.held = None;
        self.queue.busy.store(false, SeqCst);
    }
}

enum Attempt<'a> {
    In(Turn<'a>),
    /// Another thread of this process is at the gate, and will look at the queue.
    Behind,
    /// Another process is at the gate.
    Shut,
}

/// What a turn of the worker thread leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    All,
    /// More is queued.
    More,
    /// A thread of this process is at the gate. It notifies the worker thread if it leaves anything.
    Behind,
}

impl WriteQueue {
    /// `worker` serves it, `watcher` watches over that.
    pub(crate) fn new(
        env: Env,
        patience: Duration,
        (worker, watcher): (Arc<Worker>, Arc<Worker>),
        make_room: fn(&mut Txn<'_>) -> Result<bool, Error>,
    ) -> Arc<WriteQueue> {
        Arc::new_cyclic(|this| WriteQueue {
            env,
            busy: AtomicBool::new(false),
            backlog: Mutex::new(Backlog::new(patience)),
            queued: AtomicUsize::new(0),
            commits: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            watched: AtomicBool::new(false),
            worker,
            watcher,
            make_room,
            this: this.clone(),
        })
    }

    /// Applies the operation here and now, unless the gate is taken.
    #[inline]
    fn try_now(&self, own: &mut impl Operation) -> Option<Result<(), Error>> {
        if self.env.forked() {
            return Some(Err(Error::Forked));
        }
        if let Err(error) = prepare(own) {
            return Some(Err(error));
        }
        self.env.look_if_due();
        for _ in 0..SPIN {
            match self.attempt() {
                Err(error) => return Some(Err(error)),
                Ok(Attempt::In(turn)) => {
                    let batch = self.take_batch();
                    let (result, done) = self.apply(&turn, Some(own), batch);
                    self.leave(turn);
                    finish_all(done);
                    return match result {
                        // It runs in the files that replace them.
                        Err(Error::Damaged) if self.env.is_to_be_replaced() => None,
                        result => Some(result),
                    };
                }
                Ok(Attempt::Behind | Attempt::Shut) => spin_loop(),
            }
        }
        None
    }

    /// Applies the operation here and now, or queues it. `settle` makes the result out of it, after the commit.
    ///
    /// If no caller waits for the result any more, it is dropped; the drop undoes what has to be undone.
    #[inline]
    pub(crate) fn submit<R, G>(
        &self,
        mut run: R,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Operation + Send + 'static,
        G: Send + 'static,
    {
        if let Some(result) = self.try_now(&mut run) {
            return Pending::ready(settle(result.map(|()| run)));
        }
        if self.is_stuck() {
            // A thread that queued a write meanwhile may have taken this try for a turn.
            if self.has_queued() {
                self.call_worker();
            }
            return Pending::ready(settle(Err(Error::Busy)));
        }
        let slot = Slot::new();
        let number = self.push(Box::new(Awaited { operation: run, caller: Awaiting::new(settle, &slot) }), true);
        self.pending(slot, number)
    }

    /// As `submit`, for an operation that must happen however late, and whose result no caller awaits: `settle` gets
    /// it. Never blocks.
    pub(crate) fn post<R: Operation + Send + 'static>(
        &self,
        mut run: R,
        settle: impl FnOnce(Result<R, Error>) + Send + 'static,
    ) {
        match self.try_now(&mut run) {
            Some(result @ (Ok(()) | Err(Error::Forked | Error::Panicked))) => {
                let _ = catch_unwind(AssertUnwindSafe(|| settle(result.map(|()| run))));
            }
            // A disk may be full only for a moment, so the worker thread tries once more.
            None | Some(Err(_)) => {
                self.push(Box::new(Posted { operation: run, settle }), false);
            }
        }
    }

    /// As `submit`, but always left to the worker thread, which puts many operations into one transaction.
    pub(crate) fn delegate<R, G>(
        &self,
        run: R,
        settle: impl FnOnce(Result<R, Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Operation + Send + 'static,
        G: Send + 'static,
    {
        let error = match (self.env.forked(), self.is_stuck()) {
            (true, _) => Error::Forked,
            (false, true) => Error::Busy,
            (false, false) => {
                let slot = Slot::new();
                let caller = Awaiting::new(settle, &slot);
                let number = self.enqueue(Box::new(Awaited { operation: run, caller }), true);
                self.call_worker();
                return self.pending(slot, number);
            }
        };
        Pending::ready(settle(Err(error)))
    }

    /// Leaves an operation that no caller awaits to the next turn of the worker thread.
    pub(crate) fn leave_to_worker<R: Operation + Send + 'static>(
        &self,
        run: R,
        settle: impl FnOnce(Result<R, Error>) + Send + 'static,
    ) {
        self.enqueue(Box::new(Posted { operation: run, settle }), false);
    }

    /// Whether so many bytes more, which need not be stored, find room in the queue.
    pub(crate) fn has_room_for(&self, size: usize) -> bool {
        self.backlog().has_room_for(size)
    }

    /// How long operations have waited, and how long the gate was held for them.
    pub(crate) fn times(&self) -> Times {
        self.backlog().times
    }

    fn pending<G: Send + 'static>(&self, slot: Arc<Slot<G>>, number: u64) -> Pending<G> {
        let queue: Weak<dyn Queue> = self.this.clone();
        Pending::queued(slot, queue, number)
    }

    /// Whether the gate stood still for a whole patience, and still cannot be had. The gate itself is tried, because no other
    /// thread may find out that it is free, and because the worker thread may wait for it.
    fn is_stuck(&self) -> bool {
        if !self.stuck.load(SeqCst) {
            return false;
        }
        let is_free = matches!(self.env.gate.try_lock(), Ok(Some(_)));
        if is_free {
            self.stuck.store(false, SeqCst);
        }
        !is_free
    }

    fn push(&self, job: Box<dyn Job>, bounded: bool) -> u64 {
        let number = self.enqueue(job, bounded);
        // The thread that was in the way may have looked at the queue just before.
        match self.attempt() {
            Ok(Attempt::In(turn)) => self.leave(turn),
            Ok(Attempt::Behind) => self.be_watched(),
            Ok(Attempt::Shut) => self.call_worker(),
            // What was queued has failed.
            Err(_) => {}
        }
        number
    }

    fn enqueue(&self, job: Box<dyn Job>, bounded: bool) -> u64 {
        let now = Instant::now();
        let mut backlog = self.backlog();
        let number = backlog.push(job, bounded, now);
        self.queued.store(backlog.len(), SeqCst);
        number
    }

    pub(crate) fn has_queued(&self) -> bool {
        self.queued.load(SeqCst) > 0
    }

    fn call_worker(&self) {
        let has_worker = self.worker.notify();
        self.be_watched();
        if !has_worker {
            self.serve_without_worker();
        }
    }

    fn be_watched(&self) {
        let begins = !self.watched.load(SeqCst) && !self.watched.swap(true, SeqCst);
        if begins && !self.watcher.notify() {
            // The next one tries again to start the thread.
            self.watched.store(false, SeqCst);
        }
    }

    /// Serves the queue on a thread of a caller, since there is no other. What cannot be served at once fails, except what
    /// must happen however late: that waits for the next caller.
    fn serve_without_worker(&self) {
        let began = Instant::now();
        while self.has_queued() {
            match self.attempt() {
                Ok(Attempt::In(turn)) => self.drain(turn),
                Ok(Attempt::Shut) if began.elapsed() < WITHOUT_WORKER => spin_loop(),
                // The thread that is at the gate comes here when it leaves.
                Ok(Attempt::Behind) => return,
                Ok(Attempt::Shut) | Err(_) => return self.fail_all(true, || Error::NoThread),
            }
        }
    }

    /// The worker thread's turn: it waits for the gate at most for `slice` and applies a batch.
    pub(crate) fn serve(&self, slice: Duration) -> Served {
        if !self.has_queued() {
            return Served::All;
        }
        self.env.look_if_due();
        if self.busy.swap(true, SeqCst) {
            self.fail_late();
            return Served::Behind;
        }
        let mut turn = Turn { queue: self, held: None };
        match self.env.gate.lock_for(slice) {
            Ok(Some(held)) => {
                turn.held = Some(held);
                self.stuck.store(false, SeqCst);
                let began = Instant::now();
                self.drain(turn);
                if self.has_queued() && began.elapsed() > 10 * BREATH {
                    std::thread::sleep(BREATH);
                }
            }
            Ok(None) => {
                drop(turn);
                self.fail_late();
            }
            Err(Error::Damaged) if self.env.is_to_be_replaced() => {
                drop(turn);
                self.fail_late();
                return Served::Behind;
            }
            Err(_) => {
                drop(turn);
                self.fail_all(false, || Error::Damaged);
            }
        }
        if self.has_queued() { Served::More } else { Served::All }
    }

    /// A look of the watching thread, which runs nothing of the user's at the gate. Returns after how long to look again;
    /// `None`: nothing is queued.
    pub(crate) fn watch(&self) -> Option<Duration> {
        let now = Instant::now();
        let (pace, is_left_alone) = {
            let mut backlog = self.backlog();
            if backlog.is_idle() {
                self.watched.store(false, SeqCst);
                return None;
            }
            (backlog.pace(), backlog.is_left_alone(now))
        };
        if !is_left_alone {
            return Some(pace);
        }
        match self.attempt() {
            Ok(Attempt::In(turn)) => {
                drop(turn);
                // The worker thread does not come. Perhaps a callback of the user's keeps it.
                let callers = self.backlog().first_callers();
                callers.iter().for_each(|caller| caller.call());
                self.worker.notify();
            }
            Ok(Attempt::Behind | Attempt::Shut) => self.fail_late(),
            Err(_) => {}
        }
        Some(pace)
    }

    /// Fails everything that is still queued.
    pub(crate) fn shut(&self) {
        while self.has_queued() {
            self.fail_all(false, || Error::Busy);
        }
    }

    fn attempt(&self) -> Result<Attempt<'_>, Error> {
        if self.busy.swap(true, SeqCst) {
            return Ok(Attempt::Behind);
        }
        let mut turn = Turn { queue: self, held: None };
        match self.env.gate.try_lock() {
            Ok(None) => Ok(Attempt::Shut),
            Ok(held) => {
                turn.held = held;
                self.stuck.store(false, SeqCst);
                Ok(Attempt::In(turn))
            }
            // The worker thread replaces them.
            Err(Error::Damaged) if self.env.is_to_be_replaced() => Ok(Attempt::Shut),
            Err(error) => {
                drop(turn);
                // A thread that queued a write meanwhile has left it to this one.
                self.fail_all(false, || Error::Damaged);
                Err(error)
            }
        }
    }

    /// Gives the gate back and looks at the queue once more: other threads may have queued writes behind this one.
    fn leave(&self, turn: Turn<'_>) {
        drop(turn);
        if !self.has_queued() {
            return;
        }
        if let Ok(Attempt::In(turn)) = self.attempt() {
            self.drain(turn);
        }
        // This thread has spent enough time, or another process is at the gate.
        if self.has_queued() {
            self.call_worker();
        }
    }

    /// Applies a batch of queued operations and gives the gate back.
    fn drain(&self, turn: Turn<'_>) {
        let batch = self.take_batch();
        let (_, done) = self.apply(&turn, None::<&mut Nothing>, batch);
        drop(turn);
        finish_all(done);
    }

    fn backlog(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_batch(&self) -> Vec<Queued> {
        if !self.has_queued() {
            return Vec::new();
        }
        let now = Instant::now();
        let mut backlog = self.backlog();
        let batch = backlog.take_batch(now);
        self.queued.store(backlog.len(), SeqCst);
        batch
    }

    /// Fails what has waited for the whole patience while the gate stood still.
    fn fail_late(&self) {
        let commit = if self.env.is_sound() { self.env.last_transaction() } else { 0 };
        let now = Instant::now();
        let mut backlog = self.backlog();
        let Late { jobs, inside } = backlog.look(now, commit, self.commits.load(SeqCst));
        self.queued.store(backlog.len(), SeqCst);
        drop(backlog);
        if !jobs.is_empty() || !inside.is_empty() {
            self.stuck.store(true, SeqCst);
        }
        inside.into_iter().for_each(|caller| caller.give_up(Error::Busy));
        jobs.into_iter().for_each(|job| finish(job, Err(Error::Busy)));
    }

    fn fail_all(&self, but_patient: bool, error: impl Fn() -> Error) {
        let mut backlog = self.backlog();
        let failed = backlog.take_all(but_patient);
        self.queued.store(backlog.len(), SeqCst);
        drop(backlog);
        failed.into_iter().for_each(|job| finish(job, Err(error())));
    }

    /// Runs the queued jobs and then `own` in one transaction, see [`Gated::apply`]. The caller finishes the jobs once the gate
    /// has been left.
    fn apply(
        &self,
        turn: &Turn<'_>,
        own: Option<&mut impl Operation>,
        batch: Vec<Queued>,
    ) -> (Result<(), Error>, Vec<Done>) {
        let Some(held) = &turn.held else { return (Err(Error::Busy), Vec::new()) };
        let gated = Gated { env: &self.env, held, make_room: self.make_room, commits: &self.commits };
        if batch.is_empty() {
            return (own.map_or(Ok(()), |own| gated.apply_alone(own, |_| true)), Vec::new());
        }
        let Applied { result, done, rest, times } = gated.apply(own, batch);
        let mut backlog = self.backlog();
        backlog.times.add(&times);
        backlog.end_batch(rest);
        self.queued.store(backlog.len(), SeqCst);
        (result, done)
    }
}

impl Queue for WriteQueue {
    fn help(&self) {
        if let Ok(Attempt::In(turn)) = self.attempt() {
            self.drain(turn);
        }
        if self.has_queued() {
            self.call_worker();
        }
    }

    fn forget(&self, number: u64) {
        let mut backlog = self.backlog();
        let forgotten = backlog.remove(number);
        self.queued.store(backlog.len(), SeqCst);
        drop(backlog);
        // Its drop may run the user's code.
        drop(forgotten);
    }
}

impl std::fmt::Debug for WriteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteQueue").field("env", &self.env).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
