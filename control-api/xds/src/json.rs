//! A message -> JSON, by protobuf's JSON mapping with the field names of the proto files, Anys expanded.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use prost_reflect::prost_types::Timestamp;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};
use serde_json::{Map, Value as Json};

use crate::any;
use crate::check::MAX_ANYS;
use crate::duration;
use crate::pgv::key_text;
use crate::schema::Schema;

/// What stands in place of a secret.
const REDACTED: &str = "[redacted]";

/// Writes messages as JSON.
pub(crate) struct Writer<'s> {
    pub(crate) schema: &'s Schema,
    /// Secrets (private keys, passwords) are replaced by `[redacted]`.
    pub(crate) redact: bool,
}

impl Writer<'_> {
    /// The message with this name in `bytes`, without `@type`. Bytes that cannot be read, and types outside the schema,
    /// become base64.
    pub(crate) fn bytes(&self, name: &str, bytes: &[u8]) -> Json {
        match self.decode(name, bytes) {
            Some(message) => self.message(&message, 0),
            None => Json::String(STANDARD.encode(bytes)),
        }
    }

    /// An Any with this type URL and these bytes.
    pub(crate) fn any(&self, type_url: &str, bytes: &[u8], depth: usize) -> Json {
        let mut out = Map::new();
        out.insert("@type".to_owned(), Json::String(type_url.to_owned()));
        let inner =
            any::type_name(type_url).and_then(|name| self.decode(name, bytes)).filter(|_| depth < MAX_ANYS);
        let Some(inner) = inner else {
            out.insert("value".to_owned(), Json::String(STANDARD.encode(bytes)));
            return Json::Object(out);
        };
        let google = inner.descriptor().full_name().starts_with("google.protobuf.");
        match self.message(&inner, depth + 1) {
            Json::Object(fields) if !google => out.extend(fields),
            other => {
                out.insert("value".to_owned(), other);
            }
        }
        Json::Object(out)
    }

    fn decode(&self, name: &str, bytes: &[u8]) -> Option<DynamicMessage> {
        DynamicMessage::decode(self.schema.message(name)?, bytes).ok()
    }

    fn message(&self, message: &DynamicMessage, depth: usize) -> Json {
        let desc = message.descriptor();
        if let Some(kind) = desc.full_name().strip_prefix("google.protobuf.") {
            return self.well_known(kind, message, depth);
        }
        let plan = self.schema.plan(desc.full_name());
        let mut out = Map::new();
        for (field, value) in message.fields() {
            let secret =
                self.redact && plan.and_then(|p| p.field(field.number())).is_some_and(|f| f.sensitive);
            let value =
                if secret { Json::String(REDACTED.to_owned()) } else { self.field(&field, value, depth) };
            out.insert(field.name().to_owned(), value);
        }
        Json::Object(out)
    }

    fn field(&self, field: &FieldDescriptor, value: &Value, depth: usize) -> Json {
        let kind = field.kind();
        match value {
            Value::List(list) => list.iter().map(|v| self.single(&kind, v, depth)).collect(),
            Value::Map(map) => {
                let entry = kind.as_message().map(prost_reflect::MessageDescriptor::map_entry_value_field);
                let kind = entry.map_or(Kind::String, |f| f.kind());
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                let entries = entries.into_iter().map(|(k, v)| (key_text(k), self.single(&kind, v, depth)));
                Json::Object(entries.collect())
            }
            value => self.single(&kind, value, depth),
        }
    }

    fn single(&self, kind: &Kind, value: &Value, depth: usize) -> Json {
        match value {
            Value::Bool(v) => Json::Bool(*v),
            Value::I32(v) => Json::from(*v),
            Value::U32(v) => Json::from(*v),
            // JSON's numbers are doubles.
            Value::I64(v) => Json::String(v.to_string()),
            Value::U64(v) => Json::String(v.to_string()),
            // The shortest text that gives the same float.
            Value::F32(v) => float(v.to_string().parse().unwrap_or_else(|_| f64::from(*v))),
            Value::F64(v) => float(*v),
            Value::String(v) => Json::String(v.clone()),
            Value::Bytes(v) => Json::String(STANDARD.encode(v)),
            Value::EnumNumber(n) => {
                let name = kind.as_enum().and_then(|e| e.get_value(*n)).map(|v| v.name().to_owned());
                name.map_or_else(|| Json::from(*n), Json::String)
            }
            Value::Message(m) => self.message(m, depth),
            Value::List(_) | Value::Map(_) => Json::Null,
        }
    }

    fn well_known(&self, kind: &str, message: &DynamicMessage, depth: usize) -> Json {
        let get = |name: &str| message.get_field_by_name(name).map(std::borrow::Cow::into_owned);
        match kind {
            "Any" => {
                let (url, bytes) = (get("type_url"), get("value"));
                let url = url.as_ref().and_then(Value::as_str).unwrap_or_default();
                let bytes = bytes.as_ref().and_then(Value::as_bytes).cloned().unwrap_or_default();
                if url.is_empty() && bytes.is_empty() { Json::Null } else { self.any(url, &bytes, depth) }
            }
            "Duration" => Json::String(duration::show_nanos(duration::nanos_of(message).unwrap_or_default())),
            "Timestamp" => {
                let seconds = get("seconds").and_then(|v| v.as_i64()).unwrap_or_default();
                let nanos = get("nanos").and_then(|v| v.as_i32()).unwrap_or_default();
                Json::String(Timestamp { seconds, nanos }.to_string())
            }
            "Struct" | "ListValue" => match message.fields().next() {
                Some((field, value)) => self.field(&field, value, depth),
                None if kind == "Struct" => Json::Object(Map::new()),
                None => Json::Array(Vec::new()),
            },
            "Value" => match message.fields().next() {
                Some((field, _)) if field.name() == "null_value" => Json::Null,
                Some((field, value)) => self.field(&field, value, depth),
                None => Json::Null,
            },
            "Empty" => Json::Object(Map::new()),
            _ => match message.descriptor().get_field_by_name("value") {
                Some(field) => self.single(&field.kind(), &message.get_field(&field), depth),
                None => Json::String(STANDARD.encode(message.encode_to_vec())),
            },
        }
    }
}

fn float(v: f64) -> Json {
    #[expect(clippy::cast_possible_truncation, reason = "whole and small")]
    if v.fract() == 0.0 && v.abs() < 1e15 {
        return Json::from(v as i64);
    }
    match serde_json::Number::from_f64(v) {
        Some(n) => Json::Number(n),
        None if v.is_nan() => Json::String("NaN".to_owned()),
        None => Json::String(if v > 0.0 { "Infinity" } else { "-Infinity" }.to_owned()),
    }
}
