//! A load that mixes everything: four processes on one small cache count, lock, store, read and purge by lot, while one is
//! stopped and continued, one is killed and started again, a reader is stopped in the middle of a read, the files are
//! damaged, and LMDB fails in one process. What happened is written down by each, and judged afterwards.
//!
//! - `FLOODGATE_LOAD_SECONDS`: how long, 60 unless said otherwise. It goes on until every fault was planted and is over.
//! - `FLOODGATE_LOAD_SEED`: what is decided by lot is then decided in the same way, though not what comes of it.

mod answers;
mod crew;
mod files;
mod judge;
mod locks;
mod notes;
mod player;

#[path = "../support/bound.rs"]
mod bound;
#[path = "../support/mod.rs"]
mod support;

#[allow(dead_code)] // the judge of the torture asks more of it
#[path = "../torture/history.rs"]
mod history;
#[path = "../torture/store.rs"]
mod store;
#[allow(dead_code)] // nobody is told to rest, and plain threads do not lock
#[path = "../torture/visit.rs"]
mod visit;

use crew::{Crew, Fault, SURELY};
use player::{BUDGETS, Desk, SIZE};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tower_floodgate::{
    Error, Semaphore,
    lock::{AcquireError, ReadWrite},
    throttle::LimitError,
};

const SEED: u64 = 12;
/// In so much time, each fault is planted once.
const CYCLE: Duration = Duration::from_secs(60);
/// Of memory, in a process: the map of the answers, what waits to be stored, the memory tier, and the values themselves.
const RESIDENT: u64 = 384 << 20;

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value}")))
}

#[test]
fn the_engine_keeps_its_promises_under_load() {
    let length = Duration::from_secs(setting("FLOODGATE_LOAD_SECONDS").unwrap_or(60));
    let seed = setting("FLOODGATE_LOAD_SEED").unwrap_or(SEED);
    eprintln!("FLOODGATE_LOAD_SEED={seed}");
    let directory = tempfile::Builder::new().prefix("load-").tempdir().unwrap();
    let (cache, desk) = (directory.path().join("cache"), Desk(directory.path().join("desk")));
    desk.make();
    let mut crew = Crew::new(&cache, &desk, seed);
    storm(&mut crew, length, seed);
    settle(&mut crew);
    let stormy = crew.peaks;
    eprintln!("{} stops, {} kills, {:?}, {stormy:?}", crew.stops, crew.kills, crew.planted);
    if stormy.answers > 2 * SIZE {
        crew.wrong.push(format!("the answers took {} bytes", stormy.answers));
    }
    if stormy.resident > RESIDENT {
        crew.wrong.push(format!("a process took {} bytes of memory", stormy.resident));
    }
    if crew.wrong.is_empty() {
        crew.wrong.extend(audit(&cache));
    }
    let (mut wrong, planted) = crew.end();
    let (violations, summary) = judge::check(&desk, &planted);
    eprintln!("{summary}");
    wrong.extend(violations);
    if !wrong.is_empty() {
        panic!("seed {seed}, see {}:\n{}", directory.keep().display(), wrong.join("\n"));
    }
}

/// Lets them work and disturbs them, until enough has happened.
fn storm(crew: &mut Crew, length: Duration, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let cycle = length.min(CYCLE).max(Duration::from_secs(1));
    let began = Instant::now();
    let mut due: Vec<(Duration, Fault)> = Vec::new();
    for nth in 0..(length.as_secs() / cycle.as_secs()).max(1) {
        let mut faults = Fault::ALL;
        faults.shuffle(&mut random);
        let slices = (0_u8..).map(|slice| (f64::from(slice) + random.random_range(0.3..0.9)) / 5.0);
        due.extend(slices.zip(faults).map(|(part, fault)| (cycle * nth as u32 + cycle.mul_f64(part), fault)));
    }
    due.reverse();
    while crew.wrong.is_empty() {
        crew.step();
        let is_due = due.last().is_some_and(|(at, _)| *at <= began.elapsed());
        if is_due && !crew.awaits() && crew.all_are_at_work() {
            crew.plant(due.pop().unwrap().1);
        }
        if due.is_empty() && !crew.awaits() && began.elapsed() >= length && crew.is_enough() {
            break;
        }
        if began.elapsed() > length + 4 * SURELY {
            crew.wrong.push(format!("too little happens: {due:?} left, {} kills, {} stops", crew.kills, crew.stops));
        }
    }
}

/// Lets them work undisturbed, until nothing is left of what has disturbed them.
fn settle(crew: &mut Crew) {
    let began = Instant::now();
    while crew.wrong.is_empty() {
        crew.rest();
        let (bytes, generations) = (crew.answers(), crew.generations());
        if bytes <= SIZE / 10 * 13 && generations == 1 && crew.all_are_at_work() {
            eprintln!("settled in {:?}: {bytes} bytes", began.elapsed());
            break;
        }
        if began.elapsed() > SURELY {
            crew.wrong.push(format!("{bytes} bytes of answers in {generations} generations are left"));
        }
    }
}

/// Everything can be had again, in a process that comes late.
fn audit(path: &Path) -> Vec<String> {
    let cache = player::builder(path).open().unwrap();
    let mut wrong = Vec::new();
    let began = Instant::now();
    for name in ["mutex", "twin", "permits", "rows"] {
        loop {
            let acquire = cache.lock(name).wait_at_most(SURELY);
            let got = match name {
                "permits" => acquire.rule(Semaphore(3)).acquire_blocking(),
                "rows" => acquire.rule(ReadWrite.write()).acquire_blocking(),
                _ => acquire.acquire_blocking(),
            };
            match got {
                Ok(_) => break,
                // Where the rows were lost, nobody knows who held it, until the latest lease has ended.
                Err(AcquireError::Cache(Error::DamagedLock { .. })) if began.elapsed() < SURELY => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(error) => {
                    wrong.push(format!("{name}: {error}"));
                    break;
                }
            }
        }
    }
    for budget in &BUDGETS {
        if let Err(LimitError::Cache(error)) = cache.throttle(budget.name, budget.rate()).check_blocking() {
            wrong.push(format!("{}: {error}", budget.name));
        }
    }
    let scope = cache.scope("audit");
    let stored = scope.insert("last", "value").wait();
    if !matches!(stored, Ok(true)) {
        wrong.push(format!("nothing can be stored any more: {stored:?}"));
    }
    wrong
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = support::role() else { return };
    match role.as_str() {
        "player" => player::play(&path),
        "reader" => player::read_for_ever(&path),
        role => panic!("{role}"),
    }
}
