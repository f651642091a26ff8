//! How a request is served whose answer is not there at once.

use super::{
    codec::{Codec, Replay, SentRequest},
    core::{Bridge, Core, Stored},
    leading::{LeaderOutcome, Leading},
    plan::{Claim, Claimed, Computation, Plan},
    status::CacheStatus,
};
use crate::{
    store::{Event, Flight, Outcome, Progress, SharedValue},
    time::nanos,
};
use std::{
    future::{Future, poll_fn},
    ops::ControlFlow,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

/// So many failed computations a request waits for. After that it goes alone.
const FAILURES: u32 = 3;

/// A call of the service, with its request.
pub(super) trait Call<Res, Err>: Send + 'static {
    type Computing: Future<Output = Result<Res, Err>> + Send + 'static;

    /// Calls the service once it is ready, for everyone that wants the answer or for this request only.
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

/// What was waited for has not come in time.
enum TimedOut {
    /// There is an answer that has ended, and the soft timeout is over.
    Soft,
    /// The request has waited for others for as long as it may.
    Hard,
}

/// How long to wait for another request's computation, or for its claim.
struct Patience<'a, C> {
    core: &'a Core<C>,
    /// The soft timeout, where there is an answer to serve meanwhile.
    soft: Limit,
    /// In ns of machine time.
    until: u64,
    limit: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<C> Patience<'_, C> {
    async fn wait_for<T>(&mut self, future: impl Future<Output = T>) -> Result<T, TimedOut> {
        let mut future = pin!(future);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_timeout(cx).map(Err),
        })
        .await
    }

    fn poll_timeout(&mut self, cx: &mut Context<'_>) -> Poll<TimedOut> {
        if self.soft.is_over(cx) {
            return Poll::Ready(TimedOut::Soft);
        }
        let (core, until) = (self.core, self.until);
        let left = || core.sleep(Duration::from_nanos(until.saturating_sub(core.now())));
        self.limit.get_or_insert_with(left).as_mut().poll(cx).map(|()| TimedOut::Hard)
    }
}

impl<C> Core<C> {
    pub(super) async fn serve<Req, Res, Err>(
        self,
        name: Box<[u8]>,
        sent: SentRequest<C::Kept>,
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
                    // Boxed: most requests that come this way wait, and need not have room for what they never do.
                    return Box::pin(self.alone(name, sent, (bridge, marked), beginning, computing)).await;
                }
                Plan::Lead(mut computation, bridge) => {
                    let claiming = self.wait_for_claim(&mut computation, &name, &sent, &bridge, follow_until);
                    match Box::pin(claiming).await {
                        Claimed::Begin => {
                            let computing = match Box::pin(call.call(true)).await {
                                Ok(computing) => computing,
                                Err(error) => {
                                    drop(computation);
                                    return self.bridged(&bridge, &self.codec.of_sent(&sent)).ok_or(error);
                                }
                            };
                            let leading = self.start(computation, sent.clone(), computing);
                            return Box::pin(self.watch(leading, &bridge, &sent)).await;
                        }
                        Claimed::Instead(plan) => plan,
                    }
                }
                Plan::Follow(flight, bridge) => match self.follow(flight, &bridge, follow_until, &sent).await {
                    Err(TimedOut::Hard) => Plan::Alone { bridge, marked: false },
                    Err(TimedOut::Soft) => match self.bridged(&bridge, &self.codec.of_sent(&sent)) {
                        Some(answer) => return Ok(answer),
                        None => Plan::alone(),
                    },
                    Ok(ControlFlow::Break(answer)) => {
                        self.scope.note(Event::Followed);
                        return Ok(answer);
                    }
                    Ok(ControlFlow::Continue(Outcome::Kept(stored))) => match self.replay_shared(&stored, &sent) {
                        Some(Replay::Answer(answer)) => {
                            self.scope.note(Event::Followed);
                            return Ok(answer);
                        }
                        Some(Replay::Other(_)) => self.plan(&name, &self.codec.of_sent(&sent)),
                        Some(Replay::Unusable) | None => Plan::Alone { bridge, marked: false },
                    },
                    Ok(ControlFlow::Continue(Outcome::NotKept { failed })) => {
                        let bridged = || self.bridged(&bridge, &self.codec.of_sent(&sent));
                        match failed.then(bridged).flatten() {
                            Some(answer) => return Ok(answer),
                            None => Plan::Alone { bridge, marked: false },
                        }
                    }
                    Ok(ControlFlow::Continue(Outcome::Failed(failure))) => {
                        if let Some(answer) = self.bridged(&bridge, &self.codec.of_sent(&sent)) {
                            return Ok(answer);
                        }
                        if let Some(shared) = failure.and_then(|failure| self.shared(&failure, &sent)) {
                            self.scope.note(Event::Followed);
                            return shared;
                        }
                        failures += 1;
                        // A service that fails slowly must not be asked by one request after the other.
                        match failures < FAILURES {
                            true => self.plan(&name, &self.codec.of_sent(&sent)),
                            false => Plan::alone(),
                        }
                    }
                },
            }
        }
    }

    /// Waits for another's computation: breaks with an answer that can be read along, or continues with the outcome.
    async fn follow<Req, Res>(
        &self,
        flight: Arc<Flight>,
        bridge: &Bridge<C::Decoded>,
        until: u64,
        sent: &SentRequest<C::Kept>,
    ) -> Result<ControlFlow<C::Response, Outcome>, TimedOut>
    where
        C: Codec<Req, Res>,
    {
        let (mut patience, mut read_along) = (self.patience(bridge, until), true);
        loop {
            match patience.wait_for(flight.clone().follow(read_along)).await? {
                Progress::Ended(outcome) => return Ok(ControlFlow::Continue(outcome)),
                Progress::Readable(recording) => {
                    if let Some(answer) = self.codec.read_along(&recording, &self.codec.of_sent(sent)) {
                        return Ok(ControlFlow::Break(answer));
                    }
                    read_along = false;
                }
            }
        }
    }

    /// Patience until a machine time in ns, or to the soft timeout where there is an answer to serve meanwhile.
    fn patience(&self, bridge: &Bridge<impl Sized>, until: u64) -> Patience<'_, C> {
        Patience { core: self, soft: self.soft_limit(bridge), until, limit: None }
    }

    /// The soft timeout, where there is an answer to serve meanwhile.
    fn soft_limit(&self, bridge: &Bridge<impl Sized>) -> Limit {
        Limit(self.soft_timeout.filter(|_| bridge.is_some()).map(|patience| self.sleep(patience)))
    }

    /// An answer that another request has computed.
    fn replay_shared<Req, Res>(&self, shared: &SharedValue, sent: &SentRequest<C::Kept>) -> Option<Replay<C::Response>>
    where
        C: Codec<Req, Res>,
    {
        let stored = shared.downcast_ref::<Stored<C::Decoded>>()?;
        Some(self.replay(stored, &self.codec.of_sent(sent), self.now(), |ttl| CacheStatus::Collapsed { ttl }))
    }

    /// Another's failure, if it may be shared.
    fn shared<Req, Res, Err>(
        &self,
        failure: &SharedValue,
        sent: &SentRequest<C::Kept>,
    ) -> Option<Result<C::Response, Err>>
    where
        C: Codec<Req, Res>,
        Err: 'static,
    {
        if let Some(Replay::Answer(answer)) = self.replay_shared(failure, sent) {
            return Some(Ok(answer));
        }
        let error = (self.error_sharing.as_ref()?.restore)(failure)?;
        error.downcast::<Err>().ok().map(|error| Err(*error))
    }

    /// Waits until the computation may begin, or until there is something else to do.
    async fn wait_for_claim<Req, Res>(
        &self,
        computation: &mut Computation,
        name: &[u8],
        sent: &SentRequest<C::Kept>,
        bridge: &Bridge<C::Decoded>,
        until: u64,
    ) -> Claimed<C::Response, C::Decoded>
    where
        C: Codec<Req, Res>,
    {
        let Claim::Asked(claim) = &mut computation.claim else { return Claimed::Begin };
        let waited = self.patience(bridge, until).wait_for(claim).await;
        let asked = self.codec.of_sent(sent);
        match waited {
            Ok(claimed) => self.claimed(computation, claimed, name, &asked),
            Err(TimedOut::Soft) => Claimed::Instead(match self.bridged(bridge, &asked) {
                Some(answer) => Plan::Hit(answer),
                None => Plan::alone(),
            }),
            Err(TimedOut::Hard) => {
                // The holder of the claim takes too long.
                computation.claim = Claim::Without;
                Claimed::Begin
            }
        }
    }

    /// Waits for the request's own computation, or to the soft timeout.
    pub(super) async fn watch<Req, Res, Err>(
        &self,
        mut leading: Leading<C::Response, Err>,
        bridge: &Bridge<C::Decoded>,
        sent: &SentRequest<C::Kept>,
    ) -> Result<C::Response, Err>
    where
        C: Codec<Req, Res>,
    {
        // A computation that nothing else runs cannot go on without this.
        let mut soft = if leading.is_on_its_own() { self.soft_limit(bridge) } else { Limit(None) };
        loop {
            let flown = poll_fn(|cx| match Pin::new(&mut leading).poll(cx) {
                Poll::Ready(flown) => Poll::Ready(Some(flown)),
                Poll::Pending if soft.is_over(cx) => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            });
            let Some((outcome, task)) = flown.await else {
                match self.bridged(bridge, &self.codec.of_sent(sent)) {
                    Some(answer) => return Ok(answer),
                    None => continue,
                }
            };
            let answer = match outcome {
                LeaderOutcome::Answer(answer) => answer,
                failure => {
                    // It may still have to share the failure.
                    if let Some(task) = task {
                        task.await;
                    }
                    return match self.bridged(bridge, &self.codec.of_sent(sent)) {
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
        mut computation: Box<Computation>,
        name: Box<[u8]>,
        sent: SentRequest<C::Kept>,
        call: impl Call<Res, Err>,
    ) where
        C: Codec<Req, Res> + Clone + Send + Sync + 'static,
        C::Response: Send + 'static,
        Res: Send,
        Err: Send + 'static,
    {
        if let Claimed::Begin = self.wait_for_claim(&mut computation, &name, &sent, &None, u64::MAX).await
            && computation.is_claimed()
            && let Ok(computing) = call.call(true).await
        {
            self.start(computation, sent, computing).detach().await;
        }
    }
}
