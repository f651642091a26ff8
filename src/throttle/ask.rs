//! The decision of a throttle: one row, one pure function, one turn.

use super::{
    Quota,
    algorithm::Moment,
    cell::{Block, By, Cell, Quotas, Refusal, Slots},
    limits::Limits,
    turn::{Held, Taken, Turn},
};
use crate::{
    cache::{CELLS, Change, Event, Found, Key, Line, Pending, Scope, Step, Waiter},
    error::Error,
};
use std::{
    fmt,
    sync::Arc,
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
pub(super) struct Times {
    booted: u64,
    /// How far the wall clock was ahead of machine time.
    lead: i64,
}

impl Times {
    pub(super) fn of(scope: &Scope, limits: &Limits) -> Times {
        let handle = scope.handle();
        let lead = match limits.iter().any(|limit| limit.rule.reads_wall()) {
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
pub(super) struct Opened {
    pub(super) cell: Cell,
    pub(super) tag: u64,
    pub(super) at: Moment,
}

impl Opened {
    #[inline]
    pub(super) fn new(found: Found<'_>, limits: &Limits, times: Times, now: u64) -> Opened {
        let at = times.at(now);
        let (payload, tag) = match found {
            Found::Row(row) => (Some(row.payload), row.tag),
            // A damaged cell is counted, and as good as a full budget.
            Found::Absent | Found::Damaged => (None, 0),
        };
        Opened { cell: Cell::open(payload, limits, at, times.booted), tag, at }
    }

    pub(super) fn put(&self, tag: u64, retention: u64) -> Change {
        let tag = if tag == 0 { self.tag } else { tag };
        let expires = self.cell.ends().max(self.at.now.saturating_add(retention));
        Change::Put { expires, tag, payload: self.cell.write() }
    }
}

/// What a transaction says of an [`Ask`].
pub(super) struct Said {
    /// When its turn is, how long that is to wait, and what was taken.
    decided: Result<(u64, Duration, Slots), Refusal>,
    /// When the request went, if it is waited for.
    sent: Option<u64>,
    quotas: Quotas,
    /// Instances of other processes that wait in front.
    strangers: Vec<u64>,
    /// Those that are known to be dead: some of their turns may still stand in the line.
    dead: Vec<u64>,
}

/// The part of an [`Ask`] that runs in the transaction.
pub(super) struct Transition {
    pub(super) ask: Ask,
    pub(super) times: Times,
    pub(super) instance: u64,
    pub(super) ticket: u64,
    /// Instances whose turns will not be taken.
    pub(super) dead: Vec<u64>,
    /// What was taken before for the same request, whose turn has come.
    pub(super) held: Option<Held>,
}

impl Transition {
    pub(super) fn run(&self, found: Found<'_>, line: &Line<'_>, now: u64) -> (Said, Change, Vec<Step>) {
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
                let decided = Ok((now, Duration::ZERO, slots.clone()));
                let said = Said { decided, sent: Some(now), quotas, strangers: Vec::new(), dead: Vec::new() };
                return (said, opened.put(terms.tag, terms.retention), steps);
            }
            opened.cell.free(slots, slots.cost, now);
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
            if let (Ok(turn), true, None) = (planned, waiting.len() >= terms.queue, &self.held) {
                let next = waiting.first().map_or(turn, |first| first.turn).saturating_sub(now);
                planned = Err(Refusal { by: By::Queue, after: Some(Duration::from_nanos(next)) });
            }
        }
        let mut changed = !steps.is_empty() || self.held.is_some() || opened.cell.is_remade();
        let mut sent = None;
        let decided = planned.map(|turn| {
            changed |= ask.cost > 0;
            let slots = opened.cell.take(turn, ask.cost, now);
            if turn > now {
                let (ticket, instance) = (self.ticket, self.instance);
                let payload = slots.write(terms.limits.mark());
                steps.push(Step::Join(Waiter { turn, ticket, until: turn, instance, payload }));
            } else if terms.learns {
                opened.cell.sent(now);
                (sent, changed) = (Some(now), true);
            }
            (turn, Duration::from_nanos(turn - now), slots)
        });
        let by = decided.as_ref().err().map(|refusal| refusal.by);
        if let (Some(block), true) = (terms.block, by.is_some()) {
            changed |= opened.cell.refused(block, now);
        }
        let quotas = opened.cell.quotas(&terms.limits, by, now);
        let change = if changed { opened.put(terms.tag, terms.retention) } else { Change::Keep };
        let dead = if strangers.is_empty() { Vec::new() } else { self.dead.clone() };
        (Said { decided, sent, quotas, strangers, dead }, change, steps)
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
        let Again { scope, key, ask, strangers, mut dead } = again;
        let found_dead = scope.dead_among(&strangers);
        if found_dead.is_empty() {
            return None;
        }
        self.decided = Err(Refusal { by: By::Queue, after: None });
        dead.extend(found_dead);
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
pub(super) struct Question {
    scope: Scope,
    key: Key,
    ask: Ask,
    instance: u64,
    ticket: u64,
}

impl Question {
    pub(super) fn new(scope: &Scope, key: Key, ask: Ask) -> Question {
        let waits = !ask.patience.is_zero();
        let instance = if waits { scope.instance().unwrap_or(0) } else { 0 };
        let ticket = if waits { rand::random() } else { 0 };
        Question { scope: scope.clone(), key, ask, instance, ticket }
    }

    pub(super) fn transition(&self, dead: Vec<u64>) -> Transition {
        let times = Times::of(&self.scope, &self.ask.terms.limits);
        let Question { ask, instance, ticket, .. } = self;
        Transition { ask: ask.clone(), times, instance: *instance, ticket: *ticket, dead, held: None }
    }

    pub(super) fn verdict(self, said: Said) -> Verdict {
        let Said { decided, sent, quotas, strangers, dead } = said;
        let Question { scope, key, ask, ticket, .. } = self;
        let again = (!strangers.is_empty())
            .then(|| Box::new(Again { scope: scope.clone(), key, ask: ask.clone(), strangers, dead }));
        let decided = decided.map(|(turn, wait, slots)| {
            let row = (!wait.is_zero()).then_some((turn, ticket));
            let taken = Taken { scope, key, terms: ask.terms, slots, row, sent };
            (wait, Turn::new(taken))
        });
        Verdict { decided, quotas, again }
    }
}

/// Counts a request that is let pass now.
pub(super) fn note_admitted(scope: &Scope, quota: &Quota, waited: Duration) {
    scope.note(Event::Admitted);
    if u64::from(quota.remaining) * 5 <= u64::from(quota.limit) {
        scope.note(Event::NearLimit);
    }
    if !waited.is_zero() {
        scope.note(Event::Waited);
    }
}

/// Counts and logs a request that is over the limit.
pub(super) fn note_refused(scope: &Scope, refusal: &Refusal, quota: &Quota, shadow: bool) {
    scope.note(Event::Throttled);
    tracing::debug!(
        scope = scope.name(),
        limit = quota.name.as_deref(),
        most = quota.limit,
        window = ?quota.window,
        reason = ?refusal.reason(),
        retry_after = ?refusal.after,
        shadow,
        "throttled"
    );
}

impl fmt::Debug for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Again").field("strangers", &self.strangers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
