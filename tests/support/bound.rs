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

/// Numbers by lot, the same in each run.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

#[test]
fn an_admission_too_many_is_found_wherever_it_is() {
    let at = |time: u64| Admitted { not_before: time, not_after: time + 3, units: 1 };
    let burst = (0..5).map(|_| at(1_000));
    let full: Vec<_> = burst.chain((1..200).map(|n| at(1_000 + n * 10))).collect();
    assert_eq!(overdrawn(&full, 5, 10), None);
    assert_eq!(overdrawn(&[], 5, 10), None);
    let mut random = Random(1);
    for _ in 0..100 {
        let mut more = full.clone();
        more.push(at(1_000 + random.below(1_980)));
        let (from, length, units) = overdrawn(&more, 5, 10).unwrap();
        assert!(units * 10 > 50 + length && from >= 1_000);
        let mut early = full.clone();
        early[5 + random.below(100) as usize].not_before -= 11;
        assert_eq!(overdrawn(&early, 5, 10), None, "it may have come in time");
        let nth = 5 + random.below(100) as usize;
        early = full.clone();
        early[nth] = at(1_000 + (nth as u64 - 4) * 10 - 11);
        assert!(overdrawn(&early, 5, 10).is_some(), "{nth}");
    }
}
