//! Three tower layers over one LMDB-backed cache.
#[cfg(not(target_os = "linux"))]
compile_error!("tower-floodgate needs Linux: robust process-shared mutexes, CLOCK_BOOTTIME and flock");

pub mod cache;
pub mod name;
mod rejection;
pub mod throttle;
pub mod time;
pub use cache::{Builder, Cache, Durability, Scope, Stats};
pub use rejection::{Error, Reason, Rejection};
