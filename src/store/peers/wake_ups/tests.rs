use super::*;
use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    task::Wake,
};

/// Counts who wakes the thread.
#[derive(Clone, Default)]
struct Counting {
    woken: Arc<AtomicUsize>,
    deaf: Arc<AtomicBool>,
    closed: Arc<AtomicBool>,
}

impl Listener for Counting {
    fn wake(&self, _: &Arc<WakeUps>) -> bool {
        self.woken.fetch_add(1, SeqCst);
        !self.deaf.load(SeqCst)
    }

    fn close(&self) {
        self.closed.store(true, SeqCst);
    }
}

/// Writes down what it looks at.
#[derive(Default)]
struct Looks {
    seen: Mutex<Vec<[u8; 16]>>,
    again: Mutex<Option<Duration>>,
}

impl Looks {
    fn new() -> Arc<Looks> {
        Arc::default()
    }

    fn seen(&self) -> Vec<[u8; 16]> {
        std::mem::take(&mut *lock(&self.seen))
    }
}

impl Watch for Looks {
    fn look(self: Arc<Self>, key: Key) -> Duration {
        lock(&self.seen).push(key.hash);
        lock(&self.again).expect("a watch that panics")
    }
}

fn looks(again: Duration) -> Arc<Looks> {
    let looks = Looks::new();
    *lock(&looks.again) = Some(again);
    looks
}

fn wake_ups() -> (Arc<WakeUps>, Counting) {
    let listener = Counting::default();
    (WakeUps::new(Box::new(listener.clone())), listener)
}

fn key(i: u64) -> Key {
    Key { hash: [(i + 1).to_be_bytes(); 2].concat().try_into().unwrap(), echo: i }
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

fn waker() -> (Waker, Arc<Woken>) {
    let woken = Arc::new(Woken::default());
    (woken.clone().into(), woken)
}

#[test]
fn a_call_is_noticed_once_and_wakes_the_last_who_asked() {
    let (wake_ups, _) = wake_ups();
    let wake_up = wake_ups.register(key(1), 7, looks(TICK));
    let ((first, first_woken), (second, second_woken)) = (waker(), waker());
    assert!(!wake_up.was_woken(&first));
    assert!(!wake_up.was_woken(&second));
    assert!(wake_ups.wake(7) && wake_ups.wake(7));
    assert_eq!((first_woken.0.load(SeqCst), second_woken.0.load(SeqCst)), (0, 1));
    assert!(wake_up.was_woken(&first), "however often it was called");
    assert!(!wake_up.was_woken(&first));
    assert!(wake_ups.wake(7));
    assert_eq!(first_woken.0.load(SeqCst), 1);
    drop(wake_up);
    assert!(!wake_ups.wake(7));
    assert_eq!(Arc::strong_count(&first_woken), 2, "nothing of it is left");
}

#[test]
fn who_was_called_before_it_was_registered_knows() {
    let (wake_ups, _) = wake_ups();
    let waker = Waker::noop();
    assert!(!wake_ups.wake(7) && !wake_ups.wake(8) && !wake_ups.wake(0));
    let wake_up = wake_ups.register(key(1), 7, looks(TICK));
    assert!(wake_up.was_woken(waker) && !wake_up.was_woken(waker));
    drop(wake_up);
    assert!(!wake_ups.register(key(1), 7, looks(TICK)).was_woken(waker), "once");
    // What comes from outside takes no room.
    (100..100_000).for_each(|number| assert!(!wake_ups.wake(number)));
    assert!(!wake_ups.register(key(1), 8, looks(TICK)).was_woken(waker));
    assert!(wake_ups.register(key(1), 99_999, looks(TICK)).was_woken(waker));
    assert_eq!(wake_ups.waiting_counts(), WaitingCounts::default());
}

#[test]
fn whoever_has_the_same_number_leaves_the_other_alone() {
    let (wake_ups, _) = wake_ups();
    let first = wake_ups.register(key(1), 7, looks(TICK));
    let second = wake_ups.register(key(2), 7, looks(TICK));
    drop(first);
    assert!(wake_ups.wake(7) && second.was_woken(Waker::noop()));
    assert_eq!((wake_ups.waiting_counts().waiting, wake_ups.waiting_counts().keys), (1, 1));
}

#[test]
fn each_key_is_looked_at_once_a_tick_or_as_soon_as_it_asks() {
    let (wake_ups, _) = wake_ups();
    let (patient, hasty) = (looks(Duration::from_secs(9)), looks(Duration::from_millis(200)));
    let waiting: Vec<_> = (0..32).map(|i| wake_ups.register(key(i % 2), i + 1, patient.clone())).collect();
    let now = Instant::now();
    assert_eq!(wake_ups.tick(now, false), Next::TickAt(now + TICK));
    assert_eq!(patient.seen(), [key(0).hash, key(1).hash]);
    // One that comes between two ticks is looked at with the others.
    let late = wake_ups.register(key(2), 100, hasty.clone());
    assert_eq!(wake_ups.tick(now + TICK / 2, false), Next::TickAt(now + TICK));
    assert_eq!((patient.seen(), hasty.seen()), (vec![], vec![]));
    assert_eq!(wake_ups.tick(now + TICK, false), Next::TickAt(now + 2 * TICK), "a tick later whatever it asks");
    assert_eq!((patient.seen().len(), hasty.seen()), (2, vec![key(2).hash]));
    wake_ups.tick(now + TICK, true);
    assert_eq!((patient.seen().len(), hasty.seen().len()), (2, 1), "in a hurry");
    // Who asks for more gets more, but not without end.
    let mut now = now + TICK;
    for (asked, given) in [(Duration::from_millis(10), Duration::from_millis(10)), (Duration::ZERO, SOON)] {
        *lock(&hasty.again) = Some(asked);
        now += TICK;
        assert_eq!(wake_ups.tick(now, false), Next::TickAt(now + given));
        assert_eq!((patient.seen().len(), hasty.seen().len()), (2, 1));
        wake_ups.tick(now + given, false);
        assert_eq!((patient.seen().len(), hasty.seen().len()), (0, 1), "{asked:?}");
    }
    drop(late);
    drop(waiting);
    wake_ups.tick(now + 9 * TICK, true);
    assert_eq!((patient.seen(), hasty.seen()), (vec![], vec![]));
    assert_eq!((Arc::strong_count(&patient), Arc::strong_count(&hasty)), (1, 1));
}

#[test]
fn of_very_many_keys_each_has_its_turn() {
    let (wake_ups, _) = wake_ups();
    let watch = looks(TICK);
    const KEYS: u64 = 2 * LOOKS as u64 + 500;
    let waiting: Vec<_> = (0..KEYS).map(|i| wake_ups.register(key(i), i + 1, watch.clone())).collect();
    let now = Instant::now();
    let turns = (0..10).map(|turn| {
        wake_ups.tick(now + TICK * turn, false);
        watch.seen()
    });
    let turns: Vec<_> = turns.collect();
    assert!(turns.iter().all(|seen| seen.len() == LOOKS), "{:?}", turns.iter().map(Vec::len).collect::<Vec<_>>());
    for i in 0..KEYS {
        let looks = turns.iter().flatten().filter(|seen| **seen == key(i).hash).count();
        assert!((4..=5).contains(&looks), "{looks} at {i}");
    }
    drop(waiting);
}

#[test]
fn a_waker_and_a_watch_that_panic_harm_nobody_else() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }
    let (wake_ups, _) = wake_ups();
    let (bad, good) = (Looks::new(), looks(TICK));
    let first = wake_ups.register(key(1), 1, bad.clone());
    let second = wake_ups.register(key(2), 2, good.clone());
    assert!(!first.was_woken(&Arc::new(Panics).into()) && !second.was_woken(Waker::noop()));
    assert!(wake_ups.wake(1) && wake_ups.wake(2));
    assert!(first.was_woken(Waker::noop()) && second.was_woken(Waker::noop()));
    let now = Instant::now();
    for turn in 0..3 {
        assert!(matches!(wake_ups.tick(now + TICK * turn, false), Next::TickAt(_)));
        assert_eq!((bad.seen().len(), good.seen().len()), (1, 1));
    }
}

#[test]
fn the_thread_is_woken_when_it_sleeps_and_sleeps_some_time_after_the_last_has_gone() {
    let (wake_ups, listener) = wake_ups();
    let woken = || listener.woken.swap(0, SeqCst);
    let watch = looks(TICK);
    listener.deaf.store(true, SeqCst);
    let first = wake_ups.register(key(1), 1, watch.clone());
    assert_eq!(woken(), 1);
    listener.deaf.store(false, SeqCst);
    wake_ups.ensure_listening();
    wake_ups.ensure_listening();
    assert_eq!(woken(), 1, "tried again until it is awake");
    let second = wake_ups.register(key(2), 2, watch.clone());
    drop((first, second));
    assert_eq!(woken(), 0);
    let now = Instant::now();
    let ticks = (0..).take_while(|&turn| wake_ups.tick(now + TICK * turn, false) != Next::Sleep).count();
    assert_eq!(ticks, LINGER as usize);
    assert_eq!(watch.seen().len(), 0);
    wake_ups.ensure_listening();
    assert_eq!(woken(), 0, "nobody waits");

    let third = wake_ups.register(key(1), 3, watch.clone());
    assert_eq!(woken(), 1);
    let later = now + TICK * 100;
    assert!(matches!(wake_ups.tick(later, false), Next::TickAt(_)));
    assert_eq!(watch.seen().len(), 1, "at once");
    drop(third);
    for turn in 1..100 {
        // Each time somebody comes for a moment, it stays awake longer.
        assert!(matches!(wake_ups.tick(later + TICK * turn, false), Next::TickAt(_)));
        drop(wake_ups.register(key(1), 4, watch.clone()));
    }
    assert_eq!(woken(), 0);
    wake_ups.close();
    assert!(listener.closed.load(SeqCst));
    assert_eq!(wake_ups.tick(later, false), Next::End);
    drop(wake_ups.register(key(1), 5, watch));
    assert_eq!(woken(), 0);
}

#[test]
fn it_is_told_how_many_wait_and_how_long() {
    let (wake_ups, _) = wake_ups();
    assert_eq!(wake_ups.waiting_counts(), WaitingCounts { waiting: 0, keys: 0, longest: None });
    let began = Instant::now();
    let first = wake_ups.register(key(1), 9, looks(TICK));
    let between = Instant::now();
    let others = [(1, 5), (2, 6)].map(|(name, number)| wake_ups.register(key(name), number, looks(TICK)));
    let later = Instant::now();
    let waiting_counts = wake_ups.waiting_counts();
    assert_eq!((waiting_counts.waiting, waiting_counts.keys), (3, 2));
    assert!(waiting_counts.longest.unwrap() >= later - between);
    assert!(waiting_counts.longest.unwrap() <= began.elapsed());
    drop(first);
    assert!(wake_ups.waiting_counts().longest.unwrap() <= between.elapsed());
    drop(others);
}
