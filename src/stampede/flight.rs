//! A computation from its begin to its outcome: recorded, stored, shared with all that wait.

use super::{
    codec::{Codec, Ended, Kept, Kind, NotKept, Recording, SentRequest, Terms, Verdict},
    core::{Bridge, Core, Stored},
    leading::{LeaderOutcome, LeaderSlot, Leading},
    marks::Mark,
    plan::Computation,
    status::CacheStatus,
    xfetch::Cost,
};
use crate::{
    error::Error,
    store::{Edit, Entry, Event, Key, LONGEST_FLIGHT, Life, Outcome, SharedValue},
};
use hyper::body::Bytes;
use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

/// Why nothing is stored where something could be.
const CACHE_FAILED: &str = "cache-failed";
const QUEUE_FULL: &str = "queue-full";

/// When a computation began, by the clock and by the purge sequence.
pub(super) struct Beginning {
    key: Key,
    at: u64,
    sequence: Result<u64, Error>,
}

impl<C> Core<C> {
    fn terms(&self, variants: bool) -> Terms {
        let wall = self.scope.handle().wall();
        let (lives, largest, tags) = (self.lives, self.scope.largest(), self.tags_left());
        // A request that goes alone has no followers.
        Terms { lives, wall, largest, tags, variants, share_failures: self.share_failures && variants }
    }

    /// To be called before the service is called. A service may compute before its future is polled, and a purge may
    /// come between.
    pub(super) fn begin(&self, name: &[u8]) -> Beginning {
        let key = self.key(name);
        Beginning { key, at: self.now(), sequence: self.scope.purge_sequence(&key) }
    }

    /// Waits for a service within the hard timeout.
    async fn in_time<T>(&self, computing: impl Future<Output = T>) -> Option<T> {
        let Some(patience) = self.hard_timeout else { return Some(computing.await) };
        let (mut computing, mut over) = (pin!(computing), self.sleep(patience));
        poll_fn(|cx| match computing.as_mut().poll(cx) {
            Poll::Ready(computed) => Poll::Ready(Some(computed)),
            Poll::Pending => over.as_mut().poll(cx).map(|()| None),
        })
        .await
    }

    /// Serves one request by a computation of its own, and keeps the answer if it may be kept.
    pub(super) async fn alone<Req, Res, Err>(
        self,
        name: Box<[u8]>,
        sent: SentRequest<C::Kept>,
        (bridge, marked): (Bridge<C::Decoded>, bool),
        beginning: Beginning,
        computing: impl Future<Output = Result<Res, Err>>,
    ) -> Result<C::Response, Err>
    where
        C: Codec<Req, Res> + Clone + Send + Sync + 'static,
        C::Response: Send + 'static,
    {
        let bridged = || self.bridged(&bridge, &self.codec.of_sent(&sent));
        let response = match self.in_time(computing).await {
            Some(Ok(response)) => response,
            Some(Err(error)) => return bridged().ok_or(error),
            None => return Ok(bridged().or_else(|| self.timed_out()).expect("only codecs that can say so give up")),
        };
        let Beginning { key, at, sequence: Ok(sequence) } = beginning else {
            return Ok(self.codec.pass(response, CacheStatus::NotStored { reason: CACHE_FAILED }));
        };
        // No variants: they are found by what is kept under the plain name, which only leaders change.
        let Recording { response, verdict } = self.codec.record(response, sent.clone(), self.terms(false)).await;
        let streaming = match verdict {
            Verdict::Known(Err(NotKept { kind: Kind::Failure, reason, .. })) => {
                self.scope.note(Event::NotStored);
                let own = || self.codec.with_status(response, CacheStatus::NotStored { reason });
                return Ok(bridged().unwrap_or_else(own));
            }
            Verdict::Known(kept) => {
                let status = self.store_own(key, &name, kept, (sequence, at), marked).await;
                return Ok(self.codec.with_status(response, status));
            }
            Verdict::Streaming(streaming) => streaming,
        };
        let response = self.codec.with_status(response, streaming.status);
        let core = self.clone();
        let recording = self.on_its_own(Box::pin(async move {
            let Ended { kept, end } = streaming.ended.await;
            core.store_own(key, &name, kept, (sequence, at), marked).await;
            drop(end);
        }));
        Ok(match recording {
            Ok(()) => response,
            Err(recording) => self.codec.drive(response, recording),
        })
    }

    /// Stores what one request has computed for itself.
    async fn store_own(
        &self,
        key: Key,
        name: &[u8],
        kept: Result<Kept, NotKept>,
        (sequence, began): (u64, u64),
        marked: bool,
    ) -> CacheStatus {
        match kept {
            Ok(kept) => {
                let ttl = kept.lives.fresh;
                let status = self.store(key, name, self.entry(kept, sequence, (began, None), None), ttl).await;
                if marked {
                    self.clear_mark(&key).await;
                }
                status
            }
            Err(NotKept { reason, .. }) => {
                self.scope.note(Event::NotStored);
                CacheStatus::NotStored { reason }
            }
        }
    }

    fn timed_out<Req, Res>(&self) -> Option<C::Response>
    where
        C: Codec<Req, Res>,
    {
        let response = self.codec.timed_out()?;
        Some(self.codec.with_status(response, CacheStatus::NotStored { reason: "timeout" }))
    }

    fn entry(&self, kept: Kept, sequence: u64, (began, before): (u64, Option<Cost>), of: Option<&Key>) -> Entry {
        let now = self.now();
        let cost = Cost::after(before, now.saturating_sub(began));
        let named = kept.tags.iter().map(|tag| self.scope.tag(tag));
        Entry {
            life: self.life(kept.lives, now),
            cost: cost.mean,
            spread: cost.spread,
            sequence,
            scope: self.scope.id(),
            tags: self.tags.iter().copied().chain(named).collect(),
            family: of.map_or(0, Key::family),
            payload: kept.payload,
            is_mark: false,
        }
    }

    /// Resolves after the commit: what a response says is stored must be there for all processes, and survive this one.
    ///
    /// Where more is about to be stored than memory should hold, the answer is not.
    async fn store(&self, key: Key, name: &[u8], entry: Entry, ttl: Duration) -> CacheStatus {
        if !self.scope.has_room_for(&key, entry.payload.len()) {
            self.scope.note(Event::NotStored);
            return CacheStatus::NotStored { reason: QUEUE_FULL };
        }
        let committed = self.scope.commit(key, name, entry).await;
        self.scope.note(if committed.is_ok() { Event::Stored } else { Event::CacheFailed });
        match committed {
            Ok(()) => CacheStatus::Stored { ttl },
            Err(_) => CacheStatus::NotStored { reason: CACHE_FAILED },
        }
    }

    /// Runs a computation to its end, as a task of its own or within the future that is returned.
    pub(super) fn start<Req, Res, Err, F>(
        &self,
        computation: Box<Computation>,
        sent: SentRequest<C::Kept>,
        computing: F,
    ) -> Leading<C::Response, Err>
    where
        C: Codec<Req, Res> + Clone + Send + Sync + 'static,
        C::Response: Send + 'static,
        F: Future<Output = Result<Res, Err>> + Send + 'static,
        Res: Send,
        Err: Send + 'static,
    {
        self.scope.note(if computation.is_refresh(self.now()) { Event::Refreshed } else { Event::Miss });
        let (slot, pending) = LeaderSlot::new();
        let (core, began) = (self.clone(), self.now());
        let flight = async move { core.compute(computation, began, sent, computing, slot).await };
        Leading::new(self.on_its_own(Box::pin(flight)).err(), pending)
    }

    async fn compute<Req, Res, Err>(
        self,
        computation: Box<Computation>,
        began: u64,
        sent: SentRequest<C::Kept>,
        computing: impl Future<Output = Result<Res, Err>> + Send,
        slot: LeaderSlot<C::Response, Err>,
    ) where
        C: Codec<Req, Res>,
        Err: 'static,
    {
        let recording = async {
            Some(match self.in_time(computing).await? {
                Ok(response) => Ok(self.codec.record(response, sent, self.terms(true)).await),
                Err(error) => Err(error),
            })
        };
        let (failure, shared) = match caught(recording).await {
            Ok(Some(Ok(Recording { response, verdict }))) => {
                return self.finish(computation, began, response, verdict, slot).await;
            }
            Ok(Some(Err(error))) => {
                let shared = self.error_sharing.as_ref().and_then(|sharing| (sharing.share)(&error));
                (LeaderOutcome::Failure(Err(error)), shared)
            }
            Ok(None) => {
                let response = self.timed_out().expect("only codecs that can say so give up");
                (LeaderOutcome::Failure(Ok(response)), None)
            }
            Err(panic) => (LeaderOutcome::Panic(panic), None),
        };
        slot.fill(failure);
        self.fail(computation, Outcome::Failed(shared)).await;
    }

    /// Shares a failure with the followers. From then on the service is not asked for a while, if there is a stale
    /// answer to serve.
    async fn fail(&self, computation: Box<Computation>, outcome: Outcome) {
        let Computation { claim, lead, place, replaces, mark } = *computation;
        if replaces.is_some() {
            // Followers may have a stale answer to serve. Those without one begin after the pause, which they now see.
            let mark = Mark::after_failure(mark, self.now());
            self.set_mark(&place.key, place.plain_key(), mark, lead.sequence()).await;
        }
        // The next leader must find it free.
        drop(claim);
        lead.finish(outcome);
    }

    async fn finish<Req, Res, Err>(
        &self,
        computation: Box<Computation>,
        began: u64,
        response: C::Response,
        verdict: Verdict,
        slot: LeaderSlot<C::Response, Err>,
    ) where
        C: Codec<Req, Res>,
    {
        let (kept, end, waiting) = match verdict {
            Verdict::Known(kept) => (kept, None, Some((response, slot))),
            Verdict::Streaming(streaming) => {
                let response = self.codec.with_status(response, streaming.status);
                slot.fill(LeaderOutcome::Answer(response));
                if let Some(along) = streaming.along {
                    computation.lead.share(along);
                }
                let Ended { kept, end } = match caught(streaming.ended).await {
                    Ok(ended) => ended,
                    Err(_) => Ended { kept: Err(NotKept::new("body-failed", Kind::Failure)), end: None },
                };
                (kept, end, None)
            }
        };
        let late = self.now().saturating_sub(began) >= LONGEST_FLIGHT;
        match kept {
            Ok(_) if late => {
                computation.lead.finish(Outcome::Failed(None));
                self.answer_leader(waiting, CacheStatus::NotStored { reason: "late" }, LeaderOutcome::Answer);
            }
            Ok(kept) => {
                let (ttl, sequence) = (kept.lives.fresh, computation.lead.sequence());
                let Computation { lead, place, mark, claim, replaces } = *computation;
                let marked = mark.map(|_| place.key);
                let (key, name, of) = place.for_variant(kept.variant.as_deref());
                let entry = self.entry(kept, sequence, (began, replaces.map(|replaced| replaced.cost)), of.as_ref());
                lead.finish(self.outcome(&entry));
                let status = self.store(key, &name, entry, ttl).await;
                if let Some(key) = marked {
                    self.clear_mark(&key).await;
                }
                self.answer_leader(waiting, status, LeaderOutcome::Answer);
                // Only now may the next computation begin.
                drop(claim);
            }
            Err(NotKept { reason, kind, shared }) => {
                self.scope.note(Event::NotStored);
                let status = CacheStatus::NotStored { reason };
                match kind {
                    Kind::Failure => {
                        let outcome = match self.shared_failure(shared, &computation) {
                            Some(shared) => Outcome::Failed(Some(shared)),
                            None => Outcome::NotKept { failed: true },
                        };
                        self.answer_leader(waiting, status, |response| LeaderOutcome::Failure(Ok(response)));
                        self.fail(computation, outcome).await;
                    }
                    Kind::ThisOne => {
                        computation.lead.finish(Outcome::NotKept { failed: false });
                        self.answer_leader(waiting, status, LeaderOutcome::Answer);
                    }
                    Kind::Uncacheable => {
                        computation.lead.finish(Outcome::NotKept { failed: false });
                        self.answer_leader(waiting, status, LeaderOutcome::Answer);
                        let (place, sequence) = (&computation.place, computation.lead.sequence());
                        if !self.uncacheable_for.is_zero() {
                            self.set_mark(&place.key, place.plain_key(), Mark::Uncacheable, sequence).await;
                        }
                        if computation.replaces.is_some() {
                            // An answer that has ended must not be served any more once the service has said otherwise.
                            let end = |fresh: Option<&Entry>, _| {
                                (Ok(()), if fresh.is_some() { Edit::Keep } else { Edit::Remove })
                            };
                            let _ = self.scope.edit(place.key, &place.name, end).await;
                        }
                    }
                }
            }
        }
        drop(end);
    }

    fn answer_leader<Req, Res, Err>(
        &self,
        waiting: Option<(C::Response, LeaderSlot<C::Response, Err>)>,
        status: CacheStatus,
        outcome: impl FnOnce(C::Response) -> LeaderOutcome<C::Response, Err>,
    ) where
        C: Codec<Req, Res>,
    {
        if let Some((response, slot)) = waiting {
            slot.fill(outcome(self.codec.with_status(response, status)));
        }
    }

    fn outcome<Req, Res>(&self, entry: &Entry) -> Outcome
    where
        C: Codec<Req, Res>,
    {
        match self.codec.decode(&entry.payload) {
            Some(decoded) => Outcome::Kept(Arc::new(Stored { entry: entry.clone(), decoded })),
            None => Outcome::NotKept { failed: false },
        }
    }

    /// A failure, as a value for the followers.
    fn shared_failure<Req, Res>(&self, shared: Option<Bytes>, computation: &Computation) -> Option<SharedValue>
    where
        C: Codec<Req, Res>,
    {
        let payload = shared?;
        let decoded = self.codec.decode(&payload)?;
        let (now, sequence) = (self.now(), computation.lead.sequence());
        let life = Life::without_grace(now, now);
        let entry = Entry {
            life,
            cost: 0,
            spread: 0,
            sequence,
            scope: self.scope.id(),
            tags: Vec::new(),
            family: 0,
            payload,
            is_mark: false,
        };
        Some(Arc::new(Stored { entry, decoded }))
    }
}

impl Computation {
    /// Whether there is an answer to serve meanwhile.
    fn is_refresh(&self, now: u64) -> bool {
        self.replaces.is_some_and(|replaced| now < replaced.life.fresh.max(replaced.life.revalidate))
    }
}

/// Runs a future and catches its panic.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}
