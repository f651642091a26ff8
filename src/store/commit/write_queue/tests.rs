use crate::{
    cache::{
        Cache, Scope,
        testing::{Holder, LONG, builder, cache, state},
    },
    error::Error,
    store::{Change, Edit, Found, Key, Kind, LOCKS, PAYLOAD_MAX, Pending, WaitingLine, lmdb::gate::Gate},
};
use std::{
    future::{Future, IntoFuture},
    pin::pin,
    sync::{atomic::Ordering::SeqCst, mpsc},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

fn sum(found: Found<'_>) -> u64 {
    match found {
        Found::Row(row) => u64::from_le_bytes(row.payload.try_into().unwrap()),
        _ => 0,
    }
}

fn put(sum: u64) -> Change {
    Change::Put { expires: u64::MAX, tag: 0, payload: sum.to_le_bytes().to_vec() }
}

fn add(found: Found<'_>, _: u64) -> (u64, Change) {
    let sum = sum(found) + 1;
    (sum, put(sum))
}

fn post_one_more(scope: &Scope, key: Key) {
    scope.post_line(LOCKS, key, |found, _, now| ((), add(found, now).1, Vec::new()));
}

fn count(cache: &Cache, name: &str) -> Pending<Result<u64, Error>> {
    let root = cache.root();
    root.update(LOCKS, root.key(Kind::Lock, name.as_bytes()), add, |result| result)
}

fn read(cache: &Cache, name: &str) -> u64 {
    let root = cache.root();
    let key = root.key(Kind::Lock, name.as_bytes());
    root.update(LOCKS, key, |found, _| (sum(found), Change::Keep), |result| result).wait().unwrap()
}

/// A result with an undo.
struct Undone(mpsc::Sender<u64>, u64);

impl Drop for Undone {
    fn drop(&mut self) {
        self.0.send(self.1).unwrap();
    }
}

#[test]
fn an_operation_dropped_while_it_is_queued_is_not_applied() {
    let cache = cache();
    let holder = Holder::of(&state(&cache).queue);
    let dropped = count(&cache, "a");
    assert!(matches!(dropped, Pending::Queued(..)));
    let kept = count(&cache, "b");
    drop(dropped);
    holder.release();
    assert_eq!(kept.wait().unwrap(), 1);
    assert_eq!(read(&cache, "a"), 0);
}

#[test]
fn an_operation_dropped_while_it_is_applied_is_undone() {
    let cache = cache();
    let holder = Holder::of(&state(&cache).queue);
    let (undo, undone) = mpsc::channel();
    let (enter, entered) = mpsc::channel();
    let (go_on, gone_on) = mpsc::channel::<()>();
    let root = cache.root();
    let transition = move |found: Found<'_>, now| {
        enter.send(()).unwrap();
        gone_on.recv().unwrap();
        add(found, now)
    };
    let key = root.key(Kind::Lock, b"a");
    let taken = root.update(LOCKS, key, transition, move |result| Undone(undo, result.unwrap()));
    holder.release();
    entered.recv_timeout(LONG).unwrap();
    drop(taken);
    go_on.send(()).unwrap();
    assert_eq!(undone.recv_timeout(LONG).unwrap(), 1);
    assert_eq!(read(&cache, "a"), 1, "the undo is the result's own affair");
}

#[test]
fn an_operation_dropped_when_it_is_done_is_undone() {
    let cache = cache();
    let root = cache.root();
    let key = root.key(Kind::Lock, b"a");
    let (undo, undone) = mpsc::channel();
    let at_once = root.update(LOCKS, key, add, {
        let undo = undo.clone();
        move |result| Undone(undo, result.unwrap())
    });
    assert!(undone.try_recv().is_err());
    drop(at_once);
    assert_eq!(undone.try_recv().unwrap(), 1);

    let holder = Holder::of(&state(&cache).queue);
    let queued = root.update(LOCKS, key, add, move |result| Undone(undo, result.unwrap()));
    let behind = count(&cache, "b");
    holder.release();
    assert_eq!(behind.wait().unwrap(), 1, "and so what was queued before it is done");
    assert!(undone.try_recv().is_err());
    drop(queued);
    assert_eq!(undone.try_recv().unwrap(), 2);
}

#[test]
fn an_undo_can_post_from_within_a_batch() {
    struct Repost(Cache);
    impl Drop for Repost {
        fn drop(&mut self) {
            let root = self.0.root();
            post_one_more(root, root.key(Kind::Lock, b"undone"));
        }
    }
    let cache = cache();
    let (enter, entered) = mpsc::channel();
    let (go_on, gone_on) = mpsc::channel::<()>();
    let holder = Holder::of(&state(&cache).queue);
    let (root, other) = (cache.root(), cache.clone());
    let blocking = move |found: Found<'_>, now| {
        enter.send(()).unwrap();
        gone_on.recv().unwrap();
        add(found, now)
    };
    let taken = root.update(LOCKS, root.key(Kind::Lock, b"a"), blocking, move |_| Repost(other));
    holder.release();
    entered.recv_timeout(LONG).unwrap();
    drop(taken);
    go_on.send(()).unwrap();
    let deadline = Instant::now() + LONG;
    while read(&cache, "undone") == 0 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

#[test]
fn what_is_posted_happens_however_late() {
    let cache = builder().patience(Duration::from_millis(1)).open().unwrap();
    let holder = Holder::of(&state(&cache).queue);
    let root = cache.root();
    post_one_more(root, root.key(Kind::Lock, b"a"));
    assert!(matches!(count(&cache, "b").wait(), Err(Error::Busy)));
    holder.release();
    let deadline = Instant::now() + LONG;
    while state(&cache).queue.has_queued() {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
    // The read has no more patience than the cache, and the worker thread may be at the gate.
    let key = root.key(Kind::Lock, b"a");
    let read = || root.update(LOCKS, key, |found, _| (sum(found), Change::Keep), |result| result).wait();
    let sum = loop {
        match read() {
            Err(Error::Busy) => assert!(Instant::now() < deadline),
            sum => break sum.unwrap(),
        }
    };
    assert_eq!(sum, 1);
}

#[test]
fn one_that_fails_harms_no_neighbour() {
    let cache = cache();
    for queued in [true, false] {
        let holder = queued.then(|| Holder::of(&state(&cache).queue));
        let (root, key) = (cache.root(), |name: &str| cache.root().key(Kind::Lock, name.as_bytes()));
        let before = read_unless(queued, &cache);
        let first = count(&cache, "neighbour");
        let transition = root.update(LOCKS, key("x"), |_, _| -> ((), _) { panic!("transition") }, |result| result);
        let clock = state(&cache).update(LOCKS, key("x"), || panic!("clock"), add, |result| result);
        let large = root.update(
            LOCKS,
            key("x"),
            |_, _| ((), Change::Put { expires: u64::MAX, tag: 0, payload: vec![0; PAYLOAD_MAX + 1] }),
            |result| result,
        );
        let settle = root.update(LOCKS, key("settled"), add, |result| result);
        let last = count(&cache, "neighbour");
        drop(holder);
        assert_eq!(first.wait().unwrap(), before + 1);
        assert!(matches!(transition.wait(), Err(Error::Panicked)));
        assert!(matches!(clock.wait(), Err(Error::Panicked)));
        assert!(matches!(large.wait(), Err(Error::TooLarge { size, limit: PAYLOAD_MAX }) if size == PAYLOAD_MAX + 1));
        settle.wait().unwrap();
        assert_eq!(last.wait().unwrap(), before + 2);
        assert_eq!(read(&cache, "x"), 0);
    }
}

fn read_unless(queued: bool, cache: &Cache) -> u64 {
    if queued { 0 } else { read(cache, "neighbour") }
}

#[test]
fn a_post_whose_clock_panics_does_not() {
    let cache = cache();
    let put = |_: Found<'_>, _: &WaitingLine<'_>, _| ((), put(1), Vec::new());
    state(&cache).post_then(LOCKS, cache.root().key(Kind::Lock, b"a"), || panic!("clock"), put, drop);
    assert_eq!(read(&cache, "a"), 0);
}

#[test]
fn an_edit_that_panics_harms_no_neighbour_and_not_the_thread() {
    let cache = cache();
    let root = cache.root();
    let shard = &cache.handle().shared.entries[0];
    for _ in 0..3 {
        let holder = Holder::of(&shard.queue);
        let before = root.incr("n", 1);
        let edit = root.edit(root.key(Kind::Value, b"x"), b"x", |_, _| -> (Result<(), Error>, Edit) { panic!("edit") });
        let clock = shard.edit(root.key(Kind::Value, b"x"), b"x", 0, || panic!("clock"), |_, _| (Ok(()), Edit::Remove));
        let after = root.incr("n", 1);
        holder.release();
        let before = before.wait().unwrap();
        assert!(matches!(edit.wait(), Err(Error::Panicked)));
        assert!(matches!(clock.wait(), Err(Error::Panicked)));
        assert_eq!(after.wait().unwrap(), before + 1);
    }
}

#[test]
fn patience_ends_in_busy_then_at_once_and_all_recovers() {
    let cache = builder().patience(Duration::from_millis(200)).open().unwrap();
    cache.insert("warm", &1).wait().unwrap();
    let shard = &cache.handle().shared.entries[0];
    for _ in 0..2 {
        let holders = [Holder::of(&state(&cache).queue), Holder::of(&shard.queue)];
        let began = Instant::now();
        let (count_1, insert_1) = (count(&cache, "a"), cache.insert("a", &1).into_future());
        assert!(matches!(count_1.wait(), Err(Error::Busy)));
        assert!(matches!(insert_1.wait(), Err(Error::Busy)));
        assert!(began.elapsed() >= Duration::from_millis(200));
        // The writes fail at once: they are ready at the first poll.
        assert!(matches!(poll_once(count(&cache, "a")), Poll::Ready(Err(Error::Busy))));
        assert!(matches!(poll_once(cache.insert("a", &1).into_future()), Poll::Ready(Err(Error::Busy))));
        assert_eq!(cache.get::<i32>("warm").unwrap(), Some(1), "reading never waits");
        holders.into_iter().for_each(Holder::release);
        // The first write finds out.
        count(&cache, "b").wait().unwrap();
        cache.insert("b", &1).wait().unwrap();
    }
    assert_eq!(cache.get::<i32>("a").unwrap(), None);
}

fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn tidying_does_not_pile_up_behind_a_gate_that_stays_shut() {
    let cache = cache();
    let shard = &cache.handle().shared.entries[0];
    let holder = Holder::of(&shard.queue);
    for _ in 0..100 {
        shard.tidy();
    }
    assert_eq!(shard.queue.backlog().len(), 1);
    holder.release();
    cache.insert("a", &1).wait().unwrap();
    assert!(!shard.queue.has_queued());
}

#[test]
fn a_thousand_operations_behind_a_gate_are_all_applied_in_order() {
    let cache = cache();
    let holder = Holder::of(&state(&cache).queue);
    let queued: Vec<_> = (0..1000).map(|_| count(&cache, "a")).collect();
    holder.release();
    for (i, pending) in queued.into_iter().enumerate() {
        assert_eq!(pending.wait().unwrap(), i as u64 + 1);
    }
}

#[test]
fn nothing_is_lost_or_forgotten_while_another_comes_and_goes() {
    let cache = cache();
    let done = std::sync::atomic::AtomicBool::new(false);
    let gates = [&state(&cache).queue, &cache.handle().shared.entries[0].queue];
    let gates = gates.map(|queue| Gate::open(&queue.env.path().with_file_name("gate")).unwrap());
    std::thread::scope(|threads| {
        threads.spawn(|| {
            for turn in 0_u32.. {
                if done.load(SeqCst) {
                    break;
                }
                let held = gates[turn as usize % 2].lock_for(LONG).unwrap().unwrap();
                (0..turn % 512).for_each(|_| std::hint::spin_loop());
                drop(held);
                std::thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let cache = &cache;
                threads.spawn(move || {
                    for i in 0..500 {
                        let dropped = count(cache, "dropped");
                        count(cache, "n").wait().unwrap();
                        drop(dropped);
                        if (i + worker) % 8 == 0 {
                            cache.incr("n", 1).wait().unwrap();
                        }
                    }
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        done.store(true, SeqCst);
    });
    assert_eq!(read(&cache, "n"), 4000);
    assert_eq!(cache.get::<i64>("n").unwrap(), Some(500));
    assert!(read(&cache, "dropped") <= 4000);
}

mod hanging;
