//! The answers of services that are not HTTP: [`Fail`], and [`Patient`] for throttles that never refuse.

use super::traits::{Admission, Answer};
use crate::rejection::Rejection;
use std::ops::ControlFlow;

/// An error of the service's own kind, made from the [`Rejection`]: for services that are not HTTP.
///
/// The error must be `From<Rejection>`, as [`tower::BoxError`] is: `.map_err(BoxError::from)` below the layer makes it one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fail;

impl<Req, Res, Err: From<Rejection>> Answer<Req, Res, Err> for Fail {
    type Response = Res;

    fn admit(&self, response: Res, _: Admission) -> Res {
        response
    }

    fn refuse(&self, _: &Req, why: Rejection) -> ControlFlow<Result<Res, Err>> {
        ControlFlow::Break(Err(why.into()))
    }
}

/// Never refuses, so response and error types are left alone; see
/// [`ThrottleLayer::wait`](crate::throttle::ThrottleLayer::wait).
#[derive(Clone, Copy, Debug)]
pub struct Patient {
    // Only a throttle that cannot refuse may have it: under a barrier it would mean no lock.
    _made_by_wait: (),
}

impl Patient {
    pub(crate) fn new() -> Self {
        Patient { _made_by_wait: () }
    }
}

impl<Req, Res, Err> Answer<Req, Res, Err> for Patient {
    type Response = Res;

    fn admit(&self, response: Res, _: Admission) -> Res {
        response
    }

    fn refuse(&self, _: &Req, _: Rejection) -> ControlFlow<Result<Res, Err>> {
        ControlFlow::Continue(())
    }
}
