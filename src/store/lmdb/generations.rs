//! The generations of one environment: directories of which one is in use. A new one takes the place of files that were
//! damaged or have grown too much, while other processes may still use the old one.

use crate::store::{
    os::file_lock::lock_for,
    record::generation_names::{self, generation_path},
};
use rustix::fs::{FlockOperation, flock};
use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// How long a process that removes unused files may hold the lock of a generation that is about to be used.
const REMOVAL: Duration = Duration::from_secs(1);

/// The directory of an environment.
#[derive(Clone, Debug)]
pub(crate) struct Generations {
    environment: PathBuf,
}

/// The right to add a generation or to remove some.
#[derive(Debug)]
pub(super) struct Changing(File);

impl Drop for Changing {
    fn drop(&mut self) {
        // A forked child has the file open too, and would keep the lock.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl Generations {
    pub(crate) fn of(environment: &Path) -> Generations {
        Generations { environment: environment.to_path_buf() }
    }

    pub(super) fn environment(&self) -> &Path {
        &self.environment
    }

    pub(crate) fn path(&self, number: u64) -> PathBuf {
        generation_path(&self.environment, number)
    }

    /// The latest generation that has a data file, and is not earlier than this one.
    pub(crate) fn latest_since(&self, number: u64) -> Option<u64> {
        self.numbers().filter(|&found| found >= number && self.data_path(found).exists()).max()
    }

    /// A number that no generation has had, and greater than the given one.
    pub(crate) fn next(&self, number: u64) -> u64 {
        self.numbers().fold(number, u64::max).saturating_add(1)
    }

    /// Takes the right to change the generations. `None`: another process has it.
    pub(super) fn begin_change(&self) -> io::Result<Option<Changing>> {
        let lock =
            File::options().write(true).create(true).truncate(false).open(self.environment.join("rotation.lock"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Changing(lock))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn make(&self, _changing: &Changing, number: u64) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(self.path(number))
    }

    /// Opens the data file of a generation and says that this process uses it, for as long as the file is open.
    pub(super) fn hold(&self, number: u64) -> io::Result<File> {
        let data = File::open(self.data_path(number))?;
        lock_for(&data, FlockOperation::NonBlockingLockShared, REMOVAL)?;
        Ok(data)
    }

    /// Removes the generations that no process uses, other than the current one. A generation that is being made is not
    /// touched, since its maker has the right to change them.
    pub(super) fn remove_unused(&self, _changing: &Changing, is_current: impl Fn(u64) -> bool) {
        for number in self.numbers() {
            let unused = match File::open(self.data_path(number)) {
                Ok(data) => flock(&data, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(Some(data)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some(None),
                Err(_) => None,
            };
            // A process that opens a generation holds it first and then asks whether it is the current one.
            if let Some(_held) = unused
                && !is_current(number)
            {
                let _ = fs::remove_dir_all(self.path(number));
            }
        }
    }

    /// Bytes on disk of all generations but the current one.
    pub(super) fn bytes_besides(&self, current: u64) -> u64 {
        self.numbers()
            .filter(|&number| number != current)
            .flat_map(|number| fs::read_dir(self.path(number)).into_iter().flatten().flatten())
            .filter_map(|file| file.metadata().ok())
            .map(|file| file.blocks() * 512)
            .sum()
    }

    fn data_path(&self, number: u64) -> PathBuf {
        self.path(number).join("data.mdb")
    }

    fn numbers(&self) -> impl Iterator<Item = u64> + use<> {
        generation_names::generations(&self.environment)
    }
}
