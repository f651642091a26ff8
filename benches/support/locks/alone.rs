//! A lock that no other process wants, taken and given back.

use super::{Aim, redis, runtime, statistics::median};
use rustix::fs::{FlockOperation, flock};
use std::{fs::File, hint::black_box, path::Path, time::Instant};
use tempfile::tempdir;
use tower_floodgate::Cache;

const ROUNDS: usize = 41;
const NAMES: usize = 10_000;
/// Nanoseconds that a lock of one name may cost.
const AIM: f64 = 2_000.0;
const OURS: &str = "floodgate, one name";
const RULER: &str = "flock(2), the file stays open";

/// The measured cost of other locks, on another day and another machine, in nanoseconds.
const ELSEWHERE: [(&str, f64); 4] = [
    ("a row in LMDB and nothing else, tmpfs", 659.0),
    ("the same on disk, not through the map", 6_480.0),
    ("python-diskcache Lock, tmpfs", 76_160.0),
    ("python-diskcache Lock, disk", 123_310.0),
];

struct Contestant<'a> {
    what: &'static str,
    /// How often a round takes the lock and gives it back.
    times: usize,
    run: Box<dyn FnMut(usize) + 'a>,
    /// Nanoseconds a time, one for each round.
    rounds: Vec<f64>,
}

/// Measures all of them in turn, round by round, so that a disturbance of one disturbs the others too.
pub(super) fn measure(redis: Option<&redis::Server>) -> Vec<Aim> {
    let directory = tempdir().expect("a temporary directory");
    let runtime = runtime(1);
    let cache = Cache::temporary().expect("a cache");
    let names: Vec<String> = (0..NAMES).map(|i| format!("lock-{i:06}")).collect();
    let (mutex, mut at) = (tokio::sync::Mutex::new(()), 0);
    let mut all: Vec<Contestant<'_>> = Vec::new();
    let mut add = |what, times, run| all.push(Contestant { what, times, run, rounds: Vec::new() });

    add(RULER, 2_000, Box::new(open_once(&directory.path().join("once"))));
    add(OURS, 1_000, Box::new(|times| runtime.block_on(ours(&cache, &names[..1], 0, times))));
    add(
        "floodgate, 10,000 names in turn",
        1_000,
        Box::new(|times| {
            runtime.block_on(ours(&cache, &names, at, times));
            at += times;
        }),
    );
    add("flock(2), the file opened each time", 1_000, Box::new(open_each_time(&directory.path().join("each"))));
    add(
        "tokio Mutex, one process only",
        10_000,
        Box::new(|times| {
            runtime.block_on(async {
                for _ in 0..times {
                    drop(black_box(mutex.lock().await));
                }
            });
        }),
    );
    if let Some(server) = redis {
        add("redis SET NX PX, and a script to release", 50, Box::new(set_nx(&server.socket())));
    }

    for contestant in &mut all {
        (contestant.run)(NAMES.min(10 * contestant.times));
    }
    for round in 0..ROUNDS {
        let count = all.len();
        for at in 0..count {
            let Contestant { times, run, rounds, .. } = &mut all[(at + round) % count];
            let began = Instant::now();
            run(*times);
            rounds.push(began.elapsed().as_nanos() as f64 / *times as f64);
        }
    }
    print(&all);
    let ours = all.iter().find(|contestant| contestant.what == OURS).map(|ours| median(ours.rounds.clone()));
    let aim = "a lock that nobody else wants costs less than 2 us, on a file system that reserves blocks";
    vec![(aim.into(), ours.is_some_and(|ns| ns < AIM))]
}

fn print(all: &[Contestant<'_>]) {
    println!("\nacquired and released, alone: medians of {ROUNDS} interleaved rounds{:<13} to flock", "");
    let ruler = all.iter().find(|contestant| contestant.what == RULER).expect("the first of them");
    for Contestant { what, rounds, .. } in all {
        let ratios = rounds.iter().zip(&ruler.rounds).map(|(one, ruler)| one / ruler);
        println!("{what:<60} {:>9.0} ns {:>8.2}", median(rounds.clone()), median(ratios.collect()));
    }
    for (what, ns) in ELSEWHERE {
        println!("{:<60} {ns:>9.0} ns", format!("{what} (another run)"));
    }
}

async fn ours(cache: &Cache, names: &[String], from: usize, times: usize) {
    for at in from..from + times {
        drop(cache.lock(&names[at % names.len()]).acquire().await.expect("nobody else wants it"));
    }
}

fn open_once(path: &Path) -> impl FnMut(usize) + 'static {
    let file = File::create(path).expect("a file");
    move |times| {
        for _ in 0..times {
            flock(&file, FlockOperation::LockExclusive).expect("locked");
            flock(&file, FlockOperation::Unlock).expect("unlocked");
        }
    }
}

fn open_each_time(path: &Path) -> impl FnMut(usize) + 'static {
    let path = path.to_owned();
    move |times| {
        for _ in 0..times {
            let file = File::create(&path).expect("a file");
            flock(&file, FlockOperation::LockExclusive).expect("locked");
        }
    }
}

/// The lock of the redis manual: it has a token, so that no process frees a lock that another holds.
fn set_nx(socket: &Path) -> impl FnMut(usize) + 'static {
    const RELEASE: &str =
        "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";
    let mut redis = redis::Client::connect(socket);
    let script = redis.ask(&["SCRIPT", "LOAD", RELEASE]);
    move |times| {
        for time in 0..times {
            let token = time.to_string();
            assert_eq!(redis.ask(&["SET", "lock", &token, "NX", "PX", "30000"]), "OK");
            assert_eq!(redis.ask(&["EVALSHA", &script, "1", "lock", &token]), "1");
        }
    }
}
