//! Connections of the REST interface.

use std::time::Duration;

use axum::Router;
use tokio::net::{TcpListener, TcpStream};

use crate::connections::{self, Limits};

/// Connections at one time. What is above waits, while the one on which nothing has come to its end for longest is closed.
const CONNECTIONS: usize = 1024;
const LIMITS: Limits = Limits {
    first: Duration::from_secs(30),
    idle: Duration::from_secs(120),
    // Watches last longer.
    exchange: Duration::from_secs(120),
    streams: 200,
};

/// Serves `router` on `listener` for ever.
pub async fn serve(listener: TcpListener, router: Router) {
    let serve = move |stream: TcpStream, address, place| {
        tokio::spawn(connections::http(stream, address, router.clone(), LIMITS, place));
    };
    connections::accept(listener, CONNECTIONS, serve).await;
}
