use super::*;
use crate::cache::{
    Cache,
    testing::{Child, hear, part, say},
};
use proptest::{prelude::*, test_runner::RngSeed};
use std::{fs, os::unix::fs::MetadataExt, path::Path};

const CHILD: &str = "store::entries::budget::tests::child";
const SIZE: u64 = 64 << 20;

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Default::default() })]

    #[test]
    fn however_many_generations_stay_in_use_together_they_stay_below_the_most(size in 1_u64..1 << 40, stuck in 0..40) {
        let budget = Budget(size);
        let mut besides = 0;
        for _ in 0..stuck {
            prop_assert!(budget.of_entries(besides) <= size);
            besides += budget.of_file(besides);
        }
        prop_assert!(besides <= budget.most());
    }
}

#[test]
fn a_quarter_more_and_beside_a_stuck_generation_twice_as_much() {
    let budget = Budget(64 << 20);
    assert_eq!((budget.of_file(0), budget.of_entries(0)), (80 << 20, 64 << 20));
    assert_eq!((budget.of_file(80 << 20), budget.most()), (24 << 20, 128 << 20));
}

fn open(path: &Path) -> Cache {
    Cache::builder(path).size(SIZE).state_size(1 << 20).memory(0).open().unwrap()
}

#[test]
#[ignore = "a part of the other tests"]
fn child() {
    let Some((_, path)) = part() else { return };
    let cache = open(&path);
    let env = &cache.handle().shared.entries[0].queue.env;
    env.read(|_| {
        say("reading");
        hear();
        Ok(())
    })
    .unwrap();
    say(cache.get::<(i32, String)>("0").unwrap().is_some());
    hear();
}

/// Bytes on disk of all data files of answers.
fn bytes(below: &Path) -> u64 {
    let entries = fs::read_dir(below).unwrap().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(facts) if facts.is_dir() => bytes(&entry.path()),
            Ok(facts) if entry.file_name() == "data.mdb" => facts.blocks() * 512,
            _ => 0,
        })
        .sum()
}

/// Overwrites 17 MiB of values again and again, 136 MiB altogether; returns the greatest size of all files and how many
/// writes were refused.
fn overwrite(cache: &Cache) -> (u64, usize) {
    let (mut most, mut refused) = (0, 0);
    let (state, value) = (1 << 20, "x".repeat(1 << 20));
    for round in 0..8 {
        for name in 0..17 {
            refused += usize::from(cache.insert(&name.to_string(), &(round, &value)).wait().is_err());
            most = most.max(bytes(cache.path()) - state);
        }
    }
    (most, refused)
}

#[test]
fn files_stay_within_their_budget_also_beside_stopped_readers() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(dir.path());
    let (most, refused) = overwrite(&cache);
    eprintln!("alone: {} MiB, {refused} refused", most >> 20);
    assert!(most <= SIZE / 10 * 13 && refused == 0);

    let mut stopped = Vec::new();
    for readers in 1..=3 {
        let mut reader = Child::start(CHILD, "", dir.path());
        assert_eq!(reader.line(), "reading");
        reader.stop();
        stopped.push(reader);
        let (most, refused) = overwrite(&cache);
        eprintln!("beside {readers}: {} MiB, {refused} refused", most >> 20);
        assert!(most <= 2 * SIZE);
        assert!(cache.get::<(i32, String)>("16").unwrap().is_some() || readers > 1, "it still keeps answers");
    }
    drop(stopped);
    overwrite(&cache);
    let (most, refused) = overwrite(&cache);
    eprintln!("alone again: {} MiB, {refused} refused", most >> 20);
    assert!(most <= SIZE / 10 * 13 && refused == 0);
}
