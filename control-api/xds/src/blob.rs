//! What the build script hands to the library: the descriptors of the supported part of the API and what is known of
//! its fields. Both sides include this file.

/// The embedded schema.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Blob {
    /// An encoded `FileDescriptorSet` with only the supported messages and fields, without options.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) descriptors: Vec<u8>,
    /// One entry for each supported message.
    #[prost(message, repeated, tag = "2")]
    pub(crate) messages: Vec<MessageInfo>,
}

/// A supported message.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MessageInfo {
    /// Full name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Supported fields of which there is something to say.
    #[prost(message, repeated, tag = "2")]
    pub(crate) fields: Vec<FieldInfo>,
    /// All other fields of the message in the API.
    #[prost(message, repeated, tag = "3")]
    pub(crate) refused: Vec<RefusedInfo>,
    /// Oneofs of which one member must be set.
    #[prost(string, repeated, tag = "4")]
    pub(crate) required_oneofs: Vec<String>,
}

/// A supported field.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FieldInfo {
    /// Field number.
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    /// An encoded `validate.FieldRules`; empty when there are no rules.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) rules: Vec<u8>,
    /// The only values that are supported; empty for all.
    #[prost(string, repeated, tag = "3")]
    pub(crate) values: Vec<String>,
    /// The value is a secret (`udpa.annotations.sensitive`).
    #[prost(bool, tag = "4")]
    pub(crate) sensitive: bool,
}

/// A field that exists in the API and is refused when set.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RefusedInfo {
    /// Field name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Field number.
    #[prost(uint32, tag = "2")]
    pub(crate) number: u32,
    /// What to do instead, or empty.
    #[prost(string, tag = "3")]
    pub(crate) fix: String,
    /// How a text spells the default value, which is not refused: `false`, `0`, the first enum value, `[]`, `{}`,
    /// nothing for an empty string, and `-` for a message, which has no default.
    #[prost(string, tag = "4")]
    pub(crate) default_text: String,
    /// The oneof that the field is in, or empty.
    #[prost(string, tag = "5")]
    pub(crate) oneof: String,
}

/// Where the API has maps: all messages that hold one, or may hold a message that does.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MapTable {
    /// By full name, sorted.
    #[prost(message, repeated, tag = "1")]
    pub(crate) messages: Vec<MapMessage>,
}

/// A message with a map somewhere inside.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MapMessage {
    /// Full name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// The fields that are maps, or lead to some, by number. Those of an Any are not told.
    #[prost(message, repeated, tag = "2")]
    pub(crate) fields: Vec<MapField>,
}

/// A field that is a map, or leads to one.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct MapField {
    /// Field number.
    #[prost(uint32, tag = "1")]
    pub(crate) number: u32,
    /// Whether it is a map itself.
    #[prost(bool, tag = "2")]
    pub(crate) is_map: bool,
    /// Where the message that it holds, or its values are, stands in the table; none when that has no maps.
    #[prost(uint32, optional, tag = "3")]
    pub(crate) inside: Option<u32>,
}
