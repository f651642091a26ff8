//! Three tower layers over one LMDB-backed cache.
#[cfg(not(target_os = "linux"))]
compile_error!("tower-floodgate needs Linux: robust process-shared mutexes, CLOCK_BOOTTIME and flock");

pub mod answer;
pub mod barrier;
pub mod body;
pub mod cache;
pub mod lock;
pub mod name;
mod rejection;
pub mod stampede;
pub mod throttle;
pub mod time;

pub use answer::{Answer, Fail, Http};
pub use barrier::BarrierLayer;
pub use body::Body;
pub use cache::{Builder, Cache, Durability, Scope, Stats};
pub use lock::{Lock, LockFactory, RLock, Semaphore};
pub use name::Name;
pub use rejection::{Error, Reason, Rejection};
pub use stampede::StampedeCacheLayer;
pub use throttle::ThrottleLayer;
