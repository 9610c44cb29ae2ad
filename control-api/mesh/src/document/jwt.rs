//! Tokens of end users (RFC 7519), with the words of Istio's RequestAuthentication.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::span::Span;

/// An issuer whose tokens are believed. A token that does not say what a rule asks for is refused (401); a request without one
/// passes, and is nobody's: an AuthorizationPolicy may demand one.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtRule {
    /// `iss` of its tokens.
    pub issuer: String,
    /// One of these is an `aud` of a token; empty accepts every one.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Where its key set is fetched (RFC 7517), by the sidecars themselves.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// The key set, as text.
    #[serde(default)]
    pub jwks: Option<String>,
    /// PEM: authorities that the server of `jwks_uri` is verified by; those of the machine when it is left out.
    #[serde(default)]
    pub ca_certificates: Option<String>,
    /// How long a fetch of the key set may take; 5 seconds when it is left out.
    #[serde(default)]
    pub timeout: Option<Span>,
    /// Headers with a token. Without this and the next two: `Authorization: Bearer …`, and the parameter `access_token`.
    #[serde(default)]
    pub from_headers: Vec<JwtHeader>,
    /// Parameters of the query with a token.
    #[serde(default)]
    pub from_params: Vec<String>,
    /// Cookies with a token.
    #[serde(default)]
    pub from_cookies: Vec<String>,
    /// The program gets the token, too.
    #[serde(default)]
    pub forward_original_token: bool,
    /// The program gets the claims in this header, as base64url of JSON.
    #[serde(default)]
    pub output_payload_to_header: Option<String>,
    /// The program gets claims in headers. Nobody else can set these.
    #[serde(default)]
    pub output_claim_to_headers: Vec<ClaimToHeader>,
}

/// A header with a token.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JwtHeader {
    /// Name.
    pub name: String,
    /// What stands before the token in it, a space included.
    #[serde(default)]
    pub prefix: String,
}

/// A claim that the program gets in a header.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimToHeader {
    /// Name of the header.
    pub header: String,
    /// Name of the claim, with dots for one inside of others.
    pub claim: String,
}

/// Who has a key set: scheme, host and port of a `jwksUri`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyServer<'a> {
    /// `https`.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: &'a str,
    /// The scheme's when the URI has none.
    pub port: u16,
}

impl<'a> KeyServer<'a> {
    /// The server of an absolute URI (RFC 3986 §4.3) without user information; None when `uri` is none.
    #[must_use]
    pub fn parse(uri: &'a str) -> Option<Self> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~:/?[]@!$&'()*+,;=%".contains(&b);
        let (scheme, rest) = uri.split_once("://").filter(|_| uri.bytes().all(allowed))?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !authority.ends_with(']') => (host, port.parse().ok().filter(|p| *p > 0)?),
            _ => (authority, if tls { 443 } else { 80 }),
        };
        if let Some(inner) = host.strip_prefix('[') {
            let host = inner.strip_suffix(']').filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())?;
            return Some(Self { tls, host, port });
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        (host.len() <= 253 && host.split('.').all(label)).then_some(Self { tls, host, port })
    }

    /// The host, if it is an address.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_keys_is_a_scheme_a_host_and_a_port() {
        let server = |tls, host, port| Some(KeyServer { tls, host, port });
        for (uri, is) in [
            ("https://a.example/keys", server(true, "a.example", 443)),
            ("http://a_b.example:8080", server(false, "a_b.example", 8080)),
            ("https://10.0.0.1/keys?v=1", server(true, "10.0.0.1", 443)),
            ("https://[::1]:8443/keys", server(true, "::1", 8443)),
            ("https://[::1]", server(true, "::1", 443)),
            ("ftp://a.example", None),
            ("/keys", None),
            ("https://", None),
            ("https://a..example/", None),
            ("https://me:secret@a.example/", None),
            ("https://a.example:0/", None),
            ("https://a.example:65536/", None),
            ("https://a.example/keys#one", None),
            ("https://a.example/a key", None),
            ("https://[::1/", None),
            ("https://[a.example]/", None),
        ] {
            assert_eq!(KeyServer::parse(uri), is, "{uri}");
        }
    }
}
