//! `xds.type.v3.TypedStruct`, which Envoy's API has beside its own packages and `envoy-types` leaves out.

use prost_reflect::prost_types::field_descriptor_proto::{Label, Type};
use prost_reflect::prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto};

/// The file of the message.
pub(crate) fn file() -> FileDescriptorProto {
    let field = |name: &str, number, kind: Type, type_name: Option<&str>| FieldDescriptorProto {
        name: Some(name.into()),
        number: Some(number),
        label: Some(Label::Optional.into()),
        r#type: Some(kind.into()),
        type_name: type_name.map(Into::into),
        ..FieldDescriptorProto::default()
    };
    let message = DescriptorProto {
        name: Some("TypedStruct".into()),
        field: vec![
            field("type_url", 1, Type::String, None),
            field("value", 2, Type::Message, Some(".google.protobuf.Struct")),
        ],
        ..DescriptorProto::default()
    };
    FileDescriptorProto {
        name: Some("xds/type/v3/typed_struct.proto".into()),
        package: Some("xds.type.v3".into()),
        dependency: vec!["google/protobuf/struct.proto".into()],
        message_type: vec![message],
        syntax: Some("proto3".into()),
        ..FileDescriptorProto::default()
    }
}
