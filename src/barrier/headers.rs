//! What a barrier tells the inner service in headers, and what it takes off requests.

use crate::{
    cache::Scope,
    lock::{Hold, LockFactory, Owner},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use std::time::Duration;

/// A lock whose fencing token goes to the inner service as a header; see
/// [`BarrierLayer::fence_header`](super::BarrierLayer::fence_header).
#[derive(Clone, Debug)]
pub struct FenceHeader<L> {
    pub(super) lock: L,
    pub(super) header: HeaderName,
}

/// A lock whose owner comes as a header; see [`BarrierLayer::owner_header`](super::BarrierLayer::owner_header).
#[derive(Clone, Debug)]
pub struct OwnerHeader<L> {
    pub(super) lock: L,
    pub(super) header: HeaderName,
    pub(super) scope: Scope,
    /// The inner service gets the header, too.
    pub(super) forward: bool,
}

impl<L: LockFactory<Request<B>>, B> LockFactory<Request<B>> for FenceHeader<L> {
    type Rule = L::Rule;

    fn rule(&self, request: &Request<B>) -> L::Rule {
        self.lock.rule(request)
    }

    fn owner(&self, request: &Request<B>) -> Option<Owner> {
        self.lock.owner(request)
    }

    fn arrive(&self, request: &mut Request<B>) {
        request.headers_mut().remove(&self.header);
        self.lock.arrive(request);
    }

    fn hand_over(&self, request: &mut Request<B>, hold: &Hold) {
        put(request.headers_mut(), &self.header, hold.fence().into());
        self.lock.hand_over(request, hold);
    }

    fn lease(&self, request: &Request<B>) -> Option<Duration> {
        self.lock.lease(request)
    }
}

impl<L: LockFactory<Request<B>>, B> LockFactory<Request<B>> for OwnerHeader<L> {
    type Rule = L::Rule;

    fn rule(&self, request: &Request<B>) -> L::Rule {
        self.lock.rule(request)
    }

    fn owner(&self, request: &Request<B>) -> Option<Owner> {
        self.lock.owner(request)
    }

    fn arrive(&self, request: &mut Request<B>) {
        let owner = Owner::from_headers(request.headers(), &self.header, &self.scope);
        request.headers_mut().remove(&self.header);
        if let Some(owner) = owner {
            request.extensions_mut().insert(owner);
        }
        self.lock.arrive(request);
    }

    fn hand_over(&self, request: &mut Request<B>, hold: &Hold) {
        if self.forward {
            put(request.headers_mut(), &self.header, hold.owner().to_header(&self.scope));
        }
        self.lock.hand_over(request, hold);
    }

    fn lease(&self, request: &Request<B>) -> Option<Duration> {
        self.lock.lease(request)
    }
}

/// Adds the header, unless the map is full: it holds at most 32,768 headers.
fn put(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    let _ = headers.try_insert(name.clone(), value);
}
