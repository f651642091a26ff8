//! Operations that run in a write transaction, as they stand in the write queue.

use super::pending::Slot;
use crate::{
    error::Error,
    store::{lmdb::transaction::Txn, os::sync::Mutex},
};
use std::{
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
};

/// An operation that runs in a write transaction, perhaps more than once: the operations of an aborted batch run again
/// one by one.
pub(crate) trait Operation {
    /// Called before the transaction. The user's code, such as the clock, runs here.
    fn prepare(&mut self) {}

    /// Returns whether anything was changed.
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error>;

    /// About how many bytes it stores.
    fn size(&self) -> usize {
        0
    }
}

/// An operation in the queue.
pub(super) trait Job: Operation + Send {
    /// Called once, after the commit or the failure.
    fn finish(self: Box<Self>, result: Result<(), Error>);

    /// Whether no caller waits for it any more, so that it need not run.
    fn abandoned(&self) -> bool;

    /// Called before the commit: from then on, its caller gets the result. `false`: the caller was told that it is late,
    /// so it must not happen.
    fn seal(&self) -> bool;

    fn caller(&self) -> Option<Arc<dyn Caller>>;
}

/// The caller of an operation, which waits for its result.
pub(super) trait Caller: Send + Sync {
    /// Asks the caller's own thread to help the queue on.
    fn call(&self);

    /// Tells the caller that the operation has failed, while that is at the gate.
    fn give_up(&self, error: Error);
}

pub(super) struct Awaited<R, S, G> {
    pub(super) operation: R,
    pub(super) caller: Arc<Awaiting<R, S, G>>,
}

/// The caller of an [`Awaited`] operation.
pub(super) struct Awaiting<R, S, G> {
    settle: Mutex<Option<S>>,
    slot: Arc<Slot<G>>,
    operation: PhantomData<fn(R)>,
}

impl<R, S: FnOnce(Result<R, Error>) -> G, G> Awaiting<R, S, G> {
    pub(super) fn new(settle: S, slot: &Arc<Slot<G>>) -> Arc<Self> {
        Arc::new(Awaiting { settle: Mutex::new(Some(settle)), slot: slot.clone(), operation: PhantomData })
    }

    fn settle(&self, result: Result<R, Error>) {
        let settle = self.settle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(settle) = settle else { return };
        self.slot.fill_with(catch_unwind(AssertUnwindSafe(|| settle(result))));
    }
}

impl<R, S: FnOnce(Result<R, Error>) -> G + Send, G: Send> Caller for Awaiting<R, S, G> {
    fn call(&self) {
        self.slot.call();
    }

    fn give_up(&self, error: Error) {
        if self.slot.give_up() {
            self.settle(Err(error));
        }
    }
}

impl<R: Operation, S, G> Operation for Awaited<R, S, G> {
    fn prepare(&mut self) {
        self.operation.prepare();
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        self.operation.run(txn)
    }

    fn size(&self) -> usize {
        self.operation.size()
    }
}

impl<R, S, G> Job for Awaited<R, S, G>
where
    R: Operation + Send + 'static,
    S: FnOnce(Result<R, Error>) -> G + Send + 'static,
    G: Send + 'static,
{
    fn finish(self: Box<Self>, result: Result<(), Error>) {
        // Where nobody waits, there is nobody to be told of a failure, and nothing to be undone.
        if result.is_err() && self.abandoned() {
            return;
        }
        let Awaited { operation, caller } = *self;
        caller.settle(result.map(|()| operation));
    }

    fn abandoned(&self) -> bool {
        self.caller.slot.abandoned()
    }

    fn seal(&self) -> bool {
        self.caller.slot.seal()
    }

    fn caller(&self) -> Option<Arc<dyn Caller>> {
        Some(self.caller.clone())
    }
}

pub(super) struct Posted<R, S> {
    pub(super) operation: R,
    pub(super) settle: S,
}

impl<R: Operation, S> Operation for Posted<R, S> {
    fn prepare(&mut self) {
        self.operation.prepare();
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        self.operation.run(txn)
    }

    fn size(&self) -> usize {
        self.operation.size()
    }
}

impl<R: Operation + Send, S: FnOnce(Result<R, Error>) + Send> Job for Posted<R, S> {
    fn finish(self: Box<Self>, result: Result<(), Error>) {
        let Posted { operation, settle } = *self;
        settle(result.map(|()| operation));
    }

    fn abandoned(&self) -> bool {
        false
    }

    fn seal(&self) -> bool {
        true
    }

    fn caller(&self) -> Option<Arc<dyn Caller>> {
        None
    }
}

pub(super) struct Nothing;

impl Operation for Nothing {
    fn run(&mut self, _: &mut Txn<'_>) -> Result<bool, Error> {
        Ok(false)
    }
}

// An operation may call the user's code. A panic there is a failure of that operation and of no other. It must not
// leave by a drop that posts an undo, end the worker thread, or keep the neighbours of a batch waiting.

pub(super) fn prepare(operation: &mut (impl Operation + ?Sized)) -> Result<(), Error> {
    catch_unwind(AssertUnwindSafe(|| operation.prepare())).map_err(|_| Error::Panicked)
}

pub(super) fn run(operation: &mut (impl Operation + ?Sized), txn: &mut Txn<'_>) -> Result<bool, Error> {
    catch_unwind(AssertUnwindSafe(|| operation.run(txn))).unwrap_or(Err(Error::Panicked))
}

pub(super) fn finish(job: Box<dyn Job>, result: Result<(), Error>) {
    let _ = catch_unwind(AssertUnwindSafe(|| job.finish(result)));
}

pub(super) type Done = (Box<dyn Job>, Result<(), Error>);

pub(super) fn finish_all(done: Vec<Done>) {
    done.into_iter().for_each(|(job, result)| finish(job, result));
}
