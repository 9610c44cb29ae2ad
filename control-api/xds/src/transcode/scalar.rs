//! Scalars and enums.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost_reflect::{EnumDescriptor, Kind, Value};

use crate::suggest;
use crate::yaml::{self, Node, Resolved, Scalar};

/// A value, or what to write instead when that is known.
pub(super) type Read<T> = Result<T, Option<String>>;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// What a field of this kind takes, for a message.
pub(super) fn wanted(kind: &Kind) -> &'static str {
    match kind {
        Kind::Double | Kind::Float => "a number",
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => "a whole number of 32 bits",
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => "a whole number of 64 bits",
        Kind::Uint32 | Kind::Fixed32 => "a whole number from 0 to 4294967295",
        Kind::Uint64 | Kind::Fixed64 => "a whole number from 0 to 18446744073709551615",
        Kind::Bool => "true or false",
        Kind::String => "a string",
        Kind::Bytes => "base64",
        Kind::Message(_) => "a mapping",
        Kind::Enum(_) => "an enum value",
    }
}

/// What stands there, for a message.
pub(super) fn describe(node: &Node<'_>) -> String {
    match &node.value {
        yaml::Value::Seq(_) => "a list".to_owned(),
        yaml::Value::Map(_) => "a mapping".to_owned(),
        yaml::Value::Scalar(s) => match s.resolve() {
            Resolved::Null => "null".to_owned(),
            Resolved::Str(text) => {
                let mut short: String = text.chars().take(60).collect();
                if short.len() < text.len() {
                    short.push('…');
                }
                format!("{short:?}")
            }
            _ => s.text.to_string(),
        },
    }
}

/// Whether the text gives a refused field the value that it has anyway.
pub(super) fn is_default(node: &Node<'_>, default_text: &str) -> bool {
    if node.is_null() {
        return true;
    }
    match &node.value {
        yaml::Value::Seq(list) => default_text == "[]" && list.is_empty(),
        yaml::Value::Map(map) => default_text == "{}" && map.is_empty(),
        yaml::Value::Scalar(s) => match s.resolve() {
            Resolved::Bool(v) => default_text == "false" && !v,
            Resolved::Int(v) => default_text == "0" && v == 0,
            Resolved::Str(text) => text == default_text && !matches!(default_text, "-" | "[]" | "{}"),
            _ => false,
        },
    }
}

/// Reads a scalar that is no enum.
pub(super) fn read(kind: &Kind, node: &Node<'_>) -> Read<Value> {
    let yaml::Value::Scalar(scalar) = &node.value else { return Err(None) };
    match kind {
        Kind::Double => float(scalar).map(Value::F64),
        Kind::Float => float(scalar).map(|v| {
            #[expect(clippy::cast_possible_truncation, reason = "a float field holds the nearest float")]
            let v = v as f32;
            Value::F32(v)
        }),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => int(scalar).map(Value::I32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => int(scalar).map(Value::I64),
        Kind::Uint32 | Kind::Fixed32 => int(scalar).map(Value::U32),
        Kind::Uint64 | Kind::Fixed64 => int(scalar).map(Value::U64),
        Kind::Bool => bool(scalar).map(Value::Bool),
        Kind::String => text(scalar).map(Value::String),
        Kind::Bytes => bytes(scalar).map(|v| Value::Bytes(v.into())),
        Kind::Message(_) | Kind::Enum(_) => Err(None),
    }
}

/// Reads a string.
pub(super) fn text(scalar: &Scalar<'_>) -> Read<String> {
    match scalar.resolve() {
        // `on`, `no` and the like are bools for YAML 1.1 only, and words where a string is wanted.
        Resolved::Bool(_) if !matches!(scalar.text.as_bytes(), [b't' | b'T' | b'f' | b'F', ..]) => {}
        Resolved::Null | Resolved::Bool(_) | Resolved::Int(_) | Resolved::Float(_) => {
            return Err(Some(format!("write \"{}\"", scalar.text)));
        }
        Resolved::Str(_) => {}
    }
    Ok(scalar.text.to_string())
}

fn bool(scalar: &Scalar<'_>) -> Read<bool> {
    match scalar.resolve() {
        Resolved::Bool(v) => Ok(v),
        Resolved::Str(text @ ("true" | "false")) => Err(Some(format!("write {text}, without quotes"))),
        _ => Err(None),
    }
}

/// Reads a whole number. A string is allowed, because JSON writes 64-bit numbers so; and `1e3` is whole.
fn int<T: TryFrom<i128>>(scalar: &Scalar<'_>) -> Read<T> {
    let number = match yaml::resolve(&scalar.text) {
        Resolved::Int(v) => v,
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^64")]
        Resolved::Float(v) if v.fract() == 0.0 && v.abs() < 1.9e19 => v as i128,
        _ => return Err(None),
    };
    T::try_from(number).map_err(|_| None)
}

fn float(scalar: &Scalar<'_>) -> Read<f64> {
    match yaml::resolve(&scalar.text) {
        #[expect(clippy::cast_precision_loss, reason = "a double field holds the nearest double")]
        Resolved::Int(v) => Ok(v as f64),
        Resolved::Float(v) => Ok(v),
        Resolved::Str("NaN") => Ok(f64::NAN),
        Resolved::Str("Infinity") => Ok(f64::INFINITY),
        Resolved::Str("-Infinity") => Ok(f64::NEG_INFINITY),
        _ => Err(None),
    }
}

fn bytes(scalar: &Scalar<'_>) -> Read<Vec<u8>> {
    let text: String = scalar.text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(&text).or_else(|_| URL_SAFE.decode(&text)).map_err(|_| None)
}

/// Reads an enum value by name or number.
pub(super) fn read_enum(desc: &EnumDescriptor, node: &Node<'_>) -> Result<Value, ()> {
    let yaml::Value::Scalar(scalar) = &node.value else { return Err(()) };
    let number = match scalar.resolve() {
        Resolved::Null if desc.full_name() == "google.protobuf.NullValue" => Some(0),
        Resolved::Int(n) => i32::try_from(n).ok().filter(|n| desc.get_value(*n).is_some()),
        _ => desc.get_value_by_name(&scalar.text).map(|v| v.number()),
    };
    number.map(Value::EnumNumber).ok_or(())
}

/// What to write for an enum value: one of `supported`, or of all values when that is empty.
pub(super) fn enum_fix(desc: &EnumDescriptor, supported: &[String], node: &Node<'_>) -> String {
    let all: Vec<String> = desc.values().map(|v| v.name().to_owned()).collect();
    let names = if supported.is_empty() { &all } else { supported };
    let near = match &node.value {
        yaml::Value::Scalar(s) => suggest::nearest(&s.text, names.iter().map(String::as_str)),
        _ => None,
    };
    if let Some(near) = near {
        return format!("did you mean {near}?");
    }
    let more = names.len().saturating_sub(20);
    let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
    let first: Vec<&str> = names.iter().take(20).map(String::as_str).collect();
    format!("one of {}{tail}", first.join(", "))
}
