//! The write queue, by which writes share a transaction.
//!
//! A thread that takes the gate applies its own write and those queued behind it in one transaction, then looks at the
//! queue once more. A thread that does not get the gate leaves its write in the queue and awaits the result. Only the
//! worker thread may block.

use super::{
    operation::{Awaited, Done, Job, Nothing, Operation, Posted, Queued, finish, finish_all, prepare, run},
    pending::{Pending, Slot},
    worker::Worker,
};
use crate::{
    error::Error,
    store::{
        lmdb::{env::Env, gate::Held, transaction::Txn},
        os::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, SPIN, spin_loop, yield_now},
    },
};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

/// Operations in one transaction at most: some 150 microseconds of a runtime's thread.
const BATCH: usize = 256;

/// The write queue of one environment.
pub(crate) struct WriteQueue {
    pub(crate) env: Env,
    /// A thread of this process is at the gate; it looks at the queue after it has left.
    busy: AtomicBool,
    queue: Mutex<VecDeque<Queued>>,
    queued: AtomicUsize,
    /// The gate could not be taken for a whole `patience`: writes fail at once until it can.
    stuck: AtomicBool,
    patience: Duration,
    worker: Arc<Worker>,
    make_room: fn(&mut Txn<'_>) -> Result<bool, Error>,
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

impl WriteQueue {
    pub(crate) fn new(
        env: Env,
        patience: Duration,
        worker: Arc<Worker>,
        make_room: fn(&mut Txn<'_>) -> Result<bool, Error>,
    ) -> WriteQueue {
        WriteQueue {
            env,
            busy: AtomicBool::new(false),
            queue: Mutex::default(),
            queued: AtomicUsize::new(0),
            stuck: AtomicBool::new(false),
            patience,
            worker,
            make_room,
        }
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
                    let jobs = self.take_queued();
                    let (result, done) = self.apply(&turn, Some(own), jobs);
                    self.leave(turn);
                    finish_all(done);
                    return Some(result);
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
        settle: impl FnOnce(R, Result<(), Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Operation + Send + 'static,
        G: Send + 'static,
    {
        if let Some(result) = self.try_now(&mut run) {
            return Pending::ready(settle(run, result));
        }
        let slot = Slot::new();
        self.push(Box::new(Awaited { operation: run, settle, slot: slot.clone() }), true);
        Pending::Queued(slot)
    }

    /// As `submit`, for an operation that must happen however late, and whose result no caller awaits: `settle` gets
    /// it. Never blocks.
    pub(crate) fn post<R: Operation + Send + 'static>(
        &self,
        mut run: R,
        settle: impl FnOnce(R, Result<(), Error>) + Send + 'static,
    ) {
        match self.try_now(&mut run) {
            Some(result @ (Ok(()) | Err(Error::Forked | Error::Panicked))) => {
                let _ = catch_unwind(AssertUnwindSafe(|| settle(run, result)));
            }
            // A disk may be full only for a moment, so the worker thread tries once more.
            None | Some(Err(_)) => self.push(Box::new(Posted { operation: run, settle }), false),
        }
    }

    /// As `submit`, but always left to the worker thread, which puts many operations into one transaction.
    pub(crate) fn delegate<R, G>(
        &self,
        run: R,
        settle: impl FnOnce(R, Result<(), Error>) -> G + Send + 'static,
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
                self.enqueue(Box::new(Awaited { operation: run, settle, slot: slot.clone() }), true);
                self.worker.notify();
                return Pending::Queued(slot);
            }
        };
        // A thread that queued a write while this one tried the gate has left it to this one.
        if self.has_queued() {
            self.worker.notify();
        }
        Pending::ready(settle(run, Err(error)))
    }

    /// Leaves an operation that no caller awaits to the next turn of the worker thread.
    pub(crate) fn leave_to_worker<R: Operation + Send + 'static>(
        &self,
        run: R,
        settle: impl FnOnce(R, Result<(), Error>) + Send + 'static,
    ) {
        self.enqueue(Box::new(Posted { operation: run, settle }), false);
    }

    /// Whether the gate could not be taken for a whole `patience`, and still cannot. The gate is tried here because,
    /// with an empty queue, no other thread would find out that it is free.
    fn is_stuck(&self) -> bool {
        self.stuck.load(SeqCst) && !matches!(self.attempt(), Ok(Attempt::In(_)))
    }

    fn push(&self, job: Box<dyn Job>, bounded: bool) {
        if bounded && self.stuck.load(SeqCst) {
            // A thread that queued a write meanwhile may have taken this try for a turn.
            if self.has_queued() {
                self.worker.notify();
            }
            return finish(job, Err(Error::Busy));
        }
        self.enqueue(job, bounded);
        // The thread that was in the way may have looked at the queue just before.
        match self.attempt() {
            Ok(Attempt::In(turn)) => self.leave(turn),
            Ok(Attempt::Behind) => {}
            Ok(Attempt::Shut) | Err(_) => self.worker.notify(),
        }
    }

    fn enqueue(&self, job: Box<dyn Job>, bounded: bool) {
        let deadline = bounded.then(|| Instant::now() + self.patience);
        let mut queue = self.locked_queue();
        queue.push_back(Queued { job, deadline });
        self.queued.store(queue.len(), SeqCst);
    }

    pub(crate) fn has_queued(&self) -> bool {
        self.queued.load(SeqCst) > 0
    }

    /// The worker thread's turn: it waits for the gate at most for `slice` and applies a batch.
    pub(crate) fn serve(&self, slice: Duration) {
        if !self.has_queued() {
            return;
        }
        self.env.look_if_due();
        // Another thread of this process leaves the gate within microseconds, unless a callback of the user's hangs
        // there.
        let began = Instant::now();
        while self.busy.swap(true, SeqCst) {
            if began.elapsed() >= slice {
                return self.fail_overdue();
            }
            yield_now();
        }
        let mut turn = Turn { queue: self, held: None };
        match self.env.gate.lock_for(slice) {
            Ok(Some(held)) => {
                turn.held = Some(held);
                self.stuck.store(false, SeqCst);
                self.drain(turn);
            }
            Ok(None) => {
                drop(turn);
                self.fail_overdue();
            }
            Err(_) => {
                drop(turn);
                self.take_queued().into_iter().for_each(|queued| finish(queued.job, Err(Error::Damaged)));
            }
        }
    }

    /// Fails everything that is still queued.
    pub(crate) fn shut(&self) {
        while self.has_queued() {
            self.take_queued().into_iter().for_each(|queued| finish(queued.job, Err(Error::Busy)));
        }
    }

    fn attempt(&self) -> Result<Attempt<'_>, Error> {
        if self.busy.swap(true, SeqCst) {
            return Ok(Attempt::Behind);
        }
        let mut turn = Turn { queue: self, held: None };
        turn.held = self.env.gate.try_lock()?;
        if turn.held.is_none() {
            return Ok(Attempt::Shut);
        }
        self.stuck.store(false, SeqCst);
        Ok(Attempt::In(turn))
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
            self.worker.notify();
        }
    }

    /// Applies a batch of queued operations and gives the gate back.
    fn drain(&self, turn: Turn<'_>) {
        let jobs = self.take_queued();
        let (_, done) = self.apply(&turn, None::<&mut Nothing>, jobs);
        drop(turn);
        finish_all(done);
    }

    fn locked_queue(&self) -> MutexGuard<'_, VecDeque<Queued>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_queued(&self) -> Vec<Queued> {
        if !self.has_queued() {
            return Vec::new();
        }
        let mut queue = self.locked_queue();
        let batch = queue.len().min(BATCH);
        let jobs = queue.drain(..batch).collect();
        self.queued.store(queue.len(), SeqCst);
        jobs
    }

    fn fail_overdue(&self) {
        let now = Instant::now();
        let mut overdue = Vec::new();
        let mut queue = self.locked_queue();
        let mut at = 0;
        while at < queue.len() {
            if queue[at].deadline.is_some_and(|deadline| deadline <= now) {
                overdue.extend(queue.remove(at));
            } else {
                at += 1;
            }
        }
        self.queued.store(queue.len(), SeqCst);
        drop(queue);
        if !overdue.is_empty() {
            self.stuck.store(true, SeqCst);
        }
        overdue.into_iter().for_each(|queued| finish(queued.job, Err(Error::Busy)));
    }

    /// Runs the queued jobs and then `own` in one transaction. If that fails, each runs alone, so that a bad neighbour
    /// harms only itself. The caller finishes the jobs once the gate has been left.
    fn apply(
        &self,
        turn: &Turn<'_>,
        mut own: Option<&mut impl Operation>,
        jobs: Vec<Queued>,
    ) -> (Result<(), Error>, Vec<Done>) {
        let Some(held) = &turn.held else { return (Err(Error::Busy), Vec::new()) };
        if jobs.is_empty() {
            return (own.map_or(Ok(()), |own| self.apply_alone(held, own)), Vec::new());
        }
        let mut done = Vec::with_capacity(jobs.len());
        let mut live = Vec::with_capacity(jobs.len());
        for mut queued in jobs {
            if queued.job.abandoned() {
                continue;
            }
            match prepare(&mut *queued.job) {
                Ok(()) => live.push(queued.job),
                Err(error) => done.push((queued.job, Err(error))),
            }
        }
        let together = self.env.write(held, |txn| {
            let mut changed = false;
            for job in &mut live {
                changed |= run(&mut **job, txn)?;
            }
            if let Some(own) = &mut own {
                changed |= run(*own, txn)?;
            }
            Ok(((), changed))
        });
        if together.is_ok() {
            done.extend(live.into_iter().map(|job| (job, Ok(()))));
            return (Ok(()), done);
        }
        for mut job in live {
            let result = self.apply_alone(held, &mut *job);
            done.push((job, result));
        }
        (own.map_or(Ok(()), |own| self.apply_alone(held, own)), done)
    }

    fn apply_alone(&self, held: &Held<'_>, alone: &mut (impl Operation + ?Sized)) -> Result<(), Error> {
        let first = self.env.write(held, |txn| run(alone, txn).map(|changed| ((), changed)));
        match first {
            Err(Error::Full) => {
                match self.env.write(held, |txn| (self.make_room)(txn).map(|changed| ((), changed))) {
                    // Even without more room, the operation may get by with less.
                    Ok(()) | Err(Error::Full) => {}
                    failed => return failed,
                }
                self.env.write(held, |txn| run(alone, txn).map(|changed| ((), changed)))
            }
            result => result,
        }
    }
}

impl std::fmt::Debug for WriteQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WriteQueue").field("env", &self.env).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
