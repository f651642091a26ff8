//! The bytes of a lock's row, and of a waiter's.

use crate::{
    lock::{
        owner::Owner,
        rule::{Demand, Holder},
    },
    store::{Change, Found, HolderId, HolderRow, PAYLOAD_MAX, Waiter},
};
use std::{sync::Arc, time::Duration};

const VERSION: u8 = 3;
const HEAD: usize = 16;
const CROWD: usize = 44;
const PLACE: usize = 65;
const TICKET: usize = 32;
/// Bytes of the scope and the name that are kept in the row, to be read from outside.
const SCOPE_MAX: usize = 64;
const NAME_MAX: usize = 256;
const LABEL_MAX: usize = 1 + SCOPE_MAX + NAME_MAX;
/// How long the row of a waiter counts. While it lives it asks again far more often.
pub(super) const WAITER: u64 = Duration::from_secs(600).as_nanos() as u64;
/// Places that stand in the row itself: the latest ones, so that whoever enters and soon leaves touches no other row. When
/// they are more, those that came first get rows of their own, several at a time, and so many stay.
pub(in crate::lock) const PLACES: usize = 12;
pub(super) const PLACES_LEFT: usize = 4;
const _: () = assert!(HEAD + CROWD + 2 * PLACES * PLACE + LABEL_MAX <= PAYLOAD_MAX, "they fit");

/// What a lock's row says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::lock) struct LockRow {
    pub(in crate::lock) places: Vec<Place>,
    pub(in crate::lock) crowd: Crowd,
    /// How many wait; their rows count if it is wrong.
    pub(in crate::lock) waiting: u32,
    /// How long the lock was held on average of late, in ns; 0 if it is not known.
    pub(in crate::lock) mean: u64,
    pub(in crate::lock) tag: u64,
}

/// The places that have rows of their own, in sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::lock) struct Crowd {
    pub(in crate::lock) count: u32,
    pub(in crate::lock) weight: u64,
    /// The sum of their numbers, which may overflow.
    pub(super) numbers: u64,
    /// Machine time in ns since when there are any.
    since: u64,
    /// None of them must be looked at before this machine time, in ns.
    pub(in crate::lock) earliest: u64,
    /// Machine time in ns at which all leases are over.
    pub(super) latest: u64,
}

impl Crowd {
    pub(in crate::lock) fn enter(&mut self, place: &Place, due: u64) {
        if self.count == 0 {
            *self = Crowd { since: place.since, earliest: u64::MAX, ..Crowd::default() };
        }
        self.count = self.count.saturating_add(1);
        self.weight = self.weight.saturating_add(place.weight.into());
        self.numbers = self.numbers.wrapping_add(place.number);
        self.renew(place, due);
    }

    /// The lease of one of them changes, or when it must be looked at.
    pub(in crate::lock) fn renew(&mut self, place: &Place, due: u64) {
        self.earliest = self.earliest.min(due);
        self.latest = self.latest.max(place.lease);
    }

    pub(in crate::lock) fn leave(&mut self, place: &Place) {
        if self.count <= 1 {
            *self = Crowd::default();
            return;
        }
        self.count -= 1;
        self.weight = self.weight.saturating_sub(place.weight.into());
        self.numbers = self.numbers.wrapping_sub(place.number);
    }

    fn read(bytes: &[u8]) -> Option<Crowd> {
        let (count, rest) = bytes.split_first_chunk()?;
        let number = |at: usize| Some(u64::from_le_bytes(rest.get(at..at + 8)?.try_into().ok()?));
        Some(Crowd {
            count: u32::from_le_bytes(*count),
            weight: number(0)?,
            numbers: number(8)?,
            since: number(16)?,
            earliest: number(24)?,
            latest: number(32)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.count.to_le_bytes());
        for number in [self.weight, self.numbers, self.since, self.earliest, self.latest] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }
}

/// A waiter that was offered a place or has lost an offer. It is woken to ask again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToWake {
    pub(crate) instance: u64,
    pub(crate) number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::lock) enum Standing {
    Held = 0,
    /// Kept for a waiter.
    Offered = 1,
    /// Kept for a waiter whose rule only its own process knows.
    Asked = 2,
    /// Its holder has left, but it is kept for its minimum time.
    Lingering = 3,
    /// Stands for holders whose rows cannot be read.
    Unknown = 4,
}

/// A share of the lock, held or offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::lock) struct Place {
    pub(in crate::lock) owner: Owner,
    /// Its fence, or the number of the waiter to whom it is offered.
    pub(in crate::lock) number: u64,
    /// Machine time in ns at which it was entered first.
    pub(in crate::lock) since: u64,
    /// Machine time in ns at which it is lost unless it is renewed.
    pub(in crate::lock) lease: u64,
    /// Machine time in ns until which it is kept, whatever its holder does.
    pub(in crate::lock) stays: u64,
    /// The instance that holds it; 0 if it is not known.
    pub(in crate::lock) instance: u64,
    pub(in crate::lock) entered: u32,
    pub(in crate::lock) weight: u32,
    pub(in crate::lock) standing: Standing,
}

impl Place {
    /// A place that its owner has entered once.
    pub(in crate::lock) fn held(id: HolderId, since: u64, lease: u64, instance: u64, weight: u32) -> Place {
        let HolderId { owner, number } = id;
        let standing = Standing::Held;
        Place { owner: Owner(owner), number, since, lease, stays: 0, instance, entered: 1, weight, standing }
    }

    /// In place of holders that are not known: it counts until their leases must have ended.
    pub(in crate::lock) fn unknown(now: u64, lease: u64, weight: u32) -> Place {
        Place {
            owner: Owner::random(),
            number: 0,
            since: now,
            lease,
            stays: lease,
            instance: 0,
            entered: 1,
            weight,
            standing: Standing::Unknown,
        }
    }

    pub(in crate::lock) fn id(&self) -> HolderId {
        HolderId { owner: self.owner.0, number: self.number }
    }

    /// A place that has a row of its own. `None`: it cannot be read.
    pub(in crate::lock) fn of_row(row: &HolderRow) -> Option<Place> {
        Place::read(&row.payload).filter(|place| place.id() == row.id)
    }

    pub(in crate::lock) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PLACE);
        self.write(&mut bytes);
        bytes
    }

    pub(in crate::lock) fn is_held(&self) -> bool {
        self.standing == Standing::Held
    }

    pub(in crate::lock) fn is_offered(&self) -> bool {
        matches!(self.standing, Standing::Offered | Standing::Asked)
    }

    pub(in crate::lock) fn to_wake(&self) -> ToWake {
        ToWake { instance: self.instance, number: self.number }
    }

    pub(in crate::lock) fn holder(&self) -> Holder {
        Holder { owner: self.owner.clone(), entered: self.entered, weight: self.weight }
    }

    /// It has no holder from now on, and is kept to the end of its minimum time.
    pub(in crate::lock) fn linger(&mut self) {
        (self.standing, self.lease, self.instance) = (Standing::Lingering, self.stays, 0);
    }

    /// For how many more ns it is taken, if such places are held for `each` ns.
    fn stays_for(&self, each: u64, now: u64) -> u64 {
        let minimum = self.stays.saturating_sub(now);
        if self.standing == Standing::Lingering { minimum } else { minimum.max(each) }
    }

    fn read(bytes: &[u8]) -> Option<Place> {
        let (owner, rest) = bytes.split_first_chunk::<16>()?;
        let number = |at: usize| Some(u64::from_le_bytes(rest.get(at..at + 8)?.try_into().ok()?));
        let small = |at: usize| Some(u32::from_le_bytes(rest.get(at..at + 4)?.try_into().ok()?));
        Some(Place {
            owner: Owner(u128::from_le_bytes(*owner)),
            number: number(0)?,
            since: number(8)?,
            lease: number(16)?,
            stays: number(24)?,
            instance: number(32)?,
            entered: small(40)?,
            weight: small(44)?,
            standing: match rest.get(48)? {
                0 => Standing::Held,
                1 => Standing::Offered,
                2 => Standing::Asked,
                3 => Standing::Lingering,
                4 => Standing::Unknown,
                _ => return None,
            },
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.owner.0.to_le_bytes());
        for number in [self.number, self.since, self.lease, self.stays, self.instance] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.entered.to_le_bytes());
        out.extend_from_slice(&self.weight.to_le_bytes());
        out.push(self.standing as u8);
    }
}

/// The bytes of the crowd, those of the places, and the label.
fn parts(payload: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    if *payload.first()? != VERSION || payload.len() < HEAD {
        return None;
    }
    let places = usize::from(u16::from_le_bytes([payload[1], payload[2]]));
    let (crowd, rest) = payload[HEAD..].split_at_checked(if payload[3] == 0 { 0 } else { CROWD })?;
    let (places, label) = rest.split_at_checked(places * PLACE)?;
    Some((crowd, places, label))
}

/// The label of a row: the length of the scope's name, that name, and the lock's name.
pub(in crate::lock) fn label(payload: &[u8]) -> &[u8] {
    parts(payload).map_or(&[], |(_, _, label)| label)
}

pub(in crate::lock) fn write_label(scope: &str, name: &[u8]) -> Arc<[u8]> {
    let scope = &scope.as_bytes()[..scope.len().min(SCOPE_MAX)];
    let name = &name[..name.len().min(NAME_MAX)];
    let mut label = [0; LABEL_MAX];
    let (scope_end, end) = (1 + scope.len(), 1 + scope.len() + name.len());
    label[0] = scope.len() as u8;
    label[1..scope_end].copy_from_slice(scope);
    label[scope_end..end].copy_from_slice(name);
    label[..end].into()
}

/// Scope and name of the row with these bytes.
pub(in crate::lock) fn names(payload: &[u8]) -> (&[u8], &[u8]) {
    let label = label(payload);
    let Some((&scope, rest)) = label.split_first() else { return (&[], &[]) };
    rest.split_at_checked(scope.into()).unwrap_or((&[], rest))
}

impl LockRow {
    /// `None`: the row cannot be read.
    pub(in crate::lock) fn read(found: Found<'_>) -> Option<LockRow> {
        let row = match found {
            Found::Absent | Found::Lost { .. } => return Some(LockRow::default()),
            Found::Row(row) => row,
            Found::Damaged => return None,
        };
        let payload = row.payload;
        let (crowd, places, _) = parts(payload)?;
        Some(LockRow {
            places: places.chunks_exact(PLACE).map(Place::read).collect::<Option<_>>()?,
            crowd: if crowd.is_empty() { Crowd::default() } else { Crowd::read(crowd)? },
            waiting: u32::from_le_bytes(payload[4..8].try_into().ok()?),
            mean: u64::from_le_bytes(payload[8..16].try_into().ok()?),
            tag: row.tag,
        })
    }

    /// In place of a row that cannot be read. Its holders are not known, so the lock counts as held until their leases
    /// must have ended. How many wait is not known either; their rows tell.
    pub(in crate::lock) fn unknown(now: u64, lease: u64) -> LockRow {
        LockRow { places: vec![Place::unknown(now, lease, u32::MAX)], waiting: 1, ..LockRow::default() }
    }

    /// What the row becomes.
    pub(in crate::lock) fn write(&self, now: u64, label: &[u8]) -> Change {
        if self.count() == 0 && self.waiting == 0 {
            return Change::Remove;
        }
        let is_crowded = self.crowd.count > 0;
        let mut payload = Vec::with_capacity(HEAD + CROWD + self.places.len() * PLACE + label.len());
        payload.push(VERSION);
        payload.extend_from_slice(&(self.places.len() as u16).to_le_bytes());
        payload.push(is_crowded.into());
        payload.extend_from_slice(&self.waiting.to_le_bytes());
        payload.extend_from_slice(&self.mean.to_le_bytes());
        if is_crowded {
            self.crowd.write(&mut payload);
        }
        self.places.iter().for_each(|place| place.write(&mut payload));
        payload.extend_from_slice(label);
        // Whoever waits writes the row again long before it may be swept.
        let expires = self.places.iter().map(|place| place.lease).fold(now.max(self.crowd.latest), u64::max);
        Change::Put { expires, tag: self.tag, payload }
    }

    /// How many places there are.
    pub(in crate::lock) fn count(&self) -> usize {
        self.places.len() + self.crowd.count as usize
    }

    /// Whether the holders are known.
    pub(in crate::lock) fn is_known(&self) -> bool {
        self.places.iter().all(|place| place.standing != Standing::Unknown)
    }

    /// Hardly ever the same of two states of a lock: numbers only grow.
    pub(in crate::lock) fn mark(&self) -> u64 {
        let places = self.places.iter().fold(self.crowd.numbers, |sum, place| sum.wrapping_add(place.number));
        places.wrapping_mul(1 << 20).wrapping_add(self.waiting.into())
    }

    /// The weight of all together.
    pub(in crate::lock) fn taken(&self) -> u64 {
        self.places.iter().fold(self.crowd.weight, |sum, place| sum.saturating_add(place.weight.into()))
    }

    /// Notes that it was held for so many ns. In the mean, older times fade by an eighth each time.
    pub(in crate::lock) fn learn(&mut self, held: u64) {
        self.mean = if self.mean == 0 { held } else { self.mean - self.mean / 8 + held / 8 }.max(1);
    }

    /// In how many ns it may be the turn of a newcomer.
    pub(in crate::lock) fn wait(&self, now: u64) -> Option<u64> {
        // A guess: of a crowd, nobody stands for a minimum time.
        let crowd = (self.crowd.count > 0).then_some(self.crowd.since);
        let oldest = self.places.iter().map(|place| place.since).chain(crowd).min()?;
        let each = if self.mean > 0 { self.mean } else { now.saturating_sub(oldest) };
        let first = self.places.iter().map(|place| place.stays_for(each, now)).chain(crowd.map(|_| each)).min()?;
        let turns = u64::from(self.waiting) / self.count() as u64;
        Some(each.saturating_mul(turns).saturating_add(first))
    }
}

/// What a waiter's row says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::lock) struct Ticket {
    pub(in crate::lock) owner: Owner,
    /// Machine time in ns since when it waits.
    pub(in crate::lock) since: u64,
    /// `None`: only its own process knows its rule.
    pub(in crate::lock) demand: Option<Demand>,
}

impl Ticket {
    pub(in crate::lock) fn read(waiter: &Waiter) -> Option<Ticket> {
        let bytes: &[u8; TICKET] = waiter.payload.as_slice().try_into().ok()?;
        let small = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (owner, rest) = bytes.split_first_chunk::<16>()?;
        let capacity = small(24);
        Some(Ticket {
            owner: Owner(u128::from_le_bytes(*owner)),
            since: u64::from_le_bytes(*rest.first_chunk()?),
            demand: (capacity > 0).then(|| Demand::new(capacity, small(28))),
        })
    }

    pub(in crate::lock) fn into_waiter(self, number: u64, until: u64, instance: u64) -> Waiter {
        let mut payload = Vec::with_capacity(TICKET);
        payload.extend_from_slice(&self.owner.0.to_le_bytes());
        payload.extend_from_slice(&self.since.to_le_bytes());
        let (capacity, weight) = self.demand.map_or((0, 0), |demand| (demand.capacity(), demand.weight()));
        payload.extend_from_slice(&capacity.to_le_bytes());
        payload.extend_from_slice(&weight.to_le_bytes());
        Waiter { turn: number, ticket: 0, until, instance, payload }
    }
}
