//! What is remembered of a name that has no answer to keep: that its answers may not be stored, or that its service fails.
//! All processes go by it, and it ends by itself.

use super::core::Core;
use crate::{
    cache::after,
    error::Error,
    store::{Edit, Entry, Key, Kind, Life, Weight},
    time::nanos,
};
use hyper::body::Bytes;
use std::time::Duration;

/// After the first failure, doubled by each further one.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);
/// For how long after a back-off it is known how many failures there have been.
const REMEMBERED: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Its answers may not be stored, so no request should wait for one.
    Uncacheable,
    /// So many computations in a row have failed, and none is to be tried before `until`, in ns of machine time.
    Failing { failures: u32, until: u64 },
}

impl Weight for Mark {
    fn weight(&self) -> usize {
        0
    }
}

impl Mark {
    /// The mark after one more failure.
    pub(super) fn after_failure(before: Option<Mark>, now: u64) -> Mark {
        let failures = match before {
            Some(Mark::Failing { failures, .. }) => failures.saturating_add(1),
            Some(Mark::Uncacheable) | None => 1,
        };
        let back_off = BACK_OFF.saturating_mul(1 << (failures - 1).min(8)).min(BACK_OFF_MAX);
        Mark::Failing { failures, until: after(now, back_off) }
    }

    /// Whether the service is not to be asked now, where there is a stale answer.
    pub(super) fn is_backing_off(mark: Option<Mark>, now: u64) -> bool {
        matches!(mark, Some(Mark::Failing { until, .. }) if now < until)
    }

    fn encode(self) -> Bytes {
        match self {
            Mark::Uncacheable => Bytes::from_static(&[0]),
            Mark::Failing { failures, until } => {
                let mut bytes = vec![1];
                bytes.extend_from_slice(&failures.to_le_bytes());
                bytes.extend_from_slice(&until.to_le_bytes());
                bytes.into()
            }
        }
    }

    fn decode(bytes: &[u8]) -> Option<Mark> {
        match bytes.split_first()? {
            (0, []) => Some(Mark::Uncacheable),
            (1, rest) => {
                let (failures, until) = rest.split_first_chunk::<4>()?;
                let until = u64::from_le_bytes(until.try_into().ok()?);
                Some(Mark::Failing { failures: u32::from_le_bytes(*failures), until })
            }
            _ => None,
        }
    }
}

impl<C> Core<C> {
    fn mark_key(&self, key: &Key) -> Key {
        self.scope.key(Kind::Mark, &key.hash)
    }

    pub(super) fn mark(&self, key: &Key) -> Result<Option<Mark>, Error> {
        let found = self.scope.read(&self.mark_key(key), &key.hash, |entry| Mark::decode(&entry.payload))?;
        Ok(found.ok().map(|found| *found.value))
    }

    /// Resolves after the commit. A purge since `sequence` that matches the name prevents it; a cache that cannot be written
    /// remembers nothing.
    pub(super) async fn set_mark(&self, key: &Key, of: &Key, mark: Mark, sequence: u64) {
        let now = self.now();
        let ends = match mark {
            Mark::Uncacheable => after(now, self.uncacheable_for),
            Mark::Failing { until, .. } => until.saturating_add(nanos(REMEMBERED)),
        };
        let entry = Entry {
            life: Life::without_grace(now, ends),
            cost: 0,
            spread: 0,
            sequence,
            scope: self.scope.id(),
            tags: self.tags.to_vec(),
            family: of.family(),
            payload: mark.encode(),
            is_mark: true,
        };
        let _ = self.scope.commit(self.mark_key(key), &key.hash, entry).await;
    }

    pub(super) async fn clear_mark(&self, key: &Key) {
        let _ = self.scope.edit(self.mark_key(key), &key.hash, |_, _| (Ok(()), Edit::Remove)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{prelude::*, test_runner::RngSeed};

    #[test]
    fn each_failure_doubles_the_pause_up_to_thirty_seconds() {
        let (mut mark, mut pauses) = (None, Vec::new());
        for _ in 0..40 {
            let next = Mark::after_failure(mark, 7);
            let Mark::Failing { until, .. } = next else { panic!("{next:?}") };
            pauses.push((until - 7) / 1_000_000_000);
            mark = Some(next);
        }
        assert_eq!(pauses[..7], [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pauses[39], 30);
        assert!(Mark::is_backing_off(mark, 8) && !Mark::is_backing_off(mark, u64::MAX));
        assert!(!Mark::is_backing_off(Some(Mark::Uncacheable), 8) && !Mark::is_backing_off(None, 8));
    }

    proptest! {
        #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(17), failure_persistence: None, ..Default::default() })]

        #[test]
        fn marks_round_trip_and_no_bytes_panic(failures: u32, until: u64, bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            for mark in [Mark::Uncacheable, Mark::Failing { failures, until }] {
                prop_assert_eq!(Mark::decode(&mark.encode()), Some(mark));
            }
            if let Some(mark) = Mark::decode(&bytes) {
                prop_assert_eq!(&mark.encode()[..], &bytes[..]);
            }
        }
    }
}
