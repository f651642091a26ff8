use super::*;
use crate::{
    error::Error,
    store::{commit::operation::Operation, lmdb::transaction::Txn},
};
use proptest::{collection::vec, prelude::*, test_runner::RngSeed};

struct Stub(usize);

impl Operation for Stub {
    fn run(&mut self, _: &mut Txn<'_>) -> Result<bool, Error> {
        unreachable!()
    }

    fn size(&self) -> usize {
        self.0
    }
}

impl Job for Stub {
    fn finish(self: Box<Self>, _: Result<(), Error>) {}

    fn abandoned(&self) -> bool {
        false
    }

    fn seal(&self) -> bool {
        true
    }

    fn caller(&self) -> Option<Arc<dyn Caller>> {
        None
    }
}

#[derive(Clone, Debug)]
enum Step {
    Push {
        size: usize,
        bounded: bool,
    },
    /// A batch, of which so many do not get their turn.
    Batch {
        rest: usize,
    },
    Remove {
        nth: usize,
    },
    Look {
        millis: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_usize..6 << 20, any::<bool>()).prop_map(|(size, bounded)| Step::Push { size, bounded }),
        1 => (0_usize..8).prop_map(|rest| Step::Batch { rest }),
        3 => any::<usize>().prop_map(|nth| Step::Remove { nth }),
        1 => (0_u64..200).prop_map(|millis| Step::Look { millis }),
    ]
}

/// An operation as a simple list knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waiting {
    number: u64,
    size: usize,
    bounded: bool,
}

const PATIENCE: Duration = Duration::from_millis(100);

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(12), failure_persistence: None, ..Default::default() })]

    #[test]
    fn it_agrees_with_a_simple_list(steps in vec(step(), 1..200)) {
        let mut backlog = Backlog::new(PATIENCE);
        let mut list: Vec<Waiting> = Vec::new();
        let mut now = Instant::now();
        for step in steps {
            match step {
                Step::Push { size, bounded } => {
                    let number = backlog.push(Box::new(Stub(size)), bounded, now);
                    list.push(Waiting { number, size, bounded });
                }
                Step::Batch { rest } => {
                    let mut batch = backlog.take_batch(now);
                    let numbers: Vec<_> = batch.iter().map(|queued| queued.number).collect();
                    let bytes = batch.iter().map(|queued| queued.size).sum::<usize>();
                    prop_assert!(batch.len() == list.len().min(1) || bytes <= BATCH_BYTES);
                    prop_assert_eq!(&numbers, &list.iter().take(batch.len()).map(|one| one.number).collect::<Vec<_>>());
                    let next = list.get(batch.len()).map(|next| next.size);
                    prop_assert!(next.is_none_or(|next| bytes + next > BATCH_BYTES || batch.len() == BATCH));
                    let ran = batch.len().saturating_sub(rest);
                    backlog.end_batch(batch.split_off(ran));
                    list.drain(..ran);
                }
                Step::Remove { nth } => {
                    let at = nth % (list.len() + 1);
                    let number = list.get(at).map_or(u64::MAX, |one| one.number);
                    prop_assert_eq!(backlog.remove(number).is_some(), at < list.len());
                    prop_assert!(backlog.remove(number).is_none());
                    list.retain(|one| one.number != number);
                }
                Step::Look { millis } => {
                    // Nobody passes the gate: of those that may be late, the first ones are.
                    now += Duration::from_millis(millis);
                    let late = backlog.look(now, 1, false).jobs.len();
                    let mut left = late;
                    list.retain(|one| !one.bounded || left == 0 || { left -= 1; false });
                    prop_assert_eq!(left, 0);
                }
            }
            prop_assert_eq!(backlog.len(), list.len());
            prop_assert_eq!(backlog.bytes, list.iter().map(|one| one.size).sum::<usize>());
            let numbers = backlog.jobs.iter().filter(|queued| queued.job.is_some()).map(|queued| queued.number);
            prop_assert_eq!(numbers.collect::<Vec<_>>(), list.iter().map(|one| one.number).collect::<Vec<_>>());
            prop_assert!(backlog.jobs.len() <= 2 * backlog.live + 64 + 200);
        }
    }
}

#[test]
fn those_that_must_happen_are_never_late_and_hide_nobody_behind_them() {
    let mut now = Instant::now();
    let mut backlog = Backlog::new(PATIENCE);
    for nth in 0..10 {
        backlog.push(Box::new(Stub(0)), nth % 2 == 1, now);
    }
    backlog.look(now, 1, false);
    let mut late = 0;
    for _ in 0..4 {
        now += PATIENCE / 4;
        late += backlog.look(now, 1, false).jobs.len();
    }
    assert_eq!((late, backlog.len()), (5, 5));
    backlog.push(Box::new(Stub(0)), true, now);
    for _ in 0..4 {
        now += PATIENCE / 4;
        late += backlog.look(now, 1, false).jobs.len();
    }
    assert_eq!((late, backlog.len()), (6, 5));
}

#[test]
fn who_waits_for_a_slow_commit_of_this_process_is_not_late_unless_the_disk_is_stuck() {
    let mut now = Instant::now();
    let mut backlog = Backlog::new(PATIENCE);
    backlog.push(Box::new(Stub(0)), true, now);
    let batch = backlog.take_batch(now);
    backlog.push(Box::new(Stub(0)), true, now);
    let mut late = |until| {
        let (mut late, end) = (0, now + until);
        while now < end {
            now += PATIENCE / 4;
            late += backlog.look(now, 1, true).jobs.len();
        }
        late
    };
    assert_eq!((late(SLOW_COMMIT - PATIENCE), late(3 * PATIENCE)), (0, 1));
    drop(batch);
}
