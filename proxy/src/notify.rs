//! Tells the manager of services that this process is ready: systemd with `Type=notify`, or another one with its protocol (sd_notify(3)).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tokio::sync::watch;

use crate::readiness::State;

/// The variable that says where a manager listens.
pub const SOCKET: &str = "NOTIFY_SOCKET";

/// Waits until the proxy is ready, and says so to `manager`, the value of [`SOCKET`], if there is one.
pub async fn when_ready(manager: Option<OsString>, mut state: watch::Receiver<State>) {
    if manager.is_some() && state.wait_for(|state| *state == State::Live).await.is_ok() {
        ready(manager);
    }
}

/// Says to `manager`, the value of [`SOCKET`], that this process is ready. If it cannot be told, the log says so.
pub fn ready(manager: Option<OsString>) {
    let Some(manager) = manager.filter(|manager| !manager.is_empty()) else { return };
    if let Err(error) = send(&manager, b"READY=1") {
        tracing::warn!(?manager, %error, "whoever started this process cannot be told that it is ready");
    }
}

/// `@` stands for the zero byte of an abstract address (unix(7)).
fn send(manager: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match manager.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that reads nothing must not stop this thread.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(message, &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::Readiness;

    fn read(socket: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    async fn is_told(manager: OsString, socket: UnixDatagram) {
        socket.set_nonblocking(true).unwrap();
        let (readiness, starting) = Readiness::new();
        let telling = tokio::spawn(when_ready(Some(manager), readiness.watch()));
        tokio::task::yield_now().await;
        assert_eq!(read(&socket), None, "it is not ready yet");
        drop(starting);
        telling.await.unwrap();
        assert_eq!(read(&socket).as_deref(), Some("READY=1"));
        assert_eq!(read(&socket), None, "once");
    }

    #[tokio::test]
    async fn a_manager_is_told_by_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        is_told(path.into(), socket).await;
    }

    #[tokio::test]
    async fn a_manager_is_told_by_an_abstract_name() {
        let name = format!("remora-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        is_told(format!("@{name}").into(), UnixDatagram::bind_addr(&address).unwrap()).await;
    }

    #[tokio::test]
    async fn without_a_manager_nobody_waits() {
        let (readiness, _starting) = Readiness::new();
        when_ready(None, readiness.watch()).await;
    }

    #[tokio::test]
    async fn a_manager_that_is_gone_is_no_failure() {
        let (readiness, starting) = Readiness::new();
        drop(starting);
        when_ready(Some("/nowhere/notify".into()), readiness.watch()).await;
        when_ready(Some(OsString::new()), readiness.watch()).await;
    }
}
