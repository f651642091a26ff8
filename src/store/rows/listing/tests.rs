use super::*;
use crate::{
    cache::testing::{Holder, cache, state, tamper},
    store::{Change, Found, Kind, Step, WaitingLine},
};

#[test]
fn every_lock_is_listed_once_with_those_who_wait_first() {
    let cache = cache();
    let scopes = [cache.scope("a"), cache.scope("b")];
    for (i, scope) in (0..250_u64).zip(scopes.iter().cycle()) {
        let key = scope.key(Kind::Lock, &i.to_le_bytes());
        let transition = move |_: Found<'_>, line: &WaitingLine<'_>, _: u64| {
            let waiter = || Waiter { turn: line.number(), ticket: i, until: u64::MAX, instance: 1, payload: vec![] };
            let put = Change::Put { expires: u64::MAX, tag: 7, payload: i.to_le_bytes().to_vec() };
            ((), put, (0..i % 4).map(|_| Step::Join(waiter())).collect())
        };
        scope.update_line(LOCKS, key, transition, |done| done).wait().unwrap();
    }
    let damaged = scopes[0].key(Kind::Lock, b"damaged");
    tamper(&state(&cache).queue, |txn| txn.put(LOCKS, &damaged.hash, b"nonsense").unwrap());
    let (mut after, mut pages, mut seen, mut broken) = (None, Vec::new(), Vec::new(), 0);
    loop {
        let [first, second] = scopes.clone();
        let (listed, more) = first
            .clone()
            .list_locks(after, 2, move |listed| {
                assert!(first.has_key(listed.key) != second.has_key(listed.key));
                let number = listed.row.map(|row| u64::from_le_bytes(row.payload.try_into().unwrap()));
                let ticket = |waiter: &Waiter| assert_eq!(Some(waiter.ticket), number);
                listed.waiters.iter().for_each(ticket);
                Some((number, first.has_key(listed.key), listed.waiters.len() as u64))
            })
            .wait()
            .unwrap();
        pages.push(listed.len());
        for (number, of_first, waiting) in listed {
            match number {
                Some(i) => {
                    assert_eq!((waiting, of_first), ((i % 4).min(2), i % 2 == 0));
                    seen.push(i);
                }
                None => {
                    assert!(of_first);
                    broken += 1;
                }
            }
        }
        after = more;
        if more.is_none() {
            break;
        }
    }
    seen.sort_unstable();
    assert_eq!((seen, broken, pages), ((0..250).collect(), 1, vec![100, 100, 51]));
}

#[test]
fn a_listing_behind_a_shut_gate_waits_its_turn_and_some_can_be_left_out() {
    let cache = cache();
    let key = cache.root().key(Kind::Lock, b"a");
    let put = |_: Found<'_>, _: u64| ((), Change::Put { expires: u64::MAX, tag: 0, payload: vec![1] });
    cache.root().update(LOCKS, key, put, |done| done).wait().unwrap();
    let holder = Holder::of(&state(&cache).queue);
    let all = cache.root().list_locks(None, 0, |listed| Some(*listed.key));
    let none = cache.root().list_locks(None, 0, |_| None::<()>);
    holder.release();
    assert_eq!(all.wait().unwrap(), (vec![key.hash], None));
    assert_eq!(none.wait().unwrap(), (vec![], None));
}
