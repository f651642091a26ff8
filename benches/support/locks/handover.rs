//! A lock that several processes want all the time: how soon the next process has it, and how fairly they take turns.

use super::{Aim, processes::Child, redis, runtime, statistics::quantile};
use rustix::{
    fs::{FlockOperation, flock},
    time::{ClockId, clock_gettime},
};
use std::{
    cell::RefCell,
    fs::File,
    future::{Future, ready},
    hint::spin_loop,
    io::Write,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use tempfile::{TempDir, tempdir};
use tower_floodgate::Cache;

const ROUNDS: usize = 3;
const PROCESSES: [usize; 2] = [2, 8];
const HOLD: Duration = Duration::from_millis(1);
const ROUND: Duration = Duration::from_millis(500);

const MULTI: &str = "floodgate, tokio with 2 workers";
const CURRENT: &str = "floodgate, tokio current_thread";
const FLOCK: &str = "flock(2)";
const BLPOP: &str = "redis BLPOP of a token";

/// The measured figures of other locks, on another day and another machine: processes, total time to ideal,
/// microseconds p50 and p99, longest wait in milliseconds.
const ELSEWHERE: [(&str, usize, f64, f64, f64, f64); 4] = [
    ("a ticket in LMDB and a futex each", 2, 1.041, 39.6, 95.0, 4.1),
    ("a ticket in LMDB and a futex each", 8, 1.040, 28.2, 192.2, 9.1),
    ("python-diskcache Lock, tmpfs", 2, 1.205, 1264.9, 1343.8, 211.9),
    ("python-diskcache Lock, tmpfs", 8, 1.322, 870.2, 3557.1, 390.1),
];

/// One hold of the lock by a process, in nanoseconds of the machine's clock.
#[derive(Clone, Copy)]
struct Turn {
    process: usize,
    wanted: u64,
    acquired: u64,
    /// When the release began.
    released: u64,
}

/// All rounds of one lock with one number of processes.
#[derive(Default)]
struct Tally {
    turns: usize,
    overlaps: usize,
    /// Nanoseconds from the first acquisition to the last release.
    span: u64,
    longest_wait: u64,
    /// Releases while another process waited.
    wanted: usize,
    /// Nanoseconds of the releases that handed the lock to another process that waited.
    gaps: Vec<f64>,
    /// Nanoseconds of all turns: time beyond [`HOLD`] was taken by others on this processor.
    holds: Vec<f64>,
    shares: Vec<usize>,
}

impl Tally {
    /// Adds a round. A process that began to wait before its end may have waited until after it.
    fn add(&mut self, mut turns: Vec<Turn>, processes: usize, end: u64) {
        self.shares.resize(processes, 0);
        let waits = turns.iter().map(|turn| turn.acquired - turn.wanted).max();
        self.longest_wait = self.longest_wait.max(waits.unwrap_or_default());
        turns.retain(|turn| turn.acquired < end);
        turns.sort_unstable_by_key(|turn| turn.acquired);
        for turn in &turns {
            self.turns += 1;
            self.shares[turn.process] += 1;
            self.holds.push((turn.released - turn.acquired) as f64);
        }
        for (nth, last) in turns.iter().enumerate() {
            let Some((next, later)) = turns[nth + 1..].split_first() else { break };
            self.overlaps += usize::from(next.acquired < last.released);
            let waited = |turn: &Turn| turn.process != last.process && turn.wanted < last.released;
            self.wanted += usize::from(waited(next) || later.iter().any(waited));
            if waited(next) {
                self.gaps.push(next.acquired.saturating_sub(last.released) as f64);
            }
        }
        if let (Some(first), Some(last)) = (turns.first(), turns.last()) {
            self.span += last.released - first.acquired;
        }
    }

    /// How often a waiting process got the lock, of all times that one waited. Otherwise the process that had the lock
    /// took it again.
    fn handed_over(&self) -> f64 {
        self.gaps.len() as f64 / self.wanted as f64
    }

    fn gap(&self, part: f64) -> f64 {
        quantile(self.gaps.clone(), part) / 1e3
    }

    /// The smallest and the largest share of a process, as parts of a fair share.
    fn fairness(&self) -> (f64, f64) {
        let fair = self.turns as f64 / self.shares.len() as f64;
        let part = |share: Option<&usize>| share.map_or(0.0, |&share| share as f64 / fair);
        (part(self.shares.iter().min()), part(self.shares.iter().max()))
    }
}

/// Measures all of them in turn, round by round, with processes of their own each time.
pub(super) fn measure(redis: Option<&redis::Server>) -> Vec<Aim> {
    let locks: Vec<&str> = [MULTI, CURRENT, FLOCK].into_iter().chain(redis.map(|_| BLPOP)).collect();
    let mut tallies: Vec<(&str, usize, Tally)> = PROCESSES
        .iter()
        .flat_map(|&processes| locks.iter().map(move |lock| (*lock, processes, Tally::default())))
        .collect();
    for round in 0..ROUNDS {
        let count = tallies.len();
        for at in 0..count {
            let (lock, processes, tally) = &mut tallies[(at + round) % count];
            let (place, _directory) = place(lock, redis);
            let (turns, end) = race(lock, *processes, &place);
            tally.add(turns, *processes, end);
        }
    }
    print(&tallies);
    let mut aims: Vec<Aim> = Vec::new();
    for (lock, processes, tally) in &tallies {
        let mut aim = |what: &str, met| aims.push((format!("{lock}, {processes} processes: {what}"), met));
        aim("never two at once", tally.overlaps == 0);
        if [MULTI, CURRENT].contains(lock) {
            aim("19 of 20 releases hand it to one who waits", tally.handed_over() >= 0.95);
            aim("half of those within 100 us", tally.gap(0.5) < 100.0);
            aim("99 of 100 within 1 ms", tally.gap(0.99) < 1_000.0);
        }
    }
    aims
}

fn print(tallies: &[(&str, usize, Tally)]) {
    println!(
        "\nhanded over between processes that hold it for 1 ms, and want it again at once: {ROUNDS} interleaved rounds"
    );
    println!(
        "{:<37} {:>9} {:>8} {:>9} {:>9} {:>9} {:>14} {:>14}",
        "", "processes", "to ideal", "handed on", "p50", "p99", "longest wait", "share of fair"
    );
    for (lock, processes, tally) in tallies {
        let (least, most) = tally.fairness();
        println!(
            "{lock:<37} {processes:>9} {:>8.3} {:>7.0} % {:>6.0} us {:>6.0} us {:>6.1} x ideal    {least:.2} to {most:.2}",
            tally.span as f64 / (tally.turns as f64 * HOLD.as_nanos() as f64),
            100.0 * tally.handed_over(),
            tally.gap(0.5),
            tally.gap(0.99),
            ideals(tally.longest_wait as f64 / 1e6, *processes),
        );
    }
    for (what, processes, total, half, most, wait) in ELSEWHERE {
        let (what, wait) = (format!("({what})"), ideals(wait, processes));
        println!("{what:<37} {processes:>9} {total:>8.3} {:>9} {half:>6.0} us {most:>6.0} us {wait:>6.1} x ideal", "");
    }
    println!("in brackets: another run, on another machine; the ideal wait is that of a hold of each process");
    let holds: Vec<f64> = tallies.iter().flat_map(|(_, _, tally)| tally.holds.iter().copied()).collect();
    println!(
        "99 of 100 holds took at most {:.2} ms: more than 1 is other work on the machine",
        quantile(holds, 0.99) / 1e6
    );
}

/// A wait in milliseconds, in holds of all processes.
fn ideals(wait: f64, processes: usize) -> f64 {
    wait / (processes as f64 * HOLD.as_secs_f64() * 1e3)
}

/// The place where the processes meet: a directory of their own, or the server's socket.
fn place(lock: &str, redis: Option<&redis::Server>) -> (PathBuf, TempDir) {
    let directory = tempdir().expect("a temporary directory");
    match redis {
        Some(server) if lock == BLPOP => {
            let mut client = redis::Client::connect(&server.socket());
            client.ask(&["DEL", "token"]);
            client.ask(&["RPUSH", "token", "1"]);
            (server.socket(), directory)
        }
        _ => (directory.path().to_owned(), directory),
    }
}

/// Runs a race; returns the turns of all processes, and the time at which they were to end.
fn race(lock: &str, processes: usize, place: &Path) -> (Vec<Turn>, u64) {
    let mut children: Vec<Child> = (0..processes).map(|_| Child::start(&["handover", lock], place)).collect();
    for child in &mut children {
        assert_eq!(child.line(), "ready");
    }
    let start = now() + 20_000_000;
    let end = start + ROUND.as_nanos() as u64;
    for child in &mut children {
        child.tell(&format!("{start} {end}"));
    }
    let mut turns = Vec::new();
    for (process, child) in children.into_iter().enumerate() {
        for line in child.rest().lines() {
            let [wanted, acquired, released] = numbers(line);
            turns.push(Turn { process, wanted, acquired, released });
        }
    }
    (turns, end)
}

fn numbers<const N: usize>(line: &str) -> [u64; N] {
    let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    numbers.try_into().expect("so many numbers")
}

/// Nanoseconds of a clock that all processes share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A process of the race.
pub(super) fn play(lock: &str, place: &Path) {
    match lock {
        MULTI | CURRENT => {
            let runtime = runtime(if lock == MULTI { 2 } else { 1 });
            let cache = Cache::open(place).expect("a cache");
            let turns = run(move || {
                let acquiring = cache.lock("l").acquire();
                async { acquiring.await.expect("the cache works") }
            });
            // The task runs on a worker thread, as the tasks of a server do.
            runtime.block_on(runtime.spawn(turns)).expect("the race");
        }
        FLOCK => {
            let file = File::create(place.join("lock")).expect("a file");
            runtime(1).block_on(run(|| ready(Locked::new(&file))));
        }
        _ => {
            let client = RefCell::new(redis::Client::connect(place));
            runtime(1).block_on(run(|| ready(Token::take(&client))));
        }
    }
}

/// Takes, holds and gives back the lock until the race is over, and prints its turns at the end.
async fn run<F: Future>(acquire: impl Fn() -> F) {
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("text");
    let [start, end] = numbers(&line);
    thread::sleep(Duration::from_nanos(start.saturating_sub(now())));
    let mut turns = Vec::new();
    loop {
        let wanted = now();
        if wanted >= end {
            break;
        }
        let guard = acquire().await;
        let acquired = now();
        // The process is busy, as the holder of a lock is. So a hold takes no longer than it says, and the processor
        // does not fall asleep.
        while acquired < end && now() < acquired + HOLD.as_nanos() as u64 {
            spin_loop();
        }
        let released = now();
        drop(guard);
        turns.push([wanted, acquired, released]);
    }
    let text: String =
        turns.iter().map(|[wanted, acquired, released]| format!("{wanted} {acquired} {released}\n")).collect();
    std::io::stdout().write_all(text.as_bytes()).expect("somebody reads");
}

struct Locked<'a>(&'a File);

impl<'a> Locked<'a> {
    fn new(file: &'a File) -> Self {
        flock(file, FlockOperation::LockExclusive).expect("locked");
        Locked(file)
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        flock(self.0, FlockOperation::Unlock).expect("unlocked");
    }
}

/// The only element of a list: the process that has popped it holds the lock. A crash loses it.
struct Token<'a>(&'a RefCell<redis::Client>);

impl<'a> Token<'a> {
    fn take(client: &'a RefCell<redis::Client>) -> Self {
        client.borrow_mut().ask(&["BLPOP", "token", "0"]);
        Token(client)
    }
}

impl Drop for Token<'_> {
    fn drop(&mut self) {
        self.0.borrow_mut().ask(&["RPUSH", "token", "1"]);
    }
}
