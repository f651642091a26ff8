//! A cache's directory: its layout and generations, the lock files of its users, and the registry of this process's
//! openings.

mod access;
pub(crate) mod first_number;
pub(crate) mod layout;
mod lock_files;
pub(crate) mod registry;
pub(crate) mod temporary;
mod user_socket;
