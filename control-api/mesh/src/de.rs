//! serde over a YAML tree that knows lines: an error says at which field, line and column it is.

use std::fmt::Display;

use remora_xds::diag::Position;
use remora_xds::nearest;
use remora_xds::yaml::{Entry, Node, Resolved, Scalar, Value};
use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// A mistake, and where it is.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub(crate) at: Option<Position>,
    /// Segments from the innermost outwards.
    segments: Vec<String>,
    pub(crate) message: String,
    pub(crate) fix: Option<String>,
}

impl Mistake {
    fn new(message: String, fix: Option<String>) -> Self {
        Self { at: None, segments: Vec::new(), message, fix }
    }

    /// The innermost position stays; every level on the way out adds its segment.
    fn inside(mut self, at: Position, segment: String) -> Self {
        self.at.get_or_insert(at);
        self.segments.push(segment);
        self
    }

    /// Path of the field.
    pub(crate) fn path(&self) -> String {
        let mut path = String::new();
        for segment in self.segments.iter().rev() {
            if !path.is_empty() && !segment.starts_with('[') {
                path.push('.');
            }
            path.push_str(segment);
        }
        path
    }
}

impl Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.path(), self.message)
    }
}

impl std::error::Error for Mistake {}

fn choices(names: &[&str]) -> String {
    format!("known are {}", names.join(", "))
}

fn suggestion(word: &str, names: &[&str]) -> Option<String> {
    if names.is_empty() {
        return None;
    }
    let near = nearest(word, names.iter().copied()).map(|near| format!("did you mean {near}?"));
    Some(near.unwrap_or_else(|| choices(names)))
}

impl de::Error for Mistake {
    fn custom<T: Display>(message: T) -> Self {
        Self::new(message.to_string(), None)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new("is not known here".into(), suggestion(field, expected))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(format!("{variant:?} is not supported"), suggestion(variant, expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(format!("{field} is missing"), None)
    }
}

/// A node as serde's input.
pub(crate) struct Input<'a, 'de>(pub(crate) &'a Node<'de>);

impl Input<'_, '_> {
    fn scalar(&self) -> Result<&Scalar<'_>, Mistake> {
        match &self.0.value {
            Value::Scalar(scalar) => Ok(scalar),
            Value::Seq(_) => Err(de::Error::custom("a list stands where one value belongs")),
            Value::Map(_) => Err(de::Error::custom("a mapping stands where one value belongs")),
        }
    }
}

impl<'de> Deserializer<'de> for Input<'_, 'de> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.0.value {
            Value::Seq(list) => visitor.visit_seq(List { nodes: list.iter().enumerate() }),
            Value::Map(entries) => visitor.visit_map(Map { entries: entries.iter(), value: None }),
            Value::Scalar(scalar) => match scalar.resolve() {
                Resolved::Null => visitor.visit_unit(),
                Resolved::Bool(value) => visitor.visit_bool(value),
                Resolved::Int(value) => visitor.visit_i128(value),
                Resolved::Float(value) => visitor.visit_f64(value),
                Resolved::Str(text) => visitor.visit_str(text),
            },
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        let scalar = self.scalar()?;
        match scalar.resolve() {
            Resolved::Int(value) => match u64::try_from(value) {
                Ok(value) => visitor.visit_u64(value),
                Err(_) => Err(de::Error::custom(format_args!("{value} is out of range"))),
            },
            _ => Err(de::Error::custom(format_args!("{:?} is no whole number", scalar.text))),
        }
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_u64(visitor)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_u64(visitor)
    }

    /// Where a text belongs, `1` and `yes` are texts: what a scalar means is for the field to say.
    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        if self.0.is_null() {
            return Err(de::Error::custom("is empty"));
        }
        visitor.visit_str(&self.scalar()?.text)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        let text: StrDeserializer<'_, Mistake> = self.scalar()?.text.as_ref().into_deserializer();
        visitor.visit_enum(text)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.0.value {
            Value::Seq(list) => visitor.visit_seq(List { nodes: list.iter().enumerate() }),
            _ => Err(de::Error::custom("must be a list")),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.0.value {
            Value::Map(entries) => visitor.visit_map(Map { entries: entries.iter(), value: None }),
            _ => Err(de::Error::custom("must be a mapping")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.deserialize_map(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct List<'a, 'de> {
    nodes: std::iter::Enumerate<std::slice::Iter<'a, Node<'de>>>,
}

impl<'de> SeqAccess<'de> for List<'_, 'de> {
    type Error = Mistake;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Mistake> {
        let Some((i, node)) = self.nodes.next() else { return Ok(None) };
        seed.deserialize(Input(node)).map(Some).map_err(|e| e.inside(node.at, format!("[{i}]")))
    }
}

struct Map<'a, 'de> {
    entries: std::slice::Iter<'a, Entry<'de>>,
    value: Option<&'a Entry<'de>>,
}

impl<'de> MapAccess<'de> for Map<'_, 'de> {
    type Error = Mistake;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Mistake> {
        let Some(entry) = self.entries.next() else { return Ok(None) };
        self.value = Some(entry);
        let key: StrDeserializer<'_, Mistake> = entry.key.as_ref().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|e| e.inside(entry.key_at, entry.key.to_string()))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Mistake> {
        let Some(entry) = self.value.take() else { return Err(de::Error::custom("a value without a key")) };
        seed.deserialize(Input(&entry.node)).map_err(|e| e.inside(entry.node.at, entry.key.to_string()))
    }
}
