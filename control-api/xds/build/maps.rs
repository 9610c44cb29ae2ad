//! Finds the maps of the API, supported or not: a control plane may send what the data plane does not take.

use std::collections::BTreeSet;

use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

use crate::blob::{MapField, MapMessage, MapTable};

const ANY: &str = "google.protobuf.Any";

/// All messages that hold a map, or an Any, or a message that does.
pub(crate) fn maps(pool: &DescriptorPool) -> MapTable {
    let all: Vec<_> = pool.all_messages().filter(|message| !message.is_map_entry()).collect();
    let mut found: BTreeSet<String> = std::iter::once(ANY.to_owned()).collect();
    loop {
        let leads = |field: &FieldDescriptor| {
            field.is_map() || inner(field).is_some_and(|m| found.contains(m.full_name()))
        };
        let more: Vec<_> = all
            .iter()
            .filter(|message| !found.contains(message.full_name()) && message.fields().any(|f| leads(&f)))
            .map(|message| message.full_name().to_owned())
            .collect();
        if more.is_empty() {
            break;
        }
        found.extend(more);
    }
    let names: Vec<_> = found.into_iter().collect();
    let messages = names.iter().map(|name| MapMessage {
        name: name.clone(),
        fields: pool.get_message_by_name(name).map(|message| fields(&message, &names)).unwrap_or_default(),
    });
    MapTable { messages: messages.collect() }
}

/// The message that a field holds, or that the values of a map are.
fn inner(field: &FieldDescriptor) -> Option<MessageDescriptor> {
    match field.kind() {
        Kind::Message(entry) if entry.is_map_entry() => inner(&entry.map_entry_value_field()),
        Kind::Message(message) => Some(message),
        _ => None,
    }
}

fn fields(message: &MessageDescriptor, names: &[String]) -> Vec<MapField> {
    if message.full_name() == ANY {
        return Vec::new();
    }
    let mut fields: Vec<_> = message
        .fields()
        .filter_map(|field| {
            let place =
                inner(&field).and_then(|m| names.binary_search_by(|n| n.as_str().cmp(m.full_name())).ok());
            let inside = place.and_then(|place| u32::try_from(place).ok());
            let field = MapField { number: field.number(), is_map: field.is_map(), inside };
            (field.is_map || inside.is_some()).then_some(field)
        })
        .collect();
    fields.sort_unstable_by_key(|field| field.number);
    fields
}
