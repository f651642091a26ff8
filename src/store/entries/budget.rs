//! The budget of a shard: how much it keeps, and how much its files may grow beyond that.
//!
//! LMDB reuses the pages of what was removed, but not while a snapshot may still be read in them: behind a reader that
//! is stopped, a file only grows. It is then replaced by a new generation. The old files stay as long as a process has
//! them open, and count too.

/// Beside a small budget, files may have this much more: a batch of writes and LMDB's own pages.
const SLACK: u64 = 8 << 20;

/// A budget in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(pub(super) u64);

impl Budget {
    /// The bytes of the data file beyond which a new generation takes its place. `besides`: the bytes of earlier
    /// generations that are still in use. Then this one gets half of what is left, so that another one has room too.
    pub(super) fn of_file(&self, besides: u64) -> u64 {
        match besides {
            0 => self.0 + (self.0 / 4).max(SLACK),
            _ => self.most().saturating_sub(besides) / 2,
        }
    }

    /// The bytes of entries that are kept.
    pub(super) fn of_entries(&self, besides: u64) -> u64 {
        let file = self.of_file(besides);
        self.0.min(file - (file / 5).max(SLACK.min(file / 2)))
    }

    /// Nothing is stored that would take all files together beyond this.
    pub(super) fn most(&self) -> u64 {
        (2 * self.0).max(self.0 + 3 * SLACK)
    }
}

#[cfg(test)]
mod tests;
