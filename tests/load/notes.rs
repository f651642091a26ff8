//! What happened to answers and budgets, and what failed, as each process wrote it down: one line a note, in a file of its
//! own. Locks have a [history](crate::history) already; the times here are of the same clock.

use crate::history::now;
use serde::{Deserialize, Serialize};
use tower_floodgate::Error;

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Why {
    Busy,
    Damaged,
    Full,
    /// The operating system refused.
    Io(String),
    /// A layer went by its failure rule, and does not say why.
    Unknown,
    Other(String),
}

impl From<&Error> for Why {
    fn from(error: &Error) -> Why {
        match error {
            Error::Busy => Why::Busy,
            Error::Damaged | Error::DamagedLock { .. } => Why::Damaged,
            Error::Full => Why::Full,
            Error::Io(error) => Why::Io(error.to_string()),
            other => Why::Other(other.to_string()),
        }
    }
}

/// Who computed or inserted a value. Its birth is before that began.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) process: u32,
    pub(crate) number: u64,
    pub(crate) is_inserted: bool,
    pub(crate) born: u64,
}

/// A name of an answer: the scope, and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Page {
    pub(crate) scope: usize,
    pub(crate) number: usize,
}

/// What a purge covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cover {
    Scope(usize),
    Tag(usize),
    Tens { scope: usize, tens: usize },
    Name(Page),
}

impl Cover {
    pub(crate) fn has(&self, page: Page) -> bool {
        match *self {
            Cover::Scope(scope) => page.scope == scope,
            Cover::Tag(tag) => page.tag() == tag,
            Cover::Tens { scope, tens } => page.scope == scope && page.number / 10 == tens,
            Cover::Name(name) => page == name,
        }
    }
}

impl Page {
    pub(crate) const TAGS: usize = 5;

    pub(crate) fn name(&self) -> String {
        format!("page-{:02}", self.number)
    }

    pub(crate) fn tag(&self) -> usize {
        (self.number + self.scope) % Page::TAGS
    }
}

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Note {
    Failed {
        what: String,
        why: Why,
        from: u64,
        to: u64,
    },
    /// What was read is not what was stored.
    Garbled {
        what: String,
        at: u64,
    },
    /// A read that began at that time found this.
    Read {
        page: Page,
        origin: Origin,
        from: u64,
    },
    /// What this process inserted is committed.
    Inserted {
        number: u64,
        at: u64,
    },
    Purged {
        cover: Cover,
        asked: u64,
        done: u64,
    },
    /// So many of LMDB's descriptors cannot write any more.
    Broken {
        descriptors: usize,
    },
}

impl Note {
    pub(crate) fn failed(what: impl Into<String>, why: Why, from: u64) -> Note {
        Note::Failed { what: what.into(), why, from, to: now() }
    }
}
