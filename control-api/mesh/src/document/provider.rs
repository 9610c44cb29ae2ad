//! External authorisation services, with the words of the Gateway API's HTTPRoute filter ExternalAuth (GEP-1494).

use schemars::JsonSchema;
use serde::Deserialize;

use super::{AppProtocol, BackendObjectReference};
use crate::span::Span;

/// Who is asked whether a request may go on, and how.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// What the service speaks.
    pub protocol: ProviderProtocol,
    /// Where it is.
    pub backend_ref: BackendObjectReference,
    /// For `GRPC`.
    #[serde(default)]
    pub grpc: Option<GrpcAuth>,
    /// For `HTTP`.
    #[serde(default)]
    pub http: Option<HttpAuth>,
    /// The service is shown the body of the request, too.
    #[serde(default)]
    pub forward_body: Option<ForwardBody>,
    /// How long an answer may take; 1 second when it is left out.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// A request about which there is no answer goes on. Otherwise it is refused.
    #[serde(default)]
    pub fail_open: bool,
}

/// What a service speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ProviderProtocol {
    /// `envoy.service.auth.v3.Authorization/Check`.
    #[serde(rename = "GRPC")]
    Grpc,
    /// The head of the request itself; 200 lets it pass.
    #[serde(rename = "HTTP")]
    Http,
}

impl ProviderProtocol {
    /// As documents write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "GRPC",
            Self::Http => "HTTP",
        }
    }

    /// Whether a port can carry it.
    #[must_use]
    pub const fn is_spoken(self, port: AppProtocol) -> bool {
        match self {
            Self::Grpc => matches!(port, AppProtocol::Grpc | AppProtocol::Http2),
            Self::Http => matches!(port, AppProtocol::Http | AppProtocol::Http2),
        }
    }
}

/// What a service that speaks gRPC is told.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GrpcAuth {
    /// Headers of the request; all of them when it is left out, or empty.
    #[serde(default)]
    pub allowed_headers: Vec<String>,
}

/// What a service that speaks HTTP is told, and what of its answer counts.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpAuth {
    /// Stands before the path of the request.
    #[serde(default)]
    pub path: String,
    /// Headers of the request, besides host and `Authorization`.
    #[serde(default)]
    pub allowed_headers: Vec<String>,
    /// Headers of an answer that allows: they replace those of the request.
    #[serde(default)]
    pub allowed_response_headers: Vec<String>,
}

/// How much of a body is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ForwardBody {
    /// Bytes; what is longer is shown up to here. 0 shows nothing.
    #[serde(default)]
    pub max_size: u32,
}
