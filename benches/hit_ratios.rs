//! How many reads find their answer: the cache's real files beside the memories of moka (TinyLFU) and quick_cache, on the
//! same traces, each with room for as many entries of one size.
//!
//! ```text
//! cargo bench --bench hit_ratios
//! ```
//!
//! It takes a minute or two, and ends with an error if a trace of zipf or scans is more than three points below the better
//! of the two. Loops are only reported. `FLOODGATE_TRACE` names another number of thousands of reads.
#![allow(missing_docs)]

use std::{process::ExitCode, time::Instant};
use tower_floodgate::Cache;

const BUDGET: u64 = 5 << 20;
const NAMES: usize = 50_000;
/// Points that may be missing to the better peer.
const POINTS: f64 = 3.0;

fn main() -> ExitCode {
    // `cargo test --benches` runs this too, only to see that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let reads = std::env::var("FLOODGATE_TRACE").ok().and_then(|n| n.parse().ok()).unwrap_or(400) * 1000;
    let room = room();
    println!("{reads} reads, {NAMES} names, room for {room} entries\n");
    println!("trace              floodgate     moka   quick_cache   took");
    let mut missed = false;
    for trace in traces(room, reads) {
        let began = Instant::now();
        let floodgate = ratio(&trace.names, Files::new());
        let took = began.elapsed().as_secs_f64();
        let moka = ratio(&trace.names, Moka::new(room));
        let quick = ratio(&trace.names, quick_cache::sync::Cache::new(room));
        let misses = trace.counts && floodgate + POINTS < moka.max(quick);
        let remark = if misses { "   MISSED" } else { "" };
        println!("{:<18} {floodgate:>7.1} %  {moka:>5.1} %       {quick:>5.1} %  {took:>4.0} s{remark}", trace.title);
        missed |= misses;
    }
    if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A cache that is read, and filled where there is nothing.
trait Filled {
    /// Whether the name was there.
    fn read(&mut self, name: u64) -> bool;
}

fn ratio(names: &[u64], mut cache: impl Filled) -> f64 {
    let hits = names.iter().filter(|&&name| cache.read(name)).count();
    hits as f64 * 100.0 / names.len() as f64
}

struct Files {
    cache: Cache,
    value: String,
}

impl Files {
    fn new() -> Files {
        let cache = Cache::builder_temporary().size(BUDGET).open().expect("a temporary cache");
        Files { cache, value: "x".repeat(700) }
    }
}

impl Filled for Files {
    fn read(&mut self, name: u64) -> bool {
        let name = format!("{name:016x}");
        if self.cache.get::<String>(&name).expect("a read").is_some() {
            return true;
        }
        self.cache.insert(&name, &self.value).wait().expect("a write");
        false
    }
}

/// The entries that the cache has room for.
fn room() -> usize {
    let mut files = Files::new();
    for name in 0..BUDGET / 700 {
        files.read(name);
    }
    files.cache.stats().entries as usize
}

struct Moka {
    cache: moka::sync::Cache<u64, ()>,
    reads: u64,
}

impl Moka {
    fn new(room: usize) -> Moka {
        Moka { cache: moka::sync::Cache::new(room as u64), reads: 0 }
    }
}

impl Filled for Moka {
    fn read(&mut self, name: u64) -> bool {
        self.reads += 1;
        if self.reads.is_multiple_of(64) {
            // Otherwise it would hold more than it has room for.
            self.cache.run_pending_tasks();
        }
        let found = self.cache.get(&name).is_some();
        if !found {
            self.cache.insert(name, ());
        }
        found
    }
}

impl Filled for quick_cache::sync::Cache<u64, ()> {
    fn read(&mut self, name: u64) -> bool {
        let found = self.get(&name).is_some();
        if !found {
            self.insert(name, ());
        }
        found
    }
}

struct Trace {
    title: String,
    names: Vec<u64>,
    /// The aim is for this kind of trace.
    counts: bool,
}

fn traces(room: usize, reads: usize) -> Vec<Trace> {
    let mut traces = Vec::new();
    let mut add = |title: String, counts: bool, names: Vec<u64>| traces.push(Trace { title, names, counts });
    // A scan's names are asked for once. They begin where those of zipf end.
    let mut scanned = NAMES as u64;
    for exponent in [0.8, 1.0] {
        let mut zipf = Zipf::new(exponent);
        add(format!("zipf {exponent:.1}"), true, (0..reads).map(|_| zipf.next()).collect());
        let mut scan = |zipf: &mut Zipf, popular: usize, once: usize| {
            let mut names = Vec::new();
            while names.len() < reads {
                names.extend((0..popular).map(|_| zipf.next()));
                names.extend(scanned..scanned + once as u64);
                scanned += once as u64;
            }
            names
        };
        add(format!("zipf {exponent:.1}, scans"), true, scan(&mut zipf, 4 * room, 2 * room));
        add(format!("zipf {exponent:.1}, mixed"), true, scan(&mut zipf, 2, 1));
    }
    let round = (room + room / 2) as u64;
    add("loop".into(), false, (0..reads as u64).map(|read| read % round).collect());
    traces
}

/// Numbers below [`NAMES`], the first ones by far the most often; the same in each run.
struct Zipf {
    /// The chance that a number is this one or one before.
    upto: Vec<f64>,
    state: u64,
}

impl Zipf {
    fn new(exponent: f64) -> Zipf {
        let mut sum = 0.0;
        let mut upto: Vec<f64> = (1..=NAMES)
            .map(|rank| {
                sum += (rank as f64).powf(-exponent);
                sum
            })
            .collect();
        upto.iter_mut().for_each(|share| *share /= sum);
        Zipf { upto, state: 7 }
    }

    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64;
        self.upto.partition_point(|&upto| upto < share) as u64
    }
}
