//! A cache's directory: its layout and generations, the lock files that tell who uses it, and what of it this process has
//! open.

pub(crate) mod first_number;
pub(crate) mod layout;
mod lock_files;
pub(crate) mod registry;
mod user_socket;
