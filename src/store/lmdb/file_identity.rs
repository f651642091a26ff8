//! File identity: whether an environment's files are still in their place, and still the same.

use super::{
    files::{FileState, Files, Id, id_of},
    metas::Metas,
};
use crate::{error::Error, log_limit::LogLimit};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

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
