//! A limit and what is left of it, by whatever algorithm.

use super::{
    algorithm::{Algorithm, Moment, Slot, Spent},
    calendar::CalendarWindow,
    rate::Rate,
    sliding::SlidingWindow,
    text::ParseLimitError,
};
use crate::decision::Quota;
use std::{fmt, str::FromStr};

/// The list of algorithms: to add one, write its file and add it here, with a number that no other has had.
macro_rules! for_each_algorithm {
    ($mac:ident) => {
        $mac! { 1 Rate, 2 SlidingWindow, 3 CalendarWindow }
    };
}
pub(super) use for_each_algorithm;

macro_rules! budgets {
    ($($kind:literal $Algorithm:ident),+ $(,)?) => {
        /// How a limit counts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub(in crate::throttle) enum Rule {
            $($Algorithm($Algorithm)),+
        }

        /// What was stored of a budget, by whatever limit.
        #[derive(Clone, Debug)]
        pub(in crate::throttle) enum Stored {
            $($Algorithm(<$Algorithm as Algorithm>::State)),+
        }

        impl Stored {
            /// Takes the next budget off the front of a cell.
            #[inline]
            pub(in crate::throttle) fn read(bytes: &mut &[u8]) -> Option<Stored> {
                let (&[kind, low, high], rest) = bytes.split_first_chunk()?;
                let (state, rest) = rest.split_at_checked(u16::from_le_bytes([low, high]).into())?;
                *bytes = rest;
                match kind {
                    $($kind => <$Algorithm as Algorithm>::decode(state).map(Stored::$Algorithm),)+
                    _ => None,
                }
            }

            fn spent(&self, at: Moment) -> Spent {
                match self {
                    $(Stored::$Algorithm(state) => <$Algorithm as Algorithm>::spent(state, at)),+
                }
            }

            /// What another limit takes over. No request waits over a restart. One that did had found all spent.
            fn left_behind(&self, at: Moment, rebooted: bool) -> Spent {
                let spent = self.spent(at);
                match rebooted && spent.last_turn > at.now {
                    true => Spent { share: Spent::WHOLE, last_turn: 0 },
                    false => spent,
                }
            }
        }

        /// A limit and what is left of it.
        #[derive(Clone, Debug, PartialEq)]
        pub(in crate::throttle) enum Budget {
            $($Algorithm($Algorithm, <$Algorithm as Algorithm>::State)),+
        }

        impl Rule {
            /// The budget that this very limit has stored, as it is now.
            #[inline]
            pub(in crate::throttle) fn reopen(&self, stored: &[u8], at: Moment) -> Option<Budget> {
                let (&[kind, _, _], state) = stored.split_first_chunk()?;
                match self {
                    $(Rule::$Algorithm(rule) => {
                        let mut state = <$Algorithm as Algorithm>::decode(state).filter(|_| kind == $kind)?;
                        if !rule.made(&state) {
                            return None;
                        }
                        rule.advance(&mut state, at, false);
                        Some(Budget::$Algorithm(*rule, state))
                    })+
                }
            }

            pub(in crate::throttle) fn reads_wall(&self) -> bool {
                match self {
                    $(Rule::$Algorithm(_) => <$Algorithm as Algorithm>::READS_WALL),+
                }
            }

            pub(in crate::throttle) fn made(&self, stored: &Stored) -> bool {
                match (self, stored) {
                    $((Rule::$Algorithm(rule), Stored::$Algorithm(state)) => rule.made(state),)+
                    _ => false,
                }
            }

            /// The budget as it is now, and whether it is what was stored rather than made out of that.
            #[inline]
            pub(in crate::throttle) fn open(&self, stored: Option<Stored>, at: Moment, rebooted: bool) -> (Budget, bool) {
                match (self, stored) {
                    $((Rule::$Algorithm(rule), Some(Stored::$Algorithm(mut state))) if rule.made(&state) => {
                        rule.advance(&mut state, at, rebooted);
                        (Budget::$Algorithm(*rule, state), true)
                    })+
                    $((Rule::$Algorithm(rule), Some(other)) => {
                        (Budget::$Algorithm(*rule, rule.with_spent(other.left_behind(at, rebooted), at)), false)
                    })+
                    $((Rule::$Algorithm(rule), None) => (Budget::$Algorithm(*rule, rule.fresh(at)), true)),+
                }
            }
        }

        impl Budget {
            pub(in crate::throttle) fn earliest(&self, from: u64, cost: u32) -> Option<u64> {
                match self {
                    $(Budget::$Algorithm(rule, state) => rule.earliest(state, from, cost)),+
                }
            }

            pub(in crate::throttle) fn take(&mut self, turn: u64, cost: u32) -> Slot {
                match self {
                    $(Budget::$Algorithm(rule, state) => rule.take(state, turn, cost)),+
                }
            }

            pub(in crate::throttle) fn free(&mut self, slot: Slot, units: u32, now: u64) {
                match self {
                    $(Budget::$Algorithm(rule, state) => rule.free(state, slot, units, now)),+
                }
            }

            pub(in crate::throttle) fn charge(&mut self, units: u32, now: u64) {
                match self {
                    $(Budget::$Algorithm(rule, state) => rule.charge(state, units, now)),+
                }
            }

            pub(in crate::throttle) fn quota(&self, now: u64) -> Quota {
                match self {
                    $(Budget::$Algorithm(rule, state) => rule.quota(state, now)),+
                }
            }

            pub(in crate::throttle) fn ends(&self) -> u64 {
                match self {
                    $(Budget::$Algorithm(rule, state) => rule.ends(state)),+
                }
            }

            pub(in crate::throttle) fn last_turn(&self, at: Moment) -> u64 {
                match self {
                    $(Budget::$Algorithm(_, state) => <$Algorithm as Algorithm>::spent(state, at).last_turn),+
                }
            }

            pub(in crate::throttle) fn write(&self, out: &mut Vec<u8>) {
                let at = out.len();
                match self {
                    $(Budget::$Algorithm(_, state) => {
                        out.extend_from_slice(&[$kind, 0, 0]);
                        <$Algorithm as Algorithm>::encode(state, out);
                    })+
                }
                let len = u16::try_from(out.len() - at - 3).unwrap_or(u16::MAX);
                out[at + 1..at + 3].copy_from_slice(&len.to_le_bytes());
            }
        }

        impl fmt::Display for Rule {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Rule::$Algorithm(rule) => rule.fmt(f)),+
                }
            }
        }

        impl FromStr for Rule {
            type Err = ParseLimitError;

            fn from_str(text: &str) -> Result<Rule, ParseLimitError> {
                let mut wrong = None::<ParseLimitError>;
                $(
                    match text.parse::<$Algorithm>() {
                        Ok(rule) => return Ok(Rule::$Algorithm(rule)),
                        // What the text is most like says what is wrong with it.
                        Err(error) if wrong.is_none() || !error.is_other_kind() => wrong = Some(error),
                        Err(_) => {}
                    }
                )+
                Err(wrong.unwrap_or_else(|| ParseLimitError::new(text, "there is no such kind")))
            }
        }
    };
}

for_each_algorithm!(budgets);
