#![allow(unsafe_code)]

use super::tests::TABLES;
use super::*;
use crate::{
    cache::testing::{Child, LONG, hear, part, say},
    store::lmdb::transaction::Table,
};
use rustix::fs::{OFlags, fcntl_getfl};
use std::{fs, os::fd::BorrowedFd};

const CHILD: &str = "store::lmdb::env::rotation_tests::child";

fn options() -> Options {
    Options {
        tables: &TABLES,
        map_size: 1 << 24,
        write_map: false,
        sync: false,
        guarded: None,
        carry_over: |before, txn| {
            let count = match before {
                Some(before) => before.get(Table(0), b"count")?.map_or(0, |count| count[0]),
                None => 100,
            };
            txn.put(Table(0), b"count", &[count + 1])
        },
    }
}

fn write<T>(env: &Env, f: impl FnOnce(&mut Txn<'_>) -> Result<T, Error>) -> Result<T, Error> {
    let held = env.gate.lock_for(LONG)?.unwrap();
    env.write(&held, |txn| Ok((f(txn)?, true)))
}

fn put(env: &Env, key: &[u8]) -> Result<(), Error> {
    write(env, |txn| txn.put(Table(1), key, b""))
}

fn has(env: &Env, key: &[u8]) -> bool {
    env.read(|reader| Ok(reader.get(Table(1), key)?.is_some())).unwrap()
}

fn count(env: &Env) -> Option<u8> {
    env.read(|reader| Ok(reader.get(Table(0), b"count")?.map(|count| count[0]))).unwrap()
}

fn rotate(env: &Env) {
    env.want_rotation();
    env.change_generation_if_due();
}

fn generations(path: &Path) -> Vec<u64> {
    let mut found: Vec<u64> = fs::read_dir(path)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("gen-")?.parse().ok())
        .collect();
    found.sort();
    found
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((part, path)) = part() else { return };
    let env = Env::open_beside(&path, &options()).unwrap();
    if part == "reads long" {
        let read = env.read(|reader| {
            say("reading");
            hear();
            Ok(reader.get(Table(1), b"before")?.is_some())
        });
        say(read.unwrap());
    }
    loop {
        match hear().as_str() {
            "has before" => say(has(&env, b"before")),
            "has after" => say(has(&env, b"after")),
            "put" => say(put(&env, b"theirs").is_ok()),
            "let go" => {
                env.change_generation_if_due();
                say("gone");
            }
            "rotate" => {
                rotate(&env);
                say(env.generation());
            }
            _ => return,
        }
    }
}

#[test]
fn all_processes_go_over_to_a_new_generation_and_the_old_one_goes_with_its_last_user() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::open_alone(dir.path(), 0, &options()).unwrap();
    put(&env, b"before").unwrap();
    let (mut reader, mut other) = (Child::start(CHILD, "reads long", dir.path()), Child::start(CHILD, "", dir.path()));
    assert_eq!(reader.line(), "reading");
    other.tell("has before");
    assert_eq!(other.line(), "true");
    let seen = env.last_transaction();

    rotate(&env);
    assert_eq!((env.generation(), count(&env)), (1, Some(1)));
    assert!(env.last_transaction() > seen, "whoever has seen the old one is behind");
    put(&env, b"after").unwrap();
    other.tell("has before");
    assert_eq!(other.line(), "false");
    other.tell("has after");
    assert_eq!(other.line(), "true");
    other.tell("put");
    assert_eq!(other.line(), "true");
    assert!(has(&env, b"theirs"));

    // Both processes that are not reading let go of the old files; the reader has them still.
    other.tell("let go");
    assert_eq!(other.line(), "gone");
    env.change_generation_if_due();
    env.remove_old_generations();
    assert_eq!(generations(dir.path()), [0, 1]);
    assert!(env.bytes_besides() > 0);
    other.tell("rotate");
    assert_eq!(other.line(), "2");
    assert_eq!((count(&env), env.generation()), (Some(2), 2));
    env.change_generation_if_due();
    other.tell("let go");
    assert_eq!(other.line(), "gone");
    env.remove_old_generations();
    assert_eq!(generations(dir.path()), [0, 2]);
    reader.tell("finish");
    assert_eq!(reader.line(), "true");
    reader.tell("has after");
    assert_eq!(reader.line(), "false");
    reader.tell("let go");
    assert_eq!(reader.line(), "gone");
    env.remove_old_generations();
    assert_eq!((generations(dir.path()), env.bytes_besides()), (vec![2], 0));

    // The next process alone goes on with the current one, whatever the number it was told.
    drop((reader, other));
    put(&env, b"kept").unwrap();
    env.close();
    let env = Env::open_alone(dir.path(), 0, &options()).unwrap();
    assert!(env.generation() == 2 && has(&env, b"kept"));
}

#[test]
fn a_process_that_does_not_use_the_files_lets_go_of_them_too() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::open_alone(dir.path(), 0, &options()).unwrap();
    let mut idle = Child::start(CHILD, "", dir.path());
    idle.tell("has before");
    assert_eq!(idle.line(), "false");
    rotate(&env);
    env.change_generation_if_due();
    env.remove_old_generations();
    assert_eq!(generations(dir.path()), [0, 1]);
    idle.tell("let go");
    assert_eq!(idle.line(), "gone");
    env.remove_old_generations();
    assert_eq!(generations(dir.path()), [1]);
}

#[test]
fn of_racing_processes_one_rotates() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::open_alone(dir.path(), 0, &options()).unwrap();
    let changing = env.generations.begin_change().unwrap().unwrap();
    let mut other = Child::start(CHILD, "", dir.path());
    other.tell("rotate");
    assert_eq!(other.line(), "0", "not while this one has the right to");
    drop(changing);
    other.tell("rotate");
    assert_eq!(other.line(), "1");
    // This one still wants to, but the files are others by now.
    rotate(&env);
    assert_eq!(env.generation(), 1);
    env.change_generation_if_due();
    assert_eq!(env.generation(), 1);
}

#[test]
fn damaged_files_are_replaced_while_processes_use_them() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::open_alone(dir.path(), 0, &options()).unwrap();
    (0..200_u8).for_each(|i| put(&env, &[i; 200]).unwrap());
    let mut other = Child::start(CHILD, "", dir.path());
    other.tell("has before");
    assert_eq!(other.line(), "false");
    // Every page says that it is a meta page.
    let data = env.path().join("data.mdb");
    let mut bytes = fs::read(&data).unwrap();
    bytes[2 * 4096..].chunks_mut(4096).for_each(|page| page[10] = 8);
    std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(&data).unwrap(), &bytes, 0).unwrap();

    assert!(matches!(env.read(|reader| Ok(reader.get(Table(1), &[7; 200])?.is_some())), Err(Error::Damaged)));
    assert!(!env.is_sound() && put(&env, b"x").is_err());
    env.change_generation_if_due();
    assert!(env.is_sound());
    put(&env, b"after").unwrap();
    other.tell("has after");
    assert_eq!((other.line(), count(&env)), ("true".into(), Some(101)));
    // And by a process that comes while the files are damaged.
    env.gate.condemn(env.generation());
    let mut late = Child::start(CHILD, "", dir.path());
    late.tell("has after");
    assert_eq!(late.line(), "false");
    assert_eq!(count(&env), Some(101));
    assert_eq!(env.generation(), 2);
}

/// LMDB refuses everything once it could not write a meta page. Here, the file by which it writes synced meta pages has
/// become one that cannot be written.
#[test]
fn a_panic_of_lmdb_is_cured_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::open_alone(dir.path(), 0, &Options { sync: true, ..options() }).unwrap();
    put(&env, b"before").unwrap();
    let path = env.path().join("data.mdb");
    let read_only = File::open(&path).unwrap();
    let mut replaced = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let Ok(fd) = entry.file_name().to_str().unwrap().parse::<i32>() else { continue };
        if fs::read_link(entry.path()).is_ok_and(|to| to == path) {
            // SAFETY: the descriptor was listed as open, and this test's files stay open.
            let flags = fcntl_getfl(unsafe { BorrowedFd::borrow_raw(fd) }).unwrap();
            if flags & OFlags::RWMODE == OFlags::WRONLY {
                use std::os::fd::AsRawFd;
                // SAFETY: LMDB's descriptor stays open, for another description of the same file.
                assert!(unsafe { libc::dup2(read_only.as_raw_fd(), fd) } >= 0);
                replaced += 1;
            }
        }
    }
    assert_eq!(replaced, 1);
    assert!(put(&env, b"lost").is_err());
    assert!(matches!(put(&env, b"lost"), Err(Error::Damaged)));
    env.change_generation_if_due();
    put(&env, b"after").unwrap();
    assert!(has(&env, b"after") && !has(&env, b"lost"));
}

#[test]
fn a_rotation_that_fails_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::open_alone(dir.path(), 0, &options()).unwrap();
    put(&env, b"before").unwrap();
    let holder = crate::cache::testing::Holder::at(dir.path().join("gate"));
    rotate(&env);
    assert_eq!((env.generation(), generations(dir.path())), (0, vec![0]), "nothing is left behind");
    assert!(has(&env, b"before"));
    holder.release();
    while env.generation() == 0 {
        env.change_generation_if_due();
        std::thread::yield_now();
    }
    assert_eq!((env.generation(), generations(dir.path())), (1, vec![1]));
}
