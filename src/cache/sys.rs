//! The few system calls that no safe wrapper offers, and what the file system is fit for.

#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::fd::BorrowedFd,
    path::Path,
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

/// Waits for a pthread mutex at most for `patience`; answers what the pthread call answers.
///
/// # Safety
///
/// `mutex` points at an initialised mutex.
#[cfg(target_env = "gnu")]
pub(crate) unsafe fn mutex_lock_for(mutex: *mut libc::pthread_mutex_t, patience: Duration) -> libc::c_int {
    unsafe extern "C" {
        // Not `pthread_mutex_timedlock`, whose deadline is on the calendar's clock: a step back would hang it.
        fn pthread_mutex_clocklock(
            mutex: *mut libc::pthread_mutex_t,
            clock: libc::clockid_t,
            deadline: *const libc::timespec,
        ) -> libc::c_int;
    }
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let deadline = Duration::new(now.tv_sec as u64, now.tv_nsec as u32) + patience;
    let deadline =
        libc::timespec { tv_sec: deadline.as_secs() as libc::time_t, tv_nsec: deadline.subsec_nanos() as libc::c_long };
    // SAFETY: the mutex is the caller's promise; the deadline is a valid time of the clock named.
    unsafe { pthread_mutex_clocklock(mutex, libc::CLOCK_MONOTONIC, &deadline) }
}

/// As above, where libc cannot wait on a clock that does not step.
///
/// # Safety
///
/// `mutex` points at an initialised mutex.
#[cfg(not(target_env = "gnu"))]
pub(crate) unsafe fn mutex_lock_for(mutex: *mut libc::pthread_mutex_t, patience: Duration) -> libc::c_int {
    let began = std::time::Instant::now();
    loop {
        // SAFETY: the caller's promise.
        let result = unsafe { libc::pthread_mutex_trylock(mutex) };
        if result != libc::EBUSY || began.elapsed() >= patience {
            return result;
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

static FORKS: AtomicU32 = AtomicU32::new(0);

/// How many forks lie between this process and the first that opened a cache: what was opened at another number belongs
/// to a parent.
pub(crate) fn forks() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// From now on, forked children of this process know that they are.
pub(crate) fn watch_forks() {
    extern "C" fn in_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    static ONCE: Once = Once::new();
    // SAFETY: the handler only changes an atomic, which is allowed in a forked child.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(in_child));
    });
}

/// LMDB opens its data file without `O_CLOEXEC`: every spawned program would inherit it, writable.
pub(crate) fn close_on_exec(path: &Path) -> io::Result<()> {
    let wanted = rustix::fs::stat(path)?;
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // SAFETY: the number was listed as open; if another thread closes it meanwhile, the calls fail harmlessly.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        if rustix::fs::fstat(fd).is_ok_and(|is| (is.st_dev, is.st_ino) == (wanted.st_dev, wanted.st_ino)) {
            let flags = rustix::io::fcntl_getfd(fd)?;
            rustix::io::fcntl_setfd(fd, flags | rustix::io::FdFlags::CLOEXEC)?;
        }
    }
    Ok(())
}

/// What a file system can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// Reserved blocks stay ours: a writable map cannot run into a full disk.
    Reserving,
    Plain,
    /// Locks or shared maps do not work between all users of the files.
    Network(&'static str),
}

pub(crate) fn file_system(directory: &File) -> io::Result<FileSystem> {
    Ok(match rustix::fs::fstatfs(directory)?.f_type as u32 {
        0xef53 | 0x5846_5342 | 0x0102_1994 => FileSystem::Reserving, // ext4, xfs, tmpfs
        0x6969 => FileSystem::Network("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => FileSystem::Network("SMB"),
        0x0102_1997 => FileSystem::Network("9p"),
        0x00c3_6400 => FileSystem::Network("Ceph"),
        0x5346_414f => FileSystem::Network("AFS"),
        0x0bd0_0bd0 => FileSystem::Network("Lustre"),
        _ => FileSystem::Plain,
    })
}
