//! What is limited: one limit or several, each by one of three algorithms. Pure functions over a small state.

pub(super) mod algorithm;
pub(super) mod budget;
pub(super) mod calendar;
pub(super) mod limits;
pub(super) mod rate;
pub(super) mod sliding;
pub(super) mod text;
