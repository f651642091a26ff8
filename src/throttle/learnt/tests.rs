use super::*;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const NOW: u64 = 1_800_000_000_000_000_000;
const SECOND: u64 = 1_000_000_000;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn left(remaining: u32, reset: u64) -> Advice {
    Advice::left(remaining, secs(reset))
}

/// Of a server that allows 30 a minute.
fn of_30(remaining: u32, reset: u64) -> Advice {
    Advice { limit: Some(30), window: Some(secs(60)), ..left(remaining, reset) }
}

fn sent(learnt: &mut Learnt, calls: u32, now: u64) {
    learnt.advance(now);
    (0..calls).for_each(|_| learnt.sent());
}

/// The answer to a request that went at `sent`.
fn answered(learnt: &mut Learnt, advice: Advice, sent: u64, now: u64) {
    learnt.advance(now);
    learnt.returned(sent);
    learnt.heed(&advice, sent, now);
}

fn room(learnt: &Learnt, now: u64) -> Option<u32> {
    let mut learnt = *learnt;
    learnt.advance(now);
    assert_eq!(learnt.earliest(now) > now, learnt.room(now) == Some(0));
    learnt.room(now)
}

#[test]
fn nothing_is_known_before_the_first_answer() {
    let mut learnt = Learnt::default();
    sent(&mut learnt, 1_000, NOW);
    assert_eq!((room(&learnt, NOW), learnt.earliest(NOW)), (None, NOW));
    answered(&mut learnt, Advice::default(), NOW, NOW + 1);
    assert_eq!(room(&learnt, NOW + 1), None);
}

#[test]
fn those_on_their_way_count_on_top_of_what_was_said() {
    for order in [[29, 28, 27, 26, 25], [25, 26, 27, 28, 29], [27, 25, 29, 26, 28]] {
        let mut learnt = Learnt::default();
        sent(&mut learnt, 5, NOW);
        for (back, said) in (1..).zip(order) {
            answered(&mut learnt, of_30(said, 60), NOW, NOW + back);
            // Never more than what is left when all have arrived.
            assert!(room(&learnt, NOW + back) <= Some(25), "{order:?}");
        }
        assert_eq!(room(&learnt, NOW + 5), Some(25), "{order:?}");
        sent(&mut learnt, 25, NOW + 6);
        assert_eq!(room(&learnt, NOW + 6), Some(0));
        let least_said = NOW + 1 + order.iter().position(|said| *said == 25).unwrap() as u64;
        assert_eq!(learnt.earliest(NOW + 7), least_said + 60 * SECOND);
    }
}

#[test]
fn what_is_not_answered_is_lost_after_a_while() {
    let mut learnt = Learnt::default();
    sent(&mut learnt, 3, NOW);
    answered(&mut learnt, of_30(10, 3_600), NOW, NOW + SECOND);
    assert_eq!(room(&learnt, NOW + SECOND), Some(8));
    // One is back later than that, and not counted twice.
    let later = NOW + 61 * SECOND;
    answered(&mut learnt, Advice::default(), NOW, later);
    assert_eq!(room(&learnt, later), Some(10));
}

#[test]
fn after_the_window_one_goes_ahead_and_others_follow_at_the_servers_pace() {
    let mut learnt = Learnt::default();
    sent(&mut learnt, 2, NOW);
    answered(&mut learnt, of_30(0, 6), NOW, NOW);
    let end = NOW + 6 * SECOND;
    assert_eq!((room(&learnt, end - 1), learnt.earliest(NOW)), (Some(0), end));
    assert_eq!(room(&learnt, end), Some(1), "though the other is still on its way");
    sent(&mut learnt, 1, end);
    // 30 a minute are one each two seconds, but nobody waits longer than one.
    assert_eq!((room(&learnt, end), learnt.earliest(end)), (Some(0), end + SECOND));
    sent(&mut learnt, 1, end + SECOND);
    answered(&mut learnt, of_30(28, 59), end, end + SECOND);
    assert_eq!(room(&learnt, end + SECOND), Some(26));
    // Left alone, it is taken to be whole again.
    assert_eq!(room(&learnt, end + 300 * SECOND), Some(30));
    assert_eq!(room(&learnt, end + 3_700 * SECOND), None, "after an hour nothing is known");
}

#[test]
fn what_overtook_is_not_heard_of_another_window() {
    let mut learnt = Learnt::default();
    sent(&mut learnt, 4, NOW);
    answered(&mut learnt, of_30(5, 20), NOW, NOW + 1);
    // Of the same window the least counts, whoever says it.
    answered(&mut learnt, of_30(9, 20), NOW, NOW + 2);
    assert_eq!(learnt.low, 5);
    // An hour's budget that was spoken of at the same time as the minute's.
    answered(&mut learnt, left(100, 3_600), NOW, NOW + 3);
    assert_eq!(learnt.low, 5);
    // Whoever was asked since then knows better.
    sent(&mut learnt, 1, NOW + 4);
    answered(&mut learnt, left(100, 3_600), NOW + 4, NOW + 5);
    assert_eq!(learnt.low, 100);
}

#[test]
fn a_refusal_holds_as_long_as_it_says() {
    let mut learnt = Learnt::default();
    sent(&mut learnt, 2, NOW);
    answered(&mut learnt, Advice::hold_for(secs(5)), NOW, NOW);
    answered(&mut learnt, Advice::hold_for(secs(2)), NOW, NOW);
    assert_eq!((learnt.earliest(NOW), room(&learnt, NOW)), (NOW + 5 * SECOND, Some(0)));
    assert_eq!(room(&learnt, NOW + 5 * SECOND), None);
    // It goes before the reset of an empty budget, and not before that of another.
    let both = |remaining| Advice { hold: Some(secs(7)), ..of_30(remaining, 60) };
    for (remaining, end) in [(0, 7), (1, 60)] {
        let mut learnt = Learnt::default();
        answered(&mut learnt, both(remaining), NOW, NOW);
        assert_eq!((learnt.held, learnt.until), (NOW + 7 * SECOND, NOW + end * SECOND));
    }
}

#[test]
fn a_reset_at_once_is_a_new_window() {
    let mut learnt = Learnt::default();
    sent(&mut learnt, 1, NOW);
    answered(&mut learnt, left(0, 0), NOW, NOW);
    assert_eq!(room(&learnt, NOW), Some(1));
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(9110),
        failure_persistence: None,
        ..ProptestConfig::with_cases(2_000)
    })]

    #[test]
    fn anything_stored_is_survived(
        bytes in prop::collection::vec(any::<u8>(), SIZE), now: u64, from: u64, remaining: u32, span: u64, sent_at: u64,
    ) {
        let mut learnt = Learnt::read(&bytes).unwrap();
        let mut stored = Vec::new();
        learnt.write(&mut stored);
        prop_assert_eq!(&stored, &bytes);
        learnt.advance(now);
        prop_assert!(learnt.earliest(from) >= from);
        learnt.sent();
        learnt.returned(sent_at);
        let span = Duration::from_nanos(span);
        learnt.heed(&Advice { hold: Some(span), ..Advice::left(remaining, span) }, sent_at, now);
        let _ = (learnt.room(now), learnt.ends());
        prop_assert!(Learnt::read(&bytes[1..]).is_none());
    }

    /// A server with fixed windows, answers in any order: what it admits is never more than it has.
    #[test]
    fn no_order_of_answers_lets_too_much_pass(
        limit in 10..40_u32, steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), 0..3_u64), 1..400),
    ) {
        let window = 60 * SECOND;
        let (mut learnt, mut used, mut told) = (Learnt::default(), 0_u32, false);
        // Sent and not handled; handled and not back.
        let (mut there, mut back) = (Vec::new(), Vec::new());
        let mut now = NOW / window * window;
        let end = now + window;
        for (send, which, pause) in steps {
            now += pause * SECOND / 20;
            learnt.advance(now);
            // Ten set out before anybody is back.
            if send && learnt.earliest(now) <= now && (told || there.len() + back.len() < 10) {
                learnt.sent();
                there.push(now);
            } else if !there.is_empty() && which.index(2) == 0 {
                let sent = there.swap_remove(which.index(there.len()));
                prop_assert!(used < limit, "refused");
                used += 1;
                back.push((sent, limit - used));
            } else if !back.is_empty() {
                let (sent, left) = back.swap_remove(which.index(back.len()));
                let reset = Duration::from_nanos(end - now);
                learnt.returned(sent);
                learnt.heed(&Advice { limit: Some(limit), window: Some(secs(60)), ..Advice::left(left, reset) }, sent, now);
                told = true;
            }
        }
    }
}
