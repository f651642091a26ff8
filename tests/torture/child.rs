//! A process of the torture: some tasks and a thread that acquire and release by lot, until it is killed or told to end.

use crate::{
    history::{Event, Failure, How, Pen, Process, Want, now},
    processes::{hear, say},
    store,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio::{runtime, sync::watch, time};
use tower_floodgate::{
    Cache, Lock, Semaphore,
    lock::{Acquire, AcquireError, Guard, OneOwner, ReadWrite, ReleaseError, Rule},
    time::{Clock, System, TokioTimer},
};

/// What a process needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) process: Process,
    pub(crate) seed: u64,
    pub(crate) history: PathBuf,
    pub(crate) stores: PathBuf,
}

/// Two for each name, and one that takes turns.
const TASKS: usize = 6;
const BEAT: Duration = Duration::from_millis(25);
/// Short enough that a stop may outlast it, or so long that none does.
const LEASES: [u64; 2] = [600, 30_000];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Work,
    Rest,
    End,
}

/// Machine time with a calendar that jumps: locks must not look at it.
struct Jumping {
    system: System<TokioTimer>,
    readings: AtomicU64,
}

impl Clock for Jumping {
    fn now(&self) -> Duration {
        self.system.now()
    }

    fn wall(&self) -> SystemTime {
        let hours = self.readings.fetch_add(1, SeqCst) * 7_919 % 100_000;
        SystemTime::UNIX_EPOCH + Duration::from_secs(hours * 3_600)
    }

    fn sleep(&self, delay: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.system.sleep(delay)
    }
}

/// Plays the part that the parent tells first.
pub(crate) fn play(cache: &Path) {
    let part: Part = serde_json::from_str(&hear()).unwrap();
    let mut random = StdRng::seed_from_u64(part.seed);
    let builder = Cache::builder(cache).state_size(1 << 20);
    let cache = match part.process % 2 {
        0 => builder.open().unwrap(),
        _ => {
            let clock = Jumping { system: System::default(), readings: AtomicU64::new(0) };
            builder.clock(clock).patience(Duration::from_secs(10)).open().unwrap()
        }
    };
    let pen = Arc::new(Pen::new(&part.history, part.process).unwrap());
    let beating = pen.clone();
    std::thread::spawn(move || {
        loop {
            beating.write(&Event::Beat { at: now() });
            std::thread::sleep(BEAT);
        }
    });
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (mode, follow) = watch::channel(Mode::Work);
    let resting = Arc::new(AtomicUsize::new(0));
    let attempts = Arc::new(AtomicU64::new(0));
    let mut worker = |nth: usize| Worker {
        cache: cache.clone(),
        pen: pen.clone(),
        stores: part.stores.clone(),
        attempts: attempts.clone(),
        favourite: nth % 4,
        random: StdRng::seed_from_u64(random.random()),
        mode: follow.clone(),
        resting: resting.clone(),
    };
    let tasks: Vec<_> = (0..TASKS).map(|nth| runtime.spawn(worker(nth).work())).collect();
    let plain = worker(3);
    let thread = std::thread::spawn(move || plain.work_blocking());
    loop {
        match hear().as_str() {
            "rest" => {
                mode.send_replace(Mode::Rest);
                while resting.load(SeqCst) <= TASKS {
                    std::thread::sleep(Duration::from_millis(1));
                }
                say("resting");
            }
            "go on" => _ = mode.send_replace(Mode::Work),
            "end" => break,
            other => panic!("{other}"),
        }
    }
    mode.send_replace(Mode::End);
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    thread.join().unwrap();
    drop(cache);
    say("ended");
}

struct Worker {
    cache: Cache,
    pen: Arc<Pen>,
    stores: PathBuf,
    attempts: Arc<AtomicU64>,
    /// The name that it wants most.
    favourite: usize,
    random: StdRng,
    mode: watch::Receiver<Mode>,
    resting: Arc<AtomicUsize>,
}

/// How somebody waits.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Waits,
    /// Its future is dropped after this, unless it is ready.
    Drops(Duration),
    /// Nobody polls it for so long.
    Sleeps(Duration),
}

/// Something that a worker does.
struct Visit {
    want: Want,
    kind: Kind,
    manner: Manner,
    queue_at_most: u32,
    hold: Duration,
    /// Whether its release is asked whether it came in time.
    asks: bool,
    /// Whether it goes on with its work when it is told that it has lost the lock.
    stubborn: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Mutex,
    /// Enters once more while it holds it.
    Again,
    Permits(u32),
    Read,
    Write,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn nanos(span: Duration) -> u64 {
    span.as_nanos() as u64
}

impl Visit {
    fn draw(random: &mut StdRng, favourite: usize) -> Visit {
        let name = if favourite < 3 { favourite } else { random.random_range(0..3) };
        let (name, kind, capacity, weight) = match (name, random.random_range(0..10)) {
            (0, 0 | 1) => ("mutex", Kind::Again, 1, 1),
            (0, _) => ("mutex", Kind::Mutex, 1, 1),
            (1, 0..3) => ("permits", Kind::Permits(2), 3, 2),
            (1, _) => ("permits", Kind::Permits(1), 3, 1),
            (_, 0..4) => ("rows", Kind::Write, u32::MAX, u32::MAX),
            (_, _) => ("rows", Kind::Read, u32::MAX, 1),
        };
        let patience = match random.random_range(0..10) {
            0 => Some(0),
            1 | 2 => Some(nanos(ms(random.random_range(1..300)))),
            _ => None,
        };
        let manner = match random.random_range(0..100) {
            0..12 => Manner::Drops(Duration::from_micros(random.random_range(0..60_000))),
            12 => Manner::Sleeps(ms(random.random_range(10..600))),
            _ => Manner::Waits,
        };
        let hold = match random.random_range(0..200) {
            0 | 1 => ms(random.random_range(650..900)),
            2..10 => ms(random.random_range(30..150)),
            10..40 => ms(random.random_range(5..30)),
            _ => Duration::from_micros(random.random_range(0..5_000)),
        };
        Visit {
            want: Want {
                name: name.into(),
                capacity,
                weight,
                lease: nanos(ms(LEASES[random.random_range(0..LEASES.len())])),
                at_least: if random.random_bool(0.04) { nanos(ms(random.random_range(1..40))) } else { 0 },
                patience,
                lazy: matches!(manner, Manner::Sleeps(_)),
            },
            kind,
            manner,
            queue_at_most: if random.random_bool(0.05) { random.random_range(0..8) } else { u32::MAX },
            hold,
            asks: random.random_bool(0.7),
            stubborn: random.random_bool(0.5),
        }
    }

    fn acquire<R: Rule>(&self, cache: &Cache, rule: R) -> Acquire<R> {
        let Want { name, lease, at_least, patience, .. } = &self.want;
        let acquire =
            cache.lock(name).rule(rule).expire(Duration::from_nanos(*lease)).queue_at_most(self.queue_at_most);
        let acquire = if *at_least > 0 { acquire.at_least(Duration::from_nanos(*at_least)) } else { acquire };
        match *patience {
            Some(patience) => acquire.wait_at_most(Duration::from_nanos(patience)),
            None => acquire,
        }
    }

    fn excludes_all(&self) -> bool {
        self.want.weight == self.want.capacity
    }
}

impl Worker {
    async fn work(mut self) {
        loop {
            let mode = *self.mode.borrow_and_update();
            match mode {
                Mode::Work => self.step().await,
                Mode::Rest => {
                    self.resting.fetch_add(1, SeqCst);
                    let _ = self.mode.changed().await;
                    self.resting.fetch_sub(1, SeqCst);
                }
                Mode::End => return,
            }
        }
    }

    fn work_blocking(mut self) {
        loop {
            let mode = *self.mode.borrow_and_update();
            match mode {
                Mode::Work => self.step_blocking(),
                Mode::Rest => {
                    self.resting.fetch_add(1, SeqCst);
                    while !self.mode.has_changed().unwrap_or(true) {
                        std::thread::sleep(ms(1));
                    }
                    self.resting.fetch_sub(1, SeqCst);
                }
                Mode::End => return,
            }
        }
    }

    async fn step(&mut self) {
        time::sleep(Duration::from_micros(self.random.random_range(0..30_000))).await;
        let visit = Visit::draw(&mut self.random, self.favourite);
        let aborted = self.random.random_bool(0.03).then(|| Duration::from_micros(self.random.random_range(0..50_000)));
        let task = tokio::spawn(self.tools().visit(visit));
        if let Some(after) = aborted {
            time::sleep(after).await;
            task.abort();
        }
        if let Err(error) = task.await {
            assert!(error.is_cancelled(), "{error}");
        }
    }

    fn step_blocking(&mut self) {
        std::thread::sleep(Duration::from_micros(self.random.random_range(0..30_000)));
        let visit = Visit { manner: Manner::Waits, ..Visit::draw(&mut self.random, self.favourite) };
        let visit = Visit { want: Want { lazy: false, ..visit.want.clone() }, ..visit };
        self.tools().visit_blocking(&visit);
    }

    fn tools(&self) -> Tools {
        let attempt = self.attempts.fetch_add(1, SeqCst);
        Tools { cache: self.cache.clone(), pen: self.pen.clone(), stores: self.stores.clone(), attempt }
    }
}

/// What one visit needs.
struct Tools {
    cache: Cache,
    pen: Arc<Pen>,
    stores: PathBuf,
    attempt: u64,
}

impl Tools {
    async fn visit(self, visit: Visit) {
        match visit.kind {
            Kind::Mutex => self.visit_by(visit, Lock).await,
            Kind::Again => self.visit_by(visit, OneOwner).await,
            Kind::Permits(1) => self.visit_by(visit, Semaphore(3)).await,
            Kind::Permits(weight) => self.visit_by(visit, Semaphore(3).weighing(weight)).await,
            Kind::Read => self.visit_by(visit, ReadWrite.read()).await,
            Kind::Write => self.visit_by(visit, ReadWrite.write()).await,
        }
    }

    async fn visit_by<R: Rule>(self, visit: Visit, rule: R) {
        let asking = Asking::new(&self, &visit);
        let acquire = visit.acquire(&self.cache, rule);
        let outcome = match visit.manner {
            Manner::Waits => acquire.await,
            Manner::Drops(after) => match time::timeout(after, acquire.acquire()).await {
                Ok(outcome) => outcome,
                Err(_) => return,
            },
            Manner::Sleeps(pause) => poll_and_sleep(acquire.acquire(), pause).await,
        };
        let Some(mut held) = asking.end(outcome) else { return };
        held.work(&self, &visit).await;
        if visit.asks {
            held.release().await;
        }
    }

    fn visit_blocking(self, visit: &Visit) {
        match visit.kind {
            Kind::Mutex => self.visit_blocking_by(visit, Lock),
            Kind::Again => self.visit_blocking_by(visit, OneOwner),
            Kind::Permits(weight) => self.visit_blocking_by(visit, Semaphore(3).weighing(weight)),
            Kind::Read => self.visit_blocking_by(visit, ReadWrite.read()),
            Kind::Write => self.visit_blocking_by(visit, ReadWrite.write()),
        }
    }

    fn visit_blocking_by<R: Rule>(self, visit: &Visit, rule: R) {
        let asking = Asking::new(&self, visit);
        let outcome = visit.acquire(&self.cache, rule).acquire_blocking();
        let Some(mut held) = asking.end(outcome) else { return };
        held.work_blocking(visit);
        if visit.asks {
            let guard = held.leave();
            held.left(guard.release_blocking());
        }
    }
}

/// Polled once, it joins the line; then nobody polls it, whatever it is called.
async fn poll_and_sleep<F: Future>(future: F, pause: Duration) -> F::Output {
    let mut future = std::pin::pin!(future);
    let first = std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx))).await;
    match first {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => {
            time::sleep(pause).await;
            future.await
        }
    }
}

/// An attempt under way. If it is dropped, so was its future before.
struct Asking {
    pen: Arc<Pen>,
    attempt: u64,
    ended: bool,
}

impl Asking {
    fn new(tools: &Tools, visit: &Visit) -> Asking {
        let attempt = tools.attempt;
        tools.pen.write(&Event::Asks { attempt, at: now(), want: visit.want.clone() });
        Asking { pen: tools.pen.clone(), attempt, ended: false }
    }

    fn end(mut self, outcome: Result<Guard, AcquireError>) -> Option<Held> {
        let (attempt, at) = (self.attempt, now());
        self.ended = true;
        match outcome {
            Ok(guard) => {
                self.pen.write(&Event::Got { attempt, at, fence: guard.fence().to_u64() });
                Some(Held { pen: self.pen.clone(), attempt, guard: Some(guard), shut_out: false })
            }
            Err(error) => {
                let why = if matches!(error, AcquireError::Cache(_)) { Failure::Cache } else { Failure::Busy };
                self.pen.write(&Event::Failed { attempt, at, why });
                None
            }
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if !self.ended {
            self.pen.write(&Event::Failed { attempt: self.attempt, at: now(), why: Failure::Dropped });
        }
    }
}

/// A lock that is held. However it ends, that is written down.
struct Held {
    pen: Arc<Pen>,
    attempt: u64,
    guard: Option<Guard>,
    /// Its owner could not enter again: somebody else is inside.
    shut_out: bool,
}

impl Held {
    async fn work(&mut self, tools: &Tools, visit: &Visit) {
        let Some(guard) = &self.guard else { return };
        self.write_to_store(tools, visit, guard);
        if let Kind::Again = visit.kind {
            // Not written down: what it holds is held anyway.
            let again = visit.acquire(&tools.cache, OneOwner).owner(guard.owner().clone()).try_acquire().await;
            self.shut_out = matches!(again, Err(AcquireError::Busy { .. }));
        }
        let lost = tokio::select! {
            () = guard.lost() => true,
            () = time::sleep(visit.hold) => guard.is_lost(),
        };
        if lost {
            self.pen.write(&Event::Told { attempt: self.attempt, at: now() });
        }
        if !lost || visit.stubborn {
            self.write_to_store(tools, visit, guard);
        }
    }

    fn work_blocking(&self, visit: &Visit) {
        let Some(guard) = &self.guard else { return };
        let began = Instant::now();
        while !guard.is_lost() && began.elapsed() < visit.hold {
            std::thread::sleep(visit.hold.min(ms(20)));
        }
        if guard.is_lost() {
            self.pen.write(&Event::Told { attempt: self.attempt, at: now() });
        }
    }

    /// Only where all holders exclude each other does a store have an order of them to go by.
    fn write_to_store(&self, tools: &Tools, visit: &Visit, guard: &Guard) {
        if !visit.excludes_all() {
            return;
        }
        let fence = guard.fence().to_u64();
        if let Some(taken) = store::write(&tools.stores.join(&visit.want.name), fence).unwrap() {
            self.pen.write(&Event::Wrote { attempt: self.attempt, at: now(), taken });
        }
    }

    async fn release(mut self) {
        let guard = self.leave();
        let released = guard.release().await;
        assert!(!self.shut_out || released.is_err(), "{} was in all the time, but could not enter again", self.attempt);
        self.left(released);
    }

    fn leave(&mut self) -> Guard {
        self.pen.write(&Event::Leaves { attempt: self.attempt, at: now() });
        self.guard.take().unwrap()
    }

    fn left(&self, released: Result<(), ReleaseError>) {
        let how = match released {
            Ok(()) => How::Kept,
            Err(ReleaseError::Lost) => How::Lost,
            Err(_) => How::Unknown,
        };
        self.pen.write(&Event::Left { attempt: self.attempt, at: now(), how });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            self.pen.write(&Event::Leaves { attempt: self.attempt, at: now() });
            drop(guard);
        }
        // Only the first of several counts.
        self.pen.write(&Event::Left { attempt: self.attempt, at: now(), how: How::Unknown });
    }
}
