//! `google.protobuf.Any`: packing, unpacking, type URLs.

use prost::{Message, Name};

use crate::pb::google::protobuf::Any;
use crate::wire::Wire;

/// What every type URL starts with.
pub const TYPE_PREFIX: &str = "type.googleapis.com/";

/// An Any that cannot be unpacked as the message that was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnpackError {
    /// It holds another type.
    #[error("holds {found}, not {wanted}")]
    Type {
        /// Type URL of the Any.
        found: String,
        /// Full name of the message that was asked for.
        wanted: String,
    },
    /// Its bytes are no such message.
    #[error("not a valid {wanted}: {error}")]
    Bytes {
        /// Full name of the message that was asked for.
        wanted: String,
        /// What the decoder says.
        error: prost::DecodeError,
    },
}

/// The type URL of `M`.
#[must_use]
pub fn type_url<M: Name>() -> String {
    format!("{TYPE_PREFIX}{}", M::full_name())
}

/// The full message name in a type URL; None when it has no slash.
#[must_use]
pub fn type_name(type_url: &str) -> Option<&str> {
    type_url.rsplit_once('/').map(|(_, name)| name)
}

/// Whether `any` holds an `M`.
#[must_use]
pub fn is<M: Name>(any: &Any) -> bool {
    type_name(&any.type_url) == Some(M::full_name().as_str())
}

/// Puts `message` into an Any.
#[must_use]
pub fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: type_url::<M>(), value: message.encode_to_vec() }
}

/// Takes an `M` out of `any`.
///
/// # Errors
/// `any` holds another type, or bytes that are no `M`.
pub fn unpack<M: Wire>(any: &Any) -> Result<M, UnpackError> {
    if !is::<M>(any) {
        return Err(UnpackError::Type { found: any.type_url.clone(), wanted: M::full_name() });
    }
    M::from_bytes(&any.value).map_err(|error| UnpackError::Bytes { wanted: M::full_name(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::listener::v3::Listener;

    #[test]
    fn an_any_gives_back_what_was_packed_and_nothing_else() {
        let cluster = Cluster { name: "a".into(), ..Cluster::default() };
        let any = pack(&cluster);
        assert_eq!(any.type_url, "type.googleapis.com/envoy.config.cluster.v3.Cluster");
        assert_eq!(unpack::<Cluster>(&any), Ok(cluster));
        let error = unpack::<Listener>(&any).unwrap_err().to_string();
        assert_eq!(
            error,
            "holds type.googleapis.com/envoy.config.cluster.v3.Cluster, not envoy.config.listener.v3.Listener"
        );
        let broken = Any { value: vec![0xff], ..any };
        assert!(matches!(unpack::<Cluster>(&broken), Err(UnpackError::Bytes { .. })));
    }
}
