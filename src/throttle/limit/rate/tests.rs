//! What the arithmetic does, by example; `properties` has the rest.

mod properties;

use super::*;
use state::MOST_HOLES;

const NOW: u64 = 1_800_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
const EVER: u64 = u64::MAX;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn nanos(n: u64) -> Duration {
    Duration::from_nanos(n)
}

fn at(now: u64) -> Moment {
    Moment { now, wall: 0 }
}

/// What the throttle does with a request: its turn and what it took, or else when to ask again.
type Outcome = Result<(u64, Slot), Option<u64>>;

fn ask(rate: &Rate, state: &mut State, now: u64, cost: u32, patience: u64) -> Outcome {
    ask_from(rate, state, now, now, cost, patience)
}

/// As if another limit had a place from `from` on.
fn ask_from(rate: &Rate, state: &mut State, now: u64, from: u64, cost: u32, patience: u64) -> Outcome {
    rate.advance(state, at(now), false);
    let turn = rate.earliest(state, from, cost).ok_or(None)?;
    // What several limits agree on is asked of each again.
    assert_eq!(rate.earliest(state, turn, cost), Some(turn));
    match (turn - now).checked_sub(patience) {
        None | Some(0) => Ok((turn, rate.take(state, turn, cost))),
        Some(retry_after) => Err(Some(retry_after)),
    }
}

fn free(rate: &Rate, state: &mut State, now: u64, slot: Slot, units: u32) {
    rate.advance(state, at(now), false);
    rate.free(state, slot, units, now);
}

fn fresh(rate: &Rate) -> State {
    rate.fresh(at(NOW))
}

/// The quota as after a decision.
fn quota(rate: &Rate, state: &State, now: u64) -> Quota {
    let mut state = state.clone();
    rate.advance(&mut state, at(now), false);
    rate.quota(&state, now)
}

fn encoded(state: &State) -> Vec<u8> {
    let mut bytes = Vec::new();
    Rate::encode(state, &mut bytes);
    bytes
}

/// The turns that all of these get who come at `now` and have time, in seconds from then.
fn turns(rate: &Rate, state: &mut State, now: u64, costs: &[u32]) -> Vec<(u64, Slot)> {
    costs.iter().map(|&cost| ask(rate, state, now, cost, EVER).unwrap()).map(|(t, s)| ((t - now) / SECOND, s)).collect()
}

#[test]
fn a_burst_passes_then_one_a_step() {
    let rate = Rate::per_minute(3);
    let mut state = fresh(&rate);
    for left in [2, 1, 0] {
        assert_eq!(ask(&rate, &mut state, NOW, 1, 0).unwrap().0, NOW, "with {left} to be left");
        let quota = rate.quota(&state, NOW);
        assert_eq!((quota.remaining, quota.reset), (left, secs(20 * u64::from(3 - left))));
        assert_eq!((quota.limit, quota.window), (3, secs(60)));
    }
    let turn = NOW + 20 * SECOND;
    assert_eq!(ask(&rate, &mut state, NOW, 1, 0), Err(Some(20 * SECOND)));
    assert_eq!(ask(&rate, &mut state, turn - 1, 1, 0), Err(Some(1)));
    assert_eq!(quota(&rate, &state, NOW + 60 * SECOND), quota(&rate, &fresh(&rate), NOW));
    assert_eq!(rate.ends(&state), NOW + 60 * SECOND);
    assert_eq!(ask(&rate, &mut state, turn, 1, 0).unwrap().0, turn);
    assert_eq!((rate.ends(&state), encoded(&state).len()), (NOW + 80 * SECOND, 24));
}

#[test]
fn what_never_fits_is_told_so() {
    let rate = Rate::per_second(10).burst(2);
    assert_eq!(rate.burst_size(), 2);
    assert_eq!(ask(&rate, &mut fresh(&rate), NOW, 2, 0).unwrap().0, NOW);
    assert_eq!(ask(&rate, &mut fresh(&rate), NOW, 3, EVER), Err(None));
    assert_eq!(ask(&rate, &mut fresh(&rate), u64::MAX - 1, 1, EVER), Err(None));
}

#[test]
fn nothing_costs_nothing() {
    let rate = Rate::per_second(1);
    let mut state = fresh(&rate);
    ask(&rate, &mut state, NOW, 1, 0).unwrap();
    let before = state.clone();
    assert_eq!(ask(&rate, &mut state, NOW, 0, 0), Ok((NOW, Slot::default())));
    free(&rate, &mut state, NOW, Slot::default(), 1);
    assert_eq!(state, before);
}

#[test]
fn who_leaves_from_the_middle_leaves_a_place() {
    let rate = Rate::per_second(1);
    let mut state = fresh(&rate);
    let slots = turns(&rate, &mut state, NOW, &[1, 1, 1, 1, 1]);
    assert_eq!(slots.iter().map(|(turn, _)| *turn).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(ask(&rate, &mut state, NOW, 1, 4 * SECOND), Err(Some(SECOND)));

    free(&rate, &mut state, NOW, slots[2].1, 1);
    assert_eq!(encoded(&state).len(), 56);
    assert_eq!(quota(&rate, &state, NOW).reset, secs(5), "those who wait still need it");
    let newcomers = turns(&rate, &mut state, NOW, &[1, 1]);
    assert_eq!((newcomers[0].0, newcomers[1].0), (2, 5));

    // A place that nobody took passes, and delays nobody.
    free(&rate, &mut state, NOW, slots[3].1, 1);
    let later = NOW + 7 * SECOND / 2;
    assert_eq!(ask(&rate, &mut state, later, 1, EVER).unwrap().0, NOW + 6 * SECOND);
}

#[test]
fn of_more_places_than_are_kept_the_earliest_are() {
    let rate = Rate::per_second(1);
    let mut state = fresh(&rate);
    let waiters = turns(&rate, &mut state, NOW, &[1; 82]);
    for (_, slot) in waiters.iter().skip(1).step_by(2).take(MOST_HOLES + 8) {
        free(&rate, &mut state, NOW, *slot, 1);
    }
    let newcomers: Vec<u64> =
        turns(&rate, &mut state, NOW, &[1; MOST_HOLES]).into_iter().map(|(turn, _)| turn).collect();
    assert_eq!(newcomers, (0..MOST_HOLES as u64).map(|n| 2 * n + 1).collect::<Vec<_>>());
}

#[test]
fn the_last_ones_to_leave_leave_nothing() {
    let rate = Rate::per_second(1);
    let mut state = fresh(&rate);
    let slots = turns(&rate, &mut state, NOW, &[1, 1, 1, 1]);
    let mut one = fresh(&rate);
    ask(&rate, &mut one, NOW, 1, 0).unwrap();
    for nth in [1, 3, 2] {
        free(&rate, &mut state, NOW, slots[nth].1, 1);
    }
    assert_eq!(state, one);
}

#[test]
fn what_was_not_used_can_be_spent_at_once() {
    let rate = Rate::per_second(1).burst(10);
    let mut state = fresh(&rate);
    let slots = turns(&rate, &mut state, NOW, &[4, 4, 2]);
    let later = NOW + SECOND;
    free(&rate, &mut state, later, slots[0].1, 2);
    free(&rate, &mut state, later, slots[1].1, 3);
    // One has come back with time, five were given back in two places.
    assert_eq!(quota(&rate, &state, later).remaining, 6);
    assert_eq!(quota(&rate, &state, later).reset, secs(4));
    assert_eq!(ask(&rate, &mut state, later, 6, 0).unwrap().0, later);
    assert_eq!(ask(&rate, &mut state, later, 1, 0), Err(Some(SECOND)));
}

/// Fails if the tail moves back by what is given back and the slots behind are not told.
#[test]
fn what_time_gave_back_is_not_given_back_again() {
    let rate = Rate::per_second(1).burst(10);
    let mut state = fresh(&rate);
    let slots = turns(&rate, &mut state, NOW, &[5, 5]);
    free(&rate, &mut state, NOW, slots[0].1, 5);
    ask(&rate, &mut state, NOW + SECOND, 5, 0).unwrap();
    // The second was served instead of the first: one of its five is left now. All five would leave room for 9, when the
    // third alone leaves 8.
    free(&rate, &mut state, NOW + 4 * SECOND, slots[1].1, 5);
    assert_eq!(quota(&rate, &state, NOW + 4 * SECOND).remaining, 5);
}

#[test]
fn a_slot_of_an_earlier_life_frees_nothing() {
    let rate = Rate::per_second(1).burst(10);
    let (_, old) = ask(&rate, &mut fresh(&rate), NOW, 5, 0).unwrap();
    let mut state = rate.fresh(at(NOW + SECOND));
    ask(&rate, &mut state, NOW + SECOND, 10, 0).unwrap();
    free(&rate, &mut state, NOW + SECOND, old, 5);
    assert_eq!(quota(&rate, &state, NOW + SECOND).remaining, 0);
}

#[test]
fn who_waits_for_another_limit_leaves_the_room_before_free() {
    let rate = Rate::per_second(1).burst(4);
    let mut state = fresh(&rate);
    let (turn, slot) = ask_from(&rate, &mut state, NOW, NOW + 10 * SECOND, 2, EVER).unwrap();
    assert_eq!(turn, NOW + 10 * SECOND);
    assert_eq!(quota(&rate, &state, NOW).remaining, 4);
    let others = turns(&rate, &mut state, NOW, &[4, 4, 2, 1]);
    assert_eq!(others.iter().map(|(turn, _)| *turn).collect::<Vec<_>>(), [0, 4, 6, 9]);
    for (_, other) in others {
        free(&rate, &mut state, NOW, other, 4);
    }
    free(&rate, &mut state, NOW, slot, 2);
    assert_eq!((quota(&rate, &state, NOW).reset, state.holes().len()), (secs(0), 0));
}

#[test]
fn a_charge_goes_into_debt_that_ends() {
    let rate = Rate::per_second(1).burst(3);
    let mut state = fresh(&rate);
    rate.charge(&mut state, 10, NOW);
    assert_eq!(ask(&rate, &mut state, NOW, 1, 0), Err(Some(8 * SECOND)));
    for _ in 0..10 {
        Rate::per_day(1).charge(&mut state, u32::MAX, NOW);
    }
    assert_eq!(rate.ends(&state), NOW + LONGEST_SPAN);
}

#[test]
fn a_reboot_forgets_who_waited() {
    let rate = Rate::new(2, secs(2));
    for (waiters, left) in [(60, 2), (1, 1)] {
        let mut state = fresh(&rate);
        turns(&rate, &mut state, NOW, &vec![1; waiters]);
        rate.advance(&mut state, at(NOW), true);
        assert_eq!(rate.ends(&state), NOW + left * SECOND);
    }
}

#[test]
fn another_rate_takes_the_share_that_is_spent() {
    let (small, large) = (Rate::per_minute(10), Rate::per_second(100));
    let mut state = fresh(&small);
    turns(&small, &mut state, NOW, &[3]);
    assert!(small.made(&state) && !large.made(&state));
    let spent = Rate::spent(&state, at(NOW));
    assert_eq!(spent, Spent { share: Spent::WHOLE * 3 / 10 + 1, last_turn: 0 });
    assert_eq!(quota(&large, &large.with_spent(spent, at(NOW)), NOW).remaining, 69);

    // Somebody waits; whoever comes under the new rate waits longer.
    turns(&small, &mut state, NOW, &[10]);
    let spent = Rate::spent(&state, at(NOW));
    assert_eq!(spent, Spent { share: Spent::WHOLE, last_turn: NOW + 18 * SECOND });
    let mut state = large.with_spent(spent, at(NOW));
    assert_eq!(ask(&large, &mut state, NOW, 1, 0), Err(Some(18 * SECOND + SECOND / 100)));
}

/// Two units of four come back 3 s later, ten requests a second in flight all the while.
#[test]
fn an_estimate_costs_no_throughput() {
    let rate = Rate::per_second(20).burst(200);
    let (mut state, mut flying, mut turned_away) = (fresh(&rate), std::collections::VecDeque::new(), 0);
    for nth in 0..5_000 {
        let now = NOW + nth * SECOND / 10;
        match ask(&rate, &mut state, now, 4, 0) {
            Ok((_, slot)) => flying.push_back((now + 3 * SECOND, slot)),
            Err(_) => turned_away += 1,
        }
        while let Some(&(_, slot)) = flying.front().filter(|(until, _)| *until <= now) {
            free(&rate, &mut state, now, slot, 2);
            flying.pop_front();
        }
    }
    assert_eq!(turned_away, 0);
}

#[test]
fn rates_say_what_they_are() {
    let rate = Rate::new(100, secs(60));
    let small = rate.burst(20);
    assert_eq!((small.count(), small.per(), small.burst_size()), (100, secs(60), 20));
    assert_eq!(quota(&small, &fresh(&small), NOW).window, secs(12));
    assert_eq!(small.burst(100), rate);
    assert_eq!(Rate::new(7, secs(60)).length(1), 8_571_428_572);
    assert_eq!(Rate::new(7, secs(60)).window(), secs(60));
    assert_eq!(Rate::new(u32::MAX, secs(5)).length(1), 2);
    assert_eq!((Rate::per_second(9).per(), Rate::per_minute(9).per()), (secs(1), secs(60)));
    assert_eq!((Rate::per_hour(9).per(), Rate::per_day(9).per()), (secs(3_600), secs(86_400)));
}

#[test]
fn bad_rates_panic_and_name_the_value() {
    let says = |make: fn() -> Rate, what: &str| {
        let panic = std::panic::catch_unwind(make).unwrap_err();
        let message = panic.downcast::<String>().unwrap();
        assert!(message.contains(what), "{message}");
    };
    says(|| Rate::new(0, secs(3)), "0 per 3s");
    says(|| Rate::new(3, secs(0)), "3 per 0ns");
    says(|| Rate::new(11, nanos(10)), "11 per 10ns");
    says(|| Rate::new(1, Duration::MAX), "1 per 18446744073709551615.999999999s");
    says(|| Rate::new(1, secs(60)).burst(0), "not 0");
    says(|| Rate::new(1, secs(60)).burst(u32::MAX), "4294967295 at 1 per 60s");
    says(|| Rate::per_second(u32::MAX), "4294967295 per 1s");
}

#[test]
fn rates_are_written_and_read() {
    for (text, rate, shown) in [
        ("100/60s", Rate::per_minute(100), "100/60s"),
        ("100/1m", Rate::per_minute(100), "100/60s"),
        ("100/minute", Rate::per_minute(100), "100/60s"),
        (" 100 / 1 min burst 20 ", Rate::per_minute(100).burst(20), "100/60s burst 20"),
        ("100/60s burst 100", Rate::per_minute(100), "100/60s"),
        ("5/500ms", Rate::new(5, Duration::from_millis(500)), "5/500ms"),
        ("1000/1h", Rate::per_hour(1_000), "1000/3600s"),
        ("9/2days", Rate::new(9, secs(172_800)), "9/172800s"),
        ("10/s", Rate::per_second(10), "10/1s"),
        ("50/1", Rate::per_second(50), "50/1s"),
        ("50/1500us", Rate::new(50, Duration::from_micros(1_500)), "50/1500us"),
        ("50/1000000001ns", Rate::new(50, nanos(1_000_000_001)), "50/1000000001ns"),
    ] {
        assert_eq!(text.parse(), Ok(rate), "{text}");
        assert_eq!(rate.to_string(), shown);
        let json = format!("\"{shown}\"");
        assert_eq!((serde_json::to_string(&rate).unwrap(), serde_json::from_str(&json).unwrap()), (json, rate));
    }
}

#[test]
fn wrong_texts_are_told_what_to_do() {
    for (text, what) in [
        ("100", "no `/`"),
        ("100 per second", "no `/`"),
        ("", "no `/`"),
        ("/60s", "before the `/`"),
        ("+1/60s", "before the `/`"),
        ("1.5/60s", "before the `/`"),
        ("4294967296/60s", "before the `/`"),
        ("1/", "after the `/`"),
        ("1/1.5s", "after the `/`"),
        ("1/1s/2", "after the `/`"),
        ("1/-1s", "after the `/`"),
        ("1/fortnight", "after the `/`"),
        ("1/18446744073709551615m", "after the `/`"),
        ("1/1s burst", "after `burst`"),
        ("1/1s burst x", "after `burst`"),
        ("0/1s", "above zero, not 0 per 1s"),
        ("1/0", "above zero, not 1 per 0ns"),
        ("2/1ns", "more than one a nanosecond"),
        ("1/40000d", "more than 100 years"),
        ("1/1s burst 0", "at least 1"),
        ("1/1h burst 4294967295", "4294967295 at 1 per 3600s"),
    ] {
        let error = text.parse::<Rate>().unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("write `100/60s`"), "{error}");
    }
    let long = "é".repeat(1_000_000).parse::<Rate>().unwrap_err().to_string();
    assert!(long.len() < 400, "{long}");
    let json = serde_json::from_str::<Rate>("5").unwrap_err().to_string();
    assert!(json.contains("a rate like \"100/60s\""), "{json}");
}
