//! A request on its way to an answer that is not there at once.

use super::{
    codec::{Codec, Gone, Replay},
    core::{Bridge, Core, Stored},
    flight::{Flying, Outcome},
    plan::{Claim, Clearance, Plan, Takeoff},
    status::CacheStatus,
};
use crate::{
    cache::{Event, Flight, Landing, News, Told},
    time::nanos,
};
use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// Failed computations that a request waits for before it no longer waits for others.
const FAILURES: u32 = 3;

/// Calls the service, once it is known what for.
pub(super) trait Call<Res, Err>: Send + 'static {
    type Computing: Future<Output = Result<Res, Err>> + Send + 'static;

    /// Calls it once it is ready: for everyone who wants the answer, or for this request only.
    fn call(self, for_everyone: bool) -> impl Future<Output = Result<Self::Computing, Err>> + Send;
}

/// A wait that may be over.
struct Limit(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Limit {
    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        let over = self.0.as_mut().is_some_and(|limit| limit.as_mut().poll(cx).is_ready());
        if over {
            self.0 = None;
        }
        over
    }
}

/// How a wait has ended.
enum Waited<T> {
    For(T),
    /// There is something to serve meanwhile.
    Bridged,
    TooLong,
}

/// How long to wait for another.
struct Patience<'a, C> {
    core: &'a Core<C>,
    /// Where there is something to serve meanwhile.
    soft: Limit,
    /// In ns of machine time.
    until: u64,
    limit: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<C> Patience<'_, C> {
    /// To be asked while what is waited for is not there.
    fn poll_over<T>(&mut self, cx: &mut Context<'_>) -> Poll<Waited<T>> {
        if self.soft.is_over(cx) {
            return Poll::Ready(Waited::Bridged);
        }
        let (core, until) = (self.core, self.until);
        let left = || core.sleep(Duration::from_nanos(until.saturating_sub(core.now())));
        self.limit.get_or_insert_with(left).as_mut().poll(cx).map(|()| Waited::TooLong)
    }
}

impl<C> Core<C> {
    pub(super) async fn serve<Req, Res, Err>(
        self,
        name: Box<[u8]>,
        gone: Gone<C::Kept>,
        plan: Plan<C::Response, C::Decoded>,
        call: impl Call<Res, Err>,
    ) -> Result<C::Response, Err>
    where
        C: Codec<Req, Res> + Clone + Send + Sync + 'static,
        C::Response: Send + 'static,
        Res: Send,
        Err: Send + 'static,
    {
        let follow_until = self.now().saturating_add(nanos(self.follow_at_most));
        let (mut plan, mut failures) = (plan, 0);
        loop {
            plan = match plan {
                Plan::Hit(answer) | Plan::Refresh(answer, _) => return Ok(answer),
                Plan::Alone { bridge, marked } => {
                    let beginning = self.begin(&name);
                    let computing = async { call.call(false).await?.await };
                    // Boxed: most who come this way wait, and need not have room for what they never do.
                    return Box::pin(self.alone(name, gone, (bridge, marked), beginning, computing)).await;
                }
                Plan::Lead(takeoff, bridge) => {
                    match Box::pin(self.wait_for_claim(takeoff, &name, &gone, &bridge, follow_until)).await {
                        Cleared::Go(takeoff) => {
                            let computing = match Box::pin(call.call(true)).await {
                                Ok(computing) => computing,
                                Err(error) => {
                                    drop(takeoff);
                                    return self.bridged(&bridge, &self.codec.of_gone(&gone)).ok_or(error);
                                }
                            };
                            let flying = self.fly(takeoff, gone.clone(), computing);
                            return Box::pin(self.watch(flying, &bridge, &gone)).await;
                        }
                        Cleared::Answer(answer) => return Ok(answer),
                        Cleared::Instead(plan) => plan,
                    }
                }
                Plan::Follow(flight, bridge) => match self.follow(flight, &bridge, follow_until, &gone).await {
                    Waited::TooLong => Plan::Alone { bridge, marked: false },
                    Waited::Bridged => match self.bridged(&bridge, &self.codec.of_gone(&gone)) {
                        Some(answer) => return Ok(answer),
                        None => Plan::Alone { bridge: None, marked: false },
                    },
                    Waited::For(Heard::Answer(answer)) => {
                        self.scope.note(Event::Followed);
                        return Ok(answer);
                    }
                    Waited::For(Heard::Landing(Landing::Kept(told))) => match self.told_answer(&told, &gone) {
                        Some(Replay::Answer(answer)) => {
                            self.scope.note(Event::Followed);
                            return Ok(answer);
                        }
                        Some(Replay::Other(_)) => self.plan(&name, &self.codec.of_gone(&gone)),
                        Some(Replay::Unusable) | None => Plan::Alone { bridge, marked: false },
                    },
                    Waited::For(Heard::Landing(Landing::NotKept { failed })) => {
                        let bridged = || self.bridged(&bridge, &self.codec.of_gone(&gone));
                        match failed.then(bridged).flatten() {
                            Some(answer) => return Ok(answer),
                            None => Plan::Alone { bridge, marked: false },
                        }
                    }
                    Waited::For(Heard::Landing(Landing::Failed(told))) => {
                        if let Some(answer) = self.bridged(&bridge, &self.codec.of_gone(&gone)) {
                            return Ok(answer);
                        }
                        if let Some(shared) = told.and_then(|told| self.shared(&told, &gone)) {
                            self.scope.note(Event::Followed);
                            return shared;
                        }
                        failures += 1;
                        // A service that fails slowly must not be asked by one after the other.
                        match failures < FAILURES {
                            true => self.plan(&name, &self.codec.of_gone(&gone)),
                            false => Plan::Alone { bridge: None, marked: false },
                        }
                    }
                },
            }
        }
    }

    async fn follow<Req, Res>(
        &self,
        flight: Arc<Flight>,
        bridge: &Bridge<C::Decoded>,
        until: u64,
        gone: &Gone<C::Kept>,
    ) -> Waited<Heard<C::Response>>
    where
        C: Codec<Req, Res>,
    {
        let mut landing = flight.clone().landing(true);
        let mut patience = self.patience(bridge, until);
        poll_fn(|cx| {
            while let Poll::Ready(news) = Pin::new(&mut landing).poll(cx) {
                let told = match news {
                    News::Landed(landing) => return Poll::Ready(Waited::For(Heard::Landing(landing))),
                    News::Recording(told) => told,
                };
                if let Some(answer) = self.codec.read_along(&told, &self.codec.of_gone(gone)) {
                    return Poll::Ready(Waited::For(Heard::Answer(answer)));
                }
                landing = flight.clone().landing(false);
            }
            patience.poll_over(cx)
        })
        .await
    }

    /// Until a time in ns of machine time, or for less where there is something to serve meanwhile.
    fn patience(&self, bridge: &Bridge<impl Sized>, until: u64) -> Patience<'_, C> {
        Patience { core: self, soft: self.soft_limit(bridge), until, limit: None }
    }

    /// How long to wait where there is something to serve meanwhile.
    fn soft_limit(&self, bridge: &Bridge<impl Sized>) -> Limit {
        Limit(self.soft_timeout.filter(|_| bridge.is_some()).map(|patience| self.sleep(patience)))
    }

    fn told_answer<Req, Res>(&self, told: &Told, gone: &Gone<C::Kept>) -> Option<Replay<C::Response>>
    where
        C: Codec<Req, Res>,
    {
        let stored = told.downcast_ref::<Stored<C::Decoded>>()?;
        Some(self.replay(stored, &self.codec.of_gone(gone), self.now(), |ttl| CacheStatus::Collapsed { ttl }))
    }

    /// Another's failure, if it may be shared.
    fn shared<Req, Res, Err>(&self, told: &Told, gone: &Gone<C::Kept>) -> Option<Result<C::Response, Err>>
    where
        C: Codec<Req, Res>,
        Err: 'static,
    {
        if let Some(Replay::Answer(answer)) = self.told_answer(told, gone) {
            return Some(Ok(answer));
        }
        let error = (self.shares.as_ref()?.retell)(told)?;
        error.downcast::<Err>().ok().map(|error| Err(*error))
    }

    async fn wait_for_claim<Req, Res>(
        &self,
        mut takeoff: Box<Takeoff>,
        name: &[u8],
        gone: &Gone<C::Kept>,
        bridge: &Bridge<C::Decoded>,
        until: u64,
    ) -> Cleared<C::Response, C::Decoded>
    where
        C: Codec<Req, Res>,
    {
        let mut patience = self.patience(bridge, until);
        let waited = poll_fn(|cx| {
            let Claim::Asked(claim) = &mut takeoff.claim else { return Poll::Ready(Waited::TooLong) };
            match Pin::new(claim).poll(cx) {
                Poll::Ready(claimed) => Poll::Ready(Waited::For(claimed)),
                Poll::Pending => patience.poll_over(cx),
            }
        })
        .await;
        let asked = self.codec.of_gone(gone);
        match waited {
            Waited::For(claimed) => match self.claimed(&mut takeoff, claimed, name, &asked) {
                Clearance::Go => Cleared::Go(takeoff),
                Clearance::Instead(plan) => Cleared::Instead(plan),
            },
            Waited::Bridged => match self.bridged(bridge, &asked) {
                Some(answer) => Cleared::Answer(answer),
                None => Cleared::Instead(Plan::Alone { bridge: None, marked: false }),
            },
            Waited::TooLong => {
                if let Claim::Asked(_) = takeoff.claim {
                    // Whoever has it takes too long.
                    takeoff.claim = Claim::Without;
                }
                Cleared::Go(takeoff)
            }
        }
    }

    /// Waits for one's own computation, or no longer than there is reason to.
    pub(super) async fn watch<Req, Res, Err>(
        &self,
        mut flying: Flying<C::Response, Err>,
        bridge: &Bridge<C::Decoded>,
        gone: &Gone<C::Kept>,
    ) -> Result<C::Response, Err>
    where
        C: Codec<Req, Res>,
    {
        // What nothing else runs cannot go on without us.
        let mut soft = if flying.is_on_its_own() { self.soft_limit(bridge) } else { Limit(None) };
        loop {
            let flown = poll_fn(|cx| match Pin::new(&mut flying).poll(cx) {
                Poll::Ready(flown) => Poll::Ready(Some(flown)),
                Poll::Pending if soft.is_over(cx) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            let Some((outcome, task)) = flown.await else {
                match self.bridged(bridge, &self.codec.of_gone(gone)) {
                    Some(answer) => return Ok(answer),
                    None => continue,
                }
            };
            let answer = match outcome {
                Outcome::Answer(answer) => answer,
                failure => {
                    // It may have something to say to others yet.
                    if let Some(task) = task {
                        task.await;
                    }
                    return match self.bridged(bridge, &self.codec.of_gone(gone)) {
                        Some(answer) => Ok(answer),
                        None => failure.shown(),
                    };
                }
            };
            return Ok(match task {
                Some(task) => self.codec.drive(answer, task),
                None => answer,
            });
        }
    }

    /// Refreshes an answer in the background; nobody waits for it.
    pub(super) async fn refresh_later<Req, Res, Err>(
        self,
        takeoff: Box<Takeoff>,
        name: Box<[u8]>,
        gone: Gone<C::Kept>,
        call: impl Call<Res, Err>,
    ) where
        C: Codec<Req, Res> + Clone + Send + Sync + 'static,
        C::Response: Send + 'static,
        Res: Send,
        Err: Send + 'static,
    {
        if let Cleared::Go(takeoff) = self.wait_for_claim(takeoff, &name, &gone, &None, u64::MAX).await
            && takeoff.is_claimed()
            && let Ok(computing) = call.call(true).await
        {
            self.fly(takeoff, gone, computing).forgotten().await;
        }
    }
}

/// What one who follows hears of a computation.
enum Heard<Out> {
    /// An answer to be read along.
    Answer(Out),
    Landing(Landing),
}

/// What waiting for a claim has led to.
enum Cleared<Out, D> {
    Go(Box<Takeoff>),
    Answer(Out),
    Instead(Plan<Out, D>),
}
