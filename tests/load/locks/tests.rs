use super::*;
use crate::history::{Id, Life, Want};

const LEASE: u64 = 100;

fn attempt(name: &str, process: u32, got: u64, fence: u64, left: u64, how: How) -> Attempt {
    let (capacity, weight) = match name {
        "mutex" => (1, 1),
        "permits" => (3, 1),
        _ => (u32::MAX, 1),
    };
    let want = Want { name: name.into(), capacity, weight, lease: LEASE, at_least: 0, patience: None, lazy: false };
    Attempt {
        id: Id { process, attempt: got },
        want,
        asked: got - 1,
        got: Some((got, fence)),
        failed: None,
        told: None,
        refused: None,
        leaves: Some(left),
        left: Some((left + 1, how)),
    }
}

fn wrong(attempts: Vec<Attempt>) -> usize {
    check(&History { attempts, ..History::default() }).len()
}

#[test]
fn two_at_once_are_too_many_for_a_mutex_as_four_for_three_permits() {
    let kept = |name, got, fence| attempt(name, 1, got, fence, got + 1_000, How::Kept);
    assert_eq!(wrong(vec![kept("mutex", 10, 1), kept("mutex", 1_010, 2)]), 0);
    assert_eq!(wrong(vec![kept("mutex", 10, 1), kept("mutex", 1_009, 2)]), 1);
    assert_eq!(
        wrong(vec![kept("mutex", 10, 1), kept("permits", 20, 2), kept("permits", 30, 3), kept("permits", 40, 4)]),
        0
    );
    assert_eq!(wrong((1..5).map(|fence| kept("permits", 10 * fence, fence)).collect()), 1);
    assert_eq!(wrong((1..5).map(|fence| kept("rows", 10 * fence, fence)).collect()), 0);
    let writer = |got, fence| {
        let mut writer = kept("rows", got, fence);
        writer.want.weight = u32::MAX;
        writer
    };
    assert_eq!(wrong(vec![kept("rows", 10, 1), writer(20, 2)]), 1);
}

#[test]
fn who_lost_it_or_was_killed_held_it_for_its_lease_at_least() {
    let next = |got| attempt("mutex", 2, got, 9, got + 10, How::Kept);
    for how in [How::Lost, How::Unknown] {
        let holder = attempt("mutex", 1, 10, 1, 1_000, how);
        assert_eq!(wrong(vec![holder.clone(), next(9 + LEASE)]), 0);
        assert_eq!(wrong(vec![holder, next(8 + LEASE)]), 1);
    }
    let killed = Attempt { leaves: None, left: None, ..attempt("mutex", 1, 10, 1, 0, How::Kept) };
    let life = Life { killed: Some(Span::new(50, 60)), ..Life::default() };
    let history = |got| History { attempts: vec![killed.clone(), next(got)], lives: [(1, life.clone())].into() };
    assert_eq!((check(&history(49)).len(), check(&history(50)).len()), (1, 0));
}

#[test]
fn fences_grow_and_what_a_lock_guards_agrees() {
    let kept = |got, fence| attempt("mutex", 1, got, fence, got + 5, How::Kept);
    assert_eq!(wrong(vec![kept(10, 1), kept(20, 2), kept(30, 7)]), 0);
    assert_eq!(wrong(vec![kept(10, 1), kept(20, 3), kept(30, 2)]), 1);
    assert_eq!(wrong(vec![kept(10, 1), kept(20, 1)]), 1);
    let refused = |at| Attempt { refused: Some(at), ..kept(10, 1) };
    assert_eq!((wrong(vec![refused(12)]), wrong(vec![refused(15)])), (1, 0));
}
