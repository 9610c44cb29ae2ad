//! Who the server of a connection is, for as long as the connection lives.

use std::cell::RefCell;
use std::sync::{Arc, Weak};

use super::cluster::Cluster;
use crate::tls::identity::PeerIdentity;
use crate::tls::verify::Trust;

/// A server whose certificate was verified.
#[derive(Debug)]
pub struct Server {
    peer: Arc<PeerIdentity>,
    /// The trust that does not revoke it.
    judged_by: RefCell<Weak<Trust>>,
}

impl Server {
    /// The server of a handshake.
    #[must_use]
    pub const fn new(peer: Arc<PeerIdentity>) -> Self {
        Self { peer, judged_by: RefCell::new(Weak::new()) }
    }

    /// Whether a revocation list that `cluster` goes by now names its certificate. The lists are looked through once.
    #[must_use]
    pub fn is_revoked(&self, cluster: &Cluster) -> bool {
        let Some(tls) = &cluster.spec().tls else { return false };
        let mut judged_by = self.judged_by.borrow_mut();
        let Some(trust) = tls.peers().trust.other_than(&judged_by) else { return false };
        if trust.revokes(&self.peer) {
            return true;
        }
        *judged_by = Arc::downgrade(&trust);
        false
    }
}
