//! The cost of a lock: alone, in a crowd of others, handed over between processes, and while a process waits for it;
//! beside flock(2), and redis where a `redis-server` is in the path.
//!
//! ```text
//! cargo bench --bench locks            # or one of them: -- alone, -- crowd, -- handover, -- idle
//! ```
//!
//! Compare ratios within one run: absolute times differ by half between machines and hours. Caches are in the system's
//! temporary directory; set `TMPDIR` to put them elsewhere. It ends with an error if an aim is missed, which other work
//! on the same processors can bring about.
#![allow(missing_docs)]

#[path = "support/statistics.rs"]
mod statistics;

#[path = "support/locks/alone.rs"]
mod alone;
#[path = "support/locks/crowd.rs"]
mod crowd;
#[path = "support/locks/handover.rs"]
mod handover;
#[path = "support/locks/idle.rs"]
mod idle;
#[path = "support/locks/processes.rs"]
mod processes;
#[path = "support/locks/redis.rs"]
mod redis;

use std::process::ExitCode;
use tokio::runtime::{Builder, Runtime};

/// An aim, and whether it was met.
type Aim = (String, bool);

fn main() -> ExitCode {
    if let Some((part, place)) = processes::part() {
        match part.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["handover", lock] => handover::play(lock, &place),
            ["idle", who] => idle::play(who, &place),
            _ => return ExitCode::FAILURE,
        }
        return ExitCode::SUCCESS;
    }
    // `cargo test --benches` runs this too, only to see that it builds.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let wanted = |what| {
        let mut names = arguments.iter().filter(|argument| !argument.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|name| name == what)
    };
    let redis = redis::Server::start();
    if redis.is_none() {
        println!("redis-server is not installed: its locks are left out");
    }
    let mut aims = Vec::new();
    if wanted("alone") {
        aims.extend(alone::measure(redis.as_ref()));
    }
    if wanted("crowd") {
        aims.extend(crowd::measure());
    }
    if wanted("handover") {
        aims.extend(handover::measure(redis.as_ref()));
    }
    drop(redis);
    if wanted("idle") {
        aims.extend(idle::measure());
    }
    println!();
    for (what, met) in &aims {
        println!("{:<6} {what}", if *met { "ok" } else { "MISSED" });
    }
    if aims.iter().all(|aim| aim.1) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A runtime. With one worker, it runs on the calling thread.
fn runtime(workers: usize) -> Runtime {
    let mut builder = if workers == 1 { Builder::new_current_thread() } else { Builder::new_multi_thread() };
    builder.worker_threads(workers).enable_all().build().expect("a runtime")
}
