//! Ten million names through a `state/` of 64 MiB: memory and disk stay flat, and a thousand busy names, asked for all
//! the time among them, get their share and no more.
//!
//! ```text
//! cargo bench --bench flood
//! ```
//!
//! It ends with an error if a bound is missed. `FLOODGATE_FLOOD` names another number of millions.
#![allow(missing_docs)]

#[path = "../tests/support/flood.rs"]
mod flood;

use flood::Flood;
use std::{fs, os::unix::fs::MetadataExt, path::Path, process::ExitCode, time::Instant};

const MIB: u64 = 1 << 20;
const STATE: u64 = 64 * MIB;
/// Busy names of each of the four kinds.
const BUSY: usize = 250;

/// The bytes that the process and its directory take.
#[derive(Clone, Copy, PartialEq)]
struct Size {
    /// Of memory, with the pages of the map.
    resident: u64,
    /// Of memory, without them.
    own: u64,
    disk: u64,
}

fn main() -> ExitCode {
    // `cargo test --benches` runs this too, only to see that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return ExitCode::SUCCESS;
    }
    let millions = std::env::var("FLOODGATE_FLOOD").ok().and_then(|n| n.parse().ok()).unwrap_or(10);
    let mut flood = Flood::new(STATE, BUSY);
    let (began, before) = (Instant::now(), memory("RssAnon:"));
    let mut sizes = Vec::new();
    println!("names      memory (without the map)   disk        cells evicted   wrong   took");
    for million in 1..=millions {
        flood.pour(1_000_000);
        if ![1, 2, 5, millions].contains(&million) {
            continue;
        }
        let size = Size { resident: memory("VmRSS:"), own: memory("RssAnon:"), disk: disk(flood.cache.path()) };
        println!(
            "{million:>2} million {:>6.1} MiB ({:.1} MiB)      {:>6.1} MiB  {:>13}   {:>5}   {:.1} s",
            mib(size.resident),
            mib(size.own),
            mib(size.disk),
            flood.cache.stats().cells_evicted,
            flood.wrong(),
            began.elapsed().as_secs_f64(),
        );
        sizes.push(size);
    }
    println!("\nbusy names                          asked   admitted      bound   too many    too few");
    for kind in &flood.kinds {
        let told = kind.tally;
        println!(
            "{BUSY} {:<28} {:>8} {:>10} {:>10} {:>10} {:>10}",
            kind.what, told.asked, told.admitted, told.bound, told.wrongly_admitted, told.wrongly_refused
        );
    }
    let first = sizes[0];
    let flat = |size: &Size| size.disk == first.disk && size.own <= before + 8 * MIB;
    let bounds = [
        ("the disk as after the first million, memory without the map within 8 MiB", sizes.iter().all(flat)),
        ("the disk within 2 MiB of the state's size", first.disk <= STATE + 2 * MIB),
        ("memory within the state's size and 16 MiB", sizes.iter().all(|size| size.resident <= STATE + 16 * MIB)),
        ("no new name refused", flood.refused == 0),
        ("each decision for a busy name right", flood.wrong() == 0),
        ("cells had to go", flood.cache.stats().cells_evicted > 0),
    ];
    println!();
    for (what, met) in bounds {
        println!("{:<6} {what}", if met { "ok" } else { "MISSED" });
    }
    if bounds.iter().all(|bound| bound.1) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB as f64
}

/// Bytes of memory of this process, as the kernel counts them.
fn memory(what: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(what)).expect("a line of it");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Bytes on disk of a directory's contents.
fn disk(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(facts) if facts.is_dir() => disk(&entry.path()),
            Ok(facts) => facts.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
