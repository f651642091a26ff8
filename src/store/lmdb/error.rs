//! The translation of LMDB's errors into those of the cache.

use crate::error::Error;
use heed::MdbError;

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
        _ => Error::Damaged,
    }
}
