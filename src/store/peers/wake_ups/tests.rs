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

impl Ear for Counting {
    fn wake(&self, _: &Arc<Calls>) -> bool {
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

fn calls() -> (Arc<Calls>, Counting) {
    let ear = Counting::default();
    (Calls::new(Box::new(ear.clone())), ear)
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
    let (calls, _) = calls();
    let call = calls.register(key(1), 7, looks(TICK));
    let ((first, first_woken), (second, second_woken)) = (waker(), waker());
    assert!(!call.called(&first));
    assert!(!call.called(&second));
    assert!(calls.call(7) && calls.call(7));
    assert_eq!((first_woken.0.load(SeqCst), second_woken.0.load(SeqCst)), (0, 1));
    assert!(call.called(&first), "however often it was called");
    assert!(!call.called(&first));
    assert!(calls.call(7));
    assert_eq!(first_woken.0.load(SeqCst), 1);
    drop(call);
    assert!(!calls.call(7));
    assert_eq!(Arc::strong_count(&first_woken), 2, "nothing of it is left");
}

#[test]
fn who_was_called_before_it_was_registered_knows() {
    let (calls, _) = calls();
    let waker = Waker::noop();
    assert!(!calls.call(7) && !calls.call(8) && !calls.call(0));
    let call = calls.register(key(1), 7, looks(TICK));
    assert!(call.called(waker) && !call.called(waker));
    drop(call);
    assert!(!calls.register(key(1), 7, looks(TICK)).called(waker), "once");
    // What comes from outside takes no room.
    (100..100_000).for_each(|number| assert!(!calls.call(number)));
    assert!(!calls.register(key(1), 8, looks(TICK)).called(waker));
    assert!(calls.register(key(1), 99_999, looks(TICK)).called(waker));
    assert_eq!(calls.crowd(), Crowd::default());
}

#[test]
fn whoever_has_the_same_number_leaves_the_other_alone() {
    let (calls, _) = calls();
    let first = calls.register(key(1), 7, looks(TICK));
    let second = calls.register(key(2), 7, looks(TICK));
    drop(first);
    assert!(calls.call(7) && second.called(Waker::noop()));
    assert_eq!((calls.crowd().waiting, calls.crowd().keys), (1, 1));
}

#[test]
fn each_key_is_looked_at_once_a_tick_or_as_soon_as_it_asks() {
    let (calls, _) = calls();
    let (patient, hasty) = (looks(Duration::from_secs(9)), looks(Duration::from_millis(200)));
    let waiting: Vec<_> = (0..32).map(|i| calls.register(key(i % 2), i + 1, patient.clone())).collect();
    let now = Instant::now();
    assert_eq!(calls.tick(now, false), Next::TickAt(now + TICK));
    assert_eq!(patient.seen(), [key(0).hash, key(1).hash]);
    // One that comes between two ticks is looked at with the others.
    let late = calls.register(key(2), 100, hasty.clone());
    assert_eq!(calls.tick(now + TICK / 2, false), Next::TickAt(now + TICK));
    assert_eq!((patient.seen(), hasty.seen()), (vec![], vec![]));
    assert_eq!(calls.tick(now + TICK, false), Next::TickAt(now + 2 * TICK), "a tick later whatever it asks");
    assert_eq!((patient.seen().len(), hasty.seen()), (2, vec![key(2).hash]));
    calls.tick(now + TICK, true);
    assert_eq!((patient.seen().len(), hasty.seen().len()), (2, 1), "in a hurry");
    // Who asks for more gets more, but not without end.
    let mut now = now + TICK;
    for (asked, given) in [(Duration::from_millis(10), Duration::from_millis(10)), (Duration::ZERO, SOON)] {
        *lock(&hasty.again) = Some(asked);
        now += TICK;
        assert_eq!(calls.tick(now, false), Next::TickAt(now + given));
        assert_eq!((patient.seen().len(), hasty.seen().len()), (2, 1));
        calls.tick(now + given, false);
        assert_eq!((patient.seen().len(), hasty.seen().len()), (0, 1), "{asked:?}");
    }
    drop(late);
    drop(waiting);
    calls.tick(now + 9 * TICK, true);
    assert_eq!((patient.seen(), hasty.seen()), (vec![], vec![]));
    assert_eq!((Arc::strong_count(&patient), Arc::strong_count(&hasty)), (1, 1));
}

#[test]
fn of_very_many_keys_each_has_its_turn() {
    let (calls, _) = calls();
    let watch = looks(TICK);
    const KEYS: u64 = 2 * LOOKS as u64 + 500;
    let waiting: Vec<_> = (0..KEYS).map(|i| calls.register(key(i), i + 1, watch.clone())).collect();
    let now = Instant::now();
    let turns = (0..10).map(|turn| {
        calls.tick(now + TICK * turn, false);
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
    let (calls, _) = calls();
    let (bad, good) = (Looks::new(), looks(TICK));
    let first = calls.register(key(1), 1, bad.clone());
    let second = calls.register(key(2), 2, good.clone());
    assert!(!first.called(&Arc::new(Panics).into()) && !second.called(Waker::noop()));
    assert!(calls.call(1) && calls.call(2));
    assert!(first.called(Waker::noop()) && second.called(Waker::noop()));
    let now = Instant::now();
    for turn in 0..3 {
        assert!(matches!(calls.tick(now + TICK * turn, false), Next::TickAt(_)));
        assert_eq!((bad.seen().len(), good.seen().len()), (1, 1));
    }
}

#[test]
fn the_thread_is_woken_when_it_sleeps_and_sleeps_some_time_after_the_last_has_gone() {
    let (calls, ear) = calls();
    let woken = || ear.woken.swap(0, SeqCst);
    let watch = looks(TICK);
    ear.deaf.store(true, SeqCst);
    let first = calls.register(key(1), 1, watch.clone());
    assert_eq!(woken(), 1);
    ear.deaf.store(false, SeqCst);
    calls.be_heard();
    calls.be_heard();
    assert_eq!(woken(), 1, "tried again until it is awake");
    let second = calls.register(key(2), 2, watch.clone());
    drop((first, second));
    assert_eq!(woken(), 0);
    let now = Instant::now();
    let ticks = (0..).take_while(|&turn| calls.tick(now + TICK * turn, false) != Next::Sleep).count();
    assert_eq!(ticks, LINGER as usize);
    assert_eq!(watch.seen().len(), 0);
    calls.be_heard();
    assert_eq!(woken(), 0, "nobody waits");

    let third = calls.register(key(1), 3, watch.clone());
    assert_eq!(woken(), 1);
    let later = now + TICK * 100;
    assert!(matches!(calls.tick(later, false), Next::TickAt(_)));
    assert_eq!(watch.seen().len(), 1, "at once");
    drop(third);
    for turn in 1..100 {
        // Each time somebody comes for a moment, it stays awake longer.
        assert!(matches!(calls.tick(later + TICK * turn, false), Next::TickAt(_)));
        drop(calls.register(key(1), 4, watch.clone()));
    }
    assert_eq!(woken(), 0);
    calls.close();
    assert!(ear.closed.load(SeqCst));
    assert_eq!(calls.tick(later, false), Next::End);
    drop(calls.register(key(1), 5, watch));
    assert_eq!(woken(), 0);
}

#[test]
fn it_is_told_how_many_wait_and_how_long() {
    let (calls, _) = calls();
    assert_eq!(calls.crowd(), Crowd { waiting: 0, keys: 0, longest: None });
    let began = Instant::now();
    let first = calls.register(key(1), 9, looks(TICK));
    let between = Instant::now();
    let others = [(1, 5), (2, 6)].map(|(name, number)| calls.register(key(name), number, looks(TICK)));
    let later = Instant::now();
    let crowd = calls.crowd();
    assert_eq!((crowd.waiting, crowd.keys), (3, 2));
    assert!(crowd.longest.unwrap() >= later - between);
    assert!(crowd.longest.unwrap() <= began.elapsed());
    drop(first);
    assert!(calls.crowd().longest.unwrap() <= between.elapsed());
    drop(others);
}
