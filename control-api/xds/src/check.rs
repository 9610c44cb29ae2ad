//! Checks of a message that has been read, from text or from protobuf bytes: is every set field supported, and do the
//! values keep the rules of the API? Messages inside, and inside of Anys, included.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, ReflectMessage, Value};

use crate::any;
use crate::diag::{At, Errors, Failed};
use crate::pgv;
use crate::schema::{FieldPlan, Plan, Schema};

/// Most Anys inside of one another.
pub(crate) const MAX_ANYS: usize = 16;

/// A walk through one message.
pub(crate) struct Checker<'s, 'e> {
    schema: &'s Schema,
    errors: &'e mut Errors,
    failed: &'e Failed,
    anys: usize,
}

impl<'s, 'e> Checker<'s, 'e> {
    /// Mistakes go to `errors`; fields in `failed` have been reported already.
    pub(crate) fn new(schema: &'s Schema, errors: &'e mut Errors, failed: &'e Failed) -> Self {
        Self { schema, errors, failed, anys: 0 }
    }

    /// Checks `message`, which stands at `at`. `rules` is off inside of a message whose rules the API skips.
    pub(crate) fn message(&mut self, message: &DynamicMessage, at: &At<'_>, rules: bool) {
        let desc = message.descriptor();
        let name = desc.full_name();
        if name == "google.protobuf.Any" {
            self.any(message, at, rules);
            return;
        }
        if name.starts_with("google.protobuf.") {
            return;
        }
        let schema = self.schema;
        let Some(plan) = schema.plan(name) else {
            self.unsupported_type(name, at);
            return;
        };
        for field in &plan.fields {
            self.field(field, message, at, rules);
        }
        let refused = self.unknown_fields(plan, message, at);
        if rules {
            self.oneofs(plan, message, at, &refused);
        }
    }

    fn unsupported_type(&mut self, name: &str, at: &At<'_>) {
        let (said, fix) = self.schema.why_not(name);
        self.errors.report(at, said).fix = fix;
    }

    /// Checks what an Any holds.
    pub(crate) fn any(&mut self, message: &DynamicMessage, at: &At<'_>, rules: bool) {
        let url = message.get_field_by_name("type_url");
        let url = url.as_deref().and_then(Value::as_str).unwrap_or_default();
        let Some(name) = any::type_name(url) else {
            self.errors
                .report(at, format!("the type URL {url:?} has no type"))
                .fix("write type.googleapis.com/…");
            return;
        };
        let Some(desc) = self.schema.message(name) else {
            self.unsupported_type(name, at);
            return;
        };
        if self.anys == MAX_ANYS {
            self.errors
                .report(at, format!("more than {MAX_ANYS} messages of type Any inside of one another"));
            return;
        }
        let value = message.get_field_by_name("value");
        let bytes = value.as_deref().and_then(Value::as_bytes).cloned().unwrap_or_default();
        match DynamicMessage::decode(desc, bytes) {
            Ok(inner) => {
                self.anys += 1;
                self.message(&inner, at, rules);
                self.anys -= 1;
            }
            Err(e) => {
                self.errors.report(at, format!("the bytes are no valid {name}: {e}"));
            }
        }
    }

    fn field(&mut self, plan: &FieldPlan, message: &DynamicMessage, at: &At<'_>, rules: bool) {
        let set = message.has_field(&plan.desc);
        if !set && (plan.rules.is_none() || !rules) {
            return;
        }
        let here = at.field(plan.desc.name());
        if self.failed.contains(&here) {
            return;
        }
        let value = message.get_field(&plan.desc);
        let mut inside = rules;
        if let Some(list) = plan.rules.as_ref().filter(|_| rules) {
            inside &= !list.skip;
            let (errors, failed) = (&mut *self.errors, self.failed);
            let mut report = |at: &At<'_>, broken: String| {
                if !failed.contains(at) {
                    errors.report(at, broken);
                }
            };
            list.field(&plan.desc, set, &value, &here, &mut report);
        }
        if set {
            self.values(plan, &value, &here);
            self.inside(&plan.desc, &value, &here, inside);
        }
    }

    /// Only some values of a field may be supported.
    fn values(&mut self, plan: &FieldPlan, value: &Value, at: &At<'_>) {
        if plan.values.is_empty() {
            return;
        }
        let kind = plan.desc.kind();
        if let Value::List(list) = value {
            for (index, item) in list.iter().enumerate() {
                self.one_value(plan, &kind, item, &at.index(index));
            }
        } else {
            self.one_value(plan, &kind, value, at);
        }
    }

    fn one_value(&mut self, plan: &FieldPlan, kind: &Kind, value: &Value, at: &At<'_>) {
        let text = text_of(kind, value);
        if self.failed.contains(at) || plan.values.contains(&text) {
            return;
        }
        let all = plan.values.join(", ");
        self.errors.report(at, format!("{text} is not supported by Remora")).fix(format!("supported: {all}"));
    }

    fn inside(&mut self, field: &FieldDescriptor, value: &Value, at: &At<'_>, rules: bool) {
        match value {
            Value::Message(m) => self.message(m, at, rules),
            Value::List(list) if matches!(field.kind(), Kind::Message(_)) => {
                for (index, item) in list.iter().enumerate() {
                    let here = at.index(index);
                    if let Some(m) = item.as_message().filter(|_| !self.failed.contains(&here)) {
                        self.message(m, &here, rules);
                    }
                }
            }
            Value::Map(map) => {
                let mut entries: Vec<_> =
                    map.iter().filter_map(|(k, v)| Some((k, v.as_message()?))).collect();
                entries.sort_by_key(|(key, _)| *key);
                for (key, m) in entries {
                    let name = pgv::key_text(key);
                    let here = at.field(&name);
                    if !self.failed.contains(&here) {
                        self.message(m, &here, rules);
                    }
                }
            }
            _ => {}
        }
    }

    /// Fields that came as bytes and that the schema does not have. Answers the oneofs that they belong to.
    fn unknown_fields<'p>(&mut self, plan: &'p Plan, message: &DynamicMessage, at: &At<'_>) -> Vec<&'p str> {
        let mut oneofs = Vec::new();
        let mut seen = Vec::new();
        for unknown in message.unknown_fields() {
            let number = unknown.number();
            if seen.contains(&number) {
                continue;
            }
            seen.push(number);
            if let Some(refused) = plan.refused.iter().find(|r| r.number == number) {
                oneofs.push(refused.oneof.as_str());
                let error = self.errors.report(&at.field(&refused.name), NOT_SUPPORTED);
                error.fix = (!refused.fix.is_empty()).then(|| refused.fix.clone());
            } else {
                self.errors
                    .report(at, format!("has a field number {number}, which the Envoy v3 API does not know"));
            }
        }
        oneofs
    }

    fn oneofs(&mut self, plan: &Plan, message: &DynamicMessage, at: &At<'_>, refused: &[&str]) {
        for (name, members) in &plan.required_oneofs {
            let set =
                members.iter().any(|m| message.has_field(m) || self.failed.contains(&at.field(m.name())));
            if set || refused.contains(&name.as_str()) || self.failed.contains(&at.field(name)) {
                continue;
            }
            let all: Vec<_> = members.iter().map(FieldDescriptor::name).collect();
            let said = match all.as_slice() {
                [one] => format!("{one} is required"),
                all => format!("one of {} is required", all.join(", ")),
            };
            self.errors.report(at, said);
        }
    }
}

/// What is said of a field or type outside the table.
pub(crate) const NOT_SUPPORTED: &str = "not supported by Remora";

/// A scalar as the table of supported values writes it.
pub(crate) fn text_of(kind: &Kind, value: &Value) -> String {
    match (kind, value) {
        (Kind::Enum(e), Value::EnumNumber(n)) => {
            e.get_value(*n).map_or_else(|| n.to_string(), |v| v.name().to_owned())
        }
        (_, Value::Bool(v)) => v.to_string(),
        (_, Value::I32(v)) => v.to_string(),
        (_, Value::I64(v)) => v.to_string(),
        (_, Value::U32(v)) => v.to_string(),
        (_, Value::U64(v)) => v.to_string(),
        (_, Value::String(v)) => v.clone(),
        // A wrapper.
        (_, Value::Message(m)) => match m.get_field_by_name("value") {
            Some(inner) => text_of(&Kind::Bool, &inner),
            None => String::new(),
        },
        _ => String::new(),
    }
}
