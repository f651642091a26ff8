//! The names of the generations of an environment: numbered directories in its own.

use std::{
    fs,
    path::{Path, PathBuf},
};

const PREFIX: &str = "gen-";
/// No generation has so great a number: a directory of that name was not made by this crate.
const LIMIT: u64 = 1 << 23;

/// Whether a generation may have this number. Each takes the place of files that were lost or have grown too much.
pub(crate) fn is_generation(number: &u64) -> bool {
    *number < LIMIT
}

pub(crate) fn generation_path(environment: &Path, number: u64) -> PathBuf {
    environment.join(format!("{PREFIX}{number}"))
}

/// The generations of an environment that are there, whether or not they were ever used.
pub(crate) fn generations(environment: &Path) -> impl Iterator<Item = u64> + use<> {
    let found = fs::read_dir(environment).into_iter().flatten().flatten();
    let number = |name: &str| name.strip_prefix(PREFIX)?.parse().ok().filter(is_generation);
    found.filter_map(move |entry| number(entry.file_name().to_str()?))
}
