//! A tree of YAML or JSON -> a message, by the JSON mapping of protobuf: fields by their proto or JSON name, an Any by its
//! `@type`, durations as `1.5s`. Every mistake is reported, and where every field stands is written down on the way.

mod scalar;
mod wellknown;
mod wire;

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value};

use self::wellknown::WellKnown;
use crate::any::TYPE_PREFIX;
use crate::check::{Checker, NOT_SUPPORTED};
use crate::diag::{At, ConfigError, Errors, Failed, Position};
use crate::schema::Schema;
use crate::suggest;
use crate::yaml::{self, Entry, Node, Resolved};

/// The key of an Any that names the type.
const TYPE: &str = "@type";

/// One text on its way to a message.
pub(crate) struct Transcoder<'s, 'e> {
    schema: &'s Schema,
    errors: &'e mut Errors,
    failed: &'e mut Failed,
    /// Numbers of the fields on the way from the root, as long as none of them is a list, a map or an Any.
    spine: Option<Vec<u32>>,
    detached: Vec<u8>,
}

/// What a text has become.
pub(crate) struct Transcoded {
    /// The message, without its large lists.
    pub(crate) message: DynamicMessage,
    /// The items of those lists, checked, in protobuf: they belong behind the encoded message.
    ///
    /// A DynamicMessage takes a kilobyte and more for each message in it; a file of 5,000 clusters would take 200 MB. So the
    /// items of lists that hang on the root by single messages only (`static_resources.clusters`) are encoded one by one.
    /// Protobuf merges a message that occurs several times in the bytes, and appends lists.
    pub(crate) detached: Vec<u8>,
}

impl<'s, 'e> Transcoder<'s, 'e> {
    /// Mistakes and positions go to `errors`, paths of what could not be read to `failed`.
    pub(crate) fn new(schema: &'s Schema, errors: &'e mut Errors, failed: &'e mut Failed) -> Self {
        Self { schema, errors, failed, spine: Some(Vec::new()), detached: Vec::new() }
    }

    /// The whole text, which is one message. It may say its own `@type`, as a resource inside of a list does.
    pub(crate) fn root(mut self, desc: &MessageDescriptor, node: &Node<'_>) -> Transcoded {
        let message = self.document(desc, node);
        Transcoded { message, detached: self.detached }
    }

    fn document(&mut self, desc: &MessageDescriptor, node: &Node<'_>) -> DynamicMessage {
        let root = At::root();
        self.errors.locate(&root, node.at);
        let yaml::Value::Map(entries) = &node.value else {
            if !node.is_null() {
                self.wrong(&root, "a mapping", node);
            }
            return DynamicMessage::new(desc.clone());
        };
        let said = entries.iter().find(|e| e.key == TYPE);
        if let Some(said) = said {
            let at = root.field(TYPE);
            self.errors.locate(&at, said.key_at);
            let wanted = format!("{TYPE_PREFIX}{}", desc.full_name());
            if !matches!(&said.node.value, yaml::Value::Scalar(s) if s.text == wanted) {
                self.fail(&at, format!("must be {wanted}"));
            }
        }
        self.fields(desc, entries, &root, said.is_some())
    }

    fn fail(&mut self, at: &At<'_>, message: impl Into<String>) -> &mut ConfigError {
        self.failed.insert(at);
        self.errors.report(at, message)
    }

    /// Reports a value of the wrong kind.
    fn wrong(&mut self, at: &At<'_>, wanted: &str, node: &Node<'_>) -> &mut ConfigError {
        self.fail(at, format!("must be {wanted}, not {}", scalar::describe(node)))
    }

    fn message(&mut self, desc: &MessageDescriptor, node: &Node<'_>, at: &At<'_>) -> Option<DynamicMessage> {
        if let Some(kind) = WellKnown::of(desc.full_name()) {
            return self.well_known(kind, desc, node, at);
        }
        let yaml::Value::Map(entries) = &node.value else {
            self.wrong(at, "a mapping", node);
            return None;
        };
        Some(self.fields(desc, entries, at, false))
    }

    /// The fields of a message; `typed` when the key `@type` has been read already.
    fn fields(
        &mut self,
        desc: &MessageDescriptor,
        entries: &[Entry<'_>],
        at: &At<'_>,
        typed: bool,
    ) -> DynamicMessage {
        let mut message = DynamicMessage::new(desc.clone());
        let mut seen: Vec<(u32, &str)> = Vec::new();
        let mut oneofs: Vec<(String, FieldDescriptor)> = Vec::new();
        for entry in entries {
            if typed && entry.key == TYPE {
                continue;
            }
            let named = desc.get_field_by_name(&entry.key);
            let Some(field) = named.or_else(|| desc.get_field_by_json_name(&entry.key)) else {
                self.other_field(desc, entry, at);
                continue;
            };
            let here = at.field(field.name());
            self.errors.locate(&here, entry.key_at);
            if let Some((_, before)) = seen.iter().find(|(number, _)| *number == field.number()) {
                self.fail(&here, format!("occurs twice, as {before} and as {}", entry.key));
                continue;
            }
            seen.push((field.number(), &entry.key));
            if entry.node.is_null() && !takes_null(&field) {
                continue;
            }
            if let Some(oneof) = field.containing_oneof().filter(|o| !o.is_synthetic()) {
                if let Some((_, first)) = oneofs.iter().find(|(name, _)| name == oneof.name()) {
                    let said =
                        format!("cannot stand beside {}: only one of the two may be set", first.name());
                    self.fail(&here, said);
                    continue;
                }
                oneofs.push((oneof.name().to_owned(), field.clone()));
            }
            if let Some(value) = self.field(&field, &entry.node, &here) {
                message.set_field(&field, value);
            }
        }
        message
    }

    /// A key that is no supported field.
    fn other_field(&mut self, desc: &MessageDescriptor, entry: &Entry<'_>, at: &At<'_>) {
        let plan = self.schema.plan(desc.full_name());
        if let Some(refused) = plan.and_then(|p| p.refused(&entry.key)) {
            if scalar::is_default(&entry.node, &refused.default_text) {
                return;
            }
            let (name, fix, oneof) = (refused.name.clone(), refused.fix.clone(), refused.oneof.clone());
            let here = at.field(&name);
            self.errors.locate(&here, entry.key_at);
            self.fail(&here, NOT_SUPPORTED).fix = (!fix.is_empty()).then_some(fix);
            // A required oneof whose member was refused is no second mistake.
            self.failed.insert(&at.field(&oneof));
            return;
        }
        let here = at.field(&entry.key);
        self.errors.locate(&here, entry.key_at);
        let (mut message, mut fix) = (format!("{} has no such field", desc.full_name()), None);
        if entry.key == TYPE {
            message = "only a field of type Any takes @type".to_owned();
        } else {
            let supported: Vec<_> = desc.fields().map(|f| f.name().to_owned()).collect();
            let refused =
                plan.map(|p| p.refused.as_slice()).unwrap_or_default().iter().map(|r| r.name.as_str());
            let names = supported.iter().map(String::as_str).chain(refused);
            if let Some(near) = suggest::nearest(&entry.key, names) {
                self.failed.insert(&at.field(near));
                fix = Some(format!("did you mean {near}?"));
            }
        }
        self.fail(&here, message).fix = fix;
    }

    fn field(&mut self, field: &FieldDescriptor, node: &Node<'_>, at: &At<'_>) -> Option<Value> {
        if field.is_map() {
            return self.map(field, node, at);
        }
        if !field.is_list() {
            if let Some(spine) = &mut self.spine {
                spine.push(field.number());
            }
            let value = self.single(&field.kind(), Some(field), node, at);
            if let Some(spine) = &mut self.spine {
                spine.pop();
            }
            return value;
        }
        let yaml::Value::Seq(items) = &node.value else {
            self.wrong(at, "a list", node);
            return None;
        };
        let kind = field.kind();
        let spine = self.spine.take();
        let detach = spine.as_deref().filter(|_| self.is_detachable(field));
        let mut list = Vec::with_capacity(if detach.is_some() { 0 } else { items.len() });
        for (index, item) in items.iter().enumerate() {
            let here = at.index(index);
            self.errors.locate(&here, item.at);
            let value = if item.is_null() && !kind_takes_null(&kind) {
                self.fail(&here, "is empty");
                None
            } else {
                self.single(&kind, Some(field), item, &here)
            };
            match (detach, value) {
                (Some(spine), Some(Value::Message(message))) => {
                    Checker::new(self.schema, self.errors, self.failed).message(&message, &here, true);
                    wire::append(&mut self.detached, spine, field.number(), &message);
                }
                (Some(_), _) => {}
                // A failed item keeps its place, so that the paths of the others stay right.
                (None, value) => list.push(value.unwrap_or_else(|| Value::default_value(&kind))),
            }
        }
        self.spine = spine;
        Some(Value::List(list))
    }

    /// Whether the items of a list can be checked and encoded one by one: they are messages, and there are no rules for the
    /// list as a whole.
    fn is_detachable(&self, field: &FieldDescriptor) -> bool {
        let plan = self.schema.plan(field.parent_message().full_name()).and_then(|p| p.field(field.number()));
        matches!(field.kind(), Kind::Message(_))
            && plan.is_some_and(|p| p.rules.is_none() && p.values.is_empty())
    }

    fn map(&mut self, field: &FieldDescriptor, node: &Node<'_>, at: &At<'_>) -> Option<Value> {
        let yaml::Value::Map(entries) = &node.value else {
            self.wrong(at, "a mapping", node);
            return None;
        };
        let spine = self.spine.take();
        let map = self.entries(field, entries, at);
        self.spine = spine;
        map
    }

    fn entries(&mut self, field: &FieldDescriptor, entries: &[Entry<'_>], at: &At<'_>) -> Option<Value> {
        let kind = field.kind();
        let entry_desc = kind.as_message()?;
        let (key_kind, value_kind) =
            (entry_desc.map_entry_key_field().kind(), entry_desc.map_entry_value_field().kind());
        let mut map = std::collections::HashMap::with_capacity(entries.len());
        for entry in entries {
            let here = at.field(&entry.key);
            self.errors.locate(&here, entry.key_at);
            let Some(key) = map_key(&key_kind, &entry.key) else {
                self.fail(&here, format!("the key must be {}", scalar::wanted(&key_kind)));
                continue;
            };
            if entry.node.is_null() && !kind_takes_null(&value_kind) {
                self.fail(&here, "is empty");
                continue;
            }
            if let Some(value) = self.single(&value_kind, None, &entry.node, &here) {
                map.insert(key, value);
            }
        }
        Some(Value::Map(map))
    }

    /// One value of `field`, or of a map or a wrapper.
    fn single(
        &mut self,
        kind: &Kind,
        field: Option<&FieldDescriptor>,
        node: &Node<'_>,
        at: &At<'_>,
    ) -> Option<Value> {
        match kind {
            Kind::Message(desc) => self.message(desc, node, at).map(Value::Message),
            Kind::Enum(desc) => match scalar::read_enum(desc, node) {
                Ok(value) => Some(value),
                Err(()) => {
                    let wanted = format!("a value of {}", desc.name());
                    let plan = field
                        .and_then(|f| self.schema.plan(f.parent_message().full_name())?.field(f.number()));
                    let supported = plan.map(|p| p.values.as_slice()).unwrap_or_default();
                    self.wrong(at, &wanted, node).fix(scalar::enum_fix(desc, supported, node));
                    None
                }
            },
            kind => match scalar::read(kind, node) {
                Ok(value) => Some(value),
                Err(fix) => {
                    self.wrong(at, scalar::wanted(kind), node).fix = fix;
                    None
                }
            },
        }
    }

    /// `{"@type": …, fields of that type}`.
    fn any(&mut self, desc: &MessageDescriptor, node: &Node<'_>, at: &At<'_>) -> Option<DynamicMessage> {
        let yaml::Value::Map(entries) = &node.value else {
            self.wrong(at, "a mapping with the key \"@type\"", node);
            return None;
        };
        let Some(said) = entries.iter().find(|e| e.key == TYPE) else {
            self.fail(at, "needs the key \"@type\", which says what it holds")
                .fix("write \"@type\": type.googleapis.com/…");
            return None;
        };
        let type_at = at.field(TYPE);
        self.errors.locate(&type_at, said.key_at);
        let inner = self.typed(said, &type_at);
        let Some(inner) = inner else {
            self.failed.insert(at);
            return None;
        };
        let spine = self.spine.take();
        let message = match WellKnown::of(inner.full_name()) {
            None | Some(WellKnown::Empty) => Some(self.fields(&inner, entries, at, true)),
            Some(kind) => self.wrapped(kind, &inner, entries, said.key_at, at),
        };
        self.spine = spine;
        let message = message?;
        let mut any = DynamicMessage::new(desc.clone());
        any.set_field_by_name("type_url", Value::String(format!("{TYPE_PREFIX}{}", inner.full_name())));
        let bytes = prost::Message::encode_to_vec(&message);
        any.set_field_by_name("value", Value::Bytes(bytes.into()));
        Some(any)
    }

    /// The message that an `@type` names.
    fn typed(&mut self, said: &Entry<'_>, at: &At<'_>) -> Option<MessageDescriptor> {
        let text = match &said.node.value {
            yaml::Value::Scalar(s) if matches!(s.resolve(), Resolved::Str(_)) => s.text.as_ref(),
            _ => {
                self.wrong(at, "a type URL", &said.node);
                return None;
            }
        };
        let Some(name) = text.strip_prefix(TYPE_PREFIX) else {
            let name = text.rsplit_once('/').map_or(text, |(_, name)| name);
            self.fail(at, format!("{text:?} is no type URL")).fix(format!("write {TYPE_PREFIX}{name}"));
            return None;
        };
        let found = self.schema.message(name);
        if found.is_none() {
            let (message, fix) = self.schema.why_not(name);
            self.fail(at, message).fix = fix;
        }
        found
    }

    /// A type of protobuf's own inside of an Any stands under the key `value`.
    fn wrapped(
        &mut self,
        kind: WellKnown,
        inner: &MessageDescriptor,
        entries: &[Entry<'_>],
        type_at: Position,
        at: &At<'_>,
    ) -> Option<DynamicMessage> {
        let here = at.field("value");
        let mut message = None;
        for entry in entries.iter().filter(|e| e.key != TYPE) {
            if entry.key == "value" {
                self.errors.locate(&here, entry.key_at);
                message = self.well_known(kind, inner, &entry.node, &here);
            } else {
                let other = at.field(&entry.key);
                self.errors.locate(&other, entry.key_at);
                self.fail(&other, format!("{} stands under the key \"value\"", inner.full_name()));
            }
        }
        if message.is_none() && !self.failed.contains(&here) {
            self.errors.locate(&here, type_at);
            self.fail(&here, "is required");
        }
        message
    }
}

/// Null is a value of `google.protobuf.Value`; for all other fields it means not set.
fn takes_null(field: &FieldDescriptor) -> bool {
    !field.is_list() && !field.is_map() && kind_takes_null(&field.kind())
}

fn kind_takes_null(kind: &Kind) -> bool {
    match kind {
        Kind::Message(m) => m.full_name() == "google.protobuf.Value",
        Kind::Enum(e) => e.full_name() == "google.protobuf.NullValue",
        _ => false,
    }
}

fn map_key(kind: &Kind, text: &str) -> Option<MapKey> {
    Some(match kind {
        Kind::String => MapKey::String(text.to_owned()),
        Kind::Bool => MapKey::Bool(text.parse().ok()?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => MapKey::I32(text.parse().ok()?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => MapKey::I64(text.parse().ok()?),
        Kind::Uint32 | Kind::Fixed32 => MapKey::U32(text.parse().ok()?),
        Kind::Uint64 | Kind::Fixed64 => MapKey::U64(text.parse().ok()?),
        _ => return None,
    })
}
