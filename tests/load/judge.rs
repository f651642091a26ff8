//! Whether the cache kept its promises, found out from what its users wrote down.

use crate::{
    bound,
    crew::{Fault, Planted},
    history::{self, Failure, History, Process, Span},
    locks,
    notes::{Note, Origin, Page, Why},
    player::{BUDGETS, Desk, PATIENCE},
};
use std::{collections::HashMap, time::Duration};

/// What a fault brings with it is over so long after it is cured; a process that was stopped meanwhile goes on by then.
const LATE: Duration = Duration::from_secs(10);
/// The longest lease: where the rows of locks were lost, none is granted before it has ended.
const LEASE: Duration = Duration::from_secs(30);
/// No more than these are told.
const TOLD: usize = 20;

/// When what may go wrong.
struct Excuses {
    /// Somebody is stopped, perhaps in the middle of a write or a read.
    stops: Vec<Span>,
    planted: Vec<Planted>,
}

impl Excuses {
    fn stopped(&self, span: &Span, for_longer: Duration) -> bool {
        self.stops.iter().any(|stop| meets(stop, for_longer, span))
    }

    fn planted(&self, faults: &[Fault], span: &Span, for_longer: Duration) -> bool {
        let mut planted = self.planted.iter().filter(|planted| faults.contains(&planted.fault));
        planted.any(|planted| meets(&planted.span, for_longer, span))
    }

    fn has_for(&self, why: &Why, span: &Span) -> bool {
        const DAMAGES: [Fault; 3] = [Fault::DamageAnswers, Fault::DamageState, Fault::Panic];
        match why {
            Why::Busy => self.stopped(span, PATIENCE),
            Why::Damaged => self.planted(&DAMAGES, span, LATE),
            // Files that were replaced stay as long as somebody who is stopped has them open.
            Why::Full => self.stopped(span, LATE) || self.planted(&Fault::ALL, span, LATE),
            Why::Io(_) => self.planted(&[Fault::Panic], span, LATE),
            Why::Unknown => {
                let claims = self.planted(&[Fault::DamageState], span, LEASE + LATE);
                claims || [Why::Busy, Why::Damaged, Why::Full].iter().any(|why| self.has_for(why, span))
            }
            Why::Other(_) => false,
        }
    }
}

fn meets(excuse: &Span, for_longer: Duration, span: &Span) -> bool {
    excuse.from <= span.to && span.from <= excuse.to.saturating_add(for_longer.as_nanos() as u64)
}

/// What is wrong, and in a line what there was.
pub(crate) fn check(desk: &Desk, planted: &[Planted]) -> (Vec<String>, String) {
    let history = History::new(history::read(&desk.locks()).unwrap());
    let notes: Vec<(Process, Note)> = history::read(&desk.notes()).unwrap();
    let stops = history.lives.values().flat_map(|life| life.stops.iter().copied()).collect();
    let excuses = Excuses { stops, planted: planted.to_vec() };
    let mut wrong = locks::check(&history);
    wrong.extend(failed_for_nothing(&history, &notes, &excuses));
    wrong.extend(came_back(&notes));
    let mut admitted = Vec::new();
    for budget in &BUDGETS {
        let all = bound::logged(&desk.admitted(budget.name));
        let step = 1_000_000_000 / u64::from(budget.per_second);
        if let Some(more) = bound::overdrawn(&all, budget.burst.into(), step) {
            wrong.push(format!("{}: too much was admitted (begin, length, units): {more:?}", budget.name));
        }
        admitted.push((budget.name, bound::units(&all)));
    }
    let count = |of: &dyn Fn(&Note) -> bool| notes.iter().filter(|(_, note)| of(note)).count();
    let holds = history.attempts.iter().filter(|attempt| attempt.got.is_some()).count();
    let summary = format!(
        "{} reads, {} inserts, {} purges, {} failures; {} holds of {} attempts; admitted {admitted:?}",
        count(&|note| matches!(note, Note::Read { .. })),
        count(&|note| matches!(note, Note::Inserted { .. })),
        count(&|note| matches!(note, Note::Purged { .. })),
        count(&|note| matches!(note, Note::Failed { .. })),
        holds,
        history.attempts.len(),
    );
    let more = wrong.len().saturating_sub(TOLD);
    wrong.truncate(TOLD);
    wrong.extend((more > 0).then(|| format!("and {more} more")));
    (wrong, summary)
}

fn failed_for_nothing(history: &History, notes: &[(Process, Note)], excuses: &Excuses) -> Vec<String> {
    let mut wrong = Vec::new();
    for (why, span) in locks::failures(history) {
        let is_excused = match why {
            Failure::Busy | Failure::Dropped => true,
            Failure::Cache => excuses.has_for(&Why::Busy, &span),
            Failure::Damaged => excuses.planted(&[Fault::DamageState], &span, LEASE + LATE),
        };
        if !is_excused {
            wrong.push(format!("a lock failed for nothing: {why:?} {span:?}"));
        }
    }
    for (process, note) in notes {
        match note {
            Note::Garbled { what, at } => wrong.push(format!("{process} read garbage at {at}: {what}")),
            Note::Broken { descriptors: 0 } => wrong.push(format!("nothing was broken in {process}")),
            Note::Failed { what, why, from, to } if !excuses.has_for(why, &Span::new(*from, *to)) => {
                wrong.push(format!("in {process}, {what} failed for nothing: {why:?} from {from} to {to}"));
            }
            _ => {}
        }
    }
    wrong
}

/// What was purged and read all the same.
fn came_back(notes: &[(Process, Note)]) -> Vec<String> {
    let mut inserted = HashMap::new();
    let mut reads: HashMap<Page, Vec<(Process, &Origin, u64)>> = HashMap::new();
    let mut purges = Vec::new();
    for (process, note) in notes {
        match note {
            Note::Inserted { number, at } => _ = inserted.insert((*process, *number), *at),
            Note::Read { page, origin, from } => reads.entry(*page).or_default().push((*process, origin, *from)),
            Note::Purged { cover, asked, done } => purges.push((*done, *asked, *cover)),
            _ => {}
        }
    }
    purges.sort_unstable_by_key(|purge| purge.0);
    let mut wrong = Vec::new();
    for (page, mut reads) in reads {
        reads.sort_unstable_by_key(|read| read.2);
        let mut purges = purges.iter().filter(|purge| purge.2.has(page)).peekable();
        let mut latest = None;
        for (process, origin, from) in reads {
            while let Some(purge) = purges.next_if(|purge| purge.0 < from) {
                latest = latest.max(Some(purge.1));
            }
            // A value that is inserted may be stored after a purge that began later.
            let made = match origin.is_inserted {
                true => inserted.get(&(origin.process, origin.number)).copied().unwrap_or(u64::MAX),
                false => origin.born,
            };
            if latest.is_some_and(|purged| made < purged) {
                wrong.push(format!(
                    "{process} read {page:?} at {from}, made at {made}, purged at {latest:?}: {origin:?}"
                ));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests;
