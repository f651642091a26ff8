//! The waiters of this process, and their wake-ups.
//!
//! A waiter is woken by its number, from this process or by a datagram from another. Wake-ups may get lost, so the
//! listener thread also looks at each key that has waiters, once for all of them.

use crate::store::{
    os::sync::{LINGER, Mutex, MutexGuard},
    record::key::Key,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

/// How often a key is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(30);
/// How often a key is looked at, at most, even if a watch asks for more.
const SOON: Duration = Duration::from_millis(1);
/// Keys that are looked at in one turn at most.
const LOOKS: usize = 1024;
/// Numbers that are remembered, since their wake-up came before they were registered.
const MISSED: usize = 64;

/// Looks at a key that has waiters in this process.
pub(crate) trait Watch: Send + Sync {
    /// Never blocks. Returns after how long to look again at the latest; after a [`TICK`] it is called in any case. The
    /// listener thread calls it, and no two threads at once. If it holds the last handle of the cache, that thread
    /// closes the files.
    fn look(self: Arc<Self>, key: Key) -> Duration;
}

/// The way to the listener thread.
pub(crate) trait Listener: Send + Sync {
    /// Starts the thread or wakes it from its sleep. `false`: it could not be started.
    fn wake(&self, wake_ups: &Arc<WakeUps>) -> bool;

    /// No waiter will come any more.
    fn close(&self);
}

/// All waiters of this process.
pub(crate) struct WakeUps {
    inner: Mutex<Inner>,
    listener: Box<dyn Listener>,
}

struct Inner {
    waiting: HashMap<u64, Arc<Waiting>>,
    /// Since when each of them waits.
    since: BTreeSet<(Instant, u64)>,
    keys: BTreeMap<[u8; 16], Watched>,
    /// The key behind which the next turn begins, where there are more than fit into one.
    cursor: [u8; 16],
    missed: [u64; MISSED],
    next_missed: usize,
    /// The thread ticks, or is being woken.
    awake: bool,
    idle: u32,
    /// When the next key is due.
    next: Instant,
    closed: bool,
}

struct Watched {
    key: Key,
    watch: Arc<dyn Watch>,
    waiters: HashMap<u64, Arc<Waiting>>,
    due: Instant,
}

struct Waiting {
    since: Instant,
    signal: Mutex<Signal>,
}

#[derive(Default)]
struct Signal {
    raised: bool,
    waker: Option<Waker>,
}

impl Waiting {
    fn wake(&self) {
        let mut signal = lock(&self.signal);
        signal.raised = true;
        let waker = signal.waker.take();
        drop(signal);
        if let Some(waker) = waker {
            // A waker that panics must not keep other waiters from being woken.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The number of waiters in this process, and how long they have waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitingCounts {
    pub(crate) waiting: usize,
    pub(crate) keys: usize,
    pub(crate) longest: Option<Duration>,
}

/// The next step of the listener thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    TickAt(Instant),
    /// It sleeps until it is woken.
    Sleep,
    End,
}

impl WakeUps {
    pub(crate) fn new(listener: Box<dyn Listener>) -> Arc<WakeUps> {
        let inner = Inner {
            waiting: HashMap::new(),
            since: BTreeSet::new(),
            keys: BTreeMap::new(),
            cursor: [0; 16],
            missed: [0; MISSED],
            next_missed: 0,
            awake: false,
            idle: 0,
            next: Instant::now(),
            closed: false,
        };
        Arc::new(WakeUps { inner: Mutex::new(inner), listener })
    }

    /// From now until the result is dropped, wake-ups of the number are noticed and the key is looked at. A wake-up
    /// that came just before counts.
    pub(crate) fn register(self: &Arc<Self>, key: Key, number: u64, watch: Arc<dyn Watch>) -> Registration {
        let now = Instant::now();
        let mut inner = lock(&self.inner);
        let signal = Signal { raised: inner.was_missed(number), waker: None };
        let waiting = Arc::new(Waiting { since: now, signal: Mutex::new(signal) });
        if let Some(before) = inner.waiting.insert(number, waiting.clone()) {
            inner.since.remove(&(before.since, number));
        }
        inner.since.insert((now, number));
        let due = inner.next;
        let watched = || Watched { key, watch, waiters: HashMap::new(), due };
        inner.keys.entry(key.hash).or_insert_with(watched).waiters.insert(number, waiting.clone());
        inner.idle = 0;
        drop(inner);
        self.ensure_listening();
        Registration { wake_ups: self.clone(), key, number, waiting }
    }

    /// Wakes the listener thread if there are waiters and it sleeps, or could not be started before. `false`: there is no
    /// such thread, so that nothing looks after the waiters. They are all woken, to find that out too.
    pub(crate) fn ensure_listening(self: &Arc<Self>) -> bool {
        let mut inner = lock(&self.inner);
        let sleeps = !inner.awake && !inner.closed && !inner.keys.is_empty();
        inner.awake |= sleeps;
        drop(inner);
        if !sleeps || self.listener.wake(self) {
            return true;
        }
        let mut inner = lock(&self.inner);
        inner.awake = false;
        let all: Vec<_> = inner.waiting.values().cloned().collect();
        drop(inner);
        all.iter().for_each(|waiting| waiting.wake());
        false
    }

    /// Wakes the waiter with this number. `false`: there is none, or not yet.
    pub(crate) fn wake(&self, number: u64) -> bool {
        let mut inner = lock(&self.inner);
        let Some(waiting) = inner.waiting.get(&number).cloned() else {
            let at = inner.next_missed;
            inner.missed[at] = number;
            inner.next_missed = (at + 1) % MISSED;
            return false;
        };
        drop(inner);
        waiting.wake();
        true
    }

    /// Wakes all waiters of a key.
    pub(crate) fn wake_all(&self, key: &Key) {
        let all: Vec<_> = {
            let inner = lock(&self.inner);
            inner.keys.get(&key.hash).into_iter().flat_map(|watched| watched.waiters.values().cloned()).collect()
        };
        all.iter().for_each(|waiting| waiting.wake());
    }

    pub(crate) fn waiting_counts(&self) -> WaitingCounts {
        let inner = lock(&self.inner);
        let longest = inner.since.first().map(|(since, _)| since.elapsed());
        WaitingCounts { waiting: inner.waiting.len(), keys: inner.keys.len(), longest }
    }

    /// The listener thread's turn: it looks at the keys that are due or, in a `hurry`, at all.
    pub(super) fn tick(&self, now: Instant, hurry: bool) -> Next {
        let due = {
            let mut inner = lock(&self.inner);
            if inner.closed {
                return Next::End;
            }
            if inner.next > now && !hurry {
                return Next::TickAt(inner.next);
            }
            if inner.falls_asleep(now) {
                return Next::Sleep;
            }
            inner.due(now, hurry)
        };
        let mut soon = Vec::new();
        for (key, watch) in due {
            let looked = catch_unwind(AssertUnwindSafe(|| watch.look(key))).unwrap_or(TICK);
            if looked < TICK {
                soon.push((key.hash, now + looked.max(SOON)));
            }
        }
        let mut inner = lock(&self.inner);
        for (key, due) in soon {
            let Some(watched) = inner.keys.get_mut(&key) else { continue };
            watched.due = watched.due.min(due);
            inner.next = inner.next.min(due);
        }
        match inner.closed {
            true => Next::End,
            false => Next::TickAt(inner.next),
        }
    }

    /// Ends the listener thread.
    pub(crate) fn close(&self) {
        lock(&self.inner).closed = true;
        self.listener.close();
    }
}

impl Inner {
    fn was_missed(&mut self, number: u64) -> bool {
        let missed = self.missed.iter().position(|&missed| missed == number && missed != 0);
        if let Some(at) = missed {
            self.missed[at] = 0;
        }
        missed.is_some()
    }

    fn falls_asleep(&mut self, now: Instant) -> bool {
        self.idle = if self.keys.is_empty() { self.idle + 1 } else { 0 };
        let asleep = self.idle > LINGER;
        if asleep {
            self.awake = false;
            self.idle = 0;
            // The waiter that wakes the thread is looked after at once.
            self.next = now;
        }
        asleep
    }

    /// The next of the keys that are due. Also sets when the next turn is.
    fn due(&mut self, now: Instant, hurry: bool) -> Vec<(Key, Arc<dyn Watch>)> {
        self.next = now + TICK;
        let cursor = if self.keys.len() > LOOKS { self.cursor } else { [0; 16] };
        let ranges = [(Bound::Excluded(cursor), Bound::Unbounded), (Bound::Unbounded, Bound::Included(cursor))];
        let (mut due, mut seen) = (Vec::new(), 0);
        for range in ranges {
            for (key, watched) in self.keys.range_mut(range).take(LOOKS - seen) {
                seen += 1;
                self.cursor = *key;
                if watched.due <= now || hurry {
                    watched.due = now + TICK;
                    due.push((watched.key, watched.watch.clone()));
                }
                self.next = self.next.min(watched.due);
            }
        }
        due
    }
}

impl fmt::Debug for WakeUps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WakeUps").field("waiting_counts", &self.waiting_counts()).finish_non_exhaustive()
    }
}

/// A registered waiter. It leaves when this is dropped.
pub(crate) struct Registration {
    wake_ups: Arc<WakeUps>,
    key: Key,
    number: u64,
    waiting: Arc<Waiting>,
}

impl Registration {
    /// Whether the waiter was woken since this was last called. The next wake-up wakes this waker, and no earlier one.
    pub(crate) fn was_woken(&self, waker: &Waker) -> bool {
        let waker = waker.clone();
        let mut signal = lock(&self.waiting.signal);
        let before = signal.waker.replace(waker);
        let raised = std::mem::take(&mut signal.raised);
        drop(signal);
        drop(before);
        raised
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut inner = lock(&self.wake_ups.inner);
        let leave = |waiting: &mut HashMap<u64, Arc<Waiting>>| match waiting.get(&self.number) {
            Some(waiter) if Arc::ptr_eq(waiter, &self.waiting) => waiting.remove(&self.number),
            _ => None,
        };
        let waiting = leave(&mut inner.waiting);
        if let Some(waiting) = &waiting {
            inner.since.remove(&(waiting.since, self.number));
        }
        let mut watched = None;
        if let Some(others) = inner.keys.get_mut(&self.key.hash) {
            leave(&mut others.waiters);
            if others.waiters.is_empty() {
                watched = inner.keys.remove(&self.key.hash);
            }
        }
        drop(inner);
        // These drops may run the user's code, so they happen outside the lock.
        drop((waiting, watched));
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
