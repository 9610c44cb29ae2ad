//! What requests that belong together have in common.

use serde::Deserialize;

use crate::span::Span;

/// What an endpoint is chosen by: one of the fields.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
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
