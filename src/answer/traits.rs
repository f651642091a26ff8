//! What every answer can do: [`Answer`], and the [`Admission`] that it is given.

use crate::{
    decision::Decision,
    lock::{Guard, Hold},
    rejection::Rejection,
};
use std::ops::ControlFlow;

/// What a layer knows of a request that it let through.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Admission {
    /// What a throttle decided. `None` from a barrier, and where nothing was counted: the request has no name, is
    /// [allowed](crate::ThrottleLayer::allow), or the cache failed.
    pub decision: Option<Decision>,
    /// The lock that is held for the request; it is released when this is dropped.
    pub guard: Option<Guard>,
    /// With what a response that goes on should fail when the lock is lost; `None` lets it go on. See
    /// [`cancel_on_loss`](crate::BarrierLayer::cancel_on_loss).
    pub if_lost: Option<Rejection>,
}

/// How a layer speaks for itself.
pub trait Answer<Req, Res, Err> {
    /// What comes out of the layer.
    type Response;

    /// Called before the inner service is, with what a throttle decided: the place to put it into the request. Does
    /// nothing unless it is written.
    fn mark(&self, request: &mut Req, decision: &Decision) {
        let _ = (request, decision);
    }

    /// Called before the inner service is, with the lock that a barrier holds for the request: the place to put it into
    /// the request. Does nothing unless it is written.
    fn hold(&self, request: &mut Req, hold: &Hold) {
        let _ = (request, hold);
    }

    /// The inner service's response, made into the layer's own.
    fn admit(&self, response: Res, admission: Admission) -> Self::Response;

    /// What a refused request gets: [`ControlFlow::Break`] with it, or [`ControlFlow::Continue`] to let the request pass
    /// after all.
    fn refuse(&self, request: &Req, why: Rejection) -> ControlFlow<Result<Self::Response, Err>>;
}

impl<F, Req, Res, Err> Answer<Req, Res, Err> for F
where
    F: Fn(&Req, Rejection) -> Result<Res, Err>,
{
    type Response = Res;

    fn admit(&self, response: Res, _: Admission) -> Res {
        response
    }

    fn refuse(&self, request: &Req, why: Rejection) -> ControlFlow<Result<Res, Err>> {
        ControlFlow::Break(self(request, why))
    }
}
