//! x
mod rate;
pub use rate::{Quota, Rate};
