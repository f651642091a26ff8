//! What holds whatever happens.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[derive(Clone, Debug)]
enum Event {
    Advance(u64),
    Ask {
        cost: u32,
        patience: u64,
        /// How old the asker's idea of the time is.
        lag: u64,
        /// How long another limit makes it wait at least.
        later: u64,
    },
    /// One who waits goes away: the last (0), or another.
    Leave(usize),
    /// One whose turn came gives so many units back, at most all.
    Settle(usize, u32),
    Charge(u32),
    Reboot,
}

fn rates() -> impl Strategy<Value = Rate> {
    (1..8u32, 8..100u64, 1..12u32).prop_map(|(count, per, burst)| Rate::new(count, nanos(per)).burst(burst))
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let patience = prop_oneof![2 => Just(0), 1 => 0..200u64, 1 => Just(EVER)];
    let lag = prop_oneof![6 => Just(0), 1 => 0..20u64];
    let later = prop_oneof![8 => Just(0), 1 => 0..200u64];
    let event = prop_oneof![
        10 => (0..60u64).prop_map(Event::Advance),
        20 => (0..13u32, patience, lag, later)
            .prop_map(|(cost, patience, lag, later)| Event::Ask { cost, patience, lag, later }),
        6 => (0..6usize).prop_map(Event::Leave),
        8 => (0..6usize, 1..13u32).prop_map(|(nth, units)| Event::Settle(nth, units)),
        1 => (0..20u32).prop_map(Event::Charge),
        1 => Just(Event::Reboot),
    ];
    prop::collection::vec(event, 1..100)
}

/// Without those that weaken what is promised.
fn plain_events() -> impl Strategy<Value = Vec<Event>> {
    events().prop_map(|mut events| {
        events.retain(|event| !matches!(event, Event::Charge(_) | Event::Reboot));
        for event in &mut events {
            if let Event::Ask { lag, later, .. } = event {
                (*lag, *later) = (0, 0);
            }
        }
        events
    })
}

#[derive(Clone, Debug)]
struct Turn {
    at: u64,
    slot: Slot,
    cost: u32,
    freed: bool,
}

/// How a slot is given back.
type Free = fn(&Rate, &mut State, u64, Slot, u32);

struct Played {
    now: u64,
    state: State,
    turns: Vec<Turn>,
}

/// Plays the events as the throttle would. The turns are those that were taken, or are still to come.
fn play(rate: &Rate, events: &[Event], free: Free) -> Played {
    let (mut now, mut state, mut turns) = (NOW, fresh(rate), Vec::<Turn>::new());
    for event in events {
        state = Rate::decode(&encoded(&state)).expect("a state of our own");
        match *event {
            Event::Advance(by) => now += by,
            Event::Ask { cost, patience, lag, later } => {
                let asked = now - lag;
                let tail = state.tail();
                let from = asked + later;
                let patience = patience.saturating_add(later);
                let Ok((turn, slot)) = ask_from(rate, &mut state, asked, from, cost, patience) else {
                    continue;
                };
                assert!(turn - asked <= patience);
                if cost > 0 {
                    let queued = (tail.max(from) + rate.length(cost)).saturating_sub(rate.span());
                    assert!(turn <= from.max(queued), "waits {} longer than behind all others", turn - queued);
                    turns.push(Turn { at: turn, slot, cost, freed: false });
                }
            }
            Event::Leave(nth) => {
                let waits = (0..turns.len()).rev().filter(|&i| turns[i].at > now).nth(nth);
                if let Some(gone) = waits.map(|i| turns.remove(i)) {
                    free(rate, &mut state, now, gone.slot, gone.cost);
                }
            }
            Event::Settle(nth, units) => {
                let used = turns.iter_mut().rev().filter(|turn| turn.at <= now && !turn.freed).nth(nth);
                if let Some(turn) = used {
                    let units = units.min(turn.cost);
                    free(rate, &mut state, now, turn.slot, units);
                    (turn.cost, turn.freed) = (turn.cost - units, true);
                }
            }
            Event::Charge(units) => {
                rate.advance(&mut state, at(now), false);
                rate.charge(&mut state, units, now);
            }
            Event::Reboot => {
                turns.retain(|turn| turn.at <= now);
                rate.advance(&mut state, at(now), true);
            }
        }
        assert!(state.holes().len() <= MOST_HOLES);
    }
    rate.advance(&mut state, at(now), false);
    Played { now, state, turns }
}

/// Whether every window has at most `burst + window * rate` of what was not given back.
fn fits(rate: &Rate, mut turns: Vec<Turn>) -> Result<(), String> {
    turns.sort_by_key(|turn| turn.at);
    for (i, first) in turns.iter().enumerate() {
        let mut cost = 0;
        for last in &turns[i..] {
            cost += u128::from(last.cost);
            let (per, width) = (rate.per().as_nanos(), u128::from(last.at - first.at));
            let most = u128::from(rate.burst_size()) * per + width * u128::from(rate.count());
            if cost * per > most {
                return Err(format!("{cost} in {width} ns of {rate}: {turns:?}"));
            }
        }
    }
    Ok(())
}

/// The checker sees what is wrong with moving the tail back for one who leaves from the middle, or who gives back late.
#[test]
fn moving_the_tail_back_admits_too_much() {
    let naive: Free = |rate, state, now, slot, units| {
        rate.advance(state, at(now), false);
        state.free_by_moving_back(slot, rate.length(units), now);
    };
    let wait = |cost| Event::Ask { cost, patience: EVER, lag: 0, later: 0 };
    let middle = [wait(1), wait(1), wait(1), Event::Leave(1), wait(1)];
    let late = [wait(5), wait(5), Event::Settle(1, 5), Event::Advance(10), wait(5), Event::Advance(30)];
    let late = [&late[..], &[Event::Settle(1, 5), wait(9)]].concat();
    for (rate, events) in [(Rate::new(1, nanos(10)), &middle[..]), (Rate::new(1, nanos(10)).burst(10), &late)] {
        assert_ne!(fits(&rate, play(&rate, events, naive).turns), Ok(()));
        assert_eq!(fits(&rate, play(&rate, events, free).turns), Ok(()));
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        rng_seed: RngSeed::Fixed(371),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::with_cases(cases)
    }
}

proptest! {
    #![proptest_config(config(2_500))]

    #[test]
    fn no_window_admits_more_than_burst_and_rate(rate in rates(), events in events()) {
        let fits = fits(&rate, play(&rate, &events, free).turns);
        prop_assert!(fits.is_ok(), "{}", fits.unwrap_err());
    }
}

proptest! {
    #![proptest_config(config(600))]

    /// The textbook bucket, in which one unit is `step` drops and one drop comes back each nanosecond.
    #[test]
    fn it_admits_as_much_as_a_token_bucket(
        rate in rates(),
        asks in prop::collection::vec((0..60u64, 1..13u32), 1..80),
    ) {
        let (mut now, mut state, mut drops) = (NOW, fresh(&rate), rate.span());
        for (advance, cost) in asks {
            now += advance;
            drops = rate.span().min(drops + advance);
            let need = rate.length(cost);
            prop_assert_eq!(u64::from(quota(&rate, &state, now).remaining), drops / rate.length(1));
            match ask(&rate, &mut state, now, cost, 0) {
                Ok((turn, _)) => {
                    prop_assert!(need <= drops && turn == now);
                    drops -= need;
                }
                Err(retry) => {
                    let fits = cost <= rate.burst_size();
                    prop_assert_eq!(retry, fits.then(|| need - drops));
                }
            }
        }
    }

    /// Nobody waits: what is left after some was given back is as much as a token bucket has, whatever lies where.
    #[test]
    fn the_room_is_what_is_not_taken(rate in rates(), events in plain_events(), cost in 1..12u32) {
        let Played { now, mut state, turns } = play(&rate, &events, free);
        let now = turns.iter().map(|turn| turn.at).fold(now, u64::max);
        rate.advance(&mut state, at(now), false);
        let remaining = rate.quota(&state, now).remaining;
        prop_assert_eq!(ask(&rate, &mut state, now, cost, 0).is_ok(), cost <= remaining);
        let left = remaining.saturating_sub(cost);
        if cost <= remaining {
            prop_assert_eq!(rate.quota(&state, now).remaining, left);
        }
    }

    #[test]
    fn waiters_do_not_overtake(rate in rates(), events in plain_events(), cost in 1..12u32) {
        let Played { now, mut state, turns } = play(&rate, &events, free);
        let holes = state.holes().len();
        let (tail, last) = (state.tail(), turns.iter().map(|turn| turn.at).max().unwrap_or(0));
        if let Ok((turn, _)) = ask(&rate, &mut state, now, cost, EVER) {
            prop_assert!(turn == now || turn >= last || holes > 0);
            // Through the tail, never.
            prop_assert!(turn >= last || state.tail() == tail);
        }
    }

    #[test]
    fn those_who_left_were_never_there(
        rate in rates(), events in plain_events(), cost in 1..12u32,
        costs in prop::collection::vec((1..12u32, 0..u32::MAX), 0..2 * MOST_HOLES),
        later in 0..300u64,
    ) {
        // Behind all others, where they are not mixed up with what was given back before.
        let mut events = events;
        events.retain(|event| matches!(event, Event::Advance(_) | Event::Ask { .. }));
        let Played { now, state: mut before, .. } = play(&rate, &events, free);
        let mut after = before.clone();
        let mut waiters = Vec::new();
        for (cost, order) in costs {
            if let Ok((turn, slot)) = ask(&rate, &mut after, now, cost, EVER) && turn > now + later {
                waiters.push((order, slot, cost));
            } else if cost <= rate.burst_size() {
                before = after.clone();
            }
        }
        waiters.sort_by_key(|waiter| waiter.0);
        for (_, slot, cost) in waiters {
            free(&rate, &mut after, now + later, slot, cost);
        }
        let now = now + later;
        let wait = |state: &mut State| ask(&rate, state, now, cost, EVER).map(|(turn, _)| turn);
        prop_assert_eq!(wait(&mut after), wait(&mut before));
    }

    /// To the nanosecond while nobody waits, or no place among those who wait is free. Else it is admitted by then.
    #[test]
    fn retry_after_is_exact(rate in rates(), events in events(), cost in 1..12u32, patience in 0..200u64) {
        let Played { now, state, .. } = play(&rate, &events, free);
        let again = |now, patience| ask(&rate, &mut state.clone(), now, cost, patience);
        if let Err(Some(retry)) = again(now, patience) {
            prop_assert!(retry > 0);
            let turn = again(now + retry, patience).map(|(turn, _)| turn - now - retry);
            prop_assert!(turn.is_ok_and(|wait| wait <= patience));
            if state.holes().is_empty() || state.nobody_waits() {
                prop_assert_eq!(turn, Ok(patience));
                prop_assert_eq!(again(now + retry - 1, patience), Err(Some(1)));
            }
        }
    }

    #[test]
    fn no_change_of_rate_refills(rates in prop::collection::vec(rates(), 2..5), events in events(), later in 0..50u64) {
        let Played { now, mut state, .. } = play(&rates[0], &events, free);
        for rate in rates {
            let before = Rate::spent(&state, at(now + later));
            state = rate.with_spent(before, at(now + later));
            prop_assert!(rate.made(&state));
            let after = Rate::spent(&state, at(now + later));
            prop_assert_eq!(after.last_turn, before.last_turn);
            prop_assert!(after.share >= before.share);
            // Rounded up to one nanosecond of the span.
            let grain = Spent::WHOLE.div_ceil(rate.span());
            prop_assert!(after.share <= before.share + grain);
            rate.advance(&mut state, at(now + later), false);
            let share = u128::from(rate.quota(&state, now + later).remaining) * u128::from(Spent::WHOLE);
            if before.last_turn == 0 {
                let left = u128::from(Spent::WHOLE - before.share) * u128::from(rate.burst_size());
                prop_assert!(share <= left);
            }
        }
    }

    #[test]
    fn what_is_stored_is_read(rate in rates(), events in events()) {
        let state = play(&rate, &events, free).state;
        prop_assert_eq!(Rate::decode(&encoded(&state)), Some(state));
    }

    #[test]
    fn every_rate_is_written_and_read(rate in any_rate()) {
        prop_assert_eq!(rate.to_string().parse(), Ok(rate));
        let json = serde_json::to_string(&rate).unwrap();
        prop_assert_eq!(serde_json::from_str::<Rate>(&json).unwrap(), rate);
    }

    #[test]
    fn any_text_is_answered(
        text in "[0-9]{0,21} ?/? ?[0-9]{0,21}[a-zµ ]{0,8}(burst)? ?[0-9]{0,12}|\\PC{0,20}/\\PC{0,20}|[0-9]{1,3}/18446744073709551615[a-z]{0,2}",
    ) {
        match text.parse::<Rate>() {
            Ok(rate) => prop_assert_eq!(rate.to_string().parse(), Ok(rate)),
            Err(error) => prop_assert!(error.to_string().contains("is no limit")),
        }
    }

    #[test]
    fn any_state_is_answered(
        rate in any_rate(),
        bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..100), rows()],
        times in prop::collection::vec(extreme(), 6),
        units: u32,
        rebooted: bool,
        slot in (extreme(), extreme()),
    ) {
        let mut states = vec![fresh(&rate), rate.fresh(at(times[0]))];
        states.push(rate.with_spent(Spent { share: times[4], last_turn: times[5] }, at(times[0])));
        states.extend(Rate::decode(&bytes));
        for mut state in states {
            for now in &times[..4] {
                rate.advance(&mut state, at(*now), rebooted);
                let cost = units % rate.burst_size().saturating_add(2);
                if let Some(turn) = rate.earliest(&state, *now, cost) {
                    prop_assert!(turn >= *now);
                    let before = state.tail();
                    rate.take(&mut state, turn, cost);
                    prop_assert!(cost == 0 || state != fresh(&rate) || before != state.tail());
                }
                rate.free(&mut state, Slot { start: slot.0, end: slot.1 }, units, *now);
                let own = state.slot_to(slot.1);
                rate.free(&mut state, own, units, *now);
                rate.charge(&mut state, units, times[5]);
                rate.quota(&state, times[4]);
                rate.ends(&state);
                prop_assert!(Rate::spent(&state, at(times[3])).share <= Spent::WHOLE);
                let stored = Rate::decode(&encoded(&state));
                prop_assert!(stored.is_none_or(|stored| stored == state));
            }
        }
    }
}

fn extreme() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), Just(0), Just(u64::MAX), 0..100u64, u64::MAX - 100..u64::MAX, NOW..NOW + 100]
}

/// Rows that may be read: holes in order, before the tail.
fn rows() -> impl Strategy<Value = Vec<u8>> {
    let holes = prop::collection::vec(extreme(), 0..2 * MOST_HOLES + 3);
    (extreme(), 1..LONGEST_SPAN, extreme(), extreme(), holes).prop_map(|(tat, span, born, held, mut holes)| {
        holes.sort_unstable();
        let ahead = tat / 2;
        let numbers = [tat, span, born, ahead, held].into_iter().chain(holes);
        numbers.flat_map(u64::to_le_bytes).collect()
    })
}

fn any_rate() -> impl Strategy<Value = Rate> {
    (1..=u32::MAX, any::<u64>(), any::<u32>(), 0..64u32).prop_map(|(count, per, burst, small)| {
        let count = (count >> (small % 32)).max(1);
        let per = (per >> small).clamp(u64::from(count), LONGEST_SPAN - u64::from(u32::MAX));
        let rate = Rate::new(count, nanos(per));
        let most = u32::try_from(LONGEST_SPAN / rate.length(1)).unwrap_or(u32::MAX);
        if burst % 4 == 0 { rate } else { rate.burst(burst.clamp(1, most)) }
    })
}
