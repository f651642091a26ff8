//! The translation of LMDB's errors into those of the cache.

use crate::error::Error;
use heed::MdbError;
use std::io;

pub(super) fn from_commit(error: heed::Error) -> Error {
    match from_heed(error) {
        // LMDB reports a write that was cut short like this: the disk is full but for less than a page.
        Error::Io(error) if error.raw_os_error() == Some(libc::EIO) => Error::Full,
        error => error,
    }
}

pub(super) fn from_heed(error: heed::Error) -> Error {
    match error {
        heed::Error::Io(error) => error.into(),
        heed::Error::Mdb(MdbError::MapFull | MdbError::TxnFull | MdbError::ReadersFull | MdbError::MapResized) => {
            Error::Full
        }
        heed::Error::EnvAlreadyOpened => Error::Busy,
        // A write failed on the way to the disk. The files are as before; this process would have to open them again.
        heed::Error::Mdb(MdbError::Panic) => Error::Io(io::Error::other("a write failed: restart the process")),
        _ => Error::Damaged,
    }
}
