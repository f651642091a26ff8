use super::*;
use crate::notes::Cover;

const PAGE: Page = Page { scope: 0, number: 12 };
const SECOND: u64 = 1_000_000_000;

fn read(is_inserted: bool, born: u64, from: u64) -> (Process, Note) {
    (1, Note::Read { page: PAGE, origin: Origin { process: 2, number: 7, is_inserted, born }, from })
}

fn purged(cover: Cover, asked: u64, done: u64) -> (Process, Note) {
    (3, Note::Purged { cover, asked, done })
}

#[test]
fn what_was_filled_before_a_purge_may_be_read_until_that_is_done() {
    let covers = [Cover::Scope(0), Cover::Tag(PAGE.tag()), Cover::Tens { scope: 0, tens: 1 }, Cover::Name(PAGE)];
    for cover in covers {
        let purge = purged(cover, 20, 30);
        assert!(came_back(&[purge.clone(), read(false, 10, 30)]).is_empty());
        assert!(came_back(&[purge.clone(), read(false, 20, 40)]).is_empty());
        assert_eq!(came_back(&[purge.clone(), read(false, 10, 31)]).len(), 1);
        // Also where a later purge is done earlier, or is not done yet.
        assert_eq!(came_back(&[purged(cover, 5, 35), purge.clone(), read(false, 10, 40)]).len(), 1);
        assert_eq!(came_back(&[purge, purged(cover, 32, 99), read(false, 10, 40)]).len(), 1);
    }
    let others = [Cover::Scope(1), Cover::Tag(PAGE.tag() + 1), Cover::Tens { scope: 0, tens: 2 }];
    for cover in others {
        assert!(came_back(&[purged(cover, 20, 30), read(false, 10, 40)]).is_empty());
    }
}

#[test]
fn what_is_inserted_counts_from_when_it_is_stored() {
    let purge = purged(Cover::Name(PAGE), 20, 30);
    let inserted = |at| (2, Note::Inserted { number: 7, at });
    assert!(came_back(&[read(true, 10, 40), purge.clone()]).is_empty(), "its process was killed");
    assert!(came_back(&[inserted(25), read(true, 10, 40), purge.clone()]).is_empty());
    assert_eq!(came_back(&[inserted(15), read(true, 10, 40), purge]).len(), 1);
}

#[test]
fn a_failure_needs_an_excuse_of_its_time() {
    let span = Span::new(100 * SECOND, 105 * SECOND);
    let planted = |fault| vec![Planted { fault, span }];
    let stopped = Excuses { stops: vec![span], planted: Vec::new() };
    let at = |second: u64| Span::new(second * SECOND, (second + 1) * SECOND);
    assert!(stopped.has_for(&Why::Busy, &at(107)) && stopped.has_for(&Why::Busy, &at(99)));
    assert!(!stopped.has_for(&Why::Busy, &at(109)) && !stopped.has_for(&Why::Busy, &at(98)));
    assert!(!stopped.has_for(&Why::Damaged, &at(102)) && stopped.has_for(&Why::Full, &at(102)));
    let damaged = Excuses { stops: Vec::new(), planted: planted(Fault::DamageAnswers) };
    assert!(damaged.has_for(&Why::Damaged, &at(114)) && !damaged.has_for(&Why::Damaged, &at(116)));
    assert!(!damaged.has_for(&Why::Busy, &at(102)) && !damaged.has_for(&Why::Io(String::new()), &at(102)));
    let pinned = Excuses { stops: Vec::new(), planted: planted(Fault::Pin) };
    assert!(pinned.has_for(&Why::Full, &at(102)) && !pinned.has_for(&Why::Damaged, &at(102)));
    let all = Excuses { stops: vec![span], planted: Fault::ALL.into_iter().flat_map(planted).collect() };
    assert!(!all.has_for(&Why::Other(String::new()), &at(102)));
}
