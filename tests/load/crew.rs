//! The parent's side: processes that it starts, stops, continues, kills and replaces, files that it damages, and what it
//! writes down of that.

use crate::{
    files,
    history::{Event, Pen, Process, Span, now},
    player::{Desk, Part},
    support::Child,
};
use nix::sys::{
    signal::Signal,
    wait::{WaitPidFlag, WaitStatus, waitpid},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

const PLAYERS: usize = 4;
/// Which of them is stopped and continued, which is killed and started again, and which has its LMDB broken. The last one is
/// left alone.
const STOPPED: usize = 0;
const KILLED: usize = 1;
const BROKEN: usize = 2;

/// For how long a reader is stopped.
const PINNED: Duration = Duration::from_secs(4);

/// Less than this tests nothing: kills, stops, and bytes written about locks and answers. Some 150 bytes tell of a read.
const KILLS: u32 = 3;
const STOPS: u32 = 10;
const LOCKS: u64 = 1 << 20;
const NOTES: u64 = 100 << 10;

/// By then it has happened, on the slowest machine.
pub(crate) const SURELY: Duration = Duration::from_secs(60);

/// What is done to the cache beside stopping and killing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is stopped while it reads answers.
    Pin,
    DamageAnswers,
    DamageState,
    /// LMDB cannot commit any more, in one process.
    Panic,
}

impl Fault {
    pub(crate) const ALL: [Fault; 4] = [Fault::Pin, Fault::DamageAnswers, Fault::DamageState, Fault::Panic];

    /// The environment that it concerns.
    fn environment(self) -> &'static str {
        if self == Fault::DamageState { "state" } else { "entries-0" }
    }
}

/// From before a fault was planted until after it was known to be over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planted {
    pub(crate) fault: Fault,
    pub(crate) span: Span,
}

/// The most that was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Peaks {
    /// Allocated bytes of answers.
    pub(crate) answers: u64,
    /// Resident bytes of a process.
    pub(crate) resident: u64,
}

pub(crate) struct Crew {
    random: StdRng,
    cache: PathBuf,
    desk: Desk,
    /// The history of locks knows when processes are stopped and killed.
    pen: Pen,
    players: Vec<Player>,
    reader: Player,
    next: Process,
    awaited: Option<Awaited>,
    /// When the reader was stopped in the middle of a read.
    pinned_since: Option<u64>,
    pub(crate) planted: Vec<Planted>,
    pub(crate) peaks: Peaks,
    pub(crate) wrong: Vec<String>,
    pub(crate) kills: u32,
    pub(crate) stops: u32,
}

/// A fault that was planted at a time, and the generation that it concerns.
#[derive(Clone, Copy)]
struct Awaited {
    fault: Fault,
    generation: u64,
    from: u64,
    since: Instant,
}

struct Player {
    process: Process,
    child: Child,
    stopped_until: Option<Instant>,
}

impl Crew {
    pub(crate) fn new(cache: &Path, desk: &Desk, seed: u64) -> Crew {
        let mut reader = Child::spawn("reader", cache);
        reader.expect("reads");
        let mut crew = Crew {
            random: StdRng::seed_from_u64(seed),
            cache: cache.into(),
            desk: desk.clone(),
            pen: Pen::new(&desk.locks(), 0).unwrap(),
            players: Vec::new(),
            reader: Player { process: u32::MAX, child: reader, stopped_until: None },
            next: 1,
            awaited: None,
            pinned_since: None,
            planted: Vec::new(),
            peaks: Peaks::default(),
            wrong: Vec::new(),
            kills: 0,
            stops: 0,
        };
        for nth in 0..PLAYERS {
            let player = crew.start(nth);
            crew.players.push(player);
        }
        crew
    }

    fn start(&mut self, nth: usize) -> Player {
        let process = self.next;
        self.next += 1;
        let mut child = Child::spawn("player", &self.cache);
        let part = Part { process, seed: self.random.random(), desk: self.desk.clone(), is_durable: nth == BROKEN };
        child.tell(&serde_json::to_string(&part).unwrap());
        Player { process, child, stopped_until: None }
    }

    /// Whether it has opened the cache. Who is stopped while it does keeps all others from opening it.
    fn is_at_work(&self, nth: usize) -> bool {
        self.desk.notes().join(self.players[nth].process.to_string()).exists()
    }

    pub(crate) fn all_are_at_work(&self) -> bool {
        (0..PLAYERS).all(|nth| self.is_at_work(nth))
    }

    /// Whether so much happened that it tests something.
    pub(crate) fn is_enough(&self) -> bool {
        let is_written = [(self.desk.locks(), LOCKS), (self.desk.notes(), NOTES)];
        let is_written = is_written.iter().all(|(directory, least)| files::length(directory) >= *least);
        self.kills >= KILLS && self.stops >= STOPS && is_written
    }

    /// Lets them work for a while, and stops, kills and looks on.
    pub(crate) fn step(&mut self) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(5..60)));
        self.look();
        self.go_on(|until| until <= Instant::now());
        match self.random.random_range(0..80) {
            0 if self.is_at_work(KILLED) => self.kill(),
            1..6 if self.is_at_work(STOPPED) => self.stop_one(),
            _ => {}
        }
    }

    /// Lets them work undisturbed for a while.
    pub(crate) fn rest(&mut self) {
        std::thread::sleep(Duration::from_millis(20));
        self.look();
        self.go_on(|_| true);
    }

    /// Whether a fault that was planted still has to show.
    pub(crate) fn awaits(&self) -> bool {
        self.awaited.is_some() || self.reader.stopped_until.is_some()
    }

    fn pids(&self) -> Vec<i32> {
        self.players.iter().chain([&self.reader]).map(|player| player.child.pid().as_raw()).collect()
    }

    fn environment(&self, name: &str) -> PathBuf {
        files::environment(&self.cache, name)
    }

    /// Allocated bytes of all answers.
    pub(crate) fn answers(&self) -> u64 {
        files::allocated(&self.environment("entries-0"), &self.pids())
    }

    /// How many generations have files.
    pub(crate) fn generations(&self) -> usize {
        let pids = self.pids();
        let counts = ["state", "entries-0"].map(|name| files::data_files(&self.environment(name), &pids));
        counts.into_iter().max().unwrap_or_default()
    }

    fn look(&mut self) {
        // While the files are counted, one may go and another grow: what is seen twice is true.
        let answers = self.answers();
        if answers > self.peaks.answers {
            self.peaks.answers = self.peaks.answers.max(answers.min(self.answers()));
        }
        for pid in self.pids() {
            self.peaks.resident = self.peaks.resident.max(files::resident(pid).unwrap_or_default());
        }
        for player in self.players.iter().chain([&self.reader]) {
            match waitpid(player.child.pid(), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => {}
                other => self.wrong.push(format!("process {} has ended: {other:?}", player.process)),
            }
        }
        let Some(Awaited { fault, generation, from, since }) = self.awaited else { return };
        let (latest, _) = files::current(&self.environment(fault.environment()), "");
        if latest != generation {
            self.awaited = None;
            self.planted.push(Planted { fault, span: Span::new(from, now()) });
        } else if since.elapsed() > SURELY {
            self.awaited = None;
            self.wrong.push(format!("{fault:?}: generation {generation} is still in use"));
        }
    }

    /// For less or more than the short leases; rarely for longer than anybody has patience.
    fn stop_length(&mut self) -> Duration {
        Duration::from_millis(match self.random.random_range(0..20) {
            0..8 => self.random.random_range(1..100),
            8..14 => self.random.random_range(100..500),
            14..19 => self.random.random_range(500..1_600),
            _ => self.random.random_range(3_000..5_000),
        })
    }

    fn stop_one(&mut self) {
        let length = self.stop_length();
        let Player { process, ref child, ref mut stopped_until } = self.players[STOPPED];
        if stopped_until.is_none() {
            self.pen.write(&Event::Stops { process, at: now() });
            child.stop();
            self.stops += 1;
            *stopped_until = Some(Instant::now() + length);
        }
    }

    fn go_on(&mut self, due: impl Fn(Instant) -> bool) {
        for player in self.players.iter_mut().chain([&mut self.reader]) {
            if player.stopped_until.is_some_and(&due) {
                player.child.go_on();
                self.pen.write(&Event::Continued { process: player.process, at: now() });
                player.stopped_until = None;
            }
        }
        if self.reader.stopped_until.is_none() {
            let pinned = self.pinned_since.take().map(|from| Span::new(from, now()));
            self.planted.extend(pinned.map(|span| Planted { fault: Fault::Pin, span }));
        }
    }

    fn kill(&mut self) {
        let next = self.start(KILLED);
        let Player { process, child, .. } = std::mem::replace(&mut self.players[KILLED], next);
        self.pen.write(&Event::Kills { process, at: now() });
        child.kill();
        self.pen.write(&Event::Gone { process, at: now() });
        self.kills += 1;
    }

    pub(crate) fn plant(&mut self, fault: Fault) {
        let environment = self.environment(fault.environment());
        let latest = || (files::current(&environment, "").0, now());
        let (mut generation, mut from) = latest();
        match fault {
            Fault::Pin => return self.pin(&environment),
            Fault::DamageAnswers | Fault::DamageState => {
                let mut random = StdRng::seed_from_u64(self.random.random());
                // What can still be read of the state must be kept.
                let share = if fault == Fault::DamageState { 0.5 } else { 1.0 };
                self.with_nobody_writing(&environment, |path| {
                    (generation, from) = latest();
                    files::garble(path, || random.random_bool(share));
                });
            }
            Fault::Panic => self.players[BROKEN].child.tell("break"),
        }
        self.awaited = Some(Awaited { fault, generation, from, since: Instant::now() });
    }

    /// Stops the reader in the middle of a read.
    fn pin(&mut self, environment: &Path) {
        let (began, process) = (Instant::now(), self.reader.process);
        while began.elapsed() < SURELY {
            let from = now();
            self.reader.child.stop();
            if files::pins(self.reader.child.pid().as_raw(), environment) {
                self.pen.write(&Event::Stops { process, at: from });
                self.reader.stopped_until = Some(Instant::now() + PINNED);
                self.pinned_since = Some(from);
                return;
            }
            self.reader.child.go_on();
            std::thread::sleep(Duration::from_millis(self.random.random_range(1..20)));
        }
        self.wrong.push("the reader is never stopped in the middle of a read".into());
    }

    /// Stops all, when nobody is in the middle of a write. What they read may change under their eyes, as by a disk that
    /// fails; but what a writer has half done is its own.
    fn with_nobody_writing(&mut self, environment: &Path, mut f: impl FnMut(&Path)) {
        let began = Instant::now();
        self.go_on(|_| true);
        while began.elapsed() < SURELY {
            if !files::is_gate_free(environment) {
                std::thread::sleep(Duration::from_micros(100));
                continue;
            }
            for Player { process, child, stopped_until } in self.players.iter_mut().chain([&mut self.reader]) {
                self.pen.write(&Event::Stops { process: *process, at: now() });
                child.stop();
                *stopped_until = Some(Instant::now());
            }
            let is_free = files::is_gate_free(environment);
            if is_free {
                f(environment);
            }
            self.go_on(|_| true);
            if is_free {
                return;
            }
            std::thread::sleep(Duration::from_millis(self.random.random_range(50..150)));
        }
        self.wrong.push("somebody is always writing".into());
    }

    /// Ends all in good order.
    pub(crate) fn end(mut self) -> (Vec<String>, Vec<Planted>) {
        let (tell, hear) = mpsc::channel();
        let mut silent = Vec::new();
        for Player { process, mut child, .. } in self.players.drain(..) {
            silent.push((process, child.pid()));
            let tell = tell.clone();
            std::thread::spawn(move || {
                child.try_tell("end");
                let said = child.heard();
                if said.is_some() {
                    child.end();
                }
                let _ = tell.send((process, said));
            });
        }
        let deadline = Instant::now() + SURELY;
        while !silent.is_empty() {
            match hear.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((process, said)) => {
                    silent.retain(|other| other.0 != process);
                    if said.as_deref() != Some("ended") {
                        self.wrong.push(format!("process {process} says: {said:?}"));
                    }
                }
                Err(_) => {
                    for (process, pid) in silent.drain(..) {
                        self.wrong.push(format!("process {process} does not end"));
                        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                    }
                }
            }
        }
        (self.wrong, self.planted)
    }
}
