//! Shares.

use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// A percentage from 0 to 100, to a ten-thousandth of it: `50`, `0.5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent {
    millionths: u32,
}

impl Percent {
    /// Everything.
    pub const ALL: Self = Self { millionths: 1_000_000 };

    /// A whole percentage of at most 100.
    #[must_use]
    pub const fn whole(percent: u8) -> Self {
        Self { millionths: percent as u32 * 10_000 }
    }

    /// None when it is less than 0 or more than 100.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds")]
    fn new(percent: f64) -> Option<Self> {
        let millionths = (percent * 10_000.0).round() as u32;
        (0.0..=100.0).contains(&percent).then_some(Self { millionths })
    }

    /// So many in a million.
    #[must_use]
    pub const fn millionths(self) -> u32 {
        self.millionths
    }

    /// So many in a hundred.
    #[must_use]
    pub fn value(self) -> f64 {
        f64::from(self.millionths) / 10_000.0
    }

    /// Whether it is nothing at all.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.millionths == 0
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Percent;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a percentage from 0 to 100")
            }
            fn visit_i128<E: Error>(self, value: i128) -> Result<Percent, E> {
                let whole = u8::try_from(value).ok().filter(|percent| *percent <= 100).map(Percent::whole);
                whole.ok_or_else(|| E::custom(format_args!("{value} is no percentage from 0 to 100")))
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Percent, E> {
                Percent::new(value)
                    .ok_or_else(|| E::custom(format_args!("{value} is no percentage from 0 to 100")))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

/// Statuses of HTTP: `503`, or `500-599`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statuses(pub RangeInclusive<u16>);

impl Statuses {
    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| text.parse().ok().filter(|status| (100..600).contains(status));
        let range = status(first)?..=status(last)?;
        (!range.is_empty()).then_some(Self(range))
    }
}

impl<'de> Deserialize<'de> for Statuses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format_args!("{text:?} is no status: write 503, or 500-599 for all between"))
        })
    }
}

crate::schema::written!(Percent, "Percent", { "type": "number", "minimum": 0, "maximum": 100 });
crate::schema::written!(Statuses, "Statuses", { "x-kubernetes-int-or-string": true });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_to_a_millionth() {
        for (percent, millionths) in [
            (0.0, Some(0)),
            (0.0001, Some(1)),
            (12.5, Some(125_000)),
            (100.0, Some(1_000_000)),
            (100.001, None),
            (-1.0, None),
            (f64::NAN, None),
        ] {
            assert_eq!(Percent::new(percent).map(Percent::millionths), millionths, "{percent}");
        }
        assert_eq!(Percent::whole(50).value().to_string(), "50");
    }

    #[test]
    fn statuses_are_one_or_a_range() {
        for (text, range) in [
            ("503", Some(503..=503)),
            ("500-599", Some(500..=599)),
            ("599-500", None),
            ("600", None),
            ("5xx", None),
            ("", None),
        ] {
            assert_eq!(Statuses::parse(text).map(|statuses| statuses.0), range, "{text}");
        }
    }
}
