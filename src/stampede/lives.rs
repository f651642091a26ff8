//! How long answers live.

use std::time::Duration;

/// The longest life read from a header: RFC 9111 section 1.2.2 bounds delta-seconds here.
pub(super) const FOREVER: u32 = 1 << 31;

/// How long an answer is fresh, and for how long after that it may bridge what follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lives {
    pub(crate) fresh: Duration,
    /// It may be served while a new one is computed.
    pub(crate) revalidate: Duration,
    /// It may be served where a new one cannot be had.
    pub(crate) if_error: Duration,
}

impl Lives {
    pub(crate) fn without_grace(fresh: Duration) -> Lives {
        Lives { fresh, ..Lives::default() }
    }
}

/// A life shortened by up to a share of itself: what was stored together does not end together.
pub(crate) fn jittered(life: Duration, share: f64, draw: f64) -> Duration {
    life.min(Duration::from_secs(FOREVER.into())).mul_f64((1.0 - share * draw).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::*, test_runner::RngSeed};

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..Default::default() })]

        #[test]
        fn jitter_only_shortens(life in 0..1_u64 << 60, share in 0.0..=1.0_f64, draw in 0.0..1.0_f64) {
            prop_assert!(super::jittered(Duration::MAX, share, draw) <= Duration::from_secs(FOREVER.into()));
            let life = Duration::from_nanos(life);
            let jittered = jittered(life, share, draw);
            prop_assert!(jittered <= life + Duration::from_nanos(1));
            prop_assert!(jittered.as_secs_f64() >= life.as_secs_f64() * (1.0 - share) - 1e-6);
        }
    }
}
