//! The two meta pages of LMDB's data file, which say where its trees begin and which transaction was the last.

#![allow(unsafe_code)]

use crate::{error::Error, store::record::row::u64_at};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsRawFd,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// The place of the transaction id in a meta page, see [`metas_are_sound`].
const META_TRANSACTION: usize = 16 + 128;

/// The place of the page size in the first meta page.
const PAGE_SIZE: usize = 16 + 24;

/// Offsets within a 64-bit LMDB 0.9 meta page, behind the 16-byte page header: magic, version, (address), map size, two
/// database records of 48 bytes whose first field is the page size and last the root, last page, transaction id.
pub(super) fn metas_are_sound(head: &[u8], length: u64) -> bool {
    const MAGIC: u32 = 0xBEEF_C0DE;
    const NO_PAGE: u64 = u64::MAX;
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let u64_at = |at: usize| u64_at(head, at);
    let Some(page_size) = page_size(head) else { return false };
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

/// The page size that the first meta page names, if there can be such pages.
fn page_size(head: &[u8]) -> Option<u32> {
    let size = u32::from_le_bytes(head.get(PAGE_SIZE..PAGE_SIZE + 4)?.try_into().ok()?);
    ((512..=65_536).contains(&size) && size.is_power_of_two()).then_some(size)
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
    /// Maps the two pages once more, since LMDB does not give out its own map.
    pub(super) fn map(mut data: &File) -> Result<Metas, Error> {
        let mut head = [0; PAGE_SIZE + 4];
        data.read_exact(&mut head)?;
        let page_size = page_size(&head).ok_or(Error::Damaged)? as usize;
        // SAFETY: a new shared mapping, only read; the result is checked. If the file is cut, a process that reads it
        // is killed, here as in LMDB, which begins each transaction with these pages.
        let map = unsafe {
            libc::mmap(std::ptr::null_mut(), 2 * page_size, libc::PROT_READ, libc::MAP_SHARED, data.as_raw_fd(), 0)
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let map = NonNull::new(map.cast()).ok_or(io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Metas { map, page_size })
    }

    /// Whether one page belongs to the transaction `last`, and the other to the one before it. LMDB writes the pages in
    /// turn. A file that went back in time has two older pages. If a transaction that began before that was committed
    /// to the file, it still has one of them.
    pub(super) fn end_with(&self, last: u64) -> bool {
        self.transaction(last) == last && self.transaction(last ^ 1) == last.saturating_sub(1)
    }

    /// The transaction in the page that the given one is written to.
    fn transaction(&self, of: u64) -> u64 {
        let at = (of & 1) as usize * self.page_size + META_TRANSACTION;
        // SAFETY: within the two pages of the mapping, which stays until drop; page sizes and the offset are multiples
        // of eight. Other processes change it, so it is read as an atomic.
        unsafe { self.map.add(at).cast::<AtomicU64>().as_ref() }.load(Relaxed)
    }
}

impl Drop for Metas {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing else refers to.
        unsafe { libc::munmap(self.map.as_ptr().cast(), 2 * self.page_size) };
    }
}
