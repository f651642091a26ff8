//! The decision of a throttle, without tower: one row, one pure function, one turn.

use super::{
    quota::Quota,
    rate::{Decision, Rate},
};
use crate::{
    cache::{CELLS, Cache, Change, Found, Key, Kind, Pending, Scope, block_on, record::u64_at},
    error::Error,
};
use hyper::rt::Sleep;
use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

/// What a cell says.
#[derive(Clone, Copy, Debug)]
struct Cell {
    /// The theoretical arrival time, in ns of machine time.
    tat: u64,
    /// When that was written.
    written: u64,
    tag: u64,
}

impl Cell {
    fn read(found: Found<'_>) -> Option<Cell> {
        match found {
            Found::Row(row) => {
                Some(Cell { tat: u64_at(row.payload, 0)?, written: u64_at(row.payload, 8)?, tag: row.tag })
            }
            // A damaged cell is counted, and as good as a full bucket.
            Found::Absent | Found::Damaged => None,
        }
    }

    /// The arrival time, cut to the burst if nobody can be waiting any more: the machine has started since.
    fn tat_since(&self, booted: u64, rate: &Rate, now: u64) -> u64 {
        if self.written < booted { rate.cut(self.tat, now) } else { self.tat }
    }
}

/// What is to be decided.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) rate: Rate,
    pub(super) cost: u32,
    pub(super) patience: Duration,
    /// Digest of the cell's tag, 0 for none.
    pub(super) tag: u64,
    /// How long the cell is kept at least, in ns.
    pub(super) retention: u64,
}

impl Ask {
    /// The transition of the cell. `booted` is when the machine started.
    fn decide(&self, found: Found<'_>, now: u64, booted: u64) -> (Decision, Change) {
        let cell = Cell::read(found);
        let tat = cell.map(|cell| cell.tat_since(booted, &self.rate, now));
        let decision = self.rate.decide(tat, now, self.cost, self.patience);
        let change = match &decision {
            Decision::Admit { tat: next, .. } if *next != tat.unwrap_or(0) => self.put(*next, now, cell),
            _ => Change::Keep,
        };
        (decision, change)
    }

    fn put(&self, tat: u64, now: u64, cell: Option<Cell>) -> Change {
        let payload = [tat.to_le_bytes(), now.to_le_bytes()].concat();
        let tag = if self.tag == 0 { cell.map_or(0, |cell| cell.tag) } else { self.tag };
        Change::Put { expires: tat.max(now.saturating_add(self.retention)), tag, payload }
    }
}

/// How a decision came out.
#[derive(Debug)]
pub(super) enum Verdict {
    Admitted { wait: Duration, quota: Quota, turn: Turn },
    Refused { retry_after: Option<Duration>, quota: Quota },
}

/// A slot that was given out and is not yet used: dropped, it is given back.
#[derive(Debug)]
pub(super) struct Turn(Option<Reserved>);

#[derive(Debug)]
struct Reserved {
    scope: Scope,
    key: Key,
    ask: Ask,
    tat: u64,
}

impl Turn {
    /// The slot is used from now on.
    pub(super) fn spend(mut self) {
        self.0 = None;
    }

    /// Waits for the slot, which is used from then on.
    pub(super) fn comes_after(self, wait: Duration, scope: &Scope) -> Waiting {
        let handle = scope.handle();
        let now = handle.now();
        let due = now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
        Waiting { sleep: handle.sleep(wait), due, slept_at: now, scope: scope.clone(), turn: Some(self) }
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
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
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
        if let Some(turn) = self.turn.take() {
            turn.spend();
        }
        Poll::Ready(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(Reserved { scope, key, ask, tat }) = self.0.take() else { return };
        scope.post(CELLS, key, move |found, now| {
            let cell = Cell::read(found);
            let change = match ask.rate.give_back(cell.map(|cell| cell.tat), tat, ask.cost) {
                Some(before) => ask.put(before, now, cell),
                None => Change::Keep,
            };
            ((), change)
        });
    }
}

/// Asks for a turn, in one transaction.
pub(super) fn ask(scope: &Scope, key: Key, ask: Ask) -> Pending<Result<Verdict, Error>> {
    let booted = scope.handle().shared.offset;
    let held = scope.clone();
    scope.update(
        CELLS,
        key,
        move |found, now| ask.decide(found, now, booted),
        move |decision| {
            Ok(match decision? {
                Decision::Admit { tat, wait, quota } => {
                    let reserved = (ask.cost > 0).then_some(Reserved { scope: held, key, ask, tat });
                    Verdict::Admitted { wait, quota, turn: Turn(reserved) }
                }
                Decision::Refuse { retry_after, quota } => Verdict::Refused { retry_after, quota },
            })
        },
    )
}

/// A throttle by name, without tower.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_floodgate::{Cache, throttle::{LimitError, Rate}};
///
/// let cache = Cache::temporary()?;
/// let mails = cache.throttle("mails", Rate::new(2, Duration::from_secs(60)));
/// mails.check().await?;
/// assert_eq!(mails.check().await?.remaining, 0);
/// assert!(matches!(mails.check().await, Err(LimitError::Throttled { .. })));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Limit {
    scope: Scope,
    key: Key,
    rate: Rate,
}

/// Why a [`Limit`] did not admit.
#[derive(Debug)]
#[non_exhaustive]
pub enum LimitError {
    /// The budget is spent.
    #[non_exhaustive]
    Throttled {
        /// When to ask again; `None`: the cost is above the burst and never fits.
        retry_after: Option<Duration>,
        /// What is left.
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

impl Limit {
    fn ask(&self, cost: u32, patience: Duration) -> Pending<Result<Verdict, Error>> {
        ask(&self.scope, self.key, Ask { rate: self.rate, cost, patience, tag: 0, retention: 0 })
    }

    /// Admits one now or not at all.
    ///
    /// # Errors
    ///
    /// [`LimitError::Throttled`], or [`LimitError::Cache`] if the cache cannot be used.
    pub async fn check(&self) -> Result<Quota, LimitError> {
        self.acquire_at_most(1, Duration::ZERO).await
    }

    /// As [`check`](Limit::check), for plain threads.
    ///
    /// # Errors
    ///
    /// As [`check`](Limit::check).
    pub fn check_blocking(&self) -> Result<Quota, LimitError> {
        block_on(self.check())
    }

    /// Waits for a slot, first come first served over all processes. Dropped while it waits, it gives the slot back if
    /// that was the last one.
    ///
    /// # Errors
    ///
    /// [`LimitError::Cache`] if the cache cannot be used.
    pub async fn acquire(&self) -> Result<Quota, LimitError> {
        self.acquire_at_most(1, Duration::MAX).await
    }

    /// Waits for `cost` at once, unless it would take longer than `patience`: that is known, and said, at once.
    ///
    /// # Errors
    ///
    /// As [`check`](Limit::check).
    pub async fn acquire_at_most(&self, cost: u32, patience: Duration) -> Result<Quota, LimitError> {
        match self.ask(cost, patience).await.map_err(LimitError::Cache)? {
            Verdict::Admitted { wait, quota, turn } => {
                match wait.is_zero() {
                    true => turn.spend(),
                    false => turn.comes_after(wait, &self.scope).await,
                }
                Ok(quota)
            }
            Verdict::Refused { retry_after, quota } => Err(LimitError::Throttled { retry_after, quota }),
        }
    }

    /// What is left, without taking any of it.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn peek(&self) -> Result<Quota, Error> {
        let (rate, booted) = (self.rate, self.scope.handle().shared.offset);
        let peek = move |found: Found<'_>, now| {
            let tat = Cell::read(found).map(|cell| cell.tat_since(booted, &rate, now));
            (rate.quota(tat, now), Change::Keep)
        };
        self.scope.update(CELLS, self.key, peek, |quota| quota).await
    }

    /// Makes the bucket full again.
    ///
    /// # Errors
    ///
    /// If the cache cannot be used.
    pub async fn reset(&self) -> Result<(), Error> {
        self.scope.update(CELLS, self.key, |_, _| ((), Change::Remove), |done| done).await
    }
}

impl Scope {
    /// A throttle of this scope, by name. It shares its budget with the [`ThrottleLayer`](super::ThrottleLayer) of the
    /// same scope, for requests of that name, as [`name_of`](super::ThrottleLayer::name_of) writes it.
    pub fn throttle(&self, name: &str, rate: Rate) -> Limit {
        Limit { key: self.key(Kind::Throttle, name.as_bytes()), scope: self.clone(), rate }
    }
}

impl Cache {
    /// [`Scope::throttle`] of the [root](Cache::root) scope.
    pub fn throttle(&self, name: &str, rate: Rate) -> Limit {
        self.root().throttle(name, rate)
    }
}
