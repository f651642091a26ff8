//! One cache in several processes: exact counts, kills, forks, damaged files, a full disk.

#![allow(unsafe_code)]

mod support;

use nix::{
    sys::{
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, fork},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::Command,
};
use support::{Child, builder, count, files, nobody_starts, role, say, starting, told};
use tower_floodgate::{Cache, Durability, Error};

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((role, path)) = role() else { return };
    match role.as_str() {
        "count" => {
            let cache = builder(&path).open().unwrap();
            say("open");
            told();
            for _ in 0..500 {
                cache.incr("n", 1).wait().unwrap();
                count(&cache, "n").unwrap();
            }
        }
        "add" => {
            let cache = builder(&path).open().unwrap();
            say("open");
            told();
            let me = std::process::id();
            let added = (0..50).filter(|i| cache.add(&format!("once {i}"), &me).wait().unwrap()).count();
            say(added);
        }
        "insert" => {
            let cache = builder(&path).open().unwrap();
            cache.insert("kept", "text").wait().unwrap();
            say("stored");
            told();
        }
        "insert, synced" => {
            let cache = synced(&path);
            cache.insert("kept", "text").wait().unwrap();
            count(&cache, "n").unwrap();
            say("stored");
            told();
        }
        "temporary" => {
            let cache = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
            cache.insert("x", &1).wait().unwrap();
            say(cache.path().display());
            told();
        }
        "random writes" => random_writes(&builder(&path).open().unwrap()),
        "fork" => forking(&path),
        "come and go" => {
            for _ in 0..60 {
                let cache = builder(&path).open().unwrap();
                cache.incr("n", 1).wait().unwrap();
                count(&cache, "n").unwrap();
            }
        }
        "open" => match builder(&path).open() {
            Ok(_) => say("open"),
            Err(error) => say(error),
        },
        role => panic!("{role}"),
    }
}

#[test]
fn two_processes_count_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let mut children: Vec<_> = (0..2).map(|_| Child::spawn("count", dir.path())).collect();
    children.iter_mut().for_each(|child| child.expect("open"));
    children.iter_mut().for_each(|child| child.tell("go"));
    children.into_iter().for_each(Child::end);
    let cache = builder(dir.path()).open().unwrap();
    assert_eq!(cache.get::<i64>("n").unwrap(), Some(1000));
    assert_eq!(count(&cache, "n").unwrap(), 1001);
}

#[test]
fn of_four_processes_one_adds() {
    let dir = tempfile::tempdir().unwrap();
    let mut children: Vec<_> = (0..4).map(|_| Child::spawn("add", dir.path())).collect();
    children.iter_mut().for_each(|child| child.expect("open"));
    children.iter_mut().for_each(|child| child.tell("go"));
    let added: usize = children.iter_mut().map(|child| child.heard().unwrap().parse::<usize>().unwrap()).sum();
    assert_eq!(added, 50);
    children.into_iter().for_each(Child::end);
}

#[test]
fn what_a_process_stored_is_there_after_it_was_killed() {
    for open_meanwhile in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let before = open_meanwhile.then(|| builder(dir.path()).open().unwrap());
        let mut child = Child::spawn("insert", dir.path());
        child.expect("stored");
        child.kill();
        let cache = before.unwrap_or_else(|| builder(dir.path()).open().unwrap());
        assert_eq!(cache.get::<String>("kept").unwrap().as_deref(), Some("text"));
    }
}

fn synced(path: &Path) -> Cache {
    builder(path).durability(Durability::Full).open().unwrap()
}

/// The directory, closed by nobody, looks as after a crash of the machine.
fn crash(dir: &Path) {
    let path = &files(dir, "layout")[0];
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains("\nclean=0\n"), "{text}");
    let (before, boot) = text.split_once("\nboot=").unwrap();
    let (_, after) = boot.split_once('\n').unwrap();
    fs::write(path, format!("{before}\nboot=another\n{after}")).unwrap();
}

#[test]
fn a_crash_of_the_machine_takes_what_was_not_synced_and_nothing_else() {
    // What the processes were that used the directory before the crash, and whether all of them synced.
    for (roles, kept) in [
        (vec!["insert, synced"], true),
        (vec!["insert, synced", "insert, synced"], true),
        (vec!["insert"], false),
        (vec!["insert, synced", "insert"], false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut children: Vec<_> = roles.iter().map(|role| Child::spawn(role, dir.path())).collect();
        children.iter_mut().for_each(|child| child.expect("stored"));
        children.into_iter().for_each(Child::kill);
        crash(dir.path());
        let cache = synced(dir.path());
        assert_eq!(cache.get::<String>("kept").unwrap().as_deref(), kept.then_some("text"), "{roles:?}");
        let counted = if kept { roles.len() as u64 } else { 0 };
        assert_eq!(count(&cache, "n").unwrap(), counted + 1, "{roles:?}");
        assert_eq!(cache.stats().damaged, 0);
    }
}

#[test]
fn processes_come_and_go_and_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..3).map(|_| Child::spawn("come and go", dir.path())).collect();
    children.into_iter().for_each(Child::end);
    assert!(fs::read_to_string(&files(dir.path(), "layout")[0]).unwrap().contains("clean=1"));
    let cache = builder(dir.path()).open().unwrap();
    assert_eq!(cache.get::<i64>("n").unwrap(), Some(180));
    assert_eq!(count(&cache, "n").unwrap(), 181);
}

/// The text that belongs to a name and a number: what is read must be one of these.
fn text(name: u32, number: u32) -> String {
    format!("{name} {number} ").repeat(1 + (number as usize * 37) % 400)
}

fn random_writes(cache: &Cache) {
    let seed = told().unwrap().parse().unwrap();
    let mut random = StdRng::seed_from_u64(seed);
    for done in 1.. {
        let (name, number) = (random.random_range(0..100_u32), random.random_range(0..1000));
        match random.random_range(0..10) {
            0 => drop(cache.remove(&name.to_string()).wait().unwrap()),
            1 => {
                let tag = (name % 10).to_string();
                let purged = cache.evict(&tag);
                tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(purged).unwrap();
            }
            2 => {
                let queued: Vec<_> = (0..20).map(|_| cache.incr("many", 1)).collect();
                queued.into_iter().for_each(|sum| assert!(sum.wait().unwrap() > 0));
            }
            _ => {
                let insert = cache.insert(&name.to_string(), &(name, number, text(name, number)));
                insert.tag(&(name % 10).to_string()).wait().unwrap();
            }
        }
        let sums = (cache.incr("n", 1).wait().unwrap(), count(cache, "n").unwrap());
        if done % 16 == 0 {
            say(format!("{} {}", sums.0, sums.1));
        }
    }
}

#[test]
fn kill_9_in_the_middle_of_writes_leaves_a_sound_cache() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = StdRng::seed_from_u64(9);
    let mut beside = None;
    for round in 0..20 {
        let mut child = Child::spawn("random writes", dir.path());
        child.tell(&round.to_string());
        let mut last = String::new();
        for _ in 0..random.random_range(1..12) {
            last = child.heard().unwrap();
        }
        child.kill();
        let cache = beside.take().unwrap_or_else(|| builder(dir.path()).open().unwrap());
        let (sum, counted) = last.split_once(' ').unwrap();
        assert!(cache.get::<i64>("n").unwrap().unwrap() >= sum.parse().unwrap());
        assert!(count(&cache, "n").unwrap() > counted.parse::<u64>().unwrap());
        for name in 0..100 {
            if let Some((of, number, found)) = cache.get::<(u32, u32, String)>(&name.to_string()).unwrap() {
                assert_eq!((of, found), (name, text(name, number)));
            }
        }
        let stats = cache.stats();
        assert_eq!(stats.damaged, 0);
        assert!(stats.entry_bytes <= 4 << 20);
        cache.insert("after", &round).wait().unwrap();
        // Every other time the next one finds the directory in use.
        beside = (round % 2 == 0).then_some(cache);
    }
}

/// Runs `f` in a forked child and answers whether it ended well.
fn in_fork(f: impl FnOnce()) -> bool {
    // SAFETY: this is a process of its own made for this test; its other threads wait, and glibc's allocator and this
    // crate know of forks.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let fine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_ok();
            // SAFETY: ends the process without running what belongs to the parent.
            unsafe { libc_exit(if fine { 0 } else { 1 }) }
        }
        ForkResult::Parent { child } => matches!(waitpid(child, None).unwrap(), WaitStatus::Exited(_, 0)),
    }
}

unsafe extern "C" {
    #[link_name = "_exit"]
    fn libc_exit(code: i32) -> !;
}

/// What it inherited given up, the child opens the directory for itself. It may be that it never can, since the parent's
/// worker thread was at work at the moment of the fork.
fn reopen(path: &Path, inherited: Option<(Cache, Cache)>) {
    drop(inherited);
    let cache = builder(path).open().unwrap();
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(1));
    cache.insert("from the child", &1).wait().unwrap();
    assert_eq!(count(&cache, "n").unwrap(), 1);
}

fn forking(path: &Path) {
    let cache = builder(path).open().unwrap();
    let temporary = Cache::builder_temporary().state_size(1 << 20).open().unwrap();
    cache.insert("x", &1).wait().unwrap();
    temporary.insert("x", &1).wait().unwrap();
    let mut handles = Some((cache, temporary));
    let fine = in_fork(|| {
        let (cache, temporary) = handles.as_ref().unwrap();
        for cache in [cache, temporary] {
            assert!(matches!(cache.get::<i32>("x"), Err(Error::Forked)));
            assert!(matches!(cache.insert("x", &2).wait(), Err(Error::Forked)));
            assert!(matches!(cache.incr("n", 2).wait(), Err(Error::Forked)));
            assert!(matches!(count(cache, "n"), Err(Error::Forked)));
            assert_eq!(cache.stats().entries, 0);
        }
        let error = builder(path).open().unwrap_err();
        assert!(error.to_string().contains("forked"), "{error}");
    });
    assert!(fine);
    let reopened = (0..100).any(|_| in_fork(|| reopen(path, handles.take())));
    assert!(reopened);
    // The parent's files, locks and threads are as they were.
    let (cache, temporary) = handles.take().unwrap();
    assert_eq!(temporary.get::<i32>("x").unwrap(), Some(1));
    assert!(temporary.path().exists());
    assert_eq!(cache.get::<i32>("from the child").unwrap(), Some(1));
    assert_eq!(cache.incr("n", 1).wait().unwrap(), 1);
    assert_eq!(count(&cache, "n").unwrap(), 2);
    assert!(fs::read_to_string(&files(path, "layout")[0]).unwrap().contains("clean=0"));
    let mut third = Child::spawn("open", path);
    third.expect("open");
    third.end();
}

#[test]
fn a_forked_child_is_told_so_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    Child::spawn("fork", dir.path()).end();
    let cache = builder(dir.path()).open().unwrap();
    assert_eq!(cache.get::<i32>("x").unwrap(), Some(1));
}

/// A directory with something in it that nobody uses.
fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let cache = builder(dir.path()).open().unwrap();
    for i in 0..50 {
        cache.insert(&i.to_string(), &"x".repeat(1000)).wait().unwrap();
    }
    count(&cache, "n").unwrap();
    // Closed when the handle is gone: a file that is cut while it is mapped would kill the process.
    drop(cache);
    dir
}

/// The file of one of the two environments.
fn file_of(dir: &Path, environment: &str, name: &str) -> PathBuf {
    files(dir, name).into_iter().find(|path| path.to_string_lossy().contains(environment)).unwrap()
}

/// It opens, and what can be read is as it was stored; the rest is gone.
fn works(dir: &Path, what: &str) {
    let cache = builder(dir).open().unwrap_or_else(|error| panic!("{what}: {error}"));
    for i in 0..50 {
        let found = cache.get::<String>(&i.to_string()).unwrap();
        assert!(found.is_none_or(|found| found == "x".repeat(1000)), "{what}");
    }
    cache.insert("new", &1).wait().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(cache.get::<i32>("new").unwrap(), Some(1), "{what}");
    assert!((1..=2).contains(&count(&cache, "n").unwrap()), "{what}");
    drop(cache);
    assert_eq!(builder(dir).open().unwrap().get::<i32>("new").unwrap(), Some(1), "{what}");
}

#[test]
fn files_that_are_short_garbage_empty_or_gone_begin_anew() {
    let _alone = nobody_starts();
    for environment in ["/state/", "/entries-"] {
        for name in ["data.mdb", "lock.mdb", "gate"] {
            let garbage: Vec<u8> = (0..100_000_u32).map(|i| (i * 31 % 251) as u8).collect();
            for length in [Some(0), Some(1), Some(40), Some(4096), Some(8192), Some(12_288), Some(20_000), None] {
                let dir = filled();
                let path = file_of(dir.path(), environment, name);
                let bytes = fs::read(&path).unwrap();
                let length = length.unwrap_or(bytes.len() / 2).min(bytes.len());
                fs::write(&path, &bytes[..length]).unwrap();
                works(dir.path(), &format!("{environment} {name} cut to {length} bytes"));
            }
            let dir = filled();
            fs::write(file_of(dir.path(), environment, name), &garbage).unwrap();
            works(dir.path(), &format!("{environment} {name} garbage"));
            let dir = filled();
            fs::remove_file(file_of(dir.path(), environment, name)).unwrap();
            works(dir.path(), &format!("{environment} {name} gone"));
        }
        let dir = filled();
        let gone = file_of(dir.path(), environment, "data.mdb");
        fs::remove_dir_all(gone.parent().unwrap()).unwrap();
        works(dir.path(), &format!("{environment} gone"));
    }
}

#[test]
fn a_layout_that_is_gone_or_nonsense_begins_anew_unless_somebody_uses_it() {
    let alone = nobody_starts();
    let nonsense = ["", "\0\0\0", "secret=1\n", "state_size=0", "state_size=4097", "state_size=18446744073709551615"];
    for text in nonsense {
        let dir = filled();
        let layout = &files(dir.path(), "layout")[0];
        let text = match text.split_once('=') {
            Some(("state_size", _)) => fs::read_to_string(layout).unwrap().replace("state_size=1048576", text),
            _ => text.to_owned(),
        };
        fs::write(layout, &text).unwrap();
        works(dir.path(), &text);
    }
    let dir = filled();
    fs::remove_file(&files(dir.path(), "layout")[0]).unwrap();
    works(dir.path(), "no layout");
    drop(alone);

    let cache = builder(dir.path()).open().unwrap();
    fs::remove_file(&files(dir.path(), "layout")[0]).unwrap();
    let mut child = Child::spawn("open", dir.path());
    let said = child.heard().unwrap();
    assert!(said.contains("layout"), "{said}");
    child.end();
    assert_eq!(cache.get::<i32>("new").unwrap(), Some(1));
    assert!(cache.insert("newer", &1).wait().unwrap());
    let numbers = dir.path().join(files(dir.path(), "users")[0].parent().unwrap());
    drop(cache);
    fs::create_dir(numbers.join(format!("state/gen-{}", u64::MAX))).unwrap();
    builder(dir.path()).open().unwrap();
}

/// A file system of that many bytes, or `None` where this user may not mount one.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn mount(size: u64) -> Option<Tmpfs> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=0700");
        let _starting = starting();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(dir.path()).output();
        mount.is_ok_and(|mount| mount.status.success()).then_some(Tmpfs(dir))
    }

    fn fill(&self) -> PathBuf {
        let filler = self.0.path().join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
        // One page is left: enough for the first part of a write only.
        let length = file.metadata().unwrap().len();
        file.set_len(length - 4096).unwrap();
        filler
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _starting = starting();
        let _ = Command::new("umount").args(["-l"]).arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_of_stored_answers_and_of_nothing_else() {
    let Some(tmpfs) = Tmpfs::mount(8 << 20) else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let path = tmpfs.0.path().join("cache");
    let cache = builder(&path).open().unwrap();
    let text = "x".repeat(10_000);
    for i in 0..20 {
        cache.insert(&i.to_string(), &text).wait().unwrap();
    }
    let filler = tmpfs.fill();
    // Far more than the blocks that happened to be there already.
    for i in 0..3000 {
        count(&cache, &(i % 1000).to_string()).unwrap();
    }
    let mut full = 0;
    for i in 0..200 {
        match cache.insert(&format!("more {i}"), &text).wait() {
            Ok(stored) => assert!(stored),
            Err(Error::Full) => full += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(full > 0);
    // Readers of other threads have their places in the lock file.
    std::thread::scope(|threads| {
        for _ in 0..200 {
            threads.spawn(|| assert!(cache.get::<String>("19").unwrap().is_none_or(|found| found == text)));
        }
    });
    let mut child = Child::spawn("open", &path);
    child.expect("open");
    child.end();
    let mut child = Child::spawn("open", &tmpfs.0.path().join("another"));
    assert!(child.heard().unwrap().contains("cannot open"));
    child.end();
    fs::remove_file(filler).unwrap();
    for i in 0..50 {
        assert!(cache.insert(&format!("after {i}"), &text).wait().unwrap());
        assert_eq!(cache.get::<String>(&format!("after {i}")).unwrap().as_ref(), Some(&text));
    }
    assert_eq!(cache.stats().damaged, 0);
    drop(cache);
    assert!(builder(&path).open().unwrap().get::<String>("after 49").unwrap().is_some());
}

#[test]
fn what_a_killed_process_leaves_of_a_temporary_cache_is_removed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let temporary = || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("TMPDIR", dir.path());
        let mut child = Child::spawn_by(command, "temporary", dir.path());
        let path = PathBuf::from(child.line());
        (child, path)
    };
    let (living, kept) = temporary();
    let mut left = Vec::new();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (child, path) = temporary();
        child.signal(signal);
        assert_eq!(child.ended().signal(), Some(signal as i32));
        assert!(path.exists());
        left.push(path);
        let (child, _) = temporary();
        assert!(left.iter().all(|path| !path.exists()), "{signal}");
        child.end();
    }
    assert!(kept.exists());
    living.end();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
