//! What people have the authority do.

use remora_proxy::tls::identity::SpiffeId;
use tracing::{info, warn};

use super::Ca;
use crate::ca::authority::Reason;
use crate::ca::{Refused, Root, System};

impl Ca {
    /// Announces a new root. The answer is its id.
    ///
    /// # Errors
    /// See [`Authority::announce`](crate::ca::Authority::announce).
    pub async fn rotate(&self) -> Result<String, Refused> {
        let domain = &self.settings.trust_domain;
        let id = self
            .change(|authority, now| {
                let root = Root::make(domain, now, &mut System)?;
                let id = root.id.clone();
                authority.announce(root, now, &mut System)?;
                Ok(id)
            })
            .await?;
        info!(root = id, "a new root is announced");
        Ok(id)
    }

    /// Trusts a root no more; see [`Authority::distrust`](crate::ca::Authority::distrust). The answer is its id.
    ///
    /// # Errors
    /// See [`Authority::distrust`](crate::ca::Authority::distrust).
    pub async fn distrust(&self, id: &str) -> Result<String, Refused> {
        let id = self.change(|authority, now| authority.distrust(id, now)).await?;
        warn!(root = id, "a root is no longer trusted, and nothing that it signed");
        Ok(id)
    }

    /// Revokes certificates: serial numbers and when they end.
    ///
    /// # Errors
    /// See [`Authority::revoke`](crate::ca::Authority::revoke).
    pub async fn revoke(&self, certificates: &[(String, u64)], reason: Reason) -> Result<(), Refused> {
        self.change(|authority, now| authority.revoke(certificates, reason, now)).await
    }

    /// Revokes certificates of an identity; see [`Authority::revoke_as_many_as_fit`](crate::ca::Authority::revoke_as_many_as_fit). The answer is those that are revoked now, and how many
    /// are not.
    ///
    /// # Errors
    /// The store.
    pub async fn revoke_as_many_as_fit(
        &self,
        mut certificates: Vec<(String, u64)>,
        reason: Reason,
    ) -> Result<(Vec<String>, usize), Refused> {
        // What ends last does harm the longest.
        certificates.sort_by_key(|(_, until)| std::cmp::Reverse(*until));
        let left =
            self.change(|authority, now| authority.revoke_as_many_as_fit(&certificates, reason, now)).await?;
        let revoked = self.read(|authority| {
            let serials = certificates.into_iter().map(|(serial, _)| serial);
            serials.filter(|serial| authority.is_revoked(serial)).collect()
        });
        Ok((revoked?, left))
    }

    /// Signs nothing for `identity` from now on.
    ///
    /// # Errors
    /// See [`Authority::bar`](crate::ca::Authority::bar).
    pub async fn bar(&self, identity: &SpiffeId, reason: Reason) -> Result<(), Refused> {
        self.change(|authority, now| authority.bar(identity, reason, now)).await
    }

    /// Signs for `identity` again; see [`Authority::restore`](crate::ca::Authority::restore).
    ///
    /// # Errors
    /// The store.
    pub async fn restore(&self, identity: &SpiffeId) -> Result<bool, Refused> {
        self.change(|authority, _| Ok(authority.restore(identity))).await
    }
}
