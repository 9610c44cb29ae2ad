//! What requests that belong together have in common.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Unsupported;
use crate::span::Span;

/// What an endpoint is chosen by: one of the fields.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HashOn {
    /// The values of a header.
    #[serde(default)]
    pub header: Option<String>,
    /// The value of a cookie.
    #[serde(default)]
    pub cookie: Option<Cookie>,
    /// The first parameter of the query that has this name.
    #[serde(default)]
    pub query_parameter: Option<String>,
    /// The address of the client.
    #[serde(default)]
    pub source_ip: bool,
    /// What follows in the list is for requests that do not have this.
    #[serde(default)]
    pub terminal: bool,
}

/// A cookie.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cookie {
    /// Name.
    pub name: String,
    /// How long a client keeps it that had none and gets one; `0s` is until its end.
    #[serde(default)]
    pub ttl: Option<Span>,
    /// Path of the cookie that a client gets.
    #[serde(default)]
    pub path: Option<String>,
}

/// A session stays with its endpoint as long as that is healthy: one of `cookie` and `header`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Session {
    /// The client gets its endpoint in a cookie.
    #[serde(default)]
    pub cookie: Option<Cookie>,
    /// The client gets its endpoint in a header, and sends it back.
    #[serde(default)]
    pub header: Option<String>,
    /// No other endpoint will do: the answer is 503 then.
    #[serde(default)]
    pub strict: bool,
}

/// `sessionPersistence` of a rule (GEP-1619): its sessions stay with their endpoints.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SessionPersistence {
    /// Name of the cookie or header; see [`Self::name`] when it is left out.
    #[serde(default)]
    pub session_name: Option<String>,
    /// How long a client keeps a permanent cookie.
    #[serde(default)]
    pub absolute_timeout: Option<Span>,
    /// Sessions do not end because nobody uses them.
    #[serde(default)]
    pub idle_timeout: Option<Unsupported>,
    /// Where a client has its endpoint.
    #[serde(default, rename = "type")]
    pub kind: SessionType,
    /// For `Cookie`.
    #[serde(default)]
    pub cookie_config: Option<CookieConfig>,
}

impl SessionPersistence {
    /// Name of the cookie or header.
    #[must_use]
    pub fn name(&self) -> &str {
        let usual = match self.kind {
            SessionType::Cookie => "remora-session",
            SessionType::Header => "x-remora-session",
        };
        self.session_name.as_deref().unwrap_or(usual)
    }

    /// Whether the cookie ends before the client does.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.cookie_config.is_some_and(|config| config.lifetime_type == LifetimeType::Permanent)
    }

    /// The same in the words of a TrafficPolicy.
    #[must_use]
    pub fn session(&self) -> Session {
        let name = self.name().to_owned();
        match self.kind {
            SessionType::Header => Session { header: Some(name), ..Session::default() },
            SessionType::Cookie => {
                let ttl = self.absolute_timeout.filter(|_| self.is_permanent());
                Session { cookie: Some(Cookie { name, ttl, path: None }), ..Session::default() }
            }
        }
    }
}

/// Where a client has its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum SessionType {
    /// In a cookie.
    #[default]
    Cookie,
    /// In a header, which it sends back.
    Header,
}

/// Of a cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CookieConfig {
    /// How long it lives.
    #[serde(default)]
    pub lifetime_type: LifetimeType,
}

/// How long a cookie lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum LifetimeType {
    /// As long as the client runs.
    #[default]
    Session,
    /// For `absoluteTimeout`.
    Permanent,
}
