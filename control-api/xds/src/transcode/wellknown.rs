//! Protobuf's own types, which have a JSON form of their own.

use std::collections::HashMap;
use std::str::FromStr;

use prost_reflect::prost_types::Timestamp;
use prost_reflect::{DynamicMessage, Kind, MapKey, MessageDescriptor, Value};

use super::{Transcoder, scalar};
use crate::diag::At;
use crate::duration;
use crate::yaml::{self, Node, Resolved};

/// A type with its own JSON form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WellKnown {
    Any,
    Duration,
    Timestamp,
    Struct,
    Value,
    List,
    Wrapper,
    Empty,
}

impl WellKnown {
    pub(super) fn of(full_name: &str) -> Option<Self> {
        Some(match full_name.strip_prefix("google.protobuf.")? {
            "Any" => Self::Any,
            "Duration" => Self::Duration,
            "Timestamp" => Self::Timestamp,
            "Struct" => Self::Struct,
            "Value" => Self::Value,
            "ListValue" => Self::List,
            "Empty" => Self::Empty,
            "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value"
            | "BoolValue" | "StringValue" | "BytesValue" => Self::Wrapper,
            _ => return None,
        })
    }
}

impl Transcoder<'_, '_> {
    pub(super) fn well_known(
        &mut self,
        kind: WellKnown,
        desc: &MessageDescriptor,
        node: &Node<'_>,
        at: &At<'_>,
    ) -> Option<DynamicMessage> {
        match kind {
            WellKnown::Any => self.any(desc, node, at),
            WellKnown::Duration => self.duration(desc, node, at),
            WellKnown::Timestamp => self.timestamp(desc, node, at),
            WellKnown::Struct => self.structure(desc, node, at),
            WellKnown::Value => self.value(desc, node, at),
            WellKnown::List => self.list_value(desc, node, at),
            WellKnown::Wrapper => {
                let inner = self.single(&desc.get_field_by_name("value")?.kind(), None, node, at)?;
                Some(one_field(desc, "value", inner))
            }
            WellKnown::Empty => match &node.value {
                yaml::Value::Map(entries) => Some(self.fields(desc, entries, at, false)),
                _ => {
                    self.wrong(at, "an empty mapping", node);
                    None
                }
            },
        }
    }

    fn duration(&mut self, desc: &MessageDescriptor, node: &Node<'_>, at: &At<'_>) -> Option<DynamicMessage> {
        let mut message = DynamicMessage::new(desc.clone());
        let read = match &node.value {
            yaml::Value::Scalar(s) => duration::parse(&s.text, &mut message),
            _ => Err(None),
        };
        match read {
            Ok(()) => Some(message),
            Err(fix) => {
                self.wrong(at, "a duration in seconds, such as 1.5s", node).fix = fix;
                None
            }
        }
    }

    fn timestamp(
        &mut self,
        desc: &MessageDescriptor,
        node: &Node<'_>,
        at: &At<'_>,
    ) -> Option<DynamicMessage> {
        let read = match &node.value {
            yaml::Value::Scalar(s) => Timestamp::from_str(&s.text).ok(),
            _ => None,
        };
        let Some(read) = read else {
            self.wrong(at, "a time, such as 2026-01-31T12:00:00Z", node);
            return None;
        };
        let mut message = DynamicMessage::new(desc.clone());
        message.set_field_by_name("seconds", Value::I64(read.seconds));
        message.set_field_by_name("nanos", Value::I32(read.nanos));
        Some(message)
    }

    fn structure(
        &mut self,
        desc: &MessageDescriptor,
        node: &Node<'_>,
        at: &At<'_>,
    ) -> Option<DynamicMessage> {
        let yaml::Value::Map(entries) = &node.value else {
            self.wrong(at, "a mapping", node);
            return None;
        };
        let Kind::Message(entry) = desc.get_field_by_name("fields")?.kind() else { return None };
        let Kind::Message(value) = entry.map_entry_value_field().kind() else { return None };
        let mut map = HashMap::with_capacity(entries.len());
        for entry in entries.iter() {
            let here = at.field(&entry.key);
            self.errors.locate(&here, entry.key_at);
            if let Some(inner) = self.value(&value, &entry.node, &here) {
                map.insert(MapKey::String(entry.key.to_string()), Value::Message(inner));
            }
        }
        Some(one_field(desc, "fields", Value::Map(map)))
    }

    fn list_value(
        &mut self,
        desc: &MessageDescriptor,
        node: &Node<'_>,
        at: &At<'_>,
    ) -> Option<DynamicMessage> {
        let yaml::Value::Seq(items) = &node.value else {
            self.wrong(at, "a list", node);
            return None;
        };
        let Kind::Message(value) = desc.get_field_by_name("values")?.kind() else { return None };
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let here = at.index(index);
            self.errors.locate(&here, item.at);
            list.extend(self.value(&value, item, &here).map(Value::Message));
        }
        Some(one_field(desc, "values", Value::List(list)))
    }

    fn value(&mut self, desc: &MessageDescriptor, node: &Node<'_>, at: &At<'_>) -> Option<DynamicMessage> {
        let inner = |name: &str| match desc.get_field_by_name(name)?.kind() {
            Kind::Message(m) => Some(m),
            _ => None,
        };
        let (name, value) = match &node.value {
            yaml::Value::Map(_) => {
                ("struct_value", Value::Message(self.structure(&inner("struct_value")?, node, at)?))
            }
            yaml::Value::Seq(_) => {
                ("list_value", Value::Message(self.list_value(&inner("list_value")?, node, at)?))
            }
            yaml::Value::Scalar(s) => match s.resolve() {
                Resolved::Null => ("null_value", Value::EnumNumber(0)),
                Resolved::Bool(v) => ("bool_value", Value::Bool(v)),
                #[expect(clippy::cast_precision_loss, reason = "the numbers of a Struct are doubles")]
                Resolved::Int(v) => ("number_value", Value::F64(v as f64)),
                Resolved::Float(v) if v.is_finite() => ("number_value", Value::F64(v)),
                Resolved::Float(_) => {
                    self.fail(at, format!("{} is no number of JSON", scalar::describe(node)));
                    return None;
                }
                Resolved::Str(v) => ("string_value", Value::String(v.to_owned())),
            },
        };
        Some(one_field(desc, name, value))
    }
}

fn one_field(desc: &MessageDescriptor, name: &str, value: Value) -> DynamicMessage {
    let mut message = DynamicMessage::new(desc.clone());
    message.set_field_by_name(name, value);
    message
}
