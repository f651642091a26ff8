//! What this process holds, and must renew from time to time.

use crate::store::record::key::Key;
use std::{
    collections::HashMap,
    fmt, ptr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

/// Something this process holds and must renew from time to time.
pub(crate) struct Holding {
    /// Tells it apart from others.
    pub(crate) number: u64,
    /// Real time at which it wants to be renewed next, and how often.
    pub(crate) due: Instant,
    pub(crate) every: Duration,
    pub(crate) renew: Weak<dyn Renew>,
}

/// Renews what is held. Never blocks.
pub(crate) trait Renew: Send + Sync {
    fn renew(self: Arc<Self>);
}

/// All that this process holds, by key.
#[derive(Default)]
pub(crate) struct Holdings(Mutex<HashMap<[u8; 16], Vec<Holding>>>);

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], Vec<Holding>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, key: &Key, holding: Holding) {
        self.lock().entry(key.hash).or_default().push(holding);
    }

    /// Ends a holding: the one of this guard, since several may have the same number.
    pub(crate) fn remove(&self, key: &Key, guard: &dyn Renew) {
        let mut holdings = self.lock();
        let Some(held) = holdings.get_mut(&key.hash) else { return };
        if let Some(at) = held.iter().position(|holding| ptr::addr_eq(holding.renew.as_ptr(), guard)) {
            held.swap_remove(at);
        }
        if held.is_empty() {
            holdings.remove(&key.hash);
        }
    }

    /// The numbers of what this process holds under the key.
    pub(crate) fn numbers(&self, key: &Key) -> Vec<u64> {
        self.lock().get(&key.hash).into_iter().flatten().map(|held| held.number).collect()
    }

    /// Renews what is due, and tells when the next one will be, `most` from now at the latest.
    pub(crate) fn renew(&self, most: Duration) -> Duration {
        let now = Instant::now();
        let (mut due, mut next) = (Vec::new(), most);
        for holding in self.lock().values_mut().flatten() {
            if holding.due <= now {
                holding.due = now + holding.every;
                due.extend(holding.renew.upgrade());
            }
            next = next.min(holding.due - now);
        }
        due.into_iter().for_each(Renew::renew);
        next
    }
}

impl fmt::Debug for Holdings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holdings").finish_non_exhaustive()
    }
}
