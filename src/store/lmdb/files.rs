//! The files of one environment: which they are.

use crate::error::Error;
use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Readers a machine may have at once: one slot for each thread that ever read.
pub(super) const MAX_READERS: u32 = 8192;

/// Bytes of LMDB's lock file: a cache line a reader, and a head.
pub(super) const LOCK_SIZE: u64 = MAX_READERS as u64 * 64 + 4096;

/// Bytes of a gate's file.
pub(super) const GATE_SIZE: u64 = 256;

/// Device and inode.
pub(crate) type Id = [u64; 2];

/// What an environment is made of, as written down by who opened it alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files {
    pub(crate) map_size: u64,
    /// Bytes of the data file, which never has fewer later. They are not written down.
    pub(crate) length: u64,
    /// In the order of [`NAMES`].
    pub(crate) ids: [Id; Files::COUNT],
}

pub(super) const NAMES: [&str; Files::COUNT] = ["data.mdb", "lock.mdb", "gate"];

/// What became of the files of an environment that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileState {
    Intact,
    /// They were removed, or others are in their place. Who has them open goes on with them; nobody else can join.
    Gone,
    /// The data file was cut: who touches what it has lost is killed.
    Cut,
    /// So was a file without which nobody can even be told.
    CutOff,
}

impl Files {
    pub(crate) const COUNT: usize = 3;

    /// What is there now.
    pub(crate) fn at(path: &Path, map_size: usize) -> io::Result<Files> {
        let facts = |name| fs::metadata(path.join(name));
        let [data, lock, gate] = NAMES.map(facts);
        let data = data?;
        Ok(Files { map_size: map_size as u64, length: data.len(), ids: [id_of(&data), id_of(&lock?), id_of(&gate?)] })
    }

    /// Whether these are what was written down.
    pub(crate) fn are(&self, described: &Files) -> bool {
        (self.map_size, self.ids) == (described.map_size, described.ids)
    }

    /// What is not even a file cannot be used.
    pub(crate) fn check_kinds(path: &Path) -> Result<(), Error> {
        let strange = |name| fs::metadata(path.join(name)).is_ok_and(|facts| !facts.is_file());
        if NAMES.iter().any(strange) { Err(Error::Damaged) } else { Ok(()) }
    }

    /// Whether they still are what they were: three system calls.
    pub(crate) fn look(&self, path: &Path) -> FileState {
        let least = [self.length, LOCK_SIZE, GATE_SIZE];
        let mut found = FileState::Intact;
        for (at, name) in NAMES.iter().enumerate() {
            match fs::metadata(path.join(name)) {
                Ok(facts) if id_of(&facts) != self.ids[at] => found = found.or(FileState::Gone),
                Ok(facts) if facts.len() < least[at] => {
                    found = found.or(if at == 0 { FileState::Cut } else { FileState::CutOff })
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => found = found.or(FileState::Gone),
                // What cannot be found out may be as it was.
                Ok(_) | Err(_) => {}
            }
        }
        found
    }
}

impl FileState {
    /// The worse of two.
    fn or(self, other: FileState) -> FileState {
        if other as u8 > self as u8 { other } else { self }
    }
}

pub(super) fn id_of(facts: &fs::Metadata) -> Id {
    [facts.dev(), facts.ino()]
}
