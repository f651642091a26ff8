//! The settings of a barrier, which its layer and its service share.

use super::{deadline::Deadline, names};
use crate::{
    cache::Scope,
    lock::{Acquire, LockFactory, LockOptions, clamp_lease},
    name::NameBuf,
};
use std::time::Duration;

/// The settings of a barrier.
#[derive(Clone, Debug)]
pub(super) struct Settings<L, N, A, D> {
    pub(super) lock: L,
    pub(super) name: N,
    pub(super) answer: A,
    pub(super) deadline: D,
    pub(super) scope: Scope,
    pub(super) lock_options: LockOptions,
    pub(super) options: Options,
}

/// What is done about names and failures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// The name is the parts of [`Several`](names::Several).
    pub(super) several: bool,
    pub(super) fail_open: bool,
    pub(super) cancel_on_loss: bool,
}

impl<L, N, A, D> Settings<L, N, A, D> {
    pub(super) fn with_name<M>(self, name: M, several: bool) -> Settings<L, M, A, D> {
        let Settings { lock, answer, deadline, scope, lock_options, options, .. } = self;
        Settings { lock, name, answer, deadline, scope, lock_options, options: Options { several, ..options } }
    }

    pub(super) fn with_answer<B>(self, answer: B) -> Settings<L, N, B, D> {
        let Settings { lock, name, deadline, scope, lock_options, options, .. } = self;
        Settings { lock, name, answer, deadline, scope, lock_options, options }
    }

    pub(super) fn with_deadline<E>(self, deadline: E) -> Settings<L, N, A, E> {
        let Settings { lock, name, answer, scope, lock_options, options, .. } = self;
        Settings { lock, name, answer, deadline, scope, lock_options, options }
    }

    pub(super) fn map_lock<K>(self, map: impl FnOnce(L, Scope) -> K) -> Settings<K, N, A, D> {
        let Settings { lock, name, answer, deadline, scope, lock_options, options } = self;
        Settings { lock: map(lock, scope.clone()), name, answer, deadline, scope, lock_options, options }
    }

    /// The lock, or locks, of a request.
    pub(super) fn acquire<Req>(&self, name: &NameBuf, request: &Req) -> Acquire<L::Rule>
    where
        L: LockFactory<Req>,
        D: Deadline<Req>,
    {
        let remaining = self.deadline.remaining(request).unwrap_or(Duration::MAX);
        let options = LockOptions {
            owner: self.lock.owner(request),
            lease: self.lock.lease(request).map_or(self.lock_options.lease, clamp_lease),
            patience: self.lock_options.patience.min(remaining),
            deadline: remaining,
            ..self.lock_options.clone()
        };
        let (first, more) = self.split(name);
        let first = Acquire::new(&self.scope, first, self.lock.rule(request), options);
        more.fold(first, |acquire, name| acquire.and(name))
    }

    /// The names in the buffer: the first, and more of them.
    fn split<'a>(&self, name: &'a NameBuf) -> (&'a [u8], impl Iterator<Item = &'a [u8]>) {
        let mut parts = names::parts(if self.options.several { name.as_bytes() } else { &[] });
        let first = parts.next().unwrap_or(name.as_bytes());
        (first, parts)
    }
}
