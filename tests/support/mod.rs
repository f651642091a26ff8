//! Child processes: the test binary runs itself again, in a role.

#![allow(dead_code)]

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    io::{BufRead, BufReader, Lines, Write},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};
use tower_floodgate::{
    Builder, Cache, Error,
    throttle::{LimitError, Limiter, Permit, Rate},
};

/// What a child says begins with this: the test harness talks on the same stream.
const MARK: &str = "child: ";

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Small, and patient: nothing but the tests of patience may fail on a slow machine.
pub(crate) fn builder(path: &Path) -> Builder {
    Cache::builder(path).size(4 << 20).state_size(1 << 20).patience(LONG)
}

/// A budget that counts: it is far larger than any test spends, and regains nothing within an hour.
fn counter(cache: &Cache, name: &str) -> Limiter {
    cache.throttle(name, Rate::new(1, Duration::from_secs(3_600)).burst(500_000))
}

fn spent(checked: Result<Permit, LimitError>) -> Result<u64, Error> {
    match checked {
        Ok(permit) => Ok(u64::from(permit.quota.limit - permit.quota.remaining)),
        Err(LimitError::Cache(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

/// Adds 1 to a number that stands among the throttle cells, and answers it.
pub(crate) fn count(cache: &Cache, name: &str) -> Result<u64, Error> {
    spent(counter(cache, name).check_blocking())
}

/// As [`count`], for tasks.
pub(crate) async fn count_async(cache: &Cache, name: &str) -> Result<u64, Error> {
    spent(counter(cache, name).check().await)
}

static STARTING: RwLock<()> = RwLock::new(());

/// To be kept while a child is started. Until it runs its own program it shares the file locks of this process, even
/// those of a cache that is closed meanwhile.
pub(crate) fn starting() -> RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(PoisonError::into_inner)
}

/// Kept by who relies on it that what it closes is in nobody's use.
pub(crate) fn nobody_starts() -> RwLockWriteGuard<'static, ()> {
    STARTING.write().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) struct Child {
    child: std::process::Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Runs the ignored test `child` of this binary, which asks for its [`role`].
    pub(crate) fn spawn(role: &str, path: &Path) -> Child {
        let _starting = starting();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--nocapture"])
            .env("FLOODGATE_ROLE", role)
            .env("FLOODGATE_PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Child { child, lines }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
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

    pub(crate) fn expect(&mut self, wanted: &str) {
        assert_eq!(self.heard().as_deref(), Some(wanted));
    }

    pub(crate) fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Tells a child that may have ended.
    pub(crate) fn try_tell(&mut self, line: &str) {
        let _ = writeln!(self.child.stdin.as_mut().unwrap(), "{line}");
    }

    /// Returns when the child has stopped itself.
    pub(crate) fn wait_until_stopped(&self) {
        let status = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(status, WaitStatus::Stopped(_, Signal::SIGSTOP)), "{status:?}");
    }

    pub(crate) fn go_on(&self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn end(mut self) {
        drop(self.child.stdin.take());
        while self.heard().is_some() {}
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The role and the directory of this process, if it is a child.
pub(crate) fn role() -> Option<(String, PathBuf)> {
    Some((std::env::var("FLOODGATE_ROLE").ok()?, std::env::var_os("FLOODGATE_PATH")?.into()))
}

pub(crate) fn say(what: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{MARK}{what}").unwrap();
    out.flush().unwrap();
}

/// The next line of the parent; `None` if it wants no more.
pub(crate) fn told() -> Option<String> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).unwrap();
    (read > 0).then(|| line.trim().to_owned())
}

/// The files of that name anywhere below a directory.
pub(crate) fn files(below: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).unwrap().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path(), name));
        } else if entry.file_name() == name {
            found.push(entry.path());
        }
    }
    found
}
