//! What happened to the locks, as each process wrote it down: one line an event, in a file of its own.
//!
//! All times are ns of the machine's boot time, the same clock in every process. The time before an action and the time
//! after it are both written, so that whatever happened in between happened between two known moments.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File},
    io::{self, Write},
    path::Path,
};
use tower_floodgate::{Error, lock::AcquireError};

/// A process by its number in a run; 0 is the parent.
pub(crate) type Process = u32;

/// An attempt to get a lock: its process, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) process: Process,
    pub(crate) attempt: u64,
}

/// Why an attempt ended without a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Failure {
    /// The patience was over, or the queue full.
    Busy,
    /// The cache could not be written in time.
    Cache,
    /// The cache's files, or the lock's record, are damaged.
    Damaged,
    /// Its future was dropped.
    Dropped,
}

impl Failure {
    /// # Panics
    ///
    /// If the cache has failed in another way than torture can explain.
    pub(crate) fn of(error: &AcquireError) -> Failure {
        match error {
            AcquireError::Busy { .. } | AcquireError::QueueFull { .. } => Failure::Busy,
            AcquireError::Cache(Error::Busy) => Failure::Cache,
            AcquireError::Cache(Error::Damaged | Error::DamagedLock { .. }) => Failure::Damaged,
            other => panic!("{other:?}"),
        }
    }
}

/// What a holder knows of its place at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum How {
    /// The release found the place: nobody else can have had it.
    Kept,
    /// The release did not find the place.
    Lost,
    /// The guard was dropped, which says nothing; or the release failed.
    Unknown,
}

/// One line. `at` is the time before what is about to happen (`Asks`, `Leaves`, `Stops`, `Kills`), or after what has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum Event {
    Asks {
        attempt: u64,
        at: u64,
        want: Want,
    },
    Got {
        attempt: u64,
        at: u64,
        fence: u64,
    },
    Failed {
        attempt: u64,
        at: u64,
        why: Failure,
    },
    /// The store took or refused what this holder wrote.
    Wrote {
        attempt: u64,
        at: u64,
        taken: bool,
    },
    /// The holder was told that it had lost its place.
    Told {
        attempt: u64,
        at: u64,
    },
    Leaves {
        attempt: u64,
        at: u64,
    },
    Left {
        attempt: u64,
        at: u64,
        how: How,
    },
    /// The process runs.
    Beat {
        at: u64,
    },
    Stops {
        process: Process,
        at: u64,
    },
    Continued {
        process: Process,
        at: u64,
    },
    Kills {
        process: Process,
        at: u64,
    },
    Gone {
        process: Process,
        at: u64,
    },
}

impl Event {
    pub(crate) fn at(&self) -> u64 {
        match *self {
            Event::Asks { at, .. }
            | Event::Got { at, .. }
            | Event::Failed { at, .. }
            | Event::Wrote { at, .. }
            | Event::Told { at, .. }
            | Event::Leaves { at, .. }
            | Event::Left { at, .. }
            | Event::Beat { at }
            | Event::Stops { at, .. }
            | Event::Continued { at, .. }
            | Event::Kills { at, .. }
            | Event::Gone { at, .. } => at,
        }
    }
}

/// What an attempt wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Want {
    pub(crate) name: String,
    /// The weights of all who hold it together with this one must not be more than this.
    pub(crate) capacity: u32,
    pub(crate) weight: u32,
    /// In ns.
    pub(crate) lease: u64,
    /// For how many ns it is held at least.
    pub(crate) at_least: u64,
    /// In ns; `None` waits for ever.
    pub(crate) patience: Option<u64>,
    /// It does not always stand in the line, or take what it is offered.
    pub(crate) lazy: bool,
}

pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Where one process writes.
#[derive(Debug)]
pub(crate) struct Pen(File);

impl Pen {
    pub(crate) fn new(directory: &Path, process: Process) -> io::Result<Pen> {
        Ok(Pen(File::options().append(true).create(true).open(directory.join(process.to_string()))?))
    }

    /// Writes a line that is whole or, if the process is killed meanwhile, without its end.
    pub(crate) fn write(&self, event: &impl Serialize) {
        let line = serde_json::to_string(event).expect("events are plain") + "\n";
        assert_eq!((&self.0).write(line.as_bytes()).expect("the history cannot be written"), line.len());
    }
}

/// The lines of all processes in a directory.
pub(crate) fn read<T: DeserializeOwned>(directory: &Path) -> io::Result<Vec<(Process, T)>> {
    let mut all = Vec::new();
    for file in fs::read_dir(directory)? {
        let file = file?;
        let Ok(process) = file.file_name().to_string_lossy().parse() else { continue };
        let text = fs::read_to_string(file.path())?;
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            all.push((process, serde_json::from_str(line)?));
        }
    }
    Ok(all)
}

/// A stretch of time: its begin belongs to it, its end does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) from: u64,
    pub(crate) to: u64,
}

impl Span {
    pub(crate) fn new(from: u64, to: u64) -> Span {
        Span { from, to: to.max(from) }
    }

    pub(crate) fn length(&self) -> u64 {
        self.to - self.from
    }

    pub(crate) fn and(&self, other: &Span) -> Span {
        let from = self.from.max(other.from);
        Span::new(from, self.to.min(other.to))
    }
}

/// All that is known of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) id: Id,
    pub(crate) want: Want,
    pub(crate) asked: u64,
    /// When it surely had it, and its fence.
    pub(crate) got: Option<(u64, u64)>,
    pub(crate) failed: Option<(u64, Failure)>,
    pub(crate) told: Option<u64>,
    /// When the store refused it first.
    pub(crate) refused: Option<u64>,
    pub(crate) leaves: Option<u64>,
    pub(crate) left: Option<(u64, How)>,
}

/// All that is known of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Life {
    /// From before it was stopped until after it was continued.
    pub(crate) stops: Vec<Span>,
    /// When it was running.
    pub(crate) beats: Vec<u64>,
    /// From before it was killed until it was gone.
    pub(crate) killed: Option<Span>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct History {
    /// In the order of asking.
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) lives: BTreeMap<Process, Life>,
}

impl History {
    /// # Panics
    ///
    /// If the lines make no sense, as when an attempt ends that never began.
    pub(crate) fn new(mut lines: Vec<(Process, Event)>) -> History {
        // Who is stopped and who continues it write in different files.
        lines.sort_by_key(|(_, event)| event.at());
        let mut attempts: HashMap<Id, Attempt> = HashMap::new();
        let mut lives: BTreeMap<Process, Life> = BTreeMap::new();
        let mut stopping: HashMap<Process, u64> = HashMap::new();
        let mut continued: HashMap<Process, u64> = HashMap::new();
        for (process, event) in lines {
            let mut of = |attempt, note: &dyn Fn(&mut Attempt)| {
                note(attempts.get_mut(&Id { process, attempt }).expect("it has asked"));
            };
            match event {
                Event::Asks { attempt, at: asked, want } => {
                    let id = Id { process, attempt };
                    let (got, failed, told, refused, leaves, left) = (None, None, None, None, None, None);
                    let attempt = Attempt { id, want, asked, got, failed, told, refused, leaves, left };
                    assert!(attempts.insert(id, attempt).is_none(), "{id:?} asked twice");
                }
                Event::Got { attempt, at, fence } => of(attempt, &|it| it.got = Some((at, fence))),
                Event::Failed { attempt, at, why } => of(attempt, &|it| it.failed = Some((at, why))),
                Event::Wrote { taken: true, .. } => {}
                Event::Wrote { attempt, at, taken: false } => of(attempt, &|it| _ = it.refused.get_or_insert(at)),
                Event::Told { attempt, at } => of(attempt, &|it| _ = it.told.get_or_insert(at)),
                Event::Leaves { attempt, at } => of(attempt, &|it| it.leaves = Some(at)),
                Event::Left { attempt, at, how } => of(attempt, &|it| _ = it.left.get_or_insert((at, how))),
                Event::Beat { at } => lives.entry(process).or_default().beats.push(at),
                Event::Stops { process, at } => _ = stopping.entry(process).or_insert(at),
                Event::Continued { process, at } => {
                    // It may have stopped itself again before it was written down that it was continued.
                    let before = continued.insert(process, at).unwrap_or(0);
                    let from = stopping.remove(&process).unwrap_or(before);
                    lives.entry(process).or_default().stops.push(Span::new(from, at));
                }
                Event::Kills { process, at } => {
                    // Twice, perhaps: by its parent and by itself.
                    lives.entry(process).or_default().killed.get_or_insert(Span::new(at, u64::MAX));
                }
                Event::Gone { process, at } => {
                    let life = lives.entry(process).or_default();
                    // Also a stopped process can be killed.
                    life.stops.extend(stopping.remove(&process).map(|from| Span::new(from, at)));
                    life.killed = life.killed.map(|killed| Span::new(killed.from, at));
                }
            }
        }
        for (process, from) in stopping {
            lives.entry(process).or_default().stops.push(Span::new(from, u64::MAX));
        }
        for life in lives.values_mut() {
            life.beats.sort_unstable();
            life.stops.sort_unstable();
        }
        let mut attempts: Vec<Attempt> = attempts.into_values().collect();
        attempts.sort_unstable_by_key(|attempt| (attempt.asked, attempt.id));
        History { attempts, lives }
    }

    /// When the process lived for the last time, as far as is known.
    pub(crate) fn end(&self, process: Process) -> u64 {
        let life = self.lives.get(&process);
        let killed = life.and_then(|life| life.killed).map(|killed| killed.from);
        killed.or_else(|| life?.beats.last().copied()).unwrap_or(u64::MAX)
    }
}
