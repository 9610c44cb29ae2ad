//! What all nodes of the tests share.

use remora_mesh::{Credentials, Listening, OutboundTraffic, Profile};

pub(crate) fn profile() -> Profile {
    Profile {
        trust_domain: "mesh.test".into(),
        federated: Vec::new(),
        credentials: Credentials::Issued,
        listening: Listening::AsWritten,
        ecdh_curves: Vec::new(),
        outbound_traffic: OutboundTraffic::AllowAny,
    }
}
