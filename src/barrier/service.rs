//! The barrier's service and its future.

use super::{
    deadline::{Deadline, NoDeadline},
    settings::Settings,
};
use crate::{
    accessors::to_call_later,
    answer::{Admission, Answer, Http},
    cache::Scope,
    error::Error,
    lock::{AcquireError, Acquiring, Guard, Lock, LockFactory, Lost},
    name::{All, Name, NameBuf, Named},
    rejection::{Reason, Rejection},
    store::Event,
};
use pin_project::pin_project;
use std::{
    fmt,
    future::Future,
    ops::ControlFlow,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tower_service::Service;

/// The least `Retry-After`, also where the delay cannot be guessed. It keeps clients from retrying in a loop, above all
/// those of gRPC, whose delays are in milliseconds.
const LATER: Duration = Duration::from_secs(1);

/// The service of a [`BarrierLayer`](super::BarrierLayer).
#[derive(Clone, Debug)]
pub struct Barrier<S, L = Lock, N = All, A = Http, D = NoDeadline> {
    pub(super) inner: S,
    pub(super) settings: Settings<L, N, A, D>,
}

impl<S, L, N, A, D> Barrier<S, L, N, A, D> {
    inner_service_accessors!("Calling it takes no lock.");
}

impl<S, L, N, A, D, Req> Service<Req> for Barrier<S, L, N, A, D>
where
    S: Service<Req> + Clone,
    L: LockFactory<Req> + Clone,
    N: Name<Req>,
    A: Answer<Req, S::Response, S::Error> + Clone,
    D: Deadline<Req>,
{
    type Response = A::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, L, A, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let settings = &self.settings;
        settings.lock.arrive(&mut request);
        let responder = Responder {
            scope: settings.scope.clone(),
            lock: settings.lock.clone(),
            answer: settings.answer.clone(),
            fail_open: settings.options.fail_open,
            cancel_on_loss: settings.options.cancel_on_loss,
        };
        let mut name = NameBuf::new();
        if settings.name.name(&request, &mut name) == Named::Pass {
            let state = State::Calling { future: self.inner.call(request), held: None };
            return ResponseFuture { state, responder };
        }
        let mut acquiring = settings.acquire(&name, &request).acquire();
        let state = match acquiring.now() {
            // The instance that was made ready serves the request.
            Some(acquired) => match responder.judge(acquired, &mut request) {
                Step::Call(held) => State::Calling { future: self.inner.call(request), held },
                Step::Answer(output) => {
                    // The holder of the lock may need the permit that a caller which keeps this instance would hold.
                    drop(to_call_later(&mut self.inner));
                    State::Answered { output: Some(output) }
                }
            },
            // The clone asks for its own readiness when its turn comes.
            None => {
                let next = Some((to_call_later(&mut self.inner), request));
                State::Acquiring { acquiring: Box::new(acquiring), next }
            }
        };
        ResponseFuture { state, responder }
    }
}

/// What the attempt leads to: a call of the service, or an answer of the layer's own.
enum Step<Out> {
    Call(Option<Held<Out>>),
    Answer(Out),
}

/// A lock that is held for the request.
struct Held<Out> {
    guard: Guard,
    if_lost: Option<Box<IfLost<Out>>>,
}

/// What becomes of the request when its lock is lost.
struct IfLost<Out> {
    lost: Lost,
    output: Out,
}

/// The part of the settings that the future needs, to decide what becomes of the request.
struct Responder<L, A> {
    scope: Scope,
    lock: L,
    answer: A,
    fail_open: bool,
    cancel_on_loss: bool,
}

impl<L, A> Responder<L, A> {
    fn judge<Req, Res, Err>(
        &self,
        acquired: Result<Guard, AcquireError>,
        request: &mut Req,
    ) -> Step<Result<A::Response, Err>>
    where
        L: LockFactory<Req>,
        A: Answer<Req, Res, Err>,
    {
        let error = match acquired {
            Ok(guard) => return Step::Call(Some(self.hold(guard, request))),
            Err(error) => error,
        };
        let (reason, retry_after) = match &error {
            AcquireError::Busy { .. } | AcquireError::TooManyHolders => (Reason::Busy, error.retry_after()),
            AcquireError::QueueFull { .. } => (Reason::QueueFull, error.retry_after()),
            AcquireError::Cache(_) => (Reason::CacheFailed, error.retry_after()),
        };
        let failed = reason == Reason::CacheFailed;
        self.scope.note(if failed { Event::BarrierFailed } else { Event::Busy });
        // A lock whose record is damaged may be held, and its cache can be used.
        let is_unknown = matches!(error, AcquireError::Cache(Error::DamagedLock { .. }));
        if failed && self.fail_open && !is_unknown {
            return Step::Call(None);
        }
        match self.answer.refuse(request, self.rejection(reason, retry_after)) {
            ControlFlow::Break(output) => Step::Answer(output),
            ControlFlow::Continue(()) => Step::Call(None),
        }
    }

    fn hold<Req, Res, Err>(&self, guard: Guard, request: &mut Req) -> Held<Result<A::Response, Err>>
    where
        L: LockFactory<Req>,
        A: Answer<Req, Res, Err>,
    {
        let hold = guard.hold();
        self.answer.hold(request, &hold);
        self.lock.hand_over(request, &hold);
        // The refusal is made now, since the request will have been passed on when it is needed.
        let refusal = self.if_lost().map(|why| self.answer.refuse(request, why));
        let if_lost = refusal.and_then(ControlFlow::break_value);
        Held { if_lost: if_lost.map(|output| Box::new(IfLost { lost: guard.lost(), output })), guard }
    }

    fn if_lost(&self) -> Option<Rejection> {
        self.cancel_on_loss.then(|| self.rejection(Reason::Lost, None))
    }

    fn rejection(&self, reason: Reason, retry_after: Option<Duration>) -> Rejection {
        let retry_after = match reason {
            // The request may be half done, so nothing should make a client's library repeat it.
            Reason::Lost => None,
            _ => Some(retry_after.unwrap_or_default().max(LATER)),
        };
        Rejection { retry_after, ..Rejection::new(reason, self.scope.shared_name()) }
    }
}

/// The future of a [`Barrier`].
#[pin_project]
pub struct ResponseFuture<S, L, A, Req>
where
    S: Service<Req>,
    L: LockFactory<Req>,
    A: Answer<Req, S::Response, S::Error>,
{
    #[pin]
    state: State<S, S::Future, L::Rule, Req, Result<A::Response, S::Error>>,
    responder: Responder<L, A>,
}

#[pin_project(project = StateProj)]
enum State<S, F, R, Req, Out> {
    Acquiring {
        acquiring: Box<Acquiring<R>>,
        next: Option<(S, Req)>,
    },
    Readying {
        held: Option<Held<Out>>,
        next: Option<(S, Req)>,
    },
    Calling {
        #[pin]
        future: F,
        held: Option<Held<Out>>,
    },
    Answered {
        output: Option<Out>,
    },
}

impl<S, F, R, Req, Out> State<S, F, R, Req, Out> {
    /// The refusal, if the lock is lost and `cancel_on_loss` is set.
    fn forfeit(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Option<Out> {
        let (StateProj::Readying { held, .. } | StateProj::Calling { held, .. }) = self.project() else { return None };
        let lost = &mut held.as_mut()?.if_lost.as_mut()?.lost;
        if Pin::new(lost).poll(cx).is_pending() {
            return None;
        }
        Some(held.as_mut()?.if_lost.take()?.output)
    }
}

const POLLED_AGAIN: &str = "polled after completion";

impl<S, L, A, Req> Future for ResponseFuture<S, L, A, Req>
where
    S: Service<Req>,
    L: LockFactory<Req>,
    A: Answer<Req, S::Response, S::Error>,
{
    type Output = Result<A::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            if let Some(output) = this.state.as_mut().forfeit(cx) {
                this.state.set(State::Answered { output: Some(output) });
            }
            let state = match this.state.as_mut().project() {
                StateProj::Acquiring { acquiring, next } => {
                    let acquired = ready!(Pin::new(&mut **acquiring).poll(cx));
                    let request = &mut next.as_mut().expect(POLLED_AGAIN).1;
                    match this.responder.judge(acquired, request) {
                        Step::Call(held) => State::Readying { held, next: next.take() },
                        Step::Answer(output) => State::Answered { output: Some(output) },
                    }
                }
                StateProj::Readying { held, next } => {
                    match ready!(next.as_mut().expect(POLLED_AGAIN).0.poll_ready(cx)) {
                        Ok(()) => {
                            let (mut inner, request) = next.take().expect(POLLED_AGAIN);
                            State::Calling { future: inner.call(request), held: held.take() }
                        }
                        Err(error) => State::Answered { output: Some(Err(error)) },
                    }
                }
                StateProj::Calling { future, held } => {
                    let result = ready!(future.poll(cx));
                    let guard = held.take().map(|held| held.guard);
                    let response = result?;
                    let if_lost = guard.as_ref().and_then(|_| this.responder.if_lost());
                    let admission = Admission { decision: None, guard, if_lost };
                    return Poll::Ready(Ok(this.responder.answer.admit(response, admission)));
                }
                StateProj::Answered { output } => return Poll::Ready(output.take().expect(POLLED_AGAIN)),
            };
            this.state.set(state);
        }
    }
}

impl<S, L, A, Req> fmt::Debug for ResponseFuture<S, L, A, Req>
where
    S: Service<Req>,
    L: LockFactory<Req>,
    A: Answer<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
