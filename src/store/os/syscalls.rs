//! The few system calls that no safe wrapper offers.

#![allow(unsafe_code)]

use std::{io, os::fd::BorrowedFd, path::Path, time::Duration};

/// Waits for a pthread mutex at most for `patience`; returns the result of the pthread call.
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
    // Centuries at most: a time that does not fit is refused.
    let patience = patience.min(Duration::from_secs(u32::MAX.into()));
    let deadline = Duration::new(now.tv_sec as u64, now.tv_nsec as u32) + patience;
    let deadline =
        libc::timespec { tv_sec: deadline.as_secs() as libc::time_t, tv_nsec: deadline.subsec_nanos() as libc::c_long };
    // SAFETY: the caller promises that the mutex is valid; the deadline is a valid time of the clock named.
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
