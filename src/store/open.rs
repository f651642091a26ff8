//! The opening of a directory: its layout, its environments, and what this process adds to them.

use super::{
    commit::{worker::Worker, write_queue::WriteQueue},
    directory::{
        layout::{Directory, Layout, Wanted},
        registry::{DirectoryId, Registry},
    },
    entries::{eviction, memory_tier::MemoryTier, shard::Entries, table, use_table::UseTable},
    events::Events,
    lmdb::{env::Env, opening::Options},
    os::file_system::FileSystem,
    peers::{
        holdings::Holdings,
        instances::{self, Instances},
        listener::Sockets,
        wake_ups::WakeUps,
    },
    record::key::Secret,
    rows::{room, state::State, tables},
    shared::{Shared, Tidied},
};
use crate::error::Error;
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak, atomic::AtomicU64},
    time::{Duration, Instant},
};

/// Address space of all `entries/` together: the same in every process, and far above any budget. It is sparse.
const ENTRIES_MAP: usize = if usize::BITS >= 64 { 64 << 30 } else { 1 << 30 };

static OPEN: Registry<Shared> = Registry::new();

/// The settings of an opening.
pub(crate) struct Settings {
    /// `None`: a private directory, which is removed with the last handle.
    pub(crate) path: Option<PathBuf>,
    pub(crate) size: u64,
    pub(crate) memory: usize,
    pub(crate) patience: Duration,
    pub(crate) wanted: Wanted,
}

impl Shared {
    pub(crate) fn open(settings: &Settings) -> Result<Arc<Shared>, Error> {
        let temporary = settings.path.is_none();
        let path = match &settings.path {
            Some(path) => path.clone(),
            None => temporary_path(),
        };
        let fail = |error: std::io::Error| Error::Open { path: path.clone(), reason: error.to_string() };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&path);
        // The checks of the layout report everything else that is wrong with the path.
        let id = match made.and_then(|()| fs::metadata(&path)) {
            Ok(facts) => (facts.dev(), facts.ino()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Error::Open { path, reason: "it is not a directory; name another path".into() });
            }
            Err(error) => return Err(fail(error)),
        };
        let check = |shared: &Shared| match shared.forked() {
            true => Err(Error::Open {
                path: path.clone(),
                reason: "it was open when this process was forked: drop every handle from before the fork first".into(),
            }),
            false => Ok(()),
        };
        OPEN.open(id, check, || {
            let path = fs::canonicalize(&path).map_err(fail)?;
            let shared = Arc::new(open_files(&path, temporary, id, settings)?);
            let chores: Weak<Shared> = Arc::downgrade(&shared);
            shared.worker.serve(chores);
            Ok(shared)
        })
    }
}

fn open_files(path: &Path, temporary: bool, id: DirectoryId, settings: &Settings) -> Result<Shared, Error> {
    let worker = Arc::new(Worker::default());
    let opened = Directory::open(path, &settings.wanted, |directory, layout, alone| {
        if alone {
            instances::clear(&directory.run_path());
        }
        let state = open_state(directory, layout, alone, settings)?;
        let mut entries = Vec::new();
        for shard in 0..layout.shards as usize {
            let env = open_entries(directory, layout, shard, alone, settings)?;
            let path = directory.entries_path(shard, layout.entries[shard]);
            let reserving = directory.file_system == FileSystem::Reserving;
            entries.push((env, UseTable::open(&path, settings.size / u64::from(layout.shards), reserving)?));
        }
        if alone && settings.wanted.sync {
            std::iter::once(&state).chain(entries.iter().map(|(env, _)| env)).try_for_each(Env::sync)?;
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
    let instances = Arc::new(Instances::new(directory.run_path()));
    let sockets = Sockets::new(directory.run_path(), &instances);
    let queue = |env, make_room| WriteQueue::new(env, settings.patience, worker.clone(), make_room);
    Ok(Shared {
        temporary,
        secret: Secret::new(directory.layout().secret),
        offset: directory.layout().offset,
        state: Arc::new(State::new(queue(state, room::make_room), directory.layout().numbers)),
        entries: entries
            .into_iter()
            .map(|(env, uses)| Arc::new(Entries::new(queue(env, eviction::make_room), budget, uses)))
            .collect(),
        tier: MemoryTier::new(settings.memory),
        events: Events::default(),
        instances,
        wake_ups: WakeUps::new(Box::new(sockets.clone())),
        sockets,
        flights: Arc::default(),
        holdings: Holdings::default(),
        looked: Mutex::new(Instant::now()),
        tidied: Mutex::new(Tidied { all: Instant::now(), some: Instant::now() }),
        planned: AtomicU64::new(u64::MAX),
        began: Instant::now(),
        worker,
        directory,
        closing: OPEN.closing(id),
    })
}

/// A name that nobody can guess. The crate `tempfile` would add two crates for this line, and its removal on drop would
/// run in a forked child too.
fn temporary_path() -> PathBuf {
    std::env::temp_dir().join(format!("floodgate-{:032x}", rand::random::<u128>()))
}

/// A shard's part of the address space, in whole pages of any size.
fn entries_map(shards: u32) -> usize {
    const PAGE_MAX: usize = 64 << 10;
    ENTRIES_MAP / shards as usize / PAGE_MAX * PAGE_MAX
}

fn open_state(directory: &Directory, layout: &mut Layout, alone: bool, settings: &Settings) -> Result<Env, Error> {
    let options = Options {
        tables: &tables::TABLES,
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
        tables: &table::TABLES,
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

/// Opens an environment. Damaged files that no other process uses stay behind, and a fresh generation takes their
/// place.
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
