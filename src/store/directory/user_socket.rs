//! Sockets that tell the users of a directory that is no longer at its path.
//!
//! All lock files are in the directory, and go with it when it is removed or renamed: a process that then makes it anew
//! would find no users. So each user also listens at an abstract socket, whose name tells the path and the lock file
//! that was there. No data is ever sent on it. Processes in another network namespace, as in most containers, do not
//! see it.

use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt},
    process::geteuid,
};
use std::{
    fs::{self, Metadata},
    io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, fs::MetadataExt},
    },
    path::Path,
};
use xxhash_rust::xxh3::Xxh3;

/// A socket that says that its process uses a directory, as long as it exists. The `facts` are those of the lock file.
#[derive(Debug)]
pub(crate) struct UserSocket {
    _listening: Option<OwnedFd>,
}

impl UserSocket {
    /// If the socket cannot be made, the process does without: it protects from a mistake, and nothing else depends on
    /// it.
    pub(crate) fn listen(root: &Path, facts: &Metadata) -> UserSocket {
        let name = place(root).map(|place| format!("{place}{}/{:016x}", which(facts), rand::random::<u64>()));
        let listening = name.and_then(|name| {
            let socket = socket()?;
            rustix::net::bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
            rustix::net::listen(&socket, 1)?;
            Ok(socket)
        });
        if let Err(error) = &listening {
            tracing::debug!(%error, path = %root.display(), "others will not see who uses it if it is removed");
        }
        UserSocket { _listening: listening.ok() }
    }
}

/// Whether a process of this user uses another directory that was at that path, or one whose lock file was replaced.
pub(crate) fn was_another(root: &Path, facts: &Metadata) -> bool {
    let Ok(place) = place(root) else { return false };
    let ours = which(facts);
    let sockets = fs::read("/proc/net/unix").unwrap_or_default();
    sockets.split(|&byte| byte == b'\n').any(|line| {
        let Some(at) = line.iter().position(|&byte| byte == b'@') else { return false };
        let name = &line[at + 1..];
        name.strip_prefix(place.as_bytes()).is_some_and(|rest| !rest.starts_with(ours.as_bytes()))
            && is_of_this_user(name)
    })
}

/// The beginning of a socket's name: the same for a path as seen from anywhere, and different for every other path.
fn place(root: &Path) -> io::Result<String> {
    let root = fs::canonicalize(root)?;
    let (Some(parent), Some(name)) = (root.parent(), root.file_name()) else {
        return Err(io::Error::other("it has no name"));
    };
    let parent = fs::metadata(parent)?;
    let mut hasher = Xxh3::new();
    hasher.update(&parent.dev().to_le_bytes());
    hasher.update(&parent.ino().to_le_bytes());
    hasher.update(name.as_bytes());
    Ok(format!("floodgate/{:032x}/", hasher.digest128()))
}

fn which(facts: &Metadata) -> String {
    format!("{:x}-{:x}", facts.dev(), facts.ino())
}

/// Any user may listen at any name, so the owner is asked for. A socket that cannot be asked since it has many callers
/// is no less real.
fn is_of_this_user(name: &[u8]) -> bool {
    let asked = SocketAddrUnix::new_abstract_name(name).and_then(|address| {
        let socket = socket()?;
        rustix::net::connect(&socket, &address)?;
        sockopt::socket_peercred(&socket)
    });
    match asked {
        Ok(peer) => peer.uid == geteuid(),
        Err(error) => error == rustix::io::Errno::AGAIN,
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::nobody_starts;

    #[test]
    fn who_uses_what_was_at_a_path_is_seen_until_it_ends() {
        let _alone = nobody_starts();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache");
        fs::create_dir(&path).unwrap();
        let facts = fs::metadata(&path).unwrap();
        let user = UserSocket::listen(&path, &facts);
        assert!(!was_another(&path, &facts), "it is the one that is there");
        fs::rename(&path, dir.path().join("away")).unwrap();
        fs::create_dir(&path).unwrap();
        let facts = fs::metadata(&path).unwrap();
        for _ in 0..5 {
            assert!(was_another(&path, &facts), "however often it is asked");
        }
        assert!(!was_another(dir.path(), &facts), "another path");
        drop(user);
        assert!(!was_another(&path, &facts));
    }
}
