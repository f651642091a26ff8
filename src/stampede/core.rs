//! What reading, computing and storing need of a layer.

use super::{
    codec::{Asked, Codec, Replay},
    lives::{Lives, jittered},
    status::CacheStatus,
    xfetch::{Beta, Cost, Standing},
};
use crate::{
    cache::{Scope, Task, after},
    error::Error,
    store::{Entry, Event, Hit, Key, Kind, Life, SharedValue, TAGS_MAX, Weight, block_on, sleep_on_thread},
    time::nanos,
};
use std::{any::Any, future::Future, pin::Pin, sync::Arc, time::Duration};

/// How long a request waits for another's computation, unless said otherwise.
const FOLLOW_AT_MOST: Duration = Duration::from_secs(60);
/// How long it is remembered that the answers of a name may not be stored, unless said otherwise.
const UNCACHEABLE_FOR: Duration = Duration::from_secs(5);

/// What the computations need of a layer.
#[derive(Clone, Debug)]
pub(super) struct Core<C> {
    pub(super) scope: Scope,
    pub(super) kind: Kind,
    pub(super) codec: C,
    /// What applies where a response says nothing.
    pub(super) lives: Lives,
    pub(super) jitter: f64,
    pub(super) beta: Beta,
    pub(super) tags: Arc<[u64]>,
    pub(super) soft_timeout: Option<Duration>,
    pub(super) hard_timeout: Option<Duration>,
    pub(super) follow_at_most: Duration,
    pub(super) uncacheable_for: Duration,
    pub(super) share_failures: bool,
    pub(super) error_sharing: Option<ErrorSharing>,
    pub(super) runs: Runs,
}

/// What runs computations that no request polls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Runs {
    /// The cache's executor, where there is one.
    OnExecutor,
    /// Plain threads, each its own computation.
    OnThreads,
}

/// A stored answer, decoded.
#[derive(Debug)]
pub(super) struct Stored<D> {
    pub(super) entry: Entry,
    pub(super) decoded: D,
}

impl<D: Weight> Weight for Stored<D> {
    fn weight(&self) -> usize {
        self.decoded.weight()
    }
}

/// How errors of a service are shared between requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct ErrorSharing {
    pub(super) share: fn(&dyn Any) -> Option<SharedValue>,
    pub(super) restore: fn(&SharedValue) -> Option<Box<dyn Any>>,
}

struct SharedError<E>(E);

impl ErrorSharing {
    pub(super) fn errors<E: Clone + Send + Sync + 'static>() -> ErrorSharing {
        ErrorSharing {
            share: |error| Some(Arc::new(SharedError(error.downcast_ref::<E>()?.clone()))),
            restore: |shared| Some(Box::new(shared.downcast_ref::<SharedError<E>>()?.0.clone())),
        }
    }
}

impl<C> Core<C> {
    pub(super) fn new(scope: Scope, kind: Kind, life: Duration, codec: C) -> Self {
        Core {
            scope,
            kind,
            codec,
            lives: Lives::without_grace(life),
            jitter: 0.0,
            beta: Beta::Fixed(1.0),
            tags: Arc::new([]),
            soft_timeout: None,
            hard_timeout: None,
            follow_at_most: FOLLOW_AT_MOST,
            uncacheable_for: UNCACHEABLE_FOR,
            share_failures: false,
            error_sharing: None,
            runs: Runs::OnExecutor,
        }
    }

    #[track_caller]
    pub(super) fn set_beta(&mut self, beta: f64) {
        assert!(beta.is_finite() && beta >= 0.0, "beta is a finite number from 0, not {beta}");
        self.beta = Beta::Fixed(beta);
    }

    #[track_caller]
    pub(super) fn set_tuned(&mut self, miss: f64) {
        assert!(miss > 0.0 && miss < 1.0, "the chance of a miss is between 0 and 1, not {miss}");
        self.beta = Beta::Tuned { miss };
    }

    #[track_caller]
    pub(super) fn set_jitter(&mut self, share: f64) {
        assert!((0.0..=1.0).contains(&share), "jitter is a share from 0 to 1, not {share}");
        self.jitter = share;
    }

    #[track_caller]
    pub(super) fn add_tag(&mut self, tag: &str) {
        assert!(self.tags.len() < 16, "a layer has 16 tags at most, so that {tag:?} is one too many");
        self.tags = self.tags.iter().copied().chain([self.scope.tag(tag)]).collect();
    }

    pub(super) fn key(&self, name: &[u8]) -> Key {
        self.scope.key(self.kind, name)
    }

    /// Tags that a response may add.
    pub(super) fn tags_left(&self) -> usize {
        TAGS_MAX - self.tags.len()
    }

    pub(super) fn now(&self) -> u64 {
        self.scope.handle().now()
    }

    pub(super) fn sleep(&self, span: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match self.runs {
            Runs::OnExecutor => Box::pin(self.scope.handle().sleep(span)),
            Runs::OnThreads => Box::pin(sleep_on_thread(span)),
        }
    }

    /// Runs a computation that a request waits for as a task of its own, or gives it back: a plain thread runs it
    /// itself.
    pub(super) fn on_its_own(&self, task: Task) -> Result<(), Task> {
        match self.runs {
            Runs::OnExecutor => self.scope.handle().spawn(task),
            Runs::OnThreads => Err(task),
        }
    }

    /// Runs a computation that no request waits for.
    pub(super) fn in_background(&self, task: Task) -> Result<(), Task> {
        match self.runs {
            Runs::OnExecutor => self.scope.handle().spawn(task),
            Runs::OnThreads => {
                let refresh = std::thread::Builder::new().name("floodgate-refresh".into());
                // If no thread can be started, the next request refreshes it.
                let _ = refresh.spawn(move || block_on(task));
                Ok(())
            }
        }
    }

    /// The times of an answer that is stored now.
    pub(super) fn life(&self, lives: Lives, now: u64) -> Life {
        let fresh = match self.jitter > 0.0 {
            true => jittered(lives.fresh, self.jitter, rand::random()),
            false => lives.fresh,
        };
        let fresh = after(now, fresh);
        let until = |grace| fresh.saturating_add(nanos(grace));
        Life { stored: now, fresh, revalidate: until(lives.revalidate), if_error: until(lives.if_error) }
    }

    /// What is stored under a key, or the purge sequence to carry if it is computed.
    pub(super) fn read<Req, Res>(&self, key: &Key, name: &[u8]) -> Result<Read<C::Decoded>, Error>
    where
        C: Codec<Req, Res>,
    {
        self.scope
            .read(key, name, |entry| Some(Stored { decoded: self.codec.decode(&entry.payload)?, entry: entry.clone() }))
    }

    pub(super) fn replay<Req, Res>(
        &self,
        stored: &Stored<C::Decoded>,
        asked: &Asked<'_, C::Head>,
        now: u64,
        status: impl FnOnce(Duration) -> CacheStatus,
    ) -> Replay<C::Response>
    where
        C: Codec<Req, Res>,
    {
        let Stored { entry, decoded } = stored;
        let since = Duration::from_nanos(now.saturating_sub(entry.life.stored));
        self.codec.replay(&entry.payload, decoded, asked, since, status(fresh_for(&entry.life, now)))
    }

    /// A stored answer that has ended, for a request that cannot have a new one.
    pub(super) fn bridged<Req, Res>(
        &self,
        bridge: &Bridge<C::Decoded>,
        asked: &Asked<'_, C::Head>,
    ) -> Option<C::Response>
    where
        C: Codec<Req, Res>,
    {
        let (stored, now) = (bridge.as_ref()?, self.now());
        let life = &stored.entry.life;
        if life.if_error <= now {
            return None;
        }
        match self.replay(stored, asked, now, |_| CacheStatus::Bridged { over: over_for(life, now) }) {
            Replay::Answer(answer) => {
                self.scope.note(Event::Bridged);
                Some(answer)
            }
            Replay::Other(_) | Replay::Unusable => None,
        }
    }
}

/// What [`Core::read`] finds.
pub(super) type Read<D> = Result<Hit<Stored<D>>, u64>;

/// An answer that has ended, to be served where a new one cannot be had.
pub(super) type Bridge<D> = Option<Arc<Stored<D>>>;

/// What XFetch must know of an answer.
pub(super) fn standing(entry: &Entry, now: u64) -> Standing {
    let life = Duration::from_nanos(entry.life.fresh.saturating_sub(entry.life.stored));
    Standing { remaining: fresh_for(&entry.life, now), life, cost: Cost { mean: entry.cost, spread: entry.spread } }
}

/// How long an answer will be fresh.
pub(super) fn fresh_for(life: &Life, now: u64) -> Duration {
    Duration::from_nanos(life.fresh.saturating_sub(now))
}

/// For how long an answer has not been fresh.
pub(super) fn over_for(life: &Life, now: u64) -> Duration {
    Duration::from_nanos(now.saturating_sub(life.fresh))
}
