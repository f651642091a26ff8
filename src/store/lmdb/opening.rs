//! The opening of a generation. A process that is alone checks and creates it; beside other processes, nothing may be
//! changed.

#![allow(unsafe_code)]

use super::{
    error::from_heed,
    files::{self, FileState, Files, LOCK_SIZE, MAX_READERS},
    gate::{Gate, Held},
    generations::Generations,
    metas::metas_are_sound,
    transaction::{Db, Reader, Txn},
};
use crate::{
    error::Error,
    store::os::{blocks, syscalls},
};
use heed::{CommitOrAbort, EnvFlags, EnvOpenOptions, WithTls};
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long an opening waits at the gate for writers.
const OPENING: Duration = Duration::from_secs(2);

/// How long an opening beside other processes tries to read meta pages that do not change meanwhile.
const METAS: Duration = Duration::from_millis(250);

/// How to open an environment.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) tables: &'static [&'static str],
    pub(crate) map_size: usize,
    /// Write straight to the map, its blocks reserved so that a full disk does nothing to it.
    pub(crate) write_map: bool,
    /// Sync every commit.
    pub(crate) sync: bool,
    /// Set where a loss must not go unnoticed, nor a write fail for want of blocks, which are reserved: once the
    /// environment is found damaged, every process gives it up at once. The path is the cache's directory, without which
    /// the environment is of no use.
    pub(crate) guarded: Option<PathBuf>,
    /// What a new generation takes over from the one before.
    pub(crate) carry_over: CarryOver,
}

/// Writes the first rows of a new generation: out of the generation before, if that one can be read.
pub(crate) type CarryOver = fn(Option<&Reader<'_>>, &mut Txn<'_>) -> Result<(), Error>;

/// The parts of an open generation.
pub(super) struct Opened {
    pub(super) heed: heed::Env<WithTls>,
    pub(super) tables: Vec<Db>,
    /// Its files were made by this opening.
    pub(super) is_new: bool,
    /// Says that this process uses the generation, see [`Generations::hold`].
    pub(super) data: File,
    pub(super) files: Files,
    /// A process with the same pid reads it, so this one can read it only in write transactions.
    pub(super) shares_pid: bool,
}

/// Opens a generation that no other process uses, and creates the files that are missing.
pub(super) fn open_alone(generations: &Generations, number: u64, options: &Options) -> Result<Opened, Error> {
    let path = generations.path(number);
    let paths = files::paths(generations.environment(), &path);
    let [data, lock, _] = &paths;
    check_before_opening(data, true)?;
    // LMDB maps this file writable: on a full disk, a reader's first look at a hole would kill the process.
    reserve(lock, LOCK_SIZE)?;
    let (heed, shares_pid) = open_twice(&path, options)?;
    if options.write_map || options.guarded.is_some() {
        reserve(data, options.map_size as u64)?;
    }
    let files = Files::at(&paths, options.map_size)?;
    let found = find_tables(&heed, options.tables)?;
    let is_new = found.is_none();
    let tables = match found {
        Some(tables) => tables,
        None => make_tables(&heed, options.tables)?,
    };
    let data = generations.hold(number)?;
    Ok(Opened { heed, tables, is_new, data, files, shares_pid })
}

/// Opens the current generation beside other processes. Creates no file and lengthens none: LMDB would make an empty file
/// sound again, and the rows of all processes would be gone.
pub(super) fn open_beside(
    generations: &Generations,
    number: u64,
    options: &Options,
    gate: &Gate,
    held: Option<&Held<'_>>,
) -> Result<Opened, Error> {
    let path = generations.path(number);
    let paths = files::paths(generations.environment(), &path);
    let data = generations.hold(number).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => Error::Damaged,
        _ => Error::Io(error),
    })?;
    let ours = || {
        let files = Files::at(&paths, options.map_size).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Damaged,
            _ => Error::Io(error),
        })?;
        let sound = files.are(&gate.described()) && files.look(&paths) == FileState::Intact;
        if sound { Ok(files) } else { Err(Error::Damaged) }
    };
    let length = ours()?.length;
    if options.write_map && length != options.map_size as u64 {
        return Err(Error::Damaged);
    }
    let deadline = Instant::now() + METAS;
    loop {
        match check_before_opening(&paths[0], options.write_map) {
            // The meta pages change while they are read.
            Err(Error::Damaged) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            checked => break checked?,
        }
    }
    let (heed, shares_pid) = open_twice(&path, options)?;
    let files = ours()?;
    let tables = match shares_pid {
        true => {
            let _own = match held {
                Some(_) => None,
                None => Some(gate.lock_for(OPENING)?.ok_or(Error::Busy)?),
            };
            find_tables_writing(&heed, options.tables)?
        }
        false => find_tables(&heed, options.tables)?,
    };
    Ok(Opened { heed, tables: tables.ok_or(Error::Damaged)?, is_new: false, data, files, shares_pid })
}

/// Reserves disk blocks for a file that is mapped writable.
fn reserve(path: &Path, size: u64) -> Result<(), Error> {
    blocks::reserve(&File::options().read(true).write(true).create(true).truncate(false).open(path)?, size)
}

/// Opens the environment, and finds out whether it can be read only in write transactions.
fn open_twice(path: &Path, options: &Options) -> Result<(heed::Env<WithTls>, bool), Error> {
    // A dead predecessor with our pid (both are 1 in a container) left reader slots: only closing clears them.
    let first = open_heed(path, options)?;
    let shares_pid = match first.read_txn() {
        Ok(_) => false,
        // A living process with our pid, in another container: LMDB tells readers apart by their pids.
        Err(heed::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => true,
        Err(error) => return Err(from_heed(error)),
    };
    first.prepare_for_closing().wait();
    let heed = open_heed(path, options)?;
    if !shares_pid {
        heed.clear_stale_readers().map_err(from_heed)?;
    }
    syscalls::close_on_exec(&path.join("data.mdb"))?;
    Ok((heed, shares_pid))
}

fn open_heed(path: &Path, options: &Options) -> Result<heed::Env<WithTls>, Error> {
    let mut flags = EnvFlags::empty();
    if !options.sync {
        flags |= EnvFlags::NO_SYNC;
    }
    if options.write_map {
        flags |= EnvFlags::WRITE_MAP;
    }
    let mut map_size = options.map_size;
    loop {
        let mut open = EnvOpenOptions::new();
        open.map_size(map_size).max_dbs(options.tables.len() as u32).max_readers(MAX_READERS);
        // SAFETY: the flags are sound for what is stored (`write_map` only with reserved blocks, `NO_SYNC` only for
        // files that a crash of the machine retires); the directory is private to this user, and only this crate, which
        // registers every directory once per process, opens what is in it.
        let opened = unsafe {
            open.flags(flags);
            open.open(path)
        };
        match opened {
            // Address space may be limited; the map of `entries/` is far larger than what it holds.
            Err(heed::Error::Io(error))
                if error.kind() == io::ErrorKind::OutOfMemory && !options.write_map && map_size > 1 << 28 =>
            {
                map_size /= 2;
            }
            opened => return opened.map_err(from_heed),
        }
    }
}

/// Opens the tables; `None` if one of them is missing.
fn find_tables(heed: &heed::Env<WithTls>, names: &[&str]) -> Result<Option<Vec<Db>>, Error> {
    names.iter().map(|name| find_table(heed, name)).collect::<heed::Result<_>>().map_err(from_heed)
}

/// As `find_tables`, for a process that cannot begin a read transaction. It holds the gate.
fn find_tables_writing(heed: &heed::Env<WithTls>, names: &[&str]) -> Result<Option<Vec<Db>>, Error> {
    names.iter().map(|name| find_table_writing(heed, name)).collect::<heed::Result<_>>().map_err(from_heed)
}

fn make_tables(heed: &heed::Env<WithTls>, names: &[&str]) -> Result<Vec<Db>, Error> {
    names.iter().map(|name| make_table(heed, name).map_err(from_heed)?.ok_or(Error::Damaged)).collect()
}

/// The empty name stands for the table that has none.
fn named(table: &str) -> Option<&str> {
    Some(table).filter(|table| !table.is_empty())
}

fn find_table(heed: &heed::Env<WithTls>, name: &str) -> heed::Result<Option<Db>> {
    let opened = heed.open_databases_and_commit(heed.read_txn()?, |databases, txn| {
        databases.open_database(txn, named(name)).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(opened.commit().flatten())
}

fn find_table_writing(heed: &heed::Env<WithTls>, name: &str) -> heed::Result<Option<Db>> {
    let opened = heed.create_databases_and_commit(heed.write_txn()?, |databases, txn| {
        databases.open_database(txn, named(name)).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(opened.commit().flatten())
}

fn make_table(heed: &heed::Env<WithTls>, name: &str) -> heed::Result<Option<Db>> {
    let opened = heed.create_databases_and_commit(heed.write_txn()?, |databases, txn| {
        databases.create_database(txn, named(name)).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(opened.commit())
}

/// LMDB trusts its files: a short one opens well and then kills the process. This checks the two meta pages first, and
/// with `whole` the file's length as well.
fn check_before_opening(data: &Path, whole: bool) -> Result<(), Error> {
    let mut file = match File::open(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let length = if whole { file.metadata()?.len() } else { u64::MAX };
    let mut head = Vec::new();
    file.by_ref().take(2 * 65_536).read_to_end(&mut head)?;
    if metas_are_sound(&head, length) { Ok(()) } else { Err(Error::Damaged) }
}
