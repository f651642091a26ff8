//! What a file system is fit for.

use std::{fs::File, io};

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
