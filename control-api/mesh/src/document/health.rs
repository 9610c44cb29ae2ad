//! How callers find out whether endpoints are healthy.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{AppProtocol, ServicePort, Statuses, some_port};
use crate::span::Span;

/// An active health check, by each caller's sidecar: one of `http`, `grpc` and `tcp`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HealthCheck {
    /// A port of the Service. Left out: every port that can be asked so and that no other check names.
    #[serde(default, deserialize_with = "some_port")]
    pub port: Option<u16>,
    /// A request.
    #[serde(default)]
    pub http: Option<HttpCheck>,
    /// A call of `grpc.health.v1.Health/Check`.
    #[serde(default)]
    pub grpc: Option<GrpcCheck>,
    /// A connection.
    #[serde(default)]
    pub tcp: Option<TcpCheck>,
    /// Time between checks; 10 seconds when it is left out.
    #[serde(default)]
    pub interval: Option<Span>,
    /// How long an answer may take; 1 second when it is left out.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// Failures in a row that take an endpoint out; 3 when it is left out.
    #[serde(default)]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row that take it in again; 2 when it is left out.
    #[serde(default)]
    pub healthy_threshold: Option<u32>,
}

impl HealthCheck {
    /// Whether a port can be asked so.
    #[must_use]
    pub const fn is_spoken(&self, port: AppProtocol) -> bool {
        let http = self.http.is_none() || !matches!(port, AppProtocol::Tcp);
        let grpc = self.grpc.is_none() || matches!(port, AppProtocol::Grpc | AppProtocol::Http2);
        http && grpc
    }

    /// Whether it is for a port: the port that it names, or every one that can be asked so. Servers of gRPC seldom answer anything else.
    #[must_use]
    pub fn is_for(&self, port: &ServicePort) -> bool {
        let unusual = self.http.is_some() && port.speaks() == AppProtocol::Grpc;
        self.is_spoken(port.speaks()) && self.port.map_or(!unusual, |wanted| wanted == port.port)
    }

    /// The check of a port, and its place in the list: one that names the port before one that names none.
    #[must_use]
    pub fn of<'a>(list: &'a [Self], port: &ServicePort) -> Option<(usize, &'a Self)> {
        let fits = || list.iter().enumerate().filter(|(_, check)| check.is_for(port));
        fits().find(|(_, check)| check.port.is_some()).or_else(|| fits().next())
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpCheck {
    /// Path, and query if there is one.
    pub path: String,
    /// Host; the Service's name when it is left out.
    #[serde(default)]
    pub host: Option<String>,
    /// Statuses of a healthy endpoint; 200 when it is left out.
    #[serde(default)]
    pub expected_statuses: Vec<Statuses>,
}

/// A call of `grpc.health.v1.Health/Check`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcCheck {
    /// The service that is asked for; the server as a whole when it is left out.
    #[serde(default)]
    pub service: String,
}

/// A connection, and what goes over it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TcpCheck {
    /// Sent as soon as there is a connection.
    #[serde(default)]
    pub send: String,
    /// Must come. Without it a connection is enough.
    #[serde(default)]
    pub receive: String,
}
