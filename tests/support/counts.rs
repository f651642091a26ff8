//! Numbers that are counted among the throttle cells, and the files of a cache.

#![allow(dead_code)] // each file uses a part of it

use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use tower_floodgate::{
    Cache, Error,
    throttle::{LimitError, Limiter, Permit, Rate},
};

/// A budget that counts: it is far larger than any test spends, and regains nothing within an hour.
fn counter(cache: &Cache, name: &str) -> Limiter {
    cache.throttle(name, Rate::new(1, Duration::from_secs(3_600)).burst(500_000))
}

fn spent(checked: Result<Permit, LimitError>) -> Result<u64, Error> {
    match checked {
        Ok(permit) => Ok(u64::from(permit.quota.limit - permit.quota.remaining)),
        Err(LimitError::Cache(error)) => Err(error),
        Err(error) => panic!("{error}"),
    }
}

/// Adds 1 to a number that stands among the throttle cells, and answers it.
pub(crate) fn count(cache: &Cache, name: &str) -> Result<u64, Error> {
    spent(counter(cache, name).check_blocking())
}

/// As [`count`], for tasks.
pub(crate) async fn count_async(cache: &Cache, name: &str) -> Result<u64, Error> {
    spent(counter(cache, name).check().await)
}

/// The files of that name anywhere below a directory.
pub(crate) fn files(below: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(below).unwrap().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path(), name));
        } else if entry.file_name() == name {
            found.push(entry.path());
        }
    }
    found
}
