//! File identity: whether an environment's files are still in their place, and still the same.

use super::{
    files::{FileState, Files, Id, id_of},
    metas::Metas,
};
use crate::{error::Error, log_limit::LogLimit, store::os::boot::coarse_time};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// How old the last check of the files may be at a write, in ns.
const LOOK_EVERY: u64 = Duration::from_millis(10).as_nanos() as u64;

/// Checks the files of an environment that is given up when it is found damaged.
#[derive(Debug)]
pub(crate) struct FileIdentity {
    /// The cache's directory.
    root: PathBuf,
    root_id: Id,
    orphaned: AtomicBool,
    paths: [PathBuf; Files::COUNT],
    files: Files,
    pub(super) metas: Metas,
    /// When its files were last checked, in ns of [`coarse_time`].
    looked: AtomicU64,
    gone: LogLimit,
}

impl FileIdentity {
    pub(super) fn new(
        root: &Path,
        data: &fs::File,
        paths: [PathBuf; Files::COUNT],
        files: Files,
    ) -> Result<FileIdentity, Error> {
        if id_of(&data.metadata()?) != files.ids[0] {
            return Err(Error::Damaged);
        }
        Ok(FileIdentity {
            root: root.to_path_buf(),
            root_id: id_of(&fs::metadata(root)?),
            orphaned: AtomicBool::new(false),
            paths,
            files,
            metas: Metas::map(data)?,
            looked: AtomicU64::new(0),
            gone: LogLimit::new(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.paths[0]
    }

    /// Whether the cache's directory is gone from its path, so that another process may have made a new one.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.orphaned.load(Relaxed)
    }

    /// Whether a check is due. Of racing callers, one gets `true`.
    pub(crate) fn is_due(&self) -> bool {
        let (last, now) = (self.looked.load(Relaxed), coarse_time());
        now.wrapping_sub(last) >= LOOK_EVERY && self.looked.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }

    /// Checks the files, and logs losses that cannot be mended.
    pub(crate) fn look(&self) -> FileState {
        let there = fs::metadata(&self.root).map(|facts| id_of(&facts) == self.root_id);
        let there = there.unwrap_or_else(|error| error.kind() != io::ErrorKind::NotFound);
        if !there && !self.orphaned.swap(true, Relaxed) {
            tracing::error!(
                path = %self.root.display(),
                "removed or replaced while in use: no lock is granted any more; stop every process that uses it"
            );
        }
        let found = self.files.look(&self.paths);
        if found == FileState::Gone && self.gone.allows() {
            tracing::error!(
                path = %self.path().display(),
                "removed or replaced while in use: no other process can join before every one that uses the cache has been \
                 stopped"
            );
        }
        found
    }
}
