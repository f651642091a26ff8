//! What the tests of the engine share: counted numbers, and child processes.

#![allow(unused_imports)] // each file uses a part of it

mod counts;
mod processes;

pub(crate) use counts::*;
pub(crate) use processes::*;
