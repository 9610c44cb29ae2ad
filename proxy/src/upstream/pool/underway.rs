//! Connections that are being made, for those who wait.

use super::EndpointPool;

/// One task connects with HTTP/2; the others wait.
pub(super) struct Connecting<'a>(&'a EndpointPool);

impl<'a> Connecting<'a> {
    pub(super) fn start(pool: &'a EndpointPool) -> Self {
        pool.h2_connecting.set(true);
        Self(pool)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.h2_connecting.set(false);
        self.0.changed.notify_waiters();
        self.0.tell_others();
    }
}

/// A connection for one request, or for opaque bytes. One of those who wait is told when it is there, and may have its permit when it is not.
pub(super) struct Underway<'a>(&'a EndpointPool);

impl<'a> Underway<'a> {
    pub(super) fn start(pool: &'a EndpointPool) -> Self {
        pool.connecting.set(pool.connecting.get() + 1);
        Self(pool)
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.connecting.set(self.0.connecting.get() - 1);
        self.0.tell();
    }
}
