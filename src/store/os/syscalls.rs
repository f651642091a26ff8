//! The few system calls that no safe wrapper offers.

#![allow(unsafe_code)]

use std::{io, os::fd::BorrowedFd, path::Path, sync::OnceLock, time::Duration};

/// Waits for a pthread mutex at most for `patience`; returns the result of the pthread call.
///
/// # Safety
///
/// `mutex` points at an initialised mutex.
pub(crate) unsafe fn mutex_lock_for(mutex: *mut libc::pthread_mutex_t, patience: Duration) -> libc::c_int {
    match clocklock() {
        Some(clocklock) => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let deadline = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_add(patience);
            let deadline = libc::timespec {
                tv_sec: libc::time_t::try_from(deadline.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: deadline.subsec_nanos() as libc::c_long,
            };
            // SAFETY: the caller promises that the mutex is valid; the deadline is a valid time of the clock named.
            unsafe { clocklock(mutex, libc::CLOCK_MONOTONIC, &deadline) }
        }
        // SAFETY: the caller's promise.
        None => unsafe { lock_by_trying(mutex, patience) },
    }
}

/// Not `pthread_mutex_timedlock`, whose deadline is on the calendar's clock: a step back would hang it.
type ClockLock =
    unsafe extern "C" fn(*mut libc::pthread_mutex_t, libc::clockid_t, *const libc::timespec) -> libc::c_int;

/// `pthread_mutex_clocklock`, which glibc has since 2.30 and musl has not.
fn clocklock() -> Option<ClockLock> {
    static FOUND: OnceLock<Option<ClockLock>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the name ends with a zero.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"pthread_mutex_clocklock".as_ptr()) };
        // SAFETY: the function of that name has this type, and a null pointer is `None`.
        unsafe { std::mem::transmute::<*mut libc::c_void, Option<ClockLock>>(found) }
    })
}

/// # Safety
///
/// `mutex` points at an initialised mutex.
unsafe fn lock_by_trying(mutex: *mut libc::pthread_mutex_t, patience: Duration) -> libc::c_int {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::UnsafeCell;

    struct Mutex(UnsafeCell<libc::pthread_mutex_t>);
    // SAFETY: a pthread mutex is made for several threads.
    unsafe impl Sync for Mutex {}

    #[test]
    fn a_mutex_is_waited_for_with_a_bound_by_whatever_libc_has() {
        assert_eq!(clocklock().is_some(), cfg!(target_env = "gnu"), "the test is run where glibc is newer than 2.30");
        let mutex = Mutex(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));
        for lock in [mutex_lock_for, lock_by_trying] {
            let patience = Duration::from_millis(2);
            // SAFETY: the mutex is initialised, lives longer than the threads, and is unlocked by the thread that has it.
            unsafe {
                assert_eq!(lock(mutex.0.get(), patience), 0);
                std::thread::scope(|threads| {
                    let mutex = &mutex;
                    let late = threads.spawn(move || lock(mutex.0.get(), patience)).join().unwrap();
                    assert!([libc::EBUSY, libc::ETIMEDOUT].contains(&late));
                });
                libc::pthread_mutex_unlock(mutex.0.get());
                assert_eq!(lock(mutex.0.get(), Duration::MAX), 0);
                libc::pthread_mutex_unlock(mutex.0.get());
            }
        }
    }
}
