//! The cost of a lock, and of an insert, while much else is held.

use super::{Aim, runtime, statistics::median};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike,
};
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};
use tower_floodgate::{Cache, Semaphore, lock::Guard};

const ROUNDS: usize = 21;
const PERMITS: usize = 500;
const INSERTS: usize = 1_000;
const CAPACITY: u32 = 5_000;
/// No renewal falls into the measurements.
const LEASE: Duration = Duration::from_secs(3_600);
/// How much more it may cost where much is held.
const AIM: f64 = 1.5;
/// Bytes of `state/`, which have to do for 100,000 locks.
const STATE: u64 = 256 << 20;

pub(super) fn measure() -> Vec<Aim> {
    let mut aims = permits();
    aims.extend(inserts());
    aims
}

/// A permit acquired and released, for each number of permits that others hold.
fn permits() -> Vec<Aim> {
    let runtime = runtime(1);
    let cache = Cache::builder_temporary().state_size(STATE).open().expect("a cache");
    let mut crowds: Vec<(usize, String, VecDeque<Guard>)> = [0, 999, 4_999]
        .map(|inside| {
            let name = format!("with {inside} inside");
            (inside, name.clone(), (0..inside).map(|_| permit(&cache, &name)).collect())
        })
        .into();
    println!("\na permit of Semaphore({CAPACITY}), acquired and released: medians of {ROUNDS} interleaved rounds");
    let mut rounds: Vec<[Vec<f64>; 2]> = vec![Default::default(); crowds.len()];
    for round in 0..ROUNDS + 2 {
        for (at, (_, name, crowd)) in crowds.iter_mut().enumerate() {
            let acquire = || cache.lock(name).rule(Semaphore(CAPACITY)).expire(LEASE).acquire();
            let began = Instant::now();
            runtime.block_on(async {
                for _ in 0..PERMITS {
                    drop(acquire().await.expect("there is room"));
                }
            });
            let came_and_went = began.elapsed();
            let began = Instant::now();
            runtime.block_on(async {
                for _ in 0..PERMITS {
                    crowd.push_back(acquire().await.expect("there is room"));
                    drop(crowd.pop_front());
                }
            });
            // The first rounds warm up.
            if round >= 2 {
                for (rounds, took) in rounds[at].iter_mut().zip([came_and_went, began.elapsed()]) {
                    rounds.push(took.as_nanos() as f64 / PERMITS as f64);
                }
            }
        }
    }
    let costs = |which: usize| {
        let medians = crowds.iter().zip(&rounds).map(|((inside, ..), rounds)| (*inside, median(rounds[which].clone())));
        medians.collect::<Vec<_>>()
    };
    let aims = report(costs(0), "ns", "a permit", "inside");
    // No aim: each of them is moved to a row of its own in its time, and leaves that.
    report(costs(1), "ns", "a permit, and the one held longest leaves,", "inside");
    aims
}

/// The processor time of the whole process for an insert, for each number of locks that it holds.
fn inserts() -> Vec<Aim> {
    println!("\nprocessor time of the process for an insert: medians of {ROUNDS} rounds");
    let costs = [0, 20_000, 100_000].map(|held| {
        let cache = Cache::builder_temporary().state_size(STATE).size(64 << 20).open().expect("a cache");
        let guards: Vec<Guard> = (0..held)
            .map(|at| {
                let lock = cache.lock(&format!("lock-{at}")).expire(LEASE);
                lock.acquire_blocking().expect("nobody else wants it")
            })
            .collect();
        let runtime = runtime(1);
        let rounds = (0..ROUNDS).map(|_| {
            let before = used();
            runtime.block_on(async {
                for at in 0..INSERTS {
                    let stored = cache.insert(&format!("value-{}", at % 100), &at).await;
                    stored.expect("stored");
                }
            });
            (used() - before) / INSERTS as f64
        });
        let cost = median(rounds.collect());
        drop(guards);
        (held, cost)
    });
    report(costs.into(), "ns", "an insert", "locks held")
}

fn permit(cache: &Cache, name: &str) -> Guard {
    let permit = cache.lock(name).rule(Semaphore(CAPACITY)).expire(LEASE);
    permit.acquire_timeout_blocking(Duration::from_secs(5)).expect("there is room")
}

fn report(costs: Vec<(usize, f64)>, unit: &str, what: &str, beside: &str) -> Vec<Aim> {
    let alone = costs[0].1;
    let mut aims = Vec::new();
    for (count, cost) in costs {
        let ratio = cost / alone;
        println!("{:<60} {cost:>9.0} {unit} {ratio:>8.2}", format!("{what} with {count} {beside}"));
        if count > 0 {
            aims.push((format!("{what} with {count} {beside} costs at most {AIM} times one alone"), ratio <= AIM));
        }
    }
    aims
}

/// Nanoseconds of processor that this process has used.
fn used() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("known");
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 * 1e3
}
