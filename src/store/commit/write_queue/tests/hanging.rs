//! What waits comes to an end, whatever keeps others from their work.

use super::*;
use crate::store::{Holding, Renew};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, Weak},
};

const PATIENCE: Duration = Duration::from_millis(50);
const MB: usize = 1_000_000;

/// A transition that hangs in its turn: says when it is there, and goes on when the other channel is closed.
fn hanging(cache: &Cache, name: &str) -> (Pending<Result<u64, Error>>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let ((enter, entered), (go_on, gone_on)) = (mpsc::channel(), mpsc::channel::<()>());
    let transition = move |found: Found<'_>, now| {
        enter.send(()).unwrap();
        let _ = gone_on.recv();
        add(found, now)
    };
    let root = cache.root();
    let hung = root.update(LOCKS, root.key(Kind::Lock, name.as_bytes()), transition, |result| result);
    (hung, entered, go_on)
}

#[test]
fn all_behind_and_beside_a_callback_that_hangs_are_told_and_none_of_them_happens() {
    let cache = builder().patience(PATIENCE).open().unwrap();
    let holder = Holder::of(&state(&cache).queue);
    let beside = count(&cache, "beside");
    let (hung, entered, go_on) = hanging(&cache, "hung");
    let also_beside = count(&cache, "beside");
    holder.release();
    entered.recv_timeout(LONG).unwrap();
    let behind = count(&cache, "behind");
    for late in [beside, hung, also_beside, behind] {
        assert!(matches!(late.wait(), Err(Error::Busy)));
    }
    assert!(matches!(poll_once(count(&cache, "behind")), Poll::Ready(Err(Error::Busy))), "at once from now on");
    drop(go_on);
    let deadline = Instant::now() + LONG;
    while matches!(poll_once(count(&cache, "gone on")), Poll::Ready(Err(Error::Busy))) {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    assert_eq!(["beside", "hung", "behind"].map(|name| read(&cache, name)), [0; 3]);
}

#[test]
fn what_waits_is_served_by_its_own_thread_while_the_worker_is_kept_from_it() {
    struct Hanging(Mutex<mpsc::Receiver<()>>, mpsc::Sender<()>);
    impl Renew for Hanging {
        fn renew(self: Arc<Self>) {
            self.1.send(()).unwrap();
            let _ = self.0.lock().unwrap().recv();
        }
    }
    let cache = builder().patience(Duration::from_millis(200)).open().unwrap();
    let queue = &state(&cache).queue;
    let ((enter, entered), (go_on, gone_on)) = (mpsc::channel(), mpsc::channel::<()>());
    let hanging = Arc::new(Hanging(Mutex::new(gone_on), enter));
    let renew: Weak<dyn Renew> = Arc::downgrade(&hanging) as Weak<dyn Renew>;
    assert!(cache.handle().shared.hold(Holding { number: 1, due: Instant::now(), every: LONG, renew }));
    entered.recv_timeout(LONG).unwrap();
    let holder = Holder::of(queue);
    let counts: Vec<_> = (0..1000).map(|_| count(&cache, "n")).collect();
    holder.release();
    for (i, count) in counts.into_iter().enumerate() {
        assert_eq!(count.wait().unwrap(), i as u64 + 1);
    }
    drop(go_on);
}

#[test]
fn a_panic_of_what_settles_a_queued_write_goes_on_in_its_caller() {
    let cache = cache();
    let holder = Holder::of(&state(&cache).queue);
    let root = cache.root();
    let settling = root.update(LOCKS, root.key(Kind::Lock, b"a"), add, |_| -> u64 { panic!("settle") });
    holder.release();
    let panic = catch_unwind(AssertUnwindSafe(|| settling.wait())).unwrap_err();
    assert_eq!(panic.downcast_ref(), Some(&"settle"));
    assert_eq!(read(&cache, "a"), 1);
}

#[test]
fn a_try_that_fails_leaves_nothing_unseen_that_was_queued_behind_it() {
    let cache = cache();
    let queue = &state(&cache).queue;
    let turn = queue.attempt().unwrap_or_else(|error| panic!("{error}"));
    let mut behind = count(&cache, "a");
    assert!(behind.is_queued());
    queue.env.gate.shut();
    // A thread that is about to try the gate while the other one queues its write.
    drop(turn);
    assert!(matches!(poll_once(count(&cache, "b")), Poll::Ready(Err(Error::Damaged))));
    let polled = std::pin::Pin::new(&mut behind).poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Ready(Err(Error::Damaged))));
}

fn inserts(cache: &Cache, count: usize) -> Vec<crate::cache::Write<bool>> {
    let value = "x".repeat(MB);
    (0..count).map(|name| cache.insert(&name.to_string(), &value).into_future()).collect()
}

fn large() -> Cache {
    builder().size(256 << 20).open().unwrap()
}

#[test]
fn a_batch_has_some_bytes_at_most_and_one_operation_at_least() {
    let cache = large();
    let queue = &cache.handle().shared.entries[0].queue;
    let holder = Holder::of(queue);
    let inserts = inserts(&cache, 10);
    let huge = cache.insert("huge", &"x".repeat(10 * MB)).into_future();
    let last = cache.insert("last", &1).into_future();
    holder.release();
    for stored in inserts.into_iter().chain([huge, last]) {
        assert!(stored.wait().unwrap());
    }
    let times = queue.times();
    // At most 4, 4, 2, the huge one and the last one; fewer where they take long.
    assert!(times.queued == 12 && (5..=12).contains(&times.batches), "{times:?}");
}

#[test]
fn writes_that_are_dropped_while_they_are_queued_leave_no_bytes_behind() {
    let cache = large();
    let queue = &cache.handle().shared.entries[0].queue;
    let holder = Holder::of(queue);
    let mut inserts = inserts(&cache, 40);
    assert!(!queue.has_room_for(30 * MB));
    let kept = inserts.remove(20);
    drop(inserts);
    assert_eq!(queue.backlog().len(), 1);
    assert!(queue.has_room_for(60 * MB));
    holder.release();
    assert!(kept.wait().unwrap());
    assert_eq!(cache.stats().entries, 1);
}

#[tokio::test]
async fn an_answer_for_which_the_queue_has_no_room_goes_unstored_and_that_is_counted() {
    let cache = large();
    let holder = Holder::of(&cache.handle().shared.entries[0].queue);
    let inserts = inserts(&cache, 70);
    let filled: Result<String, std::convert::Infallible> =
        cache.get_or_fill("answer", LONG, || async { Ok("x".repeat(MB)) }).await;
    assert_eq!(filled.unwrap().len(), MB);
    let stats = cache.stats();
    assert_eq!((stats.stored, stats.not_stored, stats.failures), (0, 1, 0));
    holder.release();
    for stored in inserts {
        assert!(stored.await.unwrap());
    }
}
