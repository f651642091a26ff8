//! One LMDB environment.

#![allow(unsafe_code)]

use super::{
    ending_threads,
    error::from_heed,
    file_identity::FileIdentity,
    files::FileState,
    gate::{Gate, Held},
    opening::{self, Opened, Options},
    transaction::{Db, Reader, Txn},
};
use crate::{error::Error, store::os::fork};
use heed::{RwTxn, WithTls};
use std::{mem::ManuallyDrop, path::Path, time::Duration};

/// How long a reader that must pass the gate waits for writers. Its thread blocks meanwhile.
const AT_THE_GATE: Duration = Duration::from_millis(20);

/// An open environment with its gate.
pub(crate) struct Env {
    /// The drop of [`Env`] closes it.
    heed: ManuallyDrop<heed::Env<WithTls>>,
    tables: Vec<Db>,
    pub(crate) gate: Gate,
    map_size: usize,
    /// See [`Opened::shares_pid`].
    shares_pid: bool,
    /// See [`fork::forks`].
    forks: u32,
    identity: Option<FileIdentity>,
}

impl Env {
    /// Opens an environment. A process that is alone creates it if it is missing.
    ///
    /// # Errors
    ///
    /// [`Error::Damaged`] if the files are not sound. Beside other processes, also if they are not the files that those
    /// use.
    pub(crate) fn open(path: &Path, options: &Options<'_>) -> Result<Env, Error> {
        fork::watch_forks();
        ending_threads::watch_this_thread();
        let Opened { heed, tables, gate, files, shares_pid } = opening::open(path, options)?;
        let identity = options.guarded.map(|root| FileIdentity::new(root, path, files)).transpose()?;
        Ok(Env {
            heed: ManuallyDrop::new(heed),
            tables,
            gate,
            map_size: options.map_size,
            shares_pid,
            forks: fork::forks(),
            identity,
        })
    }

    #[cfg(test)]
    pub(crate) fn path(&self) -> &Path {
        self.heed.path()
    }

    /// The last transaction that was committed, by any process. Takes some nanoseconds.
    pub(crate) fn last_transaction(&self) -> u64 {
        self.heed.info().last_txn_id as u64
    }

    /// Whether this process is a forked child of the one that opened the environment.
    pub(crate) fn forked(&self) -> bool {
        self.forks != fork::forks()
    }

    /// Whether the cache's directory was removed or replaced. Held locks can be renewed and released, since other
    /// processes may use the same files, but nothing may be granted.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.identity.as_ref().is_some_and(FileIdentity::is_orphaned)
    }

    /// Whether the environment was not found damaged, so that its files can be touched.
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
            let mut txn = Txn::new(rw, &self.tables, &self.gate);
            let (result, changed) = f(&mut txn)?;
            let commits = changed && txn.commit()?;
            // The files that were read, or that the commit went to, may have gone back in time meanwhile. Then no
            // caller gets the result.
            self.check_time(before + u64::from(commits))?;
            Ok(result)
        });
        if let (Err(Error::Damaged), Some(identity)) = (&result, &self.identity) {
            self.condemn(identity);
        }
        result
    }

    fn begin(&self) -> Result<RwTxn<'_>, Error> {
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
        self.check_time((rw.id() as u64).wrapping_sub(1))?;
        Ok(rw)
    }

    /// Fails unless the data file is of the time when this transaction was the last, and no process knows of a later
    /// one.
    ///
    /// One thing has the same numbers and goes unnoticed: a copy of the very last commit, written over the file while the
    /// next transaction is under way, whose pages are then lost.
    fn check_time(&self, last: u64) -> Result<(), Error> {
        let Some(identity) = &self.identity else { return Ok(()) };
        if identity.metas.end_with(last) && self.gate.is_not_behind(last) { Ok(()) } else { Err(Error::Damaged) }
    }

    fn condemn(&self, identity: &FileIdentity) {
        if self.gate.condemn() {
            tell_of_loss(identity, "damaged");
        }
    }

    /// Checks the files if no thread has for a hundredth of a second, so that a file that was cut does not kill this
    /// process. A thread that holds the gate must not call it.
    pub(crate) fn look_if_due(&self) {
        if self.identity.as_ref().is_some_and(FileIdentity::is_due) {
            self.look();
        }
    }

    /// Checks the files.
    pub(crate) fn look(&self) {
        let Some(identity) = &self.identity else { return };
        if self.forked() || self.gate.is_shut() {
            return;
        }
        match identity.look() {
            FileState::Intact | FileState::Gone => {}
            FileState::Cut => self.condemn(identity),
            FileState::CutOff => self.give_up(identity),
        }
    }

    /// From now on, this process neither uses nor even touches the environment.
    fn give_up(&self, identity: &FileIdentity) {
        if self.gate.shut() {
            tell_of_loss(identity, "truncated");
            // Closing it would look into the lock file.
            std::mem::forget(heed::Env::clone(&self.heed));
        }
    }

    /// Runs `f` in a read transaction. `f` must not begin another one: heed has one reader for each thread.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        if self.forked() {
            return Err(Error::Forked);
        }
        if self.shares_pid {
            return self.read_writing(f);
        }
        ending_threads::watch_this_thread();
        let txn = self.heed.read_txn().map_err(from_heed)?;
        f(&Reader { ro: &txn, tables: &self.tables, seen: txn.id() as u64 })
    }

    /// As `read`, in a write transaction that is not committed.
    fn read_writing<T>(&self, f: impl FnOnce(&Reader<'_>) -> Result<T, Error>) -> Result<T, Error> {
        let _held = self.gate.lock_for(AT_THE_GATE)?.ok_or(Error::Busy)?;
        let txn = self.heed.write_txn().map_err(from_heed)?;
        // The transaction's own number is that of a commit that will not happen.
        f(&Reader { ro: &txn, tables: &self.tables, seen: txn.id() as u64 - 1 })
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
        let _closing = (!self.forked()).then(ending_threads::wait_for_ending_threads);
        // SAFETY: nothing touches it after the drop.
        unsafe { ManuallyDrop::drop(&mut self.heed) };
    }
}

fn tell_of_loss(identity: &FileIdentity, what: &str) {
    tracing::error!(
        path = %identity.path().display(),
        "{what}: no lock is granted any more; stop every process that uses the cache, the next one starts with empty files"
    );
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("path", &self.heed.path()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
