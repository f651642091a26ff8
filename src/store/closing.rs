//! The closing of a directory when its last handle is dropped.
//!
//! Closing syncs the files, and may wait for another process that is opening the directory. So it is done by a thread of
//! its own, and the thread that drops the handle waits for it only as long as it may.

use super::{
    commit::worker::on_a_worker,
    lmdb::{at_exit::PutOff, ending_threads},
    shared::Shared,
};
use std::{
    convert::Infallible,
    fmt,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

/// A handle's share of an opening.
pub(crate) struct Opened(Option<Arc<Shared>>);

impl Opened {
    pub(crate) fn new(shared: Arc<Shared>) -> Opened {
        let mut handles = lock(&shared.handles);
        *handles += 1;
        // A worker kept it from being closed until now.
        drop(lock(&shared.closed).take());
        drop(handles);
        Opened(Some(shared))
    }

    /// Gives the share up. If it was the last, the directory is closed; this waits for that, at most for `patience`.
    pub(crate) fn close(&mut self, patience: Option<Duration>) {
        let Some(shared) = self.0.take().filter(|shared| !shared.forked()) else { return };
        let closed = give_up(&shared);
        // Another thread that closes the files would wait for the end of this one.
        if ending_threads::this_thread_ends() {
            return;
        }
        // A worker that is at work shares it too. Then it is the worker that closes the files.
        if let Some(shared) = Arc::into_inner(shared) {
            // If no thread can be had, this drops the function, and `shared` with it: the files are closed here.
            let _ = thread::Builder::new().name("floodgate-closing".into()).spawn(move || drop(shared));
        }
        let _ = match (closed, patience) {
            (None, _) => Ok(()),
            // This may be the worker.
            _ if on_a_worker() => Ok(()),
            (Some(closed), Some(patience)) => closed.recv_timeout(patience).map(drop).map_err(drop),
            (Some(closed), None) => closed.recv().map(drop).map_err(drop),
        };
    }
}

/// Counts a handle out. After the last one, the result tells when everything is closed.
fn give_up(shared: &Shared) -> Option<Receiver<Infallible>> {
    let mut handles = lock(&shared.handles);
    *handles -= 1;
    (*handles == 0).then(|| {
        let (closed, wait) = mpsc::channel();
        *lock(&shared.closed) = Some((PutOff::begin(), closed));
        wait
    })
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Opened {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        self.0.as_ref().expect("a handle is given up by its drop")
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").finish_non_exhaustive()
    }
}
