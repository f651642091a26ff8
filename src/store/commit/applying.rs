//! Applying operations by a thread that has the gate: many in one transaction, or one alone.

use super::{
    backlog::{Queued, Times},
    operation::{Done, Operation, prepare, run},
};
use crate::{
    error::Error,
    store::{
        lmdb::{env::Env, gate::Held, transaction::Txn},
        os::sync::AtomicBool,
    },
};
use std::{
    sync::atomic::Ordering::SeqCst,
    time::{Duration, Instant},
};

/// How long a transaction goes on taking operations.
const BATCH_SPAN: Duration = Duration::from_millis(5);
/// An operation that stores more is worth a look at the clock; of smaller ones, every eighth is.
const LARGE: usize = 64 << 10;

/// An environment whose gate this thread has.
pub(super) struct Gated<'a> {
    pub(super) env: &'a Env,
    pub(super) held: &'a Held<'a>,
    pub(super) make_room: fn(&mut Txn<'_>) -> Result<bool, Error>,
    /// Set while a batch is being committed.
    pub(super) commits: &'a AtomicBool,
}

/// The outcome of a batch.
pub(super) struct Applied {
    /// That of the operation which was not queued.
    pub(super) result: Result<(), Error>,
    pub(super) done: Vec<Done>,
    /// Those for which there was no time.
    pub(super) rest: Vec<Queued>,
    pub(super) times: Times,
}

impl Gated<'_> {
    /// Runs the queued jobs and then `own` in one transaction. If that fails, each runs alone, so that a bad neighbour
    /// harms only itself.
    pub(super) fn apply(&self, mut own: Option<&mut impl Operation>, batch: Vec<Queued>) -> Applied {
        let began = Instant::now();
        let mut times = Times::default();
        let mut done = Vec::with_capacity(batch.len());
        let mut live = Vec::with_capacity(batch.len());
        for mut queued in batch {
            let Some(job) = queued.job() else { continue };
            let prepared = if job.abandoned() { Err(Error::Busy) } else { prepare(&mut **job) };
            match prepared {
                Ok(()) => live.push(queued),
                Err(error) => done.extend(queued.into_job().map(|job| (job, Err(error)))),
            }
        }
        let mut ran = 0;
        let together = self.env.write(self.held, |txn| {
            let mut changed = false;
            for queued in &mut live {
                if ran > 0 && is_over(began, ran, queued.size()) {
                    break;
                }
                if let Some(job) = queued.job() {
                    changed |= run(&mut **job, txn)?;
                }
                ran += 1;
            }
            if let Some(own) = &mut own {
                changed |= run(*own, txn)?;
            }
            self.commits.store(true, SeqCst);
            match live[..ran].iter_mut().all(|queued| queued.job().is_none_or(|job| job.seal())) {
                true => Ok(((), changed)),
                false => Err(Error::Busy),
            }
        });
        self.commits.store(false, SeqCst);
        let result = if together.is_ok() {
            let rest = live.split_off(ran);
            live.iter().for_each(|queued| times.count_wait(queued, began));
            done.extend(live.into_iter().filter_map(Queued::into_job).map(|job| (job, Ok(()))));
            live = rest;
            Ok(())
        } else if let (Err(Error::Damaged), true) = (&together, self.env.is_to_be_replaced()) {
            // All of them run in the files that replace these.
            together
        } else {
            let (again, mut ran) = (Instant::now(), 0);
            let mut rest = live.into_iter();
            while !rest.as_slice().first().is_none_or(|next| ran > 0 && is_over(again, ran, next.size())) {
                let Some(queued) = rest.next() else { break };
                times.count_wait(&queued, began);
                let Some(mut job) = queued.into_job() else { continue };
                ran += 1;
                let result = match job.abandoned() {
                    true => Err(Error::Busy),
                    false => self.apply_alone(&mut *job, |job| job.seal()),
                };
                done.push((job, result));
            }
            live = rest.collect();
            own.map_or(Ok(()), |own| self.apply_alone(own, |_| true))
        };
        times.count_batch(began.elapsed());
        Applied { result, done, rest: live, times }
    }

    pub(super) fn apply_alone<O: Operation + ?Sized>(
        &self,
        alone: &mut O,
        seal: impl Fn(&O) -> bool,
    ) -> Result<(), Error> {
        let mut attempt = || {
            self.env.write(self.held, |txn| {
                let changed = run(alone, txn)?;
                if seal(alone) { Ok(((), changed)) } else { Err(Error::Busy) }
            })
        };
        match attempt() {
            Err(Error::Full) => {
                match self.env.write(self.held, |txn| (self.make_room)(txn).map(|changed| ((), changed))) {
                    // Even without more room, the operation may get by with less.
                    Ok(()) | Err(Error::Full) => {}
                    failed => return failed,
                }
                attempt()
            }
            result => result,
        }
    }
}

/// Whether a transaction that began then and has run so many operations takes no more, of which the next stores `size`
/// bytes.
fn is_over(began: Instant, ran: usize, size: usize) -> bool {
    (ran.is_multiple_of(8) || size > LARGE) && began.elapsed() > BATCH_SPAN
}
