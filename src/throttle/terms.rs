//! What a decision goes by: the terms of a name, and what one request asks for.

use super::{cell::Block, limit::limits::Limits};
use std::{sync::Arc, time::Duration};

/// The longest queue that can be asked for.
pub(super) const MOST_WAITING: usize = 10_000;

/// How a name is throttled.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) limits: Limits,
    /// How many may wait at once.
    pub(super) queue: usize,
    pub(super) block: Option<Block>,
    /// Digest of the cell's tag, 0 for none.
    pub(super) tag: u64,
    /// How long the cell is kept at least, in ns.
    pub(super) retention: u64,
    /// Whether requests go to a foreign server, whose answers are heeded.
    pub(super) learns: bool,
    /// The longest span that its answers can ask for.
    pub(super) longest: Duration,
}

/// The longest span that is believed unless the user says otherwise: one hour, GitHub's window.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What is to be decided.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) terms: Arc<Terms>,
    pub(super) cost: u32,
    pub(super) patience: Duration,
}

impl Ask {
    pub(super) fn new(limits: Limits) -> Ask {
        let (queue, longest) = (MOST_WAITING, LONGEST);
        let terms = Terms { limits, queue, block: None, tag: 0, retention: 0, learns: false, longest };
        Ask { terms: Arc::new(terms), cost: 1, patience: Duration::ZERO }
    }

    pub(super) fn terms_mut(&mut self) -> &mut Terms {
        Arc::make_mut(&mut self.terms)
    }

    /// The same by other limits.
    pub(super) fn by(&self, limits: Limits) -> Ask {
        Ask { terms: Arc::new(Terms { limits, ..(*self.terms).clone() }), ..*self }
    }
}
