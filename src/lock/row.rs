//! A lock's row and its transitions: pure functions, tested with no cache, no clock, no runtime.

use super::rule::{Holder, Owner, Rule};
use crate::cache::{Change, Found, PAYLOAD_MAX};

const VERSION: u8 = 1;
const HOLDER: usize = 36;
/// Bytes of the name that are kept in the row, to be read from outside.
const NAME_MAX: usize = 256;
/// Holders that fit into a row.
const HOLDERS_MAX: usize = (PAYLOAD_MAX - 4 - NAME_MAX) / HOLDER;

/// What a lock's row says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Held {
    holders: Vec<Holder>,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attempt {
    Acquired,
    Busy,
}

/// What an attempt wants.
#[derive(Clone, Debug)]
pub(crate) struct Wish<R> {
    pub(crate) rule: R,
    pub(crate) owner: Owner,
    /// In ns.
    pub(crate) lease: u64,
    /// Digest of its tag, 0 for none.
    pub(crate) tag: u64,
    pub(crate) name: Box<[u8]>,
}

fn decode(payload: &[u8]) -> Option<Held> {
    let (&[version, _, _, _], rest) = payload.split_first_chunk::<4>()?;
    let count = u16::from_le_bytes([payload[1], payload[2]]) as usize;
    if version != VERSION || rest.len() < count * HOLDER {
        return None;
    }
    let holders = rest[..count * HOLDER].chunks_exact(HOLDER).map(|holder| {
        Some(Holder {
            owner: Owner(u128::from_le_bytes(holder[..16].try_into().ok()?)),
            entered: u32::from_le_bytes(holder[16..20].try_into().ok()?),
            since: u64::from_le_bytes(holder[20..28].try_into().ok()?),
            lease: u64::from_le_bytes(holder[28..36].try_into().ok()?),
        })
    });
    Some(Held { holders: holders.collect::<Option<_>>()? })
}

fn name_of(payload: &[u8]) -> &[u8] {
    let count = payload.get(1..3).map_or(0, |count| u16::from_le_bytes([count[0], count[1]]) as usize);
    payload.get(4 + count * HOLDER..).unwrap_or_default()
}

fn encode(holders: &[Holder], tag: u64, name: &[u8]) -> Change {
    if holders.is_empty() {
        return Change::Remove;
    }
    let name = &name[..name.len().min(NAME_MAX)];
    let mut payload = Vec::with_capacity(4 + holders.len() * HOLDER + name.len());
    payload.push(VERSION);
    payload.extend_from_slice(&(holders.len() as u16).to_le_bytes());
    payload.push(0);
    for holder in holders {
        payload.extend_from_slice(&holder.owner.0.to_le_bytes());
        payload.extend_from_slice(&holder.entered.to_le_bytes());
        payload.extend_from_slice(&holder.since.to_le_bytes());
        payload.extend_from_slice(&holder.lease.to_le_bytes());
    }
    payload.extend_from_slice(name);
    let expires = holders.iter().map(|holder| holder.lease).max().unwrap_or(0);
    Change::Put { expires, tag, payload }
}

/// Tries to enter. `local` are the owners of living guards of this process: their leases do not end while they live.
pub(crate) fn acquire<R: Rule>(found: Found<'_>, now: u64, wish: &Wish<R>, local: &[u128]) -> (Attempt, Change) {
    let lease = now.saturating_add(wish.lease);
    let held = match found {
        Found::Absent => Some(Held::default()),
        Found::Row(row) => decode(row.payload),
        Found::Damaged => None,
    };
    let Some(Held { mut holders }) = held else {
        // Whoever held it cannot be told: refuse until their lease must have ended.
        let unknown = Holder { owner: Owner::random(), entered: 1, since: now, lease };
        return (Attempt::Busy, encode(&[unknown], wish.tag, &wish.name));
    };
    let before = holders.len();
    holders.retain_mut(|holder| {
        if holder.lease <= now && local.contains(&holder.owner.0) {
            holder.lease = lease;
        }
        holder.lease > now
    });
    if holders.len() >= HOLDERS_MAX || !wish.rule.admits(&holders, &wish.owner) {
        let change = if holders.len() == before { Change::Keep } else { encode(&holders, wish.tag, &wish.name) };
        return (Attempt::Busy, change);
    }
    match holders.iter_mut().find(|holder| holder.owner == wish.owner) {
        Some(holder) => {
            holder.entered = holder.entered.saturating_add(1);
            holder.lease = holder.lease.max(lease);
        }
        None => holders.push(Holder { owner: wish.owner.clone(), entered: 1, since: now, lease }),
    }
    (Attempt::Acquired, encode(&holders, wish.tag, &wish.name))
}

/// Leaves once. `false`: the place was lost before, and nothing changes.
pub(crate) fn release(found: Found<'_>, owner: &Owner) -> (bool, Change) {
    edit(found, owner, |holder| {
        holder.entered = holder.entered.saturating_sub(1);
        holder.entered > 0
    })
}

/// Extends the lease. `false`: the place is lost.
pub(crate) fn renew(found: Found<'_>, now: u64, owner: &Owner, lease: u64) -> (bool, Change) {
    edit(found, owner, |holder| {
        holder.lease = holder.lease.max(now.saturating_add(lease));
        true
    })
}

/// Edits the owner's place; `keep` says whether it stays.
fn edit(found: Found<'_>, owner: &Owner, keep: impl FnOnce(&mut Holder) -> bool) -> (bool, Change) {
    let Found::Row(row) = found else { return (false, Change::Keep) };
    let Some(Held { mut holders }) = decode(row.payload) else { return (false, Change::Keep) };
    let Some(at) = holders.iter().position(|holder| holder.owner == *owner) else { return (false, Change::Keep) };
    if !keep(&mut holders[at]) {
        holders.remove(at);
    }
    (true, encode(&holders, row.tag, name_of(row.payload)))
}

#[cfg(test)]
mod tests {
    use super::super::rule::{Lock, OneOwner, Semaphore};
    use super::*;
    use crate::cache::record::Row;
    use proptest::prelude::*;

    const LEASE: u64 = 100;

    /// A lock without a cache: the change applied to bytes.
    #[derive(Default)]
    struct Bench(Option<(u64, u64, Vec<u8>)>);

    impl Bench {
        fn found(&self) -> Found<'_> {
            match &self.0 {
                None => Found::Absent,
                Some((expires, tag, payload)) => Found::Row(Row { expires: *expires, tag: *tag, payload }),
            }
        }

        fn apply<T>(&mut self, step: impl FnOnce(Found<'_>) -> (T, Change)) -> T {
            let (result, change) = step(self.found());
            match change {
                Change::Keep => {}
                Change::Remove => self.0 = None,
                Change::Put { expires, tag, payload } => self.0 = Some((expires, tag, payload)),
            }
            result
        }

        fn acquire(&mut self, now: u64, rule: impl Rule, owner: u128, local: &[u128]) -> bool {
            let wish = Wish { rule, owner: Owner(owner), lease: LEASE, tag: 7, name: (*b"name").into() };
            self.apply(|found| acquire(found, now, &wish, local)) == Attempt::Acquired
        }

        fn release(&mut self, owner: u128) -> bool {
            self.apply(|found| release(found, &Owner(owner)))
        }
    }

    #[test]
    fn one_holder_and_a_foreign_release_changes_nothing() {
        let mut lock = Bench::default();
        assert!(lock.acquire(0, Lock, 1, &[]));
        assert!(!lock.acquire(1, Lock, 2, &[]));
        assert!(!lock.release(2));
        assert!(!lock.acquire(2, Lock, 2, &[]));
        assert!(lock.release(1));
        assert_eq!(lock.0, None, "an idle lock leaves no row");
        assert!(!lock.release(1), "once");
    }

    #[test]
    fn an_owner_may_enter_again_and_leaves_as_often() {
        let mut lock = Bench::default();
        assert!(lock.acquire(0, OneOwner, 1, &[]) && lock.acquire(0, OneOwner, 1, &[]));
        assert!(!lock.acquire(0, OneOwner, 2, &[]));
        assert!(lock.release(1));
        assert!(!lock.acquire(0, OneOwner, 2, &[]));
        assert!(lock.release(1));
        assert!(lock.acquire(0, OneOwner, 2, &[]));
    }

    #[test]
    fn a_lease_ends_unless_its_guard_lives_here_or_it_is_renewed() {
        let mut lock = Bench::default();
        assert!(lock.acquire(0, Lock, 1, &[]));
        assert!(!lock.acquire(LEASE, Lock, 2, &[1]), "its guard lives in this process");
        assert!(lock.apply(|found| renew(found, 150, &Owner(1), LEASE)));
        assert!(!lock.acquire(249, Lock, 2, &[]));
        assert!(lock.acquire(250, Lock, 2, &[]));
        assert!(!lock.apply(|found| renew(found, 251, &Owner(1), LEASE)), "lost");
        assert!(!lock.release(1), "a late release harms nobody");
        assert!(!lock.acquire(252, Lock, 3, &[]));
    }

    #[test]
    fn a_damaged_row_refuses_for_one_lease() {
        let mut lock = Bench(Some((0, 0, b"nonsense".to_vec())));
        assert!(!lock.acquire(0, Lock, 1, &[]));
        assert!(!lock.acquire(LEASE - 1, Lock, 1, &[]));
        assert!(lock.acquire(LEASE, Lock, 1, &[]));
    }

    #[test]
    fn the_name_stays_readable_through_renewals() {
        let mut lock = Bench::default();
        lock.acquire(0, Semaphore(2), 1, &[]);
        lock.acquire(0, Semaphore(2), 2, &[]);
        lock.release(1);
        let (_, tag, payload) = lock.0.unwrap();
        assert_eq!((name_of(&payload), tag), (&b"name"[..], 7));
    }

    #[test]
    fn a_row_that_is_full_of_holders_is_busy_and_fits() {
        let mut lock = Bench::default();
        let entered = (0..).take_while(|&owner| lock.acquire(0, Semaphore(u32::MAX), owner, &[])).count();
        assert_eq!(entered, HOLDERS_MAX);
        assert!(lock.0.unwrap().2.len() <= PAYLOAD_MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

        #[test]
        fn never_more_holders_than_permits(steps in prop::collection::vec((0_u64..60, 1_u128..8, any::<bool>()), 0..80), permits in 1_u32..4) {
            let mut lock = Bench::default();
            let mut model: Vec<(u128, u64)> = Vec::new();
            let mut now = 0;
            for (pause, owner, enter) in steps {
                now += pause;
                model.retain(|held| held.1 > now);
                let held = model.iter().any(|held| held.0 == owner);
                if enter && !held {
                    prop_assert_eq!(lock.acquire(now, Semaphore(permits), owner, &[]), model.len() < permits as usize);
                    if model.len() < permits as usize {
                        model.push((owner, now + LEASE));
                    }
                } else if !enter && held {
                    prop_assert!(lock.release(owner));
                    model.retain(|held| held.0 != owner);
                }
                prop_assert!(model.len() <= permits as usize);
            }
        }

        #[test]
        fn arbitrary_rows_never_panic(payload in prop::collection::vec(any::<u8>(), 0..200), version in any::<bool>()) {
            let mut payload = payload;
            if let (true, Some(first)) = (version, payload.first_mut()) {
                *first = VERSION;
            }
            let mut lock = Bench(Some((0, 0, payload)));
            lock.release(1);
            lock.apply(|found| renew(found, 5, &Owner(1), 5));
            lock.acquire(5, Lock, 1, &[]);
        }
    }
}
