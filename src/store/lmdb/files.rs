//! The files of one environment, and their identities.

use crate::error::Error;
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Readers a machine may have at once: one slot for each thread that ever read.
pub(super) const MAX_READERS: u32 = 8192;

/// Bytes of LMDB's lock file: a cache line for each reader, and a head.
pub(super) const LOCK_SIZE: u64 = MAX_READERS as u64 * 64 + 4096;

/// Bytes of a gate's file.
pub(super) const GATE_SIZE: u64 = 256;

/// Device and inode.
pub(crate) type Id = [u64; 2];

/// The files of a generation, as the process that made it or opened it alone wrote them down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Files {
    pub(crate) map_size: u64,
    /// Bytes of the data file, which never has fewer later. This number is not written down.
    pub(crate) length: u64,
    /// In the order of [`paths`].
    pub(crate) ids: [Id; Files::COUNT],
}

/// The gate's file in an environment's directory.
pub(super) const GATE: &str = "gate";

/// The data file, the lock file and the gate of a generation.
pub(super) fn paths(environment: &Path, generation: &Path) -> [PathBuf; Files::COUNT] {
    [generation.join("data.mdb"), generation.join("lock.mdb"), environment.join(GATE)]
}

/// The state of the files of an environment that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileState {
    Intact,
    /// A file was removed or replaced. Processes that have the files open go on with them; no other process can join.
    Gone,
    /// The data file was cut: a process that touches the lost part is killed.
    Cut,
    /// The lock file or the gate was cut, so other processes cannot even be warned.
    CutOff,
}

impl Files {
    pub(crate) const COUNT: usize = 3;

    /// The files that are there now.
    pub(crate) fn at(paths: &[PathBuf; Files::COUNT], map_size: usize) -> io::Result<Files> {
        let [data, lock, gate] = paths.each_ref().map(fs::metadata);
        let data = data?;
        Ok(Files { map_size: map_size as u64, length: data.len(), ids: [id_of(&data), id_of(&lock?), id_of(&gate?)] })
    }

    /// Whether these are the files that were written down.
    pub(crate) fn are(&self, described: &Files) -> bool {
        (self.map_size, self.ids) == (described.map_size, described.ids)
    }

    /// Fails if one of the names belongs to something other than a file.
    pub(crate) fn check_kinds(paths: &[PathBuf]) -> Result<(), Error> {
        let strange = |path| fs::metadata(path).is_ok_and(|facts| !facts.is_file());
        if paths.iter().any(strange) { Err(Error::Damaged) } else { Ok(()) }
    }

    /// Whether the files are still what they were. Takes three system calls.
    pub(crate) fn look(&self, paths: &[PathBuf; Files::COUNT]) -> FileState {
        let least = [self.length, LOCK_SIZE, GATE_SIZE];
        let mut found = FileState::Intact;
        for (at, path) in paths.iter().enumerate() {
            match fs::metadata(path) {
                Ok(facts) if id_of(&facts) != self.ids[at] => found = found.or(FileState::Gone),
                Ok(facts) if facts.len() < least[at] => {
                    found = found.or(if at == 0 { FileState::Cut } else { FileState::CutOff })
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => found = found.or(FileState::Gone),
                // A file that cannot be examined may be as it was.
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
