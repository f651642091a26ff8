//! What a lock guards: a file that knows the greatest fence it has seen, and refuses any that is less.

use rustix::fs::{FlockOperation, flock};
use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
};

/// Whether the store takes it. `None`: another is writing just now.
pub(crate) fn write(path: &Path, fence: u64) -> io::Result<Option<bool>> {
    let store = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    match flock(&store, FlockOperation::NonBlockingLockExclusive).map_err(io::Error::from) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
        locked => locked?,
    }
    let mut seen = [0; 8];
    match store.read_exact_at(&mut seen, 0) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
        read => read?,
    }
    if u64::from_le_bytes(seen) > fence {
        return Ok(Some(false));
    }
    store.write_all_at(&fence.to_le_bytes(), 0)?;
    Ok(Some(true))
}
