//! The operations that wait for a turn at the gate, in the order in which they came.

use super::{
    operation::{Caller, Job},
    standstill::Standstill,
};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

/// Operations in one transaction at most: some 150 microseconds of a runtime's thread.
const BATCH: usize = 256;
/// Bytes that the operations of one transaction store at most. A larger one has a transaction to itself.
const BATCH_BYTES: usize = 4 << 20;
/// A commit that takes longer is one of a disk that is stuck.
const SLOW_COMMIT: Duration = Duration::from_secs(10);
/// Bytes that may be queued before answers that need not be stored are left out. Values that their callers insert are theirs
/// until they are stored: they wait in line, and are gone from memory as soon as their callers do not wait any more.
const QUEUE_BYTES: usize = 64 << 20;

/// The operations that wait for a turn at the gate, and the callers of those that have it.
pub(super) struct Backlog {
    jobs: VecDeque<Queued>,
    next_number: u64,
    /// How many of `jobs` are not gone, and the bytes that they store.
    live: usize,
    bytes: usize,
    /// No operation before this number has a patience that could end.
    patient_upto: u64,
    standstill: Standstill,
    inside: Vec<Arc<dyn Caller>>,
    batch_began: Instant,
    pub(super) times: Times,
    /// When the watching thread saw this number of batches first.
    seen: Option<(Instant, u64)>,
}

/// An operation in the queue.
pub(super) struct Queued {
    number: u64,
    /// `None`: its caller has given it up, or was told that it is late.
    job: Option<Box<dyn Job>>,
    size: usize,
    came: Instant,
    /// The reading of the standstill when it came. `None`: it must run, however late.
    since: Option<Duration>,
}

/// How long the operations have waited, and how long the gate was held for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) queued: u64,
    pub(crate) queued_for: Duration,
    pub(crate) longest_queued: Duration,
    pub(crate) batches: u64,
    pub(crate) at_gate: Duration,
    pub(crate) longest_at_gate: Duration,
}

impl Queued {
    /// The operation; it is there while the batch is not put back.
    pub(super) fn into_job(self) -> Option<Box<dyn Job>> {
        self.job
    }

    pub(super) fn job(&mut self) -> Option<&mut Box<dyn Job>> {
        self.job.as_mut()
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }
}

/// What has waited in vain for as long as it may.
#[derive(Default)]
pub(super) struct Late {
    pub(super) jobs: Vec<Box<dyn Job>>,
    /// The callers of operations whose turn at the gate does not end.
    pub(super) inside: Vec<Arc<dyn Caller>>,
}

impl Backlog {
    pub(super) fn new(patience: Duration) -> Backlog {
        Backlog {
            jobs: VecDeque::new(),
            next_number: 0,
            live: 0,
            bytes: 0,
            patient_upto: 0,
            standstill: Standstill::new(patience, Instant::now()),
            inside: Vec::new(),
            batch_began: Instant::now(),
            times: Times::default(),
            seen: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.live
    }

    /// Whether there is room for so many bytes more of what need not be stored.
    pub(super) fn has_room_for(&self, size: usize) -> bool {
        self.bytes == 0 || self.bytes.saturating_add(size) <= QUEUE_BYTES
    }

    /// Whether nothing waits, and nothing is at the gate for a caller.
    pub(super) fn is_idle(&self) -> bool {
        self.live == 0 && self.inside.is_empty()
    }

    /// How often the watching thread looks.
    pub(super) fn pace(&self) -> Duration {
        self.standstill.pace() / 2
    }

    /// A look of the watching thread: whether there was no batch since an earlier one.
    pub(super) fn is_left_alone(&mut self, now: Instant) -> bool {
        match self.seen {
            Some((at, batches)) if batches == self.times.batches => now.saturating_duration_since(at) >= self.pace(),
            _ => {
                self.seen = Some((now, self.times.batches));
                false
            }
        }
    }

    /// Adds an operation behind all others. A `bounded` one waits with the queue's patience, others for ever. Returns its
    /// number.
    pub(super) fn push(&mut self, job: Box<dyn Job>, bounded: bool, now: Instant) -> u64 {
        if self.is_idle() {
            self.standstill.restart(now);
            self.seen = None;
        }
        let (number, size) = (self.next_number, job.size());
        self.next_number += 1;
        let since = bounded.then(|| self.standstill.reading());
        self.jobs.push_back(Queued { number, job: Some(job), size, came: now, since });
        self.live += 1;
        self.bytes = self.bytes.saturating_add(size);
        number
    }

    /// Takes the operations of the next transaction, for a thread that has the gate.
    pub(super) fn take_batch(&mut self, now: Instant) -> Vec<Queued> {
        self.standstill.restart(now);
        self.batch_began = now;
        let (mut batch, mut bytes) = (Vec::with_capacity(self.live.min(BATCH)), 0_usize);
        while let Some(next) = self.jobs.front() {
            let Some(job) = &next.job else {
                self.jobs.pop_front();
                continue;
            };
            bytes = bytes.saturating_add(next.size);
            if batch.len() == BATCH || (bytes > BATCH_BYTES && !batch.is_empty()) {
                break;
            }
            self.inside.extend(job.caller());
            self.live -= 1;
            self.bytes -= next.size;
            batch.extend(self.jobs.pop_front());
        }
        batch
    }

    /// Ends the turn of a batch. `rest` did not get their turn, and stay before all others.
    pub(super) fn end_batch(&mut self, rest: Vec<Queued>) {
        self.inside.clear();
        for queued in rest.into_iter().rev() {
            self.patient_upto = self.patient_upto.min(queued.number);
            self.live += 1;
            self.bytes = self.bytes.saturating_add(queued.size);
            self.jobs.push_front(queued);
        }
    }

    /// Takes an operation out that no caller awaits any more.
    pub(super) fn remove(&mut self, number: u64) -> Option<Box<dyn Job>> {
        let at = self.jobs.binary_search_by_key(&number, |queued| queued.number).ok()?;
        let job = self.take(at);
        // What is left of those that are gone does not pile up.
        if self.jobs.len() > 2 * self.live + 64 {
            self.jobs.retain(|queued| queued.job.is_some());
        }
        job
    }

    fn take(&mut self, at: usize) -> Option<Box<dyn Job>> {
        let job = self.jobs[at].job.take()?;
        self.live -= 1;
        self.bytes -= self.jobs[at].size;
        Some(job)
    }

    /// A look at a gate that cannot be had: takes out what has waited in vain for the whole patience.
    ///
    /// While a batch of this process is being committed it moves, however slow the disk is, up to a bound.
    pub(super) fn look(&mut self, now: Instant, commit: u64, commits: bool) -> Late {
        if commits && now.saturating_duration_since(self.batch_began) < SLOW_COMMIT {
            self.standstill.restart(now);
            return Late::default();
        }
        self.standstill.look(now, commit);
        let mut late = Late::default();
        let mut at = self.jobs.partition_point(|queued| queued.number < self.patient_upto);
        while let Some(queued) = self.jobs.get(at) {
            if queued.job.is_some()
                && let Some(since) = queued.since
            {
                if !self.standstill.exceeds_patience(since) {
                    break;
                }
                late.jobs.extend(self.take(at));
            }
            self.patient_upto = self.jobs[at].number + 1;
            at += 1;
        }
        if self.standstill.exceeds_patience(Duration::ZERO) {
            late.inside.append(&mut self.inside);
        }
        late
    }

    /// Takes out everything, or everything but what must run however late.
    pub(super) fn take_all(&mut self, but_patient: bool) -> Vec<Box<dyn Job>> {
        let mut taken = Vec::with_capacity(self.live);
        for at in 0..self.jobs.len() {
            if !(but_patient && self.jobs[at].since.is_none()) {
                taken.extend(self.take(at));
            }
        }
        self.jobs.retain(|queued| queued.job.is_some());
        taken
    }

    /// The callers of the first operations that wait.
    pub(super) fn first_callers(&self) -> Vec<Arc<dyn Caller>> {
        const CALLED: usize = 16;
        let jobs = self.jobs.iter().filter_map(|queued| queued.job.as_ref());
        jobs.filter_map(|job| job.caller()).take(CALLED).collect()
    }
}

impl Times {
    /// Counts an operation whose batch came to the gate then.
    pub(super) fn count_wait(&mut self, queued: &Queued, now: Instant) {
        let waited = now.saturating_duration_since(queued.came);
        self.queued += 1;
        self.queued_for = self.queued_for.saturating_add(waited);
        self.longest_queued = self.longest_queued.max(waited);
    }

    /// Counts a batch that held the gate for so long.
    pub(super) fn count_batch(&mut self, at_gate: Duration) {
        self.add(&Times { batches: 1, at_gate, longest_at_gate: at_gate, ..Times::default() });
    }

    pub(crate) fn add(&mut self, other: &Times) {
        self.queued += other.queued;
        self.queued_for = self.queued_for.saturating_add(other.queued_for);
        self.longest_queued = self.longest_queued.max(other.longest_queued);
        self.batches += other.batches;
        self.at_gate = self.at_gate.saturating_add(other.at_gate);
        self.longest_at_gate = self.longest_at_gate.max(other.longest_at_gate);
    }
}

#[cfg(test)]
mod tests;
