//! The barrier's service and its future.

use super::layer::BarrierLayer;
use crate::{
    accessors::to_call_later,
    answer::{Admission, Answer, Http},
    cache::{Event, Scope},
    lock::{self, Acquire, AcquireError, Acquiring, Guard, Lock, LockFactory, Terms},
    name::{All, Name, NameBuf, Named},
    rejection::{Reason, Rejection},
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

/// The service of a [`BarrierLayer`].
#[derive(Clone, Debug)]
pub struct Barrier<S, L = Lock, N = All, A = Http> {
    pub(super) inner: S,
    pub(super) layer: BarrierLayer<L, N, A>,
}

impl<S, L, N, A> Barrier<S, L, N, A> {
    inner_service_accessors!("Calling it takes no lock.");
}

impl<S, L, N, A, Req> Service<Req> for Barrier<S, L, N, A>
where
    S: Service<Req> + Clone,
    L: LockFactory<Req> + Clone,
    N: Name<Req>,
    A: Answer<Req, S::Response, S::Error> + Clone,
{
    type Response = A::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, L, A, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let layer = &self.layer;
        let outcome = Outcome {
            scope: layer.scope.clone(),
            lock: layer.lock.clone(),
            answer: layer.answer.clone(),
            fail_open: layer.fail_open,
        };
        let mut name = NameBuf::new();
        if layer.name.name(&request, &mut name) == Named::Pass {
            return ResponseFuture { state: State::Calling { future: self.inner.call(request), guard: None }, outcome };
        }
        let terms = Terms {
            owner: layer.lock.owner(&request),
            lease: layer.lock.lease(&request).map_or(layer.lease, lock::clamp_lease),
            tag: layer.tag,
            patience: layer.patience.unwrap_or(Duration::MAX),
            ..Terms::new()
        };
        let acquire = Acquire::new(&layer.scope, name.as_bytes(), layer.lock.rule(&request), terms);
        let mut acquiring = acquire.acquire();
        let state = match acquiring.now() {
            // The instance that was made ready serves the request.
            Some(acquired) => match outcome.judge(acquired, &mut request) {
                Step::Call(guard) => State::Calling { future: self.inner.call(request), guard },
                Step::Say(output) => State::Said { output: Some(output) },
            },
            // The clone asks for its own readiness when its turn comes.
            None => {
                let next = Some((to_call_later(&mut self.inner), request));
                State::Acquiring { acquiring: Box::new(acquiring), next }
            }
        };
        ResponseFuture { state, outcome }
    }
}

/// What the attempt leads to.
enum Step<Out> {
    Call(Option<Guard>),
    Say(Out),
}

/// The part of the layer that the future needs.
struct Outcome<L, A> {
    scope: Scope,
    lock: L,
    answer: A,
    fail_open: bool,
}

impl<L, A> Outcome<L, A> {
    fn judge<Req, Res, Err>(
        &self,
        acquired: Result<Guard, AcquireError>,
        request: &mut Req,
    ) -> Step<Result<A::Response, Err>>
    where
        L: LockFactory<Req>,
        A: Answer<Req, Res, Err>,
    {
        let reason = match acquired {
            Ok(guard) => {
                self.lock.hand_over(request, &guard.hold());
                return Step::Call(Some(guard));
            }
            Err(AcquireError::Busy { .. } | AcquireError::QueueFull { .. }) => {
                self.scope.note(Event::Busy);
                Reason::Busy
            }
            Err(AcquireError::Cache(_)) => {
                self.scope.note(Event::BarrierFailed);
                if self.fail_open {
                    return Step::Call(None);
                }
                Reason::CacheFailed
            }
        };
        // When the lock will be free cannot be told; a second keeps clients from hammering.
        let why =
            Rejection { retry_after: Some(Duration::from_secs(1)), ..Rejection::new(reason, self.scope.shared_name()) };
        match self.answer.refuse(request, why) {
            ControlFlow::Break(output) => Step::Say(output),
            ControlFlow::Continue(()) => Step::Call(None),
        }
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
    outcome: Outcome<L, A>,
}

#[pin_project(project = StateProj)]
enum State<S, F, R, Req, Out> {
    Acquiring {
        acquiring: Box<Acquiring<R>>,
        next: Option<(S, Req)>,
    },
    Readying {
        guard: Option<Guard>,
        next: Option<(S, Req)>,
    },
    Calling {
        #[pin]
        future: F,
        guard: Option<Guard>,
    },
    Said {
        output: Option<Out>,
    },
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
            let state = match this.state.as_mut().project() {
                StateProj::Acquiring { acquiring, next } => {
                    let acquired = ready!(Pin::new(&mut **acquiring).poll(cx));
                    let request = &mut next.as_mut().expect(POLLED_AGAIN).1;
                    match this.outcome.judge(acquired, request) {
                        Step::Call(guard) => State::Readying { guard, next: next.take() },
                        Step::Say(output) => State::Said { output: Some(output) },
                    }
                }
                StateProj::Readying { guard, next } => {
                    ready!(next.as_mut().expect(POLLED_AGAIN).0.poll_ready(cx))?;
                    let (mut inner, request) = next.take().expect(POLLED_AGAIN);
                    State::Calling { future: inner.call(request), guard: guard.take() }
                }
                StateProj::Calling { future, guard } => {
                    let result = ready!(future.poll(cx));
                    let guard = guard.take();
                    let response = result?;
                    let admission = Admission { decision: None, guard };
                    return Poll::Ready(Ok(this.outcome.answer.admit(response, admission)));
                }
                StateProj::Said { output } => return Poll::Ready(output.take().expect(POLLED_AGAIN)),
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
