//! Waiting for the lock of a file.

use rustix::fs::{FlockOperation, flock};
use std::{
    fs::File,
    io,
    time::{Duration, Instant},
};

/// Takes the lock of a file as soon as it can be had, within `patience`. Blocks the thread. `operation` itself must not
/// block.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`] if others hold it for so long.
pub(crate) fn lock_for(file: &File, operation: FlockOperation, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
}
