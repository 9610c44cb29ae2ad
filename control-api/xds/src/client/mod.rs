//! The client's side of xDS: what a data plane subscribes to, and what it has.
//!
//! [`Subscriptions`] is a pure state machine of both variants of the protocol; [`Failover`] decides which server to try next, and
//! when; [`run`] connects the two to gRPC and to the data plane, which gets one [`Batch`] at a time and answers what of it is in
//! force.

mod drive;
mod failover;
mod link;
mod subscriptions;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use drive::{Changed, Connecting, Connector, Duplex, Event, Settings, open, run};
pub use failover::Failover;
pub use subscriptions::{Answer, Batch, Incoming, Names, Request, Response, Subscriptions};

use crate::any;
use crate::kind::Kind;
use crate::pb::envoy::service::discovery::v3::{ResourceError, ResourceName};
use crate::pb::google::rpc::Status;

/// Names and versions of what is in force.
pub type Versions = BTreeMap<Arc<str>, Arc<str>>;

/// Which variant of the protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// `DELTA_GRPC`: only what changed.
    Delta,
    /// `GRPC`: the state of the world.
    Sotw,
}

/// A resource that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: Arc<str>,
    /// Why, for the person who wrote it.
    pub detail: String,
}

/// gRPC's INVALID_ARGUMENT.
const INVALID_ARGUMENT: i32 = 3;
/// A NACK is a request, and servers bound those.
const DETAIL_BYTES: usize = 64 << 10;

/// The `error_detail` of a NACK: each bad resource by name, in the text for people and as a `ResourceError` for programs.
fn error_detail(kind: Kind, refused: &[Refused]) -> Option<Status> {
    if refused.is_empty() {
        return None;
    }
    let mut message = String::new();
    let mut details = Vec::new();
    let mut bytes = 0;
    for Refused { name, detail } in refused {
        let line = format!("{kind} {name}: {detail}\n");
        bytes += 2 * line.len();
        if bytes > DETAIL_BYTES && !details.is_empty() {
            message.push_str("and more\n");
            break;
        }
        message.push_str(&line);
        details.push(any::pack(&ResourceError {
            resource_name: Some(ResourceName { name: name.to_string(), ..ResourceName::default() }),
            error_detail: Some(Status {
                code: INVALID_ARGUMENT,
                message: detail.clone(),
                details: Vec::new(),
            }),
        }));
    }
    Some(Status { code: INVALID_ARGUMENT, message: message.trim_end().to_owned(), details })
}
