//! Locks under torture: six processes acquire three locks by lot, while they are killed, stopped and continued. What
//! happened is written down by each, and checked afterwards.
//!
//! - `FLOODGATE_TORTURE_SECONDS`: how long, 20 unless said otherwise. One round takes place whatever it says, and each goes
//!   on until enough has happened in it.
//! - `FLOODGATE_TORTURE_SEED`: what is decided by lot is then decided in the same way, though not what comes of it.
//!
//! The processes take it in turns to work undisturbed, since only then can it be told that somebody waits for too long. In
//! between they rest, and the parent acquires everything: no place may be lost.
//!
//! The machine's clock is not set, as others use it. Half of the processes have a calendar that jumps (`Clock::wall`).

mod checker;
mod child;
mod crew;
mod history;
mod store;
mod visit;

#[path = "../support/processes.rs"]
mod processes;

use checker::Violation;
use crew::Crew;
use history::{Attempt, Failure, History, How};
use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, Instant},
};

const ROUND: Duration = Duration::from_secs(20);
/// A round in which less happens has tested nothing. A few seconds bring far more.
const FLOOR: Happened = Happened { holds: [60; 3], kills: 4, stops: 8 };
/// If there is not enough by then, there never will be.
const GIVE_UP: Duration = Duration::from_secs(120);

/// How much has happened in a round.
#[derive(Clone, Copy, Debug, Default)]
struct Happened {
    /// Of `mutex`, `permits` and `rows`, by the children.
    holds: [usize; 3],
    kills: u32,
    stops: u32,
}

impl Happened {
    fn so_far(crew: &Crew, history: &Path) -> Happened {
        let History { attempts, .. } = History::new(history::read(history).unwrap());
        let ours = || attempts.iter().filter(|attempt| attempt.id.process != 0 && attempt.got.is_some());
        let holds = ["mutex", "permits", "rows"].map(|name| ours().filter(|hold| hold.want.name == name).count());
        Happened { holds, kills: crew.kills, stops: crew.stops }
    }

    fn is_enough(&self) -> bool {
        let Happened { holds, kills, stops } = FLOOR;
        let is_held = self.holds.iter().zip(holds).all(|(seen, least)| *seen >= least);
        is_held && self.kills >= kills && self.stops >= stops
    }
}

fn setting(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value}")))
}

#[test]
fn locks_hold_while_processes_die() {
    let length = Duration::from_secs(setting("FLOODGATE_TORTURE_SECONDS").unwrap_or(20));
    let seed = setting("FLOODGATE_TORTURE_SEED").unwrap_or_else(rand::random);
    eprintln!("FLOODGATE_TORTURE_SEED={seed}");
    let directory = tempfile::Builder::new().prefix("torture-").tempdir().unwrap();
    let began = Instant::now();
    let mut fences = HashMap::new();
    for round in 0.. {
        let left = length.saturating_sub(began.elapsed());
        if round > 0 && left < Duration::from_secs(1) {
            break;
        }
        let history = directory.path().join(format!("history-{round}"));
        let mut wrong = torture(directory.path(), &history, seed.wrapping_add(round), left.min(ROUND));
        let lived = History::new(history::read(&history).unwrap());
        let violations = checker::check(&lived);
        wrong.extend(older_fences(&lived, &mut fences));
        wrong.extend(violations.iter().map(|violation| describe(violation, &lived)));
        eprintln!("round {round}: {}", summary(&lived));
        if !wrong.is_empty() {
            panic!("seed {seed}, see {}:\n{}", directory.keep().display(), wrong.join("\n"));
        }
        std::fs::remove_dir_all(history).unwrap();
    }
}

/// One round, and what was wrong on the face of it.
fn torture(directory: &Path, history: &Path, seed: u64, length: Duration) -> Vec<String> {
    let began = Instant::now();
    let mut crew = Crew::new(directory, history, seed);
    let mut wrong = Vec::new();
    let mut happened = Happened::default();
    while wrong.is_empty() && (began.elapsed() < length || !happened.is_enough()) {
        crew.storm(Duration::from_millis(2_500));
        crew.calm(Duration::from_millis(1_200));
        wrong.extend(crew.audit());
        happened = Happened::so_far(&crew, history);
        if began.elapsed() > GIVE_UP && !happened.is_enough() {
            wrong.push(format!("too little happened to say anything: {happened:?} of {FLOOR:?}"));
        }
    }
    eprintln!("{happened:?}");
    if wrong.is_empty() {
        wrong.extend(crew.end());
    }
    wrong
}

/// Fences also grow from round to round, over the ends of all processes.
fn older_fences(history: &History, greatest: &mut HashMap<String, u64>) -> Vec<String> {
    let holds = || history.attempts.iter().filter_map(|attempt| Some((attempt, attempt.got?.1)));
    let wrong =
        holds().filter(|(attempt, fence)| greatest.get(&attempt.want.name).is_some_and(|before| before >= fence));
    let wrong =
        wrong.map(|(attempt, _)| format!("a fence of the round before is greater than that of {attempt:?}")).collect();
    for (attempt, fence) in holds() {
        let before = greatest.entry(attempt.want.name.clone()).or_default();
        *before = (*before).max(fence);
    }
    wrong
}

/// The violation, and what is known of some of those in it, in us since the beginning.
fn describe(violation: &Violation, history: &History) -> String {
    let ids = violation.about();
    let began = history.attempts.first().map_or(0, |attempt| attempt.asked);
    let us = |at: u64| at.saturating_sub(began) / 1_000;
    let about = history.attempts.iter().filter(|attempt| ids.contains(&attempt.id)).take(4).map(|attempt| {
        let Attempt { id, want, asked, got, failed, told, refused, leaves, left } = attempt;
        let life = history.lives.get(&id.process).cloned().unwrap_or_default();
        let stops = life.stops.iter().map(|stop| (us(stop.from), us(stop.to)));
        format!(
            "    {id:?} {want:?}: asked {}, got {:?}, failed {:?}, told {:?}, refused {:?}, leaves {:?}, left {:?}; its \
             process was stopped {:?}, killed {:?}",
            us(*asked),
            got.map(|(at, fence)| (us(at), fence)),
            failed.map(|(at, why)| (us(at), why)),
            told.map(us),
            refused.map(us),
            leaves.map(us),
            left.map(|(at, how)| (us(at), how)),
            stops.collect::<Vec<_>>(),
            life.killed.map(|killed| us(killed.from)),
        )
    });
    format!("{violation}; 0 is {began}\n{}", about.collect::<Vec<_>>().join("\n"))
}

fn summary(history: &History) -> String {
    let count = |wanted: &dyn Fn(&Attempt) -> bool| history.attempts.iter().filter(|attempt| wanted(attempt)).count();
    let failed = |why: Failure| count(&|attempt| attempt.failed.is_some_and(|failed| failed.1 == why));
    let left = |how: How| count(&|attempt| attempt.left.is_some_and(|left| left.1 == how));
    let mut waits: Vec<u64> =
        history.attempts.iter().filter_map(|attempt| Some((attempt.got?.0 - attempt.asked) / 1_000)).collect();
    waits.sort_unstable();
    let part = |of: usize, all: usize| waits.get(waits.len() * of / all).copied().unwrap_or_default();
    format!(
        "{} attempts, {} holds ({} kept, {} lost, {} dropped), {} told, {} refused; {} busy, {} dropped, {} without the \
         cache; waited {} us (half), {} us (99 of 100), {} us at most",
        history.attempts.len(),
        waits.len(),
        left(How::Kept),
        left(How::Lost),
        left(How::Unknown),
        count(&|attempt| attempt.told.is_some()),
        count(&|attempt| attempt.refused.is_some()),
        failed(Failure::Busy),
        failed(Failure::Dropped),
        failed(Failure::Cache),
        part(1, 2),
        part(99, 100),
        waits.last().copied().unwrap_or_default(),
    )
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = processes::role() else { return };
    assert_eq!(role, "torture");
    child::play(&path);
}
