//! The engine: the files on disk, and how processes share them. It knows LMDB; it names no HTTP, no tower and no layer.
//!
//! Each folder and file imports only from those before it in this order: `os`; `record`; `directory` and `lmdb`;
//! `commit`; `entries`, `events`, `peers` and `rows`; `singleflight`; `shared`; `closing` and
//! `housekeeping`; `open`.

mod closing;
mod commit;
mod directory;
mod entries;
mod events;
mod housekeeping;
mod lmdb;
mod open;
mod os;
mod peers;
mod record;
mod rows;
mod shared;
mod singleflight;

pub(crate) use {
    closing::Opened,
    commit::{
        backlog::Times as QueueTimes,
        pending::{Pending, Slot, block_on, block_on_until, sleep_on_thread},
    },
    directory::layout::{Wanted, is_state_size},
    entries::{
        editing::{Begun, Edit, Moment},
        entry::{Entry, Life, TAGS_MAX},
        forgetting::LONGEST_FLIGHT,
        memory::memory_tier::Weight,
        purge_rule::{PREFIX_MAX, Subject},
        purges::Purged,
        shard::Hit,
    },
    events::{Event, Events},
    lmdb::transaction::Table,
    open::Settings,
    peers::{
        holdings::{Holding, Renew},
        listener::Reached,
        wake_ups::{Registration, WakeUps, Watch},
    },
    record::{
        key::{Key, Kind, ScopeId, scope_mark},
        row::{Found, u64_at},
    },
    rows::{
        holders::{Due, HolderId, HolderRow, HolderStep},
        listing::Listed,
        tables::{CELLS, Change, LOCKS, PAYLOAD_MAX},
        update::RowTransition,
        waiting_line::{LineTransition, Step, Waiter, WaitingLine},
    },
    shared::Shared,
    singleflight::{Flight, Lead, Outcome, Progress, Role, SharedValue},
};
#[cfg(test)]
pub(crate) use {
    commit::write_queue::WriteQueue,
    lmdb::{env::Env, gate::Gate, transaction::Txn},
    record::row::Row,
    rows::{state::State, waiting_line::Rows},
};
