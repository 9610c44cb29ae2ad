//! Filters of HTTPRoute and GRPCRoute.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Cors, RequestMirror, Unsupported, some_port};

/// `type` of a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum HttpFilterType {
    /// Changes headers of the request.
    RequestHeaderModifier,
    /// Changes headers of the response.
    ResponseHeaderModifier,
    /// Changes host or path of the request.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Answers with a redirect.
    RequestRedirect,
    /// Sends copies of requests somewhere else.
    RequestMirror,
    /// Answers pages of other origins.
    #[serde(rename = "CORS")]
    Cors,
    /// Not supported yet: requests of its rule are refused.
    ExternalAuth,
    /// Not supported, there are no extensions: requests of its rule are refused.
    ExtensionRef,
}

impl HttpFilterType {
    /// As documents write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "RequestHeaderModifier",
            Self::ResponseHeaderModifier => "ResponseHeaderModifier",
            Self::UrlRewrite => "URLRewrite",
            Self::RequestRedirect => "RequestRedirect",
            Self::RequestMirror => "RequestMirror",
            Self::Cors => "CORS",
            Self::ExternalAuth => "ExternalAuth",
            Self::ExtensionRef => "ExtensionRef",
        }
    }

    /// Whether a rule can have it. Requests of a rule with one that is not supported are refused: left out, it would let through what it
    /// may be there to stop (`HTTPRouteFilter` of the Gateway API).
    #[must_use]
    pub const fn is_supported(self) -> bool {
        !matches!(self, Self::ExternalAuth | Self::ExtensionRef)
    }

    /// The same for one backend of a rule.
    #[must_use]
    pub const fn is_supported_for_one_backend(self) -> bool {
        matches!(self, Self::RequestHeaderModifier | Self::ResponseHeaderModifier)
    }
}

/// A filter: the field of its type is set, and no other.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpFilter {
    /// Which.
    #[serde(rename = "type")]
    pub kind: HttpFilterType,
    /// For RequestHeaderModifier.
    #[serde(default)]
    pub request_header_modifier: Option<HeaderModifier>,
    /// For ResponseHeaderModifier.
    #[serde(default)]
    pub response_header_modifier: Option<HeaderModifier>,
    /// For URLRewrite.
    #[serde(default)]
    pub url_rewrite: Option<UrlRewrite>,
    /// For RequestRedirect.
    #[serde(default)]
    pub request_redirect: Option<RequestRedirect>,
    /// For RequestMirror.
    #[serde(default)]
    pub request_mirror: Option<RequestMirror>,
    /// For CORS.
    #[serde(default)]
    pub cors: Option<Cors>,
    /// For ExternalAuth.
    #[serde(default)]
    pub external_auth: Option<Unsupported>,
    /// For ExtensionRef.
    #[serde(default)]
    pub extension_ref: Option<Unsupported>,
}

/// Changes of headers.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderModifier {
    /// Replaced, or added.
    #[serde(default)]
    pub set: Vec<Header>,
    /// Added to what is there.
    #[serde(default)]
    pub add: Vec<Header>,
    /// Removed.
    #[serde(default)]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// A rewrite.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UrlRewrite {
    /// The new host.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The new path.
    #[serde(default)]
    pub path: Option<PathModifier>,
}

/// How a path is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum PathModifierType {
    /// As a whole.
    ReplaceFullPath,
    /// The part that the rule's prefix matched.
    ReplacePrefixMatch,
}

/// A new path.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PathModifier {
    /// How.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// For ReplaceFullPath.
    #[serde(default)]
    pub replace_full_path: Option<String>,
    /// For ReplacePrefixMatch.
    #[serde(default)]
    pub replace_prefix_match: Option<String>,
}

/// A redirect.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestRedirect {
    /// `http` or `https`; the request's when it is left out.
    #[serde(default)]
    pub scheme: Option<String>,
    /// The request's when it is left out.
    #[serde(default)]
    pub hostname: Option<String>,
    /// The request's when it is left out.
    #[serde(default)]
    pub path: Option<PathModifier>,
    /// The scheme's, or the request's, when it is left out.
    #[serde(default, deserialize_with = "some_port")]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "found")]
    pub status_code: u16,
}

const fn found() -> u16 {
    302
}
