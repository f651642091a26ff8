//! Tries the interleavings of threads where a lost wake-up would leave somebody waiting for ever: the queue before the
//! gate, the slot of a queued result, and the calls of those who wait. The files are the crate's own, built with loom's
//! locks and atomics; around them, what they speak to is as simple as it can be.

#![allow(dead_code, unreachable_pub)]

#[path = "../../../src/cache/calls.rs"]
mod calls;
mod env;
#[path = "../../../src/error.rs"]
mod error;
#[path = "../../../src/cache/lane.rs"]
mod lane;
mod models;
#[path = "../../../src/cache/pending.rs"]
mod pending;
mod sync;

mod gate {
    pub use crate::env::Held;
}

mod keeper {
    pub use crate::env::Bell;
}

mod record {
    #[derive(Clone, Copy, Debug)]
    pub struct Key {
        pub hash: [u8; 16],
        pub echo: u64,
    }
}

fn main() {
    models::all();
}
