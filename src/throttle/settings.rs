//! The settings of a throttle, which its layer and its service share.

use super::{policy::Policy, terms::Ask};
use crate::cache::Scope;
use std::time::Duration;

/// The settings of a throttle.
#[derive(Clone, Debug)]
pub(super) struct Settings<N, A, P> {
    pub(super) scope: Scope,
    pub(super) ask: Ask,
    pub(super) name: N,
    pub(super) answer: A,
    pub(super) policy: P,
    pub(super) options: Options,
}

/// What is done about a decision.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// Refuses while the cache cannot be used.
    pub(super) fail_closed: bool,
    /// Lets pass what it would refuse.
    pub(super) shadow: bool,
    /// Refuses some whatever is left.
    pub(super) denies: bool,
}

impl<N, A, P> Settings<N, A, P> {
    pub(super) fn with_name<M>(self, name: M) -> Settings<M, A, P> {
        let Settings { scope, ask, answer, policy, options, .. } = self;
        Settings { scope, ask, name, answer, policy, options }
    }

    pub(super) fn with_answer<B>(self, answer: B) -> Settings<N, B, P> {
        let Settings { scope, ask, name, policy, options, .. } = self;
        Settings { scope, ask, name, answer, policy, options }
    }

    pub(super) fn map_policy<Q>(self, map: impl FnOnce(P) -> Q) -> Settings<N, A, Q> {
        let Settings { scope, ask, name, answer, policy, options } = self;
        Settings { scope, ask, name, answer, policy: map(policy), options }
    }

    /// What is asked for a request.
    pub(super) fn ask_for<Req, Res>(&self, request: &Req) -> Ask
    where
        P: Policy<Req, Res>,
    {
        let ask = match self.policy.limits(request) {
            Some(limits) => self.ask.by(limits),
            None => self.ask.clone(),
        };
        let patience = if self.options.shadow { Duration::ZERO } else { ask.patience };
        Ask { cost: self.policy.cost(request), patience, ..ask }
    }
}
