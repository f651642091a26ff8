//! What this process has open: each directory once, since opening an LMDB file twice would silently drop its locks.

use super::lock_files::OpeningLock;
use crate::error::Error;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, PoisonError, Weak},
};

/// Device and inode of a directory.
pub(crate) type DirectoryId = (u64, u64);

/// The openings of this process, by directory.
pub(crate) struct Registry<T: 'static> {
    open: Mutex<BTreeMap<DirectoryId, Weak<T>>>,
    closed: Condvar,
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Registry<T> {
        Registry { open: Mutex::new(BTreeMap::new()), closed: Condvar::new() }
    }

    /// The opening of a directory that is open, if `check` finds nothing wrong with it; otherwise a new one. What `make`
    /// makes holds a [`Closing`] of the directory until its files are closed.
    pub(crate) fn open(
        &self,
        id: DirectoryId,
        check: impl Fn(&T) -> Result<(), Error>,
        make: impl FnOnce() -> Result<Arc<T>, Error>,
    ) -> Result<Arc<T>, Error> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match open.get(&id).map(Weak::upgrade) {
                None => break,
                Some(Some(opened)) => return check(&opened).map(|()| opened),
                // Its last handle is gone, but its files are not closed yet.
                Some(None) => open = self.closed.wait(open).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let opened = make()?;
        open.insert(id, Arc::downgrade(&opened));
        Ok(opened)
    }

    /// Keeps the directory from being opened again until it is dropped. Not to be dropped by a `make` that fails.
    pub(crate) fn closing(&'static self, id: DirectoryId) -> Closing<T> {
        Closing { registry: self, id, opening: None }
    }
}

/// Dropped when everything is closed: the directory can then be opened again.
pub(crate) struct Closing<T: 'static> {
    registry: &'static Registry<T>,
    id: DirectoryId,
    opening: Option<OpeningLock>,
}

impl<T> Closing<T> {
    /// Keeps other processes out, too.
    pub(crate) fn keep(&mut self, opening: Option<OpeningLock>) {
        self.opening = opening;
    }
}

impl<T> Drop for Closing<T> {
    fn drop(&mut self) {
        self.opening = None;
        self.registry.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        self.registry.closed.notify_all();
    }
}

impl<T> fmt::Debug for Closing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Closing").field(&self.id).finish()
    }
}
