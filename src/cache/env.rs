//! One LMDB environment, and transactions that cannot leave the function that began them.

#![allow(unsafe_code)]

use super::{
    exits,
    gate::{Gate, Held},
    guard::{Found, Guard},
    opening::{self, Db, Opened, Options},
    sys,
};
use crate::error::Error;
use heed::{MdbError, RoTxn, RwTxn, WithTls};
use std::{io, marker::PhantomData, mem::ManuallyDrop, ops::Bound, path::Path, time::Duration};

/// How long a reader that has to waits for those who write, and its thread with it.
const AT_THE_GATE: Duration = Duration::from_millis(20);

/// A table of an environment, by its place in [`Options::tables`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table(pub(crate) usize);

/// An open environment with its gate.
pub(crate) struct Env {
    /// Closed by the drop of this.
    heed: ManuallyDrop<heed::Env<WithTls>>,
    tables: Vec<Db>,
    pub(crate) gate: Gate,
    map_size: usize,
    /// See [`Opened::shares_pid`].
    shares_pid: bool,
    /// See [`sys::forks`].
    forks: u32,
    guard: Option<Guard>,
}

impl Env {
    /// Opens an environment; alone, makes it if it is not there.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the files are not sound; beside others also if they are not those that the others use.
    pub(crate) fn open(path: &Path, options: &Options<'_>) -> Result<Env, Error> {
        sys::watch_forks();
        exits::watch_this_thread();
        let Opened { heed, tables, gate, files, shares_pid } = opening::open(path, options)?;
        let guard = options.guarded.map(|root| Guard::new(root, path, files)).transpose()?;
        Ok(Env {
            heed: ManuallyDrop::new(heed),
            tables,
            gate,
            map_size: options.map_size,
            shares_pid,
            forks: sys::forks(),
            guard,
        })
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
        self.guard.as_ref().is_some_and(Guard::is_orphaned)
    }

    /// Whether it was not found damaged, so that its files can be touched.
    pub(crate) fn is_sound(&self) -> bool {
        self.gate.check().is_ok()
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
            let before = rw.id() as u64 - 1;
            let mut txn = Txn { rw, env: self, written: false, _this_thread: PhantomData };
            let (result, changed) = f(&mut txn)?;
            // LMDB gives no number to a transaction in which nothing was written.
            let commits = changed && txn.written;
            if changed {
                txn.rw.commit().map_err(from_commit)?;
            }
            // What was read may be of another time by now, and so may what the commit has gone to: then nobody is told.
            self.check_time(before + u64::from(commits))?;
            Ok(result)
        });
        if let (Err(Error::Damaged), Some(guard)) = (&result, &self.guard) {
            self.condemn(guard);
        }
        result
    }

    fn begin(&self) -> Result<RwTxn<'_>, Error> {
        let begun = self.heed.write_txn();
        if self.guard.is_none() {
            return begun.map_err(from_heed);
        }
        let rw = begun.map_err(|error| match from_heed(error) {
            Error::Io(error) if error.raw_os_error().is_none_or(|code| code == libc::ENOMEM) => Error::Io(error),
            // Its last page is behind the end of the map, which is smaller than that of others.
            Error::Full if self.heed.info().map_size < self.map_size => Error::Full,
            _ => Error::Damaged,
        })?;
        // LMDB takes the number of a transaction from its lock file and the rest from the data file, and does not compare.
        self.check_time((rw.id() as u64).wrapping_sub(1))?;
        Ok(rw)
    }

    /// Whether the data file is of the time when this transaction was the last, and no process knows of a later time.
    ///
    /// One thing has the same numbers and goes unnoticed: a copy of the very last commit, written over the file while the
    /// next transaction is under way, whose pages are then lost.
    fn check_time(&self, last: u64) -> Result<(), Error> {
        let Some(guard) = &self.guard else { return Ok(()) };
        if guard.metas.end_with(last) && self.gate.is_not_behind(last) { Ok(()) } else { Err(Error::Damaged) }
    }

    fn condemn(&self, guard: &Guard) {
        if self.gate.condemn() {
            tell_of_loss(guard, "damaged");
        }
    }

    /// Looks after the files if nobody has for a hundredth of a second, so that those that were cut do not kill us. `now` is in
    /// ns of any clock, always the same.
    pub(crate) fn look_at(&self, now: u64) {
        if self.guard.as_ref().is_some_and(|guard| guard.is_due(now)) {
            self.look();
        }
    }

    /// Looks after the files.
    pub(crate) fn look(&self) {
        let Some(guard) = &self.guard else { return };
        if self.forked() || self.gate.is_shut() {
            return;
        }
        match guard.look() {
            Found::Intact | Found::Gone => {}
            Found::Cut => self.condemn(guard),
            Found::CutOff => self.give_up(guard),
        }
    }

    /// This process uses the environment no more, and does not even touch it.
    fn give_up(&self, guard: &Guard) {
        if self.gate.shut() {
            tell_of_loss(guard, "truncated");
            // Closing it would look into the lock file.
            std::mem::forget(heed::Env::clone(&self.heed));
        }
    }

    /// Runs `f` in a read transaction. It must not begin another one: heed's readers are one a thread.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        if self.shares_pid {
            return self.read_writing(f);
        }
        exits::watch_this_thread();
        let txn = self.heed.read_txn().map_err(from_heed)?;
        f(&Reader { ro: &txn, env: self, seen: txn.id() as u64 })
    }

    /// As `read`, in a write transaction that is not committed.
    fn read_writing<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let _held = self.gate.lock_for(AT_THE_GATE)?.ok_or(Error::Busy)?;
        let txn = self.heed.write_txn().map_err(from_heed)?;
        // Its own number is that of a commit which will not be.
        f(&Reader { ro: &txn, env: self, seen: txn.id() as u64 - 1 })
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

fn tell_of_loss(guard: &Guard, what: &str) {
    tracing::error!(
        path = %guard.path().display(),
        "{what}: no lock is granted any more; stop every process that uses the cache, the next one starts with empty files"
    );
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("path", &self.heed.path()).finish_non_exhaustive()
    }
}

/// A read transaction.
pub(crate) struct Reader<'e> {
    ro: &'e RoTxn<'e>,
    env: &'e Env,
    seen: u64,
}

impl Reader<'_> {
    /// The transaction whose commit it sees.
    pub(crate) fn seen(&self) -> u64 {
        self.seen
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<&[u8]>, Error> {
        self.env.tables[table.0].get(self.ro, key).map_err(from_heed)
    }

    pub(crate) fn len(&self, table: Table) -> Result<u64, Error> {
        self.env.tables[table.0].len(self.ro).map_err(from_heed)
    }

    /// Whether `f` finds what it looks for in a range.
    pub(crate) fn any(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        f: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<bool, Error> {
        any(&self.env.tables[table.0], self.ro, range, f)
    }

    #[cfg(test)]
    pub(crate) fn all(&self, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
        let rows = self.env.tables[table.0].iter(self.ro).unwrap();
        rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())).unwrap()).collect()
    }
}

fn any(
    db: &Db,
    txn: &RoTxn<'_>,
    range: (Bound<&[u8]>, Bound<&[u8]>),
    f: &mut dyn FnMut(&[u8], &[u8]) -> bool,
) -> Result<bool, Error> {
    for row in db.range(txn, &range).map_err(from_heed)? {
        let (key, value) = row.map_err(from_heed)?;
        if f(key, value) {
            return Ok(true);
        }
    }
    Ok(false)
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

    /// See [`Reader::any`].
    pub(crate) fn any(
        &self,
        table: Table,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        f: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<bool, Error> {
        any(&self.env.tables[table.0], &self.rw, range, f)
    }

    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.written = true;
        self.env.tables[table.0].put(&mut self.rw, key, value).map_err(from_heed)
    }

    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) -> Result<bool, Error> {
        let deleted = self.env.tables[table.0].delete(&mut self.rw, key).map_err(from_heed)?;
        self.written |= deleted;
        Ok(deleted)
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

    /// What stands under a key; if nothing does, what stands beside it, mostly behind.
    pub(crate) fn get_or_beside(&self, table: Table, key: &[u8]) -> Result<Result<&[u8], Option<&[u8]>>, Error> {
        let table = &self.env.tables[table.0];
        match table.get_greater_than_or_equal_to(&self.rw, key).map_err(from_heed)? {
            Some((found, value)) if found == key => Ok(Ok(value)),
            Some((_, next)) => Ok(Err(Some(next))),
            None => Ok(Err(table.get_lower_than(&self.rw, key).map_err(from_heed)?.map(|(_, previous)| previous))),
        }
    }

    /// Pages that the rows of a table occupy.
    pub(crate) fn pages(&self, table: Table) -> Result<usize, Error> {
        let stat = self.env.tables[table.0].stat(&self.rw).map_err(from_heed)?;
        Ok(stat.branch_pages + stat.leaf_pages + stat.overflow_pages)
    }
}

fn from_commit(error: heed::Error) -> Error {
    match from_heed(error) {
        // LMDB's word for a write that was cut short: a disk that is full all but a page.
        Error::Io(error) if error.raw_os_error() == Some(libc::EIO) => Error::Full,
        error => error,
    }
}

pub(super) fn from_heed(error: heed::Error) -> Error {
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
