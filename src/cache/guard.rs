//! The files of one environment: which they are, and whether they still are where and what they were.

use super::{
    gate::GATE_SIZE,
    opening::{LOCK_SIZE, Metas},
};
use crate::{error::Error, hush::Hush};
use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

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

const NAMES: [&str; Files::COUNT] = ["data.mdb", "lock.mdb", "gate"];

/// What became of the files of an environment that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
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
    pub(crate) fn look(&self, path: &Path) -> Found {
        let least = [self.length, LOCK_SIZE, GATE_SIZE];
        let mut found = Found::Intact;
        for (at, name) in NAMES.iter().enumerate() {
            match fs::metadata(path.join(name)) {
                Ok(facts) if id_of(&facts) != self.ids[at] => found = found.or(Found::Gone),
                Ok(facts) if facts.len() < least[at] => {
                    found = found.or(if at == 0 { Found::Cut } else { Found::CutOff })
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => found = found.or(Found::Gone),
                // What cannot be found out may be as it was.
                Ok(_) | Err(_) => {}
            }
        }
        found
    }
}

impl Found {
    /// The worse of two.
    fn or(self, other: Found) -> Found {
        if other as u8 > self as u8 { other } else { self }
    }
}

fn id_of(facts: &fs::Metadata) -> Id {
    [facts.dev(), facts.ino()]
}

/// How old the last look at the files may be when something is written, in ns.
const LOOK_EVERY: u64 = Duration::from_millis(10).as_nanos() as u64;

/// Looks after an environment that is to be given up when it is found damaged.
#[derive(Debug)]
pub(crate) struct Guard {
    /// The cache's directory.
    root: PathBuf,
    root_id: Id,
    orphaned: AtomicBool,
    /// The environment's.
    path: PathBuf,
    files: Files,
    pub(super) metas: Metas,
    /// When its files were looked at, by the clock of those who write.
    looked: AtomicU64,
    gone: Hush,
}

impl Guard {
    pub(crate) fn new(root: &Path, path: &Path, files: Files) -> Result<Guard, Error> {
        let data = fs::File::open(path.join(NAMES[0]))?;
        if id_of(&data.metadata()?) != files.ids[0] {
            return Err(Error::Damaged);
        }
        Ok(Guard {
            root: root.to_path_buf(),
            root_id: id_of(&fs::metadata(root)?),
            orphaned: AtomicBool::new(false),
            path: path.to_path_buf(),
            files,
            metas: Metas::map(&data)?,
            looked: AtomicU64::new(0),
            gone: Hush::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the cache's directory is not where it was, so that others may have made another.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Relaxed)
    }

    /// Whether it is time to look, which one caller is told.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        let last = self.looked.load(Relaxed);
        now.wrapping_sub(last) >= LOOK_EVERY && self.looked.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }

    /// Looks, and logs what nothing can be done about.
    pub(crate) fn look(&self) -> Found {
        let there = fs::metadata(&self.root).map(|facts| id_of(&facts) == self.root_id);
        let there = there.unwrap_or_else(|error| error.kind() != io::ErrorKind::NotFound);
        if !there && !self.orphaned.swap(true, Relaxed) {
            tracing::error!(
                path = %self.root.display(),
                "removed or replaced while in use: no lock is granted any more; stop every process that uses it"
            );
        }
        let found = self.files.look(&self.path);
        if found == Found::Gone && self.gone.due() {
            tracing::error!(
                path = %self.path.display(),
                "removed or replaced while in use: no other process can join before every one that uses the cache has been \
                 stopped"
            );
        }
        found
    }
}
