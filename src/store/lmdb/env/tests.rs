use super::*;
use crate::store::lmdb::{opening::metas_are_sound, transaction::Table};
use std::fs::{self, File};
use std::ops::Bound;

const TABLES: [&str; 2] = ["a", "b"];

fn options() -> Options<'static> {
    Options { tables: &TABLES, map_size: 1 << 20, write_map: false, sync: false, alone: true, guarded: None }
}

fn filled(path: &Path) {
    let env = Env::open(path, &options()).unwrap();
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
    let env = Env::open(dir.path(), &options()).unwrap();
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
    let data = dir.path().join("data.mdb");
    let healthy = fs::read(&data).unwrap();
    assert!(metas_are_sound(&healthy, healthy.len() as u64));
    for length in [1, 100, 4095, 4096, 8191, 8192, healthy.len() / 2, healthy.len() - 4096] {
        fs::write(&data, &healthy[..length]).unwrap();
        assert!(matches!(Env::open(dir.path(), &options()), Err(Error::Damaged)), "{length} bytes");
    }
    for (at, byte) in [(16, 0), (20, 9), (40, 3), (41, 0), (4096 + 16, 1)] {
        let mut garbled = healthy.clone();
        garbled[at] = byte;
        fs::write(&data, garbled).unwrap();
        assert!(matches!(Env::open(dir.path(), &options()), Err(Error::Damaged)), "byte {at}");
    }
    fs::write(&data, &healthy).unwrap();
    Env::open(dir.path(), &options()).unwrap().close();
}

#[test]
fn beside_others_nothing_is_made_and_only_their_files_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("env");
    filled(&path);
    let beside = Options { alone: false, ..options() };
    let open = || Env::open(&path, &beside).map(Env::close);
    open().unwrap();
    assert!(matches!(Env::open(&path, &Options { map_size: 1 << 21, ..beside }), Err(Error::Damaged)));
    for name in ["data.mdb", "lock.mdb", "gate"] {
        let (file, away) = (path.join(name), dir.path().join(name));
        fs::rename(&file, &away).unwrap();
        assert!(matches!(open(), Err(Error::Damaged)), "{name} is not there");
        assert!(!file.exists());
        fs::copy(&away, &file).unwrap();
        assert!(matches!(open(), Err(Error::Damaged)), "{name} is a copy");
        fs::rename(&away, &file).unwrap();
        open().unwrap();
        fs::write(&file, "").unwrap();
        assert!(matches!(open(), Err(Error::Damaged)), "{name} is empty");
        assert_eq!(fs::metadata(&file).unwrap().len(), 0);
        fs::remove_dir_all(&path).unwrap();
        filled(&path);
    }
}

#[test]
fn an_environment_that_was_put_back_is_damaged_for_everybody_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let (path, data) = (dir.path().join("env"), dir.path().join("env/data.mdb"));
    filled(&path);
    let before = fs::read(&data).unwrap();
    let guarded = Options { guarded: Some(dir.path()), ..options() };
    let env = Env::open(&path, &guarded).unwrap();
    let put = |value: &[u8]| {
        let held = env.gate.try_lock()?.unwrap();
        env.write(&held, |txn| txn.put(Table(0), b"x", value).map(|()| ((), true)))
    };
    put(b"1").unwrap();
    std::os::unix::fs::FileExt::write_all_at(&File::options().write(true).open(&data).unwrap(), &before, 0).unwrap();
    assert!(matches!(put(b"2"), Err(Error::Damaged)));
    assert!(matches!(put(b"3"), Err(Error::Damaged)));
    env.close();
    assert!(matches!(Env::open(&path, &guarded), Err(Error::Damaged)), "even alone");
}

#[test]
fn a_full_map_is_an_error_and_nothing_of_the_batch_stays() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::open(dir.path(), &Options { map_size: 1 << 18, ..options() }).unwrap();
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
    let env = Env::open(dir.path(), &options()).unwrap();
    let _starting = crate::cache::testing::starting();
    let inherited = std::process::Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    // Other tests may be opening theirs at this very moment.
    let ours = dir.path().join("data.mdb");
    assert!(!String::from_utf8_lossy(&inherited.stdout).contains(ours.to_str().unwrap()));
    env.close();
}
