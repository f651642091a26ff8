//! What the tests of this module share.

use super::{Builder, Cache, env::Env, gate::Gate, lane::Lane, state::State};
use crate::time::clock_fn;
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn builder() -> Builder {
    // Patient: nothing but the tests of patience may fail on a slow machine.
    Cache::builder_temporary().size(1 << 20).state_size(1 << 20).patience(LONG)
}

pub(crate) fn cache() -> Cache {
    builder().open().unwrap()
}

pub(crate) fn state(cache: &Cache) -> &Arc<State> {
    &cache.handle.shared.state
}

/// A clock in the test's hand, in seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hand(Arc<AtomicU64>);

impl Hand {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as u64, SeqCst);
    }

    pub(crate) fn on(&self, builder: Builder) -> Cache {
        let now = self.0.clone();
        let clock = clock_fn(move || Duration::from_nanos(now.load(SeqCst)), |_| std::future::pending());
        builder.clock(clock).open().unwrap()
    }
}

/// Somebody else who holds a gate: another thread with a mapping of its own, as another process would have.
pub(crate) struct Holder {
    release: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    pub(crate) fn of(lane: &Lane) -> Holder {
        Holder::at(lane.env.path().join("gate"))
    }

    pub(crate) fn at(path: PathBuf) -> Holder {
        let (release, released) = mpsc::channel::<()>();
        let (hold, held) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let gate = Gate::open(&path, false).unwrap();
            let turn = gate.lock_for(LONG).unwrap().unwrap();
            hold.send(()).unwrap();
            let _ = released.recv();
            drop(turn);
        });
        held.recv().unwrap();
        Holder { release: Some(release), thread: Some(thread) }
    }

    pub(crate) fn release(self) {}
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.release = None;
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Runs `f` in a write transaction of the lane's environment, behind everybody's back.
pub(crate) fn tamper<T>(lane: &Lane, f: impl FnOnce(&mut super::env::Txn<'_>) -> T) -> T {
    let env: &Env = &lane.env;
    let held = env.gate.lock_for(LONG).unwrap().unwrap();
    env.write(&held, |txn| Ok((f(txn), true))).unwrap()
}
