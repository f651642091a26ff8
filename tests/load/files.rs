//! What the files of a cache and the memory of its users come to.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// The directory of an environment, `state` or `entries-0`.
pub(crate) fn environment(cache: &Path, name: &str) -> PathBuf {
    let homes = fs::read_dir(cache).unwrap().flatten().map(|home| home.path().join(name));
    homes.into_iter().find(|path| path.is_dir()).expect("the cache is open")
}

pub(crate) fn generations(environment: &Path) -> Vec<u64> {
    let entries = fs::read_dir(environment).unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("gen-")?.parse().ok()).collect()
}

/// The greatest number of a generation, and a file of it.
pub(crate) fn current(environment: &Path, file: &str) -> (u64, PathBuf) {
    let latest = generations(environment).into_iter().max().unwrap_or_default();
    (latest, environment.join(format!("gen-{latest}")).join(file))
}

/// Allocated bytes of all files in an environment, those included that only a process of these has open.
pub(crate) fn allocated(environment: &Path, users: &[i32]) -> u64 {
    all(environment, users).values().map(|file| file.blocks * 512).sum()
}

/// How many generations have files, those included that only a process of these has open.
pub(crate) fn data_files(environment: &Path, users: &[i32]) -> usize {
    all(environment, users).values().filter(|file| file.is_data).count()
}

struct Facts {
    blocks: u64,
    is_data: bool,
}

/// By device and inode.
fn all(environment: &Path, users: &[i32]) -> HashMap<(u64, u64), Facts> {
    let mut paths = Vec::new();
    walk(environment, &mut paths);
    for user in users {
        let descriptors = fs::read_dir(format!("/proc/{user}/fd")).into_iter().flatten().flatten();
        let named = descriptors.filter_map(|entry| Some((fs::read_link(entry.path()).ok()?, entry.path())));
        paths.extend(named.filter(|(to, _)| to.starts_with(environment)));
    }
    let mut all = HashMap::new();
    for (name, path) in paths {
        // It may be gone by now.
        let Some(facts) = fs::metadata(path).ok().filter(fs::Metadata::is_file) else { continue };
        let is_data = name.file_name().is_some_and(|name| name.to_string_lossy().starts_with("data.mdb"));
        all.insert((facts.dev(), facts.ino()), Facts { blocks: facts.blocks(), is_data });
    }
    all
}

/// Finds all files, by their names and paths, which are the same.
fn walk(directory: &Path, found: &mut Vec<(PathBuf, PathBuf)>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&entry.path(), found),
            _ => found.push((entry.path(), entry.path())),
        }
    }
}

/// Bytes of the files in a directory.
pub(crate) fn length(directory: &Path) -> u64 {
    fs::read_dir(directory).unwrap().flatten().map(|file| file.metadata().map_or(0, |facts| facts.len())).sum()
}

/// Resident memory, in bytes.
pub(crate) fn resident(process: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

/// Whether a process has a snapshot in use: LMDB's lock file has a slot of 64 bytes for each of its readers.
pub(crate) fn pins(process: i32, environment: &Path) -> bool {
    let slots = fs::read(current(environment, "lock.mdb").1).unwrap_or_default();
    slots.chunks_exact(64).skip(2).any(|slot| {
        let snapshot = u64::from_ne_bytes(slot[..8].try_into().unwrap());
        snapshot != u64::MAX && slot[8..12] == process.to_ne_bytes()
    })
}

/// Whether nobody is writing: the gate's mutex, behind its magic number and its identity, belongs to nobody.
pub(crate) fn is_gate_free(environment: &Path) -> bool {
    let mut owner = [0; 4];
    let gate = fs::File::open(environment.join("gate")).unwrap();
    gate.read_exact_at(&mut owner, 24).unwrap();
    owner == [0; 4]
}

/// Turns pages into some of the wrong kind: each now says that it has LMDB's metadata.
pub(crate) fn garble(environment: &Path, mut is_hit: impl FnMut() -> bool) {
    const PAGE: u64 = 4096;
    let data = fs::File::options().write(true).open(current(environment, "data.mdb").1).unwrap();
    for page in 2..data.metadata().unwrap().len() / PAGE {
        if is_hit() {
            data.write_all_at(&[8], page * PAGE + 10).unwrap();
        }
    }
}
