//! The stampede cache's service and its future.

use super::{
    codec::{Access, Codec, sealed},
    fill::Plan,
    http_codec::Buffered,
    layer::StampedeCacheLayer,
    status::CacheStatus,
};
use crate::{
    accessors::to_call_later,
    name::{Name, NameBuf, Named, Target},
};
use pin_project::pin_project;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tower_service::Service;

/// The service of a [`StampedeCacheLayer`].
#[derive(Clone, Debug)]
pub struct StampedeCache<S, N = Target, C = Buffered> {
    pub(super) inner: S,
    pub(super) layer: StampedeCacheLayer<N, C>,
}

impl<S, N, C> StampedeCache<S, N, C> {
    inner_service_accessors!("Calling it passes by the cache.");
}

/// What comes out of a codec.
type Out<C, Req, Res> = <C as sealed::Codec<Req, Res>>::Response;

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
        let core = &self.layer.core;
        let mut name = NameBuf::new();
        let asked = core.codec.asked(&request);
        if asked.access == Access::Bypass || self.layer.name.name(&request, &mut name) == Named::Pass {
            let future = self.inner.call(request);
            return ResponseFuture { state: State::Passing { future, codec: core.codec.clone() } };
        }
        let name = name.as_bytes();
        let boxed: Boxed<_, _> = match core.plan(name, &asked) {
            Plan::Hit(answer, None) => return ResponseFuture { state: State::Hit { answer: Some(answer) } },
            Plan::Hit(answer, Some(claim)) => {
                let asked = asked.kept();
                core.codec.for_everyone(&mut request);
                let refreshing = core.fly(claim, asked, self.inner.call(request));
                if refreshing.is_on_its_own() {
                    return ResponseFuture { state: State::Hit { answer: Some(answer) } };
                }
                // However that ends, this answer is good.
                Box::pin(async move {
                    refreshing.forgotten().await;
                    Ok(answer)
                })
            }
            Plan::Lead(claim) => {
                let asked = asked.kept();
                core.codec.for_everyone(&mut request);
                Box::pin(core.fly(claim, asked, self.inner.call(request)))
            }
            Plan::Follow(flight) => {
                // The clone asks for its own readiness if it has to call.
                let following = core.clone().follow(name.into(), flight, to_call_later(&mut self.inner), request);
                Box::pin(following)
            }
            Plan::Alone => {
                let (core, name, asked) = (core.clone(), Box::<[u8]>::from(name), asked.kept());
                let beginning = core.begin(&name);
                let computing = self.inner.call(request);
                Box::pin(async move { core.alone(&name, asked, beginning, computing).await })
            }
        };
        ResponseFuture { state: State::Waiting { boxed } }
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
