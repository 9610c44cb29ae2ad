//! The supported part of Envoy's API, as descriptors and checks.

use std::collections::HashMap;
use std::io::Read;

use flate2::read::GzDecoder;
use prost::Message;
use prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor};

use crate::any::TYPE_PREFIX;
use crate::blob::{Blob, MessageInfo, RefusedInfo};
use crate::glance::Looks;
use crate::pb::validate::FieldRules;
use crate::pgv::Rules;
use crate::suggest;

static SCHEMA: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/schema.bin.gz"));
static KNOWN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/known.txt.gz"));

/// What has no type of its own. It has plans as supported messages have, but only their fields lead to them.
const LOOSE: [&str; 3] = ["google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"];

/// Descriptors of the supported messages, with what has to be checked of each.
///
/// Loading takes 4 ms in a fresh process, 1.5 ms later, and 2 MB: drop it when a text or a batch of resources has been read.
#[derive(Debug)]
pub struct Schema {
    pool: DescriptorPool,
    plans: Vec<Plan>,
    /// Places of the plans by the names of their messages.
    places: HashMap<String, usize>,
}

/// What is known of a supported message.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) fields: Vec<FieldPlan>,
    pub(crate) refused: Vec<RefusedInfo>,
    /// Oneofs of which one member must be set: name and members.
    pub(crate) required_oneofs: Vec<(String, Vec<FieldDescriptor>)>,
    pub(crate) looks: Looks,
}

/// What is known of a supported field.
#[derive(Debug)]
pub(crate) struct FieldPlan {
    pub(crate) desc: FieldDescriptor,
    pub(crate) rules: Option<Rules>,
    /// The only values that are supported; empty for all.
    pub(crate) values: Vec<String>,
    pub(crate) sensitive: bool,
}

impl Schema {
    /// Unpacks the embedded schema.
    ///
    /// # Panics
    /// Never: the build script has loaded the same bytes.
    #[must_use]
    pub fn load() -> Self {
        Self::unpack()
            .unwrap_or_else(|e| unreachable!("the embedded schema was loaded once by the build script: {e}"))
    }

    fn unpack() -> Result<Self, Box<dyn std::error::Error>> {
        let mut bytes = Vec::new();
        GzDecoder::new(SCHEMA).read_to_end(&mut bytes)?;
        let blob = Blob::decode(bytes.as_slice())?;
        drop(bytes);
        let pool = DescriptorPool::decode(blob.descriptors.as_slice())?;
        let loose = LOOSE.iter().filter(|name| pool.get_message_by_name(name).is_some());
        let loose = loose.map(|name| MessageInfo { name: (*name).to_owned(), ..MessageInfo::default() });
        let mut messages = blob.messages;
        let supported = messages.len();
        messages.extend(loose);
        let mut places: HashMap<_, _> =
            messages.iter().enumerate().map(|(place, info)| (info.name.clone(), place)).collect();
        let mut plans = Vec::with_capacity(messages.len());
        for info in messages {
            let desc = pool.get_message_by_name(&info.name).ok_or_else(|| info.name.clone())?;
            plans.push(Plan::new(&desc, info, &|name| places.get(name).copied())?);
        }
        places.retain(|_, place| *place < supported);
        Ok(Self { pool, plans, places })
    }

    pub(crate) fn plan(&self, message: &str) -> Option<&Plan> {
        self.plan_at(self.place(message)?)
    }

    /// The place of a supported message among the plans.
    pub(crate) fn place(&self, message: &str) -> Option<usize> {
        self.places.get(message).copied()
    }

    pub(crate) fn plan_at(&self, place: usize) -> Option<&Plan> {
        self.plans.get(place)
    }

    /// The message that an Any or a caller names, when it is supported or one of protobuf's own types.
    pub(crate) fn message(&self, full_name: &str) -> Option<MessageDescriptor> {
        if !self.places.contains_key(full_name) && !full_name.starts_with("google.protobuf.") {
            return None;
        }
        self.pool.get_message_by_name(full_name)
    }

    /// Why [`Self::message`] knows no `full_name`: the message, and a fix.
    pub(crate) fn why_not(&self, full_name: &str) -> (String, Option<String>) {
        let mut known = String::new();
        if GzDecoder::new(KNOWN).read_to_string(&mut known).is_err() {
            known.clear();
        }
        if known.lines().any(|name| name == full_name) {
            return (format!("{full_name} is not supported by Remora"), None);
        }
        let fix = suggest::nearest(full_name, known.lines())
            .map(|near| format!("did you mean {TYPE_PREFIX}{near}?"));
        (format!("{full_name:?} is no type of the Envoy v3 API"), fix)
    }

    /// Names of all supported messages, sorted.
    #[cfg(test)]
    pub(crate) fn messages(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.places.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}

impl Plan {
    fn new(
        desc: &MessageDescriptor,
        info: MessageInfo,
        place: &impl Fn(&str) -> Option<usize>,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut fields = Vec::with_capacity(desc.fields().len());
        for field in desc.fields() {
            let said = info.fields.iter().find(|f| f.number == field.number());
            let rules = match said {
                Some(said) if !said.rules.is_empty() => {
                    Rules::new(FieldRules::decode(said.rules.as_slice())?)
                }
                _ => None,
            };
            fields.push(FieldPlan {
                desc: field,
                rules,
                values: said.map(|s| s.values.clone()).unwrap_or_default(),
                sensitive: said.is_some_and(|s| s.sensitive),
            });
        }
        let mut required_oneofs = Vec::new();
        for oneof in desc.oneofs() {
            if info.required_oneofs.iter().any(|name| name == oneof.name()) {
                required_oneofs.push((oneof.name().to_owned(), oneof.fields().collect()));
            }
        }
        let looks = Looks::new(desc, &fields, &required_oneofs, place);
        Ok(Self { fields, refused: info.refused, required_oneofs, looks })
    }

    pub(crate) fn field(&self, number: u32) -> Option<&FieldPlan> {
        self.fields.iter().find(|f| f.desc.number() == number)
    }

    /// The refused field that a text calls `key`.
    pub(crate) fn refused(&self, key: &str) -> Option<&RefusedInfo> {
        self.refused.iter().find(|r| r.name == key || suggest::camel(&r.name) == key)
    }
}
