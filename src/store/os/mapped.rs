//! Words that all processes map.

#![allow(unsafe_code)]

use super::blocks;
use crate::error::Error;
use std::{fs::File, io, ops::Deref, os::fd::AsRawFd, path::Path, ptr::NonNull, sync::atomic::AtomicU16};

const WORD: usize = size_of::<AtomicU16>();
/// Bytes of a file: a shorter one was not made to its end.
const LEAST: u64 = 4096;

/// An array of words, mapped from a file that other processes map too, or from none.
pub(crate) struct MappedWords {
    words: NonNull<AtomicU16>,
    len: usize,
}

// SAFETY: the mapping is shared memory that is only touched through atomics.
unsafe impl Send for MappedWords {}
// SAFETY: as above.
unsafe impl Sync for MappedWords {}

impl MappedWords {
    /// Maps a file. A process that is `alone` makes it, with `len` words of zero, if it is not there, and reserves its
    /// blocks: otherwise a write to a hole of the file would kill the process on a full disk. A file that is there keeps
    /// its length.
    pub(crate) fn of_file(path: &Path, len: usize, alone: bool) -> Result<MappedWords, Error> {
        let file = File::options().read(true).write(true).create(alone).truncate(false).open(path)?;
        let found = file.metadata()?;
        let bytes = if found.len() < LEAST { ((len * WORD) as u64).max(LEAST) } else { found.len() };
        if alone {
            blocks::reserve(&file, bytes)?;
        } else if found.len() < bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let len = usize::try_from(bytes).map_err(io::Error::other)? / WORD;
        Ok(map(len, libc::MAP_SHARED, file.as_raw_fd())?)
    }

    /// Words of this process alone.
    pub(crate) fn private(len: usize) -> io::Result<MappedWords> {
        map(len.max(1), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }
}

fn map(len: usize, flags: libc::c_int, file: libc::c_int) -> io::Result<MappedWords> {
    // SAFETY: a new mapping, of a file that is long enough or of none; the result is checked.
    let words =
        unsafe { libc::mmap(std::ptr::null_mut(), len * WORD, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0) };
    if words == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let words = NonNull::new(words.cast()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))?;
    Ok(MappedWords { words, len })
}

impl Deref for MappedWords {
    type Target = [AtomicU16];

    fn deref(&self) -> &[AtomicU16] {
        // SAFETY: the mapping has `len` words, begins at a page, and stays until drop; other processes change it only
        // through atomics, and any bits are a word.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        // SAFETY: our own mapping, of which no reference is left.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.len * WORD) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn two_mappings_of_a_file_share_its_words_and_a_private_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        let one = MappedWords::of_file(&path, 5000, true).unwrap();
        let two = MappedWords::of_file(&path, 70, false).unwrap();
        let private = MappedWords::private(70).unwrap();
        assert_eq!((one.len(), two.len(), private.len()), (5000, 5000, 70));
        one[4999].store(7, Relaxed);
        assert_eq!((two[4999].load(Relaxed), private[69].load(Relaxed)), (7, 0));
        let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(&path).unwrap());
        assert!(blocks * 512 >= 10_000, "no hole is left that a full disk could bite");
    }
}
