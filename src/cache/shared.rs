//! What the handles of a process share: one opening of a directory, and its housekeeping.

use super::{
    Stats,
    calls::Calls,
    entries::{self, Entries},
    env::Env,
    events::Events,
    flights::Flights,
    keeper::{Bell, Chores, Farewell},
    lane::Lane,
    layout::{Directory, Layout, Wanted},
    listener::{Reached, Sockets},
    opening::Options,
    presence::Presence,
    record::{Key, Secret},
    state::{self, State},
    sys::FileSystem,
    tier::Tier,
    users::Opening,
};
use crate::{error::Error, time::nanos};
use std::{
    collections::HashMap,
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    ptr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};

/// How long the housekeeping thread waits at one gate before it looks at the others.
const SLICE: Duration = Duration::from_millis(5);
/// How often readers and files of dead processes are cleared away and expired entries swept.
const TIDY: Duration = Duration::from_secs(10);
/// How often the files are looked after.
const LOOK: Duration = Duration::from_secs(1);
/// Pause between the steps of the walk that follows a purge.
const WALK: Duration = Duration::from_millis(20);
/// Address space of all `entries/` together: the same in every process, and far above any budget. It is sparse.
const ENTRIES_MAP: usize = if usize::BITS >= 64 { 64 << 30 } else { 1 << 30 };

pub(crate) struct Settings {
    /// `None`: a private directory that goes with the last handle.
    pub(crate) path: Option<PathBuf>,
    pub(crate) size: u64,
    pub(crate) memory: usize,
    pub(crate) patience: Duration,
    pub(crate) wanted: Wanted,
}

/// One opening of a directory by this process.
pub(crate) struct Shared {
    temporary: bool,
    pub(crate) secret: Secret,
    /// Added to a clock's time to get the directory's.
    pub(crate) offset: u64,
    pub(crate) state: Arc<State>,
    pub(crate) entries: Vec<Arc<Entries>>,
    pub(crate) tier: Tier,
    pub(crate) events: Events,
    pub(crate) presence: Arc<Presence>,
    sockets: Arc<Sockets>,
    /// Who waits in this process for what may come from another.
    pub(crate) calls: Arc<Calls>,
    /// What is being computed in this process.
    pub(crate) flights: Arc<Flights>,
    /// What this process holds, by key.
    holdings: Mutex<HashMap<[u8; 16], Vec<Holding>>>,
    tidied: Mutex<Tidied>,
    looked: Mutex<Instant>,
    /// When the housekeeping thread wakes by itself, in ns since `began`.
    planned: AtomicU64,
    began: Instant,
    bell: Arc<Bell>,
    directory: Directory,
    // The last field, dropped after the environments are closed.
    closing: Closing,
}

/// When the housekeeping thread tidied last: everything, and where there was more to do.
struct Tidied {
    all: Instant,
    some: Instant,
}

/// Something this process holds and must renew from time to time.
pub(crate) struct Holding {
    /// Tells it apart from others.
    pub(crate) number: u64,
    /// Real time at which it wants to be renewed next, and how often.
    pub(crate) due: Instant,
    pub(crate) every: Duration,
    pub(crate) renew: Weak<dyn Renew>,
}

/// Renews what is held. Never blocks.
pub(crate) trait Renew: Send + Sync {
    fn renew(self: Arc<Self>);
}

/// One opening a directory and process: opening an LMDB file twice would silently drop its locks.
static OPEN: Mutex<Option<HashMap<(u64, u64), Weak<Shared>>>> = Mutex::new(None);
static CLOSED: Condvar = Condvar::new();

impl Shared {
    pub(crate) fn open(settings: &Settings) -> Result<Arc<Shared>, Error> {
        let temporary = settings.path.is_none();
        let path = match &settings.path {
            Some(path) => path.clone(),
            None => temporary_path(),
        };
        let fail = |error: std::io::Error| Error::Open { path: path.clone(), reason: error.to_string() };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        // What is wrong with it otherwise is said by the checks of the layout.
        let id = match made.and_then(|()| fs::metadata(&path)) {
            Ok(facts) => (facts.dev(), facts.ino()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::Open { path, reason: "it is not a directory; name another path".into() });
            }
            Err(error) => return Err(fail(error)),
        };
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match open.get_or_insert_default().get(&id).map(Weak::upgrade) {
                None => break,
                Some(Some(shared)) if shared.forked() => {
                    let reason =
                        "it was open when this process was forked: drop every handle from before the fork first";
                    return Err(Error::Open { path, reason: reason.into() });
                }
                Some(Some(shared)) => return Ok(shared),
                // Its last handle is gone, but its files are not closed yet.
                Some(None) => open = CLOSED.wait(open).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let path = fs::canonicalize(&path).map_err(fail)?;
        let shared = Arc::new(Self::open_files(&path, temporary, id, settings)?);
        let chores: Weak<Shared> = Arc::downgrade(&shared);
        shared.bell.serve(chores.clone());
        open.get_or_insert_default().insert(id, chores);
        Ok(shared)
    }

    fn open_files(path: &Path, temporary: bool, id: (u64, u64), settings: &Settings) -> Result<Shared, Error> {
        let bell = Arc::new(Bell::default());
        let opened = Directory::open(path, &settings.wanted, |directory, layout, alone| {
            let state = open_state(directory, layout, alone, settings)?;
            let mut entries = Vec::new();
            for shard in 0..layout.shards as usize {
                entries.push(open_entries(directory, layout, shard, alone, settings)?);
            }
            if alone && settings.wanted.sync {
                std::iter::once(&state).chain(&entries).try_for_each(Env::sync)?;
            }
            Ok((state, entries))
        });
        let (directory, (state, entries)) = opened.map_err(|error| match error {
            Error::Open { .. } => error,
            Error::Full => Error::Open {
                path: path.to_path_buf(),
                reason: "the disk has no room for its state, which is taken at once: make room, or make the directory \
                         with a smaller `Builder::state_size`"
                    .into(),
            },
            other => Error::Open { path: path.to_path_buf(), reason: other.to_string() },
        })?;
        let budget = settings.size / entries.len() as u64;
        let presence = Arc::new(Presence::new(directory.run_path()));
        let sockets = Sockets::new(directory.run_path(), &presence);
        let lane = |env, make_room| Lane::new(env, settings.patience, bell.clone(), make_room);
        Ok(Shared {
            temporary,
            secret: Secret::new(directory.layout().secret),
            offset: directory.layout().offset,
            state: Arc::new(State::new(lane(state, state::make_room), directory.layout().numbers)),
            entries: entries
                .into_iter()
                .map(|env| Arc::new(Entries::new(lane(env, entries::make_room), budget)))
                .collect(),
            tier: Tier::new(settings.memory),
            events: Events::default(),
            presence,
            calls: Calls::new(Box::new(sockets.clone())),
            sockets,
            flights: Arc::default(),
            holdings: Mutex::default(),
            looked: Mutex::new(Instant::now()),
            tidied: Mutex::new(Tidied { all: Instant::now(), some: Instant::now() }),
            planned: AtomicU64::new(u64::MAX),
            began: Instant::now(),
            bell,
            directory,
            closing: Closing { id, opening: None },
        })
    }

    /// Whether this process is a forked child of the one that opened it.
    fn forked(&self) -> bool {
        self.state.lane.env.forked()
    }

    /// Has the housekeeping thread let go before a handle does, see [`Farewell`].
    pub(crate) fn say_farewell(&self, farewell: &mut Farewell) {
        // The child of a fork has no such thread, though the bell may say that it is at work.
        if !self.forked() {
            farewell.begin();
        }
    }

    pub(crate) fn farewell(&self) -> Farewell {
        Farewell::new(&self.bell)
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.root()
    }

    pub(crate) fn shard(&self, key: &Key) -> &Arc<Entries> {
        &self.entries[key.hash[0] as usize % self.entries.len()]
    }

    /// Calls a waiter, in whichever process it waits. Never blocks.
    pub(crate) fn call(&self, instance: u64, number: u64) -> Reached {
        match self.presence.is_own(instance) || instance == 0 {
            true if self.calls.call(number) => Reached::Yes,
            // It is about to wait, and will find that it was called.
            true if instance != 0 => Reached::Yes,
            true => Reached::No,
            false => self.sockets.send(instance, number),
        }
    }

    /// Has the housekeeping thread renew something until it is released.
    pub(crate) fn hold(&self, key: &Key, holding: Holding) {
        let due = self.since_began(holding.due);
        self.holdings().entry(key.hash).or_default().push(holding);
        if due < self.planned.load(SeqCst) {
            self.bell.ring();
        }
    }

    /// Ends a holding: the one of this guard, since several may have the same number.
    pub(crate) fn release(&self, key: &Key, guard: &dyn Renew) {
        let mut holdings = self.holdings();
        let Some(held) = holdings.get_mut(&key.hash) else { return };
        if let Some(at) = held.iter().position(|holding| ptr::addr_eq(holding.renew.as_ptr(), guard)) {
            held.swap_remove(at);
        }
        if held.is_empty() {
            holdings.remove(&key.hash);
        }
    }

    /// The numbers of what this process holds under the key.
    pub(crate) fn held_here(&self, key: &Key) -> Vec<u64> {
        self.holdings().get(&key.hash).into_iter().flatten().map(|held| held.number).collect()
    }

    fn since_began(&self, time: Instant) -> u64 {
        nanos(time.saturating_duration_since(self.began))
    }

    fn holdings(&self) -> MutexGuard<'_, HashMap<[u8; 16], Vec<Holding>>> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats::of(&self.events);
        stats.cells_evicted = self.state.evicted.load(Relaxed);
        stats.damaged = self.state.damaged.load(Relaxed);
        stats.waiters_left_out = self.state.left_out.load(Relaxed);
        let crowd = self.calls.crowd();
        stats.lock_waiters = crowd.waiting as u64;
        stats.longest_wait = crowd.longest.unwrap_or_default();
        for shard in &self.entries {
            let (entries, bytes) = shard.size().unwrap_or_default();
            stats.entries += entries;
            stats.entry_bytes += bytes;
            stats.entries_evicted += shard.counts.evicted.load(Relaxed);
            stats.damaged += shard.counts.damaged.load(Relaxed);
        }
        stats
    }

    /// Renews what is due; when the next one will be.
    fn renew(&self) -> Duration {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut next = TIDY;
        for holding in self.holdings().values_mut().flatten() {
            if holding.due <= now {
                holding.due = now + holding.every;
                due.extend(holding.renew.upgrade());
            }
            next = next.min(holding.due - now);
        }
        due.into_iter().for_each(Renew::renew);
        next
    }

    fn look_after(&self) {
        let mut looked = self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.elapsed() < LOOK {
            return;
        }
        *looked = Instant::now();
        self.state.lane.env.look();
        self.presence.stay();
    }

    fn tidy(&self) -> Duration {
        let mut tidied = self.tidied.lock().unwrap_or_else(PoisonError::into_inner);
        let all = tidied.all.elapsed() >= TIDY;
        if !all && tidied.some.elapsed() < WALK {
            return WALK;
        }
        tidied.some = Instant::now();
        if all {
            tidied.all = tidied.some;
            self.lanes().for_each(|lane| lane.env.clear_stale_readers());
            self.presence.tidy();
        }
        let mut more = false;
        for shard in &self.entries {
            let untidy = shard.is_untidy();
            if all || untidy {
                shard.tidy();
            }
            more |= untidy;
        }
        if more { WALK } else { TIDY.saturating_sub(tidied.all.elapsed()) }
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.state.lane).chain(self.entries.iter().map(|shard| &shard.lane))
    }
}

impl Chores for Shared {
    fn work(&self) -> Duration {
        // Whoever holds something new from here on rings, unless it is due later than the plan.
        self.planned.store(u64::MAX, SeqCst);
        self.look_after();
        let next = self.renew().min(self.tidy()).min(LOOK);
        self.calls.be_heard();
        self.planned.store(self.since_began(Instant::now() + next), SeqCst);
        self.lanes().for_each(|lane| lane.serve(SLICE));
        if self.lanes().any(Lane::has_queued) { Duration::ZERO } else { next }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.forked() {
            // The files, the locks on them and what is queued are the parent's.
            return;
        }
        self.bell.close();
        self.calls.close();
        // What was queued is still wanted, but nobody waits for ever behind a stopped process.
        for lane in self.lanes() {
            lane.serve(Duration::from_millis(100));
            lane.shut();
        }
        if self.temporary {
            let _ = fs::remove_dir_all(self.path());
        } else {
            self.closing.opening = self.directory.close(|| self.lanes().all(|lane| lane.env.sync().is_ok()));
        }
    }
}

/// Dropped when everything is closed: the directory can then be opened again.
struct Closing {
    id: (u64, u64),
    /// Keeps other processes out until then.
    opening: Option<Opening>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.opening = None;
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.get_or_insert_default().remove(&self.id);
        CLOSED.notify_all();
    }
}

/// A name that nobody guesses. The crate tempfile would be two crates for this line: what else it has, a removal on drop,
/// a forked child would make too.
fn temporary_path() -> PathBuf {
    std::env::temp_dir().join(format!("floodgate-{:032x}", rand::random::<u128>()))
}

/// The share of a shard, in whole pages of any size.
fn entries_map(shards: u32) -> usize {
    const PAGE_MAX: usize = 64 << 10;
    ENTRIES_MAP / shards as usize / PAGE_MAX * PAGE_MAX
}

fn open_state(directory: &Directory, layout: &mut Layout, alone: bool, settings: &Settings) -> Result<Env, Error> {
    let options = Options {
        tables: &state::TABLES,
        map_size: usize::try_from(layout.state_size).map_err(|_| Error::Full)?,
        write_map: directory.file_system == FileSystem::Reserving,
        sync: settings.wanted.sync,
        alone,
        guarded: Some(directory.root()),
    };
    open_or_begin_anew(directory, &options, &mut layout.state, |generation| directory.state_path(generation))
}

fn open_entries(
    directory: &Directory,
    layout: &mut Layout,
    shard: usize,
    alone: bool,
    settings: &Settings,
) -> Result<Env, Error> {
    let options = Options {
        tables: &entries::TABLES,
        map_size: entries_map(layout.shards),
        write_map: false,
        sync: settings.wanted.sync,
        alone,
        guarded: None,
    };
    open_or_begin_anew(directory, &options, &mut layout.entries[shard], |generation| {
        directory.entries_path(shard, generation)
    })
}

/// Damaged files that nobody else uses are left behind for a fresh generation.
fn open_or_begin_anew(
    directory: &Directory,
    options: &Options<'_>,
    generation: &mut u64,
    path: impl Fn(u64) -> PathBuf,
) -> Result<Env, Error> {
    match Env::open(&path(*generation), options) {
        Err(Error::Damaged) if options.alone => {
            tracing::error!(path = %path(*generation).display(), "damaged: starting with empty files");
            *generation = directory.next_number(*generation);
            Env::open(&path(*generation), options)
        }
        opened => opened,
    }
}

#[cfg(test)]
mod tests;
