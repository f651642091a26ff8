//! The decision of a throttle, without tower: one row, one pure function, one turn.

use super::{
    Quota,
    algorithm::Moment,
    cell::{Block, By, Cell, Quotas, Refusal, Slots},
    limits::{Limits, Rule},
};
use crate::{
    cache::{CELLS, Cache, Change, Event, Found, Key, Kind, Line, Pending, Scope, Step, Waiter, block_on},
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
/// Instances that one decision asks after at most: some 200 microseconds, at most every 25 ms.
const ASKED_AFTER: usize = 64;

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
}

/// What is to be decided.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) terms: Arc<Terms>,
    pub(super) cost: u32,
    pub(super) patience: Duration,
}

impl Ask {
    pub(super) fn new(limits: Limits) -> Ask {
        let terms = Terms { limits, queue: MOST_WAITING, block: None, tag: 0, retention: 0 };
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
    #[inline]
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
    /// When its turn is, how long that is to wait, and what was taken.
    decided: Result<(u64, Duration, Slots), Refusal>,
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
}

impl Transition {
    fn run(&self, found: Found<'_>, line: &Line<'_>, now: u64) -> (Said, Change, Vec<Step>) {
        let (ask, terms) = (&self.ask, &*self.ask.terms);
        let mut opened = Opened::new(found, &terms.limits, self.times, now);
        let mut steps = Vec::new();
        if !self.dead.is_empty() {
            self.bury(&mut opened.cell, line, now, &mut steps);
        }
        let mut planned = opened.cell.plan(now, ask.cost, ask.patience);
        let mut strangers = Vec::new();
        if planned != Ok(now) {
            let waiting = match opened.cell.is_waited_for(opened.at) {
                // Who is refused anyway does not ask how many wait.
                true => self.alive(line, if planned.is_ok() { terms.queue.clamp(LOOK, MOST_WAITING) } else { LOOK }),
                false => Vec::new(),
            };
            strangers = self.strangers(&waiting);
            if let (Ok(turn), true) = (planned, waiting.len() >= terms.queue) {
                let next = waiting.first().map_or(turn, |first| first.turn).saturating_sub(now);
                planned = Err(Refusal { by: By::Queue, after: Some(Duration::from_nanos(next)) });
            }
        }
        let mut changed = !steps.is_empty() || opened.cell.is_remade();
        let decided = planned.map(|turn| {
            changed |= ask.cost > 0;
            let slots = opened.cell.take(turn, ask.cost, now);
            if turn > now {
                let (ticket, instance) = (self.ticket, self.instance);
                steps.push(Step::Join(Waiter { turn, ticket, instance, payload: slots.write(terms.limits.mark()) }));
            }
            (turn, Duration::from_nanos(turn - now), slots)
        });
        let by = decided.as_ref().err().map(|refusal| refusal.by);
        if let (Some(block), true) = (terms.block, by.is_some()) {
            changed |= opened.cell.refused(block, now);
        }
        let quotas = opened.cell.quotas(&terms.limits, by, now);
        let change = if changed { opened.put(terms.tag, terms.retention) } else { Change::Keep };
        (Said { decided, quotas, strangers }, change, steps)
    }

    /// Gives back turns of the dead, the earliest first, until the request fits in before the next of them. Those stay
    /// in the line for who comes later: a cell keeps few holes.
    fn bury(&self, cell: &mut Cell, line: &Line<'_>, now: u64, steps: &mut Vec<Step>) {
        let mark = self.ask.terms.limits.mark();
        for waiter in line.waiting(LOOK).into_iter().filter(|waiter| self.dead.contains(&waiter.instance)) {
            let planned = cell.plan(now, self.ask.cost, Duration::MAX);
            if planned.is_ok_and(|turn| turn <= waiter.turn) {
                break;
            }
            if let Some(slots) = Slots::read(&waiter.payload, mark) {
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

    /// Those whose turns come first: the others will be asked after later.
    fn strangers(&self, waiting: &[Waiter]) -> Vec<u64> {
        let mut strangers = Vec::new();
        for waiter in waiting.iter().take(LOOK) {
            if waiter.instance != self.instance && !strangers.contains(&waiter.instance) {
                strangers.push(waiter.instance);
                if strangers.len() == ASKED_AFTER {
                    break;
                }
            }
        }
        strangers
    }
}

/// What was taken for a request: given back when dropped, until it is [spent](Turn::spend).
#[derive(Debug)]
pub(super) struct Turn(Option<Box<Taken>>);

#[derive(Debug)]
struct Taken {
    scope: Scope,
    key: Key,
    terms: Arc<Terms>,
    slots: Slots,
    /// The waiter's row, if it has one.
    row: Option<(u64, u64)>,
}

impl Taken {
    /// Gives back what was taken too much, or takes what is missing.
    fn settle(self, actual: u32) {
        let Taken { scope, key, terms, slots, row } = self;
        if actual == slots.cost {
            return;
        }
        let times = Times::of(&scope, &terms.limits);
        scope.post_line(CELLS, key, move |found, _, now| {
            let steps = row.map(|(turn, ticket)| Step::Leave { turn, ticket }).into_iter().collect();
            // A cell that is gone was full, or evicted: there is nothing to give back to.
            if matches!(found, Found::Absent) && actual <= slots.cost {
                return ((), Change::Keep, steps);
            }
            let mut opened = Opened::new(found, &terms.limits, times, now);
            // The limits have changed since: they are not to be changed back.
            if opened.cell.is_remade() {
                return ((), Change::Keep, steps);
            }
            opened.cell.free(&slots, slots.cost.saturating_sub(actual), now);
            opened.cell.charge(actual.saturating_sub(slots.cost), now);
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
    pub(super) fn comes_after(self, wait: Duration, scope: &Scope) -> Waiting {
        let handle = scope.handle();
        let now = handle.now();
        let due = now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        scope.note(Event::WaitBegan);
        Waiting { sleep: handle.sleep(wait), due, slept_at: now, scope: scope.clone(), turn: Some(self) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(taken) = self.0.take() {
            taken.settle(0);
        }
    }
}

/// What was taken and used; it stays spent unless it is [settled](Spent::settle).
#[derive(Debug)]
pub(super) struct Spent(Option<Box<Taken>>);

impl Spent {
    /// Says what the request really cost.
    pub(super) fn settle(self, actual: u32) {
        if let Some(taken) = self.0 {
            taken.settle(actual);
        }
    }
}

/// The wait for a [`Turn`]; dropped early, the turn is given back.
pub(super) struct Waiting {
    sleep: Pin<Box<dyn Sleep>>,
    /// Machine time in ns of the turn, and of the last time that sleep began.
    due: u64,
    slept_at: u64,
    scope: Scope,
    turn: Option<Turn>,
}

impl Future for Waiting {
    type Output = Spent;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Spent> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let now = self.scope.handle().now();
            // A user's clock may wake early. If it stood still meanwhile, sleeping on would never end.
            if now >= self.due || now <= self.slept_at {
                break;
            }
            self.slept_at = now;
            self.sleep = self.scope.handle().sleep(Duration::from_nanos(self.due - now));
        }
        Poll::Ready(self.turn.take().map_or(Spent(None), Turn::spend))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.scope.note(Event::WaitEnded);
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
    /// Those that were found dead before: some of their turns may still stand in the line.
    dead: Vec<u64>,
}

impl Verdict {
    /// Asks once more if any of those in front turn out to be dead, with their turns given back. The turn of this answer
    /// is given back first.
    #[inline]
    pub(super) fn again(&mut self) -> Option<Pending<Result<Verdict, Error>>> {
        let again = self.again.take()?;
        self.ask_again(*again)
    }

    #[cold]
    fn ask_again(&mut self, again: Again) -> Option<Pending<Result<Verdict, Error>>> {
        let Again { scope, key, ask, mut strangers, mut dead } = again;
        strangers.retain(|&instance| scope.is_dead(instance));
        if strangers.is_empty() {
            return None;
        }
        self.decided = Err(Refusal { by: By::Queue, after: None });
        dead.append(&mut strangers);
        Some(ask_over(&scope, key, ask, dead))
    }
}

/// Asks for a turn, in one transaction; in two if others wait in front and are found dead.
#[inline]
pub(super) fn ask(scope: &Scope, key: Key, ask: Ask) -> Pending<Result<Verdict, Error>> {
    if let Some(verdict) = refuse_at_a_glance(scope, key, &ask) {
        return Pending::ready(Ok(verdict));
    }
    let mut pending = ask_over(scope, key, ask, Vec::new());
    match &mut pending {
        Pending::Ready(Some(Ok(verdict))) => verdict.again().unwrap_or(pending),
        _ => pending,
    }
}

/// Refuses what a glance at the cell shows to be refused. All else, such as what has to be written down, takes a
/// transaction.
#[inline]
fn refuse_at_a_glance(scope: &Scope, key: Key, ask: &Ask) -> Option<Verdict> {
    let terms = &*ask.terms;
    if terms.block.is_some() || !ask.patience.is_zero() {
        return None;
    }
    scope.glance(&key, |found, now| {
        let opened = Opened::new(found, &terms.limits, Times::of(scope, &terms.limits), now);
        let refusal = opened.cell.plan(now, ask.cost, Duration::ZERO).err()?;
        if opened.cell.is_remade() || opened.cell.is_waited_for(opened.at) {
            return None;
        }
        let quotas = opened.cell.quotas(&terms.limits, Some(refusal.by), now);
        Some(Verdict { decided: Err(refusal), quotas, again: None })
    })?
}

fn ask_over(scope: &Scope, key: Key, ask: Ask, dead: Vec<u64>) -> Pending<Result<Verdict, Error>> {
    let waits = !ask.patience.is_zero();
    let instance = if waits { scope.instance().unwrap_or(0) } else { 0 };
    let ticket = if waits { rand::random() } else { 0 };
    let times = Times::of(scope, &ask.terms.limits);
    let (held, asked, known) = (scope.clone(), ask.clone(), dead.clone());
    let transition = Transition { ask, times, instance, ticket, dead };
    scope.update_line(
        CELLS,
        key,
        move |found, line, now| transition.run(found, line, now),
        move |said| {
            let Said { decided, quotas, strangers } = said?;
            let again = (!strangers.is_empty())
                .then(|| Box::new(Again { scope: held.clone(), key, ask: asked.clone(), strangers, dead: known }));
            let decided = decided.map(|(turn, wait, slots)| {
                let row = (!wait.is_zero()).then_some((turn, ticket));
                let taken = Taken { scope: held, key, terms: asked.terms, slots, row };
                (wait, Turn(Some(Box::new(taken))))
            });
            Ok(Verdict { decided, quotas, again })
        },
    )
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
        self.spent.settle(actual);
    }
}

impl Refusal {
    pub(super) fn reason(&self) -> Reason {
        match (self.by, self.after) {
            (By::Ban, _) => Reason::Blocked,
            (By::Queue, _) => Reason::QueueFull,
            (By::Limit(_), Some(_)) => Reason::Throttled,
            (By::Limit(_), None) => Reason::TooCostly,
        }
    }

    fn into_error(self, quota: Quota) -> LimitError {
        LimitError::Throttled { reason: self.reason(), retry_after: self.after, quota }
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
        let mut asked = self.ask_for(patience);
        loop {
            let mut verdict = asked.await.map_err(LimitError::Cache)?;
            if let Some(again) = verdict.again() {
                asked = again;
                continue;
            }
            let quota = verdict.quotas.first;
            return match verdict.decided {
                Ok((wait, turn)) => {
                    let spent = if wait.is_zero() { turn.spend() } else { turn.comes_after(wait, &self.scope).await };
                    Ok(Permit { quota, spent })
                }
                Err(refusal) => Err(refusal.into_error(quota)),
            };
        }
    }

    fn ask_for(&self, patience: Duration) -> Pending<Result<Verdict, Error>> {
        ask(&self.scope, self.key, Ask { patience, ..self.ask.clone() })
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
        let mut asked = self.ask_for(patience);
        let verdict = loop {
            let mut verdict = asked.wait().map_err(LimitError::Cache)?;
            match verdict.again() {
                Some(again) => asked = again,
                None => break verdict,
            }
        };
        let quota = verdict.quotas.first;
        let (wait, turn) = match verdict.decided {
            Ok(admitted) => admitted,
            Err(refusal) => return Err(refusal.into_error(quota)),
        };
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

    /// As [`peek_all`](Limiter::peek_all).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn peek_all_blocking(&self) -> Result<Vec<Quota>, Error> {
        block_on(self.peek_all())
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

    /// As [`leave_at_most`](Limiter::leave_at_most).
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub fn leave_at_most_blocking(&self, remaining: u32) -> Result<(), Error> {
        block_on(self.leave_at_most(remaining))
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

#[cfg(test)]
mod tests;
