//! One open generation of an environment: an LMDB environment of its own.

#![allow(unsafe_code)]

use super::{
    ending_threads,
    error::from_heed,
    file_identity::FileIdentity,
    files::{self, Files},
    gate::Gate,
    generations::Generations,
    opening::{Opened, Options},
    transaction::{Db, Reader, Txn, over_all},
};
use crate::{error::Error, store::os::fork};
use heed::{RwTxn, WithTls};
use rustix::fs::{FlockOperation, flock};
use std::{fs::File, mem::ManuallyDrop, path::Path, time::Duration};

/// How long a reader that must pass the gate waits for writers. Its thread blocks meanwhile.
const AT_THE_GATE: Duration = Duration::from_millis(20);

/// An open generation.
pub(super) struct Generation {
    /// The drop of [`Generation`] closes it.
    pub(super) heed: ManuallyDrop<heed::Env<WithTls>>,
    pub(super) number: u64,
    /// Its files were made by this opening.
    pub(super) is_new: bool,
    pub(super) tables: Vec<Db>,
    pub(super) files: Files,
    map_size: usize,
    page_size: u64,
    /// See [`Opened::shares_pid`].
    pub(super) shares_pid: bool,
    /// See [`fork::forks`].
    forks: u32,
    pub(super) identity: Option<FileIdentity>,
    /// Says that this process uses the generation, until the environment is closed.
    data: File,
}

impl Generation {
    pub(super) fn new(
        generations: &Generations,
        number: u64,
        options: &Options,
        opened: Opened,
    ) -> Result<Generation, Error> {
        let Opened { heed, tables, is_new, data, files, shares_pid } = opened;
        let paths = files::paths(generations.environment(), &generations.path(number));
        let identity =
            options.guarded.as_deref().map(|root| FileIdentity::new(root, &data, paths, files)).transpose()?;
        Ok(Generation {
            number,
            is_new,
            tables,
            files,
            map_size: options.map_size,
            page_size: heed.unnamed_database_stat().page_size.max(1).into(),
            shares_pid,
            forks: fork::forks(),
            identity,
            heed: ManuallyDrop::new(heed),
            data,
        })
    }

    pub(super) fn path(&self) -> &Path {
        self.heed.path()
    }

    /// The last transaction that was committed, over all generations.
    pub(super) fn last_transaction(&self) -> u64 {
        over_all(self.number, self.heed.info().last_txn_id as u64)
    }

    /// Runs `f` in a write transaction and commits it if `f` says so. The caller holds the gate.
    pub(super) fn write<T>(
        &self,
        gate: &Gate,
        f: impl FnOnce(&mut Txn<'_>) -> Result<(T, bool), Error>,
    ) -> Result<T, Error> {
        let rw = self.begin(gate)?;
        let before = rw.id() as u64 - 1;
        let mut txn = Txn::new(rw, &self.tables, self.number, gate);
        let (result, changed) = f(&mut txn)?;
        let commits = changed && txn.commit()?;
        // The files that were read, or that the commit went to, may have gone back in time meanwhile. Then no caller gets
        // the result.
        self.check_time(gate, before + u64::from(commits))?;
        Ok(result)
    }

    fn begin(&self, gate: &Gate) -> Result<RwTxn<'_>, Error> {
        let begun = self.heed.write_txn();
        if self.identity.is_none() {
            return begun.map_err(from_heed);
        }
        let rw = begun.map_err(|error| match from_heed(error) {
            Error::Io(error) if error.raw_os_error().is_none_or(|code| code == libc::ENOMEM) => Error::Io(error),
            // The last page is behind the end of the map, which is smaller than the maps of other processes.
            Error::Full if self.heed.info().map_size < self.map_size => Error::Full,
            _ => Error::Damaged,
        })?;
        // LMDB takes the number of a transaction from its lock file and the rest from the data file, and does not
        // compare the two.
        self.check_time(gate, (rw.id() as u64).wrapping_sub(1))?;
        Ok(rw)
    }

    /// Fails unless the data file is of the time when this transaction was the last, and no process knows of a later
    /// one.
    ///
    /// One thing has the same numbers and goes unnoticed: a copy of the very last commit, written over the file while the
    /// next transaction is under way, whose pages are then lost.
    fn check_time(&self, gate: &Gate, last: u64) -> Result<(), Error> {
        let Some(identity) = &self.identity else { return Ok(()) };
        if identity.metas.end_with(last) && gate.is_not_behind(last) { Ok(()) } else { Err(Error::Damaged) }
    }

    /// Runs `f` in a read transaction. `f` must not begin another one: heed has one reader for each thread.
    pub(super) fn read<T>(&self, gate: &Gate, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        if self.shares_pid {
            let _held = gate.lock_for(AT_THE_GATE)?.ok_or(Error::Busy)?;
            return self.read_writing(f);
        }
        ending_threads::watch_this_thread();
        let txn = self.heed.read_txn().map_err(from_heed)?;
        f(&Reader { ro: &txn, tables: &self.tables, seen: over_all(self.number, txn.id() as u64) })
    }

    /// As `read`, in a write transaction that is not committed. The caller holds the gate.
    pub(super) fn read_writing<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let txn = self.heed.write_txn().map_err(from_heed)?;
        // The transaction's own number is that of a commit that will not happen.
        f(&Reader { ro: &txn, tables: &self.tables, seen: over_all(self.number, txn.id() as u64 - 1) })
    }

    /// Writes the first rows of a generation that no other process can know of yet.
    pub(super) fn fill(&self, gate: &Gate, f: impl FnOnce(&mut Txn<'_>) -> Result<(), Error>) -> Result<(), Error> {
        let mut txn = Txn::new(self.heed.write_txn().map_err(from_heed)?, &self.tables, self.number, gate);
        f(&mut txn)?;
        txn.commit().map(drop)
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.heed.force_sync().map_err(from_heed)
    }

    /// Bytes of its data file.
    pub(super) fn bytes(&self) -> u64 {
        (self.heed.info().last_page_number as u64 + 1) * self.page_size
    }

    /// Pages of the map.
    pub(super) fn pages(&self) -> usize {
        self.map_size / self.page_size as usize
    }

    /// From now on, this process does not even touch its files: closing it would look into the lock file.
    pub(super) fn leave_open(&self) {
        std::mem::forget(heed::Env::clone(&self.heed));
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        let _closing = (self.forks == fork::forks()).then(ending_threads::wait_for_ending_threads);
        // SAFETY: nothing touches it after the drop.
        unsafe { ManuallyDrop::drop(&mut self.heed) };
        if self.forks == fork::forks() {
            // A forked child has the file open too, and would keep the lock.
            let _ = flock(&self.data, FlockOperation::Unlock);
        }
    }
}
