//! Child processes of a test: the test binary run again, with a part to play.
//!
//! A file that uses this has one test named `child`, which plays its [`part`] in a child and does nothing elsewhere. Child
//! and parent speak in lines: the child's stdin and stderr (its stdout belongs to the test harness).

#![allow(dead_code)] // each file uses a part of it

use nix::{
    sys::{
        signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use std::{
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Stdio},
    time::Duration,
};
use tower_floodgate::{
    Cache,
    lock::{Holder, Owner},
};

/// Opens a cache with a long patience, so that a busy machine is not taken for a failed cache.
pub(crate) fn open(path: &Path) -> Cache {
    Cache::builder(path).state_size(1 << 20).patience(Duration::from_secs(30)).open().unwrap()
}

/// What a child is to do, and in which cache.
pub(crate) struct Part {
    pub(crate) role: String,
    pub(crate) cache: PathBuf,
}

/// The part of this process, if it is a child.
pub(crate) fn part() -> Option<Part> {
    Some(Part { role: std::env::var("PART").ok()?, cache: std::env::var_os("CACHE")?.into() })
}

/// Says a line to the parent.
pub(crate) fn say(line: impl std::fmt::Display) {
    eprintln!("{line}");
}

/// Waits for the parent's next line.
pub(crate) fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

/// Waits until somebody kills this process.
pub(crate) fn wait_to_be_killed() -> ! {
    loop {
        std::thread::park();
    }
}

/// A part: takes the lock `l` in the cache and stays in the middle of the write, so that nobody else can write. Says "in".
pub(crate) fn sit_in_the_gate(cache: &Path) {
    let cache = Cache::open(cache).unwrap();
    // A rule runs inside the transaction.
    let endless = |_: &[Holder], _: &Owner| {
        say("in");
        wait_to_be_killed()
    };
    let _ = cache.lock("l").rule(endless).acquire_blocking();
}

/// A child process, killed when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    lines: BufReader<ChildStderr>,
}

impl Child {
    pub(crate) fn start(role: &str, cache: &Path) -> Child {
        Child::start_as(Command::new(std::env::current_exe().unwrap()), role, cache)
    }

    /// By a command that runs this test binary with the arguments behind.
    pub(crate) fn start_as(mut binary: Command, role: &str, cache: &Path) -> Child {
        let mut process = binary
            .args(["--exact", "child", "--nocapture"])
            .env("PART", role)
            .env("CACHE", cache)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap());
        Child { process, lines }
    }

    /// Waits for the child's next line that says something; empty at its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::from("\n");
        while line == "\n" {
            line.clear();
            self.lines.read_line(&mut line).unwrap();
        }
        line.trim_end().to_owned()
    }

    pub(crate) fn tell(&mut self, line: &str) {
        self.try_tell(line).unwrap();
    }

    /// As `tell`, to a child that may be gone.
    pub(crate) fn try_tell(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.process.stdin.as_mut().unwrap(), "{line}")
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().unwrap())
    }

    pub(crate) fn signal(&self, signal: signal::Signal) {
        signal::kill(self.pid(), signal).unwrap();
    }

    /// Stops it, and waits until all of its threads have: they may run on for a while.
    pub(crate) fn stop(&self) {
        self.signal(signal::Signal::SIGSTOP);
        let stopped = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(stopped, WaitStatus::Stopped(..)), "{stopped:?}");
    }

    /// `kill -9`, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.kill_now();
    }

    fn kill_now(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill_now();
    }
}
