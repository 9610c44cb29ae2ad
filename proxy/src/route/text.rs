//! String matchers (`envoy.type.matcher.v3.StringMatcher`), over bytes: header values need not be UTF-8.

use std::fmt;

use super::re2::Pattern;

/// A compiled `StringMatcher`.
#[derive(Clone)]
pub enum StringMatch {
    /// The text itself.
    Text {
        /// Where the text must stand.
        place: Place,
        /// What to look for.
        text: Box<[u8]>,
        /// `ignore_case`: ASCII letters compare equal in either case.
        ignore_case: bool,
    },
    /// `safe_regex`, against the whole value.
    Regex(Pattern),
}

/// Where a text must stand in the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is the whole value.
    Exact,
    /// The value begins with it.
    Prefix,
    /// The value ends with it.
    Suffix,
    /// The value contains it.
    Contains,
}

impl StringMatch {
    /// A matcher of plain text.
    #[must_use]
    pub fn text(place: Place, text: &str, ignore_case: bool) -> Self {
        Self::Text { place, text: text.as_bytes().into(), ignore_case }
    }

    /// Whether `value` matches.
    #[must_use]
    pub fn is_match(&self, value: &[u8]) -> bool {
        let (place, text, ignore_case) = match self {
            Self::Text { place, text, ignore_case } => (*place, &**text, *ignore_case),
            Self::Regex(pattern) => return pattern.is_match(value),
        };
        let same = |part: &[u8]| if ignore_case { part.eq_ignore_ascii_case(text) } else { part == text };
        match place {
            Place::Exact => same(value),
            Place::Prefix => value.get(..text.len()).is_some_and(same),
            Place::Suffix => value.len().checked_sub(text.len()).is_some_and(|from| same(&value[from..])),
            Place::Contains if !ignore_case => memchr::memmem::find(value, text).is_some(),
            Place::Contains => text.is_empty() || value.windows(text.len()).any(same),
        }
    }
}

impl fmt::Debug for StringMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { place, text, ignore_case } => {
                let case = if *ignore_case { " (any case)" } else { "" };
                write!(f, "{place:?} {:?}{case}", String::from_utf8_lossy(text))
            }
            Self::Regex(pattern) => pattern.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_place_and_case() {
        let table: &[(Place, &str, bool, &str, bool)] = &[
            (Place::Exact, "abc", false, "abc", true),
            (Place::Exact, "abc", false, "ABC", false),
            (Place::Exact, "abc", true, "ABC", true),
            (Place::Exact, "abc", false, "abcd", false),
            (Place::Exact, "", false, "", true),
            (Place::Exact, "", false, "a", false),
            (Place::Prefix, "abc", false, "abc.xyz", true),
            (Place::Prefix, "abc", false, "ab", false),
            (Place::Prefix, "aBc", true, "AbC.xyz", true),
            (Place::Suffix, "abc", false, "xyz.abc", true),
            (Place::Suffix, "abc", false, "xyz.abcd", false),
            (Place::Suffix, "abc", false, "bc", false),
            (Place::Suffix, "abc", true, "xyz.ABC", true),
            (Place::Contains, "abc", false, "xyz.abc.def", true),
            (Place::Contains, "abc", false, "xyz.ab.c", false),
            (Place::Contains, "abc", true, "xyz.aBC.def", true),
            (Place::Contains, "abc", true, "ab", false),
        ];
        for (place, text, ignore_case, value, want) in table {
            let m = StringMatch::text(*place, text, *ignore_case);
            assert_eq!(m.is_match(value.as_bytes()), *want, "{m:?} on {value}");
        }
    }

    proptest! {
        #[test]
        fn ignoring_case_is_the_same_as_lowering_both(text in "[a-cA-C]{1,3}", value in "[a-cA-C]{0,6}") {
            for place in [Place::Exact, Place::Prefix, Place::Suffix, Place::Contains] {
                let any = StringMatch::text(place, &text, true);
                let lower = StringMatch::text(place, &text.to_ascii_lowercase(), false);
                prop_assert_eq!(any.is_match(value.as_bytes()), lower.is_match(value.to_ascii_lowercase().as_bytes()));
            }
        }
    }
}
