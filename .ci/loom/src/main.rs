//! Tries the interleavings of threads where a lost wake-up would leave somebody waiting for ever: the queue before the
//! gate, the slot of a queued result, and the wake-ups of those who wait. The files are the crate's own, built with loom's
//! locks and atomics; around them, what they speak to is as simple as it can be.

#![allow(dead_code, unreachable_pub)]

mod env;
#[path = "../../../src/error.rs"]
mod error;
mod models;
mod sync;

/// The rooms of the crate's engine, as far as they are needed.
mod store {
    pub mod commit {
        #[path = "../../../../../src/store/commit/pending.rs"]
        pub mod pending;
        #[path = "../../../../../src/store/commit/write_queue.rs"]
        pub mod write_queue;

        pub mod worker {
            pub use crate::env::Bell;
        }
    }

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
        pub use crate::sync;
    }

    pub mod peers {
        #[path = "../../../../../src/store/peers/wake_ups.rs"]
        pub mod wake_ups;
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
