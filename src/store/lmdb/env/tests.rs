use super::*;
use crate::{
    cache::testing::{Child, LONG, hear, part, say},
    store::lmdb::{metas::metas_are_sound, transaction::Table},
};
use std::fs::{self, File};
use std::ops::Bound;

pub(super) const TABLES: [&str; 2] = ["a", "b"];

fn options() -> Options {
    Options {
        tables: &TABLES,
        map_size: 1 << 20,
        write_map: false,
        sync: false,
        guarded: None,
        carry_over: |_, _| Ok(()),
    }
}

fn open(path: &Path) -> Result<Env, Error> {
    Env::open_alone(path, 0, &options())
}

fn filled(path: &Path) {
    let env = open(path).unwrap();
    let held = env.gate.try_lock().unwrap().unwrap();
    env.write(&held, |txn| {
        for i in 0..200_u32 {
            txn.put(Table(0), &i.to_be_bytes(), &[7; 300])?;
        }
        Ok(((), true))
    })
    .unwrap();
    drop(held);
    env.close();
}

#[test]
fn what_is_not_committed_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let env = open(dir.path()).unwrap();
    let held = env.gate.try_lock().unwrap().unwrap();
    env.write(&held, |txn| txn.put(Table(0), b"kept", b"1").map(|()| ((), true))).unwrap();
    env.write(&held, |txn| txn.put(Table(0), b"aborted", b"1").map(|()| ((), false))).unwrap();
    let rows = env.write(&held, |txn| Ok((txn.rows(Table(0), Bound::Unbounded, 9, |key, _| key.to_vec())?, false)));
    assert_eq!(rows.unwrap(), [b"kept".to_vec()]);
    assert!(env.read(|reader| Ok(reader.get(Table(1), b"kept")?.is_none())).unwrap());
}

#[test]
fn truncated_and_garbled_files_are_found_before_they_can_kill_us() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let data = dir.path().join("gen-0/data.mdb");
    let healthy = fs::read(&data).unwrap();
    assert!(metas_are_sound(&healthy, healthy.len() as u64));
    for length in [1, 100, 4095, 4096, 8191, 8192, healthy.len() / 2, healthy.len() - 4096] {
        fs::write(&data, &healthy[..length]).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::Damaged)), "{length} bytes");
    }
    for (at, byte) in [(16, 0), (20, 9), (40, 3), (41, 0), (4096 + 16, 1)] {
        let mut garbled = healthy.clone();
        garbled[at] = byte;
        fs::write(&data, garbled).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::Damaged)), "byte {at}");
    }
    fs::write(&data, &healthy).unwrap();
    open(dir.path()).unwrap().close();
}

#[test]
fn beside_others_only_their_files_are_opened_and_other_files_are_replaced() {
    for name in ["gen-0/data.mdb", "gen-0/lock.mdb", "gate"] {
        for fault in ["gone", "a copy", "empty"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("env");
            filled(&path);
            let open = |options: &Options| {
                let opened = Env::open_beside(&path, options);
                opened.map(|env| (env.generation(), env.close()).0)
            };
            assert_eq!(open(&options()).unwrap(), 0);
            assert!(matches!(open(&Options { map_size: 1 << 21, ..options() }), Err(Error::Damaged)));
            let (file, away) = (path.join(name), dir.path().join("away"));
            fs::rename(&file, &away).unwrap();
            match fault {
                "gone" => {}
                "a copy" => drop(fs::copy(&away, &file).unwrap()),
                _ => fs::write(&file, "").unwrap(),
            }
            match name {
                "gate" => assert!(matches!(open(&options()), Err(Error::Damaged)), "{fault}"),
                _ => assert_eq!(open(&options()).unwrap(), 1, "{name} is {fault}"),
            }
            // LMDB would make an empty file sound again.
            let length = fs::metadata(&file).map(|facts| facts.len()).ok();
            assert_eq!(length.is_none_or(|length| length == 0), fault != "a copy");
        }
    }
}

#[test]
fn an_environment_that_was_put_back_is_damaged_for_everybody_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let (path, data) = (dir.path().join("env"), dir.path().join("env/gen-0/data.mdb"));
    filled(&path);
    let before = fs::read(&data).unwrap();
    let guarded = Options { guarded: Some(dir.path().to_path_buf()), ..options() };
    let env = Env::open_alone(&path, 0, &guarded).unwrap();
    let put = |value: &[u8]| {
        let held = env.gate.try_lock()?.unwrap();
        env.write(&held, |txn| txn.put(Table(0), b"x", value).map(|()| ((), true)))
    };
    put(b"1").unwrap();
    std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(&data).unwrap(), &before, 0).unwrap();
    assert!(matches!(put(b"2"), Err(Error::Damaged)));
    assert!(matches!(put(b"3"), Err(Error::Damaged)));
    env.close();
    assert!(matches!(Env::open_alone(&path, 0, &guarded), Err(Error::Damaged)), "even alone");
}

#[test]
fn a_full_map_is_an_error_and_nothing_of_the_batch_stays() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::open_alone(dir.path(), 0, &Options { map_size: 1 << 18, ..options() }).unwrap();
    let held = env.gate.try_lock().unwrap().unwrap();
    let filled = env.write(&held, |txn| {
        for i in 0..10_000_u32 {
            txn.put(Table(0), &i.to_be_bytes(), &[0; 500])?;
        }
        Ok(((), true))
    });
    assert!(matches!(filled, Err(Error::Full)));
    assert_eq!(env.write(&held, |txn| Ok((txn.len(Table(0))?, false))).unwrap(), 0);
}

#[test]
fn spawned_programs_do_not_inherit_the_data_file() {
    let dir = tempfile::tempdir().unwrap();
    let env = open(dir.path()).unwrap();
    let _starting = crate::cache::testing::starting();
    let inherited = std::process::Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    // Other tests may be opening their environments at this very moment.
    let ours = dir.path().join("gen-0/data.mdb");
    assert!(!String::from_utf8_lossy(&inherited.stdout).contains(ours.to_str().unwrap()));
    env.close();
}

/// Opens an environment as `state/` is opened.
fn guarded(root: &Path, alone: bool) -> Result<Env, Error> {
    let options = Options { write_map: true, guarded: Some(root.to_path_buf()), ..options() };
    let path = root.join("env");
    if alone { Env::open_alone(&path, 0, &options) } else { Env::open_beside(&path, &options) }
}

fn write<T>(env: &Env, f: impl FnOnce(&mut Txn<'_>) -> (T, bool)) -> Result<T, Error> {
    let held = env.gate.lock_for(LONG)?.unwrap();
    env.write(&held, |txn| Ok(f(txn)))
}

fn put(env: &Env, key: &[u8]) -> Result<(), Error> {
    write(env, |txn| (txn.put(Table(0), key, &[7; 300]).unwrap(), true))
}

fn has(env: &Env, key: &[u8]) -> Result<bool, Error> {
    write(env, |txn| (txn.get(Table(0), key).unwrap().is_some(), false))
}

/// Cuts the data file and writes its earlier contents over it.
fn write_again(root: &Path, bytes: &[u8]) {
    fs::write(root.join("env/gen-0/data.mdb"), bytes).unwrap();
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((part, root)) = part() else { return };
    let env = guarded(&root, false).unwrap();
    put(&env, b"theirs").unwrap();
    if part == "dies writing" {
        write(&env, |txn| {
            txn.put(Table(0), b"never", b"").unwrap();
            say("writing");
            hear();
            ((), false)
        })
        .unwrap();
    }
    say("done");
    hear();
}

#[test]
fn older_files_are_found_out_whoever_has_seen_the_newer_ones() {
    for (part, says) in [("dies", "done"), ("dies writing", "writing")] {
        let root = tempfile::tempdir().unwrap();
        let env = guarded(root.path(), true).unwrap();
        put(&env, b"ours").unwrap();
        let before = fs::read(root.path().join("env/gen-0/data.mdb")).unwrap();
        let mut child = Child::start("store::lmdb::env::tests::child", part, root.path());
        assert_eq!(child.line(), says);
        write_again(root.path(), &before);
        // After the death of a writer LMDB believes the data file, and this process has seen nothing newer.
        child.kill();
        assert!(matches!(has(&env, b"theirs"), Err(Error::Damaged)), "{part}");
        assert!(!env.is_sound());
    }
}

/// An environment whose pages have all been used, the contents of its file then, and `newer` transactions on top.
fn grown(root: &Path, newer: u8) -> (Env, Vec<u8>) {
    let env = guarded(root, true).unwrap();
    (0..20).for_each(|_| put(&env, b"ours").unwrap());
    let before = fs::read(root.join("env/gen-0/data.mdb")).unwrap();
    (0..newer).for_each(|_| put(&env, b"ours").unwrap());
    (env, before)
}

#[test]
fn a_transaction_in_which_files_grow_older_tells_nothing() {
    for (newer, changes) in (1..9).flat_map(|newer| [(newer, true), (newer, false)]) {
        let root = tempfile::tempdir().unwrap();
        let (env, before) = grown(root.path(), newer);
        let told = write(&env, |txn| {
            write_again(root.path(), &before);
            // LMDB may notice by chance.
            let put = txn.put(Table(0), b"mine", b"");
            ((), changes && put.is_ok())
        });
        assert!(told.is_err() && !env.is_sound(), "{newer} {changes}");
    }
}

/// A new meta page stands among old ones: a writer that is killed before it could tell leaves this behind.
#[test]
fn a_commit_to_older_files_is_found_out_by_the_next() {
    let mut committed = 0;
    for newer in 1..9 {
        let root = tempfile::tempdir().unwrap();
        let (env, before) = grown(root.path(), newer);
        let generation = env.current.load();
        let mut txn = generation.heed.write_txn().unwrap();
        write_again(root.path(), &before);
        let put = generation.tables[0].put(&mut txn, b"theirs", b"");
        committed += usize::from(put.and_then(|()| txn.commit()).is_ok());
        assert!(matches!(has(&env, b"ours"), Err(Error::Damaged)), "{newer}");
    }
    assert_ne!(committed, 0, "LMDB noticed each time");
}

#[test]
fn whatever_a_transaction_does_it_does_not_seem_older() {
    let root = tempfile::tempdir().unwrap();
    let env = guarded(root.path(), true).unwrap();
    let large = vec![7; 20_000];
    let acts: [&dyn Fn(&mut Txn<'_>); 7] = [
        &|_| (),
        &|txn| assert!(txn.delete(Table(0), b"a").is_ok()),
        &|txn| txn.put(Table(0), b"a", b"1").unwrap(),
        &|txn| txn.put(Table(1), b"a", &large).unwrap(),
        &|txn| assert!(txn.delete(Table(1), b"a").is_ok()),
        &|txn| (0..50_u8).for_each(|i| txn.put(Table(1), &[i], &[i; 999]).unwrap()),
        &|txn| (0..50_u8).for_each(|i| assert!(txn.delete(Table(1), &[i]).is_ok())),
    ];
    for (first, second, changed) in (0..2 * 49).map(|i| (i / 14, i / 2 % 7, i % 2 == 0)) {
        let acted = write(&env, |txn| {
            acts[first](txn);
            acts[second](txn);
            ((), changed)
        });
        acted.unwrap();
    }
}

#[test]
fn whoever_is_killed_after_a_commit_leaves_sound_files() {
    let root = tempfile::tempdir().unwrap();
    let env = guarded(root.path(), true).unwrap();
    for i in 0..9_u8 {
        // A commit, and nothing else.
        let generation = env.current.load();
        let mut txn = generation.heed.write_txn().unwrap();
        generation.tables[0].put(&mut txn, &[i], b"").unwrap();
        txn.commit().unwrap();
        if i % 3 == 0 {
            assert!(has(&env, &[i]).unwrap());
            put(&env, b"ours").unwrap();
        }
    }
    assert!(env.is_sound());
    let data = root.path().join("env/gen-0/data.mdb");
    let before = fs::read(&data).unwrap();
    put(&env, b"newer").unwrap();
    env.close();
    // No process is left that has seen a newer transaction.
    fs::write(&data, before).unwrap();
    let env = guarded(root.path(), true).unwrap();
    assert!(has(&env, b"ours").unwrap() && !has(&env, b"newer").unwrap());
    put(&env, b"newer").unwrap();
}
