//! Helpers that unit tests share.

use super::{builder::Builder, cache::Cache};
use crate::{
    store::{Env, Gate, State, Txn, WriteQueue},
    time::clock_fn,
};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Stdio},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
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
    &cache.handle().shared.state
}

/// The directory in which the environments and the layout are.
pub(crate) fn home(cache: &Cache) -> PathBuf {
    let generation = state(cache).queue.env.path();
    generation.ancestors().nth(2).unwrap().to_path_buf()
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

/// A thread that holds a gate through a mapping of its own, as another process would.
pub(crate) struct Holder {
    release: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Holder {
    pub(crate) fn of(queue: &WriteQueue) -> Holder {
        Holder::at(queue.env.path().with_file_name("gate"))
    }

    pub(crate) fn at(path: PathBuf) -> Holder {
        let (release, released) = mpsc::channel::<()>();
        let (hold, held) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let gate = Gate::open(&path).unwrap();
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

/// Runs `f` in a write transaction of the queue's environment, past the queue.
pub(crate) fn tamper<T>(queue: &WriteQueue, f: impl FnOnce(&mut Txn<'_>) -> T) -> T {
    let env: &Env = &queue.env;
    let held = env.gate.lock_for(LONG).unwrap().unwrap();
    env.write(&held, |txn| Ok((f(txn), true))).unwrap()
}

static STARTING: RwLock<()> = RwLock::new(());

/// Held while a process is started. Until the new process runs its own program, it shares the file locks of this one,
/// even those of a cache that is closed meanwhile.
pub(crate) fn starting() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Held by a test that relies on no other process using the files that it closes.
pub(crate) fn nobody_starts() -> RwLockWriteGuard<'static, ()> {
    STARTING.write().unwrap_or_else(PoisonError::into_inner)
}

/// Another process, killed when dropped: this test binary run again for one ignored test, with a [`part`] to play.
pub(crate) struct Child {
    process: std::process::Child,
    lines: BufReader<ChildStderr>,
}

/// The part that a child is to play, and its directory.
pub(crate) fn part() -> Option<(String, PathBuf)> {
    Some((std::env::var("FLOODGATE_PART").ok()?, std::env::var_os("FLOODGATE_PATH")?.into()))
}

/// A child says a line to its parent.
pub(crate) fn say(line: impl std::fmt::Display) {
    eprintln!("{line}");
}

/// A child waits for the next line of its parent.
pub(crate) fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

impl Child {
    pub(crate) fn start(test: &str, part: &str, path: &Path) -> Child {
        let _starting = starting();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--ignored", "--nocapture"])
            .env("FLOODGATE_PART", part)
            .env("FLOODGATE_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap());
        Child { process, lines }
    }

    /// The next line of the child; empty at its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().unwrap())
    }

    /// Returns when the child is stopped.
    pub(crate) fn stop(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{status:?}");
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
