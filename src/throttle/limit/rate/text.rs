//! How a rate is written.

use super::{Invalid, Rate};
use crate::throttle::limit::text::{ParseLimitError, Span, duration, number};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{fmt, str::FromStr};

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.count, Span(self.per))?;
        if self.burst != self.count {
            write!(f, " burst {}", self.burst)?;
        }
        Ok(())
    }
}

impl FromStr for Rate {
    type Err = ParseLimitError;

    fn from_str(text: &str) -> Result<Self, ParseLimitError> {
        let shape = "there is no `/` between a count and a time";
        let (count, rest) = text.split_once('/').ok_or_else(|| ParseLimitError::other_kind(text, shape))?;
        let fail = |reason: &'static str| ParseLimitError::new(text, reason);
        let invalid = |invalid: Invalid| ParseLimitError::new(text, invalid.to_string());
        let (per, burst) = match rest.split_once("burst") {
            Some((per, burst)) => {
                let most = "after `burst` there must be a whole number up to 4294967295";
                (per, Some(number(burst).ok_or_else(|| fail(most))?))
            }
            None => (rest, None),
        };
        let count =
            number(count).ok_or_else(|| fail("before the `/` there must be a whole number up to 4294967295"))?;
        let units = "after the `/` there must be a whole number with one of the units ns, us, ms, s, m, h and d";
        let rate = Rate::checked(count, duration(per).ok_or_else(|| fail(units))?).map_err(invalid)?;
        burst.map_or(Ok(rate), |burst| rate.checked_burst(burst).map_err(invalid))
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a rate like \"100/60s\" or \"100/1m burst 20\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}
