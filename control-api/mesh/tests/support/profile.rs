//! What all nodes of the tests share.

use remora_mesh::{Credentials, Listening, Profile};

pub(crate) fn profile() -> Profile {
    Profile {
        trust_domain: "mesh.test".into(),
        credentials: Credentials::Files {
            certificate: "/certs/chain.pem".into(),
            key: "/certs/key.pem".into(),
            roots: "/certs/roots.pem".into(),
        },
        listening: Listening::AsWritten,
    }
}
