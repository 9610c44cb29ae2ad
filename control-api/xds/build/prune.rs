//! Cuts the API's descriptors down to the table.

use std::collections::{HashMap, HashSet};

use prost::Message;
use prost_reflect::prost_types::{
    DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet, MessageOptions,
};
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::Res;
use crate::blob::{Blob, FieldInfo, MessageInfo, RefusedInfo};
use crate::table::{Field, Section};

/// Full names of what stays.
#[derive(Default)]
struct Keep {
    /// Message -> names of its fields that stay; None for all.
    messages: HashMap<String, Option<HashSet<String>>>,
    enums: HashSet<String>,
}

/// The embedded schema for `table`.
pub(crate) fn prune(pool: &DescriptorPool, table: &[Section]) -> Res<Blob> {
    let mut keep = Keep::default();
    let mut infos = Vec::new();
    for section in table {
        let message = pool
            .get_message_by_name(&section.name)
            .ok_or_else(|| format!("supported.txt: there is no message {}", section.name))?;
        infos.push(message_info(pool, &message, section)?);
        let allowed = section.fields.iter().filter(|f| f.refused.is_none()).map(|f| f.name.clone());
        keep.messages.insert(section.name.clone(), Some(allowed.collect()));
    }
    for section in table {
        for line in section.fields.iter().filter(|f| f.refused.is_none()) {
            let field = pool.get_message_by_name(&section.name).and_then(|m| m.get_field_by_name(&line.name));
            let field = field.ok_or_else(|| unknown(section, line))?;
            reach(&mut keep, &field.kind()).map_err(|to| {
                format!("supported.txt: {}.{} needs a section [{to}]", section.name, line.name)
            })?;
        }
    }
    let mut files: Vec<_> = pool.file_descriptor_protos().filter_map(|f| file(&keep, f)).collect();
    let names: HashSet<String> = files.iter().map(|f| f.name().to_owned()).collect();
    for file in &mut files {
        file.dependency.retain(|d| names.contains(d));
    }
    let descriptors = FileDescriptorSet { file: files }.encode_to_vec();
    Ok(Blob { descriptors, messages: infos })
}

/// Names of all messages of the API, one a line: to tell a misspelt type from an unsupported one.
pub(crate) fn known_types(pool: &DescriptorPool) -> String {
    let mut names: Vec<String> = pool
        .all_messages()
        .filter(|m| !m.is_map_entry() && !m.full_name().starts_with("google."))
        .map(|m| m.full_name().to_owned())
        .collect();
    names.sort();
    names.join("\n")
}

fn unknown(section: &Section, line: &Field) -> String {
    format!("supported.txt: {} has no field {}", section.name, line.name)
}

/// Adds the type of a supported field. The error is the name of a message that has no section.
fn reach(keep: &mut Keep, kind: &Kind) -> Result<(), String> {
    match kind {
        Kind::Enum(e) => {
            keep.enums.insert(e.full_name().to_owned());
            Ok(())
        }
        Kind::Message(m) => {
            let name = m.full_name();
            if keep.messages.contains_key(name) {
                return Ok(());
            }
            if !m.is_map_entry() && !name.starts_with("google.protobuf.") {
                return Err(name.to_owned());
            }
            keep.messages.insert(name.to_owned(), None);
            m.fields().try_for_each(|f| reach(keep, &f.kind()))
        }
        _ => Ok(()),
    }
}

fn message_info(pool: &DescriptorPool, message: &MessageDescriptor, section: &Section) -> Res<MessageInfo> {
    for line in &section.fields {
        message.get_field_by_name(&line.name).ok_or_else(|| unknown(section, line))?;
    }
    let options = message.options();
    let unchecked = flag(pool, &options, "validate.disabled") || flag(pool, &options, "validate.ignored");
    let mut info = MessageInfo { name: section.name.clone(), ..MessageInfo::default() };
    for field in message.fields() {
        let line = section.fields.iter().find(|f| f.name == field.name());
        match line {
            Some(line) if line.refused.is_none() => {
                let field = field_info(pool, &field, line, unchecked)?;
                let plain = FieldInfo { number: field.number, ..FieldInfo::default() };
                if field != plain {
                    info.fields.push(field);
                }
            }
            line => info.refused.push(RefusedInfo {
                name: field.name().to_owned(),
                number: field.number(),
                fix: line.and_then(|l| l.refused.clone()).unwrap_or_default(),
                default_text: default_text(&field),
                oneof: field.containing_oneof().map(|o| o.name().to_owned()).unwrap_or_default(),
            }),
        }
    }
    let required = |o: &prost_reflect::OneofDescriptor| flag(pool, &o.options(), "validate.required");
    info.required_oneofs =
        message.oneofs().filter(|o| !unchecked && required(o)).map(|o| o.name().to_owned()).collect();
    Ok(info)
}

fn field_info(
    pool: &DescriptorPool,
    field: &FieldDescriptor,
    line: &Field,
    unchecked: bool,
) -> Res<FieldInfo> {
    let options = field.options();
    let rules = match pool.get_extension_by_name("validate.rules") {
        Some(ext) if !unchecked && options.has_extension(&ext) => {
            match options.get_extension(&ext).as_ref() {
                Value::Message(rules) => rules.encode_to_vec(),
                _ => return Err(format!("{}: odd validate.rules", field.full_name()).into()),
            }
        }
        _ => Vec::new(),
    };
    if let Kind::Enum(e) = field.kind() {
        for value in &line.values {
            e.get_value_by_name(value)
                .ok_or_else(|| format!("supported.txt: {} has no value {value}", field.full_name()))?;
        }
    }
    Ok(FieldInfo {
        number: field.number(),
        rules,
        values: line.values.clone(),
        sensitive: line.sensitive || flag(pool, &options, "udpa.annotations.sensitive"),
    })
}

fn flag(pool: &DescriptorPool, options: &DynamicMessage, name: &str) -> bool {
    pool.get_extension_by_name(name).is_some_and(|ext| options.get_extension(&ext).as_bool() == Some(true))
}

fn default_text(field: &FieldDescriptor) -> String {
    if field.is_map() {
        return "{}".to_owned();
    }
    if field.is_list() {
        return "[]".to_owned();
    }
    match field.kind() {
        Kind::Message(_) => "-".to_owned(),
        Kind::Enum(e) => e.default_value().name().to_owned(),
        Kind::Bool => "false".to_owned(),
        Kind::String | Kind::Bytes => String::new(),
        _ => "0".to_owned(),
    }
}

fn file(keep: &Keep, file: &FileDescriptorProto) -> Option<FileDescriptorProto> {
    let package = file.package().to_owned();
    let out = FileDescriptorProto {
        name: file.name.clone(),
        package: file.package.clone(),
        dependency: file.dependency.clone(),
        message_type: file.message_type.iter().filter_map(|m| message(keep, &package, m)).collect(),
        enum_type: enums(keep, &package, &file.enum_type),
        syntax: file.syntax.clone(),
        ..FileDescriptorProto::default()
    };
    (!out.message_type.is_empty() || !out.enum_type.is_empty()).then_some(out)
}

fn enums(keep: &Keep, scope: &str, list: &[EnumDescriptorProto]) -> Vec<EnumDescriptorProto> {
    let kept = list.iter().filter(|e| keep.enums.contains(&format!("{scope}.{}", e.name())));
    kept.cloned()
        .map(|mut e| {
            e.reserved_range.clear();
            e.reserved_name.clear();
            e.value.iter_mut().for_each(|v| v.options = None);
            e.options = e.options.filter(prost_reflect::prost_types::EnumOptions::allow_alias);
            e
        })
        .collect()
}

fn message(keep: &Keep, scope: &str, from: &DescriptorProto) -> Option<DescriptorProto> {
    let name = format!("{scope}.{}", from.name());
    let kept = keep.messages.get(&name);
    let mut out = DescriptorProto {
        name: from.name.clone(),
        nested_type: from.nested_type.iter().filter_map(|m| message(keep, &name, m)).collect(),
        enum_type: enums(keep, &name, &from.enum_type),
        ..DescriptorProto::default()
    };
    if let Some(only) = kept {
        let stays = |field: &str| only.as_ref().is_none_or(|only| only.contains(field));
        out.field = from.field.iter().filter(|f| stays(f.name())).cloned().collect();
        // A oneof without members is an error, so the indices move up.
        let mut moved = HashMap::new();
        for field in &mut out.field {
            field.options = None;
            if let Some(old) = field.oneof_index {
                let new = *moved.entry(old).or_insert_with(|| {
                    let decl = &from.oneof_decl[usize::try_from(old).unwrap_or_default()];
                    out.oneof_decl.push(decl.clone());
                    i32::try_from(out.oneof_decl.len() - 1).unwrap_or_default()
                });
                field.oneof_index = Some(new);
            }
        }
        out.oneof_decl.iter_mut().for_each(|o| o.options = None);
        let map_entry = from.options.as_ref().and_then(|o| o.map_entry);
        out.options =
            map_entry.map(|entry| MessageOptions { map_entry: Some(entry), ..MessageOptions::default() });
    }
    let empty = out.nested_type.is_empty() && out.enum_type.is_empty();
    (kept.is_some() || !empty).then_some(out)
}
