//! The models whose interleavings are tried.

use crate::{
    env::{Env, Txn, Worker},
    error::Error,
    operation::Operation,
    pending::{Pending, Slot},
    store::record::key::Key,
    wake_ups::{Listener, Next, Registration, WakeUps, Watch},
    write_queue::{Served, WriteQueue},
};
use loom::{
    future::block_on,
    model::Builder,
    sync::{
        Mutex, Notify,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};
use std::{
    future::poll_fn,
    sync::Arc,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

pub fn all() {
    try_all("threads of one process share the gate", 4, in_one_process);
    try_all("another process is in the way", 6, behind_another_process);
    try_all("the worker thread takes part", 5, with_the_worker);
    try_all("the worker thread waits for another process", 5, with_the_worker_behind_another_process);
    try_all("a queued write is given up by its caller", 5, dropped_in_the_queue);
    try_all("a queued result reaches its future", 9, filled);
    try_all("a queued result is undone with its future", 9, dropped);
    try_all("a call reaches who waits", 9, woken);
    try_all("a call meets one who goes", 6, gone);
    try_all("two are called, and one of them goes", 5, two_are_called);
    try_all("the listening thread looks after who comes while it falls asleep", 5, looked_after);
}

/// `preemptions`: how often a thread is interrupted at most.
fn try_all(what: &str, preemptions: usize, model: fn()) {
    let began = Instant::now();
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    let runs = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = runs.clone();
    builder.check(move || {
        counted.fetch_add(1, SeqCst);
        model();
    });
    println!("{what}: {} interleavings in {:.1?}", runs.load(SeqCst), began.elapsed());
}

struct Add(Arc<AtomicUsize>);

impl Operation for Add {
    fn run(&mut self, _: &mut Txn<'_>) -> Result<bool, Error> {
        self.0.fetch_add(1, SeqCst);
        Ok(true)
    }
}

const LONG: Duration = Duration::from_secs(3600);

struct House {
    queue: Arc<WriteQueue>,
    worker: Arc<Worker>,
    sum: Arc<AtomicUsize>,
}

impl House {
    fn new() -> Arc<House> {
        let worker = Arc::new(Worker::new());
        let queue = WriteQueue::new(Env::new(), LONG, (worker.clone(), Arc::new(Worker::new())), |_| Ok(false));
        Arc::new(House { queue, worker, sum: Arc::new(AtomicUsize::new(0)) })
    }

    fn add(&self) -> Pending<()> {
        self.queue.submit(Add(self.sum.clone()), |added| added.map(drop).unwrap())
    }

    /// Another process is at the gate, if no thread is.
    fn another_writes(&self) {
        let held = self.queue.env.gate.try_lock();
        self.sum.load(SeqCst);
        drop(held);
    }

    /// The work of the worker thread when it is woken: it does not rest while something is queued, unless another thread is
    /// at the gate, which then notifies it.
    fn work(&self) {
        while self.queue.serve(LONG) == Served::More {}
    }

    /// Checks that all requested writes are done, or that the worker was notified.
    fn check(&self, pending: Vec<Pending<()>>) {
        if self.worker.was_notified() {
            self.work();
        }
        assert!(!self.queue.has_queued(), "left in the queue, and nobody knows");
        assert_eq!(self.sum.load(SeqCst), pending.len());
        pending.into_iter().for_each(block_on);
    }
}

fn in_one_process() {
    let house = House::new();
    let others: Vec<_> = (0..2)
        .map(|_| {
            let house = house.clone();
            thread::spawn(move || house.add())
        })
        .collect();
    let mut pending = vec![house.add()];
    pending.extend(others.into_iter().map(|other| other.join().unwrap()));
    house.check(pending);
}

fn behind_another_process() {
    let house = House::new();
    let other = {
        let house = house.clone();
        thread::spawn(move || house.another_writes())
    };
    let second = {
        let house = house.clone();
        thread::spawn(move || house.add())
    };
    let first = house.add();
    other.join().unwrap();
    let second = second.join().unwrap();
    house.check(vec![first, second]);
}

fn with_the_worker() {
    let house = House::new();
    let worker = {
        let house = house.clone();
        // Another thread notified it before.
        thread::spawn(move || house.work())
    };
    let second = {
        let house = house.clone();
        thread::spawn(move || house.add())
    };
    let first = house.add();
    worker.join().unwrap();
    let second = second.join().unwrap();
    house.check(vec![first, second]);
}

fn with_the_worker_behind_another_process() {
    let house = House::new();
    let other = {
        let house = house.clone();
        thread::spawn(move || house.another_writes())
    };
    let worker = {
        let house = house.clone();
        thread::spawn(move || house.work())
    };
    let pending = vec![house.add(), house.add()];
    other.join().unwrap();
    worker.join().unwrap();
    house.check(pending);
}

fn dropped_in_the_queue() {
    let house = House::new();
    let worker = {
        let house = house.clone();
        thread::spawn(move || house.work())
    };
    let other = {
        let house = house.clone();
        thread::spawn(move || house.add())
    };
    drop(house.add());
    worker.join().unwrap();
    let kept = other.join().unwrap();
    if house.worker.was_notified() {
        house.work();
    }
    assert!(!house.queue.has_queued(), "left in the queue, and nobody knows");
    assert!((1..=2).contains(&house.sum.load(SeqCst)));
    block_on(kept);
}

/// A result with an undo.
struct Undone(Arc<AtomicUsize>);

impl Drop for Undone {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn filled() {
    let (slot, undone) = (Slot::new(), Arc::new(AtomicUsize::new(0)));
    let filling = {
        let (slot, undone) = (slot.clone(), undone.clone());
        thread::spawn(move || slot.fill(Undone(undone)))
    };
    let value = block_on(Pending::of(&slot));
    assert_eq!(undone.load(SeqCst), 0);
    drop(value);
    filling.join().unwrap();
    assert_eq!(undone.load(SeqCst), 1);
}

fn dropped() {
    let (slot, undone) = (Slot::new(), Arc::new(AtomicUsize::new(0)));
    let filling = {
        let (slot, undone) = (slot.clone(), undone.clone());
        thread::spawn(move || {
            if !slot.abandoned() {
                slot.fill(Undone(undone));
                return 1;
            }
            0
        })
    };
    let mut pending = Pending::of(&slot);
    block_on(poll_fn(|cx| {
        let _ = std::pin::Pin::new(&mut pending).poll(cx).is_ready();
        Poll::Ready(())
    }));
    drop(pending);
    let filled = filling.join().unwrap();
    assert_eq!(undone.load(SeqCst), filled, "undone once, if it was done");
}

/// Sleeps until it is woken.
struct Bed(Arc<Notify>);

impl Listener for Bed {
    fn wake(&self, _: &Arc<WakeUps>) -> bool {
        self.0.notify();
        true
    }

    fn close(&self) {
        self.0.notify();
    }
}

fn wake_ups() -> (Arc<WakeUps>, Arc<Notify>) {
    let bed = Arc::new(Notify::new());
    (WakeUps::new(Box::new(Bed(bed.clone()))), bed)
}

/// Wakes the task that waits for a look.
struct Seen(Mutex<(bool, Option<Waker>)>);

impl Seen {
    fn new() -> Arc<Seen> {
        Arc::new(Seen(Mutex::new((false, None))))
    }
}

impl Watch for Seen {
    fn look(self: Arc<Self>, _: Key) -> Duration {
        let mut seen = self.0.lock().unwrap();
        seen.0 = true;
        let waker = seen.1.take();
        drop(seen);
        if let Some(waker) = waker {
            waker.wake();
        }
        LONG
    }
}

fn key(i: u8) -> Key {
    Key { hash: [i; 16], echo: 0 }
}

fn be_woken(registration: &Registration) {
    block_on(poll_fn(|cx| match registration.was_woken(cx.waker()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    }));
}

fn woken() {
    let (wake_ups, _) = wake_ups();
    let caller = {
        let wake_ups = wake_ups.clone();
        thread::spawn(move || wake_ups.wake(7))
    };
    let registration = wake_ups.register(key(1), 7, Seen::new());
    be_woken(&registration);
    caller.join().unwrap();
    assert!(!registration.was_woken(Waker::noop()), "once");
}

fn gone() {
    let (wake_ups, _) = wake_ups();
    let callers: Vec<_> = (0..2)
        .map(|_| {
            let wake_ups = wake_ups.clone();
            thread::spawn(move || wake_ups.wake(7))
        })
        .collect();
    let registration = wake_ups.register(key(1), 7, Seen::new());
    let before = registration.was_woken(Waker::noop());
    drop(registration);
    let found = callers.into_iter().map(|caller| caller.join().unwrap()).filter(|found| *found).count();
    assert_eq!((wake_ups.waiting_counts().waiting, wake_ups.waiting_counts().keys), (0, 0));
    // A wake-up that came too late to be noticed goes to the next waiter with the number.
    let again = wake_ups.register(key(1), 7, Seen::new());
    if found == 0 && !before {
        assert!(again.was_woken(Waker::noop()));
    }
}

fn two_are_called() {
    let (wake_ups, _) = wake_ups();
    let first = wake_ups.register(key(1), 7, Seen::new());
    let second = wake_ups.register(key(1), 8, Seen::new());
    let caller = {
        let wake_ups = wake_ups.clone();
        thread::spawn(move || {
            wake_ups.wake(7);
            wake_ups.wake(8);
        })
    };
    let goes = thread::spawn(move || drop(first));
    be_woken(&second);
    caller.join().unwrap();
    goes.join().unwrap();
    assert_eq!((wake_ups.waiting_counts().waiting, wake_ups.waiting_counts().keys), (1, 1));
}

fn looked_after() {
    let (wake_ups, bed) = wake_ups();
    let listener = {
        let wake_ups = wake_ups.clone();
        thread::spawn(move || {
            loop {
                match wake_ups.tick(Instant::now(), true) {
                    Next::TickAt(_) => thread::yield_now(),
                    Next::Sleep => bed.wait(),
                    Next::End => return,
                }
            }
        })
    };
    for name in 0..2 {
        let seen = Seen::new();
        let registration = wake_ups.register(key(name), 7, seen.clone());
        block_on(poll_fn(|cx| {
            let mut seen = seen.0.lock().unwrap();
            seen.1 = Some(cx.waker().clone());
            if seen.0 { Poll::Ready(()) } else { Poll::Pending }
        }));
        drop(registration);
    }
    wake_ups.close();
    listener.join().unwrap();
}
