//! `%START_TIME(…)%`: a subset of strftime, in UTC, with Envoy's `%s`, `%f`, `%3f` and the `%E3S` of its default.

use std::time::{SystemTime, UNIX_EPOCH};

/// A compiled time format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TimeFormat(Box<[Part]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    /// `%Y`.
    Year,
    /// `%C`, `%y`.
    Century,
    YearOfCentury,
    /// `%m`, `%b`, `%B`.
    Month,
    MonthShort,
    MonthLong,
    /// `%d`, `%e`, `%j`.
    Day,
    DayPadded,
    DayOfYear,
    /// `%a`, `%A`, `%u`, `%w`.
    WeekdayShort,
    WeekdayLong,
    WeekdayFromMonday,
    WeekdayFromSunday,
    /// `%H`, `%I`, `%p`, `%M`, `%S`.
    Hour,
    Hour12,
    AmPm,
    Minute,
    Second,
    /// `%s`.
    Epoch,
    /// `%f` with this many digits, 1 to 9.
    Fraction(u8),
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A time as RFC 3339 writes it, to the second.
pub(crate) fn rfc3339(at: SystemTime) -> String {
    text("%Y-%m-%dT%H:%M:%SZ", at)
}

/// The same, to the millisecond.
pub(crate) fn rfc3339_millis(at: SystemTime) -> String {
    text("", at)
}

fn text(format: &str, at: SystemTime) -> String {
    let mut out = Vec::new();
    if let Ok(format) = TimeFormat::parse(format) {
        format.render(at, &mut out);
    }
    String::from_utf8(out).unwrap_or_default()
}

impl TimeFormat {
    /// Compiles `format`; the empty one is ISO 8601 with milliseconds.
    pub(super) fn parse(format: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let format = if format.is_empty() { "%Y-%m-%dT%H:%M:%E3SZ" } else { format };
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            literal(&mut parts, &rest[..at]);
            rest = specifier(&mut parts, &rest[at + 1..])?;
        }
        literal(&mut parts, rest);
        Ok(Self(parts.into()))
    }

    /// Appends `at`, in UTC. A time before 1970 is written as 1970.
    pub(super) fn render(&self, at: SystemTime, out: &mut Vec<u8>) {
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let civil = Civil::new(since.as_secs());
        for part in &*self.0 {
            part.render(&civil, since.subsec_nanos(), out);
        }
    }
}

fn literal(parts: &mut Vec<Part>, text: &str) {
    if text.is_empty() {
        return;
    }
    if let Some(Part::Literal(last)) = parts.last_mut() {
        *last = format!("{last}{text}").into();
    } else {
        parts.push(Part::Literal(text.into()));
    }
}

/// Reads what follows a `%`; gives the rest.
fn specifier<'a>(parts: &mut Vec<Part>, text: &'a str) -> Result<&'a str, String> {
    let mut chars = text.chars();
    let simple = match chars.next() {
        Some('Y') => Part::Year,
        Some('C') => Part::Century,
        Some('y') => Part::YearOfCentury,
        Some('m') => Part::Month,
        Some('b' | 'h') => Part::MonthShort,
        Some('B') => Part::MonthLong,
        Some('d') => Part::Day,
        Some('e') => Part::DayPadded,
        Some('j') => Part::DayOfYear,
        Some('a') => Part::WeekdayShort,
        Some('A') => Part::WeekdayLong,
        Some('u') => Part::WeekdayFromMonday,
        Some('w') => Part::WeekdayFromSunday,
        Some('H') => Part::Hour,
        Some('I') => Part::Hour12,
        Some('p') => Part::AmPm,
        Some('M') => Part::Minute,
        Some('S') => Part::Second,
        Some('s') => Part::Epoch,
        Some('f') => Part::Fraction(9),
        other => return compound(parts, other, chars.as_str()),
    };
    parts.push(simple);
    Ok(chars.as_str())
}

/// Specifiers that stand for several parts or for a text.
fn compound<'a>(parts: &mut Vec<Part>, first: Option<char>, rest: &'a str) -> Result<&'a str, String> {
    match first {
        Some('%') => literal(parts, "%"),
        Some('n') => literal(parts, "\n"),
        Some('t') => literal(parts, "\t"),
        Some('z') => literal(parts, "+0000"),
        Some('Z') => literal(parts, "UTC"),
        Some('F') => expand(parts, "%Y-%m-%d")?,
        Some('T') => expand(parts, "%H:%M:%S")?,
        Some('R') => expand(parts, "%H:%M")?,
        Some('D') => expand(parts, "%m/%d/%y")?,
        Some('E') => {
            let digits = rest.chars().next().and_then(|c| c.to_digit(10)).filter(|d| (1..=9).contains(d));
            let after = rest.get(1..).and_then(|r| r.strip_prefix('S'));
            let (Some(digits), Some(after)) = (digits, after) else {
                return Err("after %E only 1S to 9S are supported".to_owned());
            };
            parts.push(Part::Second);
            literal(parts, ".");
            parts.push(Part::Fraction(u8::try_from(digits).unwrap_or(9)));
            return Ok(after);
        }
        Some(digit @ '1'..='9') => {
            let after = rest.strip_prefix('f').ok_or_else(|| format!("%{digit} must be followed by f"))?;
            parts.push(Part::Fraction(digit.to_digit(10).and_then(|d| u8::try_from(d).ok()).unwrap_or(9)));
            return Ok(after);
        }
        Some(other) => return Err(format!("%{other} is not a time specifier that is supported")),
        None => return Err("the time format ends in %".to_owned()),
    }
    Ok(rest)
}

fn expand(parts: &mut Vec<Part>, format: &str) -> Result<(), String> {
    let TimeFormat(more) = TimeFormat::parse(format)?;
    for part in more {
        match part {
            Part::Literal(text) => literal(parts, &text),
            other => parts.push(other),
        }
    }
    Ok(())
}

/// A point in time, taken apart (proleptic Gregorian calendar, UTC).
struct Civil {
    epoch: u64,
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// 1 to 366.
    day_of_year: u64,
    /// 0 is Sunday.
    weekday: u64,
    second_of_day: u64,
}

impl Civil {
    fn new(epoch: u64) -> Self {
        let days = epoch / 86_400;
        // Count from 1 March of year 0: the leap day is then the last day of a year, and of each 4 and 400 years.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * from_march + 2) / 153;
        let day = from_march - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let day_of_year = if month <= 2 { from_march - 305 } else { from_march + 60 + u64::from(leap) };
        Self { epoch, year, month, day, day_of_year, weekday: (days + 4) % 7, second_of_day: epoch % 86_400 }
    }
}

impl Part {
    fn render(&self, t: &Civil, nanos: u32, out: &mut Vec<u8>) {
        let (month, weekday) = (t.month as usize - 1, t.weekday as usize);
        let hour = t.second_of_day / 3600;
        match self {
            Self::Literal(text) => out.extend_from_slice(text.as_bytes()),
            Self::Year => padded(out, t.year, 4, b'0'),
            Self::Century => padded(out, t.year / 100, 2, b'0'),
            Self::YearOfCentury => padded(out, t.year % 100, 2, b'0'),
            Self::Month => padded(out, t.month, 2, b'0'),
            Self::MonthShort => out.extend_from_slice(&MONTHS[month].as_bytes()[..3]),
            Self::MonthLong => out.extend_from_slice(MONTHS[month].as_bytes()),
            Self::Day => padded(out, t.day, 2, b'0'),
            Self::DayPadded => padded(out, t.day, 2, b' '),
            Self::DayOfYear => padded(out, t.day_of_year, 3, b'0'),
            Self::WeekdayShort => out.extend_from_slice(&WEEKDAYS[weekday].as_bytes()[..3]),
            Self::WeekdayLong => out.extend_from_slice(WEEKDAYS[weekday].as_bytes()),
            Self::WeekdayFromMonday => padded(out, (t.weekday + 6) % 7 + 1, 1, b'0'),
            Self::WeekdayFromSunday => padded(out, t.weekday, 1, b'0'),
            Self::Hour => padded(out, hour, 2, b'0'),
            Self::Hour12 => padded(out, (hour + 11) % 12 + 1, 2, b'0'),
            Self::AmPm => out.extend_from_slice(if hour < 12 { b"AM" } else { b"PM" }),
            Self::Minute => padded(out, t.second_of_day / 60 % 60, 2, b'0'),
            Self::Second => padded(out, t.second_of_day % 60, 2, b'0'),
            Self::Epoch => padded(out, t.epoch, 1, b'0'),
            Self::Fraction(digits) => {
                let scale = 10_u64.pow(9 - u32::from(*digits));
                padded(out, u64::from(nanos) / scale, usize::from(*digits), b'0');
            }
        }
    }
}

fn padded(out: &mut Vec<u8>, value: u64, width: usize, fill: u8) {
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(value).as_bytes();
    out.extend(std::iter::repeat_n(fill, width.saturating_sub(digits.len())));
    out.extend_from_slice(digits);
}
