//! Durations as the Gateway API writes them (GEP-2257): `1h30m`, `10s`, `250ms`.

use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

/// A duration in a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span(pub Duration);

impl Span {
    /// Reads one to four numbers of at most five digits with the units h, m, s, ms, each unit at most once and in this order.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];
        let (mut rest, mut total, mut next) = (text, 0, 0);
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.bytes().take_while(u8::is_ascii_lowercase).count();
            let (unit, tail) = tail.split_at(letters);
            let found = UNITS.iter().position(|(name, _)| *name == unit)?;
            if found < next || !(1..=5).contains(&digits) {
                return None;
            }
            total += number.parse::<u64>().ok()? * UNITS[found].1;
            (rest, next) = (tail, found + 1);
        }
        if text.is_empty() { None } else { Some(Self(Duration::from_millis(total))) }
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format_args!("{text:?} is no duration: write it as 10s, 250ms or 1h30m"))
        })
    }
}

// What [`Span::parse`] reads.
crate::schema::written!(Span, "Duration", { "type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_gep_2257() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("10s", Some(10_000)),
            ("250ms", Some(250)),
            ("1h30m", Some(5_400_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("1s1m", None),
            ("1s1s", None),
            ("100000s", None),
            ("1us", None),
        ] {
            assert_eq!(Span::parse(text).map(|s| s.0), millis.map(Duration::from_millis), "{text}");
        }
    }
}
