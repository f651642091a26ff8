//! Locks under torture: processes that are killed and stopped while they acquire, wait, hold and release. What happened is
//! written down by each, and checked afterwards.
#![allow(dead_code)]

mod checker;
mod history;
