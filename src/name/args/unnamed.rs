//! Why a request has no name.

use serde::ser;
use std::fmt;

/// The longest name, in bytes.
pub(super) const MAX_LEN: usize = 16 << 20;

/// The deepest nesting of values.
pub(super) const MAX_DEPTH: usize = 128;

/// Why a request has no name.
#[derive(Debug)]
pub(super) enum Unnamed {
    TooDeep,
    TooLong,
    /// A `Serialize` that broke the rules of `serde`.
    Malformed,
    Failed(String),
}

impl fmt::Display for Unnamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooDeep => write!(f, "nested more than {MAX_DEPTH} deep"),
            Self::TooLong => write!(f, "longer than {MAX_LEN} bytes"),
            Self::Malformed => f.write_str("a map whose keys and values do not pair up"),
            Self::Failed(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Unnamed {}

impl ser::Error for Unnamed {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::Failed(message.to_string())
    }
}
