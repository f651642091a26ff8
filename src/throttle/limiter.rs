//! The decision of a throttle, without tower: one row, one pure function, one turn.

use super::{
    Advice, Quota,
    algorithm::Moment,
    cell::{Block, By, Cell, Quotas, Refusal, Slots},
    limits::{Limits, Rule},
};
use crate::{
    cache::{CELLS, Cache, Change, Found, Key, Kind, Line, Pending, Scope, Step, Waiter, block_on},
    error::Error,
    rejection::Reason,
};
use hyper::rt::Sleep;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, UNIX_EPOCH},
};

/// Who waits for a name is looked at so far.
const LOOK: usize = 256;
/// The longest queue that can be asked for.
pub(super) const MOST_WAITING: usize = 10_000;
/// Instances that one decision asks after at most.
const ASKED_AFTER: usize = 8;

/// How a name is throttled.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) limits: Limits,
    /// How many may wait at once.
    pub(super) queue: usize,
    pub(super) block: Option<Block>,
    /// Digest of the cell's tag, 0 for none.
    pub(super) tag: u64,
    /// How long the cell is kept at least, in ns.
    pub(super) retention: u64,
    /// Whether requests go to a foreign server, whose answers are heeded.
    pub(super) learns: bool,
    /// The longest span that its answers can ask for.
    pub(super) longest: Duration,
}

/// The longest span that is believed unless the user says otherwise: one hour, GitHub's window.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What is to be decided.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) terms: Arc<Terms>,
    pub(super) cost: u32,
    pub(super) patience: Duration,
}

impl Ask {
    pub(super) fn new(limits: Limits) -> Ask {
        let (queue, longest) = (MOST_WAITING, LONGEST);
        let terms = Terms { limits, queue, block: None, tag: 0, retention: 0, learns: false, longest };
        Ask { terms: Arc::new(terms), cost: 1, patience: Duration::ZERO }
    }

    pub(super) fn terms_mut(&mut self) -> &mut Terms {
        Arc::make_mut(&mut self.terms)
    }

    /// The same by other limits.
    pub(super) fn by(&self, limits: Limits) -> Ask {
        Ask { terms: Arc::new(Terms { limits, ..(*self.terms).clone() }), ..*self }
    }
}

/// Brings cells up to date; read before the transaction.
#[derive(Clone, Copy, Debug)]
struct Times {
    booted: u64,
    /// How far the wall clock was ahead of machine time.
    lead: i64,
}

impl Times {
    fn of(scope: &Scope, limits: &Limits) -> Times {
        let handle = scope.handle();
        let lead = match limits.iter().any(|limit| matches!(limit.rule, Rule::CalendarWindow(_))) {
            true => {
                let wall = handle.wall().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
                i64::try_from(wall).unwrap_or(i64::MAX).wrapping_sub_unsigned(handle.now())
            }
            false => 0,
        };
        Times { booted: handle.shared.offset, lead }
    }

    fn at(self, now: u64) -> Moment {
        Moment { now, wall: now.saturating_add_signed(self.lead) }
    }
}

/// A cell's row, opened for some limits.
struct Opened {
    cell: Cell,
    tag: u64,
    at: Moment,
}

impl Opened {
    fn new(found: Found<'_>, limits: &Limits, times: Times, now: u64) -> Opened {
        let at = times.at(now);
        let (payload, tag) = match found {
            Found::Row(row) => (Some(row.payload), row.tag),
            // A damaged cell is counted, and as good as a full budget.
            Found::Absent | Found::Damaged => (None, 0),
        };
        Opened { cell: Cell::open(payload, limits, at, times.booted), tag, at }
    }

    fn put(&self, tag: u64, retention: u64) -> Change {
        let tag = if tag == 0 { self.tag } else { tag };
        let expires = self.cell.ends().max(self.at.now.saturating_add(retention));
        Change::Put { expires, tag, payload: self.cell.write() }
    }
}

/// What a transaction says of an [`Ask`].
struct Said {
    /// How long to wait, and what was taken.
    decided: Result<(Duration, Slots), Refusal>,
    /// When the request went, if it is waited for.
    sent: Option<u64>,
    quotas: Quotas,
    /// Instances of other processes that wait in front.
    strangers: Vec<u64>,
}

/// The part of an [`Ask`] that runs in the transaction.
struct Transition {
    ask: Ask,
    times: Times,
    instance: u64,
    ticket: u64,
    /// Instances whose turns will not be taken.
    dead: Vec<u64>,
    /// What was taken before for the same request, whose turn has come.
    held: Option<Held>,
}

/// What somebody has who waits: a slot of each limit, and a row.
struct Held {
    slots: Slots,
    row: Option<(u64, u64)>,
}

impl Transition {
    fn run(&self, found: Found<'_>, line: &Line<'_>, now: u64) -> (Said, Change, Vec<Step>) {
        let (ask, terms) = (&self.ask, &*self.ask.terms);
        let mut opened = Opened::new(found, &terms.limits, self.times, now);
        let mut steps = Vec::new();
        if !self.dead.is_empty() {
            self.bury(&mut opened.cell, line, now, &mut steps);
        }
        if let Some(Held { slots, row }) = &self.held {
            steps.extend(row.map(|(turn, ticket)| Step::Leave { turn, ticket }));
            if opened.cell.is_open(now) {
                opened.cell.sent(now);
                let quotas = opened.cell.quotas(&terms.limits, None, now);
                let decided = Ok((Duration::ZERO, slots.clone()));
                let said = Said { decided, sent: Some(now), quotas, strangers: Vec::new() };
                return (said, opened.put(terms.tag, terms.retention), steps);
            }
            opened.cell.free(slots, slots.cost, now);
        }
        let mut planned = opened.cell.plan(now, ask.cost, ask.patience);
        let mut strangers = Vec::new();
        if planned != Ok(now) {
            let waiting = match opened.cell.is_waited_for(opened.at) {
                true => self.alive(line, terms.queue.clamp(LOOK, MOST_WAITING)),
                false => Vec::new(),
            };
            strangers = self.strangers(&waiting);
            if let (Ok(turn), true, None) = (planned, waiting.len() >= terms.queue, &self.held) {
                let next = waiting.first().map_or(turn, |first| first.turn).saturating_sub(now);
                planned = Err(Refusal { by: By::Queue, after: Some(Duration::from_nanos(next)) });
            }
        }
        let mut changed = !steps.is_empty() || self.held.is_some();
        let mut sent = None;
        let decided = planned.map(|turn| {
            changed |= ask.cost > 0;
            let slots = opened.cell.take(turn, ask.cost, now);
            if turn > now {
                let (ticket, instance) = (self.ticket, self.instance);
                steps.push(Step::Join(Waiter { turn, ticket, instance, payload: slots.write() }));
            } else if terms.learns && ask.cost > 0 {
                opened.cell.sent(now);
                sent = Some(now);
            }
            (Duration::from_nanos(turn - now), slots)
        });
        let by = decided.as_ref().err().map(|refusal| refusal.by);
        if let (Some(block), true) = (terms.block, by.is_some()) {
            changed |= opened.cell.refused(block, now);
        }
        let quotas = opened.cell.quotas(&terms.limits, by, now);
        let change = if changed { opened.put(terms.tag, terms.retention) } else { Change::Keep };
        (Said { decided, sent, quotas, strangers }, change, steps)
    }

    /// Gives back the turns of the dead.
    fn bury(&self, cell: &mut Cell, line: &Line<'_>, now: u64, steps: &mut Vec<Step>) {
        for waiter in line.waiting(LOOK).into_iter().filter(|waiter| self.dead.contains(&waiter.instance)) {
            if let Some(slots) = Slots::read(&waiter.payload) {
                cell.free(&slots, slots.cost, now);
            }
            steps.push(Step::Leave { turn: waiter.turn, ticket: waiter.ticket });
        }
    }

    fn alive(&self, line: &Line<'_>, most: usize) -> Vec<Waiter> {
        let mut waiting = line.waiting(most);
        waiting.retain(|waiter| !self.dead.contains(&waiter.instance));
        waiting
    }

    fn strangers(&self, waiting: &[Waiter]) -> Vec<u64> {
        let mut strangers: Vec<u64> = waiting.iter().map(|waiter| waiter.instance).collect();
        strangers.retain(|&instance| instance != self.instance);
        strangers.sort_unstable();
        strangers.dedup();
        strangers.truncate(ASKED_AFTER);
        strangers
    }
}

/// What was taken for a request: given back when dropped, until it is [spent](Turn::spend).
#[derive(Debug)]
pub(super) struct Turn(Option<Taken>);

#[derive(Debug)]
struct Taken {
    scope: Scope,
    key: Key,
    terms: Arc<Terms>,
    slots: Slots,
    /// The waiter's row, if it has one.
    row: Option<(u64, u64)>,
    /// When the request went, if it is counted as on its way.
    sent: Option<u64>,
}

impl Taken {
    /// Gives back what was not used, or takes what is missing, and heeds the advice.
    fn settle(self, actual: u32, advice: Option<Advice>) {
        let Taken { scope, key, terms, slots, row, sent } = self;
        let times = Times::of(&scope, &terms.limits);
        scope.post_line(CELLS, key, move |found, _, now| {
            let steps = row.map(|(turn, ticket)| Step::Leave { turn, ticket }).into_iter().collect();
            // A cell that is gone was full, or evicted: there is nothing to give back to.
            if matches!(found, Found::Absent) && actual <= slots.cost && advice.is_none() {
                return ((), Change::Keep, steps);
            }
            let mut opened = Opened::new(found, &terms.limits, times, now);
            opened.cell.free(&slots, slots.cost.saturating_sub(actual), now);
            opened.cell.charge(actual.saturating_sub(slots.cost), now);
            if let Some(sent) = sent {
                opened.cell.answered(sent, advice.as_ref(), now);
            }
            ((), opened.put(terms.tag, terms.retention), steps)
        });
    }
}

impl Turn {
    /// What was taken is used from now on.
    pub(super) fn spend(mut self) -> Spent {
        Spent(self.0.take())
    }

    /// Waits for the turn, which is used from then on.
    pub(super) fn comes_after(self, wait: Duration, patience: Duration, scope: &Scope) -> Waiting {
        let handle = scope.handle();
        let now = handle.now();
        let (due, scope) = (now.saturating_add(nanos(wait)), scope.clone());
        let (sleep, turn) = (handle.sleep(wait), Some(self));
        Waiting { sleep, due, slept_at: now, began: now, patience, scope, turn, look: None }
    }

    /// Whether to ask before the turn is used: the foreign server may have said something since it was given out.
    fn may_have_been_overtaken(&self) -> bool {
        self.0.as_ref().is_some_and(|taken| taken.terms.learns)
    }

    /// Asks again, now that the turn has come. `Err`: it can be used, as far as anybody knows.
    fn look_again(self, patience: Duration) -> Pending<Result<Verdict, Turn>> {
        let Some(taken) = &self.0 else { return Pending::ready(Err(self)) };
        let Taken { scope, key, terms, slots, row, .. } = taken;
        let ask = Ask { terms: terms.clone(), cost: slots.cost, patience };
        let question = Question::new(scope, *key, ask);
        let (scope, held) = (scope.clone(), Held { slots: slots.clone(), row: *row });
        let transition = Transition { held: Some(held), ..question.transition(Vec::new()) };
        scope.update_line(
            CELLS,
            *key,
            move |found, line, now| transition.run(found, line, now),
            move |said| match said {
                Ok(said) => {
                    // Its slots are in the answer again, or were given back.
                    self.spend().0.take();
                    Ok(question.verdict(said))
                }
                Err(_) => Err(self),
            },
        )
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(taken) = self.0.take() {
            taken.settle(0, None);
        }
    }
}

/// What was taken and used; it stays spent unless it is [settled](Spent::settle).
#[derive(Debug)]
pub(super) struct Spent(Option<Taken>);

impl Spent {
    /// Says what the request really cost, where that is known, and what its answer advises.
    pub(super) fn settle(mut self, actual: Option<u32>, advice: Option<Advice>) {
        if let Some(taken) = self.0.take() {
            let actual = actual.unwrap_or(taken.slots.cost);
            if actual != taken.slots.cost || taken.sent.is_some() {
                let advice = advice.filter(|_| taken.sent.is_some()).map(|advice| advice.cut(taken.terms.longest));
                taken.settle(actual, advice.filter(|advice| *advice != Advice::default()));
            }
        }
    }
}

impl Drop for Spent {
    // Without an answer it is not on its way any more.
    fn drop(&mut self) {
        if let Some(taken) = self.0.take_if(|taken| taken.sent.is_some()) {
            let cost = taken.slots.cost;
            taken.settle(cost, None);
        }
    }
}

/// The wait for a [`Turn`]; dropped early, the turn is given back.
///
/// Who learns from a foreign server looks again when the turn comes, and may have to wait for another, or be refused:
/// then the output is the refusal.
pub(super) struct Waiting {
    sleep: Pin<Box<dyn Sleep>>,
    /// Machine time in ns of the turn, and of the last time that sleep began.
    due: u64,
    slept_at: u64,
    /// When the first wait began, and how long all may take.
    began: u64,
    patience: Duration,
    scope: Scope,
    turn: Option<Turn>,
    look: Option<Pending<Result<Verdict, Turn>>>,
}

impl Waiting {
    /// From the first asking to the turn.
    pub(super) fn waited(&self) -> Duration {
        Duration::from_nanos(self.due.saturating_sub(self.began))
    }

    /// Comes to an end, or sleeps until another turn.
    fn looked(&mut self, looked: Result<Verdict, Turn>) -> Option<Result<Spent, Verdict>> {
        let verdict = match looked {
            Ok(verdict) => verdict,
            Err(turn) => return Some(Ok(turn.spend())),
        };
        match verdict.decided {
            Ok((wait, turn)) if wait.is_zero() => return Some(Ok(turn.spend())),
            Ok((wait, turn)) => {
                self.slept_at = self.scope.handle().now();
                self.due = self.slept_at.saturating_add(nanos(wait));
                self.sleep = self.scope.handle().sleep(wait);
                self.turn = Some(turn);
                None
            }
            Err(_) => Some(Err(verdict)),
        }
    }
}

impl Future for Waiting {
    type Output = Result<Spent, Verdict>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if let Some(look) = &mut self.look {
                let looked = ready!(Pin::new(look).poll(cx));
                self.look = None;
                match self.looked(looked) {
                    Some(output) => return Poll::Ready(output),
                    None => continue,
                }
            }
            ready!(self.sleep.as_mut().poll(cx));
            let now = self.scope.handle().now();
            // A user's clock may wake early. If it stood still meanwhile, sleeping on would never end.
            let stands_still = now <= self.slept_at;
            if now < self.due && !stands_still {
                self.slept_at = now;
                self.sleep = self.scope.handle().sleep(Duration::from_nanos(self.due - now));
                continue;
            }
            let Some(turn) = self.turn.take() else { return Poll::Ready(Ok(Spent(None))) };
            if stands_still || !turn.may_have_been_overtaken() {
                return Poll::Ready(Ok(turn.spend()));
            }
            let waited = Duration::from_nanos(now.saturating_sub(self.began));
            self.look = Some(turn.look_again(self.patience.saturating_sub(waited)));
        }
    }
}

/// How a decision came out.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) decided: Result<(Duration, Turn), Refusal>,
    pub(super) quotas: Quotas,
    again: Option<Box<Again>>,
}

/// What it takes to ask again: others wait in front, and may be dead.
struct Again {
    scope: Scope,
    key: Key,
    ask: Ask,
    strangers: Vec<u64>,
}

impl Verdict {
    /// Asks once more if any of those in front turn out to be dead, with their turns given back. The turn of this answer
    /// is given back first.
    pub(super) fn again(&mut self) -> Option<Pending<Result<Verdict, Error>>> {
        let Again { scope, key, ask, mut strangers } = *self.again.take()?;
        strangers.retain(|&instance| scope.is_dead(instance));
        if strangers.is_empty() {
            return None;
        }
        self.decided = Err(Refusal { by: By::Queue, after: None });
        Some(ask_over(&scope, key, ask, strangers))
    }
}

/// Asks for a turn, in one transaction; in two if others wait in front and are found dead.
pub(super) fn ask(scope: &Scope, key: Key, ask: Ask) -> Pending<Result<Verdict, Error>> {
    let mut pending = ask_over(scope, key, ask, Vec::new());
    match pending.now() {
        Some(Ok(mut verdict)) => verdict.again().unwrap_or_else(|| Pending::ready(Ok(verdict))),
        Some(Err(error)) => Pending::ready(Err(error)),
        None => pending,
    }
}

fn ask_over(scope: &Scope, key: Key, ask: Ask, dead: Vec<u64>) -> Pending<Result<Verdict, Error>> {
    let question = Question::new(scope, key, ask);
    let transition = question.transition(dead);
    scope.update_line(
        CELLS,
        key,
        move |found, line, now| transition.run(found, line, now),
        move |said| said.map(|said| question.verdict(said)),
    )
}

/// What is asked of a cell, and makes a [`Verdict`] out of the answer.
struct Question {
    scope: Scope,
    key: Key,
    ask: Ask,
    instance: u64,
    ticket: u64,
}

impl Question {
    fn new(scope: &Scope, key: Key, ask: Ask) -> Question {
        let waits = !ask.patience.is_zero();
        let instance = if waits { scope.instance().unwrap_or(0) } else { 0 };
        let ticket = if waits { rand::random() } else { 0 };
        Question { scope: scope.clone(), key, ask, instance, ticket }
    }

    fn transition(&self, dead: Vec<u64>) -> Transition {
        let times = Times::of(&self.scope, &self.ask.terms.limits);
        let Question { ask, instance, ticket, .. } = self;
        Transition { ask: ask.clone(), times, instance: *instance, ticket: *ticket, dead, held: None }
    }

    fn verdict(self, said: Said) -> Verdict {
        let Said { decided, sent, quotas, strangers } = said;
        let Question { scope, key, ask, ticket, .. } = self;
        let again = (!strangers.is_empty())
            .then(|| Box::new(Again { scope: scope.clone(), key, ask: ask.clone(), strangers }));
        let decided = decided.map(|(wait, slots)| {
            let row = (!wait.is_zero()).then_some((slots.asked.saturating_add(nanos(wait)), ticket));
            let taken = Taken { scope, key, terms: ask.terms, slots, row, sent };
            (wait, Turn((taken.slots.cost > 0).then_some(taken)))
        });
        Verdict { decided, quotas, again }
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again").field("strangers", &self.strangers).finish_non_exhaustive()
    }
}

/// A throttle by name, without tower.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_floodgate::{Cache, throttle::{LimitError, Rate}};
///
/// let cache = Cache::temporary()?;
/// let mails = cache.throttle("mails", Rate::per_minute(20).burst(2));
/// mails.check().await?;
/// assert_eq!(mails.check().await?.quota.remaining, 0);
/// assert!(matches!(mails.check().await, Err(LimitError::Throttled { .. })));
///
/// mails.reset().await?;
/// let estimate = mails.cost(2).check().await?;
/// estimate.settle(1); // it turned out to be less
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Limiter {
    scope: Scope,
    key: Key,
    ask: Ask,
}

/// Why a [`Limiter`] did not admit.
#[derive(Debug)]
#[non_exhaustive]
pub enum LimitError {
    /// There is no room.
    #[non_exhaustive]
    Throttled {
        /// Whether the budget is spent, or the cost above what it ever allows, or the name blocked, or the queue full.
        reason: Reason,
        /// When to ask again; `None`: the cost is above the burst and never fits.
        retry_after: Option<Duration>,
        /// What is left of the limit that refused.
        quota: Quota,
    },
    /// The cache could not be used.
    Cache(Error),
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LimitError::Throttled { retry_after: Some(delay), .. } => {
                write!(f, "too many requests, ask again in {delay:?}")
            }
            LimitError::Throttled { .. } => f.write_str("the cost is above what the limit ever allows"),
            LimitError::Cache(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for LimitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            LimitError::Throttled { .. } => None,
            LimitError::Cache(error) => Some(error),
        }
    }
}

/// What a [`Limiter`] has admitted. Dropped, it stays spent.
#[derive(Debug)]
#[non_exhaustive]
pub struct Permit {
    /// What is left, of the scarcest limit.
    pub quota: Quota,
    spent: Spent,
}

impl Permit {
    /// Says what it really cost: what was reserved too much is given back, as far as time has not done so meanwhile, and
    /// what is missing is taken, even beyond the limit.
    pub fn settle(self, actual: u32) {
        self.spent.settle(Some(actual), None);
    }
}

impl Refusal {
    pub(super) fn reason(&self) -> Reason {
        match (self.by, self.after) {
            (By::Ban, _) => Reason::Blocked,
            (By::Queue, _) => Reason::QueueFull,
            (By::Limit(_), Some(_)) | (By::Learnt, _) => Reason::Throttled,
            (By::Limit(_), None) => Reason::TooCostly,
        }
    }
}

impl Limiter {
    pub(super) fn new(scope: &Scope, name: &[u8], ask: Ask) -> Limiter {
        Limiter { key: scope.key(Kind::Throttle, name), scope: scope.clone(), ask }
    }

    /// The same throttle, asked for `cost` at once; 1 unless said otherwise. 0 is always admitted and takes nothing.
    pub fn cost(&self, cost: u32) -> Limiter {
        let mut limiter = self.clone();
        limiter.ask.cost = cost;
        limiter
    }

    /// Admits now or not at all.
    ///
    /// # Errors
    ///
    /// [`LimitError::Throttled`], or [`LimitError::Cache`] if the cache cannot be used.
    pub async fn check(&self) -> Result<Permit, LimitError> {
        self.acquire_timeout(Duration::ZERO).await
    }

    /// Waits for a turn, first come first served over all processes. Dropped while it waits, it gives the turn back.
    ///
    /// # Errors
    ///
    /// As [`check`](Limiter::check), where only a cost that never fits, or a queue of more than 10,000, is refused.
    pub async fn acquire(&self) -> Result<Permit, LimitError> {
        self.acquire_timeout(Duration::MAX).await
    }

    /// Waits for a turn, unless it would take longer than `patience`: that is known, and said, at once.
    ///
    /// # Errors
    ///
    /// As [`check`](Limiter::check).
    pub async fn acquire_timeout(&self, patience: Duration) -> Result<Permit, LimitError> {
        let (wait, turn, quota) = self.turn(patience).await?;
        if wait.is_zero() {
            return Ok(Permit { quota, spent: turn.spend() });
        }
        match turn.comes_after(wait, patience, &self.scope).await {
            Ok(spent) => Ok(Permit { quota, spent }),
            Err(refused) => refused.turn().map(|(_, turn, quota)| Permit { quota, spent: turn.spend() }),
        }
    }

    async fn turn(&self, patience: Duration) -> Result<(Duration, Turn, Quota), LimitError> {
        let mut pending = ask(&self.scope, self.key, Ask { patience, ..self.ask.clone() });
        loop {
            let mut verdict = pending.await.map_err(LimitError::Cache)?;
            match verdict.again() {
                Some(again) => pending = again,
                None => return verdict.turn(),
            }
        }
    }

    /// What is left of the scarcest limit, without taking any of it.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn peek(&self) -> Result<Quota, Error> {
        self.look().await.map(|quotas| quotas.first)
    }

    /// What is left of each limit, the scarcest first, without taking any of it.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn peek_all(&self) -> Result<Vec<Quota>, Error> {
        self.look().await.map(|quotas| std::iter::once(quotas.first).chain(quotas.others).collect())
    }

    fn look(&self) -> Pending<Result<Quotas, Error>> {
        let (terms, times) = (self.ask.terms.clone(), Times::of(&self.scope, &self.ask.terms.limits));
        let look = move |found: Found<'_>, now| {
            let quotas = Opened::new(found, &terms.limits, times, now).cell.quotas(&terms.limits, None, now);
            (quotas, Change::Keep)
        };
        self.scope.update(CELLS, self.key, look, |quotas| quotas)
    }

    /// Makes the budgets full again, and ends a block. Who waits keeps the turn that was given out.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn reset(&self) -> Result<(), Error> {
        self.scope.update(CELLS, self.key, |_, _| ((), Change::Remove), |done| done).await
    }

    /// Takes `cost` from every limit without asking: the budgets may go into debt, which has to be regained first.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn penalise(&self, cost: u32) -> Result<(), Error> {
        self.change(move |cell, now| cell.charge(cost, now)).await
    }

    /// Admits nothing for `hold` from now, whatever is left; an earlier block that lasts longer stays.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn block(&self, hold: Duration) -> Result<(), Error> {
        let hold = u64::try_from(hold.as_nanos()).unwrap_or(u64::MAX);
        self.change(move |cell, now| cell.hold(now.saturating_add(hold))).await
    }

    /// Leaves at most `remaining` of every limit: somebody who knows better has said so.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn leave_at_most(&self, remaining: u32) -> Result<(), Error> {
        self.change(move |cell, now| cell.leave_at_most(remaining, now)).await
    }

    /// What a foreign server has said just now of the budget that this one stands for, as a layer that
    /// [learns](super::ThrottleLayer::learn) heeds it; for calls that are made without a layer. No span is longer than an
    /// hour.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn learn(&self, advice: Advice) -> Result<(), Error> {
        let advice = advice.cut(self.ask.terms.longest);
        self.change(move |cell, now| cell.told(&advice, now)).await
    }

    fn change(&self, change: impl Fn(&mut Cell, u64) + Send + 'static) -> Pending<Result<(), Error>> {
        let (terms, times) = (self.ask.terms.clone(), Times::of(&self.scope, &self.ask.terms.limits));
        let transition = move |found: Found<'_>, now| {
            let mut opened = Opened::new(found, &terms.limits, times, now);
            change(&mut opened.cell, now);
            ((), opened.put(terms.tag, terms.retention))
        };
        self.scope.update(CELLS, self.key, transition, |done| done)
    }
}

/// For plain threads: each as its namesake.
impl Limiter {
    /// As [`check`](Limiter::check).
    ///
    /// # Errors
    ///
    /// As [`check`](Limiter::check).
    pub fn check_blocking(&self) -> Result<Permit, LimitError> {
        self.acquire_timeout_blocking(Duration::ZERO)
    }

    /// As [`acquire`](Limiter::acquire).
    ///
    /// # Errors
    ///
    /// As [`acquire`](Limiter::acquire).
    pub fn acquire_blocking(&self) -> Result<Permit, LimitError> {
        self.acquire_timeout_blocking(Duration::MAX)
    }

    /// As [`acquire_timeout`](Limiter::acquire_timeout). The thread sleeps, so this needs no runtime.
    ///
    /// # Errors
    ///
    /// As [`acquire_timeout`](Limiter::acquire_timeout).
    pub fn acquire_timeout_blocking(&self, patience: Duration) -> Result<Permit, LimitError> {
        let (wait, turn, quota) = block_on(self.turn(patience))?;
        let handle = self.scope.handle();
        let mut slept_at = handle.now();
        let due = slept_at.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        while slept_at < due {
            std::thread::sleep(Duration::from_nanos(due - slept_at));
            let now = handle.now();
            // A user's clock may stand still: sleeping on would never end.
            if now <= slept_at {
                break;
            }
            slept_at = now;
        }
        Ok(Permit { quota, spent: turn.spend() })
    }

    /// As [`peek`](Limiter::peek).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn peek_blocking(&self) -> Result<Quota, Error> {
        block_on(self.peek())
    }

    /// As [`reset`](Limiter::reset).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn reset_blocking(&self) -> Result<(), Error> {
        block_on(self.reset())
    }

    /// As [`penalise`](Limiter::penalise).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn penalise_blocking(&self, cost: u32) -> Result<(), Error> {
        block_on(self.penalise(cost))
    }

    /// As [`block`](Limiter::block).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn block_blocking(&self, hold: Duration) -> Result<(), Error> {
        block_on(self.block(hold))
    }
}

impl Verdict {
    fn turn(self) -> Result<(Duration, Turn, Quota), LimitError> {
        match self.decided {
            Ok((wait, turn)) => Ok((wait, turn, self.quotas.first)),
            Err(refusal) => Err(LimitError::Throttled {
                reason: refusal.reason(),
                retry_after: refusal.after,
                quota: self.quotas.first,
            }),
        }
    }
}

impl Scope {
    /// A throttle of this scope, by name. It shares its budget with the [`ThrottleLayer`](super::ThrottleLayer) of the
    /// same scope, for requests of that name, as [`name_of`](super::ThrottleLayer::name_of) writes it.
    pub fn throttle(&self, name: &str, limits: impl Into<Limits>) -> Limiter {
        Limiter::new(self, name.as_bytes(), Ask::new(limits.into()))
    }
}

impl Cache {
    /// [`Scope::throttle`] of the [root](Cache::root) scope.
    pub fn throttle(&self, name: &str, limits: impl Into<Limits>) -> Limiter {
        self.root().throttle(name, limits)
    }
}
