//! Processes in different containers that share a directory: each may believe to be process 1.
//!
//! It takes the right to make process id name spaces; without it there is nothing to test, which is said.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};
use tower_floodgate::Cache;

#[path = "support/processes.rs"]
mod processes;
use processes::{Child, role, say, starting, told};

/// A process in a new name space, where its id is 1.
fn contained(role: &str, cache: &Path) -> Child {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(std::env::current_exe().unwrap());
    Child::spawn_by(command, role, cache)
}

fn may_contain() -> bool {
    let _starting = starting();
    let tried = Command::new("unshare").args(["--pid", "--fork", "true"]).stderr(Stdio::null()).status();
    let may = tried.is_ok_and(|status| status.success());
    if !may {
        eprintln!("not tested: no process id name spaces can be made here");
    }
    may
}

#[test]
fn two_processes_with_the_same_id_share_locks_and_answers() {
    if !may_contain() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut first = contained("hold", dir.path());
    first.expect("1 holds");
    let mut second = contained("hold", dir.path());
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

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    assert_eq!(role, "hold");
    let cache = Cache::builder(&path).state_size(1 << 20).open().unwrap();
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
