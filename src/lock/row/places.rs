//! The places of a lock while its row is changed: the first ones stand in the row, the others have rows of their own. These
//! are read one by one, as they are needed, and written when the transition is over.

use super::{
    attempt::Moment,
    encoding::{Crowd, LockRow, PLACES, PLACES_LEFT, Place, Standing, ToWake},
};
use crate::{
    lock::{
        owner::Owner,
        rule::{HOLDERS_MAX, Holder},
    },
    store::{Due, HolderId, HolderStep, Step, WaitingLine},
};
use std::{collections::BTreeMap, time::Duration};

/// By how much a lease that is over is extended where the guard still lives in this process.
const STILL_HELD: u64 = Duration::from_secs(1).as_nanos() as u64;
/// Rows that one transition looks at because their time is over or their instance dead, at most. The next one goes on.
const BITE: usize = 256;
/// Instances of holders that are suspected of being dead, at most.
const SUSPECTS: usize = 64;
/// Rows of one owner that are looked at.
const OWN: usize = 8;

/// A lock's row with all its places, while they are changed.
pub(super) struct Places<'a> {
    pub(super) row: LockRow,
    pub(super) line: &'a WaitingLine<'a>,
    pub(super) moment: Moment<'a>,
    pub(super) changed: bool,
    /// Waiters that were offered a place, or have lost an offer.
    pub(super) to_wake: Vec<ToWake>,
    /// The places with rows of their own that were read, or are to be written.
    own_rows: BTreeMap<HolderId, OwnRow>,
    /// More places have ended than one transition removes.
    pub(super) is_unfinished: bool,
    /// The rule must see all holders, and there are more than it may see.
    pub(super) has_too_many: bool,
}

/// A place that has a row of its own, as it was read or is to be written.
struct OwnRow {
    before: Option<Due>,
    after: Option<(Due, Place)>,
    changed: bool,
}

/// The range of the index where those stand that hold in an instance, from one time to another.
fn held(instance: u64, from: u64, to: u64) -> (Due, Due) {
    (Due::Held { instance, at: from }, Due::Held { instance, at: to })
}

fn held_from(instance: u64, from: u64) -> (Due, Due) {
    (Due::Held { instance, at: from }, Due::Held { instance: u64::MAX, at: u64::MAX })
}

fn offered(from: u64, to: u64) -> (Due, Due) {
    (Due::Offered { at: from, instance: 0 }, Due::Offered { at: to, instance: u64::MAX })
}

/// When a place must be looked at: when its lease ends.
fn due_of(place: &Place) -> Due {
    match place.is_offered() {
        true => Due::Offered { at: place.lease, instance: place.instance },
        false => Due::Held { instance: place.instance, at: place.lease },
    }
}

/// The row after damaged rows of holders were removed. They count, with what is missing in the sum, until all leases that
/// were ever granted have ended.
fn recount(row: &mut LockRow, line: &WaitingLine<'_>, now: u64) -> bool {
    let Some(left) = line.mended() else { return false };
    let mut crowd = Crowd::default();
    for (row, place) in left.iter().filter_map(|row| Some((row, Place::of_row(row)?))) {
        crowd.enter(&place, row.due.time());
    }
    let (lost, until) = (row.crowd.weight.saturating_sub(crowd.weight), line.latest_lease_end());
    if lost > 0 && until > now {
        row.places.push(Place::unknown(now, until, u32::try_from(lost).unwrap_or(u32::MAX)));
    }
    row.crowd = crowd;
    true
}

/// What becomes of a place as time goes by.
enum Fate {
    Stays,
    Changes,
    Ends,
}

impl<'a> Places<'a> {
    pub(super) fn new(mut row: LockRow, line: &'a WaitingLine<'a>, moment: Moment<'a>) -> Places<'a> {
        let changed = recount(&mut row, line, moment.now);
        Places {
            row,
            line,
            moment,
            changed,
            to_wake: Vec::new(),
            own_rows: BTreeMap::new(),
            is_unfinished: false,
            has_too_many: false,
        }
    }

    fn fate(&self, place: &mut Place) -> Fate {
        let now = self.moment.now;
        let is_dead = self.moment.dead.contains(&place.instance);
        if place.lease > now && !is_dead {
            return Fate::Stays;
        }
        if place.is_held() && !is_dead && (self.moment.is_held_here)(place.number) {
            place.lease = now.saturating_add(STILL_HELD);
            return Fate::Changes;
        }
        if place.is_held() && place.stays > now {
            place.linger();
            return Fate::Changes;
        }
        Fate::Ends
    }

    fn tell_lapsed(&mut self, place: &Place) {
        if place.is_offered() && !self.moment.dead.contains(&place.instance) {
            self.to_wake.push(place.to_wake());
        }
    }

    /// Removes places whose instance is dead or whose lease is over, and offers that were not accepted.
    pub(super) fn tidy(&mut self) {
        let mut places = std::mem::take(&mut self.row.places);
        places.retain_mut(|place| {
            let fate = self.fate(place);
            self.changed |= !matches!(fate, Fate::Stays);
            if let Fate::Ends = fate {
                self.tell_lapsed(place);
                return false;
            }
            true
        });
        self.row.places = places;
        if self.row.crowd.count > 0 {
            self.tidy_crowd();
        }
    }

    fn tidy_crowd(&mut self) {
        let (now, dead, mut bite) = (self.moment.now, self.moment.dead, BITE);
        for &instance in dead {
            for (due, id) in self.line.due(held(instance, 0, u64::MAX), bite) {
                bite -= 1;
                self.lapse(due, id);
            }
        }
        if self.row.crowd.earliest > now && dead.is_empty() {
            return;
        }
        let until = if dead.is_empty() { now } else { u64::MAX };
        for (due, id) in self.line.due(offered(0, until), bite) {
            if due.time() <= now || dead.contains(&due.instance()) {
                bite -= 1;
                self.lapse(due, id);
            }
        }
        if self.row.crowd.earliest <= now {
            self.tidy_leases(bite);
        } else {
            self.is_unfinished |= bite == 0;
        }
    }

    /// Looks at those whose leases may be over, instance by instance, and finds out when the next one may be.
    fn tidy_leases(&mut self, mut bite: usize) {
        let now = self.moment.now;
        let after = now.saturating_add(1);
        let mut earliest = self.line.due(offered(after, u64::MAX), 1).first().map_or(u64::MAX, |(due, _)| due.time());
        let (mut instance, mut from) = (0, 0);
        while let Some((due, _)) = self.line.due(held_from(instance, from), 1).pop() {
            instance = due.instance();
            if due.time() > now {
                earliest = earliest.min(due.time());
                let Some(next) = instance.checked_add(1) else { break };
                (instance, from) = (next, 0);
                continue;
            }
            for (due, id) in self.line.due(held(instance, 0, now), bite) {
                bite -= 1;
                self.lapse(due, id);
            }
            if bite == 0 {
                break;
            }
            from = after;
        }
        if earliest == u64::MAX && self.own_rows.is_empty() {
            // Nobody stands in the index.
            self.line.miss();
        }
        if bite == 0 {
            (self.is_unfinished, earliest) = (true, now);
        }
        let read = self.own_rows.values().filter_map(|row| row.after.as_ref());
        self.row.crowd.earliest = read.map(|(due, _)| due.time()).fold(earliest, u64::min);
        self.changed = true;
    }

    /// Looks at a place that stands in the index at this time.
    fn lapse(&mut self, due: Due, id: HolderId) {
        if self.own_rows.contains_key(&id) {
            return;
        }
        let Some(mut place) = self.read_row(id, Some(due)) else { return self.line.miss() };
        match self.fate(&mut place) {
            Fate::Stays | Fate::Changes => self.write_row(place, true),
            Fate::Ends => {
                self.tell_lapsed(&place);
                self.take(id);
            }
        }
        self.changed = true;
    }

    /// Reads the row of a place. `due`: it stands there in the index.
    fn read_row(&mut self, id: HolderId, due: Option<Due>) -> Option<Place> {
        if let Some(row) = self.own_rows.get(&id) {
            return row.after.as_ref().map(|(_, place)| place.clone());
        }
        let row = self.line.holder(id)?;
        let place = Place::of_row(&row);
        if place.is_none() || due.is_some_and(|due| due != row.due) {
            self.line.miss();
        }
        let place = place?;
        let own = OwnRow { before: Some(row.due), after: Some((row.due, place.clone())), changed: false };
        self.own_rows.insert(id, own);
        Some(place)
    }

    /// Writes the row of a place that was read. Its entry in the index stays where it is, if it is early enough there:
    /// whoever looks moves it. `moves`: that is now.
    fn write_row(&mut self, place: Place, moves: bool) {
        let Some(row) = self.own_rows.get_mut(&place.id()) else { return };
        let due = match (row.after.as_ref(), due_of(&place)) {
            (Some((Due::Held { instance, at }, _)), Due::Held { instance: now, at: end })
                if !moves && *instance == now && *at <= end =>
            {
                Due::Held { instance: now, at: *at }
            }
            (_, due) => due,
        };
        self.row.crowd.renew(&place, due.time());
        (row.after, row.changed) = (Some((due, place)), true);
    }

    fn position(&self, id: HolderId) -> Option<usize> {
        self.row.places.iter().position(|place| place.id() == id)
    }

    /// The place of an owner under a number.
    pub(super) fn find(&mut self, id: HolderId) -> Option<Place> {
        match self.position(id) {
            Some(at) => Some(self.row.places[at].clone()),
            None if self.row.crowd.count == 0 => None,
            None => self.read_row(id, None),
        }
    }

    /// The first place that the owner holds.
    pub(super) fn find_own(&mut self, owner: &Owner) -> Option<Place> {
        let is_own = |place: &&Place| place.is_held() && place.owner == *owner;
        if let Some(place) = self.row.places.iter().find(is_own) {
            return Some(place.clone());
        }
        if self.row.crowd.count == 0 {
            return None;
        }
        let rows = self.line.holders(Some(owner.0), OWN);
        rows.into_iter().find_map(|row| self.read_row(row.id, None).filter(|place| is_own(&place)))
    }

    /// Puts a place that was found back, changed.
    pub(super) fn put(&mut self, place: Place) {
        self.changed = true;
        match self.position(place.id()) {
            Some(at) => self.row.places[at] = place,
            None => self.write_row(place, false),
        }
    }

    /// Removes a place that was found.
    pub(super) fn take(&mut self, id: HolderId) {
        self.changed = true;
        if let Some(at) = self.position(id) {
            self.row.places.swap_remove(at);
        } else if let Some(row) = self.own_rows.get_mut(&id)
            && let Some((_, place)) = row.after.take()
        {
            row.changed = true;
            self.row.crowd.leave(&place);
        }
    }

    /// Adds a place.
    pub(super) fn add(&mut self, place: Place) {
        self.changed = true;
        self.row.places.push(place);
        if self.row.places.len() <= PLACES {
            return;
        }
        // These concern the whole lock.
        let stays = |place: &mut Place| matches!(place.standing, Standing::Asked | Standing::Unknown);
        let mut movable: Vec<Place> = self.row.places.extract_if(.., |place| !stays(place)).collect();
        movable.sort_unstable_by_key(|place| place.number);
        let moved = movable.len().saturating_sub(PLACES_LEFT);
        self.row.places.extend(movable.split_off(moved));
        movable.into_iter().for_each(|place| self.move_to_own_row(place));
    }

    fn move_to_own_row(&mut self, place: Place) {
        if self.row.crowd.count == 0 && self.own_rows.is_empty() && !self.line.holders(None, 1).is_empty() {
            // Rows that the sum does not know.
            self.line.miss();
        }
        let due = due_of(&place);
        self.row.crowd.enter(&place, due.time());
        self.own_rows.insert(place.id(), OwnRow { before: None, after: Some((due, place)), changed: true });
    }

    /// All holders, for a rule that must see them. `None`: there are too many.
    pub(super) fn holders(&mut self) -> Option<Vec<Holder>> {
        if self.row.count() > HOLDERS_MAX {
            self.has_too_many = true;
            return None;
        }
        let mut holders: Vec<Holder> = self.row.places.iter().map(Place::holder).collect();
        if self.row.crowd.count == 0 {
            return Some(holders);
        }
        for row in self.line.holders(None, HOLDERS_MAX) {
            match Place::of_row(&row) {
                Some(_) if self.own_rows.contains_key(&row.id) => {}
                Some(place) => holders.push(place.holder()),
                None => self.line.miss(),
            }
        }
        let read = self.own_rows.values().filter_map(|row| row.after.as_ref());
        holders.extend(read.map(|(_, place)| place.holder()));
        Some(holders)
    }

    /// Those who were offered a place, and may not know it.
    pub(super) fn offered(&self) -> Vec<ToWake> {
        let places = self.row.places.iter().filter(|place| place.is_offered()).map(Place::to_wake);
        let mut to_wake: Vec<ToWake> = places.collect();
        if self.row.crowd.count == 0 {
            return to_wake;
        }
        let rows = self.line.due(offered(0, u64::MAX), BITE).into_iter();
        let rows = rows.filter(|(_, id)| !self.own_rows.contains_key(id));
        to_wake.extend(rows.map(|(due, id)| ToWake { instance: due.instance(), number: id.number }));
        let read = self.own_rows.values().filter_map(|row| row.after.as_ref());
        to_wake.extend(read.filter(|(_, place)| place.is_offered()).map(|(_, place)| place.to_wake()));
        to_wake
    }

    /// When the next place ends by itself.
    pub(super) fn next_end(&self) -> u64 {
        let crowd = if self.row.crowd.count > 0 { self.row.crowd.earliest } else { u64::MAX };
        self.row.places.iter().map(|place| place.lease).fold(crowd, u64::min)
    }

    /// The instances in which the places are held or offered. Of very many, some.
    pub(super) fn instances(&self) -> Vec<u64> {
        let mut instances: Vec<u64> = self.row.places.iter().map(|place| place.instance).collect();
        if self.row.crowd.count == 0 {
            return instances;
        }
        let read = self.own_rows.values().filter_map(|row| row.after.as_ref());
        instances.extend(read.map(|(_, place)| place.instance));
        instances.extend(self.line.due(offered(0, u64::MAX), SUSPECTS).into_iter().map(|(due, _)| due.instance()));
        let some = self.instances_from(0);
        if some.len() == SUSPECTS {
            // Others each time, since they are numbered at random.
            instances.extend(self.instances_from(self.moment.now.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        }
        instances.extend(some);
        instances
    }

    fn instances_from(&self, first: u64) -> Vec<u64> {
        let (mut found, mut next) = (Vec::new(), Some(first));
        while let Some(from) = next.filter(|_| found.len() < SUSPECTS) {
            let Some((due, _)) = self.line.due(held_from(from, 0), 1).pop() else { break };
            found.push(due.instance());
            next = due.instance().checked_add(1);
        }
        found
    }

    /// The steps that write the rows of places.
    pub(super) fn own_row_steps(&mut self) -> Vec<Step> {
        let changed = std::mem::take(&mut self.own_rows).into_iter().filter(|(_, row)| row.changed);
        let steps = changed.filter(|(_, row)| row.before.is_some() || row.after.is_some());
        steps
            .map(|(id, row)| {
                let after = row.after.map(|(due, place)| (due, place.to_bytes()));
                Step::Hold(HolderStep { id, before: row.before, after })
            })
            .collect()
    }
}
