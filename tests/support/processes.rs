//! Child processes of a test: the test binary runs itself again, in a role.
//!
//! A file that uses this has one ignored test named `child`, which plays its [`role`] in a child and does nothing elsewhere.
//! Child and parent speak in lines: the child's stdin, and those lines of its stdout that it [`say`]s.

#![allow(dead_code)] // each file uses a part of it

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Lines, Write},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ChildStdout, Command, ExitStatus, Stdio},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};
use tower_floodgate::{
    Builder, Cache,
    lock::{Holder, Owner},
};

/// What a child says begins with this: the test harness talks on the same stream.
const MARK: &str = "child: ";

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// A small cache with a long patience: a busy machine is not taken for a failed cache.
pub(crate) fn builder(path: &Path) -> Builder {
    Cache::builder(path).size(4 << 20).state_size(1 << 20).patience(LONG)
}

pub(crate) fn open(path: &Path) -> Cache {
    builder(path).open().unwrap()
}

static STARTING: RwLock<()> = RwLock::new(());

/// A test keeps this while it starts a process. Until that runs its own program it shares the file locks of this process,
/// even those of a cache that is closed meanwhile.
pub(crate) fn starting() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// A test keeps this while it relies on it that nobody uses what it has closed.
pub(crate) fn nobody_starts() -> RwLockWriteGuard<'static, ()> {
    STARTING.write().unwrap_or_else(PoisonError::into_inner)
}

/// A child process, killed when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Runs the ignored test `child` of this binary, which asks for its [`role`].
    pub(crate) fn spawn(role: &str, path: &Path) -> Child {
        Child::spawn_by(Command::new(std::env::current_exe().unwrap()), role, path)
    }

    /// Does the same by a command that runs this binary with the arguments behind.
    pub(crate) fn spawn_by(mut binary: Command, role: &str, path: &Path) -> Child {
        let _starting = starting();
        let mut process = binary
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("FLOODGATE_ROLE", role)
            .env("FLOODGATE_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        Child { process, lines }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().unwrap())
    }

    /// What the child says next; `None` when it has ended.
    pub(crate) fn heard(&mut self) -> Option<String> {
        loop {
            let line = self.lines.next()?.unwrap();
            // The harness does not end its own line before a test speaks.
            if let Some((_, said)) = line.split_once(MARK) {
                return Some(said.to_owned());
            }
        }
    }

    /// What the child says next. It must not have ended.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        self.heard().expect("the child has ended")
    }

    #[track_caller]
    pub(crate) fn expect(&mut self, wanted: &str) {
        assert_eq!(self.heard().as_deref(), Some(wanted));
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Tells a child that may have ended.
    pub(crate) fn try_tell(&mut self, line: &str) {
        let _ = writeln!(self.process.stdin.as_mut().unwrap(), "{line}");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Stops the child, and waits until all of its threads have stopped: they may run on for a while.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        self.wait_until_stopped();
    }

    /// Returns when the child is stopped, by whomever.
    pub(crate) fn wait_until_stopped(&self) {
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{status:?}");
    }

    pub(crate) fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// `kill -9`, and waits until it is gone. It must have lived until then.
    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        let status = self.process.wait().unwrap();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{status}");
    }

    /// Waits for its end, and returns how it ended.
    pub(crate) fn ended(mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn end(mut self) {
        drop(self.process.stdin.take());
        while self.heard().is_some() {}
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The role and the directory of this process, if it is a child.
pub(crate) fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var("FLOODGATE_ROLE").ok()?, std::env::var_os("FLOODGATE_PATH")?.into()))
}

/// A child says a line to its parent.
pub(crate) fn say(what: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{what}").unwrap();
    out.flush().unwrap();
}

/// A child waits for the next line of its parent; `None` if that wants no more.
pub(crate) fn told() -> Option<String> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).unwrap();
    (read > 0).then(|| line.trim().to_owned())
}

/// A child does nothing more until somebody kills it.
pub(crate) fn wait_to_be_killed() -> ! {
    loop {
        std::thread::park();
    }
}

/// A role: takes the lock `l` in the cache and stays in the middle of the write, so that nobody else can write. Says "in".
pub(crate) fn sit_in_the_gate(path: &Path) {
    let cache = Cache::open(path).unwrap();
    // A rule runs inside the transaction.
    let endless = |_: &[Holder], _: &Owner| {
        say("in");
        wait_to_be_killed()
    };
    let _ = cache.lock("l").rule(endless).acquire_blocking();
}
