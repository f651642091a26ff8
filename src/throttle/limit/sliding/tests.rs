use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const NOW: u64 = 1_800_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;
const EVER: u64 = u64::MAX;

fn window(count: u32, per: u64) -> SlidingWindow {
    SlidingWindow::new(count, Duration::from_nanos(per))
}

fn at(now: u64) -> Moment {
    Moment { now, wall: 0 }
}

fn remaining(rule: &SlidingWindow, log: &Log, now: u64) -> u32 {
    rule.quota(log, now).remaining
}

#[test]
fn it_gives_back_what_was_taken_a_window_ago() {
    let rule = window(3, 60 * SECOND);
    let mut log = rule.fresh(at(NOW));
    assert_eq!((remaining(&rule, &log, NOW), rule.ends(&log)), (3, 0));
    rule.take(&mut log, NOW, 2);
    rule.take(&mut log, NOW + 20 * SECOND, 1);
    let now = NOW + 20 * SECOND;
    let quota = rule.quota(&log, now);
    assert_eq!((quota.limit, quota.remaining, quota.reset), (3, 0, Duration::from_secs(60)));
    assert_eq!((quota.window, rule.ends(&log)), (Duration::from_secs(60), NOW + 80 * SECOND));
    assert_eq!(rule.earliest(&log, now, 0), Some(now));
    assert_eq!(rule.earliest(&log, now, 2), Some(NOW + 60 * SECOND));
    assert_eq!(rule.earliest(&log, now, 3), Some(NOW + 80 * SECOND));
    assert_eq!(rule.earliest(&log, now, 4), None);
    rule.advance(&mut log, at(NOW + 60 * SECOND), false);
    assert_eq!(remaining(&rule, &log, NOW + 60 * SECOND), 2);
}

/// What the form with two weighted windows admits: nearly twice the count within one length.
#[test]
fn those_who_come_at_the_ends_of_two_windows_get_no_more_than_the_count() {
    let rule = window(100, 60 * SECOND);
    let mut log = rule.fresh(at(NOW));
    rule.take(&mut log, NOW + 59 * SECOND, 100);
    let late = NOW + 118 * SECOND;
    rule.advance(&mut log, at(late), false);
    assert_eq!(remaining(&rule, &log, late), 0);
    assert_eq!(rule.earliest(&log, late, 100), Some(NOW + 119 * SECOND));
}

#[test]
fn a_debt_is_paid_in_whole_windows_and_forgiven_after_a_century() {
    let rule = window(10, SECOND);
    let mut log = rule.fresh(at(NOW));
    rule.charge(&mut log, 4, NOW);
    assert_eq!(remaining(&rule, &log, NOW), 6);
    rule.charge(&mut log, 31, NOW);
    assert_eq!(remaining(&rule, &log, NOW), 0);
    for cost in [1, 10] {
        assert_eq!(rule.earliest(&log, NOW, cost), Some(NOW + 4 * SECOND));
    }
    for _ in 0..3 {
        rule.charge(&mut log, u32::MAX, NOW);
    }
    assert!(log.pieces.len() < 8 && rule.ends(&log) <= NOW + LONGEST_SPAN + SECOND);
}

#[test]
fn a_reboot_leaves_it_spent_for_one_window_at_most() {
    let rule = window(2, SECOND);
    let mut log = rule.fresh(at(NOW));
    for turn in 0..50 {
        rule.take(&mut log, NOW + turn * SECOND, 2);
    }
    rule.advance(&mut log, at(NOW + 10), true);
    assert_eq!(remaining(&rule, &log, NOW + 10), 0);
    assert_eq!(rule.earliest(&log, NOW + 10, 2), Some(NOW + 10 + SECOND));
    // Machine time that went back does not make it longer.
    rule.advance(&mut log, at(1_000), true);
    assert_eq!(rule.earliest(&log, 1_000, 2), Some(1_000 + SECOND));
}

#[test]
fn another_limit_takes_over_what_is_spent() {
    let (old, new) = (window(10, SECOND), window(100, 60 * SECOND));
    let mut log = old.fresh(at(NOW));
    let slot = old.take(&mut log, NOW, 7);
    let spent = SlidingWindow::spent(&log, at(NOW + 5));
    assert_eq!(spent.last_turn, 0);
    let mut changed = new.with_spent(spent, at(NOW + 5));
    assert!(new.made(&changed) && !old.made(&changed));
    assert_eq!(remaining(&new, &changed, NOW + 5), 29, "rounded against the caller");
    new.free(&mut changed, slot, 7, NOW + 5);
    assert_eq!(remaining(&new, &changed, NOW + 5), 29, "a slot of the old limit");

    let waits = old.take(&mut log, NOW + 3 * SECOND, 1);
    let spent = SlidingWindow::spent(&log, at(NOW));
    assert_eq!(spent.last_turn, NOW + 3 * SECOND);
    let mut changed = new.with_spent(spent, at(NOW));
    new.free(&mut changed, waits, 1, NOW);
    assert_eq!(new.earliest(&changed, NOW, 1), Some(NOW + 63 * SECOND), "behind all who wait, and those who leave");
}

#[test]
fn it_is_written_as_it_is_read() {
    let rule = window(100, 60 * SECOND);
    assert_eq!((rule.count(), rule.per(), rule.to_string()), (100, Duration::from_secs(60), "100/60s sliding".into()));
    for text in [
        "100/60s sliding",
        "100/1m sliding",
        "100/60 sliding",
        " 100 / minute  sliding",
        "100/1min sliding",
        "100/60000ms sliding",
    ] {
        assert_eq!(text.parse(), Ok(rule), "{text}");
    }
    assert_eq!("5/1500us sliding".parse::<SlidingWindow>().unwrap().to_string(), "5/1500us sliding");
    let says = |text: &str, what: &str| {
        let message = text.parse::<SlidingWindow>().unwrap_err().to_string();
        assert!(message.contains(what) && message.contains("`100/60s sliding`"), "{message}");
    };
    says("", "it is not a count");
    says("100/60s", "\"100/60s\" is no limit: it is not");
    says("100 sliding", "it is not");
    says("0/60s sliding", "the count");
    says("4294967296/60s sliding", "the count");
    says("-1/60s sliding", "the count");
    says("+1/60s sliding", "the count");
    for time in ["", "0", "0s", "-5", "5 apples", "36526d", "99999999999999999999", "9999999999999999999y", "é"] {
        says(&format!("1/{time} sliding"), "the time");
    }
}

#[test]
fn bad_windows_panic_and_name_the_value() {
    let says = |make: fn() -> SlidingWindow, what: &str| {
        let panic = std::panic::catch_unwind(make).unwrap_err();
        let message = panic.downcast::<String>().unwrap();
        assert!(message.contains(what), "{message}");
    };
    says(|| SlidingWindow::new(0, Duration::from_secs(3)), "0 per 3s");
    says(|| SlidingWindow::new(3, Duration::ZERO), "3 per 0ns");
    says(|| SlidingWindow::new(3, Duration::MAX), "3 per 18446744073709551615.999999999s");
}

#[test]
fn a_cell_is_small() {
    let rule = window(100_000, 60 * SECOND);
    let mut log = rule.fresh(at(NOW));
    for n in 0..60_000 {
        let now = NOW + n * SECOND / 500;
        rule.advance(&mut log, at(now), false);
        rule.take(&mut log, now, 1);
    }
    let mut bytes = Vec::new();
    SlidingWindow::encode(&log, &mut bytes);
    assert!(log.pieces.len() <= 18 && bytes.len() < 220, "{} bytes", bytes.len());
    assert_eq!(SlidingWindow::decode(&bytes), Some(log));
}

#[derive(Clone, Debug)]
enum Event {
    Advance(u64),
    /// Cost and patience.
    Ask(u32, u64),
    /// One who waits goes away: the last (0), or another.
    Leave(usize),
    /// A use turns out to have cost less.
    Refund(usize, u32),
    Charge(u32),
    Reboot,
    /// Written and read again.
    Store,
}

fn events(rough: bool) -> impl Strategy<Value = Vec<Event>> {
    let patience = prop_oneof![Just(0), 0..200u64, Just(EVER)];
    let smooth = prop_oneof![
        10 => (0..60u64).prop_map(Event::Advance),
        20 => (0..9u32, patience).prop_map(|(c, p)| Event::Ask(c, p)),
        5 => (0..8usize).prop_map(Event::Leave),
        2 => (0..8usize, 0..5u32).prop_map(|(n, u)| Event::Refund(n, u)),
        1 => Just(Event::Store),
    ];
    let event = prop_oneof![
        30 => smooth,
        u32::from(rough) => prop_oneof![(0..20u32).prop_map(Event::Charge), Just(Event::Reboot)],
    ];
    prop::collection::vec(event, 1..if rough { 200 } else { 60 })
}

#[derive(Debug)]
struct Turn {
    at: u64,
    cost: u32,
    slot: Slot,
}

/// Plays the events as the throttle would, and calls `check` before each question. Returns the turns that were taken.
fn play(
    rule: &SlidingWindow,
    events: Vec<Event>,
    mut check: impl FnMut(&Log, &[Turn], u64, u32, Option<u64>),
) -> Vec<Turn> {
    let (mut now, mut log, mut turns) = (NOW, rule.fresh(at(NOW)), Vec::<Turn>::new());
    for event in events {
        rule.advance(&mut log, at(now), false);
        match event {
            Event::Advance(by) => now += by,
            Event::Ask(cost, patience) => {
                let turn = rule.earliest(&log, now, cost);
                check(&log, &turns, now, cost, turn);
                if let Some(turn) = turn.filter(|turn| turn - now <= patience) {
                    let slot = rule.take(&mut log, turn, cost);
                    turns.push(Turn { at: turn, cost, slot });
                }
            }
            Event::Leave(nth) => {
                let waits = (0..turns.len()).rev().filter(|&i| turns[i].at > now).nth(nth);
                if let Some(gone) = waits.map(|i| turns.remove(i)) {
                    rule.free(&mut log, gone.slot, gone.cost, now);
                }
            }
            Event::Refund(nth, units) => {
                let used = turns.iter_mut().rev().filter(|t| t.at <= now && t.slot != Slot::default()).nth(nth);
                if let Some(turn) = used {
                    rule.free(&mut log, turn.slot, units, now);
                    turn.cost = turn.cost.saturating_sub(units);
                    turn.slot = Slot::default();
                }
            }
            Event::Charge(units) => {
                let before = rule.quota(&log, now);
                rule.charge(&mut log, units, now);
                let after = rule.quota(&log, now);
                let left = before.remaining.saturating_sub(units);
                // A piece that also waits counts from now on.
                assert!(after.remaining == left || rule.count > PIECES && after.remaining < left);
            }
            Event::Reboot => {
                turns.retain(|turn| turn.at <= now);
                rule.advance(&mut log, at(now), true);
                assert!(rule.ends(&log) <= now + rule.per);
            }
            Event::Store => {
                let mut bytes = Vec::new();
                SlidingWindow::encode(&log, &mut bytes);
                assert_eq!(SlidingWindow::decode(&bytes).as_ref(), Some(&log));
            }
        }
        assert!(log.pieces.len() <= MOST_PIECES);
    }
    turns
}

/// The textbook's log: the first turn at which no stretch of `per` that contains it would hold more than the count.
fn textbook(count: u32, per: u64, turns: &[Turn], from: u64, cost: u32) -> Option<u64> {
    let room = u64::from(count.checked_sub(cost)?);
    let fits = |turn: u64| {
        let starts = turns.iter().map(|t| t.at).filter(|&at| at <= turn && turn - at < per).chain([turn]);
        starts.into_iter().all(|start| {
            let within = turns.iter().filter(|t| t.at >= start && t.at - start < per);
            within.map(|t| u64::from(t.cost)).sum::<u64>() <= room
        })
    };
    let mut candidates: Vec<u64> = turns.iter().map(|t| t.at + per).filter(|&at| at > from).chain([from]).collect();
    candidates.sort_unstable();
    if cost == 0 { Some(from) } else { candidates.into_iter().find(|&turn| fits(turn)) }
}

fn rules() -> impl Strategy<Value = SlidingWindow> {
    (prop_oneof![1..8u32, 17..40u32], 1..100u64).prop_map(|(count, per)| window(count, per))
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { rng_seed: RngSeed::Fixed(2017), failure_persistence: None, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config(1_000))]

    #[test]
    fn no_stretch_admits_more_than_the_count(rule in rules(), events in events(true)) {
        let mut turns = play(&rule, events, |_, _, now, _, turn| assert!(turn.is_none_or(|turn| turn >= now)));
        turns.sort_by_key(|turn| turn.at);
        for (i, first) in turns.iter().enumerate() {
            let within = turns[i..].iter().take_while(|turn| turn.at - first.at < rule.per);
            let units: u32 = within.map(|turn| turn.cost).sum();
            prop_assert!(units <= rule.count, "{units} in {rule} from {}: {turns:?}", first.at);
        }
    }

    /// With waiters that leave from anywhere: so what they leave is used again, and "ask again then" is exact.
    #[test]
    fn small_counts_are_exact(count in 1..=PIECES, per in 1..100u64, events in events(false)) {
        let rule = window(count, per);
        play(&rule, events, |_, turns, now, cost, turn| {
            let free = |t: &&Turn| t.cost > 0;
            let turns: Vec<Turn> = turns.iter().filter(free).map(|t| Turn { ..*t }).collect();
            assert_eq!(turn, textbook(count, per, &turns, now, cost), "{cost} at {now} in {rule} after {turns:?}");
        });
    }

    #[test]
    fn large_counts_are_a_sixteenth_late_at_most(count in 17..60u32, per in 16..400u64, events in events(false)) {
        let rule = window(count, per);
        let events = events.into_iter().filter(|event| matches!(event, Event::Advance(_) | Event::Ask(..)));
        let events = events.map(|event| if let Event::Ask(cost, _) = event { Event::Ask(cost, 0) } else { event });
        play(&rule, events.collect(), |_, turns, now, cost, turn| {
            let exact = textbook(count, per, turns, now, cost);
            let late = textbook(count, per + per / u64::from(PIECES), turns, now, cost);
            assert!(exact <= turn && turn <= late, "{exact:?} <= {turn:?} <= {late:?}");
        });
    }

    #[test]
    fn the_earliest_turn_is_exact(rule in rules(), events in events(true)) {
        play(&rule, events, |log, _, now, cost, turn| {
            let Some(turn) = turn else { return };
            assert_eq!(rule.earliest(log, turn, cost), Some(turn));
            if turn > now {
                assert_eq!(rule.earliest(log, turn - 1, cost), Some(turn));
            }
        });
    }

    #[test]
    fn a_change_never_refills(old in rules(), new in rules(), events in events(true)) {
        play(&old, events, |log, _, now, _, _| {
            let before = old.quota(log, now);
            let changed = new.with_spent(SlidingWindow::spent(log, at(now)), at(now));
            let after = new.quota(&changed, now);
            let share = |quota: &Quota| u64::from(quota.limit - quota.remaining) << 32;
            assert!(share(&after) / u64::from(after.limit) >= share(&before) / u64::from(before.limit));
            let last = if log.last_turn() > now { log.last_turn() } else { 0 };
            assert!(new.earliest(&changed, now, 1) > Some(last));
        });
    }

    #[test]
    fn any_state_is_answered(
        numbers in prop::collection::vec(any::<[u64; 3]>(), 0..70),
        count in 1..=u32::MAX, per in 1..=LONGEST_SPAN, now: u64, cost: u32, from: u64, spent: [u64; 2], rebooted: bool,
    ) {
        let rule = window(count, per);
        let mut log = rule.fresh(at(now));
        for [shift, first, units] in numbers {
            let first = first >> (shift % 64);
            rule.add(&mut log, Piece { first, last: first.saturating_add(shift), units: (units as u32).max(1) });
        }
        let mut bytes = Vec::new();
        SlidingWindow::encode(&log, &mut bytes);
        let read = SlidingWindow::decode(&bytes);
        prop_assert_eq!(read.as_ref(), Some(&log));
        rule.advance(&mut log, at(now), rebooted);
        let cost = cost % count.saturating_add(1);
        if let Some(turn) = rule.earliest(&log, from, cost) {
            prop_assert!(turn >= from);
            let slot = rule.take(&mut log, turn, cost);
            rule.quota(&log, now);
            rule.free(&mut log, slot, cost, now);
        }
        rule.charge(&mut log, cost, now);
        rule.free(&mut log, Slot { start: spent[0], end: spent[1] }, cost, now);
        rule.quota(&log, now);
        SlidingWindow::spent(&log, at(now));
        let spent = Spent { share: spent[0], last_turn: spent[1] };
        rule.quota(&rule.with_spent(spent, at(now)), now);
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), flip in 0..400usize) {
        SlidingWindow::decode(&bytes);
        let rule = window(20, 1_000);
        let mut log = rule.fresh(at(NOW));
        (0..30).for_each(|n| { rule.take(&mut log, NOW + n * 100, 1); });
        let mut stored = Vec::new();
        SlidingWindow::encode(&log, &mut stored);
        let bit = flip % (stored.len() * 8);
        stored[bit / 8] ^= 1 << (bit % 8);
        if let Some(mut log) = SlidingWindow::decode(&stored) {
            rule.advance(&mut log, at(NOW), false);
            rule.earliest(&log, NOW, 20);
            rule.charge(&mut log, 3, NOW);
            rule.quota(&log, NOW);
        }
    }

    #[test]
    fn any_text_is_answered(text in "\\PC{0,20}( sliding)?", count: u32, per: u64) {
        let _ = text.parse::<SlidingWindow>();
        if let Some(rule) = SlidingWindow::checked(count, Duration::from_nanos(per % LONGEST_SPAN)) {
            prop_assert_eq!(rule.to_string().parse(), Ok(rule));
        }
    }
}

proptest! {
    #![proptest_config(config(20))]

    #[test]
    fn a_long_line_that_leaves_is_forgotten(
        count in 1..40u32, order in Just((0..500usize).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let rule = window(count, SECOND);
        let mut log = rule.fresh(at(NOW));
        rule.take(&mut log, NOW, count);
        let alone = log.clone();
        let mut last = NOW;
        let slots: Vec<Slot> = order.iter().map(|_| {
            let turn = rule.earliest(&log, NOW, 1).unwrap();
            assert!(turn >= last, "overtaken");
            last = turn;
            rule.take(&mut log, turn, 1)
        }).collect();
        prop_assert_eq!(last, NOW + order.len().div_ceil(count as usize) as u64 * SECOND);
        for &gone in &order {
            rule.free(&mut log, slots[gone], 1, NOW);
        }
        prop_assert!(log == alone, "{:?}", log);
    }
}
