//! A manifest as kubectl reads it: YAML 1.1, in which `0400` is 256 and `True` and `yes` are true.
//!
//! The mesh's own documents are read by other rules (`crate::document`): they keep what a person sees. A pod that was injected has to mean
//! what it means without.

use remora_xds::yaml::{Node, Scalar, Value as Yaml};
use serde_json::{Map, Value};

/// A document as the JSON that the API server gets.
pub(super) fn json(node: &Node<'_>) -> Value {
    match &node.value {
        Yaml::Scalar(text) => scalar(text),
        Yaml::Seq(list) => list.iter().map(json).collect(),
        Yaml::Map(entries) => {
            let pairs = entries.iter().map(|entry| (entry.key.to_string(), json(&entry.node)));
            Value::Object(pairs.collect::<Map<_, _>>())
        }
    }
}

fn scalar(scalar: &Scalar<'_>) -> Value {
    let text = scalar.text.as_ref();
    if scalar.plain { plain(text) } else { text.into() }
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => {
            return true.into();
        }
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return false.into();
        }
        _ => {}
    }
    let number = match text.as_bytes()[0] {
        b'.' => float(text),
        b'0'..=b'9' | b'+' | b'-' => {
            let digits = text.replace('_', "");
            int(&digits).or_else(|| float(&digits))
        }
        _ => None,
    };
    // `.inf` and `.nan`, too: JSON has no such numbers, and kubectl refuses them.
    number.unwrap_or_else(|| text.into())
}

/// Whole numbers with the prefixes of Go: `0x`, `0b`, `0o`, and `0` for base 8.
fn int(text: &str) -> Option<Value> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // Rust would take a second sign.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    let number = i128::from_str_radix(digits, base).ok()?;
    let number = if negative { -number } else { number };
    match (i64::try_from(number), u64::try_from(number)) {
        (Ok(number), _) => Some(number.into()),
        (_, Ok(number)) => Some(number.into()),
        _ => None,
    }
}

/// `1.5`, `.5`, `1.`, `1e3`; no words and no bases.
fn float(text: &str) -> Option<Value> {
    let known = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    let number = text.parse::<f64>().ok().filter(|_| known)?;
    serde_json::Number::from_f64(number).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        json(&remora_xds::yaml::parse(text).unwrap())
    }

    /// Each as `kubectl label --local -o json` of 1.32 shows it.
    #[test]
    fn scalars_are_what_kubectl_makes_of_them() {
        for (text, meant) in [
            ("0400", json!(256)),
            ("-017", json!(-15)),
            ("0o17", json!(15)),
            ("0x1F", json!(31)),
            ("0X1f", json!(31)),
            ("+0x10", json!(16)),
            ("0b11", json!(3)),
            ("-0b11", json!(-3)),
            ("1_000", json!(1000)),
            ("-_1", json!(-1)),
            ("+5", json!(5)),
            ("-0", json!(0)),
            ("08", json!(8.0)),
            ("1.0", json!(1.0)),
            ("1.10", json!(1.1)),
            (".5", json!(0.5)),
            ("+.5", json!(0.5)),
            ("1.", json!(1.0)),
            ("1e3", json!(1000.0)),
            ("1_0.5", json!(10.5)),
            ("99999999999999999999", json!(1e20)),
            ("True", json!(true)),
            ("yes", json!(true)),
            ("y", json!(true)),
            ("ON", json!(true)),
            ("N", json!(false)),
            ("Off", json!(false)),
            ("~", Value::Null),
            ("", Value::Null),
            // Texts.
            ("'0400'", json!("0400")),
            ("\"yes\"", json!("yes")),
            ("!!str 1", json!("1")),
            ("!!int '3'", json!(3)),
            ("''", json!("")),
            ("0o8", json!("0o8")),
            ("0b", json!("0b")),
            ("_1", json!("_1")),
            ("--1", json!("--1")),
            ("1:30", json!("1:30")),
            ("2001-01-01", json!("2001-01-01")),
            ("1.2.3", json!("1.2.3")),
            ("inf", json!("inf")),
            (".inf", json!(".inf")),
        ] {
            assert_eq!(read(&format!("a: {text}"))["a"], meant, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(
            text in prop_oneof!["[-+0-9a-fxXoOeE_.:]{0,7}", "[yYnNoOtTfF][a-zA-Z]{0,4}", "\\PC{0,8}"],
            number in any::<f64>(),
            whole in any::<i64>(),
        ) {
            let value = json!({"text": text, "number": number, "whole": whole});
            prop_assert_eq!(read(&remora_xds::write_yaml(&value)), value);
        }
    }
}
