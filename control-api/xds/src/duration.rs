//! `google.protobuf.Duration` as text (`1.5s`) and as nanoseconds.

use prost_reflect::{DynamicMessage, Value};

/// Longest duration of protobuf in seconds, about 10,000 years.
const MAX_SECONDS: u64 = 315_576_000_000;

/// Nanoseconds of a Duration or Timestamp.
pub(crate) fn nanos(seconds: i64, nanos: i32) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(nanos)
}

/// Nanoseconds of a Duration or Timestamp message; None when it is neither.
pub(crate) fn nanos_of(message: &DynamicMessage) -> Option<i128> {
    let seconds = message.get_field_by_name("seconds")?.as_i64()?;
    Some(nanos(seconds, message.get_field_by_name("nanos")?.as_i32()?))
}

/// The text of a duration.
pub(crate) fn show_nanos(n: i128) -> String {
    let (sign, n) = (if n < 0 { "-" } else { "" }, n.unsigned_abs());
    let (seconds, nanos) = (n / 1_000_000_000, n % 1_000_000_000);
    if nanos == 0 {
        return format!("{sign}{seconds}s");
    }
    let fraction = format!("{nanos:09}");
    format!("{sign}{seconds}.{}s", fraction.trim_end_matches('0'))
}

/// Puts the duration that `text` writes into the Duration `message`.
///
/// # Errors
/// What to write instead, when that can be guessed.
pub(crate) fn parse(text: &str, message: &mut DynamicMessage) -> Result<(), Option<String>> {
    let Some((seconds, nanos)) = seconds(text) else { return Err(guess(text)) };
    // Proto3 has no presence for these two: zero stays unset, as an encoder would leave it.
    message.set_field_by_name("seconds", Value::I64(seconds));
    message.set_field_by_name("nanos", Value::I32(nanos));
    Ok(())
}

/// The duration, not negative, that `text` writes as protobuf's JSON does: `1.5s`.
#[must_use]
pub fn parse_text(text: &str) -> Option<std::time::Duration> {
    let (seconds, nanos) = seconds(text)?;
    Some(std::time::Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?))
}

fn seconds(text: &str) -> Option<(i64, i32)> {
    let text = text.strip_suffix('s')?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 || text.ends_with('.') {
        return None;
    }
    let seconds = whole.parse::<u64>().ok().filter(|s| *s <= MAX_SECONDS)?;
    let nanos = format!("{fraction:0<9}").parse::<i32>().ok()?;
    let seconds = i64::try_from(seconds).ok()?;
    Some(if negative { (-seconds, -nanos) } else { (seconds, nanos) })
}

/// The same duration, rightly written: `100ms`, `1m30s`, `5`.
fn guess(text: &str) -> Option<String> {
    let mut rest = text.trim();
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(end);
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let nanos = match unit.trim() {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "" | "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
            "m" | "min" | "mins" | "minute" | "minutes" => 60_000_000_000,
            "h" | "hr" | "hour" | "hours" => 3_600_000_000_000,
            "d" | "day" | "days" => 86_400_000_000_000,
            _ => return None,
        };
        total = total.checked_add(scaled(number, nanos)?)?;
        rest = tail;
    }
    (total > 0 && total <= i128::from(MAX_SECONDS) * 1_000_000_000)
        .then(|| format!("write {}", show_nanos(total)))
}

/// `number` times `unit`, exactly.
fn scaled(number: &str, unit: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 {
        return None;
    }
    let whole = if whole.is_empty() && !fraction.is_empty() { 0 } else { whole.parse::<i128>().ok()? };
    let part = if fraction.is_empty() { 0 } else { fraction.parse::<i128>().ok()? };
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(unit)?.checked_add(part * unit / scale)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_read_exactly_and_mistakes_get_a_fix() {
        for (text, expected) in [
            ("1.5s", Some((1, 500_000_000))),
            ("0s", Some((0, 0))),
            ("-0.000000001s", Some((0, -1))),
            ("315576000000s", Some((315_576_000_000, 0))),
            ("315576000001s", None),
            ("1.s", None),
            (".5s", None),
            ("1.0000000001s", None),
            ("s", None),
            ("5", None),
            ("99999999999999999999999999s", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
        for (text, fix) in [
            ("5", Some("write 5s")),
            ("100ms", Some("write 0.1s")),
            ("1m30s", Some("write 90s")),
            ("1h", Some("write 3600s")),
            (".5s", Some("write 0.5s")),
            ("2 days", Some("write 172800s")),
            ("soon", None),
            ("5 fortnights", None),
            ("", None),
        ] {
            assert_eq!(guess(text).as_deref(), fix, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(n in -315_576_000_000_000_000_000_i128..315_576_000_000_000_000_000) {
            let (s, n2) = seconds(&show_nanos(n)).unwrap();
            prop_assert_eq!(nanos(s, n2), n);
        }

        #[test]
        fn any_text_is_safe(text in "[-0-9a-zµ. ]{0,40}") {
            let _ = (seconds(&text), guess(&text));
        }
    }
}
