//! What is limited: one limit or several, by any of the algorithms.

use super::{
    budget::{Rule, for_each_algorithm},
    calendar::CalendarWindow,
    rate::Rate,
    sliding::SlidingWindow,
    text::ParseLimitError,
};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Error as _, SeqAccess, Visitor},
};
use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    str::FromStr,
    sync::Arc,
};

/// The most limits that one name can have.
pub(in crate::throttle) const MOST: usize = 8;

/// One limit of a throttle: a [`Rate`], a [`SlidingWindow`] or a [`CalendarWindow`], with or without a name of its own.
///
/// Displays as its rule does, with its name: `100/60s`, `100/60s sliding`, `1000/utc-day as plan`. It is parsed from that,
/// and by serde from such a string.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limit {
    pub(in crate::throttle) rule: Rule,
    pub(in crate::throttle) name: Option<Arc<str>>,
}

impl Limit {
    /// A name that headers, problem details and logs call it by, in place of the scope's. In text it follows the limit:
    /// `100000/utc-month as plan`.
    ///
    /// # Panics
    ///
    /// If it is empty, or has a comma, a control character, or blanks around it: it could not be read from text.
    #[track_caller]
    pub fn named(mut self, name: &str) -> Limit {
        assert!(is_name(name), "{name:?} is no name for a limit: write some text without commas or blanks around it");
        self.name = Some(name.into());
        self
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name == name.trim() && !name.contains(|symbol: char| symbol == ',' || symbol.is_control())
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule.fmt(f)?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, " as {name}"))
    }
}

impl FromStr for Limit {
    type Err = ParseLimitError;

    fn from_str(text: &str) -> Result<Limit, ParseLimitError> {
        let (rule, name) = match text.split_once(" as ") {
            Some((rule, name)) => (rule, Some(name.trim())),
            None => (text, None),
        };
        if name.is_some_and(|name| !is_name(name)) {
            return Err(ParseLimitError::new(text, "after `as` there must be a name without commas"));
        }
        Ok(Limit { rule: rule.trim().parse()?, name: name.map(Into::into) })
    }
}

/// The limits of one name: one to eight, decided together, all or nothing.
///
/// ```
/// use tower_floodgate::throttle::{Limit, Limits, Rate};
///
/// let limits = Limits::from([Limit::from(Rate::per_second(10)), Limit::from(Rate::per_hour(1_000)).named("hourly")]);
/// assert_eq!(limits.to_string(), "10/1s, 1000/3600s as hourly");
/// assert_eq!("10/s, 1000/h as hourly".parse::<Limits>()?, limits);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    pub(in crate::throttle) first: Limit,
    others: Option<Arc<[Limit]>>,
}

impl Limits {
    /// One more limit, which must have room as well.
    ///
    /// # Panics
    ///
    /// If there are eight already.
    #[track_caller]
    pub fn and(self, limit: impl Into<Limit>) -> Limits {
        let more = limit.into();
        self.iter().cloned().chain([more]).collect::<Vec<_>>().into()
    }

    pub(in crate::throttle) fn iter(&self) -> impl Iterator<Item = &Limit> {
        std::iter::once(&self.first).chain(self.others())
    }

    /// Tells these limits from others, whatever they are called.
    pub(in crate::throttle) fn fingerprint(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        self.iter().for_each(|limit| limit.rule.hash(&mut hasher));
        hasher.finish() as u32
    }

    pub(in crate::throttle) fn others(&self) -> &[Limit] {
        self.others.as_deref().unwrap_or_default()
    }
}

impl From<Limit> for Limits {
    fn from(first: Limit) -> Limits {
        Limits { first, others: None }
    }
}

macro_rules! from_algorithms {
    ($($kind:literal $Algorithm:ident),+ $(,)?) => {$(
        impl From<$Algorithm> for Limit {
            fn from(rule: $Algorithm) -> Limit {
                Limit { rule: Rule::$Algorithm(rule), name: None }
            }
        }

        impl From<$Algorithm> for Limits {
            fn from(rule: $Algorithm) -> Limits {
                Limit::from(rule).into()
            }
        }
    )+};
}

for_each_algorithm!(from_algorithms);

impl<L: Into<Limit>> From<Vec<L>> for Limits {
    /// # Panics
    ///
    /// If there is none, or if there are more than eight.
    #[track_caller]
    fn from(limits: Vec<L>) -> Limits {
        let count = limits.len();
        assert!((1..=MOST).contains(&count), "a throttle takes 1 to {MOST} limits, not {count}");
        let mut limits = limits.into_iter().map(Into::into);
        let first = limits.next().expect("one at least");
        let others: Arc<[Limit]> = limits.collect();
        Limits { first, others: (!others.is_empty()).then_some(others) }
    }
}

impl<L: Into<Limit>, const N: usize> From<[L; N]> for Limits {
    /// # Panics
    ///
    /// If there is none, or if there are more than eight.
    #[track_caller]
    fn from(limits: [L; N]) -> Limits {
        Vec::from(limits).into()
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        self.others().iter().try_for_each(|limit| write!(f, ", {limit}"))
    }
}

impl FromStr for Limits {
    type Err = ParseLimitError;

    /// Limits are separated by commas.
    fn from_str(text: &str) -> Result<Limits, ParseLimitError> {
        let limits = text.split(',').map(str::parse).collect::<Result<Vec<Limit>, _>>()?;
        match limits.len() {
            ..=MOST => Ok(limits.into()),
            count => Err(ParseLimitError::new(text, format!("these are {count} limits, and {MOST} at most are taken"))),
        }
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        <std::borrow::Cow<'de, str>>::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Limits {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Limits {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Texts;

        impl<'de> Visitor<'de> for Texts {
            type Value = Limits;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("limits like `10/s, 1000/utc-day`, in one text or a list")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Limits, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Limits, A::Error> {
                let mut limits = Vec::new();
                while let Some(limit) = list.next_element::<Limit>()? {
                    limits.push(limit);
                    if limits.len() > MOST {
                        break;
                    }
                }
                match limits.len() {
                    1..=MOST => Ok(limits.into()),
                    count => Err(A::Error::invalid_length(count, &"1 to 8 limits")),
                }
            }
        }

        match from.is_human_readable() {
            true => from.deserialize_any(Texts),
            false => from.deserialize_str(Texts),
        }
    }
}
