//! The stampede cache's service and its future.

use super::{
    codec::{Access, Codec, SealedCodec},
    http::recorded::Recorded,
    plan::{Claimed, Plan},
    serve::Call,
    settings::Settings,
    status::CacheStatus,
};
use crate::{
    accessors::to_call_later,
    cache::Task,
    name::{Name, NameBuf, Named, Target},
};
use pin_project::pin_project;
use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// The service of a [`StampedeCacheLayer`](super::StampedeCacheLayer).
#[derive(Clone, Debug)]
pub struct StampedeCache<S, N = Target, C = Recorded> {
    pub(super) inner: S,
    pub(super) settings: Settings<N, C>,
}

impl<S, N, C> StampedeCache<S, N, C> {
    inner_service_accessors!("Calling it passes by the cache.");
}

/// What comes out of a codec.
type Out<C, Req, Res> = <C as SealedCodec<Req, Res>>::Response;

impl<S, N, C, Req> Service<Req> for StampedeCache<S, N, C>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send + 'static,
    N: Name<Req>,
    C: Codec<Req, S::Response> + Clone + Send + Sync + 'static,
    Out<C, Req, S::Response>: Send + 'static,
    Req: Send + 'static,
{
    type Response = Out<C, Req, S::Response>;
    type Error = S::Error;
    type Future = ResponseFuture<S, C, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        let core = &self.settings.core;
        let mut name = NameBuf::new();
        let asked = core.codec.asked(&request);
        if asked.access == Access::Bypass || self.settings.name.name(&request, &mut name) == Named::Pass {
            let future = self.inner.call(request);
            return ResponseFuture { state: State::Passing { future, codec: core.codec.clone() } };
        }
        let name = name.as_bytes();
        let boxed: Boxed<_, _> = match core.plan(name, &asked) {
            Plan::Hit(answer) => return ResponseFuture { state: State::Hit { answer: Some(answer) } },
            Plan::Refresh(answer, mut computation) => {
                let refreshing: Task = match core.try_claim(&mut computation, name, &asked) {
                    Some(Claimed::Begin) if computation.is_claimed() => {
                        let sent = core.codec.keep(&request);
                        core.codec.for_everyone(&mut request);
                        let leading = core.start(computation, sent, self.inner.call(request));
                        if leading.is_on_its_own() {
                            return ResponseFuture { state: State::Hit { answer: Some(answer) } };
                        }
                        Box::pin(leading.detach())
                    }
                    // Another refreshes it, or has.
                    Some(_) => return ResponseFuture { state: State::Hit { answer: Some(answer) } },
                    None => {
                        let sent = core.codec.keep(&request);
                        let refreshing =
                            core.clone().refresh_later(computation, name.into(), sent, self.later(request));
                        match self.settings.core.in_background(Box::pin(refreshing)) {
                            Ok(()) => return ResponseFuture { state: State::Hit { answer: Some(answer) } },
                            Err(refreshing) => refreshing,
                        }
                    }
                };
                // However that ends, this answer is good.
                Box::pin(async move {
                    refreshing.await;
                    Ok(answer)
                })
            }
            Plan::Lead(mut computation, bridge) => match core.try_claim(&mut computation, name, &asked) {
                Some(Claimed::Begin) => {
                    let sent = core.codec.keep(&request);
                    core.codec.for_everyone(&mut request);
                    let leading = core.start(computation, sent.clone(), self.inner.call(request));
                    let core = core.clone();
                    Box::pin(async move { core.watch(leading, &bridge, &sent).await })
                }
                Some(Claimed::Instead(Plan::Hit(answer))) => {
                    return ResponseFuture { state: State::Hit { answer: Some(answer) } };
                }
                Some(Claimed::Instead(plan)) => self.serve(name.into(), plan, request),
                None => self.serve(name.into(), Plan::Lead(computation, bridge), request),
            },
            Plan::Alone { bridge, marked } => {
                let sent = core.codec.keep(&request);
                let beginning = core.begin(name);
                let computing = self.inner.call(request);
                Box::pin(core.clone().alone(name.into(), sent, (bridge, marked), beginning, computing))
            }
            plan @ Plan::Follow(..) => self.serve(name.into(), plan, request),
        };
        ResponseFuture { state: State::Waiting { boxed } }
    }
}

impl<S, N, C> StampedeCache<S, N, C> {
    /// What has to wait before it knows whether it calls.
    fn serve<Req>(
        &mut self,
        name: Box<[u8]>,
        plan: Plan<Out<C, Req, S::Response>, C::Decoded>,
        request: Req,
    ) -> Boxed<Out<C, Req, S::Response>, S::Error>
    where
        S: Service<Req> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Response: Send,
        S::Error: Send + 'static,
        C: Codec<Req, S::Response> + Clone + Send + Sync + 'static,
        Out<C, Req, S::Response>: Send + 'static,
        Req: Send + 'static,
    {
        let sent = self.settings.core.codec.keep(&request);
        let later = self.later(request);
        Box::pin(self.settings.core.clone().serve(name, sent, plan, later))
    }

    /// The clone asks for its own readiness if it has to call.
    fn later<Req>(&mut self, request: Req) -> Later<S, C, Req>
    where
        S: Clone,
        C: Clone,
    {
        Later { inner: to_call_later(&mut self.inner), codec: self.settings.core.codec.clone(), request }
    }
}

/// A request that may have to be given to the service.
struct Later<S, C, Req> {
    inner: S,
    codec: C,
    request: Req,
}

impl<S, C, Req> Call<S::Response, S::Error> for Later<S, C, Req>
where
    S: Service<Req> + Send + 'static,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send + 'static,
    C: Codec<Req, S::Response> + Send + 'static,
    Req: Send + 'static,
{
    type Computing = S::Future;

    async fn call(self, for_everyone: bool) -> Result<S::Future, S::Error> {
        let Later { mut inner, codec, mut request } = self;
        if for_everyone {
            codec.for_everyone(&mut request);
        }
        poll_fn(|cx| inner.poll_ready(cx)).await?;
        Ok(inner.call(request))
    }
}

type Boxed<Out, Err> = Pin<Box<dyn Future<Output = Result<Out, Err>> + Send>>;

/// The future of a [`StampedeCache`].
#[pin_project]
pub struct ResponseFuture<S, C, Req>
where
    S: Service<Req>,
    C: Codec<Req, S::Response>,
{
    #[pin]
    state: State<S::Future, C, Out<C, Req, S::Response>, S::Error>,
}

#[pin_project(project = StateProj)]
enum State<F, C, Out, Err> {
    Hit {
        answer: Option<Out>,
    },
    Passing {
        #[pin]
        future: F,
        codec: C,
    },
    Waiting {
        boxed: Boxed<Out, Err>,
    },
}

impl<S, C, Req> Future for ResponseFuture<S, C, Req>
where
    S: Service<Req>,
    C: Codec<Req, S::Response>,
{
    type Output = Result<Out<C, Req, S::Response>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Hit { answer } => Poll::Ready(Ok(answer.take().expect("polled after completion"))),
            StateProj::Passing { future, codec } => {
                let response = ready!(future.poll(cx))?;
                Poll::Ready(Ok(codec.pass(response, CacheStatus::Bypassed)))
            }
            StateProj::Waiting { boxed } => boxed.as_mut().poll(cx),
        }
    }
}

impl<S, C, Req> fmt::Debug for ResponseFuture<S, C, Req>
where
    S: Service<Req>,
    C: Codec<Req, S::Response>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
