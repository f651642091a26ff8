//! Random events, and what holds whatever they are.

use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Event {
    /// In thousandths of the shortest window.
    Advance(u64),
    /// Cost and whether it waits.
    Ask(u32, bool),
    /// Gives units of a slot back: the last (0), or another.
    Free(usize, u32),
    Charge(u32),
    /// The wall clock goes forth or back, in thousandths of the shortest window.
    Step(i64),
    /// The wall clock is a nanosecond before or at the end of a window.
    StepToEnd(u32, bool),
    Store,
    Reboot,
}

#[derive(Clone, Copy, PartialEq)]
enum Steps {
    None,
    Any,
    AndReboots,
}

fn events(steps: Steps) -> impl Strategy<Value = Vec<Event>> {
    let step = prop_oneof![
        2 => (-3_000..3_000i64).prop_map(Event::Step),
        1 => (-20_000_000..20_000_000i64).prop_map(Event::Step),
        2 => (0..4u32, any::<bool>()).prop_map(|(ahead, before)| Event::StepToEnd(ahead, before)),
    ];
    let event = prop_oneof![
        60 => prop_oneof![4 => 0..300u64, 1 => 0..5_000u64].prop_map(Event::Advance),
        120 => (0..9u32, any::<bool>()).prop_map(|(cost, waits)| Event::Ask(cost, waits)),
        20 => (0..9usize, 1..9u32).prop_map(|(nth, units)| Event::Free(nth, units)),
        3 => (0..30u32).prop_map(Event::Charge),
        5 => Just(Event::Store),
        if steps == Steps::None { 0 } else { 25 } => step,
        if steps == Steps::AndReboots { 10 } else { 0 } => Just(Event::Reboot),
    ];
    prop::collection::vec(event, 1..150)
}

fn rules() -> impl Strategy<Value = CalendarWindow> {
    (1..8u32, 0..3usize).prop_map(|(count, unit)| CalendarWindow { count, unit: Unit::ALL[unit].0 })
}

#[derive(Debug)]
struct Turn {
    at: u64,
    /// Of the calendar, if the wall clock does not step.
    wall: u64,
    units: u32,
    slot: Slot,
    given_back: bool,
}

/// Plays the events as the throttle would, and calls `check` after each. Returns the turns that were taken.
fn play(rule: CalendarWindow, events: Vec<Event>, mut check: impl FnMut(&Event, &Book, Moment)) -> Vec<Turn> {
    let unit = rule.unit.half() / 500;
    let mut clocks = Clocks::at("Sat, 10 Feb 2024 06:00:00 GMT");
    let mut turns = Vec::<Turn>::new();
    let mut book = rule.fresh(clocks.moment());
    for event in events {
        match event {
            Event::Advance(by) => clocks.pass(by * unit),
            Event::Step(by) => {
                clocks.wall = clocks.wall.saturating_add_signed(by.saturating_mul(unit as i64)).min(500 * YEAR)
            }
            Event::StepToEnd(ahead, before) => {
                let end = rule.unit.start(rule.unit.window_at(clocks.wall) + ahead + 1);
                clocks.wall = end - u64::from(before);
            }
            _ => {}
        }
        let reboot = matches!(event, Event::Reboot);
        if reboot {
            turns.retain(|turn| turn.at <= clocks.now);
        }
        rule.advance(&mut book, clocks.moment(), reboot);
        assert!(book.ends > clocks.now);
        match event {
            Event::Ask(cost, waits) => {
                let turn = rule.earliest(&book, clocks.now, cost);
                assert_eq!(turn.is_none(), cost > rule.count);
                if let Some(turn) = turn.filter(|&turn| waits || turn == clocks.now) {
                    assert!(turn >= clocks.now, "a turn in the past");
                    assert_eq!(rule.earliest(&book, turn, cost), Some(turn));
                    if turn > clocks.now {
                        assert_eq!(rule.earliest(&book, turn - 1, cost), Some(turn));
                    }
                    let slot = rule.take(&mut book, turn, cost);
                    let wall = clocks.wall + (turn - clocks.now);
                    turns.push(Turn { at: turn, wall, units: cost, slot, given_back: false });
                }
            }
            Event::Free(nth, units) => {
                let taken = turns.iter_mut().rev().filter(|turn| !turn.given_back).nth(nth);
                if let Some(turn) = taken {
                    rule.free(&mut book, turn.slot, units, clocks.now);
                    turn.units = turn.units.saturating_sub(units);
                    turn.given_back = true;
                }
            }
            Event::Charge(units) => {
                let before = rule.quota(&book, clocks.now).remaining;
                rule.charge(&mut book, units, clocks.now);
                assert_eq!(rule.quota(&book, clocks.now).remaining, before.saturating_sub(units));
            }
            Event::Store => {
                let mut bytes = Vec::new();
                CalendarWindow::encode(&book, &mut bytes);
                assert_eq!(CalendarWindow::decode(&bytes).as_ref(), Some(&book));
            }
            _ => {}
        }
        assert!(book.used.runs().len() <= MOST_RUNS);
        check(&event, &book, clocks.moment());
    }
    turns
}

/// What was taken of each window, by the turns' own account of it.
fn most(turns: &[Turn], window: impl Fn(&Turn) -> u64) -> u32 {
    let mut windows = BTreeMap::new();
    for turn in turns {
        *windows.entry(window(turn)).or_insert(0) += turn.units;
    }
    windows.into_values().max().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(1582),
        failure_persistence: None,
        ..ProptestConfig::with_cases(1_000)
    })]

    #[test]
    fn a_calendar_window_admits_its_count(rule in rules(), events in events(Steps::None)) {
        let turns = play(rule, events, |_, _, _| {});
        let units = most(&turns, |turn| rule.unit.window_at(turn.wall).into());
        prop_assert!(units <= rule.count, "{units} in one window of {rule}: {turns:?}");
    }

    #[test]
    fn a_window_admits_its_count_whatever_the_clocks_do(rule in rules(), events in events(Steps::AndReboots)) {
        let turns = play(rule, events, |_, _, _| {});
        let units = most(&turns, |turn| turn.slot.start);
        prop_assert!(units <= rule.count, "{units} in one window of {rule}: {turns:?}");
    }

    /// What `reset` says is a promise: nothing comes back earlier, wherever the wall clock is set.
    #[test]
    fn no_step_gives_back_before_the_end(rule in rules(), events in events(Steps::Any)) {
        let mut last = None;
        play(rule, events, |event, book, at| {
            let left = rule.quota(book, at.now).remaining;
            if let Some((before, ends)) = last {
                assert!(left <= before || at.now >= ends || matches!(event, Event::Free(..)), "{left} of {before}");
            }
            last = Some((left, book.ends));
        });
    }

    /// Half a length for each window that follows another, so no stretch of time sees many.
    #[test]
    fn no_steps_open_many_windows(rule in rules(), events in events(Steps::Any)) {
        let mut opened = Vec::new();
        play(rule, events, |_, book, at| {
            let key = (book.window, book.serial);
            if opened.last().is_none_or(|&(last, _)| last != key) {
                opened.push((key, at.now));
            }
        });
        for three in opened.windows(3) {
            prop_assert!(three[2].1 - three[0].1 >= rule.unit.half(), "{opened:?}");
        }
    }

    #[test]
    fn a_change_never_refills(old in rules(), new in rules(), events in events(Steps::Any)) {
        play(old, events, |_, book, at| {
            let spent = CalendarWindow::spent(book, at);
            let changed = new.with_spent(spent, at);
            let (before, after) = (old.quota(book, at.now), new.quota(&changed, at.now));
            let used = |quota: &Quota| u64::from(quota.limit - quota.remaining);
            assert!(used(&after) * u64::from(before.limit) >= used(&before) * u64::from(after.limit));
            let last = book.used.len().saturating_sub(1);
            assert_eq!(spent.last_turn > at.now, last > 0);
        });
    }

    /// Against a plain list of windows.
    #[test]
    fn runs_are_a_list(
        steps in prop::collection::vec((0..6u8, 0..40u32, 0..12u32), 0..60),
    ) {
        let (mut used, mut list) = (Used::default(), vec![0_u32; 2_000]);
        for (step, window, units) in steps {
            let at = window as usize;
            match step {
                0..3 => { used.set(window, units); list[at] = units; }
                3 => {
                    used.fill(units * 7, 12);
                    let mut left = units * 7;
                    for there in &mut list {
                        let more = left.min(12_u32.saturating_sub(*there));
                        *there += more;
                        left -= more;
                    }
                }
                4 => {
                    used.drop_first(window % 4);
                    list.drain(..at % 4);
                }
                _ => { used.keep_first(window); list[at..].fill(0); }
            }
            if used.runs().len() == MOST_RUNS {
                break;
            }
            for (window, &units) in (0..).zip(&list[..200]) {
                prop_assert_eq!(used.of(window), units);
            }
            let first = list.iter().skip(at).position(|&there| there <= units);
            prop_assert_eq!(used.first_with(units, window) as usize, at + first.unwrap_or(0));
            prop_assert_eq!(used.len() as usize, list.iter().rposition(|&there| there > 0).map_or(0, |last| last + 1));
        }
    }

    #[test]
    fn joined_runs_never_use_less(sets in prop::collection::vec((0..300u32, 1..1_000u32), 0..200)) {
        let (mut used, mut list) = (Used::default(), vec![0_u32; 300]);
        for (window, units) in sets {
            used.set(window, units.max(used.of(window)));
            list[window as usize] = units.max(list[window as usize]);
            prop_assert!(used.runs().len() <= MOST_RUNS && used.of(0) == list[0]);
            prop_assert!((0..).zip(&list).all(|(window, &units)| used.of(window) >= units));
        }
    }

    #[test]
    fn any_state_is_answered(
        rule in rules(), count in 1..=u32::MAX, numbers: [u64; 6], walls: [u64; 2], bits: [bool; 4],
        runs in prop::collection::vec(any::<(u32, u32)>(), 0..40), cost: u32,
    ) {
        let rule = CalendarWindow { count, ..rule };
        let [ends, serial, now, from, start, end] = numbers;
        let mut used = Used::default();
        runs.into_iter().for_each(|(windows, units)| used.push(windows, units));
        used.tidy();
        let window = rule.unit.window_at(walls[0]);
        let mut book = Book { rule, window, ends, adrift: bits[0], early: walls[0], serial, used };
        let mut bytes = Vec::new();
        CalendarWindow::encode(&book, &mut bytes);
        let read = CalendarWindow::decode(&bytes);
        prop_assert_eq!(read.as_ref(), Some(&book));
        // All are likely ends of time.
        let at = Moment { now: if bits[1] { u64::MAX } else { now }, wall: if bits[2] { u64::MAX } else { walls[1] } };
        CalendarWindow::spent(&book, at);
        rule.advance(&mut book, at, bits[3]);
        let cost = cost % count.saturating_add(1);
        if let Some(turn) = rule.earliest(&book, from, cost) {
            prop_assert!(turn >= from);
            let slot = rule.take(&mut book, turn, cost);
            rule.free(&mut book, slot, cost, at.now);
        }
        rule.charge(&mut book, cost, at.now);
        rule.free(&mut book, Slot { start, end }, cost, at.now);
        rule.quota(&book, at.now);
        rule.ends(&book);
        rule.quota(&rule.with_spent(Spent { share: start, last_turn: end }, at), at.now);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..100), flip in 0..10_000usize) {
        CalendarWindow::decode(&bytes);
        let mut scene = scene(CalendarWindow::per_utc_day(20), "Sat, 10 Feb 2024 06:00:00 GMT");
        scene.rule.charge(&mut scene.book, 110, START);
        let mut stored = Vec::new();
        CalendarWindow::encode(&scene.book, &mut stored);
        let bit = flip % (stored.len() * 8);
        stored[bit / 8] ^= 1 << (bit % 8);
        if let Some(mut book) = CalendarWindow::decode(&stored) {
            let rule = book.rule;
            rule.advance(&mut book, scene.clocks.moment(), false);
            rule.earliest(&book, START, 1);
            rule.charge(&mut book, 3, START);
            rule.quota(&book, START);
        }
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,20}(/utc-day)?") {
        let _ = text.parse::<CalendarWindow>();
    }
}
