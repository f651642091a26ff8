//! The registry of the directories that this process has open. Each is opened once, since opening an LMDB file twice
//! would silently drop its locks. A directory that takes long to open or to close keeps nobody from another one.

use super::lock_files::OpeningLock;
use crate::error::Error;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
};

/// Device and inode of a directory.
pub(crate) type DirectoryId = (u64, u64);

/// The openings of this process, by directory.
pub(crate) struct Registry<T: 'static> {
    /// Locked for a look only, never while a directory is opened or closed.
    cells: Mutex<BTreeMap<DirectoryId, Arc<Cell<T>>>>,
}

impl<T> Registry<T> {
    pub(crate) const fn new() -> Registry<T> {
        Registry { cells: Mutex::new(BTreeMap::new()) }
    }

    /// The opening of a directory that is open already, unless `check` refuses it; for a directory that is not open, a
    /// new one. The opening that `make` makes keeps the [`Closing`] until its files are closed.
    pub(crate) fn open(
        &'static self,
        id: DirectoryId,
        check: impl Fn(&T) -> Result<(), Error>,
        make: impl FnOnce(Closing<T>) -> Result<Arc<T>, Error>,
    ) -> Result<Arc<T>, Error> {
        let cell = lock(&self.cells).entry(id).or_default().clone();
        let mut state = lock(&cell.state);
        loop {
            match &*state {
                State::Closed => break,
                State::Open(opened) => {
                    if let Some(opened) = opened.upgrade() {
                        return check(&opened).map(|()| opened);
                    }
                    // Its last handle is gone, but its files are not closed yet.
                }
                State::Opening => {}
            }
            state = cell.closed_or_open.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        *state = State::Opening;
        drop(state);
        let cell_of_opened = Arc::downgrade(&cell);
        let opened = make(Closing { registry: self, id, cell, opening: None })?;
        if let Some(cell) = cell_of_opened.upgrade() {
            *lock(&cell.state) = State::Open(Arc::downgrade(&opened));
            cell.closed_or_open.notify_all();
        }
        Ok(opened)
    }
}

/// One directory. While it is opened or closed, only those who want the same one wait.
struct Cell<T> {
    state: Mutex<State<T>>,
    closed_or_open: Condvar,
}

enum State<T> {
    Closed,
    Opening,
    /// Being closed, once the last handle is gone.
    Open(Weak<T>),
}

impl<T> Default for Cell<T> {
    fn default() -> Self {
        Cell { state: Mutex::new(State::Closed), closed_or_open: Condvar::new() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps a directory from being opened again. It is dropped when everything is closed, or could not be opened.
pub(crate) struct Closing<T: 'static> {
    registry: &'static Registry<T>,
    id: DirectoryId,
    cell: Arc<Cell<T>>,
    opening: Option<OpeningLock>,
}

impl<T> Closing<T> {
    /// Keeps other processes out too, until this is dropped.
    pub(crate) fn keep(&mut self, opening: Option<OpeningLock>) {
        self.opening = opening;
    }
}

impl<T> Drop for Closing<T> {
    fn drop(&mut self) {
        self.opening = None;
        let mut cells = lock(&self.registry.cells);
        *lock(&self.cell.state) = State::Closed;
        // Whoever wants it has taken the cell out of the registry: then there are more than the two of it.
        if Arc::strong_count(&self.cell) == 2 {
            cells.remove(&self.id);
        }
        drop(cells);
        self.cell.closed_or_open.notify_all();
    }
}

impl<T> fmt::Debug for Closing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Closing").field(&self.id).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{sync::mpsc, thread};

    type Opening = (u32, Closing<Opened>);
    struct Opened(#[expect(dead_code)] Opening);

    fn make(number: u32) -> impl FnOnce(Closing<Opened>) -> Result<Arc<Opened>, Error> {
        move |closing| Ok(Arc::new(Opened((number, closing))))
    }

    #[test]
    fn a_directory_that_is_being_opened_keeps_nobody_from_another() {
        static OPEN: Registry<Opened> = Registry::new();
        let third = OPEN.open((0, 3), |_| Ok(()), make(3)).unwrap();
        let (go_on, told) = mpsc::channel::<()>();
        let (opens, opening) = mpsc::channel();
        let slow = thread::spawn(move || {
            OPEN.open(
                (0, 1),
                |_| Ok(()),
                |closing| {
                    opens.send(()).unwrap();
                    told.recv().unwrap();
                    make(1)(closing)
                },
            )
            .unwrap()
        });
        opening.recv().unwrap();
        let second = OPEN.open((0, 2), |_| Ok(()), make(2)).unwrap();
        drop(third);
        assert!(!lock(&OPEN.cells).contains_key(&(0, 3)), "closed");
        let same = thread::spawn(|| OPEN.open((0, 1), |_| Ok(()), |_| panic!("it is being opened")).unwrap());
        go_on.send(()).unwrap();
        assert!(Arc::ptr_eq(&slow.join().unwrap(), &same.join().unwrap()));
        drop(second);
        assert!(lock(&OPEN.cells).is_empty());
    }

    #[test]
    fn what_could_not_be_opened_can_be_tried_again() {
        static OPEN: Registry<Opened> = Registry::new();
        assert!(OPEN.open((0, 1), |_| Ok(()), |_| Err(Error::Busy)).is_err());
        let panics = || OPEN.open((0, 1), |_| Ok(()), |_| panic!("on purpose"));
        assert!(std::panic::catch_unwind(panics).is_err());
        assert!(lock(&OPEN.cells).is_empty());
        let opened = OPEN.open((0, 1), |_| Ok(()), make(1)).unwrap();
        assert!(OPEN.open((0, 1), |_| Err(Error::Forked), make(2)).is_err());
        drop(opened);
        assert!(lock(&OPEN.cells).is_empty());
    }
}
