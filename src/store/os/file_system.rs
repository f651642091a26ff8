//! The kinds of file systems, by what they can carry.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
};

/// A kind of file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// Reserved blocks stay ours: a writable map cannot run into a full disk.
    Reserving,
    /// Blocks that are written move, unless a file is told to stay in place.
    CopyOnWrite,
    Plain,
    /// Locks or shared maps do not work between all users of the files, or it is not known whether they do.
    Unfit(String),
}

/// The kind of file system that a directory is on.
pub(crate) fn file_system(directory: &File) -> io::Result<FileSystem> {
    let magic = rustix::fs::fstatfs(directory)?.f_type as u32;
    Ok(match kind(magic) {
        Kind::Reserving => FileSystem::Reserving,
        Kind::CopyOnWrite => FileSystem::CopyOnWrite,
        Kind::Plain => FileSystem::Plain,
        Kind::Unfit(name) => {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let name = mounted(&mounts, directory.metadata()?.dev()).unwrap_or(name);
            FileSystem::Unfit(name.to_owned())
        }
        Kind::Unknown => {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
            let name = mounted(&mounts, directory.metadata()?.dev()).unwrap_or("of an unknown kind");
            FileSystem::Unfit(format!("{name}, {magic:#x}"))
        }
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Reserving,
    CopyOnWrite,
    Plain,
    Unfit(&'static str),
    Unknown,
}

/// The kind that `statfs` tells. Those that have one kernel between all users of a file, which keeps its locks and its
/// pages, are known to do; so are those that hand everything on to such a one (overlayfs).
fn kind(magic: u32) -> Kind {
    match magic {
        0xef53 | 0x5846_5342 | 0x0102_1994 => Kind::Reserving, // ext2 to ext4, xfs, tmpfs
        0x9123_683e | 0xca45_1a4e => Kind::CopyOnWrite,        // btrfs, bcachefs
        // zfs, f2fs, overlayfs, jfs, reiserfs, ramfs
        0x2fc1_2fc1 | 0xf2f5_2010 | 0x794c_7630 | 0x3153_464a | 0x5265_4973 | 0x8584_58f6 => Kind::Plain,
        0x6573_5546 => Kind::Unfit("FUSE"),
        0x6969 => Kind::Unfit("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Kind::Unfit("SMB"),
        0x0102_1997 => Kind::Unfit("9p"),
        0x00c3_6400 => Kind::Unfit("Ceph"),
        0x5346_414f | 0x6b41_4653 => Kind::Unfit("AFS"),
        0x7375_7245 => Kind::Unfit("Coda"),
        0x0bd0_0bd0 => Kind::Unfit("Lustre"),
        0x0116_1970 => Kind::Unfit("GFS2"),
        0x7461_636f => Kind::Unfit("OCFS2"),
        0x4750_4653 => Kind::Unfit("GPFS"),
        0x1983_0326 => Kind::Unfit("BeeGFS"),
        0x2003_0528 => Kind::Unfit("OrangeFS"),
        0xaad7_aaea => Kind::Unfit("PanFS"),
        0x786f_4256 => Kind::Unfit("vboxsf"),
        0xbacb_acbc => Kind::Unfit("vmhgfs"),
        0x7c7c_6673 => Kind::Unfit("prl_fs"),
        _ => Kind::Unknown,
    }
}

/// The kind that the list of mounts has for a device, such as `fuse.sshfs` or `virtiofs`.
fn mounted(mountinfo: &str, device: u64) -> Option<&str> {
    let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    mountinfo.lines().find_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == device).then(|| source.split(' ').next())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_to_be_local_is_fit() {
        let fit = [
            ("ext4", 0xef53, Kind::Reserving),
            ("xfs", 0x5846_5342, Kind::Reserving),
            ("tmpfs", 0x0102_1994, Kind::Reserving),
            ("btrfs", 0x9123_683e, Kind::CopyOnWrite),
            ("overlayfs", 0x794c_7630, Kind::Plain),
            ("zfs", 0x2fc1_2fc1, Kind::Plain),
            ("f2fs", 0xf2f5_2010, Kind::Plain),
        ];
        for (name, magic, wanted) in fit {
            assert_eq!(kind(magic), wanted, "{name}");
        }
        for (name, magic) in [
            ("FUSE", 0x6573_5546),
            ("GFS2", 0x0116_1970),
            ("OCFS2", 0x7461_636f),
            ("GPFS", 0x4750_4653),
            ("BeeGFS", 0x1983_0326),
            ("vboxsf", 0x786f_4256),
            ("NFS", 0x6969),
        ] {
            assert_eq!(kind(magic), Kind::Unfit(name));
        }
        // procfs, and a number that is nobody's.
        assert!([0x9fa0, 1].into_iter().all(|magic| kind(magic) == Kind::Unknown));
        let proc = file_system(&File::open("/proc").unwrap()).unwrap();
        assert_eq!(proc, FileSystem::Unfit("proc, 0x9fa0".to_owned()));
    }

    #[test]
    fn the_list_of_mounts_names_the_kind() {
        let mounts = "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
                      90 22 0:51 / /mnt/a\\040b rw shared:7 master:1 - fuse.sshfs me@host:/ rw,user_id=0\n\
                      91 22 0:52 / /mnt/v rw - virtiofs share rw\n";
        for (minor, wanted) in [(51, Some("fuse.sshfs")), (52, Some("virtiofs")), (53, None)] {
            assert_eq!(mounted(mounts, rustix::fs::makedev(0, minor)), wanted);
        }
    }
}
