//! Who may use a directory: it must be this user's, nobody else may be able to write to it, and it must be on a file
//! system that carries shared locks and maps.
//!
//! What others did to a directory of ours is set right, where it surely is the cache's own: in Kubernetes, `fsGroup` makes
//! everything in a volume writable for a group whenever the volume is mounted.

use crate::store::os::file_system::{FileSystem, file_system};
use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    path::Path,
};

/// The rights of everybody but the owner.
const OTHERS: u32 = 0o077;
const OTHERS_WRITE: u32 = 0o022;
const STICKY: u32 = 0o1000;

const REMEDY: &str = "name a subdirectory of it, which is then made with the right owner and mode (in Kubernetes, also set \
                      `fsGroupChangePolicy: OnRootMismatch`)";

/// A directory that may be used.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) directory: File,
    pub(super) file_system: FileSystem,
    /// No other user can open the directory, and so none can lock it.
    pub(super) is_private: bool,
}

/// Creates the root if need be; the error says why it cannot be used. `any_file_system` allows those that are not
/// known to do.
pub(super) fn enter(root: &Path, any_file_system: bool) -> Result<Access, String> {
    match make_private(root) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err("it is not a directory; name another path".into());
        }
        Err(error) => return Err(format!("the directory cannot be made: {error}")),
    }
    let directory = File::open(root).map_err(|error| format!("the directory cannot be read: {error}"))?;
    let facts = own(&directory)?;
    let mut mode = facts.mode();
    if mode & OTHERS_WRITE != 0 {
        if mode & STICKY != 0 || !holds_only_ours(root) {
            return Err(format!("other users may write to it; give it mode 0700, or {REMEDY}"));
        }
        mode = set_right(&directory, root, mode)?;
    }
    let file_system = match file_system(&directory)
        .map_err(|error| format!("its file system cannot be found out: {error}"))?
    {
        FileSystem::Unfit(kind) if any_file_system => {
            tracing::warn!(
                cache = %root.display(), kind,
                "opened on a file system that may not share locks and maps between all its users: locks may be held twice and \
                 files damaged"
            );
            FileSystem::Plain
        }
        FileSystem::Unfit(kind) => {
            return Err(format!(
                "it is on a file system ({kind}) that is not known to share locks and memory between all its users; use a \
                 local disk, or insist with `Builder::allow_any_file_system`"
            ));
        }
        fit => fit,
    };
    Ok(Access { directory, file_system, is_private: mode & OTHERS == 0 })
}

/// Makes a directory within the root, or sets right what there is. The error says why it cannot be used.
pub(super) fn make_inner(path: &Path) -> Result<(), String> {
    make_private(path).map_err(|error| format!("its inner directory cannot be made: {error}"))?;
    let directory = File::open(path).map_err(|error| format!("its inner directory cannot be read: {error}"))?;
    let mode = own(&directory)?.mode();
    if mode & OTHERS != 0 {
        set_right(&directory, path, mode)?;
    }
    Ok(())
}

fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn own(directory: &File) -> Result<fs::Metadata, String> {
    let facts = directory.metadata().map_err(|error| error.to_string())?;
    let me = rustix::process::geteuid().as_raw();
    match facts.uid() == me {
        true => Ok(facts),
        false => Err(format!(
            "it belongs to user {}, this process runs as {me}, and whoever writes to its files could crash it; {REMEDY}",
            facts.uid()
        )),
    }
}

/// Takes the rights of all others away, and leaves the bits that grant nothing.
fn set_right(directory: &File, path: &Path, mode: u32) -> Result<u32, String> {
    let right = mode & 0o7777 & !OTHERS;
    directory
        .set_permissions(Permissions::from_mode(right))
        .map_err(|error| format!("other users may use it, and their rights cannot be taken away: {error}"))?;
    tracing::warn!(
        path = %path.display(), before = format!("{:04o}", mode & 0o7777), now = format!("{right:04o}"),
        "other users had rights to the cache's directory: these were taken away"
    );
    Ok(right)
}

/// Whether the directory has no other purpose.
fn holds_only_ours(root: &Path) -> bool {
    let Ok(entries) = fs::read_dir(root) else { return false };
    entries.flatten().all(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let is_home = name.strip_prefix('v').is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()));
        is_home || ["users", "claim", "lost+found"].contains(&&*name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(mode: u32, entries: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        entries.iter().for_each(|entry| fs::create_dir(dir.path().join(entry)).unwrap());
        fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
        dir
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn our_own_directory_is_set_right() {
        for (before, entries, after) in [
            (0o2770, &["v6-x86_64-64-gnu", "lost+found"][..], 0o2700),
            (0o775, &[], 0o700),
            (0o777, &["v12-any"], 0o700),
        ] {
            let dir = directory(before, entries);
            assert!(enter(dir.path(), false).unwrap().is_private);
            assert_eq!(mode(dir.path()), after);
        }
        let dir = directory(0o755, &["pictures"]);
        assert!(!enter(dir.path(), false).unwrap().is_private);
        assert_eq!(mode(dir.path()), 0o755, "nobody else can write there: none of our business");
        let inner = dir.path().join("v6");
        fs::create_dir(&inner).unwrap();
        fs::set_permissions(&inner, Permissions::from_mode(0o2770)).unwrap();
        make_inner(&inner).unwrap();
        assert_eq!(mode(&inner), 0o2700);
    }

    #[test]
    fn what_has_another_purpose_stays_as_it_is() {
        for (mode_before, entries) in [(0o1777, &[][..]), (0o770, &["pictures"]), (0o777, &["v6", "video"])] {
            let dir = directory(mode_before, entries);
            let error = enter(dir.path(), false).unwrap_err();
            assert!(error.contains("other users") && error.contains("subdirectory"), "{error}");
            assert_eq!(mode(dir.path()), mode_before);
        }
    }

    #[test]
    fn of_anothers_directory_the_remedy_is_named() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("not tested: only root can give a directory away");
            return;
        }
        let dir = directory(0o2770, &[]);
        std::os::unix::fs::chown(dir.path(), Some(12345), None).unwrap();
        let error = enter(dir.path(), false).unwrap_err();
        assert!(error.contains("12345") && error.contains("subdirectory") && error.contains("fsGroupChangePolicy"));
        assert_eq!(mode(dir.path()), 0o2770);
    }
}
