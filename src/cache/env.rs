//! One LMDB environment: the check before it is opened, the opening ritual, and transactions that cannot leave the
//! function that began them.

#![allow(unsafe_code)]

use super::{
    exits,
    gate::{Gate, Held},
    sys,
};
use crate::error::Error;
use heed::{CommitOrAbort, Database, EnvFlags, EnvOpenOptions, MdbError, RoTxn, RwTxn, WithTls, types::Bytes};
use std::{
    fs::{self, File},
    io::{self, Read},
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::Bound,
    path::Path,
    time::Duration,
};

/// Readers a machine may have at once: one slot for each thread that ever read.
const MAX_READERS: u32 = 8192;

/// Bytes of LMDB's lock file: a cache line a reader, and a head.
const LOCK_SIZE: u64 = MAX_READERS as u64 * 64 + 4096;

/// How long an opening waits at the gate for those who write.
const OPENING: Duration = Duration::from_secs(2);

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
}

type Db = Database<'static, Bytes, Bytes>;

/// An open environment with its gate.
pub(crate) struct Env {
    /// Closed by the drop of this.
    heed: ManuallyDrop<heed::Env<WithTls>>,
    tables: Vec<Db>,
    pub(crate) gate: Gate,
    map_size: usize,
    /// See [`sys::forks`].
    forks: u32,
}

impl Env {
    pub(crate) fn open(path: &Path, options: &Options<'_>) -> Result<Env, Error> {
        sys::watch_forks();
        exits::watch_this_thread();
        fs::DirBuilder::new().recursive(true).create(path)?;
        let data = path.join("data.mdb");
        if options.alone {
            check_before_opening(&data)?;
        }
        // Mapped writable by LMDB: on a full disk, a reader's first look at a hole would kill the process.
        reserve(&path.join("lock.mdb"), LOCK_SIZE)?;
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
        sys::close_on_exec(&data)?;
        if options.write_map {
            reserve(&data, options.map_size as u64)?;
        }
        let gate = Gate::open(&path.join("gate"), options.alone)?;
        let tables = open_tables(&heed, &gate, options.tables)?;
        Ok(Env { heed: ManuallyDrop::new(heed), tables, gate, map_size: options.map_size, forks: sys::forks() })
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
        let mut txn =
            Txn { rw: self.heed.write_txn().map_err(from_heed)?, env: self, written: false, _this_thread: PhantomData };
        let (result, changed) = f(&mut txn)?;
        if changed {
            txn.rw.commit().map_err(from_commit)?;
        }
        Ok(result)
    }

    /// Runs `f` in a read transaction. It must not begin another one: heed's readers are one a thread.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        exits::watch_this_thread();
        let reader = Reader { ro: self.heed.read_txn().map_err(from_heed)?, env: self };
        f(&reader)
    }

    pub(crate) fn sync(&self) -> Result<(), Error> {
        self.heed.force_sync().map_err(from_heed)
    }

    pub(crate) fn clear_stale_readers(&self) {
        let _ = self.heed.clear_stale_readers();
    }

    /// Pages of the map.
    pub(crate) fn pages(&self) -> usize {
        self.map_size / self.heed.unnamed_database_stat().page_size.max(1) as usize
    }

    /// Closes the environment and returns when it is closed, so that it can be opened again.
    #[cfg(test)]
    pub(crate) fn close(self) {
        let closed = heed::Env::clone(&self.heed).prepare_for_closing();
        drop(self);
        closed.wait();
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        let _closing = (!self.forked()).then(exits::wait_for_ending_threads);
        // SAFETY: nothing touches it after the drop.
        unsafe { ManuallyDrop::drop(&mut self.heed) };
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

fn open_tables(heed: &heed::Env<WithTls>, gate: &Gate, names: &[&str]) -> Result<Vec<Db>, Error> {
    // Mostly they are there, and a process that is stopped while it writes is not in the way.
    let found = names.iter().map(|name| find_table(heed, name)).collect::<heed::Result<Option<Vec<_>>>>();
    if let Some(tables) = found.map_err(from_heed)? {
        return Ok(tables);
    }
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
fn check_before_opening(data: &Path) -> Result<(), Error> {
    let mut file = match File::open(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let length = file.metadata()?.len();
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
        _ => Error::Damaged,
    }
}

#[cfg(test)]
mod tests;
