//! Session resumption: tickets with an exact lifetime on the server side, a session store on the client side that
//! costs nothing until the first session.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::server::ProducesTickets;
use rustls_pki_types::ServerName;

use super::unix_now;

/// Tickets under rotating keys. The keys turn over on their own schedule; each ticket also carries its end, so that it
/// is never accepted for longer than `session_timeout`.
pub(super) struct Tickets {
    inner: Arc<dyn ProducesTickets>,
    lifetime: u32,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

impl Tickets {
    /// Fresh keys: no ticket given out before is accepted.
    pub(super) fn new(lifetime: Duration) -> Result<Arc<Self>, rustls::Error> {
        let inner = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        // RFC 8446 §4.6.1: at most seven days.
        let lifetime = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).min(7 * 24 * 3600);
        Ok(Arc::new(Self { inner, lifetime }))
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.lifetime.min(self.inner.lifetime())
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut dated = Vec::with_capacity(plain.len() + 8);
        dated.extend_from_slice(&(unix_now() + i64::from(self.lifetime)).to_be_bytes());
        dated.extend_from_slice(plain);
        self.inner.encrypt(&dated)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let dated = self.inner.decrypt(cipher)?;
        let (end, plain) = dated.split_first_chunk::<8>()?;
        (i64::from_be_bytes(*end) > unix_now()).then(|| plain.to_vec())
    }
}

/// Sessions of one client context. A mesh has thousands of contexts and uses few of them at a time: the tables are
/// made when the first session is there to be kept.
pub(super) struct LazySessions {
    limit: usize,
    store: OnceLock<ClientSessionMemoryCache>,
}

impl fmt::Debug for LazySessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazySessions").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl LazySessions {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, store: OnceLock::new() }
    }

    fn made(&self) -> &ClientSessionMemoryCache {
        self.store.get_or_init(|| ClientSessionMemoryCache::new(self.limit))
    }
}

impl ClientSessionStore for LazySessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.made().set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.store.get()?.kx_hint(server_name)
    }

    fn set_tls12_session(&self, server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        self.made().set_tls12_session(server_name, value);
    }

    fn tls12_session(&self, server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.store.get()?.tls12_session(server_name)
    }

    fn remove_tls12_session(&self, server_name: &ServerName<'static>) {
        if let Some(store) = self.store.get() {
            store.remove_tls12_session(server_name);
        }
    }

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.made().insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.store.get()?.take_tls13_ticket(server_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_ends_with_its_lifetime_and_with_its_keys() {
        let tickets = Tickets::new(Duration::from_secs(60)).unwrap();
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(Tickets::new(Duration::from_secs(60)).unwrap().decrypt(&ticket), None);
        let ended = Tickets { inner: Arc::clone(&tickets.inner), lifetime: 0 };
        assert_eq!(ended.decrypt(&ended.encrypt(b"session").unwrap()), None);
    }
}
