//! Hot restart: a new process takes the listening sockets of the old one, so that nobody is refused or reset (docs/decisions/0017).
//!
//! The *heir* is the new process, the *keeper* is who has the sockets: the running proxy ([`keeper`]), or a supervisor ([`supervisor`]).
//! Both sides of the conversation are here; what becomes of listeners is the business of [`crate::app`].

pub mod heir;
pub mod keeper;
pub mod link;
pub mod supervisor;
mod wire;

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

pub use self::heir::Heir;
pub use self::link::Link;
pub use self::wire::{Place, SocketId};

/// A keeper that says nothing for this long is stuck: stopped, frozen, or worse.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Whom a process asks for the sockets of its predecessor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keeper {
    /// The proxy that runs, by its socket at this path; later this process listens there.
    Process(PathBuf),
    /// The supervisor that is the parent of this process, by the standard input.
    Supervisor,
}

/// A listening socket.
#[derive(Debug)]
pub struct Held {
    /// Whose it is.
    pub place: Place,
    /// The socket, or a copy of it.
    pub socket: TcpListener,
}

impl Held {
    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// The process may open no more files.
    pub fn copy(&self) -> io::Result<Self> {
        Ok(Self { place: self.place.clone(), socket: self.socket.try_clone()? })
    }

    /// Which socket it is.
    #[must_use]
    pub fn id(&self) -> SocketId {
        SocketId::of(self.place.address, &self.socket)
    }
}

/// What a process is asked by its heir.
#[derive(Debug)]
pub enum Request {
    /// Copies of all listening sockets, and something that the heir is known by for as long as it is there.
    Sockets(oneshot::Sender<(Vec<Held>, Arc<()>)>),
    /// To accept no more, because an heir does on these sockets, and to drain. The answer is false when there was another heir before.
    TakeOver(Vec<SocketId>, oneshot::Sender<bool>),
    /// To end: another heir was faster than this process.
    Late,
    /// The predecessor is gone before this process took over: nobody serves.
    Alone,
    /// To drain: the supervisor is gone.
    Orphaned,
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The other end must be of the same user.
fn same_user(channel: &wire::Channel) -> io::Result<Option<i32>> {
    let (other, pid) = channel.peer()?;
    if other == user() {
        return Ok(pid);
    }
    let text = format!("it is a process of user {other}, and this one is of user {}", user());
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}
