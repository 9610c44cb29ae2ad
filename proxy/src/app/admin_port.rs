//! The admin port, which may come from a predecessor and go to an heir.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::restart::Restart;
use super::{Shared, StartError};
use crate::admin::{Admin, BoundAdmin, OpenAnswers, Pages};
use crate::restart::{PATIENCE, Place};

/// Between two tries to have the port of a process that was ended.
const PAUSE: Duration = Duration::from_millis(10);

/// The server, if the bootstrap has one.
pub(super) struct AdminPort {
    admin: Arc<Admin>,
    shared: Arc<Shared>,
    /// Until it serves.
    bound: Option<BoundAdmin>,
    serves: Option<(SocketAddr, OpenAnswers)>,
}

impl AdminPort {
    /// Binds it, and serves unless another process does until this one takes over.
    ///
    /// # Errors
    /// The address cannot be had.
    pub(super) async fn bind(
        admin: Admin,
        shared: &Arc<Shared>,
        restart: &mut Restart,
    ) -> Result<Self, StartError> {
        let mut port = Self { admin: Arc::new(admin), shared: Arc::clone(shared), bound: None, serves: None };
        match port.find(restart).await {
            // Whose it is does not answer, and is ended later.
            Err(error) if restart.is_stuck() && error.kind() == io::ErrorKind::AddrInUse => {}
            found => found.map_err(|error| port.failed(&error))?,
        }
        if !restart.succeeds() {
            port.open(restart).await?;
        }
        Ok(port)
    }

    /// Serves, unless it does already.
    ///
    /// # Errors
    /// The address cannot be had, or the file for it not be written.
    pub(super) async fn open(&mut self, restart: &mut Restart) -> Result<(), StartError> {
        if self.serves.is_some() {
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        while self.bound.is_none() && self.shared.settings.admin.is_some() {
            match self.find(restart).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                    tokio::time::sleep(PAUSE).await;
                }
                found => found.map_err(|error| self.failed(&error))?,
            }
        }
        let Some(bound) = self.bound.take() else { return Ok(()) };
        if let Some(path) = &self.shared.options.admin_address_path {
            std::fs::write(path, bound.address.to_string()).map_err(|error| self.failed(&error))?;
        }
        self.serves = Some((bound.address, bound.answers()));
        tokio::spawn(bound.serve());
        Ok(())
    }

    async fn find(&mut self, restart: &mut Restart) -> io::Result<()> {
        let Some(address) = self.shared.settings.admin else { return Ok(()) };
        let (socket, inherited) = match restart.inherit(&Place::admin(address)).pop() {
            Some(socket) => (socket, 1),
            None => (tokio::net::TcpListener::bind(address).await?.into_std()?, 0),
        };
        let place = Place::admin(socket.local_addr()?);
        let sockets: [TcpListener; 1] = [socket];
        restart.opened(&place, &sockets, inherited).await;
        let [socket] = sockets;
        self.bound = Some(self.admin.serve_on(socket, Pages::All)?);
        Ok(())
    }

    fn failed(&self, error: &io::Error) -> StartError {
        let address = self.shared.settings.admin.map(|address| address.to_string()).unwrap_or_default();
        StartError::Resource(format!("admin {address}"), error.to_string())
    }

    /// Its address, once it serves.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.serves.as_ref().map(|(address, _)| *address)
    }

    /// Accepts no more; what is open is answered.
    pub(super) fn release(&self) {
        if let Some((_, answers)) = &self.serves {
            answers.accept_no_more();
        }
    }

    /// Waits until nothing is open, but not longer than `limit`.
    pub(super) async fn written(&self, limit: Duration) {
        if let Some((_, answers)) = &self.serves {
            answers.written(limit).await;
        }
    }
}
