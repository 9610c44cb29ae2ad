//! A connection to an endpoint, ready for HTTP or opaque bytes: TCP, then TLS when the cluster has it, all within the
//! cluster's connect timeout.

use std::net::SocketAddr;

use super::cluster::Cluster;
use super::connect::{self, ConnectError, Origin};
use super::endpoint::Endpoint;
use super::server::Server;
use crate::error::Reason;
use crate::io::{Io, ReadAhead};
use crate::limits::{Room, room};
use crate::tls::client::{AlpnOffer, Target};

/// Which protocol the connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// Opaque bytes: no ALPN but what the TLS context says.
    None,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/2 or HTTP/1.1, as the server prefers.
    Any,
}

/// A connection and what its handshake said.
#[derive(Debug)]
pub struct Connected {
    /// The byte stream.
    pub io: Io,
    /// Our side.
    pub local: Option<SocketAddr>,
    /// The server agreed on HTTP/2.
    pub is_h2: bool,
    /// Who the server is, when its certificate was verified.
    pub server: Option<Server>,
}

/// Connects to `endpoint` of `cluster`, with the address of `origin` if there is one.
///
/// # Errors
/// [`Reason::ConnectFailure`], [`Reason::ConnectTimeout`], [`Reason::UpstreamTls`]; [`Reason::Overloaded`] when it would take one of the last
/// files.
pub async fn connect(
    cluster: &Cluster,
    endpoint: &Endpoint,
    alpn: Alpn,
    origin: Option<Origin>,
) -> Result<Connected, Reason> {
    let spec = cluster.spec();
    let attempt = async {
        let tcp = connect::connect_from(endpoint.spec.address, &spec.connect, origin)
            .await
            .map_err(|e| log_connect(&spec.name, &e))?;
        if room(&tcp) == Room::Reserve {
            return Err(Reason::Overloaded);
        }
        let local = tcp.local_addr().ok();
        let Some(tls) = &spec.tls else {
            return Ok(Connected { io: Io::Tcp(tcp), local, is_h2: false, server: None });
        };
        let offer = match alpn {
            Alpn::None => AlpnOffer::Nothing,
            Alpn::Http1 => AlpnOffer::Http1,
            Alpn::Http2 => AlpnOffer::Http2,
            Alpn::Any => AlpnOffer::Any,
        };
        let target =
            Target { host: endpoint.spec.hostname.as_deref(), ..Target::new(endpoint.spec.address, offer) };
        match tls.connect(ReadAhead::new(tcp), target).await {
            Ok((stream, session)) => {
                let is_h2 = session.is_h2();
                let server = session.peer.filter(|peer| peer.verified).map(Server::new);
                if server.as_ref().is_some_and(|server| server.is_revoked(cluster)) {
                    tracing::debug!(cluster = &*spec.name, endpoint = %endpoint.spec.address, "revoked while it shook hands");
                    return Err(Reason::UpstreamTls);
                }
                Ok(Connected { io: Io::Tls(Box::new(stream.into())), local, is_h2, server })
            }
            Err(error) => {
                tracing::debug!(cluster = &*spec.name, endpoint = %endpoint.spec.address, %error, "upstream TLS");
                Err(Reason::UpstreamTls)
            }
        }
    };
    // One timeout over both handshakes, as in Envoy.
    let connected =
        tokio::time::timeout(spec.connect.timeout, attempt).await.unwrap_or(Err(Reason::ConnectTimeout));
    cluster.state().connects().ended(connected.as_ref().err().copied());
    connected
}

fn log_connect(cluster: &str, error: &ConnectError) -> Reason {
    tracing::debug!(cluster, %error, "upstream connect");
    error.reason
}
