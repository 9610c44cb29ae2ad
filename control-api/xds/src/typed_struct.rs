//! `xds.type.v3.TypedStruct`: the configuration of an extension that has no message of its own in the API.

use prost::{Message, Name};

use crate::pb::google::protobuf::Struct;

/// The message.
#[derive(Clone, PartialEq, Message)]
pub struct TypedStruct {
    /// What `value` is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The fields.
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

impl Name for TypedStruct {
    const PACKAGE: &'static str = "xds.type.v3";
    const NAME: &'static str = "TypedStruct";

    fn type_url() -> String {
        crate::any::type_url::<Self>()
    }
}
