//! The opening of a directory: its layout, its environments, and what this process adds to them.

use super::{
    commit::{worker::Worker, write_queue::WriteQueue},
    directory::{
        layout::{Directory, Layout, Wanted},
        registry::{Closing, Registry},
        temporary::Temporary,
    },
    entries::{eviction, memory::memory_tier::MemoryTier, purges, shard::Entries, table, use_table::UseTable},
    events::Events,
    lmdb::{env::Env, generations::Generations, opening::Options},
    os::file_system::FileSystem,
    peers::{
        holdings::Holdings,
        instances::{self, Instances},
        listener::Sockets,
        wake_ups::WakeUps,
    },
    record::key::Secret,
    rows::{room, sequence, state::State, tables},
    shared::{Looked, Shared, Tidied, Workers},
};
use crate::error::Error;
use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::{Duration, Instant},
};

/// Address space of all `entries/` together: the same in every process, and far above any budget. It is sparse.
const ENTRIES_MAP: usize = if usize::BITS >= 64 { 64 << 30 } else { 1 << 30 };

static OPEN: Registry<Shared> = Registry::new();

/// The settings of an opening.
pub(crate) struct Settings {
    /// `None`: a private directory, which is removed with the last handle.
    pub(crate) path: Option<PathBuf>,
    pub(crate) memory: usize,
    pub(crate) patience: Duration,
    pub(crate) wanted: Wanted,
}

impl Shared {
    pub(crate) fn open(settings: &Settings) -> Result<Arc<Shared>, Error> {
        let (path, temporary) = match &settings.path {
            Some(path) => (path.clone(), None),
            None => {
                let parent = std::env::temp_dir();
                let made = Temporary::make(&parent).map_err(|error| Error::Open {
                    path: parent,
                    reason: format!("no temporary directory: {error}"),
                })?;
                (made.path().to_owned(), Some(made))
            }
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
        let opened = OPEN.open(id, check, |closing| {
            let path = fs::canonicalize(&path).map_err(fail)?;
            let shared = Arc::new(open_files(&path, temporary, closing, settings)?);
            shared.start_serving();
            Ok(shared)
        });
        if opened.is_err() && settings.path.is_none() {
            let _ = fs::remove_dir_all(&path);
        }
        opened
    }
}

fn open_files(
    path: &Path,
    temporary: Option<Temporary>,
    closing: Closing<Shared>,
    settings: &Settings,
) -> Result<Shared, Error> {
    let workers = Workers::new();
    let opened = Directory::open(path, &settings.wanted, |directory, layout, alone| {
        if alone {
            instances::clear(&directory.run_path());
        }
        let state = open_state(directory, layout, alone, settings)?;
        let options = entries_options(layout, settings);
        let mut entries = Vec::new();
        let of_shard = layout.size / u64::from(layout.shards);
        for (generation, shard) in layout.entries.iter_mut().zip(0..) {
            let path = directory.entries_path(shard);
            let env = open_environment(&path, &options, alone, generation)?;
            let reserving = directory.file_system == FileSystem::Reserving;
            entries.push((env, UseTable::open(&path, of_shard, reserving, alone)?));
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
    let budget = directory.layout().size / entries.len() as u64;
    let instances = Arc::new(Instances::new(directory.run_path()));
    let sockets = Sockets::new(directory.run_path(), &instances);
    let queue = |env: Env, worker: &Arc<Worker>, make_room| {
        let notified = worker.clone();
        env.on_change(move || {
            notified.notify();
        });
        WriteQueue::new(env, settings.patience, (worker.clone(), workers.watcher.clone()), make_room)
    };
    Ok(Shared {
        temporary,
        secret: Secret::new(directory.layout().secret),
        offset: directory.offset(),
        booted: directory.layout().offset,
        state: Arc::new(State::new(queue(state, &workers.state, room::make_room), directory.layout().numbers)),
        entries: entries
            .into_iter()
            .map(|(env, uses)| Arc::new(Entries::new(queue(env, &workers.entries, eviction::make_room), budget, uses)))
            .collect(),
        tier: MemoryTier::new(settings.memory),
        events: Events::default(),
        instances,
        wake_ups: WakeUps::new(Box::new(sockets.clone())),
        sockets,
        flights: Arc::default(),
        holdings: Holdings::default(),
        looked: Mutex::new(Looked { at_files: Instant::now(), for_dead: Instant::now() }),
        tidied: Mutex::new(Tidied { all: Instant::now(), some: Instant::now(), old: Instant::now() }),
        planned: AtomicU64::new(u64::MAX),
        began: Instant::now(),
        workers,
        directory,
        handles: Mutex::default(),
        closing,
        closed: Mutex::default(),
    })
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
        guarded: Some(directory.root().to_path_buf()),
        carry_over: sequence::carry_over,
    };
    let mut generation = layout.state;
    let env = open_environment(&directory.state_path(), &options, alone, &mut generation)?;
    match alone {
        true if generation != layout.state => layout.begin_state(generation),
        _ => layout.state = generation,
    }
    match env.is_new() {
        true => {
            layout.leap_over(env.last_number());
            sequence::begin(&env, layout.numbers)?;
        }
        false if alone && !sequence::is_known(&env)? => {
            tracing::error!(cache = %directory.root().display(), "the counter of fencing tokens is damaged: it leaps");
            layout.leap();
            layout.leap_over(env.last_number());
            sequence::begin(&env, layout.numbers)?;
        }
        false => {}
    }
    Ok(env)
}

fn entries_options(layout: &Layout, settings: &Settings) -> Options {
    Options {
        tables: &table::TABLES,
        map_size: entries_map(layout.shards),
        write_map: false,
        sync: settings.wanted.sync,
        guarded: None,
        carry_over: purges::carry_over,
    }
}

/// Opens an environment; `generation` is that of the last opening, then the current one. Damaged files that no other
/// process uses are replaced.
fn open_environment(path: &Path, options: &Options, alone: bool, generation: &mut u64) -> Result<Env, Error> {
    let opened = match alone {
        true => Env::open_alone(path, *generation, options),
        false => Env::open_beside(path, options),
    };
    let env = match opened {
        Err(Error::Damaged) if alone => {
            tracing::error!(path = %path.display(), "damaged: starting with empty files");
            Env::open_alone(path, Generations::of(path).next(*generation), options)?
        }
        opened => opened?,
    };
    *generation = env.generation();
    Ok(env)
}
