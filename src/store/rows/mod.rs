//! The rows of `state/`: tables, the room in them, sequence numbers, the waiting line, holders, `update(key, f)`, recent
//! refusals and listings.

mod damage;
pub(crate) mod holders;
pub(crate) mod listing;
mod recent_refusals;
pub(crate) mod room;
pub(crate) mod sequence;
pub(crate) mod state;
pub(crate) mod tables;
pub(crate) mod update;
pub(crate) mod waiting_line;
