//! The wait for a lock.

use super::{
    error::AcquireError,
    guard::Guard,
    lost::Signal,
    row::{
        attempt::{Answer, Asked, Entered, LockRequest, Moment, Renewal, Turn},
        transition,
    },
    rule::{Lock, Rule},
    waiters::{self, InLine, Watcher},
};
use crate::{
    cache::Scope,
    error::Error,
    store::{Event, HolderId, Key, LOCKS, Pending, Registration},
};
use hyper::rt::Sleep;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

/// The key of a lock, and the label of its row.
pub(super) type Named = (Key, Arc<[u8]>);

/// An attempt that was made, and what it found.
struct Attempt {
    answer: Answer<Guard, InLine>,
    wait: Option<Duration>,
    /// Instances whose end would make room.
    suspects: Vec<u64>,
}

/// The future of a lock.
#[must_use = "futures do nothing unless polled"]
pub struct Acquiring<R = Lock> {
    scope: Scope,
    key: Key,
    label: Arc<[u8]>,
    request: Arc<LockRequest<R>>,
    patience: Duration,
    // Dropped before the place in the line: a guard that is not taken any more is released first.
    asking: Option<Pending<Result<Attempt, Error>>>,
    waiting: Option<(Registration, InLine)>,
    limit: Option<Pin<Box<dyn Sleep>>>,
    estimate: Option<Duration>,
    /// Set when any of the locks is lost.
    lost: Arc<Signal>,
    /// The names still to be acquired, the next one last, and the guards of the others.
    rest: Vec<Named>,
    held: Vec<Guard>,
}

impl<R> Unpin for Acquiring<R> {}

impl<R: Rule> Acquiring<R> {
    /// Asks for the first lock. `rest` are those to be acquired after it, the next one last.
    pub(super) fn start(
        scope: Scope,
        (key, label): Named,
        rest: Vec<Named>,
        request: LockRequest<R>,
        patience: Duration,
    ) -> Acquiring<R> {
        let mut acquiring = Acquiring {
            scope,
            key,
            label,
            request: Arc::new(request),
            patience,
            asking: None,
            waiting: None,
            limit: None,
            estimate: None,
            lost: Arc::default(),
            rest,
            held: Vec::new(),
        };
        acquiring.ask(Vec::new());
        acquiring
    }

    fn ask(&mut self, dead: Vec<u64>) {
        let (request, scope, key) = (self.request.clone(), self.scope.clone(), self.key);
        let turn = self.waiting.as_ref().map(|(_, in_line)| in_line.turn);
        let (label, is_labelled) = (self.label.clone(), !self.label.is_empty());
        let (owner, lost) = (request.owner.clone(), self.lost.clone());
        let (lease, weight) = (request.lease, request.weight());
        let own_label = self.label.clone();
        let here = self.scope.clone();
        self.asking = Some(self.scope.update_line(
            LOCKS,
            key,
            move |found, line, now| {
                let moment = Moment { now, dead: &dead, is_held_here: &|number| here.holds(number) };
                let (asked, change, steps) = transition::ask(found, line, moment, &request, &label, turn);
                ((asked, now), change, steps)
            },
            move |asked| {
                let (Asked { answer, generation, wait, to_wake, suspects }, now) = asked?;
                waiters::deliver(&scope, key, to_wake);
                let answer = match answer {
                    Answer::Held(fence) => {
                        let orphaned = scope.is_orphaned();
                        if is_labelled {
                            scope.note(Event::Locked);
                        }
                        let entered = Entered {
                            place: HolderId { owner: owner.0, number: fence },
                            generation,
                            lease_end: now.saturating_add(lease),
                        };
                        let renewal = Renewal { entered, lease, instance: 0, weight, label: own_label };
                        let guard = Guard::new(scope, key, owner, renewal, now, lost)?;
                        if orphaned {
                            // Others may look for it in a directory that was made anew. The guard is dropped.
                            return Err(Error::Damaged);
                        }
                        Answer::Held(guard)
                    }
                    Answer::Waiting(turn) => Answer::Waiting(InLine::new(&scope, key, owner, turn)),
                    Answer::Busy => Answer::Busy,
                    Answer::QueueFull => Answer::QueueFull,
                    Answer::TooManyHolders => Answer::TooManyHolders,
                };
                Ok(Attempt { answer, wait: wait.map(Duration::from_nanos), suspects })
            },
        ));
    }

    /// The outcome, if the attempt leads to one; otherwise another is made, or one waits.
    fn take_in(&mut self, attempt: Result<Attempt, Error>) -> Option<Result<Guard, AcquireError>> {
        self.asking = None;
        let Attempt { answer, wait, suspects } = match attempt {
            Ok(attempt) => attempt,
            Err(error) => return Some(Err(AcquireError::Cache(error))),
        };
        self.estimate = wait;
        let failed = match answer {
            Answer::Held(guard) => return self.take_hold(guard),
            Answer::Waiting(in_line) => {
                self.wait_in(in_line);
                let is_listening = self.scope.wake_ups().ensure_listening();
                (!is_listening).then_some(AcquireError::Cache(Error::NoThread))
            }
            Answer::Busy => Some(self.busy()),
            Answer::QueueFull => Some(AcquireError::QueueFull { retry_after: wait }),
            Answer::TooManyHolders => Some(AcquireError::TooManyHolders),
        };
        let dead = self.scope.dead_among(&suspects);
        if !dead.is_empty() {
            self.ask(dead);
            return None;
        }
        failed.map(Err)
    }

    fn wait_in(&mut self, in_line: InLine) {
        match &mut self.waiting {
            Some((_, before)) => std::mem::replace(before, in_line).end(),
            None => {
                let (to_wake, Turn { number, since }) = (self.scope.wake_ups(), in_line.turn);
                let call = to_wake.register(self.key, number, Watcher::new(&self.scope, since));
                if transition::may_have_lapsed(since, self.scope.handle().now()) {
                    to_wake.wake(number);
                }
                self.waiting = Some((call, in_line));
            }
        }
    }

    fn take_hold(&mut self, guard: Guard) -> Option<Result<Guard, AcquireError>> {
        if let Some((_, in_line)) = self.waiting.take() {
            in_line.end();
        }
        let Some((key, label)) = self.rest.pop() else {
            if self.held.is_empty() {
                return Some(Ok(guard));
            }
            let mut guards = std::mem::take(&mut self.held);
            guards.push(guard);
            guards.sort_by_key(Guard::fence);
            return Guard::join(guards).map(Ok);
        };
        self.held.push(guard);
        (self.key, self.label) = (key, label);
        self.ask(Vec::new());
        None
    }

    /// The outcome, if it is known without waiting.
    pub(crate) fn now(&mut self) -> Option<Result<Guard, AcquireError>> {
        while let Some(asking) = &mut self.asking {
            let attempt = asking.now()?;
            if let Some(outcome) = self.take_in(attempt) {
                return Some(outcome);
            }
        }
        None
    }

    /// Gives up the place in the line and the locks, so that a finished future which is kept does not hold others up.
    fn finish(&mut self, outcome: Result<Guard, AcquireError>) -> Poll<Result<Guard, AcquireError>> {
        self.waiting = None;
        self.held.clear();
        Poll::Ready(outcome)
    }

    pub(super) fn busy(&self) -> AcquireError {
        AcquireError::Busy { retry_after: self.estimate }
    }

    fn out_of_patience(&mut self, cx: &mut Context<'_>) -> bool {
        if self.patience == Duration::MAX {
            return false;
        }
        let (handle, patience) = (self.scope.handle(), self.patience);
        self.limit.get_or_insert_with(|| handle.sleep(patience)).as_mut().poll(cx).is_ready()
    }
}

impl<R: Rule> Future for Acquiring<R> {
    type Output = Result<Guard, AcquireError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            if let Some(asking) = &mut this.asking {
                let attempt = ready!(Pin::new(asking).poll(cx));
                if let Some(outcome) = this.take_in(attempt) {
                    return this.finish(outcome);
                }
                continue;
            }
            // Checked before the wake-up: a wait that is over must not end in one more attempt.
            if this.out_of_patience(cx) {
                return this.finish(Err(this.busy()));
            }
            match &this.waiting {
                Some((registration, _)) if !registration.was_woken(cx.waker()) => return Poll::Pending,
                Some(_) => this.ask(Vec::new()),
                None => panic!("polled after completion"),
            }
        }
    }
}

impl<R> fmt::Debug for Acquiring<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acquiring").field("scope", &self.scope.name()).field("queued", &self.waiting.is_some()).finish()
    }
}
