//! One LMDB environment: the check before it is opened, the opening ritual, and transactions that cannot leave the
//! function that began them.

#![allow(unsafe_code)]

use super::{
    files::{self, Files, Found, Id},
    gate::{Gate, Held},
    sys,
};
use crate::{error::Error, hush::Hush};
use heed::{CommitOrAbort, Database, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithTls, types::Bytes};
use std::{
    fs::{self, File},
    io::{self, Read},
    marker::PhantomData,
    ops::Bound,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Readers a machine may have at once: one slot for each thread that ever read.
const MAX_READERS: u32 = 8192;

/// Bytes of LMDB's lock file: a cache line a reader, and a head.
pub(crate) const LOCK_SIZE: u64 = MAX_READERS as u64 * 64 + 4096;

/// How long an opening waits at the gate for those who write.
const OPENING: Duration = Duration::from_secs(2);

/// How long an opening beside others tries to read metas that do not change meanwhile.
const METAS: Duration = Duration::from_millis(250);

/// How old the last look at the files may be when something is written, in ns.
const LOOK_EVERY: u64 = Duration::from_millis(100).as_nanos() as u64;

/// A table of an environment, by its place in [`Options::tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table(pub(crate) usize);

/// How to open an environment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options<'a> {
    pub(crate) tables: &'a [&'static str],
    pub(crate) map_size: usize,
    /// Write straight to the map, its blocks reserved so that a full disk does nothing to it.
    pub(crate) write_map: bool,
    /// Sync every commit.
    pub(crate) sync: bool,
    /// Nobody else has it open.
    pub(crate) alone: bool,
    /// What is lost here must not go unnoticed: found damaged, the environment is given up by every process at once.
    /// That is the cache's directory, which it stands and falls with.
    pub(crate) guarded: Option<&'a Path>,
}

type Db = Database<'static, Bytes, Bytes>;

/// An open environment with its gate.
pub(crate) struct Env {
    heed: heed::Env<WithTls>,
    tables: Vec<Db>,
    pub(crate) gate: Gate,
    map_size: usize,
    /// See [`sys::forks`].
    forks: u32,
    guard: Option<Guard>,
}

/// What is known of an environment that is to be given up when it is found damaged.
struct Guard {
    root: PathBuf,
    root_id: Id,
    /// Others may have made another directory in its place.
    orphaned: AtomicBool,
    path: PathBuf,
    files: Files,
    /// Bytes that the data file had, and never has fewer.
    least: u64,
    /// The last transaction that this process has seen, which no later one is behind.
    newest: AtomicU64,
    /// When its files were looked at, by the clock of those who write.
    looked: AtomicU64,
    gone: Hush,
}

impl Env {
    /// Opens an environment; alone, makes it if it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the files are not sound; beside others also if they are not those that the others use.
    pub(crate) fn open(path: &Path, options: &Options<'_>) -> Result<Env, Error> {
        sys::watch_forks();
        let gate_path = path.join("gate");
        let (gate, (heed, tables, files));
        if options.alone {
            match fs::DirBuilder::new().recursive(true).create(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Damaged),
                made => made?,
            }
            Files::check_kinds(path)?;
            gate = Gate::open(&gate_path, true)?;
            (heed, tables, files) = gate.survive(|| open_alone(path, options, &gate))?;
        } else {
            gate = Gate::open(&gate_path, false)?;
            (heed, tables, files) = open_beside(path, options, &gate)?;
        }
        let guard = |root: &Path| -> io::Result<Guard> {
            Ok(Guard {
                root: root.to_path_buf(),
                root_id: files::id_of(&fs::metadata(root)?),
                orphaned: AtomicBool::new(false),
                path: path.to_path_buf(),
                files,
                // Reserved as a whole, or growing.
                least: if options.write_map { files.map_size } else { files.length },
                newest: AtomicU64::new(0),
                looked: AtomicU64::new(0),
                gone: Hush::new(),
            })
        };
        let guard = options.guarded.map(guard).transpose()?;
        Ok(Env { heed, tables, gate, map_size: options.map_size, forks: sys::forks(), guard })
    }

    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        self.heed.path()
    }

    /// The last transaction that was committed, by any process. Some nanoseconds.
    pub(crate) fn last_transaction(&self) -> u64 {
        self.heed.info().last_txn_id as u64
    }

    /// Whether this process is a forked child of the one that opened it.
    pub(crate) fn forked(&self) -> bool {
        self.forks != sys::forks()
    }

    /// Whether the cache's directory was removed or replaced. What is held can be renewed and released, since others may hold
    /// on to the same files, but nothing may be granted.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.orphaned.load(Relaxed))
    }

    /// Whether it is not to be touched any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.gate.is_shut()
    }

    /// Runs `f` in a write transaction and commits it if `f` says so. One synchronous call on one thread: heed's
    /// transaction is `Send`, but committing it elsewhere silently blocks every process of the machine.
    pub(crate) fn write<T>(
        &self,
        _held: &Held<'_>,
        f: impl FnOnce(&mut Txn<'_>) -> Result<(T, bool), Error>,
    ) -> Result<T, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        let result = self.begin().and_then(|rw| {
            let mut txn = Txn { rw, env: self, written: false, _this_thread: PhantomData };
            let (result, changed) = f(&mut txn)?;
            if changed {
                txn.rw.commit().map_err(from_commit)?;
            }
            Ok(result)
        });
        if let (Err(Error::Damaged), Some(guard)) = (&result, &self.guard) {
            self.condemn(guard);
        }
        result
    }

    fn begin(&self) -> Result<RwTxn<'_>, Error> {
        let begun = self.heed.write_txn();
        let Some(guard) = &self.guard else { return begun.map_err(from_heed) };
        let rw = begun.map_err(|error| match from_heed(error) {
            Error::Io(error) if error.raw_os_error().is_none_or(|code| code == libc::ENOMEM) => Error::Io(error),
            // Its last page is behind the end of the map, which is smaller than that of others.
            Error::Full if self.heed.info().map_size < self.map_size => Error::Full,
            _ => Error::Damaged,
        })?;
        // LMDB takes the number of a transaction from its lock file and the rest from the data file, and does not compare.
        let id = rw.id() as u64;
        if id.checked_sub(1) != Some(self.last_transaction()) || id < guard.newest.fetch_max(id, Relaxed) {
            return Err(Error::Damaged);
        }
        Ok(rw)
    }

    fn condemn(&self, guard: &Guard) {
        if self.gate.condemn() {
            tracing::error!(
                path = %guard.path.display(),
                "damaged: no lock is granted any more; stop every process that uses the cache, the next one starts with empty files"
            );
        }
    }

    /// Looks after the files if nobody has for a tenth of a second, so that those that were cut do not kill us. `now` is in
    /// ns of any clock, always the same.
    pub(crate) fn look_at(&self, now: u64) {
        let Some(guard) = &self.guard else { return };
        let last = guard.looked.load(Relaxed);
        if now.wrapping_sub(last) >= LOOK_EVERY && guard.looked.compare_exchange(last, now, Relaxed, Relaxed).is_ok() {
            self.look();
        }
    }

    /// Looks after the files.
    pub(crate) fn look(&self) {
        let Some(guard) = &self.guard else { return };
        if self.forked() || self.gate.is_shut() {
            return;
        }
        let there = fs::metadata(&guard.root).map(|facts| files::id_of(&facts) == guard.root_id);
        if !there.unwrap_or_else(|error| error.kind() != io::ErrorKind::NotFound) && !guard.orphaned.swap(true, Relaxed)
        {
            tracing::error!(
                path = %guard.root.display(),
                "removed or replaced while in use: no lock is granted any more; stop every process that uses it"
            );
        }
        match guard.files.look(&guard.path, guard.least) {
            Found::Intact => {}
            Found::Gone => {
                if guard.gone.due() {
                    tracing::error!(
                        path = %guard.path.display(),
                        "removed or replaced while in use: no other process can join until every one that uses the cache has \
                         been stopped"
                    );
                }
            }
            Found::Cut => self.condemn(guard),
            Found::CutOff => self.give_up("a file of it was truncated"),
        }
    }

    /// This process uses the environment no more, and does not even touch it.
    pub(crate) fn give_up(&self, why: &str) {
        if self.gate.shut() {
            tracing::error!(path = %self.heed.path().display(), why, "given up: stop every process that uses the cache");
            // Closing it would look into the lock file.
            std::mem::forget(self.heed.clone());
        }
    }

    /// Runs `f` in a read transaction. It must not begin another one: heed's readers are one a thread.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        let reader = Reader { ro: self.heed.read_txn().map_err(from_heed)?, env: self };
        f(&reader)
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        if self.gate.is_shut() {
            return Err(Error::Damaged);
        }
        self.heed.force_sync().map_err(from_heed)
    }

    pub(crate) fn clear_stale_readers(&self) {
        if !self.gate.is_shut() {
            let _ = self.heed.clear_stale_readers();
        }
    }

    /// Pages of the map.
    pub(crate) fn pages(&self) -> usize {
        self.map_size / self.heed.unnamed_database_stat().page_size.max(1) as usize
    }

    /// Closes the environment and returns when it is closed, so that it can be opened again.
    #[cfg(test)]
    pub(crate) fn close(self) {
        self.heed.prepare_for_closing().wait();
    }
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("path", &self.heed.path()).finish_non_exhaustive()
    }
}

/// A read transaction.
pub(crate) struct Reader<'e> {
    ro: RoTxn<'e, WithTls>,
    env: &'e Env,
}

impl Reader<'_> {
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        self.env.tables[table.0].get(&self.ro, key).map_err(from_heed)
    }

    pub(crate) fn len(&self, table: Table) -> Result<u64, Error> {
        self.env.tables[table.0].len(&self.ro).map_err(from_heed)
    }

    #[cfg(test)]
    pub(crate) fn all(&self, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
        let rows = self.env.tables[table.0].iter(&self.ro).unwrap();
        rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
    }
}

/// A write transaction.
pub(crate) struct Txn<'e> {
    rw: RwTxn<'e>,
    env: &'e Env,
    written: bool,
    _this_thread: PhantomData<*const ()>,
}

impl Txn<'_> {
    /// The transaction whose commit it sees. `None`: it sees what it has written itself, which may never be committed.
    pub(crate) fn seen(&self) -> Option<u64> {
        (!self.written).then(|| self.rw.id() as u64 - 1)
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        self.env.tables[table.0].get(&self.rw, key).map_err(from_heed)
    }

    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.written = true;
        self.env.tables[table.0].put(&mut self.rw, key, value).map_err(from_heed)
    }

    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, Error> {
        self.written = true;
        self.env.tables[table.0].delete(&mut self.rw, key).map_err(from_heed)
    }

    /// Up to `most` rows from `from` on (`None`: from the first), as `f` sees fit to keep them.
    pub(crate) fn rows<T>(
        &self,
        table: Table,
        from: Bound<&[u8]>,
        most: usize,
        mut f: impl FnMut(&[u8], &[u8]) -> T,
    ) -> Result<Vec<T>, Error> {
        self.rows_within(table, (from, Bound::Unbounded), most, |key, value| Some(f(key, value)))
    }

    /// The first `most` rows of a range that `f` keeps.
    pub(crate) fn rows_within<T>(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        most: usize,
        mut f: impl FnMut(&[u8], &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let rows = self.env.tables[table.0].range(&self.rw, &range).map_err(from_heed)?;
        let kept = rows.filter_map(|row| row.map(|(key, value)| f(key, value)).map_err(from_heed).transpose());
        kept.take(most).collect()
    }

    pub(crate) fn len(&self, table: Table) -> Result<u64, Error> {
        self.env.tables[table.0].len(&self.rw).map_err(from_heed)
    }

    /// Whether a table in which there is nothing under a key looks as if that were true: it is empty, which is written on
    /// another page, or what is beside the key is sound in the eyes of `is_sound`. Damage that makes a key disappear has
    /// mostly garbled its neighbours.
    pub(crate) fn bears_out(&self, table: Table, key: &[u8], is_sound: impl Fn(&[u8]) -> bool) -> Result<bool, Error> {
        if self.len(table)? == 0 {
            return Ok(true);
        }
        let table = &self.env.tables[table.0];
        let beside = match table.get_greater_than(&self.rw, key).map_err(from_heed)? {
            Some(next) => Some(next),
            None => table.get_lower_than(&self.rw, key).map_err(from_heed)?,
        };
        Ok(beside.is_some_and(|(_, value)| is_sound(value)))
    }

    /// Pages that the rows of a table occupy.
    pub(crate) fn pages(&self, table: Table) -> Result<usize, Error> {
        let stat = self.env.tables[table.0].stat(&self.rw).map_err(from_heed)?;
        Ok(stat.branch_pages + stat.leaf_pages + stat.overflow_pages)
    }
}

/// Takes the disk's blocks for a file that is mapped writable, where the file system can.
fn reserve(path: &Path, size: u64) -> Result<(), Error> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(rustix::io::Errno::NOSPC) => Err(Error::Full),
        reserved => reserved.map_err(|error| io::Error::from(error).into()),
    }
}

type Opened = (heed::Env<WithTls>, Vec<Db>, Files);

/// Makes what is not there, and writes down in the gate what the environment is made of.
fn open_alone(path: &Path, options: &Options<'_>, gate: &Gate) -> Result<Opened, Error> {
    let data = path.join("data.mdb");
    check_before_opening(&data, true)?;
    // Mapped writable by LMDB: on a full disk, a reader's first look at a hole would kill the process.
    reserve(&path.join("lock.mdb"), LOCK_SIZE)?;
    let heed = open_twice(path, options)?;
    if options.write_map {
        reserve(&data, options.map_size as u64)?;
    }
    let files = Files::at(path, options.map_size)?;
    gate.describe(&files);
    let tables = match find_tables(&heed, options.tables)? {
        Some(tables) => tables,
        None => make_tables(&heed, gate, options.tables)?,
    };
    Ok((heed, tables, files))
}

/// Makes and lengthens nothing: LMDB would make an empty file sound again, and everybody's rows would be gone.
fn open_beside(path: &Path, options: &Options<'_>, gate: &Gate) -> Result<Opened, Error> {
    let data = path.join("data.mdb");
    let ours = || {
        let files = Files::at(path, options.map_size).map_err(|_| Error::Damaged)?;
        let sound = files.are(&gate.described()) && files.look(path, 0) == Found::Intact;
        if sound { Ok(files) } else { Err(Error::Damaged) }
    };
    let length = ours()?.length;
    if options.write_map && length != options.map_size as u64 {
        return Err(Error::Damaged);
    }
    let deadline = Instant::now() + METAS;
    loop {
        match check_before_opening(&data, options.write_map) {
            // They change while they are read.
            Err(Error::Damaged) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            checked => break checked?,
        }
    }
    let heed = open_twice(path, options)?;
    let files = ours()?;
    let tables = find_tables(&heed, options.tables)?.ok_or(Error::Damaged)?;
    Ok((heed, tables, files))
}

fn open_twice(path: &Path, options: &Options<'_>) -> Result<heed::Env<WithTls>, Error> {
    // A dead predecessor with our pid (both are 1 in a container) left reader slots: only closing clears them.
    let first = open_heed(path, options)?;
    drop(first.read_txn().map_err(|error| match error {
        heed::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock => Error::Io(io::Error::other(
            "a process with the same process id uses it, as in two containers; start one with another id",
        )),
        error => from_heed(error),
    })?);
    first.prepare_for_closing().wait();
    let heed = open_heed(path, options)?;
    heed.clear_stale_readers().map_err(from_heed)?;
    sys::close_on_exec(&path.join("data.mdb"))?;
    Ok(heed)
}

fn open_heed(path: &Path, options: &Options<'_>) -> Result<heed::Env<WithTls>, Error> {
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
        // SAFETY: the flags are sound for what is stored (`write_map` only with reserved blocks, `NO_SYNC` only for files
        // that a crash of the machine retires); the directory is private to this user, and only this crate, which
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

/// `None` if one of them is not there.
fn find_tables(heed: &heed::Env<WithTls>, names: &[&str]) -> Result<Option<Vec<Db>>, Error> {
    names.iter().map(|name| find_table(heed, name)).collect::<heed::Result<_>>().map_err(from_heed)
}

fn make_tables(heed: &heed::Env<WithTls>, gate: &Gate, names: &[&str]) -> Result<Vec<Db>, Error> {
    let _held = gate.lock_for(OPENING)?.ok_or(Error::Busy)?;
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

fn make_table(heed: &heed::Env<WithTls>, name: &str) -> heed::Result<Option<Db>> {
    let opened = heed.create_databases_and_commit(heed.write_txn()?, |databases, txn| {
        databases.create_database(txn, named(name)).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(opened.commit())
}

/// LMDB trusts its files: a short one opens well and then kills the process. This reads the two meta pages first.
/// `whole`: and its length.
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

/// Offsets within a 64-bit LMDB 0.9 meta page, behind the 16-byte page header: magic, version, (address), map size, two
/// database records of 48 bytes whose first field is the page size and last the root, last page, transaction id.
fn metas_are_sound(head: &[u8], length: u64) -> bool {
    const MAGIC: u32 = 0xBEEF_C0DE;
    const NO_PAGE: u64 = u64::MAX;
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| super::record::u64_at(head, at);
    let page_size = u32_at(16 + 24).unwrap_or(0);
    if !(512..=65_536).contains(&page_size) || !page_size.is_power_of_two() {
        return false;
    }
    let meta = |page: usize| {
        let at = page * page_size as usize + 16;
        let last_page = u64_at(at + 120)?;
        let roots_fit = [at + 24 + 40, at + 72 + 40]
            .into_iter()
            .all(|root| u64_at(root).is_some_and(|root| root == NO_PAGE || root <= last_page));
        let sound = u32_at(at)? == MAGIC && u32_at(at + 4)? == 1 && u32_at(at + 24)? == page_size;
        sound.then_some((u64_at(at + 128)?, last_page, roots_fit))
    };
    let (Some(a), Some(b)) = (meta(0), meta(1)) else { return false };
    // The older one may have been half overwritten by a commit that was killed: LMDB will not use it.
    let (_, last_page, roots_fit) = if a.0 >= b.0 { a } else { b };
    roots_fit
        && a.0.abs_diff(b.0) <= 1
        && last_page
            .checked_add(1)
            .and_then(|pages| pages.checked_mul(page_size.into()))
            .is_some_and(|bytes| bytes <= length)
}

fn from_commit(error: heed::Error) -> Error {
    match from_heed(error) {
        // LMDB's word for a write that was cut short: a disk that is full all but a page.
        Error::Io(error) if error.raw_os_error() == Some(libc::EIO) => Error::Full,
        error => error,
    }
}

fn from_heed(error: heed::Error) -> Error {
    match error {
        heed::Error::Io(error) if error.kind() == io::ErrorKind::StorageFull => Error::Full,
        heed::Error::Io(error) => Error::Io(error),
        heed::Error::Mdb(MdbError::MapFull | MdbError::TxnFull | MdbError::ReadersFull | MdbError::MapResized) => {
            Error::Full
        }
        heed::Error::EnvAlreadyOpened => Error::Busy,
        // A write failed on the way to the disk. The files are as before; this process would have to open them again.
        heed::Error::Mdb(MdbError::Panic) => Error::Io(io::Error::other("a write failed: restart the process")),
        _ => Error::Damaged,
    }
}

#[cfg(test)]
mod tests;
