//! The throttle's service and its future.

use super::{
    ask::{self, Verdict},
    policy::{Flat, Policy, Standing},
    settings::{Options, Settings},
    turn::Spent,
    wait::Waiting,
};
use crate::{
    accessors::to_call_later,
    answer::{Admission, Answer, Http},
    cache::Scope,
    decision::Decision,
    error::Error,
    name::{All, Name, NameBuf, Named},
    rejection::{Reason, Rejection},
    store::{Event, Kind, Pending},
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

/// The service of a [`ThrottleLayer`](super::ThrottleLayer).
#[derive(Clone, Debug)]
pub struct Throttle<S, N = All, A = Http, P = Flat> {
    pub(super) inner: S,
    pub(super) settings: Settings<N, A, P>,
}

impl<S, N, A, P> Throttle<S, N, A, P> {
    inner_service_accessors!("Calling it is not counted.");
}

impl<S, N, A, P, Req> Service<Req> for Throttle<S, N, A, P>
where
    S: Service<Req> + Clone,
    N: Name<Req>,
    A: Answer<Req, S::Response, S::Error> + Clone,
    P: Policy<Req, S::Response> + Clone,
{
    type Response = A::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, A, P, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let settings = &self.settings;
        let mut future =
            ResponseFuture { state: State::Empty, decision: None, open: None, responder: Responder::new(settings) };
        let step = match settings.policy.standing(&request) {
            Standing::Allowed => Step::Call(None),
            Standing::Denied => future.responder.deny(&request),
            Standing::Counted => {
                let mut name = NameBuf::new();
                match settings.name.name(&request, &mut name) {
                    Named::Pass => Step::Call(None),
                    Named::Yes => {
                        let key = settings.scope.key(Kind::Throttle, name.as_bytes());
                        let mut verdict = ask::ask(&settings.scope, key, settings.ask_for(&request));
                        match verdict.now() {
                            Some(verdict) => future.responder.judge(verdict, &mut request, &mut future.decision),
                            None => Step::Decide(verdict),
                        }
                    }
                }
            }
        };
        future.state = match step {
            // The instance that was made ready serves the request.
            Step::Call(spent) => {
                future.open = spent.map(|spent| (spent, settings.policy.keep(&request)));
                State::Calling { future: self.inner.call(request) }
            }
            // The clone asks for its own readiness when its turn comes.
            Step::Decide(verdict) => State::Deciding { verdict, next: Some((to_call_later(&mut self.inner), request)) },
            Step::Wait(waiting) => State::Waiting { waiting, next: Some((to_call_later(&mut self.inner), request)) },
            Step::Answer(output) => State::Reply { output: Some(output) },
        };
        future
    }
}

/// What the decision leads to.
enum Step<Out> {
    Call(Option<Spent>),
    Decide(Pending<Result<Verdict, Error>>),
    Wait(Waiting),
    Answer(Out),
}

/// The part of the layer that the future needs.
struct Responder<A, P> {
    scope: Scope,
    answer: A,
    policy: P,
    options: Options,
    patience: Duration,
}

impl<A, P> Responder<A, P> {
    fn new<N>(settings: &Settings<N, A, P>) -> Self
    where
        A: Clone,
        P: Clone,
    {
        Responder {
            scope: settings.scope.clone(),
            answer: settings.answer.clone(),
            policy: settings.policy.clone(),
            options: settings.options,
            patience: settings.ask.patience,
        }
    }

    fn deny<Req, Res, Err>(&self, request: &Req) -> Step<Result<A::Response, Err>>
    where
        A: Answer<Req, Res, Err>,
    {
        let scope = self.scope.shared_name();
        self.scope.note(Event::Denied);
        tracing::debug!(%scope, reason = ?Reason::Denied, shadow = self.options.shadow, "throttled");
        self.refuse(request, Rejection::new(Reason::Denied, scope))
    }

    fn refuse<Req, Res, Err>(&self, request: &Req, why: Rejection) -> Step<Result<A::Response, Err>>
    where
        A: Answer<Req, Res, Err>,
    {
        if self.options.shadow {
            self.scope.note(Event::Shadowed);
            return Step::Call(None);
        }
        match self.answer.refuse(request, why) {
            ControlFlow::Break(output) => Step::Answer(output),
            ControlFlow::Continue(()) => Step::Call(None),
        }
    }

    fn judge<Req, Res, Err>(
        &self,
        verdict: Result<Verdict, Error>,
        request: &mut Req,
        made: &mut Option<Decision>,
    ) -> Step<Result<A::Response, Err>>
    where
        A: Answer<Req, Res, Err>,
    {
        let name = self.scope.shared_name();
        let Ok(mut verdict) = verdict else {
            self.scope.note(Event::ThrottleFailed);
            if !self.options.fail_closed {
                return Step::Call(None);
            }
            let retry_after = Some(Duration::from_secs(1));
            return self.refuse(request, Rejection { retry_after, ..Rejection::new(Reason::CacheFailed, name) });
        };
        if let Some(again) = verdict.again() {
            return Step::Decide(again);
        }
        let Verdict { decided, quotas, .. } = verdict;
        let (quota, others) = (quotas.first, quotas.others);
        match decided {
            Ok((wait, turn)) => {
                let decision = Decision { waited: wait, others, ..Decision::new(name, quota) };
                self.answer.mark(request, &decision);
                let step = match wait.is_zero() {
                    true => {
                        ask::note_admitted(&self.scope, &decision.quota, decision.waited);
                        Step::Call(Some(turn.spend()))
                    }
                    false => Step::Wait(turn.comes_after(wait, self.patience, &self.scope)),
                };
                *made = Some(decision);
                step
            }
            Err(refusal) => {
                let reason = refusal.reason();
                ask::note_refused(&self.scope, &refusal, &quota, self.options.shadow);
                let why = Rejection {
                    retry_after: refusal.after,
                    quota: Some(quota.clone()),
                    others: others.clone(),
                    ..Rejection::new(reason, name)
                };
                let step = self.refuse(request, why);
                if let Step::Call(_) = step {
                    let decision = Decision { shadow: true, others, ..Decision::new(name, quota) };
                    self.answer.mark(request, &decision);
                    *made = Some(decision);
                }
                step
            }
        }
    }
}

/// The future of a [`Throttle`].
#[pin_project]
pub struct ResponseFuture<S, A, P, Req>
where
    S: Service<Req>,
    A: Answer<Req, S::Response, S::Error>,
    P: Policy<Req, S::Response>,
{
    #[pin]
    state: State<S, S::Future, Req, Result<A::Response, S::Error>>,
    decision: Option<Decision>,
    /// What was taken for the call, and what settles it.
    open: Option<(Spent, P::Kept)>,
    responder: Responder<A, P>,
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
    Reply {
        output: Option<Out>,
    },
    Empty,
}

const POLLED_AGAIN: &str = "polled after completion";

impl<S, A, P, Req> Future for ResponseFuture<S, A, P, Req>
where
    S: Service<Req>,
    A: Answer<Req, S::Response, S::Error>,
    P: Policy<Req, S::Response>,
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
                    match this.responder.judge(verdict, request, this.decision) {
                        Step::Call(spent) => {
                            *this.open = spent.map(|spent| (spent, this.responder.policy.keep(request)));
                            State::Readying { next }
                        }
                        Step::Decide(verdict) => State::Deciding { verdict, next },
                        Step::Wait(waiting) => State::Waiting { waiting, next },
                        Step::Answer(output) => State::Reply { output: Some(output) },
                    }
                }
                StateProj::Waiting { waiting, next } => {
                    let waited = ready!(Pin::new(&mut *waiting).poll(cx));
                    let next = next.take();
                    match waited {
                        Ok(spent) => {
                            if let Some(decision) = this.decision {
                                decision.waited = waiting.waited();
                                ask::note_admitted(&this.responder.scope, &decision.quota, decision.waited);
                            }
                            let request = &next.as_ref().expect(POLLED_AGAIN).1;
                            *this.open = Some((spent, this.responder.policy.keep(request)));
                            State::Readying { next }
                        }
                        // What a foreign server said meanwhile leaves it no turn.
                        Err(refused) => State::Deciding { verdict: Pending::ready(Ok(refused)), next },
                    }
                }
                StateProj::Readying { next } => {
                    ready!(next.as_mut().expect(POLLED_AGAIN).0.poll_ready(cx))?;
                    let (mut inner, request) = next.take().expect(POLLED_AGAIN);
                    State::Calling { future: inner.call(request) }
                }
                StateProj::Calling { future } => {
                    let response = ready!(future.poll(cx))?;
                    if let Some((spent, kept)) = this.open.take() {
                        let policy = &this.responder.policy;
                        spent.settle(policy.settle(kept, &response), policy.advice(&response));
                    }
                    let admission = Admission { decision: this.decision.take(), ..Admission::default() };
                    return Poll::Ready(Ok(this.responder.answer.admit(response, admission)));
                }
                StateProj::Reply { output } => return Poll::Ready(output.take().expect(POLLED_AGAIN)),
                StateProj::Empty => unreachable!("replaced before the future is returned"),
            };
            this.state.set(state);
        }
    }
}

impl<S, A, P, Req> fmt::Debug for ResponseFuture<S, A, P, Req>
where
    S: Service<Req>,
    A: Answer<Req, S::Response, S::Error>,
    P: Policy<Req, S::Response>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
