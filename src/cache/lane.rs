//! How writes share a transaction.
//!
//! Who gets the gate applies its own operation and what others have queued, in one transaction, then looks at the queue
//! once more. Who does not get it leaves the operation queued and awaits; the housekeeping thread alone may block.

use super::{
    env::{Env, Txn},
    gate::Held,
    keeper::Bell,
    sys,
};
use crate::rejection::Error;
use std::{
    collections::VecDeque,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::{Duration, Instant},
};

/// Operations in one transaction at most: some 150 microseconds of a runtime's thread.
const BATCH: usize = 256;
/// Turns of a short spin before an operation is queued.
const SPIN: usize = 100;

/// An operation that runs in a write transaction, perhaps more than once: an aborted batch is run again one by one.
pub(crate) trait Run {
    /// Called before the transaction: the place for the user's code, such as the clock.
    fn prepare(&mut self) {}

    /// Answers whether anything was changed.
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error>;
}

/// An operation in the queue.
trait Job: Run + Send {
    /// Called once, after the commit or the failure.
    fn finish(self: Box<Self>, result: Result<(), Error>);

    /// Nobody waits for it any more and it need not run.
    fn abandoned(&self) -> bool;
}

struct Queued {
    job: Box<dyn Job>,
    /// `None`: it must run, however late.
    deadline: Option<Instant>,
}

/// The way into one environment.
pub(crate) struct Lane {
    pub(crate) env: Env,
    /// A thread of this process is at the gate; it looks at the queue after it has left.
    busy: AtomicBool,
    queue: Mutex<VecDeque<Queued>>,
    queued: AtomicUsize,
    /// The gate could not be had for a whole `patience`: fail at once until it can.
    stuck: AtomicBool,
    patience: Duration,
    bell: Arc<Bell>,
    make_room: fn(&mut Txn<'_>) -> Result<bool, Error>,
}

enum Attempt<'a> {
    In(Held<'a>),
    /// Another thread of this process is in; it will see to the queue.
    Behind,
    /// Another process is in.
    Shut,
}

impl Lane {
    pub(crate) fn new(
        env: Env,
        patience: Duration,
        bell: Arc<Bell>,
        make_room: fn(&mut Txn<'_>) -> Result<bool, Error>,
    ) -> Lane {
        Lane {
            env,
            busy: AtomicBool::new(false),
            queue: Mutex::default(),
            queued: AtomicUsize::new(0),
            stuck: AtomicBool::new(false),
            patience,
            bell,
            make_room,
        }
    }

    /// Applies the operation here and now, unless the gate is taken.
    fn try_now(&self, own: &mut impl Run) -> Option<Result<(), Error>> {
        if sys::forked() {
            return Some(Err(Error::Forked));
        }
        own.prepare();
        for _ in 0..SPIN {
            match self.attempt() {
                Err(error) => return Some(Err(error)),
                Ok(Attempt::In(held)) => {
                    let jobs = self.take_queued();
                    let (result, done) = self.apply(&held, Some(own), jobs);
                    self.leave(held);
                    finish(done);
                    return Some(result);
                }
                Ok(Attempt::Behind | Attempt::Shut) => std::hint::spin_loop(),
            }
        }
        None
    }

    /// Applies the operation here and now, or queues it. `settle` makes the result out of it, after the commit.
    ///
    /// If nobody waits for the result any more it is dropped: what has to be undone is undone by its drop.
    pub(crate) fn submit<R, G>(
        &self,
        mut run: R,
        settle: impl FnOnce(R, Result<(), Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Run + Send + 'static,
        G: Send + 'static,
    {
        if let Some(result) = self.try_now(&mut run) {
            return Pending::ready(settle(run, result));
        }
        let slot = Slot::new();
        self.push(Box::new(Awaited { run, settle, slot: slot.clone() }), true);
        Pending::Queued(slot)
    }

    /// As `submit`, for what must happen however late and whose result nobody awaits. Never blocks.
    pub(crate) fn post(&self, mut run: impl Run + Send + 'static) {
        if self.try_now(&mut run).is_none() {
            self.push(Box::new(Posted(run)), false);
        }
    }

    /// As `submit`, but always left to the housekeeping thread, which puts many into one transaction.
    pub(crate) fn delegate<R, G>(
        &self,
        run: R,
        settle: impl FnOnce(R, Result<(), Error>) -> G + Send + 'static,
    ) -> Pending<G>
    where
        R: Run + Send + 'static,
        G: Send + 'static,
    {
        let error = match (sys::forked(), self.stuck.load(SeqCst)) {
            (true, _) => Error::Forked,
            (false, true) => Error::Busy,
            (false, false) => {
                let slot = Slot::new();
                self.enqueue(Box::new(Awaited { run, settle, slot: slot.clone() }), true);
                self.bell.ring();
                return Pending::Queued(slot);
            }
        };
        Pending::ready(settle(run, Err(error)))
    }

    /// As `delegate`, for what nobody awaits; it may be lost.
    pub(crate) fn delegate_unawaited(&self, run: impl Run + Send + 'static) {
        if !sys::forked() && !self.stuck.load(SeqCst) {
            self.enqueue(Box::new(Posted(run)), true);
            self.bell.ring();
        }
    }

    /// Leaves an operation that nobody awaits to the next turn of the housekeeping thread.
    pub(crate) fn leave_to_keeper(&self, run: impl Run + Send + 'static) {
        self.enqueue(Box::new(Posted(run)), false);
    }

    fn push(&self, job: Box<dyn Job>, bounded: bool) {
        if bounded && self.stuck.load(SeqCst) {
            return job.finish(Err(Error::Busy));
        }
        self.enqueue(job, bounded);
        // Who was in the way may have looked at the queue just before.
        match self.attempt() {
            Ok(Attempt::In(held)) => self.leave(held),
            Ok(Attempt::Behind) => {}
            Ok(Attempt::Shut) | Err(_) => self.bell.ring(),
        }
    }

    fn enqueue(&self, job: Box<dyn Job>, bounded: bool) {
        let deadline = bounded.then(|| Instant::now() + self.patience);
        self.locked_queue().push_back(Queued { job, deadline });
        self.queued.fetch_add(1, SeqCst);
    }

    pub(crate) fn has_queued(&self) -> bool {
        self.queued.load(SeqCst) > 0
    }

    /// The housekeeping thread's turn: waits for the gate at most for `slice`, applies a batch.
    pub(crate) fn serve(&self, slice: Duration) {
        self.fail_overdue();
        if !self.has_queued() {
            return;
        }
        while self.busy.swap(true, SeqCst) {
            std::thread::yield_now();
        }
        match self.env.gate.lock_for(slice) {
            Ok(Some(held)) => {
                self.stuck.store(false, SeqCst);
                let jobs = self.take_queued();
                let (_, done) = self.apply(&held, None::<&mut Nothing>, jobs);
                drop(held);
                self.busy.store(false, SeqCst);
                finish(done);
            }
            Ok(None) => {
                self.busy.store(false, SeqCst);
                self.fail_overdue();
            }
            Err(_) => {
                self.busy.store(false, SeqCst);
                for queued in self.take_queued() {
                    queued.job.finish(Err(Error::Damaged));
                }
            }
        }
    }

    /// Fails everything that is still queued.
    pub(crate) fn shut(&self) {
        while self.has_queued() {
            self.take_queued().into_iter().for_each(|queued| queued.job.finish(Err(Error::Busy)));
        }
    }

    fn attempt(&self) -> Result<Attempt<'_>, Error> {
        if self.busy.swap(true, SeqCst) {
            return Ok(Attempt::Behind);
        }
        match self.env.gate.try_lock() {
            Ok(Some(held)) => {
                self.stuck.store(false, SeqCst);
                Ok(Attempt::In(held))
            }
            shut => {
                self.busy.store(false, SeqCst);
                shut.map(|_| Attempt::Shut)
            }
        }
    }

    /// Gives the gate back and looks at the queue once more: others may have queued behind us.
    fn leave(&self, held: Held<'_>) {
        drop(held);
        self.busy.store(false, SeqCst);
        if !self.has_queued() {
            return;
        }
        if let Ok(Attempt::In(held)) = self.attempt() {
            let jobs = self.take_queued();
            let (_, done) = self.apply(&held, None::<&mut Nothing>, jobs);
            drop(held);
            self.busy.store(false, SeqCst);
            finish(done);
        }
        // Enough of this thread's time; or another process is in.
        if self.has_queued() {
            self.bell.ring();
        }
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
        self.queued.fetch_sub(batch, SeqCst);
        queue.drain(..batch).collect()
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
        self.queued.fetch_sub(overdue.len(), SeqCst);
        drop(queue);
        if !overdue.is_empty() {
            self.stuck.store(true, SeqCst);
        }
        for queued in overdue {
            queued.job.finish(Err(Error::Busy));
        }
    }

    /// Runs what was queued and then `own` in one transaction; if that fails, each alone, so that a bad neighbour harms
    /// only itself. The jobs are to be finished once the gate has been left.
    fn apply(&self, held: &Held<'_>, own: Option<&mut impl Run>, jobs: Vec<Queued>) -> (Result<(), Error>, Vec<Done>) {
        if jobs.is_empty() {
            return (own.map_or(Ok(()), |own| self.apply_alone(held, own)), Vec::new());
        }
        let mut own = own;
        let mut done = Vec::with_capacity(jobs.len());
        let mut live = Vec::with_capacity(jobs.len());
        for mut queued in jobs {
            if queued.job.abandoned() {
                continue;
            }
            match catch_unwind(AssertUnwindSafe(|| queued.job.prepare())) {
                Ok(()) => live.push(queued.job),
                Err(_) => done.push((queued.job, Err(Error::Panicked))),
            }
        }
        let together = self.env.write(held, |txn| {
            let mut changed = false;
            for job in &mut live {
                changed |= job.run(txn)?;
            }
            if let Some(own) = &mut own {
                changed |= own.run(txn)?;
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

    fn apply_alone(&self, held: &Held<'_>, run: &mut (impl Run + ?Sized)) -> Result<(), Error> {
        let first = self.env.write(held, |txn| run.run(txn).map(|changed| ((), changed)));
        match first {
            Err(Error::Full) => {
                self.env.write(held, |txn| (self.make_room)(txn).map(|changed| ((), changed)))?;
                self.env.write(held, |txn| run.run(txn).map(|changed| ((), changed)))
            }
            result => result,
        }
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("env", &self.env).finish_non_exhaustive()
    }
}

struct Awaited<R, S, G> {
    run: R,
    settle: S,
    slot: Arc<Slot<G>>,
}

impl<R: Run, S, G> Run for Awaited<R, S, G> {
    fn prepare(&mut self) {
        self.run.prepare();
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        self.run.run(txn)
    }
}

impl<R: Run + Send, S: FnOnce(R, Result<(), Error>) -> G + Send, G: Send> Job for Awaited<R, S, G> {
    fn finish(self: Box<Self>, result: Result<(), Error>) {
        let Awaited { run, settle, slot } = *self;
        slot.fill(settle(run, result));
    }

    fn abandoned(&self) -> bool {
        self.slot.abandoned()
    }
}

struct Posted<R>(R);

impl<R: Run> Run for Posted<R> {
    fn prepare(&mut self) {
        self.0.prepare();
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        self.0.run(txn)
    }
}

impl<R: Run + Send> Job for Posted<R> {
    fn finish(self: Box<Self>, _: Result<(), Error>) {}

    fn abandoned(&self) -> bool {
        false
    }
}

type Done = (Box<dyn Job>, Result<(), Error>);

fn finish(done: Vec<Done>) {
    done.into_iter().for_each(|(job, result)| job.finish(result));
}

struct Nothing;

impl Run for Nothing {
    fn run(&mut self, _: &mut Txn<'_>) -> Result<bool, Error> {
        Ok(false)
    }
}

/// Where the result of a queued operation is left for its future.
#[derive(Debug)]
pub(crate) struct Slot<T>(Mutex<State<T>>);

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Done(T),
    /// Taken by the future, or the future is gone.
    Over,
}

impl<T> Slot<T> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Slot(Mutex::new(State::Waiting(None))))
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves the result. If nobody waits for it any more it is dropped, which undoes what has an undo.
    pub(crate) fn fill(&self, value: T) {
        let mut state = self.lock();
        let before = match &*state {
            State::Waiting(_) => std::mem::replace(&mut *state, State::Done(value)),
            _ => {
                drop(state);
                return drop(value);
            }
        };
        drop(state);
        if let State::Waiting(Some(waker)) = before {
            waker.wake();
        }
    }

    pub(crate) fn abandoned(&self) -> bool {
        matches!(&*self.lock(), State::Over)
    }
}

/// The result of an operation: there at once, or once the queue has been served. Dropped early, a queued operation is
/// removed and a done one undone by the drop of its result.
#[derive(Debug)]
pub(crate) enum Pending<T> {
    Ready(Option<T>),
    Queued(Arc<Slot<T>>),
}

impl<T> Unpin for Pending<T> {}

impl<T> Pending<T> {
    pub(crate) fn ready(value: T) -> Self {
        Pending::Ready(Some(value))
    }

    /// The result, if it is there already.
    pub(crate) fn now(&mut self) -> Option<T> {
        match self {
            Pending::Ready(value) => value.take(),
            Pending::Queued(_) => None,
        }
    }

    /// Blocks the thread until the result is there.
    pub(crate) fn wait(self) -> T {
        block_on(self)
    }
}

impl<T> Future for Pending<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut *self {
            Pending::Ready(value) => Poll::Ready(value.take().expect("polled after completion")),
            Pending::Queued(slot) => {
                let mut state = slot.lock();
                match std::mem::replace(&mut *state, State::Over) {
                    State::Done(value) => Poll::Ready(value),
                    State::Waiting(_) => {
                        *state = State::Waiting(Some(cx.waker().clone()));
                        Poll::Pending
                    }
                    State::Over => panic!("polled after completion"),
                }
            }
        }
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        if let Pending::Queued(slot) = self {
            // The value, if there is one, is dropped outside the lock: its drop may post an undo.
            let state = std::mem::replace(&mut *slot.lock(), State::Over);
            drop(state);
        }
    }
}

/// Runs a future on this thread, without a runtime.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut cx = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut cx) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
