//! Which requests a throttle counts, how, and what the response changes about it.

use super::{advice::Advice, limit::limits::Limits};
use crate::cache::Scope;
use http::Response;
use std::fmt;

/// Whether a request is counted at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Standing {
    /// It is.
    Counted,
    /// It passes, uncounted.
    Allowed,
    /// It is refused, whatever is left.
    Denied,
}

/// Which requests a throttle counts, how, and what the response changes about it.
///
/// Made by the methods of [`ThrottleLayer`](super::ThrottleLayer) such as [`cost`](super::ThrottleLayer::cost), each of
/// which wraps the policy before it; implement it yourself where closures are not enough, and give it to
/// [`ThrottleLayer::policy`](super::ThrottleLayer::policy).
///
/// ```
/// use http::{Request, Response};
/// use tower_floodgate::{Cache, ThrottleLayer, throttle::{Rate, policy::Policy}};
///
/// /// A request costs what it uploads, in KiB, unless it turns out to be an upload that was there already.
/// #[derive(Clone)]
/// struct Uploads;
///
/// impl<B> Policy<Request<Vec<u8>>, Response<B>> for Uploads {
///     type Kept = ();
///
///     fn keep(&self, _: &Request<Vec<u8>>) {}
///
///     fn cost(&self, request: &Request<Vec<u8>>) -> u32 {
///         u32::try_from(request.body().len().div_ceil(1024)).unwrap_or(u32::MAX)
///     }
///
///     fn settle(&self, (): (), response: &Response<B>) -> Option<u32> {
///         (response.status() == http::StatusCode::NOT_MODIFIED).then_some(0)
///     }
/// }
///
/// # use tower::{Layer, ServiceExt};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let cache = Cache::temporary()?;
/// # let store = tower::service_fn(|_: Request<Vec<u8>>| async { Ok::<_, std::convert::Infallible>(Response::new(String::new())) });
/// let layer = ThrottleLayer::of(cache.scope("store"), Rate::per_minute(1_000)).policy(Uploads);
/// # let service = layer.layer(store);
/// # assert_eq!(service.clone().oneshot(Request::new(vec![0; 900 * 1024])).await?.status(), 200);
/// # assert_eq!(service.oneshot(Request::new(vec![0; 900 * 1024])).await?.status(), 429);
/// # Ok(()) }
/// ```
pub trait Policy<Req, Res> {
    /// What is kept of a request until its response is there.
    type Kept;

    /// Whether it is counted at all: it is, unless said otherwise.
    fn standing(&self, request: &Req) -> Standing {
        let _ = request;
        Standing::Counted
    }

    /// The limits of its name; `None`: the layer's own, unless said otherwise.
    fn limits(&self, request: &Req) -> Option<Limits> {
        let _ = request;
        None
    }

    /// Units that it takes of every limit, or is estimated to: 1 unless said otherwise; 0 passes without being counted.
    fn cost(&self, request: &Req) -> u32 {
        let _ = request;
        1
    }

    /// What [`settle`](Policy::settle) wants to know of it.
    fn keep(&self, request: &Req) -> Self::Kept;

    /// What it really cost, as far as the response tells; 0 does not count. `None`: what was taken for it, unless said
    /// otherwise.
    fn settle(&self, kept: Self::Kept, response: &Res) -> Option<u32> {
        let _ = (kept, response);
        None
    }

    /// What it says of the budget that a foreign server gives us. Nothing unless it is written, and heeded only by a layer
    /// that [learns](super::ThrottleLayer::learn).
    fn advice(&self, response: &Res) -> Option<Advice> {
        let _ = response;
        None
    }
}

/// Every request is counted, and costs 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flat;

impl<Req, Res> Policy<Req, Res> for Flat {
    type Kept = ();

    fn keep(&self, _: &Req) {}
}

/// What a policy around another leaves to that one.
macro_rules! inner {
    (standing) => {
        fn standing(&self, request: &Req) -> Standing {
            self.inner.standing(request)
        }
    };
    (limits) => {
        fn limits(&self, request: &Req) -> Option<Limits> {
            self.inner.limits(request)
        }
    };
    (cost) => {
        fn cost(&self, request: &Req) -> u32 {
            self.inner.cost(request)
        }
    };
    (keep) => {
        type Kept = P::Kept;

        fn keep(&self, request: &Req) -> P::Kept {
            self.inner.keep(request)
        }
    };
    (settle) => {
        fn settle(&self, kept: Self::Kept, response: &Res) -> Option<u32> {
            self.inner.settle(kept, response)
        }
    };
    (advice) => {
        fn advice(&self, response: &Res) -> Option<Advice> {
            self.inner.advice(response)
        }
    };
}

macro_rules! wrappers {
    ($($(#[$doc:meta])+ $Name:ident;)+) => {$(
        $(#[$doc])+
        #[derive(Clone, Copy)]
        pub struct $Name<P, F> {
            pub(super) inner: P,
            pub(super) f: F,
        }

        impl<P: fmt::Debug, F> fmt::Debug for $Name<P, F> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($Name)).field("inner", &self.inner).finish_non_exhaustive()
            }
        }
    )+};
}

wrappers! {
    /// See [`ThrottleLayer::cost`](super::ThrottleLayer::cost).
    Costing;
    /// See [`ThrottleLayer::rate_of`](super::ThrottleLayer::rate_of).
    RateOf;
    /// See [`ThrottleLayer::allow`](super::ThrottleLayer::allow).
    Allowing;
    /// See [`ThrottleLayer::deny`](super::ThrottleLayer::deny).
    Denying;
    /// See [`ThrottleLayer::settle`](super::ThrottleLayer::settle).
    Settling;
    /// See [`ThrottleLayer::refund_if`](super::ThrottleLayer::refund_if).
    Refunding;
    /// See [`ThrottleLayer::learn_by`](super::ThrottleLayer::learn_by).
    LearningBy;
}

impl<P: Policy<Req, Res>, F: Fn(&Req) -> u32, Req, Res> Policy<Req, Res> for Costing<P, F> {
    fn cost(&self, request: &Req) -> u32 {
        (self.f)(request)
    }

    inner!(standing);
    inner!(limits);
    inner!(keep);
    inner!(settle);
    inner!(advice);
}

impl<P: Policy<Req, Res>, F: Fn(&Req) -> L, L: Into<Limits>, Req, Res> Policy<Req, Res> for RateOf<P, F> {
    fn limits(&self, request: &Req) -> Option<Limits> {
        Some((self.f)(request).into())
    }

    inner!(standing);
    inner!(cost);
    inner!(keep);
    inner!(settle);
    inner!(advice);
}

impl<P: Policy<Req, Res>, F: Fn(&Req) -> bool, Req, Res> Policy<Req, Res> for Allowing<P, F> {
    fn standing(&self, request: &Req) -> Standing {
        match self.inner.standing(request) {
            Standing::Counted if (self.f)(request) => Standing::Allowed,
            standing => standing,
        }
    }

    inner!(limits);
    inner!(cost);
    inner!(keep);
    inner!(settle);
    inner!(advice);
}

impl<P: Policy<Req, Res>, F: Fn(&Req) -> bool, Req, Res> Policy<Req, Res> for Denying<P, F> {
    // A request on both lists is denied, in whatever order they were given.
    fn standing(&self, request: &Req) -> Standing {
        if (self.f)(request) { Standing::Denied } else { self.inner.standing(request) }
    }

    inner!(limits);
    inner!(cost);
    inner!(keep);
    inner!(settle);
    inner!(advice);
}

impl<P: Policy<Req, Res>, K, T, F, Req, Res> Policy<Req, Res> for Settling<P, (K, F)>
where
    K: Fn(&Req) -> T,
    F: Fn(T, &Res) -> u32,
{
    type Kept = (P::Kept, T);

    fn keep(&self, request: &Req) -> Self::Kept {
        (self.inner.keep(request), (self.f.0)(request))
    }

    // What does not count does not, in whatever order that was said.
    fn settle(&self, (inner, kept): Self::Kept, response: &Res) -> Option<u32> {
        match self.inner.settle(inner, response) {
            Some(0) => Some(0),
            _ => Some((self.f.1)(kept, response)),
        }
    }

    inner!(standing);
    inner!(limits);
    inner!(cost);
    inner!(advice);
}

impl<P: Policy<Req, Res>, F: Fn(&Res) -> bool, Req, Res> Policy<Req, Res> for Refunding<P, F> {
    fn settle(&self, kept: P::Kept, response: &Res) -> Option<u32> {
        if (self.f)(response) { Some(0) } else { self.inner.settle(kept, response) }
    }

    inner!(standing);
    inner!(limits);
    inner!(cost);
    inner!(keep);
    inner!(advice);
}

/// See [`ThrottleLayer::learn`](super::ThrottleLayer::learn).
#[derive(Clone, Debug)]
pub struct Learning<P> {
    pub(super) inner: P,
    /// Tells the time where an answer has no date.
    pub(super) scope: Scope,
}

impl<P: Policy<Req, Response<B>>, Req, B> Policy<Req, Response<B>> for Learning<P> {
    type Kept = P::Kept;

    fn standing(&self, request: &Req) -> Standing {
        self.inner.standing(request)
    }

    fn limits(&self, request: &Req) -> Option<Limits> {
        self.inner.limits(request)
    }

    fn cost(&self, request: &Req) -> u32 {
        self.inner.cost(request)
    }

    fn keep(&self, request: &Req) -> P::Kept {
        self.inner.keep(request)
    }

    fn settle(&self, kept: P::Kept, response: &Response<B>) -> Option<u32> {
        self.inner.settle(kept, response)
    }

    fn advice(&self, response: &Response<B>) -> Option<Advice> {
        Some(Advice::read_at(response.status(), response.headers(), self.scope.handle().wall()))
    }
}

impl<P: Policy<Req, Res>, F: Fn(&Res) -> Advice, Req, Res> Policy<Req, Res> for LearningBy<P, F> {
    fn advice(&self, response: &Res) -> Option<Advice> {
        Some((self.f)(response))
    }

    inner!(standing);
    inner!(limits);
    inner!(cost);
    inner!(keep);
    inner!(settle);
}
