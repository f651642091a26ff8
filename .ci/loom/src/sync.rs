//! Loom's locks and atomics, in the place of `src/store/os/sync.rs`.

use loom::sync::atomic::{self, Ordering};
pub use loom::{
    hint::spin_loop,
    sync::{Mutex, MutexGuard},
};

pub const LINGER: u32 = 0;
pub const SPIN: usize = 1;

// Loom takes sequentially consistent loads and stores for weaker ones, and finds faults that are none. In loom, only
// read-modify-write operations always see the last value. Where all accesses are sequentially consistent, loads and
// stores do so too.

#[derive(Debug)]
pub struct AtomicBool(atomic::AtomicBool);

impl AtomicBool {
    pub fn new(value: bool) -> Self {
        Self(atomic::AtomicBool::new(value))
    }

    pub fn load(&self, order: Ordering) -> bool {
        assert_eq!(order, Ordering::SeqCst);
        self.0.fetch_or(false, order)
    }

    pub fn store(&self, value: bool, order: Ordering) {
        self.swap(value, order);
    }

    pub fn swap(&self, value: bool, order: Ordering) -> bool {
        assert_eq!(order, Ordering::SeqCst);
        self.0.swap(value, order)
    }
}

#[derive(Debug)]
pub struct AtomicUsize(atomic::AtomicUsize);

impl AtomicUsize {
    pub fn new(value: usize) -> Self {
        Self(atomic::AtomicUsize::new(value))
    }

    pub fn load(&self, order: Ordering) -> usize {
        assert_eq!(order, Ordering::SeqCst);
        self.0.fetch_add(0, order)
    }

    pub fn store(&self, value: usize, order: Ordering) {
        assert_eq!(order, Ordering::SeqCst);
        self.0.swap(value, order);
    }
}
