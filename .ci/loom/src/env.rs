//! An environment that counts, its gate, and a worker that is notified or not.

use crate::{error::Error, sync::AtomicBool};
use loom::sync::{Mutex, MutexGuard, atomic::Ordering::SeqCst};
use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

pub struct Gate(Mutex<()>);

pub struct Held<'a>(MutexGuard<'a, ()>);

impl Gate {
    pub fn try_lock(&self) -> Result<Option<Held<'_>>, Error> {
        Ok(self.0.try_lock().ok().map(Held))
    }

    /// The patience is as long as it takes: an end of patience is not a matter of interleavings.
    pub fn lock_for(&self, _: Duration) -> Result<Option<Held<'_>>, Error> {
        Ok(self.0.lock().ok().map(Held))
    }
}

pub struct Env {
    pub gate: Gate,
    inside: AtomicBool,
}

pub struct Txn<'a>(PhantomData<&'a ()>);

impl Env {
    pub fn new() -> Env {
        Env { gate: Gate(Mutex::new(())), inside: AtomicBool::new(false) }
    }

    pub fn forked(&self) -> bool {
        false
    }

    pub fn look_if_due(&self) {}

    pub fn is_sound(&self) -> bool {
        true
    }

    pub fn is_to_be_replaced(&self) -> bool {
        false
    }

    pub fn last_transaction(&self) -> u64 {
        0
    }

    pub fn write<T>(&self, _: &Held<'_>, f: impl FnOnce(&mut Txn<'_>) -> Result<(T, bool), Error>) -> Result<T, Error> {
        assert!(!self.inside.swap(true, SeqCst), "two at once");
        let done = f(&mut Txn(PhantomData));
        self.inside.store(false, SeqCst);
        done.map(|done| done.0)
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Env")
    }
}

pub struct Worker(AtomicBool);

impl Worker {
    pub fn new() -> Worker {
        Worker(AtomicBool::new(false))
    }

    pub fn notify(self: &Arc<Self>) -> bool {
        self.0.store(true, SeqCst);
        true
    }

    /// Whether it was notified since it was last asked.
    pub fn was_notified(&self) -> bool {
        self.0.swap(false, SeqCst)
    }
}
