//! The operating system: calls that no safe wrapper offers, forks, boots and clocks, file systems, their blocks and locks,
//! and the locks that a model checker replaces.

pub(crate) mod blocks;
pub(crate) mod boot;
pub(crate) mod file_lock;
pub(crate) mod file_system;
pub(crate) mod fork;
pub(crate) mod mapped;
pub(crate) mod sync;
pub(crate) mod syscalls;
