#![allow(unsafe_code)] // a fork

use super::*;
use crate::{
    cache::{
        Cache, Scope,
        testing::{Child, LONG, builder, hear, home, nobody_starts, part, say},
    },
    store::{Change, Found, Kind, LOCKS, Step, Waiter, WaitingLine},
};
use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};

const HOUR: u64 = 3_600_000_000_000;

fn open(path: &Path) -> Cache {
    Cache::builder(path).size(1 << 20).state_size(1 << 20).patience(LONG).open().unwrap()
}

fn start(part: &str, path: &Path) -> Child {
    Child::start("store::peers::instances::tests::child", part, path)
}

fn run_of(cache: &Cache) -> PathBuf {
    home(cache).join("run")
}

/// The names of the files in `run/`.
fn files(run: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(run).into_iter().flatten().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Asks as an instance that has not asked before.
fn is_dead(run: &Path, instance: u64) -> bool {
    Instances::new(run.to_owned()).is_dead(instance)
}

fn line(scope: &Scope, steps: Vec<Step>) -> Vec<Waiter> {
    let transition =
        move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| (line.waiting(10), Change::Keep, steps.clone());
    scope.update_line(LOCKS, scope.key(Kind::Lock, b"l"), transition, |waiting| waiting).wait().unwrap()
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((part, path)) = part() else { return };
    let cache = open(&path);
    let scope = cache.scope("s");
    let instance = scope.instance().unwrap();
    match part.as_str() {
        "wait" => {
            let turn = cache.handle().now() + HOUR;
            line(
                &scope,
                vec![Step::Join(Waiter { turn, ticket: 7, until: turn, instance, payload: b"mine".to_vec() })],
            );
            say(instance);
            if hear() == "close" {
                drop((cache, scope));
                say("closed");
                hear();
            }
        }
        "fork" => {
            let run = run_of(&cache);
            // SAFETY: no other thread of this process is in the middle of anything.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let none = scope.instance().is_none() && !scope.is_dead(instance);
                    drop((cache, scope));
                    // SAFETY: ends the process without running what belongs to the parent.
                    unsafe { libc::_exit(if none { 0 } else { 1 }) }
                }
                ForkResult::Parent { child } => {
                    assert!(matches!(waitpid(child, None).unwrap(), WaitStatus::Exited(_, 0)));
                }
            }
            assert_eq!(files(&run), [name(instance)]);
            assert!(!is_dead(&run, instance));
            drop((cache, scope));
            assert!(files(&run).is_empty());
            say("fine");
        }
        part => panic!("{part}"),
    }
}

#[test]
fn the_death_of_a_process_is_seen_at_once_and_its_rows_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (scope, run) = (cache.scope("s"), run_of(&cache));
    let mut child = start("wait", dir.path());
    let instance: u64 = child.line().parse().unwrap();
    let rows = line(&scope, vec![]);
    let [row] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((row.instance, row.ticket, &row.payload[..]), (instance, 7, &b"mine"[..]));
    assert!(!scope.is_dead(instance) && !is_dead(&run, instance));
    child.stop();
    assert!(!is_dead(&run, instance), "stopped, it may go on");
    child.kill();
    assert!(is_dead(&run, instance));
    let killed = Instant::now();
    while !scope.is_dead(instance) {
        assert!(killed.elapsed() < LONG);
        std::thread::yield_now();
    }
    assert_eq!(line(&scope, vec![Step::Leave { turn: row.turn, ticket: row.ticket }]), rows, "it outlives the process");
    assert_eq!(line(&scope, vec![]), []);
    assert_eq!(files(&run), [name(instance)]);
    cache.handle().shared.instances.tidy();
    assert_eq!(files(&run), [name(instance) + DEAD]);
    assert!(scope.is_dead(instance) && is_dead(&run, instance));
    cache.handle().shared.instances.tidy();
    assert!(is_dead(&run, instance));
    let died = SystemTime::now() - REMEMBERED;
    File::open(run.join(name(instance) + DEAD)).unwrap().set_modified(died).unwrap();
    cache.handle().shared.instances.tidy();
    assert!(files(&run).is_empty());
}

#[test]
fn a_clean_close_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let run = run_of(&cache);
    assert!(files(&run).is_empty(), "made when first asked for");
    let mut child = start("wait", dir.path());
    assert!(child.line().parse::<u64>().is_ok());
    let instance = cache.root().instance().unwrap();
    assert_eq!(cache.scope("another").instance(), Some(instance));
    assert_eq!(files(&run).len(), 2);
    child.tell("close");
    assert_eq!(child.line(), "closed");
    assert_eq!(files(&run), [name(instance)]);
    drop(cache);
    assert!(files(&run).is_empty());

    let temporary = builder().open().unwrap();
    let run = run_of(&temporary);
    assert!(temporary.root().instance().is_some() && run.exists());
    let path = temporary.path().to_owned();
    drop(temporary);
    assert!(!path.exists());
}

#[test]
fn who_opens_alone_and_who_tidies_clear_away_the_dead_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = start("wait", dir.path());
    let instance: u64 = first.line().parse().unwrap();
    first.kill();
    let mut entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
    let home = entries.find(|entry| entry.is_dir()).unwrap();
    let run = home.join("run");
    assert_eq!(files(&run), [name(instance)]);
    let (stale, newborn) = ("0123456789abcdef", "0123456789abcdef.new");
    for stale in [stale, newborn, "not one of ours"] {
        fs::write(run.join(stale), "").unwrap();
    }
    let cache = open(dir.path());
    let mut left = [stale.to_owned() + DEAD, name(instance) + DEAD, "not one of ours".to_owned()];
    left.sort();
    assert_eq!(files(&run), left);
    left.iter().for_each(|left| fs::remove_file(run.join(left)).unwrap());
    fs::write(run.join("not one of ours"), "").unwrap();
    let own = cache.root().instance().unwrap();
    let mut second = start("wait", dir.path());
    let other: u64 = second.line().parse().unwrap();
    cache.handle().shared.instances.tidy();
    assert_eq!(files(&run).len(), 3);
    assert!(!is_dead(&run, own) && !is_dead(&run, other));
    use std::os::unix::fs::PermissionsExt;
    for (path, mode) in [(run.clone(), 0o700), (run.join(name(own)), 0o600)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[test]
fn a_forked_child_has_no_instance_and_leaves_that_of_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(start("fork", dir.path()).line(), "fine");
}

#[test]
fn what_cannot_be_found_out_counts_as_alive() {
    let dir = tempfile::tempdir().unwrap();
    let instances = Instances::new(dir.path().join("run"));
    assert!(!instances.is_dead(5), "its file may have been removed");
    assert!(!instances.is_dead(0), "nobody has that number");
    let own = instances.instance().unwrap();
    assert_eq!(instances.instance(), Some(own));
    assert!(!instances.is_dead(own));
    // A link that leads to itself.
    let unreadable = dir.path().join("run").join(name(6));
    std::os::unix::fs::symlink(&unreadable, &unreadable).unwrap();
    assert!(!instances.is_dead(6));
    fs::write(dir.path().join("file"), "").unwrap();
    assert_eq!(Instances::new(dir.path().join("file")).instance(), None);
}

#[test]
fn who_lives_is_not_dead_whatever_becomes_of_its_file_and_puts_it_back() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let instances = Instances::new(run.clone());
    let own = instances.instance().unwrap();
    let (file, away) = (run.join(name(own)), dir.path().join("away"));
    let damages: [&dyn Fn(); 3] = [&|| fs::remove_file(&file).unwrap(), &|| fs::remove_dir_all(&run).unwrap(), &|| {
        fs::copy(&file, &away).unwrap();
        fs::rename(&away, &file).unwrap();
    }];
    for damage in damages {
        damage();
        assert!(!is_dead(&run, own));
        clear(&run);
        assert!(!is_dead(&run, own));
        instances.keep_own_file();
        assert_eq!(files(&run), [name(own)]);
        assert!(!is_dead(&run, own));
        assert_eq!(instances.process(own), Some(std::process::id()));
        clear(&run);
        assert_eq!(files(&run), [name(own)]);
    }
    // As if the process had died.
    let Own { file: held, .. } = instances.own.get().unwrap();
    *lock(held) = File::open(dir.path()).unwrap();
    assert!(is_dead(&run, own));
}

#[test]
fn what_is_remembered_of_others_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let instances = Instances::new(dir.path().to_owned());
    assert!((1..5000).all(|instance| !instances.is_dead(instance)));
    assert!(lock(&instances.known).len() <= KNOWN_MAX);
}

/// Files in a directory that this process has open, even if they are gone from it.
fn open_in(directory: &Path) -> usize {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    descriptors
        .filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(|at| at.starts_with(directory)))
        .count()
}

#[test]
fn no_file_of_the_dead_stays_open() {
    let _alone = nobody_starts();
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().canonicalize().unwrap();
    let instances = Instances::new(run.clone());
    let living = Instances::new(run.clone());
    assert!(!instances.is_dead(living.instance().unwrap()));
    let before = open_in(&run);
    for _ in 0..100 {
        let other = Instances::new(run.clone());
        let number = other.instance().unwrap();
        assert!(!instances.is_dead(number));
        // As if its process were killed: the lock is gone, and the file is there.
        let Own { file, .. } = other.own.get().unwrap();
        *lock(file) = File::open("/dev/null").unwrap();
        std::mem::forget(other);
    }
    assert!(open_in(&run) > before, "met alive, they were kept open");
    instances.tidy();
    assert_eq!(open_in(&run), before, "the living one is still open");
    assert_eq!(files(&run).iter().filter(|name| name.ends_with(DEAD)).count(), 100);
}

#[test]
fn the_newborn_are_never_dead() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path();
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    clear(run);
                }
            });
        }
        // If an instance fails, the other threads end all the same.
        let fine = (0..300).all(|_| {
            let instances = Instances::new(run.to_owned());
            instances.instance().is_some_and(|instance| !is_dead(run, instance))
        });
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(fine);
    });
    assert!(files(run).is_empty());
}
