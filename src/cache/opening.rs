//! How an environment is opened: alone, where it is checked and made, and beside others, where nothing may be changed.

#![allow(unsafe_code)]

use super::{
    env::from_heed,
    gate::Gate,
    guard::{Files, Found},
    sys,
};
use crate::error::Error;
use heed::{CommitOrAbort, Database, EnvFlags, EnvOpenOptions, WithTls, types::Bytes};
use std::{
    fs::{self, File},
    io::{self, Read},
    os::fd::AsRawFd,
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// Readers a machine may have at once: one slot for each thread that ever read.
const MAX_READERS: u32 = 8192;

/// Bytes of LMDB's lock file: a cache line a reader, and a head.
pub(crate) const LOCK_SIZE: u64 = MAX_READERS as u64 * 64 + 4096;

/// How long an opening waits at the gate for those who write.
const OPENING: Duration = Duration::from_secs(2);

/// How long an opening beside others tries to read metas that do not change meanwhile.
const METAS: Duration = Duration::from_millis(250);

/// How to open an environment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options<'a> {
    pub(crate) tables: &'a [&'static str],
    pub(crate) map_size: usize,
    /// Write straight to the map, its blocks reserved so that a full disk does nothing to it.
    pub(crate) write_map: bool,
    /// Sync every commit.
    pub(crate) sync: bool,
    /// Nobody else has it open.
    pub(crate) alone: bool,
    /// What is lost here must not go unnoticed: found damaged, the environment is given up by every process at once.
    /// That is the cache's directory, which it stands and falls with.
    pub(crate) guarded: Option<&'a Path>,
}

pub(super) type Db = Database<'static, Bytes, Bytes>;

/// What an environment consists of.
pub(super) struct Opened {
    pub(super) heed: heed::Env<WithTls>,
    pub(super) tables: Vec<Db>,
    pub(super) gate: Gate,
    pub(super) files: Files,
    /// A process with the same pid reads it, so this one can read it only in write transactions.
    pub(super) shares_pid: bool,
}

/// See [`Env::open`](super::env::Env::open).
pub(super) fn open(path: &Path, options: &Options<'_>) -> Result<Opened, Error> {
    let gate_path = path.join("gate");
    if !options.alone {
        let gate = Gate::open(&gate_path, false)?;
        let (heed, tables, files, shares_pid) = open_beside(path, options, &gate)?;
        return Ok(Opened { heed, tables, gate, files, shares_pid });
    }
    match fs::DirBuilder::new().recursive(true).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(Error::Damaged),
        made => made?,
    }
    Files::check_kinds(path)?;
    let gate = Gate::open(&gate_path, true)?;
    let (heed, tables, files, shares_pid) = gate.survive(|| open_alone(path, options, &gate))?;
    Ok(Opened { heed, tables, gate, files, shares_pid })
}

type Parts = (heed::Env<WithTls>, Vec<Db>, Files, bool);

/// Makes what is not there, and writes down in the gate what the environment is made of.
fn open_alone(path: &Path, options: &Options<'_>, gate: &Gate) -> Result<Parts, Error> {
    let data = path.join("data.mdb");
    check_before_opening(&data, true)?;
    // Mapped writable by LMDB: on a full disk, a reader's first look at a hole would kill the process.
    reserve(&path.join("lock.mdb"), LOCK_SIZE)?;
    let (heed, shares_pid) = open_twice(path, options)?;
    if options.write_map {
        reserve(&data, options.map_size as u64)?;
    }
    let files = Files::at(path, options.map_size)?;
    gate.describe(&files);
    let tables = match find_tables(&heed, gate, options.tables, shares_pid)? {
        Some(tables) => tables,
        None => make_tables(&heed, gate, options.tables)?,
    };
    Ok((heed, tables, files, shares_pid))
}

/// Makes and lengthens nothing: LMDB would make an empty file sound again, and everybody's rows would be gone.
fn open_beside(path: &Path, options: &Options<'_>, gate: &Gate) -> Result<Parts, Error> {
    let data = path.join("data.mdb");
    let ours = || {
        let files = Files::at(path, options.map_size).map_err(|_| Error::Damaged)?;
        let sound = files.are(&gate.described()) && files.look(path) == Found::Intact;
        if sound { Ok(files) } else { Err(Error::Damaged) }
    };
    let length = ours()?.length;
    if options.write_map && length != options.map_size as u64 {
        return Err(Error::Damaged);
    }
    let deadline = Instant::now() + METAS;
    loop {
        match check_before_opening(&data, options.write_map) {
            // They change while they are read.
            Err(Error::Damaged) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            checked => break checked?,
        }
    }
    let (heed, shares_pid) = open_twice(path, options)?;
    let files = ours()?;
    let tables = find_tables(&heed, gate, options.tables, shares_pid)?.ok_or(Error::Damaged)?;
    Ok((heed, tables, files, shares_pid))
}

/// Takes the disk's blocks for a file that is mapped writable, where the file system can.
fn reserve(path: &Path, size: u64) -> Result<(), Error> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size) {
        Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(rustix::io::Errno::NOSPC) => Err(Error::Full),
        reserved => reserved.map_err(|error| io::Error::from(error).into()),
    }
}

/// The environment, and whether it can be read only in write transactions.
fn open_twice(path: &Path, options: &Options<'_>) -> Result<(heed::Env<WithTls>, bool), Error> {
    // A dead predecessor with our pid (both are 1 in a container) left reader slots: only closing clears them.
    let first = open_heed(path, options)?;
    let shares_pid = match first.read_txn() {
        Ok(_) => false,
        // A living one, in another container: LMDB tells readers apart by their pids.
        Err(heed::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => true,
        Err(error) => return Err(from_heed(error)),
    };
    first.prepare_for_closing().wait();
    let heed = open_heed(path, options)?;
    if !shares_pid {
        heed.clear_stale_readers().map_err(from_heed)?;
    }
    sys::close_on_exec(&path.join("data.mdb"))?;
    Ok((heed, shares_pid))
}

fn open_heed(path: &Path, options: &Options<'_>) -> Result<heed::Env<WithTls>, Error> {
    let mut flags = EnvFlags::empty();
    if !options.sync {
        flags |= EnvFlags::NO_SYNC;
    }
    if options.write_map {
        flags |= EnvFlags::WRITE_MAP;
    }
    let mut map_size = options.map_size;
    loop {
        let mut open = EnvOpenOptions::new();
        open.map_size(map_size).max_dbs(options.tables.len() as u32).max_readers(MAX_READERS);
        // SAFETY: the flags are sound for what is stored (`write_map` only with reserved blocks, `NO_SYNC` only for files
        // that a crash of the machine retires); the directory is private to this user, and only this crate, which
        // registers every directory once per process, opens what is in it.
        let opened = unsafe {
            open.flags(flags);
            open.open(path)
        };
        match opened {
            // Address space may be limited; the map of `entries/` is far larger than what it holds.
            Err(heed::Error::Io(error))
                if error.kind() == io::ErrorKind::OutOfMemory && !options.write_map && map_size > 1 << 28 =>
            {
                map_size /= 2;
            }
            opened => return opened.map_err(from_heed),
        }
    }
}

/// `None` if one of them is not there.
fn find_tables(
    heed: &heed::Env<WithTls>,
    gate: &Gate,
    names: &[&str],
    shares_pid: bool,
) -> Result<Option<Vec<Db>>, Error> {
    let held = if shares_pid { Some(gate.lock_for(OPENING)?.ok_or(Error::Busy)?) } else { None };
    let find = |name| if held.is_some() { find_table_writing(heed, name) } else { find_table(heed, name) };
    names.iter().map(|name| find(name)).collect::<heed::Result<_>>().map_err(from_heed)
}

fn make_tables(heed: &heed::Env<WithTls>, gate: &Gate, names: &[&str]) -> Result<Vec<Db>, Error> {
    let _held = gate.lock_for(OPENING)?.ok_or(Error::Busy)?;
    names.iter().map(|name| make_table(heed, name).map_err(from_heed)?.ok_or(Error::Damaged)).collect()
}

/// The empty name stands for the table that has none.
fn named(table: &str) -> Option<&str> {
    Some(table).filter(|table| !table.is_empty())
}

fn find_table(heed: &heed::Env<WithTls>, name: &str) -> heed::Result<Option<Db>> {
    let opened = heed.open_databases_and_commit(heed.read_txn()?, |databases, txn| {
        databases.open_database(txn, named(name)).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(opened.commit().flatten())
}

fn find_table_writing(heed: &heed::Env<WithTls>, name: &str) -> heed::Result<Option<Db>> {
    let opened = heed.create_databases_and_commit(heed.write_txn()?, |databases, txn| {
        databases.open_database(txn, named(name)).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(opened.commit().flatten())
}

fn make_table(heed: &heed::Env<WithTls>, name: &str) -> heed::Result<Option<Db>> {
    let opened = heed.create_databases_and_commit(heed.write_txn()?, |databases, txn| {
        databases.create_database(txn, named(name)).map(CommitOrAbort::<_, ()>::Commit)
    })?;
    Ok(opened.commit())
}

/// LMDB trusts its files: a short one opens well and then kills the process. This reads the two meta pages first.
/// `whole`: and its length.
fn check_before_opening(data: &Path, whole: bool) -> Result<(), Error> {
    let mut file = match File::open(data) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let length = if whole { file.metadata()?.len() } else { u64::MAX };
    let mut head = Vec::new();
    file.by_ref().take(2 * 65_536).read_to_end(&mut head)?;
    if metas_are_sound(&head, length) { Ok(()) } else { Err(Error::Damaged) }
}

/// Where a meta page has its transaction id: see [`metas_are_sound`].
const META_TRANSACTION: usize = 16 + 128;

/// Offsets within a 64-bit LMDB 0.9 meta page, behind the 16-byte page header: magic, version, (address), map size, two
/// database records of 48 bytes whose first field is the page size and last the root, last page, transaction id.
pub(super) fn metas_are_sound(head: &[u8], length: u64) -> bool {
    const MAGIC: u32 = 0xBEEF_C0DE;
    const NO_PAGE: u64 = u64::MAX;
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| super::record::u64_at(head, at);
    let page_size = u32_at(16 + 24).unwrap_or(0);
    if !(512..=65_536).contains(&page_size) || !page_size.is_power_of_two() {
        return false;
    }
    let meta = |page: usize| {
        let at = page * page_size as usize + 16;
        let last_page = u64_at(at + 120)?;
        let roots_fit = [at + 24 + 40, at + 72 + 40]
            .into_iter()
            .all(|root| u64_at(root).is_some_and(|root| root == NO_PAGE || root <= last_page));
        let sound = u32_at(at)? == MAGIC && u32_at(at + 4)? == 1 && u32_at(at + 24)? == page_size;
        sound.then_some((u64_at(at + 128)?, last_page, roots_fit))
    };
    let (Some(a), Some(b)) = (meta(0), meta(1)) else { return false };
    // The older one may have been half overwritten by a commit that was killed: LMDB will not use it.
    let (_, last_page, roots_fit) = if a.0 >= b.0 { a } else { b };
    roots_fit
        && a.0.abs_diff(b.0) <= 1
        && last_page
            .checked_add(1)
            .and_then(|pages| pages.checked_mul(page_size.into()))
            .is_some_and(|bytes| bytes <= length)
}

/// The two meta pages of a data file, as they are now.
#[derive(Debug)]
pub(super) struct Metas {
    map: NonNull<u8>,
    page_size: usize,
}

// SAFETY: the map is shared memory of which only atomics are read.
unsafe impl Send for Metas {}
// SAFETY: as above.
unsafe impl Sync for Metas {}

impl Metas {
    /// Maps them once more: LMDB's own map is not to be had.
    pub(super) fn map(mut data: &File) -> Result<Metas, Error> {
        let mut head = [0; 16 + 24 + 4];
        data.read_exact(&mut head)?;
        let page_size = u32::from_le_bytes([head[40], head[41], head[42], head[43]]) as usize;
        if !(512..=65_536).contains(&page_size) || !page_size.is_power_of_two() {
            return Err(Error::Damaged);
        }
        // SAFETY: a new shared mapping, only read; the result is checked. Who cuts the file kills who reads it, here as in
        // LMDB, which begins each transaction with these pages.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), 2 * page_size, libc::PROT_READ, libc::MAP_SHARED, data.as_raw_fd(), 0)
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let map = NonNull::new(map.cast()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Metas { map, page_size })
    }

    /// Whether one page is that of the transaction `last`, and the other that of the one before. LMDB writes them in turn. In
    /// an old file both are older; if a transaction that began before is committed to it, one still is.
    pub(super) fn end_with(&self, last: u64) -> bool {
        self.transaction(last) == last && self.transaction(last ^ 1) == last.saturating_sub(1)
    }

    /// The transaction in the page that is the given one's.
    fn transaction(&self, of: u64) -> u64 {
        let at = (of & 1) as usize * self.page_size + META_TRANSACTION;
        // SAFETY: within the two pages of the mapping, which stays until drop; page sizes and the offset are multiples of
        // eight. Other processes change it, so it is read as an atomic.
        unsafe { self.map.add(at).cast::<AtomicU64>().as_ref() }.load(Relaxed)
    }
}

impl Drop for Metas {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing else refers to.
        unsafe { libc::munmap(self.map.as_ptr().cast(), 2 * self.page_size) };
    }
}
