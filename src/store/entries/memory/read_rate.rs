//! The read rate of a name in this process.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// A count of reads, from which the reads a second are computed. Racing readers may lose one of them.
#[derive(Debug)]
pub(crate) struct ReadRate {
    /// When the count began, in ns.
    since: AtomicU64,
    count: AtomicU64,
    /// Reads a second before that, as the bits of a float; NaN: not known.
    before: AtomicU64,
}

/// A count over less time than this says little.
const SOME_TIME: u64 = Duration::from_millis(50).as_nanos() as u64;

impl ReadRate {
    pub(crate) fn new(now: u64) -> Self {
        ReadRate { since: AtomicU64::new(now), count: AtomicU64::new(0), before: AtomicU64::new(f64::NAN.to_bits()) }
    }

    pub(crate) fn note(&self) {
        self.count.fetch_add(1, Relaxed);
    }

    /// Reads a second, of late. The count begins anew after each `span`, and the rate before it fades out over the next
    /// one.
    pub(crate) fn rate(&self, now: u64, span: Duration) -> f64 {
        let span = crate::time::nanos(span).max(SOME_TIME);
        let (since, count) = (self.since.load(Relaxed), self.count.load(Relaxed));
        let before = f64::from_bits(self.before.load(Relaxed));
        let elapsed = now.saturating_sub(since);
        let counted = count as f64 * 1e9 / elapsed.max(SOME_TIME) as f64;
        let rate = match before.is_nan() {
            true => counted,
            false => {
                let share = (elapsed as f64 / span as f64).min(1.0);
                before * (1.0 - share) + counted * share
            }
        };
        if elapsed >= span {
            self.before.store(rate.to_bits(), Relaxed);
            self.since.store(now, Relaxed);
            self.count.store(0, Relaxed);
        }
        rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_steady_rate_is_found_at_once_and_a_new_one_within_two_spans() {
        let (reads, span) = (ReadRate::new(0), Duration::from_secs(1));
        let mut rates = Vec::new();
        let mut read = |from: u64, to: u64, every: u64| {
            for now in (from..to).step_by(every as usize) {
                reads.note();
                rates.push(reads.rate(now, span));
            }
            *rates.last().unwrap()
        };
        assert!((90.0..110.0).contains(&read(0, SECOND / 2, SECOND / 100)));
        assert!((90.0..110.0).contains(&read(SECOND / 2, 5 * SECOND, SECOND / 100)));
        assert!((900.0..1100.0).contains(&read(5 * SECOND, 7 * SECOND + SECOND / 2, SECOND / 1000)));
        assert!(read(8 * SECOND, 12 * SECOND, SECOND) < 5.0);
    }

    #[test]
    fn nothing_read_is_a_rate_of_nothing() {
        let reads = ReadRate::new(7);
        assert_eq!((reads.rate(7, Duration::ZERO), reads.rate(0, Duration::MAX)), (0.0, 0.0));
        assert_eq!(reads.rate(u64::MAX, Duration::from_secs(1)), 0.0);
    }
}
