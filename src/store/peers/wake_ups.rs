//! Who waits in this process, and how they are called.
//!
//! A waiter is called by its number, from this process or by a datagram from another. WakeUps may get lost; so each key for
//! which somebody waits is looked at as well, once for all who wait, by the listening thread.

use crate::store::{
    os::sync::{LINGER, Mutex, MutexGuard},
    record::key::Key,
};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    ops::Bound,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError},
    task::Waker,
    time::{Duration, Instant},
};

/// How often a key is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(30);
/// And how often at most, whoever asks for more.
const SOON: Duration = Duration::from_millis(1);
/// Keys that are looked at in one turn at most.
const LOOKS: usize = 1024;
/// Numbers that are remembered since they were called before they were registered.
const MISSED: usize = 64;

/// Looks at a key for which somebody here waits.
pub(crate) trait Watch: Send + Sync {
    /// Never blocks. Answers when to look again at the latest; a [`TICK`] later it is asked in any case. Signal by the
    /// listening thread, and by no two threads at once. Should it be the last to hold a handle of the cache, that thread
    /// closes the files.
    fn look(self: Arc<Self>, key: Key) -> Duration;
}

/// The way to the listening thread.
pub(crate) trait Listener: Send + Sync {
    /// Starts the thread or wakes it from its sleep. `false`: it could not be started.
    fn wake(&self, wake_ups: &Arc<WakeUps>) -> bool;

    /// Nobody will wait any more.
    fn close(&self);
}

/// All who wait in this process.
pub(crate) struct WakeUps {
    inner: Mutex<Inner>,
    listener: Box<dyn Listener>,
}

struct Inner {
    waiting: HashMap<u64, Arc<Waiting>>,
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
            // Whoever else is to be called must not suffer from it.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many wait in this process, and how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WaitingCounts {
    pub(crate) waiting: usize,
    pub(crate) keys: usize,
    pub(crate) longest: Option<Duration>,
}

/// What the listening thread does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    TickAt(Instant),
    /// Until it is woken.
    Sleep,
    End,
}

impl WakeUps {
    pub(crate) fn new(listener: Box<dyn Listener>) -> Arc<WakeUps> {
        let inner = Inner {
            waiting: HashMap::new(),
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

    /// From now until the answer is dropped, wake_ups of the number are noticed and the key is looked at. A call that came
    /// just before counts.
    pub(crate) fn register(self: &Arc<Self>, key: Key, number: u64, watch: Arc<dyn Watch>) -> WakeUp {
        let now = Instant::now();
        let mut inner = lock(&self.inner);
        let signal = Signal { raised: inner.was_missed(number), waker: None };
        let waiting = Arc::new(Waiting { since: now, signal: Mutex::new(signal) });
        inner.waiting.insert(number, waiting.clone());
        let due = inner.next;
        let watched = || Watched { key, watch, waiters: HashMap::new(), due };
        inner.keys.entry(key.hash).or_insert_with(watched).waiters.insert(number, waiting.clone());
        inner.idle = 0;
        drop(inner);
        self.ensure_listening();
        WakeUp { wake_ups: self.clone(), key, number, waiting }
    }

    /// Wakes the listening thread if somebody waits and it sleeps, or could not be started before.
    pub(crate) fn ensure_listening(self: &Arc<Self>) {
        let mut inner = lock(&self.inner);
        let sleeps = !inner.awake && !inner.closed && !inner.keys.is_empty();
        inner.awake |= sleeps;
        drop(inner);
        if sleeps && !self.listener.wake(self) {
            lock(&self.inner).awake = false;
        }
    }

    /// WakeUps who waits with this number. `false`: nobody does, or not yet.
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

    /// WakeUps all who wait for a key.
    pub(crate) fn wake_all(&self, key: &Key) {
        let all: Vec<_> = {
            let inner = lock(&self.inner);
            inner.keys.get(&key.hash).into_iter().flat_map(|watched| watched.waiters.values().cloned()).collect()
        };
        all.iter().for_each(|waiting| waiting.wake());
    }

    pub(crate) fn waiting_counts(&self) -> WaitingCounts {
        let inner = lock(&self.inner);
        let longest = inner.waiting.values().map(|waiting| waiting.since.elapsed()).max();
        WaitingCounts { waiting: inner.waiting.len(), keys: inner.keys.len(), longest }
    }

    /// The listening thread's turn: looks at the keys that are due or, in a `hurry`, at all.
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

    /// Ends the listening thread.
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
            // Whoever wakes it is looked after at once.
            self.next = now;
        }
        asleep
    }

    /// The next of the keys that are due, and when the next turn is.
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

/// Somebody who waits to be called; no more once it is dropped.
pub(crate) struct WakeUp {
    wake_ups: Arc<WakeUps>,
    key: Key,
    number: u64,
    waiting: Arc<Waiting>,
}

impl WakeUp {
    /// Whether it was called since it was last asked. The waker is woken by the next call, instead of one before.
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

impl Drop for WakeUp {
    fn drop(&mut self) {
        let mut inner = lock(&self.wake_ups.inner);
        let leave = |waiting: &mut HashMap<u64, Arc<Waiting>>| match waiting.get(&self.number) {
            Some(waiter) if Arc::ptr_eq(waiter, &self.waiting) => waiting.remove(&self.number),
            _ => None,
        };
        let waiting = leave(&mut inner.waiting);
        let mut watched = None;
        if let Some(others) = inner.keys.get_mut(&self.key.hash) {
            leave(&mut others.waiters);
            if others.waiters.is_empty() {
                watched = inner.keys.remove(&self.key.hash);
            }
        }
        drop(inner);
        // What is the user's is dropped outside the lock.
        drop((waiting, watched));
    }
}

impl fmt::Debug for WakeUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WakeUp").field("number", &self.number).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
