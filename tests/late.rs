//! Writes that move are not late, however many there are: one fails only if the gate stands still for its whole patience.

mod support;

use std::{future::IntoFuture, path::Path, time::Duration};
use support::{Child, role, say};
use tokio::task::JoinSet;
use tower_floodgate::{Cache, Error};

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    match role.as_str() {
        "small" => say(late(&path, "small", 2_000, 100_000)),
        "large" => say(late(&path, "large", 200, 2_000_000)),
        role => panic!("{role}"),
    }
}

/// Stores so many values at once, with the patience that a cache has by default; returns how many were late. Says "begun"
/// when all have been asked for.
#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn late(path: &Path, scope: &str, count: usize, bytes: usize) -> usize {
    let cache = Cache::builder(path).state_size(1 << 20).open().unwrap();
    let (scope, value) = (cache.scope(scope), "x".repeat(bytes));
    let mut inserts = JoinSet::new();
    for name in 0..count {
        let insert = scope.insert(&name.to_string(), &value).into_future();
        inserts.spawn(insert);
    }
    say("begun");
    let mut late = 0;
    while let Some(stored) = inserts.join_next().await {
        match stored.unwrap() {
            Ok(stored) => assert!(stored),
            Err(Error::Busy) => late += 1,
            Err(error) => panic!("{error}"),
        }
    }
    late
}

/// A directory that no busy disk slows down.
fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

#[test]
fn none_of_four_hundred_inserts_of_2_mb_at_once_is_late() {
    let dir = in_memory();
    assert_eq!(late(dir.path(), "here", 400, 2_000_000), 0);
}

#[test]
fn none_of_two_thousand_inserts_of_100_kb_at_once_is_late() {
    let dir = in_memory();
    assert_eq!(late(dir.path(), "here", 2_000, 100_000), 0);
}

#[test]
fn none_is_late_beside_processes_that_store_as_much() {
    let dir = in_memory();
    let children = ["large", "small"].map(|role| Child::spawn(role, dir.path()));
    let here = late(dir.path(), "here", 200, 2_000_000);
    let there = children.map(|mut child| {
        child.expect("begun");
        child.line()
    });
    assert_eq!((here, there.each_ref().map(String::as_str)), (0, ["0", "0"]));
}

#[test]
fn none_is_late_in_a_process_that_was_stopped_for_longer_than_its_patience_and_goes_on() {
    let dir = in_memory();
    let mut child = Child::spawn("small", dir.path());
    child.expect("begun");
    child.stop();
    // The time itself is what the child must not count.
    std::thread::sleep(Duration::from_millis(400));
    child.go_on();
    child.expect("0");
    child.end();
}
