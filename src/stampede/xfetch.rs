//! XFetch: when to recompute a stored answer before it expires.
//!
//! As published in Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", PVLDB 8(8),
//! 2015, doi 10.14778/2757807.2757813.

use std::time::Duration;

/// Whether the reader who drew `draw`, uniform in [0, 1), recomputes an answer that took `cost` to compute and has
/// `remaining` of its life left: `-beta * cost * ln(1 - draw) >= remaining`, so with probability `exp(-remaining /
/// (beta * cost))`.
///
/// A `beta` above 1 recomputes earlier, below 1 later, 0 (or one that is no positive number) only when nothing
/// remains.
pub(crate) fn refresh_early(remaining: Duration, cost: Duration, beta: f64, draw: f64) -> bool {
    if remaining.is_zero() {
        return true;
    }
    // 1 - draw is uniform in (0, 1], so the logarithm is finite. A comparison with NaN is false.
    -beta * cost.as_secs_f64() * (1.0 - draw).ln() >= remaining.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    const LIFE: Duration = Duration::from_secs(1);
    const COST: Duration = Duration::from_millis(200);

    #[test]
    fn an_answer_without_life_left_is_recomputed() {
        for (cost, beta, draw) in
            [(COST, 1.0, 0.0), (COST, 0.0, 0.5), (Duration::ZERO, 1.0, 0.5), (COST, f64::NAN, 0.5)]
        {
            assert!(refresh_early(Duration::ZERO, cost, beta, draw), "{cost:?} {beta} {draw}");
        }
    }

    #[test]
    fn without_beta_or_cost_nothing_is_early() {
        let last = 1.0 - f64::EPSILON / 2.0;
        for draw in [0.0, 0.5, last] {
            for beta in [0.0, -1.0, f64::NAN] {
                assert!(!refresh_early(Duration::from_nanos(1), COST, beta, draw), "{beta} {draw}");
            }
            assert!(!refresh_early(Duration::from_nanos(1), Duration::ZERO, 1.0, draw));
        }
        assert!(refresh_early(Duration::from_secs(7), COST, 1.0, last), "36.7 costs are the most one can draw");
        assert!(!refresh_early(Duration::from_secs(8), COST, 1.0, last));
    }

    #[test]
    fn any_input_is_answered() {
        let odd = [0.0, -0.0, 1.0, 2.0, -1.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, f64::MIN_POSITIVE];
        for beta in odd {
            for draw in odd {
                for time in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
                    refresh_early(time, Duration::MAX, beta, draw);
                    refresh_early(Duration::MAX, time, beta, draw);
                }
            }
        }
    }

    #[test]
    fn the_probability_is_the_published_one() {
        const DRAWS: u32 = 100_000;
        let mut rng = StdRng::seed_from_u64(0x0f_e7c4);
        let cases = [
            (0, 1.0, 200),
            (50, 1.0, 200),
            (200, 1.0, 200),
            (600, 1.0, 200),
            (265, 0.3, 200),
            (265, 4.0, 200),
            (1, 0.5, 3),
        ];
        for (remaining, beta, cost) in cases {
            // A clock that stands `remaining` before the expiry, as a cache sees it.
            let (now, expiry) = (Duration::from_millis(5_000 - remaining), Duration::from_millis(5_000));
            let cost = Duration::from_millis(cost);
            let hits = (0..DRAWS).filter(|_| refresh_early(expiry - now, cost, beta, rng.random())).count();
            let measured = hits as f64 / f64::from(DRAWS);
            let expected = (-(expiry - now).as_secs_f64() / (beta * cost.as_secs_f64())).exp();
            assert!(
                (measured - expected).abs() < 0.005,
                "{remaining} ms left, beta {beta}, cost {cost:?}: {measured}, not {expected}"
            );
        }
    }

    /// One life of an answer on a simulated clock: readers come at random (Poisson, `reads` a second) and the first
    /// whom XFetch picks recomputes it. Returns whether that was too late to finish before the expiry.
    fn cycle_misses(rng: &mut StdRng, reads: f64, beta: f64) -> bool {
        let mut now = Duration::ZERO;
        loop {
            let gap = -(1.0 - rng.random::<f64>()).ln() / reads;
            now += Duration::from_secs_f64(gap);
            if now + COST > LIFE {
                return true;
            }
            if refresh_early(LIFE - now, COST, beta, rng.random()) {
                return false;
            }
        }
    }

    /// The chance of `cycle_misses`: readers picked in time are a thinned Poisson process, whose rate at `remaining`
    /// is `reads * exp(-remaining / (beta * cost))`; this is the chance of none between the start and `LIFE - COST`.
    fn chance_of_miss(reads: f64, beta: f64) -> f64 {
        let scale = beta * COST.as_secs_f64();
        let picked = reads * scale * ((-1.0 / beta).exp() - (-LIFE.as_secs_f64() / scale).exp());
        (-picked).exp()
    }

    #[test]
    fn answers_expire_as_often_as_the_closed_form_says() {
        let mut rng = StdRng::seed_from_u64(2015);
        let cases = [
            (950.0, 0.3, 3_000, 0.131),
            (100.0, 0.5, 10_000, 0.258),
            (20.0, 1.0, 20_000, 0.236),
            (5.0, 1.0, 20_000, 0.697),
        ];
        for (reads, beta, cycles, rounded) in cases {
            let expected = chance_of_miss(reads, beta);
            assert!((expected - rounded).abs() < 0.0006, "{expected}, not {rounded}");
            let misses = (0..cycles).filter(|_| cycle_misses(&mut rng, reads, beta)).count();
            let measured = misses as f64 / f64::from(cycles);
            let deviation = (expected * (1.0 - expected) / f64::from(cycles)).sqrt();
            assert!(
                (measured - expected).abs() < 3.0 * deviation,
                "{reads} reads a second, beta {beta}: {measured}, not {expected} (deviation {deviation})"
            );
        }
    }
}
