//! Disk blocks of files that are mapped writable. A process that writes to a map where the disk has no block to give is
//! killed, so such files get their blocks first, and keep them.

use crate::error::Error;
use rustix::{
    fs::{FallocateFlags, IFlags, fallocate, ioctl_getflags, ioctl_setflags},
    io::Errno,
};
use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

/// Bytes that are written at once where a file system cannot reserve.
const PIECE: usize = 64 << 10;

/// Lengthens a file to a size at least, and gives it blocks of its own. No other process may be writing to it.
///
/// # Errors
///
/// [`Error::Full`] if the disk, or the user's part of it, has no room.
pub(crate) fn reserve(file: &File, size: u64) -> Result<(), Error> {
    // Blocks that are shared with a copy (`cp --reflink`) are not ours to write to.
    match fallocate(file, FallocateFlags::UNSHARE_RANGE, 0, size) {
        Ok(()) => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::INVAL) => {}
        Err(error) => return Err(io::Error::from(error).into()),
    }
    match fallocate(file, FallocateFlags::empty(), 0, size) {
        Ok(()) => Ok(()),
        // ext2 and ext3, and some that move what is written anyway.
        Err(Errno::OPNOTSUPP) => Ok(write_through(file, size)?),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Writes what is there, and zeros behind it.
fn write_through(file: &File, size: u64) -> io::Result<()> {
    let facts = file.metadata()?;
    // `st_blocks` counts in 512 bytes, whatever the file system does.
    if facts.len() >= size && facts.blocks() * 512 >= size {
        return Ok(());
    }
    let mut piece = vec![0; PIECE];
    for at in (0..size).step_by(PIECE) {
        let bytes = &mut piece[..PIECE.min((size - at) as usize)];
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], at + read as u64)? {
                0 => break,
                more => read += more,
            }
        }
        bytes[read..].fill(0);
        file.write_all_at(bytes, at)?;
    }
    Ok(())
}

/// Files that are made in the directory from now on are written in place, on a file system that otherwise writes
/// elsewhere (btrfs).
pub(crate) fn write_in_place(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    let flags = ioctl_getflags(&directory)?;
    if !flags.contains(IFlags::NOCOW) {
        ioctl_setflags(&directory, flags | IFlags::NOCOW)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_keeps_what_it_held() {
        for way in [reserve, |file: &File, size| Ok(write_through(file, size)?)] {
            let file = tempfile::tempfile().unwrap();
            let text = vec![7; PIECE + 100];
            file.write_all_at(&text, 0).unwrap();
            // A hole, and something behind it.
            file.write_all_at(b"end", 5 * PIECE as u64).unwrap();
            way(&file, 6 * PIECE as u64 + 1).unwrap();
            let facts = file.metadata().unwrap();
            assert!(facts.len() == 6 * PIECE as u64 + 1 && facts.blocks() * 512 >= facts.len());
            let mut read = vec![0; facts.len() as usize];
            file.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(read[..text.len()], text);
            assert_eq!(&read[5 * PIECE..5 * PIECE + 3], b"end");
            assert!(read[text.len()..5 * PIECE].iter().chain(&read[5 * PIECE + 3..]).all(|&byte| byte == 0));
        }
    }
}
