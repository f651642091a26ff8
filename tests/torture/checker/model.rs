//! A lock that is right by construction: histories for the checker to agree with, before something is made wrong in them.

use crate::history::{Event, Failure, How, Process, Want};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const MS: u64 = 1_000_000;
/// The model moves in steps of this.
const STEP: u64 = MS;
const NOTICED: u64 = 60 * MS;

/// What a model is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) capacity: u32,
    /// Of one who enters, at most. `u32::MAX` makes a readers-writer lock, where some weigh all and others 1.
    pub(crate) heaviest: u32,
    pub(crate) lease: u64,
    /// How many ms it is held.
    pub(crate) hold: (u64, u64),
    /// Whether processes are stopped and killed.
    pub(crate) rough: bool,
}

struct Waiter {
    process: Process,
    attempt: u64,
    weight: u32,
    patient_until: u64,
}

struct Holder {
    process: Process,
    attempt: u64,
    weight: u32,
    until: u64,
    /// When its place ends unless it is renewed.
    lease: u64,
    lost: bool,
    /// Its process is dead.
    dead: bool,
}

struct Model {
    plan: Plan,
    random: StdRng,
    now: u64,
    attempts: u64,
    fence: u64,
    line: Vec<Waiter>,
    held: Vec<Holder>,
    /// Process and when it continues; 0 runs.
    processes: Vec<(Process, u64)>,
    lines: Vec<(Process, Event)>,
}

/// The lines of a model that ran for so many ms.
pub(crate) fn run(plan: Plan, seed: u64, millis: u64) -> Vec<(Process, Event)> {
    let mut model = Model {
        plan,
        random: StdRng::seed_from_u64(seed),
        now: 1_000_000 * MS,
        attempts: 0,
        fence: 0,
        line: Vec::new(),
        held: Vec::new(),
        processes: (1..=4).map(|process| (process, 0)).collect(),
        lines: Vec::new(),
    };
    for _ in 0..millis {
        model.step();
    }
    model.lines
}

impl Model {
    fn step(&mut self) {
        self.now += STEP;
        if self.plan.rough {
            self.disturb();
        }
        self.beat();
        self.arrive();
        self.end_holds();
        self.give_up();
        self.grant();
    }

    fn write(&mut self, process: Process, event: Event) {
        self.lines.push((process, event));
    }

    fn runs(&self, process: Process) -> bool {
        self.processes.contains(&(process, 0))
    }

    /// A little time, so that what is written is not what happened.
    fn jitter(&mut self, most: u64) -> u64 {
        self.random.random_range(0..most)
    }

    fn disturb(&mut self) {
        let now = self.now;
        for nth in 0..self.processes.len() {
            let (process, until) = self.processes[nth];
            if until != 0 && until <= now {
                self.processes[nth].1 = 0;
                self.write(0, Event::Continued { process, at: now });
            }
            // Seldom enough that much of the time is quiet.
            match self.random.random_range(0..12_000) {
                0 => self.kill(nth),
                1 | 2 if until == 0 => {
                    let length = self.random.random_range(20..2_000) * MS;
                    self.processes[nth].1 = now + length;
                    self.write(0, Event::Stops { process, at: now });
                }
                _ => {}
            }
        }
    }

    fn kill(&mut self, nth: usize) {
        let process = self.processes[nth].0;
        self.write(0, Event::Kills { process, at: self.now });
        self.write(0, Event::Gone { process, at: self.now + MS });
        let next = self.processes.iter().map(|process| process.0).max().unwrap_or_default() + 1;
        self.processes[nth] = (next, 0);
        self.line.retain(|waiter| waiter.process != process);
        for holder in self.held.iter_mut().filter(|holder| holder.process == process) {
            holder.dead = true;
            holder.until = self.now + NOTICED;
        }
    }

    fn beat(&mut self) {
        if (self.now / STEP).is_multiple_of(25) {
            for nth in 0..self.processes.len() {
                if let (process, 0) = self.processes[nth] {
                    self.write(process, Event::Beat { at: self.now });
                }
            }
        }
    }

    fn arrive(&mut self) {
        let process = self.processes[self.random.random_range(0..self.processes.len())].0;
        if !self.runs(process) || self.line.len() >= 12 || self.random.random_range(0..4) != 0 {
            return;
        }
        self.attempts += 1;
        let (attempt, at) = (self.attempts, self.now - self.jitter(MS / 2));
        let patience = self.random.random_bool(0.3).then(|| self.random.random_range(0..200) * MS);
        let weight = match self.plan {
            Plan { heaviest: u32::MAX, .. } => [1, 1, u32::MAX][self.random.random_range(0..3)],
            Plan { heaviest, .. } => self.random.random_range(1..=heaviest),
        };
        let Plan { capacity, lease, .. } = self.plan;
        let want = Want { name: "l".into(), capacity, weight, lease, at_least: 0, patience, lazy: false };
        self.write(process, Event::Asks { attempt, at, want });
        let patient_until = patience.map_or(u64::MAX, |patience| self.now + patience);
        self.line.push(Waiter { process, attempt, weight, patient_until });
    }

    /// Releases are in the first quarter of a step, grants in the third.
    fn end_holds(&mut self) {
        for mut holder in std::mem::take(&mut self.held) {
            let runs = self.runs(holder.process);
            let Holder { process, attempt, .. } = holder;
            if runs && !holder.lost {
                // Renewed now and then.
                if holder.lease < self.now + self.plan.lease * 2 / 3 {
                    holder.lease = self.now + self.plan.lease;
                }
            } else if !holder.dead && holder.lease <= self.now && !holder.lost {
                holder.lost = true;
            } else if holder.lost && runs {
                let at = self.now + self.jitter(MS / 8);
                self.write(process, Event::Told { attempt, at });
                holder.until = holder.until.min(self.now);
            }
            if holder.dead && holder.until <= self.now {
                continue;
            }
            if !runs || holder.until > self.now {
                self.held.push(holder);
                continue;
            }
            let (before, after) = (self.now + self.jitter(MS / 8), self.now + MS / 4 + self.jitter(4 * MS));
            let sure = if holder.lost { How::Lost } else { How::Kept };
            let how = if self.random.random_bool(0.5) { sure } else { How::Unknown };
            self.write(process, Event::Leaves { attempt, at: before });
            self.write(process, Event::Left { attempt, at: after, how });
        }
    }

    fn give_up(&mut self) {
        let (now, processes) = (self.now, self.processes.clone());
        let mut gone = Vec::new();
        self.line.retain(|waiter| {
            let stays = waiter.patient_until > now || !processes.contains(&(waiter.process, 0));
            if !stays {
                gone.push((waiter.process, waiter.attempt));
            }
            stays
        });
        for (process, attempt) in gone {
            let at = now + self.jitter(MS);
            let why = if self.random.random_bool(0.5) { Failure::Busy } else { Failure::Dropped };
            self.write(process, Event::Failed { attempt, at, why });
        }
    }

    fn grant(&mut self) {
        while let Some(first) = self.line.iter().position(|waiter| self.runs(waiter.process)) {
            let inside = self.held.iter().filter(|holder| !holder.lost);
            let held: u64 = inside.map(|holder| u64::from(holder.weight)).sum();
            if held + u64::from(self.line[first].weight) > self.plan.capacity.into() {
                break;
            }
            let Waiter { process, attempt, weight, .. } = self.line.remove(first);
            self.fence += self.random.random_range(1..4);
            let (at, fence) = (self.now + MS / 2 + self.jitter(2 * MS), self.fence);
            self.write(process, Event::Got { attempt, at, fence });
            let until = self.now + self.random.random_range(self.plan.hold.0..self.plan.hold.1) * MS;
            let lease = self.now + self.plan.lease;
            self.held.push(Holder { process, attempt, weight, until, lease, lost: false, dead: false });
        }
    }
}
