//! Full disks of each kind of file system: nothing that was granted is lost, and nobody is killed by a map without a block.
//!
//! It takes root, a loop device and the tools that make file systems; what cannot be made is not tested, which is said.

use rustix::io::Errno;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    thread,
};
use tower_floodgate::{Cache, Error};

#[path = "support/processes.rs"]
mod processes;
use processes::{Child, nobody_starts, open, role, say, starting, told};

const MIB: u64 = 1 << 20;

/// A file system in a file.
struct Disk {
    mount: PathBuf,
    _image: tempfile::TempDir,
}

impl Disk {
    fn make(mkfs: &str, size: u64) -> Option<Disk> {
        let dir = tempfile::tempdir().unwrap();
        let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
        File::create(&image).unwrap().set_len(size).unwrap();
        fs::create_dir(&mount).unwrap();
        let ran = |command: &mut Command| {
            let _starting = starting();
            command.output().is_ok_and(|ran| ran.status.success())
        };
        let made = ran(Command::new(format!("mkfs.{mkfs}")).arg("-q").arg(&image))
            && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount));
        if !made {
            eprintln!("not tested: no {mkfs} can be made here");
            return None;
        }
        Some(Disk { mount, _image: dir })
    }

    /// Takes every block. What was promised to one file is given back at the first failure, and taken by the next.
    fn fill(&self) {
        let noise: Vec<u8> = (0..MIB).map(|_| rand::random()).collect();
        for file in 0..10 {
            let Ok(mut filler) = File::create(self.mount.join(format!("filler {file}"))) else { break };
            for size in [1 << 20, 4096, 512] {
                while filler.write_all(&noise[..size]).is_ok() {}
            }
            self.sync();
        }
    }

    /// What was written stands in its place, so that the next write may want another one.
    fn sync(&self) {
        let synced = rustix::fs::syncfs(File::open(&self.mount).unwrap());
        assert!(matches!(synced, Ok(()) | Err(Errno::NOSPC)), "{synced:?}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _starting = starting();
        let _ = Command::new("umount").arg("-l").arg(&self.mount).status();
    }
}

/// A process uses the cache on a disk that fills up, and others join it.
fn fills_up(disk: &Disk, cache: &Path) {
    let mut child = Child::spawn("use", cache);
    child.expect("open");
    disk.fill();
    for _ in 0..2 {
        disk.sync();
        child.tell("again");
        child.expect("used");
    }
    let mut joins = Child::spawn("use", cache);
    joins.expect("open");
    joins.tell("again");
    joins.expect("used");
    joins.end();
    child.end();
}

#[test]
fn a_full_disk_kills_nobody() {
    for (mkfs, size) in [("ext4", 64 * MIB), ("ext2", 64 * MIB), ("xfs", 300 * MIB), ("btrfs", 120 * MIB)] {
        if let Some(disk) = Disk::make(mkfs, size) {
            fills_up(&disk, &disk.mount.join("cache"));
        }
    }
}

/// The copy shares the blocks of the cache, so that whoever writes first needs another one.
#[test]
fn nor_does_it_where_a_copy_shares_the_blocks() {
    let Some(disk) = Disk::make("xfs", 300 * MIB) else { return };
    let cache = disk.mount.join("cache");
    {
        // Who opens it next is to be alone.
        let _alone = nobody_starts();
        use_it(&open(&cache));
    }
    disk.sync();
    let starting = starting();
    let copied = Command::new("cp").args(["-r", "--reflink=always"]).arg(&cache).arg(disk.mount.join("copy")).status();
    assert!(copied.unwrap().success());
    drop(starting);
    fills_up(&disk, &cache);
}

/// Writes to every page of `state/` that is in use, and reads from threads that have not read before.
fn use_it(cache: &Cache) {
    for n in 0..100 {
        cache.throttle(&format!("t{n}"), tower_floodgate::throttle::Rate::per_second(1000)).check_blocking().unwrap();
    }
    for n in 0..3 {
        match cache.insert(&n.to_string(), &"x".repeat(10_000)).wait() {
            Ok(_) | Err(Error::Full) => {}
            Err(error) => panic!("{error}"),
        }
    }
    thread::scope(|threads| {
        for n in 0..20 {
            threads.spawn(move || cache.get::<String>(&n.to_string()).unwrap());
        }
    });
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    assert_eq!(role, "use");
    let cache = open(&path);
    say("open");
    while told().is_some() {
        use_it(&cache);
        say("used");
    }
}
