//! Times as people and Kubernetes write them.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: u64 = 24 * 3600;

/// `time` in UTC and whole seconds: `2026-11-25T21:48:53Z` (RFC 3339).
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    rfc3339_of(unix(time))
}

/// [`rfc3339`] of a time that [`unix`] gave, or of any other number.
#[must_use]
pub fn rfc3339_of(seconds: u64) -> String {
    let (year, month, day) = date(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Seconds since 1970; 0 before.
#[must_use]
pub fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Year, month and day of a day since 1970, in the Gregorian calendar: 400 years have 146,097 days, and a year that begins in
/// March has its leap day at its end.
const fn date(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + (month <= 2) as u64, month, day)
}

/// Seconds since the time that [`rfc3339`] wrote. None: it is no such time.
#[must_use]
pub fn age(text: &str, now: SystemTime) -> Option<u64> {
    Some(unix(now).saturating_sub(parse(text)?))
}

/// Seconds until the time that [`rfc3339`] wrote. None: it is past, or no such time.
#[must_use]
pub fn left(text: &str, now: SystemTime) -> Option<u64> {
    parse(text)?.checked_sub(unix(now)).filter(|left| *left > 0)
}

/// The way back from [`rfc3339_of`].
fn parse(text: &str) -> Option<u64> {
    let number = |range: std::ops::Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 || !text.ends_with('Z') {
        return None;
    }
    let (year, from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * from_march + 2) / 5 + day - 1;
    Some(days.checked_sub(719_468)? * DAY + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn known_days_are_right() {
        let at = |seconds: u64| rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
        // As somebody may write into a store.
        assert_eq!(rfc3339_of(253_402_300_800), "10000-01-01T00:00:00Z");
        assert!(rfc3339_of(u64::MAX).ends_with("Z"));
    }

    #[test]
    fn an_age_is_the_way_back() {
        let now = UNIX_EPOCH + Duration::from_secs(4_200_000_000);
        for seconds in (0..4_200_000_000).step_by(86_399 * 97) {
            let text = rfc3339(UNIX_EPOCH + Duration::from_secs(seconds));
            assert_eq!(age(&text, now), Some(4_200_000_000 - seconds), "{text}");
        }
        let (past, future) = (rfc3339_of(unix(now) - 7), rfc3339_of(unix(now) + 7));
        assert_eq!((left(&past, now), left(&future, now), age(&future, now)), (None, Some(7), Some(0)));
        for wrong in ["", "yesterday", "2026-13-01T00:00:00Z", "2026-11-25T21:48:53+01:00"] {
            assert_eq!(age(wrong, now), None, "{wrong}");
        }
    }
}
