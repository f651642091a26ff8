//! The parent's side: children that it starts, stops, continues, kills and replaces, and what it writes down of that.

use crate::{
    child::Part,
    history::{Event, Failure, How, Pen, Process, Want, now},
    processes::Child,
};
use nix::sys::{
    signal::Signal,
    wait::{WaitPidFlag, WaitStatus, waitpid},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tower_floodgate::{
    Cache, Semaphore,
    lock::{AcquireError, Guard, ReadWrite},
};

const CHILDREN: usize = 6;
const BEAT: Duration = Duration::from_millis(25);
/// How long the children may take to come to rest.
const REST: Duration = Duration::from_secs(15);
/// All that is held together makes a whole lock; with nobody else about it is free at once.
const WHOLE: [(&str, u32, u32, usize); 4] =
    [("mutex", 1, 1, 1), ("twin", 1, 1, 1), ("permits", 3, 1, 3), ("rows", u32::MAX, u32::MAX, 1)];
const PATIENCE: Duration = Duration::from_secs(3);

/// Some processes on one cache, under one history.
pub(crate) struct Crew {
    random: StdRng,
    directory: PathBuf,
    history: PathBuf,
    pen: Arc<Pen>,
    members: Vec<Member>,
    next: Process,
    /// Whether they may stop and kill themselves.
    mood: &'static str,
    attempts: u64,
    cache: Cache,
    ended: Arc<AtomicBool>,
    beats: Option<JoinHandle<()>>,
    /// How often one was killed or stopped, as the kernel has told.
    pub(crate) kills: u32,
    pub(crate) stops: u32,
}

struct Member {
    process: Process,
    child: Child,
    stopped_until: Option<Instant>,
}

impl Crew {
    /// Starts all. `directory` has the cache and the stores, `history` is a new directory.
    pub(crate) fn new(directory: &Path, history: &Path, seed: u64) -> Crew {
        fs::create_dir(history).unwrap();
        fs::create_dir_all(directory.join("stores")).unwrap();
        let (pen, ended) = (Arc::new(Pen::new(history, 0).unwrap()), Arc::new(AtomicBool::new(false)));
        let cache = Cache::builder(directory.join("cache")).state_size(1 << 20).patience(REST).open().unwrap();
        let (beating, end) = (pen.clone(), ended.clone());
        let beats = std::thread::spawn(move || {
            while !end.load(SeqCst) {
                beating.write(&Event::Beat { at: now() });
                std::thread::sleep(BEAT);
            }
        });
        let mut crew = Crew {
            random: StdRng::seed_from_u64(seed),
            directory: directory.into(),
            history: history.into(),
            pen,
            members: Vec::new(),
            next: 1,
            mood: "calm",
            attempts: 0,
            cache,
            ended,
            beats: Some(beats),
            kills: 0,
            stops: 0,
        };
        crew.fill();
        crew
    }

    fn fill(&mut self) {
        while self.members.len() < CHILDREN {
            let process = self.next;
            self.next += 1;
            let mut child = Child::spawn("torture", &self.directory.join("cache"));
            let stores = self.directory.join("stores");
            let part = Part { process, seed: self.random.random(), history: self.history.clone(), stores };
            child.tell(&serde_json::to_string(&part).unwrap());
            child.tell(self.mood);
            self.members.push(Member { process, child, stopped_until: None });
        }
    }

    /// Lets them work, and stops and kills some, as they do themselves.
    pub(crate) fn storm(&mut self, length: Duration) {
        let end = Instant::now() + length;
        self.be("wild");
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(self.random.random_range(5..60)));
            self.see();
            self.go_on(|until| until <= Instant::now());
            let nth = self.random.random_range(0..self.members.len());
            match self.random.random_range(0..16) {
                0 => self.kill(nth),
                1..4 => self.stop(nth),
                _ => {}
            }
            self.fill();
        }
    }

    /// Lets them work undisturbed.
    pub(crate) fn calm(&mut self, length: Duration) {
        let end = Instant::now() + length;
        self.be("calm");
        while Instant::now() < end {
            // The last of them may have stopped themselves just now.
            self.see();
            self.go_on(|_| true);
            self.fill();
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn be(&mut self, mood: &'static str) {
        self.mood = mood;
        for member in &mut self.members {
            // It may have killed itself just now.
            member.child.try_tell(mood);
        }
    }

    /// Finds out who has stopped or killed itself.
    fn see(&mut self) {
        for nth in (0..self.members.len()).rev() {
            let millis = self.stop_length();
            let member = &mut self.members[nth];
            match waitpid(member.child.pid(), Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)).unwrap() {
                WaitStatus::Stopped(..) => {
                    self.stops += 1;
                    member.stopped_until.get_or_insert(Instant::now() + Duration::from_millis(millis));
                }
                WaitStatus::Signaled(_, Signal::SIGKILL, _) => {
                    self.kills += 1;
                    self.pen.write(&Event::Gone { process: member.process, at: now() });
                    self.members.swap_remove(nth);
                }
                WaitStatus::StillAlive => {}
                other => panic!("process {} has ended: {other:?}", member.process),
            }
        }
    }

    /// For less or more than the short leases.
    fn stop_length(&mut self) -> u64 {
        match self.random.random_range(0..10) {
            0..4 => self.random.random_range(1..100),
            4..7 => self.random.random_range(100..500),
            _ => self.random.random_range(500..1_600),
        }
    }

    fn kill(&mut self, nth: usize) {
        let Member { process, child, .. } = self.members.swap_remove(nth);
        self.pen.write(&Event::Kills { process, at: now() });
        child.kill();
        self.kills += 1;
        self.pen.write(&Event::Gone { process, at: now() });
    }

    fn stop(&mut self, nth: usize) {
        let millis = self.stop_length();
        let Member { process, ref child, ref mut stopped_until } = self.members[nth];
        // Who is stopped while it opens the cache keeps all others from opening it.
        if stopped_until.is_none() && self.history.join(process.to_string()).exists() {
            self.pen.write(&Event::Stops { process, at: now() });
            child.signal(Signal::SIGSTOP);
            *stopped_until = Some(Instant::now() + Duration::from_millis(millis));
        }
    }

    fn go_on(&mut self, due: impl Fn(Instant) -> bool) {
        for Member { process, child, stopped_until } in &mut self.members {
            if stopped_until.is_some_and(&due) {
                child.go_on();
                self.pen.write(&Event::Continued { process: *process, at: now() });
                *stopped_until = None;
            }
        }
    }

    /// Has all finish what they are at, acquires all there is while they live, and lets them go on. Says what is wrong.
    pub(crate) fn audit(&mut self) -> Vec<String> {
        let mut wrong = self.everybody("rest", "resting");
        if !wrong.is_empty() {
            return wrong;
        }
        for (name, capacity, weight, times) in WHOLE {
            let mut held = Vec::new();
            for _ in 0..times {
                match self.acquire(name, capacity, weight) {
                    Ok(guard) => held.push(guard),
                    Err(error) => wrong.push(format!("{name}: {error}, with nobody about")),
                }
            }
            for (attempt, guard) in held {
                self.pen.write(&Event::Leaves { attempt, at: now() });
                let how = if guard.release_blocking().is_ok() { How::Kept } else { How::Lost };
                self.pen.write(&Event::Left { attempt, at: now(), how });
            }
        }
        self.members.iter_mut().for_each(|member| member.child.tell("go on"));
        wrong
    }

    fn acquire(&mut self, name: &str, capacity: u32, weight: u32) -> Result<(u64, Guard), AcquireError> {
        self.attempts += 1;
        let attempt = self.attempts;
        let lease = Duration::from_secs(30).as_nanos() as u64;
        let patience = Some(PATIENCE.as_nanos() as u64);
        let want = Want { name: name.into(), capacity, weight, lease, at_least: 0, patience, lazy: false };
        self.pen.write(&Event::Asks { attempt, at: now(), want });
        let acquire = self.cache.lock(name).wait_at_most(PATIENCE);
        let got = match name {
            "mutex" | "twin" => acquire.acquire_blocking(),
            "permits" => acquire.rule(Semaphore(3)).acquire_blocking(),
            _ => acquire.rule(ReadWrite.write()).acquire_blocking(),
        };
        let at = now();
        self.pen.write(&match &got {
            Ok(guard) => Event::Got { attempt, at, fence: guard.fence().to_u64() },
            Err(error) => Event::Failed { attempt, at, why: Failure::of(error) },
        });
        got.map(|guard| (attempt, guard))
    }

    /// Tells all, and waits for the answers of all. Who does not answer is killed.
    fn everybody(&mut self, told: &str, answer: &str) -> Vec<String> {
        let (heard, hear) = mpsc::channel();
        let deadline = Instant::now() + REST;
        let mut wrong = Vec::new();
        std::thread::scope(|threads| {
            let mut silent = Vec::new();
            for Member { process, child, .. } in &mut self.members {
                let (process, heard, pid) = (*process, heard.clone(), child.pid());
                child.tell(told);
                silent.push((process, pid));
                threads.spawn(move || _ = heard.send((process, child.heard().unwrap_or_default())));
            }
            while !silent.is_empty() {
                let Ok((process, line)) = hear.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
                    wrong.extend(silent.iter().map(|(process, _)| format!("process {process} does not come to rest")));
                    for (process, pid) in silent.drain(..) {
                        self.pen.write(&Event::Kills { process, at: now() });
                        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
                    }
                    break;
                };
                silent.retain(|other| other.0 != process);
                if line != answer {
                    wrong.push(format!("process {process} says: {line}"));
                }
            }
        });
        wrong
    }

    /// Ends all in good order.
    pub(crate) fn end(mut self) -> Vec<String> {
        self.everybody("end", "ended")
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.ended.store(true, SeqCst);
        if let Some(beats) = self.beats.take() {
            let _ = beats.join();
        }
    }
}
