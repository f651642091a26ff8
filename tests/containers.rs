//! Processes in different containers that share a directory: each may believe to be process 1, and to have been started
//! on a machine that runs for longer.
//!
//! It takes the right to make name spaces; without it there is nothing to test, which is said.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tower_floodgate::{
    Cache,
    throttle::{LimitError, Rate},
};

#[path = "support/processes.rs"]
mod processes;
use processes::{Child, role, say, starting, told};

/// A new name space in which the first process has the id 1.
const PIDS: &[&str] = &["--pid", "--fork", "--kill-child"];
/// A new name space in which the machine has been running for a day longer.
const A_DAY_AHEAD: &[&str] = &["--time", "--boottime", "86400", "--fork", "--kill-child"];

/// A process in a new name space.
fn contained(name_space: &[&str], role: &str, cache: &Path) -> Child {
    let mut command = Command::new("unshare");
    command.args(name_space).arg(std::env::current_exe().unwrap());
    Child::spawn_by(command, role, cache)
}

fn may_contain(name_space: &[&str]) -> bool {
    let _starting = starting();
    let tried = Command::new("unshare").args(name_space).arg("true").stderr(Stdio::null()).status();
    let may = tried.is_ok_and(|status| status.success());
    if !may {
        eprintln!("not tested: `unshare {}` is not possible here", name_space.join(" "));
    }
    may
}

#[test]
fn two_processes_with_the_same_id_share_locks_and_answers() {
    if !may_contain(PIDS) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut first = contained(PIDS, "hold", dir.path());
    first.expect("1 holds");
    let mut second = contained(PIDS, "hold", dir.path());
    second.expect("1 waits");
    second.expect("1 reads ours");
    // Its outer process kills what is in the name space.
    first.kill();
    second.expect("1 holds");
    second.tell("release");
    second.expect("released");
    // And from outside.
    let cache = Cache::builder(dir.path()).state_size(1 << 20).open().unwrap();
    drop(cache.lock("l").try_acquire_blocking().unwrap());
    assert_eq!(cache.get::<String>("shared").unwrap().as_deref(), Some("ours"));
    drop(second);
}

/// Says what is left to who comes second, in the same directory.
fn ask(cache: &Cache) -> String {
    let lock = if cache.lock("l").try_acquire_blocking().is_ok() { "free" } else { "held" };
    let budget = match cache.throttle("t", Rate::new(1, MINUTE)).check_blocking() {
        Err(LimitError::Throttled { retry_after: Some(delay), .. }) if delay <= MINUTE => "a minute",
        Err(_) => "longer",
        Ok(_) => "full",
    };
    format!("{lock}, {budget}")
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn processes_whose_clocks_differ_share_locks_and_budgets() {
    if !may_contain(A_DAY_AHEAD) {
        return;
    }
    for (first, second) in [(&[][..], A_DAY_AHEAD), (A_DAY_AHEAD, &[])] {
        let dir = tempfile::tempdir().unwrap();
        let start = |name_space: &[&str], role| match name_space {
            [] => Child::spawn(role, dir.path()),
            name_space => contained(name_space, role, dir.path()),
        };
        let mut holds = start(first, "spend");
        holds.expect("spent");
        let mut asks = start(second, "ask");
        asks.expect("held, a minute");
        holds.tell("end");
        holds.end();
        asks.tell("again");
        asks.expect("free, a minute");
        asks.end();
        // And who opens it alone.
        let mut asks = start(first, "ask");
        asks.expect("free, a minute");
    }
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    let cache = Cache::builder(&path).state_size(1 << 20).open().unwrap();
    match role.as_str() {
        "hold" => hold(&cache),
        "spend" => {
            let guard = cache.lock("l").try_acquire_blocking().unwrap();
            cache.throttle("t", Rate::new(1, MINUTE)).check_blocking().unwrap();
            say("spent");
            told();
            guard.release_blocking().unwrap();
        }
        "ask" => {
            say(ask(&cache));
            told();
            say(ask(&cache));
        }
        role => panic!("{role}"),
    }
}

fn hold(cache: &Cache) {
    let id = std::process::id();
    let lock = cache.lock("l");
    let guard = match lock.clone().try_acquire_blocking() {
        Ok(guard) => {
            cache.insert("shared", "ours").wait().unwrap();
            guard
        }
        Err(_) => {
            say(format_args!("{id} waits"));
            let shared = cache.get::<String>("shared").unwrap();
            say(format_args!("{id} reads {}", shared.as_deref().unwrap_or("nothing")));
            lock.acquire_timeout_blocking(Duration::from_secs(20)).unwrap()
        }
    };
    say(format_args!("{id} holds"));
    told();
    guard.release_blocking().unwrap();
    say("released");
    told();
}
