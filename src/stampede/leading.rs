//! The wait of a leader for its own computation.

use crate::{
    cache::Task,
    store::{Pending, Slot},
};
use std::{
    any::Any,
    future::Future,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

/// What a computation gives to the request that leads it.
pub(super) enum LeaderOutcome<Out, Err> {
    Answer(Out),
    /// A failure, to be shown only if there is no stale answer.
    Failure(Result<Out, Err>),
    Panic(Box<dyn Any + Send>),
}

impl<Out, Err> LeaderOutcome<Out, Err> {
    pub(super) fn shown(self) -> Result<Out, Err> {
        match self {
            LeaderOutcome::Answer(answer) => Ok(answer),
            LeaderOutcome::Failure(failure) => failure,
            LeaderOutcome::Panic(panic) => resume_unwind(panic),
        }
    }
}

/// Where the computation puts its outcome for the leader. Where it is dropped empty, the leader panics.
pub(super) struct LeaderSlot<Out, Err>(Arc<Slot<LeaderOutcome<Out, Err>>>);

impl<Out, Err> LeaderSlot<Out, Err> {
    /// The slot, and the wait for it to be filled.
    pub(super) fn new() -> (LeaderSlot<Out, Err>, Pending<LeaderOutcome<Out, Err>>) {
        let slot = Slot::new();
        let pending = Pending::of(&slot);
        (LeaderSlot(slot), pending)
    }

    pub(super) fn fill(&self, outcome: LeaderOutcome<Out, Err>) {
        self.0.fill(outcome);
    }
}

impl<Out, Err> Drop for LeaderSlot<Out, Err> {
    fn drop(&mut self) {
        self.0
            .fill(LeaderOutcome::Panic(Box::new("the executor dropped a computation that a request was waiting for")));
    }
}

/// The leader's wait for its own computation.
pub(super) struct Leading<Out, Err> {
    /// The computation, where nothing else runs it.
    task: Option<Task>,
    pending: Pending<LeaderOutcome<Out, Err>>,
}

impl<Out, Err> Leading<Out, Err> {
    /// `task`: the computation, if nothing else runs it.
    pub(super) fn new(task: Option<Task>, pending: Pending<LeaderOutcome<Out, Err>>) -> Leading<Out, Err> {
        Leading { task, pending }
    }

    /// Whether the computation goes on without this.
    pub(super) fn is_on_its_own(&self) -> bool {
        self.task.is_none()
    }

    /// Runs the computation, if nothing else does, and drops the answer.
    pub(super) async fn detach(self) {
        drop(self.pending);
        if let Some(task) = self.task {
            task.await;
        }
    }
}

impl<Out, Err> Future for Leading<Out, Err> {
    /// The outcome, and what is still to be run.
    type Output = (LeaderOutcome<Out, Err>, Option<Task>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(task) = &mut self.task
            && task.as_mut().poll(cx).is_ready()
        {
            self.task = None;
        }
        Pin::new(&mut self.pending).poll(cx).map(|outcome| (outcome, self.task.take()))
    }
}
