//! Whether more was admitted than a rate allows, found out from what the admitted wrote down.
#![allow(dead_code)] // each file uses a part of it

use std::{fs, io::Write, path::Path};

/// An admission: some units, at a moment that is known to lie between two others. Times in ns, of any one clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) units: u64,
}

impl Admitted {
    /// Writes a line that is whole or, if the process is killed meanwhile, without its end.
    pub(crate) fn log(&self, mut file: &fs::File) {
        let line = format!("{} {} {}\n", self.not_before, self.not_after, self.units);
        assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
    }
}

/// The admissions of all logs in a directory.
pub(crate) fn logged(directory: &Path) -> Vec<Admitted> {
    let mut all = Vec::new();
    for file in fs::read_dir(directory).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            let [not_before, not_after, units] = numbers[..] else { panic!("{line}") };
            all.push(Admitted { not_before, not_after, units });
        }
    }
    all
}

pub(crate) fn units(admitted: &[Admitted]) -> u64 {
    admitted.iter().map(|admitted| admitted.units).sum()
}

/// A stretch of time in which certainly more than `burst` and one unit a `step` was admitted, if there is any: its
/// begin, its length and the units in it.
pub(crate) fn overdrawn(admitted: &[Admitted], burst: u64, step: u64) -> Option<(u64, u64, u64)> {
    let mut by_end = admitted.to_vec();
    by_end.sort_unstable_by_key(|admitted| admitted.not_after);
    admitted.iter().find_map(|first| {
        let from = first.not_before;
        let mut units = 0;
        by_end.iter().filter(|within| within.not_before >= from).find_map(|within| {
            units += within.units;
            let length = within.not_after - from;
            (units * step > burst * step + length).then_some((from, length, units))
        })
    })
}
