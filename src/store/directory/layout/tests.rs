use super::*;
use crate::{cache::testing::nobody_starts, store::directory::lock_files::open_file};
use rustix::fs::{FlockOperation, flock};
use std::os::unix::fs::PermissionsExt;

const WANTED: Wanted =
    Wanted { state_size: 1 << 20, size: None, shards: 2, mixed: false, sync: false, any_file_system: false };

fn open(root: &Path) -> Result<(Directory, bool), Error> {
    Directory::open(root, &WANTED, |_, _, alone| Ok(alone))
}

fn edit(root: &Path, from: &str, to: &str) {
    let path = root.join(fingerprint()).join("layout");
    let text = fs::read_to_string(&path).unwrap();
    let edited: String =
        text.lines().map(|line| if line.starts_with(from) { format!("{to}\n") } else { format!("{line}\n") }).collect();
    assert_ne!(edited, text);
    fs::write(path, edited).unwrap();
}

fn generation(directory: &Directory, number: u64) -> PathBuf {
    directory.state_path().join(format!("gen-{number}"))
}

fn make_state(directory: &Directory) {
    fs::create_dir_all(generation(directory, directory.layout.state)).unwrap();
}

#[test]
fn layout_round_trips_and_nonsense_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let (directory, alone) = open(&dir.path().join("c")).unwrap();
    assert!(alone);
    assert_eq!(Layout::parse(&directory.layout.to_text()).unwrap(), directory.layout);
    for text in ["", "secret=00", "\0\0", "shards=99999999999999999999"] {
        assert_eq!(Layout::parse(text), None);
    }
}

#[test]
fn the_second_user_is_not_alone_and_gets_the_same_secret() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(dir.path()).unwrap();
    let (second, alone) = open(dir.path()).unwrap();
    assert!(!alone);
    assert_eq!(first.layout.secret, second.layout.secret);
}

#[test]
fn whoever_comes_first_decides_the_size() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let open = |size| Directory::open(dir.path(), &Wanted { size, ..WANTED }, |_, _, _| Ok(())).unwrap().0;
    let size = |directory: &Directory| directory.layout.size;
    assert_eq!(size(&open(None)), SIZE);
    let first = open(Some(2 << 20));
    assert_eq!(size(&first), 2 << 20, "alone");
    assert_eq!(size(&open(Some(1 << 20))), 2 << 20, "the smallest does not trim everybody's answers");
    drop(first);
    assert_eq!(size(&open(None)), 2 << 20, "whoever has no wish keeps it");
    assert_eq!(size(&open(Some(1 << 20))), 1 << 20);
}

#[test]
fn another_boot_keeps_generations_only_after_a_clean_end() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let (directory, _) = open(dir.path()).unwrap();
    let before = directory.layout.clone();
    make_state(&directory);
    directory.close(|| true);
    drop(directory);
    edit(dir.path(), "boot=", "boot=another");
    let (directory, _) = open(dir.path()).unwrap();
    assert_eq!(directory.layout.state, before.state, "clean: kept");
    drop(directory); // no `close`: as if the power had failed
    edit(dir.path(), "boot=", "boot=yet-another");
    let (directory, _) = open(dir.path()).unwrap();
    assert_ne!(directory.layout.state, before.state, "not clean: fresh");
    drop(directory);
    let (directory, _) = open(dir.path()).unwrap();
    assert!(directory.layout.boot.len() > 10, "the same boot: kept whatever the mark says");
}

#[test]
fn another_boot_keeps_what_every_user_had_synced() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let full = |sync| Directory::open(dir.path(), &Wanted { sync, ..WANTED }, |_, _, _| Ok(())).unwrap().0;
    let crash = |boot: &str| edit(dir.path(), "boot=", &format!("boot={boot}"));
    let directory = full(true);
    let first = directory.layout.state;
    make_state(&directory);
    drop(directory);
    crash("second");
    assert_eq!(full(true).layout.state, first);
    // One user that does not sync is enough to tear the files.
    let (synced, other) = (full(true), full(false));
    drop((synced, other));
    crash("third");
    assert_ne!(full(true).layout.state, first);
}

#[test]
fn machine_time_does_not_follow_a_calendar_that_goes_back() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let (directory, _) = open(dir.path()).unwrap();
    directory.close(|| true);
    drop(directory);
    let later = since_epoch() + 1_000_000_000_000_000;
    edit(dir.path(), "closed=", &format!("closed={later}"));
    edit(dir.path(), "boot=", "boot=another");
    let (directory, _) = open(dir.path()).unwrap();
    assert!(directory.layout.offset + since_boot(0) >= later);
}

#[test]
fn beside_living_users_another_boot_id_is_no_reboot() {
    let dir = tempfile::tempdir().unwrap();
    let (first, _) = open(dir.path()).unwrap();
    make_state(&first);
    edit(dir.path(), "boot=", "boot=of-a-container");
    let (second, alone) = open(dir.path()).unwrap();
    assert!(!alone);
    let of = |directory: &Directory| (directory.layout.state, directory.layout.offset, directory.layout.numbers);
    assert_eq!(of(&second), of(&first));
    assert_eq!(second.layout.boot, "of-a-container", "as whoever came first has written it");
}

/// Another user can open what it may read, and hold a lock on it for ever.
#[test]
fn no_lock_is_taken_on_what_another_user_can_open() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let stranger = File::open(dir.path()).unwrap();
    flock(&stranger, FlockOperation::LockExclusive).unwrap();
    let (first, alone) = open(dir.path()).unwrap();
    assert!(alone && !open(dir.path()).unwrap().1);
    for file in [dir.path().join("users"), dir.path().join(fingerprint())] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o077, 0);
    }
    // Users are known all the same, whatever is removed.
    for removed in [dir.path().join(fingerprint()), dir.path().join("users")] {
        if removed.is_dir() {
            fs::remove_dir_all(removed).unwrap()
        } else {
            fs::remove_file(removed).unwrap()
        };
        let error = open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("stop them"), "{error}");
    }
    drop(first);
    assert!(open(dir.path()).unwrap().1);
}

/// As Kubernetes does for `fsGroup`, before every start.
#[test]
fn a_volume_that_was_given_to_a_group_is_taken_back() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    drop(open(&root).unwrap());
    let home = root.join(fingerprint());
    let files = [root.join("users"), home.join("users"), home.join("open.lock")];
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    [&root, &home].into_iter().for_each(|directory| set(directory, 0o2770));
    files.iter().for_each(|file| set(file, 0o660));
    let (_directory, alone) = open(&root).unwrap();
    assert!(alone);
    for path in files.iter().chain([&root, &home]) {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
}

#[test]
fn a_removed_state_is_not_made_again_under_its_number() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let (directory, _) = open(dir.path()).unwrap();
    make_state(&directory);
    let before = directory.layout.state;
    fs::remove_dir_all(directory.state_path()).unwrap();
    drop(directory);
    assert_eq!(open(dir.path()).unwrap().0.layout.state, before + 1);
}

#[test]
fn users_are_known_whatever_is_removed() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("cache");
    let (first, _) = open(&root).unwrap();
    let home = root.join(fingerprint());
    fs::remove_file(home.join("open.lock")).unwrap();
    assert!(!open(&root).unwrap().1, "not alone");
    for removed in [home.join("users"), home, root.clone()] {
        if removed.is_dir() {
            fs::remove_dir_all(removed).unwrap();
        } else {
            fs::remove_file(removed).unwrap();
        }
        let error = open(&root).unwrap_err().to_string();
        assert!(error.contains("stop them"), "{error}");
    }
    drop(first);
    assert!(open(&root).unwrap().1);
}

#[test]
fn users_of_another_build_are_an_error_unless_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let other = dir.path().join("v0-other");
    fs::create_dir(&other).unwrap();
    let users = open_file(&other.join("users")).unwrap();
    open(dir.path()).unwrap();
    flock(&users, FlockOperation::NonBlockingLockShared).unwrap();
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("v0-other"), "{error}");
    Directory::open(dir.path(), &Wanted { mixed: true, ..WANTED }, |_, _, _| Ok(())).unwrap();
}

#[test]
fn unusable_directories_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let writable = dir.path().join("writable");
    fs::create_dir_all(writable.join("pictures")).unwrap();
    fs::set_permissions(&writable, fs::Permissions::from_mode(0o777)).unwrap();
    for (path, reason) in
        [(file.clone(), "not a directory"), (file.join("below"), "cannot be made"), (writable, "other users")]
    {
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}
