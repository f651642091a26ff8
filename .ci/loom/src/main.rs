//! Tries the interleavings of threads where a lost wake-up would leave a caller waiting for ever: the write queue
//! before the gate, the slot of a queued result, and the wake-ups of waiters. The files are the crate's own, built with
//! loom's locks and atomics. The modules around them, which they call, are as simple as can be.

#![allow(dead_code, unreachable_pub)]

#[path = "../../../src/store/commit/applying.rs"]
mod applying;
#[path = "../../../src/store/commit/backlog.rs"]
mod backlog;
mod env;
#[path = "../../../src/error.rs"]
mod error;
mod models;
#[path = "../../../src/store/commit/operation.rs"]
mod operation;
#[path = "../../../src/store/commit/pending.rs"]
mod pending;
#[path = "../../../src/store/commit/standstill.rs"]
mod standstill;
mod sync;
#[path = "../../../src/store/peers/wake_ups.rs"]
mod wake_ups;
#[path = "../../../src/store/commit/write_queue.rs"]
mod write_queue;

mod worker {
    pub use crate::env::Worker;
}

/// The modules of the engine, under the paths by which these files import them.
mod store {
    pub mod lmdb {
        pub mod env {
            pub use crate::env::Env;
        }
        pub mod gate {
            pub use crate::env::Held;
        }
        pub mod transaction {
            pub use crate::env::Txn;
        }
    }

    pub mod os {
        pub(crate) use crate::sync;
    }

    pub mod record {
        pub mod key {
            #[derive(Clone, Copy, Debug)]
            pub struct Key {
                pub hash: [u8; 16],
                pub echo: u64,
            }
        }
    }
}

fn main() {
    models::all();
}
