//! Operations that run in a write transaction, as they stand in the write queue.

use super::pending::Slot;
use crate::{error::Error, store::lmdb::transaction::Txn};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

/// An operation that runs in a write transaction, perhaps more than once: the operations of an aborted batch run again
/// one by one.
pub(crate) trait Operation {
    /// Called before the transaction. The user's code, such as the clock, runs here.
    fn prepare(&mut self) {}

    /// Returns whether anything was changed.
    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error>;
}

/// An operation in the queue.
pub(super) trait Job: Operation + Send {
    /// Called once, after the commit or the failure.
    fn finish(self: Box<Self>, result: Result<(), Error>);

    /// Whether no caller waits for it any more, so that it need not run.
    fn abandoned(&self) -> bool;
}

pub(super) struct Queued {
    pub(super) job: Box<dyn Job>,
    /// `None`: it must run, however late.
    pub(super) deadline: Option<Instant>,
}

pub(super) struct Awaited<R, S, G> {
    pub(super) operation: R,
    pub(super) settle: S,
    pub(super) slot: Arc<Slot<G>>,
}

impl<R: Operation, S, G> Operation for Awaited<R, S, G> {
    fn prepare(&mut self) {
        self.operation.prepare();
    }

    fn run(&mut self, txn: &mut Txn<'_>) -> Result<bool, Error> {
        self.operation.run(txn)
    }
}

impl<R: Operation + Send, S: FnOnce(R, Result<(), Error>) -> G + Send, G: Send> Job for Awaited<R, S, G> {
    fn finish(self: Box<Self>, result: Result<(), Error>) {
        let Awaited { operation, settle, slot } = *self;
        slot.fill(settle(operation, result));
    }

    fn abandoned(&self) -> bool {
        self.slot.abandoned()
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
}

impl<R: Operation + Send, S: FnOnce(R, Result<(), Error>) + Send> Job for Posted<R, S> {
    fn finish(self: Box<Self>, result: Result<(), Error>) {
        (self.settle)(self.operation, result);
    }

    fn abandoned(&self) -> bool {
        false
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
