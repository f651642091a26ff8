//! A process of the torture: some tasks and a thread that acquire and release by lot, until it is killed or told to end.

use crate::{
    history::{Event, Pen, Process, now},
    processes::{say, told},
    visit::{Tools, Visit},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};
use tokio::{runtime, sync::watch, time};
use tower_floodgate::{
    Cache,
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
    let part: Part = serde_json::from_str(&told().unwrap()).unwrap();
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
    let wild = Arc::new(AtomicBool::new(false));
    let mut worker = |nth: usize| Worker {
        cache: cache.clone(),
        pen: pen.clone(),
        stores: part.stores.clone(),
        attempts: attempts.clone(),
        process: part.process,
        wild: wild.clone(),
        favourite: nth % 4,
        random: StdRng::seed_from_u64(random.random()),
        mode: follow.clone(),
        resting: resting.clone(),
    };
    let tasks: Vec<_> = (0..TASKS).map(|nth| runtime.spawn(worker(nth).work())).collect();
    let plain = worker(3);
    let thread = std::thread::spawn(move || plain.work_blocking());
    loop {
        match told().unwrap().as_str() {
            "rest" => {
                mode.send_replace(Mode::Rest);
                while resting.load(SeqCst) <= TASKS {
                    std::thread::sleep(Duration::from_millis(1));
                }
                say("resting");
            }
            "wild" => wild.store(true, SeqCst),
            "calm" => wild.store(false, SeqCst),
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
    process: Process,
    /// Whether it may stop or kill itself.
    wild: Arc<AtomicBool>,
    /// The name that it wants most.
    favourite: usize,
    random: StdRng,
    mode: watch::Receiver<Mode>,
    resting: Arc<AtomicUsize>,
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
                        std::thread::sleep(Duration::from_millis(1));
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
        let visit = Visit::draw(&mut self.random, self.favourite).without_manners();
        self.tools().visit_blocking(&visit);
    }

    fn tools(&self) -> Tools {
        let attempt = self.attempts.fetch_add(1, SeqCst);
        Tools {
            cache: self.cache.clone(),
            pen: self.pen.clone(),
            stores: self.stores.clone(),
            attempt,
            process: self.process,
            wild: self.wild.clone(),
        }
    }
}
