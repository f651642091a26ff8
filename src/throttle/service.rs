//! The throttle's service and its future.

use super::{
    layer::{Cost, One, ThrottleLayer},
    limit::{self, Ask, Verdict, Waiting},
};
use crate::{
    answer::{Admission, Answer, Http},
    cache::{Event, Kind, Pending},
    error::Error,
    name::{All, Name, NameBuf, Named},
    rejection::{Reason, Rejection},
    throttle::Decision,
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

/// The service of a [`ThrottleLayer`].
#[derive(Clone, Debug)]
pub struct Throttle<S, N = All, A = Http, C = One> {
    pub(super) inner: S,
    pub(super) layer: ThrottleLayer<N, A, C>,
}

impl<S, N, A, C> Throttle<S, N, A, C> {
    inner_service_accessors!("Calling it is not counted.");
}

impl<S, N, A, C, Req> Service<Req> for Throttle<S, N, A, C>
where
    S: Service<Req> + Clone,
    N: Name<Req>,
    A: Answer<Req, S::Response, S::Error> + Clone,
    C: Cost<Req>,
{
    type Response = A::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, A, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let layer = &self.layer;
        let told = |state| ResponseFuture { state, decision: None, outcome: Outcome::new(layer) };
        let mut name = NameBuf::new();
        if layer.name.name(&request, &mut name) == Named::Pass {
            return told(State::Calling { future: self.inner.call(request) });
        }
        let key = layer.scope.key(Kind::Throttle, name.as_bytes());
        let ask = Ask { cost: layer.cost.cost(&request), ..layer.ask };
        let mut verdict = limit::ask(&layer.scope, key, ask);
        let mut future = told(State::Empty);
        match verdict.now() {
            // The instance that was made ready serves the request.
            Some(verdict) => match future.outcome.judge(verdict, &mut request, &mut future.decision) {
                Step::Call => future.state = State::Calling { future: self.inner.call(request) },
                Step::Wait(waiting) => {
                    future.state = State::Waiting { waiting, next: Some((self.inner.clone(), request)) };
                }
                Step::Say(output) => future.state = State::Said { output: Some(output) },
            },
            // Who waits must not sit on the readiness: a clone asks for its own when its turn comes.
            None => future.state = State::Deciding { verdict, next: Some((self.inner.clone(), request)) },
        }
        future
    }
}

/// What the decision leads to.
enum Step<Out> {
    Call,
    Wait(Waiting),
    Say(Out),
}

/// The part of the layer that the future needs.
struct Outcome<A> {
    scope: crate::cache::Scope,
    answer: A,
    fail_closed: bool,
}

impl<A> Outcome<A> {
    fn new<N, C>(layer: &ThrottleLayer<N, A, C>) -> Self
    where
        A: Clone,
    {
        Outcome { scope: layer.scope.clone(), answer: layer.answer.clone(), fail_closed: layer.fail_closed }
    }

    fn judge<Req, Res, Err>(
        &self,
        verdict: Result<Verdict, Error>,
        request: &mut Req,
        told: &mut Option<Decision>,
    ) -> Step<Result<A::Response, Err>>
    where
        A: Answer<Req, Res, Err>,
    {
        let name = self.scope.shared_name();
        let why = match verdict {
            Ok(Verdict::Admitted { wait, quota, turn }) => {
                self.scope.note(Event::Admitted);
                let decision = Decision { waited: wait, ..Decision::new(name, quota) };
                self.answer.mark(request, &decision);
                *told = Some(decision);
                if wait.is_zero() {
                    turn.spend();
                    return Step::Call;
                }
                return Step::Wait(turn.comes_after(wait, &self.scope));
            }
            Ok(Verdict::Refused { retry_after, quota }) => {
                self.scope.note(Event::Throttled);
                let reason = if retry_after.is_some() { Reason::Throttled } else { Reason::TooCostly };
                *told = Some(Decision { shadow: true, ..Decision::new(name, quota.clone()) });
                Rejection { retry_after, quota: Some(quota), ..Rejection::new(reason, name) }
            }
            Err(_) => {
                self.scope.note(Event::ThrottleFailed);
                if !self.fail_closed {
                    return Step::Call;
                }
                Rejection { retry_after: Some(Duration::from_secs(1)), ..Rejection::new(Reason::CacheFailed, name) }
            }
        };
        match self.answer.refuse(request, why) {
            ControlFlow::Break(output) => Step::Say(output),
            ControlFlow::Continue(()) => {
                if let Some(decision) = told {
                    self.answer.mark(request, decision);
                }
                Step::Call
            }
        }
    }
}

/// The future of a [`Throttle`].
#[pin_project]
pub struct ResponseFuture<S, A, Req>
where
    S: Service<Req>,
    A: Answer<Req, S::Response, S::Error>,
{
    #[pin]
    state: State<S, S::Future, Req, Result<A::Response, S::Error>>,
    decision: Option<Decision>,
    outcome: Outcome<A>,
}

#[pin_project(project = StateProj)]
enum State<S, F, Req, Out> {
    Deciding {
        verdict: Pending<Result<Verdict, Error>>,
        next: Option<(S, Req)>,
    },
    Waiting {
        waiting: Waiting,
        next: Option<(S, Req)>,
    },
    Readying {
        next: Option<(S, Req)>,
    },
    Calling {
        #[pin]
        future: F,
    },
    Said {
        output: Option<Out>,
    },
    Empty,
}

const POLLED_AGAIN: &str = "polled after completion";

impl<S, A, Req> Future for ResponseFuture<S, A, Req>
where
    S: Service<Req>,
    A: Answer<Req, S::Response, S::Error>,
{
    type Output = Result<A::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let state = match this.state.as_mut().project() {
                StateProj::Deciding { verdict, next } => {
                    let verdict = ready!(Pin::new(verdict).poll(cx));
                    let mut next = next.take();
                    let request = &mut next.as_mut().expect(POLLED_AGAIN).1;
                    match this.outcome.judge(verdict, request, this.decision) {
                        Step::Call => State::Readying { next },
                        Step::Wait(waiting) => State::Waiting { waiting, next },
                        Step::Say(output) => State::Said { output: Some(output) },
                    }
                }
                StateProj::Waiting { waiting, next } => {
                    ready!(Pin::new(waiting).poll(cx));
                    State::Readying { next: next.take() }
                }
                StateProj::Readying { next } => {
                    ready!(next.as_mut().expect(POLLED_AGAIN).0.poll_ready(cx))?;
                    let (mut inner, request) = next.take().expect(POLLED_AGAIN);
                    State::Calling { future: inner.call(request) }
                }
                StateProj::Calling { future } => {
                    let response = ready!(future.poll(cx))?;
                    let admission = Admission { decision: this.decision.take(), guard: None };
                    return Poll::Ready(Ok(this.outcome.answer.admit(response, admission)));
                }
                StateProj::Said { output } => return Poll::Ready(output.take().expect(POLLED_AGAIN)),
                StateProj::Empty => unreachable!("replaced before the future is returned"),
            };
            this.state.set(state);
        }
    }
}

impl<S, A, Req> fmt::Debug for ResponseFuture<S, A, Req>
where
    S: Service<Req>,
    A: Answer<Req, S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
