//! What becomes of a request: hit, lead, follow, refresh, or alone.

use super::{
    codec::{Access, Asked, Gone, Kept, Recorded, Replay, Terms, sealed::Codec},
    layer::Core,
    status::CacheStatus,
    xfetch,
};
use crate::{
    cache::{Entry, Event, Flight, Key, Kind, Landing, Lead, Life, Pending, Place, Slot, TAGS_MAX, after},
    error::Error,
};
use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tower_service::Service;

/// How long it is remembered that the answers of a name may not be stored, so that nobody waits for one in vain.
const PASS: Duration = Duration::from_secs(5);
/// Failed computations that a request waits for before it no longer waits for others.
const FAILURES: u32 = 3;

/// What is to be done about a request.
pub(super) enum Plan<Out> {
    /// It is answered; and with a claim, the answer is to be refreshed.
    Hit(Out, Option<Claim>),
    /// It computes the answer for all who want it.
    Lead(Claim),
    /// Another is computing the answer.
    Follow(Arc<Flight>),
    /// It is served by the service, for itself.
    Alone,
}

/// The right to compute and store the answer of a name.
pub(super) struct Claim {
    lead: Lead,
    place: Located,
}

/// When a computation began, by the clock and by the purges.
pub(super) struct Beginning {
    key: Key,
    at: u64,
    sequence: Result<u64, Error>,
}

/// Why nothing is stored where something could be.
const CACHE_FAILED: &str = "cache-failed";

/// Where an answer is kept.
#[derive(Clone)]
struct Located {
    key: Key,
    name: Box<[u8]>,
    /// The key of the name without a variant, where this is one.
    of: Option<(Key, Box<[u8]>)>,
    variant: Vec<u8>,
}

/// What a leader gets from its own computation, or the panic that ended it.
type Seated<Out, Err> = Result<Result<Out, Err>, Box<dyn Any + Send>>;

impl<C> Core<C> {
    /// Decides what to do about a request. An error of the cache is a reason to go alone.
    pub(super) fn plan<Req, Res>(&self, name: &[u8], asked: &Asked<'_, C::Head>) -> Plan<C::Response>
    where
        C: Codec<Req, Res>,
    {
        self.try_plan(name, asked).unwrap_or_else(|_| {
            self.scope.note(Event::CacheFailed);
            Plan::Alone
        })
    }

    fn try_plan<Req, Res>(&self, name: &[u8], asked: &Asked<'_, C::Head>) -> Result<Plan<C::Response>, Error>
    where
        C: Codec<Req, Res>,
    {
        let key = self.key(name);
        let suffix = match self.plan_at(&key, name, asked, || Located::plain(key, name))? {
            Ok(plan) => return Ok(plan),
            Err(suffix) => suffix,
        };
        // What is kept under the plain name answers another variant; ours has a name of its own, and of its own kind:
        // no request's name may spell it.
        let full = [name, &suffix].concat();
        let variant = self.scope.key(Kind::Variant, &full);
        let located = || Located {
            key: variant,
            name: full.as_slice().into(),
            of: Some((key, name.into())),
            variant: suffix.clone(),
        };
        Ok(self.plan_at(&variant, &full, asked, located)?.unwrap_or(Plan::Alone))
    }

    /// As `plan`, for one key; or the variant that the request wants instead.
    fn plan_at<Req, Res>(
        &self,
        key: &Key,
        name: &[u8],
        asked: &Asked<'_, C::Head>,
        located: impl Fn() -> Located,
    ) -> Result<Result<Plan<C::Response>, Vec<u8>>, Error>
    where
        C: Codec<Req, Res>,
    {
        let sequence = match self.scope.entry(key, name)? {
            Ok((entry, now)) => match self.replay(&entry, asked, now, |ttl| CacheStatus::Hit { ttl }) {
                Replay::Answer(answer) => {
                    return Ok(Ok(self.hit(key, name, (&entry, now), asked.access, answer, located)?));
                }
                Replay::Other(suffix) => return Ok(Err(suffix)),
                Replay::Unusable => self.scope.sequence(key)?,
            },
            Err(sequence) => sequence,
        };
        let flights = &self.scope.handle().shared.flights;
        if asked.access == Access::Personal || flights.passes(&key.hash, self.now()) {
            return Ok(Ok(Plan::Alone));
        }
        Ok(Ok(match flights.board(key.hash, sequence, self.now()) {
            Place::Follow(flight) => Plan::Follow(flight),
            Place::Lead(lead) => {
                // Whoever wins a claim looks once more: the one before may have stored just now.
                if let Ok((entry, now)) = self.scope.entry(key, name)? {
                    match self.replay(&entry, asked, now, |ttl| CacheStatus::Hit { ttl }) {
                        Replay::Answer(answer) => {
                            self.scope.note(Event::Hit);
                            return Ok(Ok(Plan::Hit(answer, None)));
                        }
                        Replay::Other(suffix) => return Ok(Err(suffix)),
                        Replay::Unusable => {}
                    }
                }
                self.scope.note(Event::Miss);
                Plan::Lead(Claim { lead, place: located() })
            }
            // Not on disk yet, so a purge has to be looked for here.
            Place::Landed(Landing::Kept(entry)) if self.scope.is_current(key, &entry)? => {
                match self.replay(&entry, asked, self.now(), |ttl| CacheStatus::Hit { ttl }) {
                    Replay::Answer(answer) => {
                        self.scope.note(Event::Hit);
                        Plan::Hit(answer, None)
                    }
                    Replay::Other(suffix) => return Ok(Err(suffix)),
                    Replay::Unusable => Plan::Alone,
                }
            }
            Place::Landed(_) => Plan::Alone,
        }))
    }

    /// A hit, which XFetch may choose to refresh the answer.
    fn hit<Out>(
        &self,
        key: &Key,
        name: &[u8],
        (entry, now): (&Entry, u64),
        access: Access,
        answer: Out,
        located: impl Fn() -> Located,
    ) -> Result<Plan<Out>, Error> {
        self.scope.note(Event::Hit);
        let (remaining, cost) = (remaining(entry, now), Duration::from_nanos(entry.cost));
        let flights = &self.scope.handle().shared.flights;
        // What a request gets that says who is asking may be for it alone.
        if access == Access::Personal
            || !xfetch::refresh_early(remaining, cost, self.beta, rand::random())
            || flights.passes(&key.hash, now)
        {
            return Ok(Plan::Hit(answer, None));
        }
        let claim = match flights.board(key.hash, self.scope.sequence(key)?, now) {
            Place::Lead(lead) => {
                let again = self.scope.entry(key, name)?;
                let unchanged = again.is_ok_and(|(again, _)| again.life == entry.life);
                unchanged.then(|| Claim { lead, place: located() })
            }
            Place::Follow(_) | Place::Landed(_) => None,
        };
        if claim.is_some() {
            self.scope.note(Event::Refreshed);
        }
        Ok(Plan::Hit(answer, claim))
    }

    fn now(&self) -> u64 {
        self.scope.handle().now()
    }

    fn replay<Req, Res>(
        &self,
        entry: &Entry,
        asked: &Asked<'_, C::Head>,
        now: u64,
        status: impl FnOnce(Duration) -> CacheStatus,
    ) -> Replay<C::Response>
    where
        C: Codec<Req, Res>,
    {
        let since = Duration::from_nanos(now.saturating_sub(entry.life.stored));
        self.codec.replay(&entry.payload, asked, since, status(remaining(entry, now)))
    }

    fn terms(&self, variants: bool) -> Terms {
        // One more is that of a variant.
        let tags = TAGS_MAX - 1 - self.tags.len();
        let wall = self.scope.handle().wall();
        Terms { default_life: self.life, wall, largest: self.scope.largest(), tags, variants }
    }

    fn entry(&self, kept: Kept, sequence: u64, began: u64, of: Option<&Key>) -> Entry {
        let now = self.now();
        let named = kept.tags.iter().map(|tag| self.scope.tag(tag));
        Entry {
            life: Life::without_grace(now, after(now, kept.life)),
            cost: now.saturating_sub(began),
            spread: 0,
            sequence,
            scope: self.scope.id(),
            tags: self.tags.iter().copied().chain(of.map(Key::own_tag)).chain(named).collect(),
            payload: kept.payload,
        }
    }

    /// To be called before the service is: a service may compute before its future is polled, and a purge come between.
    pub(super) fn begin(&self, name: &[u8]) -> Beginning {
        let key = self.key(name);
        Beginning { key, at: self.now(), sequence: self.scope.sequence(&key) }
    }

    /// Serves one request by its own computation; what may be kept is.
    pub(super) async fn alone<Req, Res, Err>(
        &self,
        name: &[u8],
        asked: Gone<C::Head>,
        beginning: Beginning,
        computing: impl Future<Output = Result<Res, Err>>,
    ) -> Result<C::Response, Err>
    where
        C: Codec<Req, Res>,
    {
        let response = computing.await?;
        let Beginning { key, at, sequence: Ok(sequence) } = beginning else {
            return Ok(self.codec.pass(response, CacheStatus::NotStored { reason: CACHE_FAILED }));
        };
        // A variant finds its place only by what is kept under the plain name, which is for leaders to change.
        let terms = self.terms(false);
        let Recorded { response, kept } = self.codec.record(response, &asked.asked(), terms).await;
        let status = match kept {
            Ok(kept) => {
                self.scope.handle().shared.flights.pass_no_more(&key.hash);
                let ttl = kept.life;
                self.store(key, name, self.entry(kept, sequence, at, None), ttl).await
            }
            Err(reason) => {
                self.scope.note(Event::NotStored);
                CacheStatus::NotStored { reason }
            }
        };
        Ok(self.codec.tell(response, status))
    }

    /// Runs a computation to its end, whoever waits for it: as a task of its own, or within the future returned.
    pub(super) fn fly<Req, Res, Err, F>(
        &self,
        claim: Claim,
        asked: Gone<C::Head>,
        computing: F,
    ) -> Flying<C::Response, Err>
    where
        C: Codec<Req, Res> + Clone + Send + Sync + 'static,
        C::Response: Send + 'static,
        F: Future<Output = Result<Res, Err>> + Send + 'static,
        Res: Send,
        Err: Send + 'static,
    {
        let seat = Seat(Slot::new());
        let pending = Pending::Queued(seat.0.clone());
        let (core, handle, began) = (self.clone(), self.scope.handle().clone(), self.now());
        let flight = async move { core.compute(claim, began, asked, computing, seat).await };
        match handle.spawn(Box::pin(flight)) {
            Ok(()) => Flying { task: None, pending },
            Err(task) => Flying { task: Some(task), pending },
        }
    }

    async fn compute<Req, Res, Err>(
        self,
        claim: Claim,
        began: u64,
        asked: Gone<C::Head>,
        computing: impl Future<Output = Result<Res, Err>> + Send,
        seat: Seat<C::Response, Err>,
    ) where
        C: Codec<Req, Res>,
    {
        let Claim { lead, place } = claim;
        let recording = async { Ok(self.codec.record(computing.await?, &asked.asked(), self.terms(true)).await) };
        let Recorded { response, kept } = match caught(recording).await {
            Ok(Ok(recorded)) => recorded,
            Ok(Err(error)) => {
                drop(lead);
                return seat.0.fill(Ok(Err(error)));
            }
            Err(panic) => {
                drop(lead);
                return seat.0.fill(Err(panic));
            }
        };
        let kept = match kept {
            Ok(kept) => kept,
            Err(reason) => {
                self.scope.note(Event::NotStored);
                if !matches!(reason, "failure" | "grpc-status" | "body-failed") {
                    let now = self.now();
                    self.scope.handle().shared.flights.pass_until(place.key.hash, after(now, PASS), now);
                }
                lead.land(Landing::NotKept);
                let response = self.codec.tell(response, CacheStatus::NotStored { reason });
                return seat.0.fill(Ok(Ok(response)));
            }
        };
        let ttl = kept.life;
        let (key, name, of) = place.for_variant(kept.variant.as_deref());
        let entry = self.entry(kept, lead.sequence(), began, of.as_ref());
        lead.land(Landing::Kept(entry.clone()));
        let status = self.store(key, &name, entry, ttl).await;
        seat.0.fill(Ok(Ok(self.codec.tell(response, status))));
    }

    /// Resolves after the commit: what a response says is stored must be there for all processes, and survive this one.
    async fn store(&self, key: Key, name: &[u8], entry: Entry, ttl: Duration) -> CacheStatus {
        let committed = self.scope.commit(key, name, entry).await;
        self.scope.note(if committed.is_ok() { Event::Stored } else { Event::CacheFailed });
        match committed {
            Ok(()) => CacheStatus::Stored { ttl },
            Err(_) => CacheStatus::NotStored { reason: CACHE_FAILED },
        }
    }

    /// Waits for another's computation, and goes on from how it ended.
    pub(super) async fn follow<S, Req>(
        self,
        name: Box<[u8]>,
        flight: Arc<Flight>,
        mut inner: S,
        mut request: Req,
    ) -> Result<C::Response, S::Error>
    where
        S: Service<Req>,
        S::Future: Send + 'static,
        S::Response: Send,
        S::Error: Send + 'static,
        C: Codec<Req, S::Response> + Clone + Send + Sync + 'static,
        C::Response: Send + 'static,
    {
        let mut flight = flight;
        let mut failures = 0;
        loop {
            let plan = match flight.landing().await {
                Landing::Kept(entry) => {
                    match self
                        .replay(&entry, &self.codec.asked(&request), self.now(), |ttl| CacheStatus::Collapsed { ttl })
                    {
                        Replay::Answer(answer) => {
                            self.scope.note(Event::Followed);
                            return Ok(answer);
                        }
                        Replay::Other(_) => self.plan(&name, &self.codec.asked(&request)),
                        Replay::Unusable => Plan::Alone,
                    }
                }
                Landing::NotKept => Plan::Alone,
                Landing::Failed => {
                    failures += 1;
                    // A service that fails slowly must not be asked by one after the other.
                    if failures < FAILURES { self.plan(&name, &self.codec.asked(&request)) } else { Plan::Alone }
                }
            };
            match plan {
                Plan::Hit(answer, claim) => {
                    drop(claim);
                    return Ok(answer);
                }
                Plan::Follow(next) => flight = next,
                Plan::Lead(claim) => {
                    poll_fn(|cx| inner.poll_ready(cx)).await?;
                    let asked = self.codec.asked(&request).kept();
                    self.codec.for_everyone(&mut request);
                    return self.fly(claim, asked, inner.call(request)).await;
                }
                Plan::Alone => {
                    poll_fn(|cx| inner.poll_ready(cx)).await?;
                    let (asked, beginning) = (self.codec.asked(&request).kept(), self.begin(&name));
                    return self.alone(&name, asked, beginning, inner.call(request)).await;
                }
            }
        }
    }
}

fn remaining(entry: &Entry, now: u64) -> Duration {
    Duration::from_nanos(entry.life.fresh.saturating_sub(now))
}

impl Located {
    fn plain(key: Key, name: &[u8]) -> Self {
        Located { key, name: name.into(), of: None, variant: Vec::new() }
    }

    /// Where an answer of this variant goes: to the place it was computed for, or under the plain name if the response
    /// turned out to vary by other fields than the one kept there.
    fn for_variant(self, variant: Option<&[u8]>) -> (Key, Box<[u8]>, Option<Key>) {
        match self.of {
            Some((of, _)) if variant == Some(&self.variant) => (self.key, self.name, Some(of)),
            Some((of, name)) => (of, name, None),
            None => (self.key, self.name, None),
        }
    }
}

/// A leader's seat; left empty, it says so.
struct Seat<Out, Err>(Arc<Slot<Seated<Out, Err>>>);

impl<Out, Err> Drop for Seat<Out, Err> {
    fn drop(&mut self) {
        self.0.fill(Err(Box::new("the executor dropped a computation that a request was waiting for")));
    }
}

/// The leader's wait for its own computation.
pub(super) struct Flying<Out, Err> {
    /// The computation, where nothing else runs it.
    task: Option<crate::cache::Task>,
    pending: Pending<Seated<Out, Err>>,
}

impl<Out, Err> Flying<Out, Err> {
    /// Whether the computation goes on without this.
    pub(super) fn is_on_its_own(&self) -> bool {
        self.task.is_none()
    }

    /// Does what nothing else does, and forgets the answer.
    pub(super) async fn forgotten(self) {
        drop(self.pending);
        if let Some(task) = self.task {
            task.await;
        }
    }
}

impl<Out, Err> Future for Flying<Out, Err> {
    type Output = Result<Out, Err>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        if let Some(task) = &mut self.task
            && task.as_mut().poll(cx).is_ready()
        {
            self.task = None;
        }
        Pin::new(&mut self.pending).poll(cx).map(|seated| seated.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

/// Runs a future and catches its panic.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T, Box<dyn Any + Send>> {
    let mut future = std::pin::pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => std::task::Poll::Ready(Err(panic)),
    })
    .await
}
