//! The time for which a gate has stood still.

use std::time::{Duration, Instant};

/// A clock that runs only while a gate stands still and this process looks at it.
///
/// A gate that another process passes moves, however long the line before it. The time between two looks counts only up
/// to a bound: in a process that was stopped, or whose threads got no processor, nothing is late for that.
#[derive(Debug)]
pub(super) struct Standstill {
    patience: Duration,
    /// The reading of this clock, and what it was when the gate last moved.
    reading: Duration,
    moved_at: Duration,
    looked: Instant,
    /// The last commit by any process.
    commit: u64,
}

impl Standstill {
    pub(super) fn new(patience: Duration, now: Instant) -> Standstill {
        Standstill { patience, reading: Duration::ZERO, moved_at: Duration::ZERO, looked: now, commit: 0 }
    }

    /// How far two looks may be apart, so that all of the time between them counts.
    pub(super) fn pace(&self) -> Duration {
        (self.patience / 4).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }

    pub(super) fn reading(&self) -> Duration {
        self.reading
    }

    /// The gate was had, or nobody has waited for it until now.
    pub(super) fn restart(&mut self, now: Instant) {
        self.moved_at = self.reading;
        self.looked = now;
    }

    /// A look at a gate that cannot be had.
    pub(super) fn look(&mut self, now: Instant, commit: u64) {
        if self.commit != commit {
            self.commit = commit;
            return self.restart(now);
        }
        let apart = now.saturating_duration_since(self.looked).min(self.pace());
        self.reading = self.reading.saturating_add(apart);
        self.looked = now;
    }

    /// Whether the gate has stood still for the whole patience of a wait that began at this reading.
    pub(super) fn exceeds_patience(&self, since: Duration) -> bool {
        self.reading.saturating_sub(since.max(self.moved_at)) >= self.patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(250);

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// Looks so often at a gate that nobody passes.
    fn look(standstill: &mut Standstill, now: &mut Instant, times: u32, apart: Duration) {
        for _ in 0..times {
            *now += apart;
            standstill.look(*now, 7);
        }
    }

    fn begun() -> (Standstill, Instant) {
        let now = Instant::now();
        let mut standstill = Standstill::new(PATIENCE, now);
        standstill.look(now, 7);
        (standstill, now)
    }

    #[test]
    fn patience_ends_where_nobody_passes_the_gate() {
        let (mut standstill, mut now) = begun();
        look(&mut standstill, &mut now, 49, ms(5));
        let since = standstill.reading();
        assert!(!standstill.exceeds_patience(Duration::ZERO));
        look(&mut standstill, &mut now, 1, ms(5));
        assert!(standstill.exceeds_patience(Duration::ZERO));
        assert!(!standstill.exceeds_patience(since), "this wait began later");
        look(&mut standstill, &mut now, 49, ms(5));
        assert!(standstill.exceeds_patience(since));
    }

    #[test]
    fn it_begins_anew_when_anybody_passes() {
        let (mut standstill, mut now) = begun();
        look(&mut standstill, &mut now, 40, ms(5));
        standstill.look(now, 8);
        standstill.look(now, 7);
        look(&mut standstill, &mut now, 49, ms(5));
        assert!(!standstill.exceeds_patience(Duration::ZERO));
        standstill.restart(now);
        look(&mut standstill, &mut now, 49, ms(5));
        assert!(!standstill.exceeds_patience(Duration::ZERO));
        look(&mut standstill, &mut now, 1, ms(5));
        assert!(standstill.exceeds_patience(Duration::ZERO));
    }

    #[test]
    fn the_time_in_which_the_process_did_not_look_does_not_count() {
        let (mut standstill, mut now) = begun();
        look(&mut standstill, &mut now, 3, Duration::from_secs(3600));
        assert!(!standstill.exceeds_patience(Duration::ZERO));
    }

    #[test]
    fn the_longest_patience_never_ends() {
        let mut now = Instant::now();
        let mut standstill = Standstill::new(Duration::MAX, now);
        look(&mut standstill, &mut now, 1000, Duration::from_secs(1));
        assert!(!standstill.exceeds_patience(Duration::ZERO));
    }
}
