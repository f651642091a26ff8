//! A process of the load: tasks that count, lock, store, read and purge by lot, until it is killed or told to end.

use crate::{
    answers::Answers,
    bound::Admitted,
    files,
    history::{Pen, Process, now},
    notes::{Note, Why},
    support::{say, told},
    visit::{Tools, Visit},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rustix::fs::{OFlags, fcntl_getfl};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    os::fd::{AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio::{runtime, sync::watch, time};
use tower_floodgate::{
    Builder, Cache, Durability,
    throttle::{LimitError, Rate},
};

pub(crate) const SIZE: u64 = 64 << 20;
pub(crate) const STATE_SIZE: u64 = 2 << 20;
/// So much that only a stopped process makes anybody wait for so long, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

/// A budget that all processes share.
pub(crate) struct Budget {
    pub(crate) name: &'static str,
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

pub(crate) const BUDGETS: [Budget; 3] = [
    Budget { name: "narrow", per_second: 2, burst: 3 },
    Budget { name: "wide", per_second: 40, burst: 10 },
    Budget { name: "bursts", per_second: 5, burst: 100 },
];

impl Budget {
    pub(crate) fn rate(&self) -> Rate {
        Rate::per_second(self.per_second).burst(self.burst)
    }
}

/// Where a run's processes write.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Desk(pub(crate) PathBuf);

impl Desk {
    /// What happened to locks.
    pub(crate) fn locks(&self) -> PathBuf {
        self.0.join("locks")
    }

    pub(crate) fn notes(&self) -> PathBuf {
        self.0.join("notes")
    }

    /// What was admitted by the budget of that name.
    pub(crate) fn admitted(&self, name: &str) -> PathBuf {
        self.0.join("admitted").join(name)
    }

    /// What locks guard.
    pub(crate) fn stores(&self) -> PathBuf {
        self.0.join("stores")
    }

    pub(crate) fn make(&self) {
        let admitted = BUDGETS.iter().map(|budget| self.admitted(budget.name));
        for directory in admitted.chain([self.locks(), self.notes(), self.stores()]) {
            fs::create_dir_all(directory).unwrap();
        }
    }
}

/// What a process needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) process: Process,
    pub(crate) seed: u64,
    pub(crate) desk: Desk,
    /// Whether its commits survive a crash of the machine.
    pub(crate) is_durable: bool,
}

pub(crate) fn builder(path: &Path) -> Builder {
    Cache::builder(path).size(SIZE).state_size(STATE_SIZE).memory(4 << 20).patience(PATIENCE)
}

/// Plays the part that the parent tells first.
pub(crate) fn play(path: &Path) {
    let part: Part = serde_json::from_str(&told().unwrap()).unwrap();
    let Part { process, seed, desk, is_durable } = part;
    let durability = if is_durable { Durability::Full } else { Durability::Process };
    let cache = builder(path).durability(durability).open().unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    let locks = Arc::new(Pen::new(&desk.locks(), process).unwrap());
    let notes = Arc::new(Pen::new(&desk.notes(), process).unwrap());
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (end, ended) = watch::channel(false);
    let attempts = Arc::new(AtomicU64::new(0));
    let answers = Answers::new(&cache, &notes, process);
    let mut tasks = Vec::new();
    for nth in 0..4 {
        let locker = Locker {
            cache: cache.clone(),
            pen: locks.clone(),
            stores: desk.stores(),
            attempts: attempts.clone(),
            process,
            favourite: nth,
            random: StdRng::seed_from_u64(random.random()),
        };
        tasks.push(runtime.spawn(locker.work(ended.clone())));
        let (answers, seed) = (answers.clone(), random.random());
        tasks.push(runtime.spawn(store_and_read(answers, seed, ended.clone())));
    }
    for budget in &BUDGETS {
        let log = desk.admitted(budget.name).join(process.to_string());
        let admitted = File::options().append(true).create(true).open(log).unwrap();
        tasks.push(runtime.spawn(spend(
            cache.clone(),
            budget,
            admitted,
            notes.clone(),
            random.random(),
            ended.clone(),
        )));
    }
    runtime.spawn(answers.watch_failures());
    loop {
        match told().as_deref() {
            Some("break") => notes.write(&Note::Broken { descriptors: break_meta_writes(path) }),
            Some("end") => break,
            other => panic!("{other:?}"),
        }
    }
    end.send_replace(true);
    runtime.block_on(async {
        for task in tasks {
            task.await.unwrap();
        }
    });
    runtime.shutdown_timeout(Duration::ZERO);
    drop(cache);
    say("ended");
}

struct Locker {
    cache: Cache,
    pen: Arc<Pen>,
    stores: PathBuf,
    attempts: Arc<AtomicU64>,
    process: Process,
    /// The name that it wants most.
    favourite: usize,
    random: StdRng,
}

impl Locker {
    async fn work(mut self, ended: watch::Receiver<bool>) {
        while !*ended.borrow() {
            time::sleep(Duration::from_micros(self.random.random_range(0..30_000))).await;
            let visit = Visit::draw(&mut self.random, self.favourite);
            let tools = Tools {
                cache: self.cache.clone(),
                pen: self.pen.clone(),
                stores: self.stores.clone(),
                attempt: self.attempts.fetch_add(1, SeqCst),
                process: self.process,
                wild: Arc::new(AtomicBool::new(false)),
            };
            tools.visit(visit).await;
        }
    }
}

async fn store_and_read(answers: Answers, seed: u64, ended: watch::Receiver<bool>) {
    let mut random = StdRng::seed_from_u64(seed);
    while !*ended.borrow() {
        time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
        answers.step(&mut random).await;
    }
}

/// Asks for more than there is.
async fn spend(
    cache: Cache,
    budget: &'static Budget,
    admitted: File,
    notes: Arc<Pen>,
    seed: u64,
    ended: watch::Receiver<bool>,
) {
    let mut random = StdRng::seed_from_u64(seed);
    let limiter = cache.throttle(budget.name, budget.rate());
    while !*ended.borrow() {
        time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
        let cost = random.random_range(1..=budget.burst.min(3));
        let not_before = now();
        match limiter.cost(cost).check().await {
            Ok(_) => Admitted { not_before, not_after: now(), units: cost.into() }.log(&admitted),
            Err(LimitError::Cache(error)) => notes.write(&Note::failed("check", Why::from(&error), not_before)),
            Err(_) => {}
        }
    }
}

/// From now on, LMDB cannot write the metadata of the answers: the file by which it does so, synced, has become one that
/// cannot be written. After that it refuses everything. Returns how many such files there were.
#[allow(unsafe_code)]
fn break_meta_writes(cache: &Path) -> usize {
    let answers = files::environment(cache, "entries-0");
    let read_only = File::open("/dev/null").unwrap();
    let mut broken = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(fd) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let is_data = |to: PathBuf| to.starts_with(&answers) && to.ends_with("data.mdb");
        if fs::read_link(entry.path()).is_ok_and(is_data) {
            // SAFETY: it is looked at only; if it has been closed meanwhile, that fails.
            let flags = fcntl_getfl(unsafe { BorrowedFd::borrow_raw(fd) });
            if flags.is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::WRONLY) {
                // SAFETY: the descriptor stays open, for another description of the same file.
                assert!(unsafe { libc::dup2(read_only.as_raw_fd(), fd) } >= 0);
                broken += 1;
            }
        }
    }
    broken
}

/// A role: reads a large answer again and again, always from the files.
pub(crate) fn read_for_ever(path: &Path) -> ! {
    let cache = builder(path).memory(0).open().unwrap();
    let scope = cache.scope("long reads");
    let value = "x".repeat(8 << 20);
    say("reads");
    // It must not live longer than its parent.
    std::thread::spawn(|| {
        while told().is_some() {}
        std::process::exit(0);
    });
    loop {
        // It may be evicted, or damaged.
        if scope.get::<String>("large").is_ok_and(|found| found.is_none()) {
            let _ = scope.insert("large", &value).wait();
        }
    }
}
