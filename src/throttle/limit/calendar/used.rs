//! What is used of the open window and of those after it, in little room.

/// How many windows a debt can fill.
const MOST_DEBT: u32 = 1_000;

/// Runs of windows that are kept; beyond, neighbours become one.
pub(super) const MOST_RUNS: usize = 32;

/// How much of each window is used, as runs of equal ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Used(Vec<Run>);

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) windows: u32,
    pub(super) used: u32,
}

impl Used {
    pub(super) fn runs(&self) -> &[Run] {
        &self.0
    }

    /// Windows up to the last that is used.
    pub(super) fn len(&self) -> u32 {
        self.0.iter().fold(0, |sum, run| sum.saturating_add(run.windows))
    }

    pub(super) fn of(&self, window: u32) -> u32 {
        let mut end = 0_u32;
        let holds = |run: &&Run| {
            end = end.saturating_add(run.windows);
            window < end
        };
        self.0.iter().find(holds).map_or(0, |run| run.used)
    }

    /// The first window from `from` on of which at most `most` is used.
    pub(super) fn first_with(&self, most: u32, from: u32) -> u32 {
        let mut end = 0_u32;
        for run in &self.0 {
            let start = end;
            end = end.saturating_add(run.windows);
            if from < end && run.used <= most {
                return from.max(start);
            }
        }
        from.max(end)
    }

    pub(super) fn push(&mut self, windows: u32, used: u32) {
        match self.0.last_mut() {
            _ if windows == 0 => {}
            Some(last) if last.used == used => last.windows = last.windows.saturating_add(windows),
            _ => self.0.push(Run { windows, used }),
        }
    }

    pub(super) fn set(&mut self, window: u32, used: u32) {
        let mut at = 0_u32;
        let mut new = Used(Vec::with_capacity(self.0.len() + 2));
        for run in &self.0 {
            match window.checked_sub(at) {
                Some(before) if before < run.windows => {
                    new.push(before, run.used);
                    new.push(1, used);
                    new.push(run.windows - before - 1, run.used);
                }
                _ => new.push(run.windows, run.used),
            }
            at = at.saturating_add(run.windows);
        }
        if window >= at {
            new.push(window - at, 0);
            new.push(1, used);
        }
        new.tidy();
        *self = new;
    }

    /// Takes what there is room for from each window in turn, and forgets what would go beyond [`MOST_DEBT`] windows.
    pub(super) fn fill(&mut self, mut units: u32, count: u32) {
        let mut new = Used::default();
        let (mut at, rest) = (0_u32, Run { windows: MOST_DEBT, used: 0 });
        for run in self.0.iter().copied().chain([rest]) {
            let room = count.saturating_sub(run.used);
            let most = run.windows.min(MOST_DEBT.saturating_sub(at));
            let full = units.checked_div(room).unwrap_or(0).min(most);
            units -= full * room;
            // Less than the room, unless the windows have run out.
            let part = if full < most { units.min(room) } else { 0 };
            units -= part;
            let parts = u32::from(part > 0);
            new.push(full, run.used + room);
            new.push(parts, run.used + part);
            new.push(run.windows - full - parts, run.used);
            at = at.saturating_add(run.windows);
        }
        new.tidy();
        *self = new;
    }

    pub(super) fn drop_first(&mut self, mut windows: u32) {
        for run in &mut self.0 {
            let gone = run.windows.min(windows);
            run.windows -= gone;
            windows -= gone;
        }
        self.0.retain(|run| run.windows > 0);
    }

    pub(super) fn keep_first(&mut self, mut windows: u32) {
        for run in &mut self.0 {
            run.windows = run.windows.min(windows);
            windows -= run.windows;
        }
        self.0.retain(|run| run.windows > 0);
        self.tidy();
    }

    /// Forgets what is as good as fresh, and joins runs until there are no more than [`MOST_RUNS`].
    pub(super) fn tidy(&mut self) {
        while self.0.last().is_some_and(|run| run.used == 0) {
            self.0.pop();
        }
        while self.0.len() > MOST_RUNS {
            // The two that differ least, not the open window's; the greater use counts, so that nothing comes back.
            let differ = |&right: &usize| self.0[right].used.abs_diff(self.0[right - 1].used);
            let Some(right) = (2..self.0.len()).min_by_key(differ) else { break };
            let run = self.0.remove(right);
            let left = &mut self.0[right - 1];
            *left = Run { windows: left.windows.saturating_add(run.windows), used: left.used.max(run.used) };
        }
    }
}
