use super::*;
use crate::throttle::{CalendarWindow, Limit, Rate, SlidingWindow};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const NOW: u64 = 1_800_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
const EVER: Duration = Duration::MAX;

fn at(now: u64) -> Moment {
    Moment { now, wall: now }
}

fn open(stored: Option<&[u8]>, limits: &Limits, now: u64) -> Cell {
    Cell::open(stored, limits, at(now), 0)
}

/// Asks and stores: the turn, or when to ask again.
fn ask(stored: &mut Option<Vec<u8>>, limits: &Limits, now: u64, cost: u32, patience: Duration) -> Result<u64, Refusal> {
    let mut cell = open(stored.as_deref(), limits, now);
    let turn = cell.plan(now, cost, patience)?;
    cell.take(turn, cost, now);
    *stored = Some(cell.write());
    Ok(turn)
}

fn per_second(count: u32) -> Limits {
    Rate::per_second(count).into()
}

#[test]
fn several_limits_are_decided_all_or_nothing() {
    let limits = Limits::from([Limit::from(Rate::per_second(5)), Limit::from(Rate::per_hour(7)).named("hourly")]);
    let mut stored = None;
    let mut refused = Vec::new();
    for second in 0..4 {
        for _ in 0..4 {
            if let Err(refusal) = ask(&mut stored, &limits, NOW + second * SECOND, 1, Duration::ZERO) {
                refused.push(refusal.by);
            }
        }
    }
    assert_eq!(refused, [RefusedBy::Limit(1); 9], "7 in an hour, and nothing more is taken of the 5 a second");
    let cell = open(stored.as_deref(), &limits, NOW + 4 * SECOND);
    let quotas = cell.quotas(&limits, None, NOW + 4 * SECOND);
    assert_eq!((quotas.first.name.as_deref(), quotas.first.remaining), (Some("hourly"), 0), "the scarcest first");
    assert_eq!((quotas.others[0].name.as_deref(), quotas.others[0].remaining), (None, 5));

    let mut stored = None;
    let by: Vec<_> = (0..6).map(|_| ask(&mut stored, &limits, NOW, 1, Duration::ZERO).err()).collect();
    assert_eq!(by[5].map(|refusal| refusal.by), Some(RefusedBy::Limit(0)));
    assert_eq!(
        ask(&mut None, &limits, NOW, 6, EVER),
        Err(Refusal { by: RefusedBy::Limit(0), after: None }),
        "never fits"
    );
}

#[test]
fn who_waits_for_several_limits_takes_a_turn_that_suits_all() {
    let limits = Limits::from([Rate::per_second(1), Rate::per_minute(2)]);
    let mut stored = None;
    let turns: Vec<u64> = (0..5).map(|_| ask(&mut stored, &limits, NOW, 1, EVER).unwrap() - NOW).collect();
    assert_eq!(turns, [0, 1, 30, 60, 90].map(|second| second * SECOND));
}

#[test]
fn a_changed_limit_keeps_the_share_that_is_spent() {
    let mut stored = None;
    for _ in 0..5 {
        ask(&mut stored, &per_second(10), NOW, 1, Duration::ZERO).unwrap();
    }
    let left = |limits: &Limits| open(stored.as_deref(), limits, NOW).quotas(limits, None, NOW).first.remaining;
    assert_eq!(left(&per_second(10)), 5);
    assert_eq!(left(&per_second(100)), 50);
    assert_eq!(left(&per_second(2)), 1);
    assert_eq!(left(&SlidingWindow::new(10, Duration::from_secs(1)).into()), 5, "another algorithm too");
    assert_eq!(left(&CalendarWindow::per_utc_day(1_000).into()), 500);

    // Of two limits the one that stays takes up its own budget, wherever it stands.
    let both = Limits::from([Rate::per_second(10), Rate::per_hour(10)]);
    let mut stored = None;
    for _ in 0..8 {
        ask(&mut stored, &both, NOW, 1, Duration::ZERO).unwrap();
    }
    let later = NOW + 10 * SECOND;
    let left = |limits: &Limits| open(stored.as_deref(), limits, later).quotas(limits, None, later).first.remaining;
    assert_eq!(left(&Rate::per_hour(10).into()), 2);
    assert_eq!(left(&per_second(10)), 10);
}

#[test]
fn what_was_taken_before_a_change_is_not_given_back() {
    let limits = per_second(10);
    let mut cell = open(None, &limits, NOW);
    let slots = cell.take(NOW, 4, NOW);
    let stored = cell.write();
    let changed = Limits::from(Rate::per_minute(20));
    let mut cell = open(Some(&stored), &changed, NOW + 1);
    cell.free(&slots, 4, NOW + 1);
    assert_eq!(cell.quotas(&changed, None, NOW + 1).first.remaining, 12);

    let mut cell = open(Some(&stored), &limits, NOW + 1);
    cell.free(&slots, 4, NOW + 1);
    assert_eq!(cell.quotas(&limits, None, NOW + 1).first.remaining, 10, "but else it is");
}

#[test]
fn a_restart_of_the_machine_forgets_who_waited() {
    let limits = per_second(10);
    let mut stored = None;
    for _ in 0..100 {
        ask(&mut stored, &limits, NOW, 1, EVER).unwrap();
    }
    let later = NOW + SECOND / 2;
    let cell = Cell::open(stored.as_deref(), &limits, at(later), later - 1);
    assert_eq!(cell.plan(later, 10, EVER), Ok(later + SECOND), "nobody is blocked longer than the burst takes");
    assert_eq!(cell.plan(later, 1, Duration::ZERO).unwrap_err().after, Some(Duration::from_millis(100)));

    // Limits that have changed meanwhile find all spent.
    let others = [Rate::new(20, Duration::from_secs(2)).into(), SlidingWindow::new(20, Duration::from_secs(2)).into()];
    for limits in others {
        let cell = Cell::open(stored.as_deref(), &limits, at(later), later - 1);
        assert_eq!(cell.plan(later, 20, EVER), Ok(later + 2 * SECOND), "{limits:?}");
        assert!(cell.plan(later, 1, Duration::ZERO).is_err(), "{limits:?}");
    }
}

#[test]
fn what_a_foreign_server_says_is_one_more_limit() {
    let limits = per_second(10);
    let mut cell = open(None, &limits, NOW);
    cell.sent(NOW);
    cell.answered(NOW, Some(&Advice::left(2, Duration::from_secs(60))), NOW);
    assert_eq!(cell.quotas(&limits, None, NOW).first.remaining, 2);
    cell.sent(NOW);
    cell.sent(NOW);
    let mut cell = open(Some(&cell.write()), &limits, NOW + 1);
    let refusal = cell.plan(NOW, 1, Duration::ZERO).unwrap_err();
    assert_eq!(refusal, Refusal { by: RefusedBy::Learnt, after: Some(Duration::from_secs(60)) });
    assert_eq!((cell.plan(NOW, 1, EVER), cell.is_open(NOW)), (Ok(NOW + 60 * SECOND), false));
    assert_eq!(cell.quotas(&limits, None, NOW).first.remaining, 0);
    // Ours counts too: a turn after the reset is after the spent budget.
    cell.take(NOW + 60 * SECOND, 10, NOW);
    assert_eq!(cell.plan(NOW, 1, EVER), Ok(NOW + 60 * SECOND + SECOND / 10));
    assert!(cell.ends() >= NOW + 3_660 * SECOND, "it is kept as long as it means something");
}

#[test]
fn a_name_that_is_refused_too_often_is_blocked() {
    let (limits, block) = (per_second(1), Block { refusals: 3, hold: 60 * SECOND });
    let mut cell = open(None, &limits, NOW);
    cell.take(NOW, 1, NOW);
    assert!(cell.refused(block, NOW) && cell.refused(block, NOW + 1));
    assert_eq!(cell.banned(NOW + 2), None);
    // The count starts anew where the refusals are further apart.
    assert!(cell.refused(block, NOW + 61 * SECOND) && cell.banned(NOW + 61 * SECOND).is_none());
    assert!(cell.refused(block, NOW + 62 * SECOND) && cell.refused(block, NOW + 63 * SECOND));
    let now = NOW + 64 * SECOND;
    assert_eq!(cell.banned(now), Some(Duration::from_secs(59)));
    let refusal = cell.plan(now, 1, Duration::ZERO).unwrap_err();
    assert_eq!(refusal, Refusal { by: RefusedBy::Ban, after: Some(Duration::from_secs(59)) });
    assert!(!cell.refused(block, now), "a block is not prolonged");
    let cell = open(Some(&cell.write()), &limits, now);
    assert_eq!(cell.quotas(&limits, None, now).first.remaining, 0);
    assert_eq!(cell.plan(now, 1, EVER), Ok(now + 59 * SECOND), "who waits, waits for its end");
    assert_eq!(cell.plan(now + 59 * SECOND, 1, Duration::ZERO), Ok(now + 59 * SECOND));
    assert!(cell.ends() >= now + 59 * SECOND);
}

#[test]
fn somebody_who_knows_better_can_leave_less() {
    let limits = Limits::from([Rate::per_second(10), Rate::per_minute(100)]);
    let mut cell = open(None, &limits, NOW);
    cell.leave_at_most(3, NOW);
    let quotas = cell.quotas(&limits, None, NOW);
    assert_eq!((quotas.first.remaining, quotas.others[0].remaining), (3, 3));
    cell.leave_at_most(5, NOW);
    assert_eq!(cell.quotas(&limits, None, NOW), quotas, "never more");
    cell.charge(7, NOW);
    assert_eq!(cell.plan(NOW, 1, Duration::ZERO).unwrap_err().after, Some(Duration::from_secs(3)), "a debt");
}

#[derive(Clone, Debug)]
enum Event {
    Advance(u64),
    Ask(u32, Option<u64>),
    /// One who waits goes away.
    Leave(usize),
    /// A call turns out to have cost less (or more, where nothing bounds it).
    Settle(usize, u32),
    Reboot,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let patience = prop_oneof![Just(Some(0)), (0..200u64).prop_map(Some), Just(None)];
    let event = prop_oneof![
        10 => (0..60u64).prop_map(Event::Advance),
        20 => (0..5u32, patience).prop_map(|(cost, patience)| Event::Ask(cost, patience)),
        5 => (0..5usize).prop_map(Event::Leave),
        3 => (0..5usize, 0..5u32).prop_map(|(nth, cost)| Event::Settle(nth, cost)),
        1 => Just(Event::Reboot),
    ];
    prop::collection::vec(event, 1..60)
}

fn rates() -> impl Strategy<Value = Vec<Rate>> {
    let rate = (1..8u32, 8..100u64, 1..8u32)
        .prop_map(|(count, per, burst)| Rate::new(count, Duration::from_nanos(per)).burst(burst));
    prop::collection::vec(rate, 1..4)
}

#[derive(Clone, Debug)]
struct Turn {
    at: u64,
    slots: Slots,
    /// What counts of it in the end.
    counted: u32,
    settled: bool,
}

/// Plays the events through a stored cell, as processes would. Returns what was admitted.
fn play(limits: &Limits, events: Vec<Event>) -> Vec<Turn> {
    let (mut now, mut booted, mut stored) = (NOW, 0, None::<Vec<u8>>);
    let mut turns = Vec::<Turn>::new();
    for event in events {
        let mut cell = Cell::open(stored.as_deref(), limits, at(now), booted);
        match event {
            Event::Advance(by) => now += by,
            Event::Ask(cost, patience) => {
                let patience = patience.map_or(EVER, Duration::from_nanos);
                match cell.plan(now, cost, patience) {
                    Ok(turn) => {
                        let slots = cell.take(turn, cost, now);
                        turns.push(Turn { at: turn, counted: cost, settled: cost == 0, slots });
                    }
                    Err(Refusal { after: Some(after), .. }) => {
                        let again = Cell::open(Some(&cell.write()), limits, at(now + after.as_nanos() as u64), booted);
                        let then = now + after.as_nanos() as u64;
                        assert!(again.plan(then, cost, patience).is_ok(), "told to ask again in {after:?}");
                    }
                    Err(_) => {}
                }
            }
            Event::Leave(nth) => {
                let waits = (0..turns.len()).filter(|&i| turns[i].at > now).nth(nth);
                if let Some(gone) = waits.map(|i| turns.remove(i)) {
                    cell.free(&gone.slots, gone.slots.cost, now);
                }
            }
            Event::Settle(nth, actual) => {
                let Some(turn) = turns.iter_mut().filter(|turn| turn.at <= now && !turn.settled).nth(nth) else {
                    continue;
                };
                let less = turn.slots.cost.saturating_sub(actual);
                (turn.settled, turn.counted) = (true, turn.slots.cost - less);
                cell.free(&turn.slots, less, now);
            }
            Event::Reboot => {
                turns.retain(|turn| turn.at <= now);
                booted = now;
            }
        }
        stored = Some(cell.write());
    }
    turns
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(2_026),
        failure_persistence: None,
        ..ProptestConfig::with_cases(2_000)
    })]

    #[test]
    fn no_window_of_any_limit_admits_more_than_burst_and_rate(rates in rates(), events in events()) {
        let limits = Limits::from(rates.clone());
        let mut turns = play(&limits, events);
        turns.sort_by_key(|turn| turn.at);
        for rate in rates {
            for (i, first) in turns.iter().enumerate() {
                let mut cost = 0;
                for last in &turns[i..] {
                    cost += u128::from(last.counted);
                    let (per, width) = (rate.per().as_nanos(), u128::from(last.at - first.at));
                    let most = u128::from(rate.burst_size()) * per + width * u128::from(rate.count());
                    prop_assert!(cost * per <= most, "{cost} in {width} ns of {rate}: {turns:#?}");
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), rates in rates(), now: u64, cost: u32) {
        let limits = Limits::from(rates);
        let mut cell = Cell::open(Some(&bytes), &limits, Moment { now, wall: now }, now / 2);
        if let Ok(turn) = cell.plan(now, cost, EVER) {
            let slots = cell.take(turn, cost, now);
            cell.free(&slots, cost, now);
        }
        cell.charge(cost, now);
        let _ = cell.is_open(now);
        cell.sent(now);
        cell.answered(now, Some(&Advice::left(cost, Duration::MAX)), now);
        cell.quotas(&limits, None, now);
        let written = cell.write();
        prop_assert!(read(&written).is_some());
        let _ = Slots::read(&bytes, bytes.get(4).copied().unwrap_or(0).into());
    }

    #[test]
    fn what_is_stored_is_what_was_meant(rates in rates(), costs in prop::collection::vec(1..4u32, 0..20)) {
        let limits = Limits::from(rates);
        let mut cell = open(None, &limits, NOW);
        for cost in costs {
            if let Ok(turn) = cell.plan(NOW, cost, EVER) {
                let slots = cell.take(turn, cost, NOW);
                prop_assert_eq!(Slots::read(&slots.write(cost), cost), Some(slots));
            }
        }
        prop_assert_eq!(open(Some(&cell.write()), &limits, NOW), cell.clone());
        cell.hold(NOW + 5);
        prop_assert_eq!(open(Some(&cell.write()), &limits, NOW), cell.clone());
        cell.sent(NOW);
        cell.answered(NOW, Some(&Advice::left(3, Duration::from_secs(1))), NOW);
        prop_assert_eq!(open(Some(&cell.write()), &limits, NOW), cell);
    }
}

#[test]
fn what_is_left_at_most_is_taken_once_also_while_somebody_waits() {
    let limits = Limits::from(Rate::per_second(1).burst(5));
    let mut cell = open(None, &limits, NOW);
    let slots: Vec<Slots> = (0..10)
        .map(|_| {
            let turn = cell.plan(NOW, 1, EVER).unwrap();
            cell.take(turn, 1, NOW)
        })
        .collect();
    let now = NOW + 2 * SECOND + SECOND / 2;
    let mut cell = open(Some(&cell.write()), &limits, now);
    cell.free(&slots[5], 1, now);
    let left = cell.quotas(&limits, None, now).first.remaining;
    cell.leave_at_most(0, now);
    assert_eq!((left, cell.quotas(&limits, None, now).first.remaining), (1, 0));
    let ends = cell.ends();
    for _ in 0..1_000 {
        cell.leave_at_most(0, now);
    }
    assert_eq!(cell.ends(), ends, "said again, it takes nothing");
}

#[test]
fn who_is_shut_out_for_ever_is_told_so() {
    for limits in
        [per_second(1), SlidingWindow::new(1, Duration::from_secs(1)).into(), CalendarWindow::per_utc_day(1).into()]
    {
        let mut cell = open(None, &limits, NOW);
        cell.hold(u64::MAX);
        let refusal = cell.plan(NOW, 1, Duration::ZERO).unwrap_err();
        assert_eq!(refusal.by, RefusedBy::Ban, "{limits} {refusal:?}");
        assert!(
            refusal.after.is_some_and(|after| after > Duration::from_secs(50 * 365 * 86_400)),
            "{limits} {refusal:?}"
        );
    }
}

#[test]
fn limits_whose_gaps_never_meet_have_a_turn_behind_all() {
    // What is free of the one, at every 20th second, is not of the other, which has every 20th from the 10th on.
    let budget = |from: u64| {
        let end = NOW + 1_000 * SECOND;
        let holes = (0..32).flat_map(|nth| [from + 20 * nth, from + 20 * nth + 1].map(|second| NOW + second * SECOND));
        let numbers = [end, SECOND, NOW, 0, end - SECOND].into_iter().chain(holes);
        let state: Vec<u8> = numbers.flat_map(u64::to_le_bytes).collect();
        [&[1][..], &(state.len() as u16).to_le_bytes(), &state].concat()
    };
    let stored = [&[2][..], &NOW.to_le_bytes(), &budget(10), &budget(20)].concat();
    let limits = Limits::from([Rate::per_second(1), Rate::per_second(1)]);
    let cell = open(Some(&stored), &limits, NOW);
    assert_eq!(cell.write(), stored);
    assert_eq!(cell.plan(NOW, 1, EVER), Ok(NOW + 1_000 * SECOND));
}
