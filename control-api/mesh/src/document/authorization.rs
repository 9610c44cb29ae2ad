//! AuthorizationPolicy, with the words of Istio's: rules that people have are rules here.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Provider, TargetRef};

/// `remora.dev/v1alpha1` AuthorizationPolicy: who may call a Service, and what for.
///
/// About what a `Custom` matches somebody is asked. What a `Deny` matches is refused. As soon as one `Allow` is attached to a Service, only
/// what an `Allow` matches passes.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// The Services (GEP-713). A Service may have many AuthorizationPolicies.
    pub target_refs: Vec<TargetRef>,
    /// What becomes of what matches.
    #[serde(default)]
    pub action: Action,
    /// For `Custom`: who is asked.
    #[serde(default)]
    pub provider: Option<Provider>,
    /// Decisions are counted and logged, and not followed.
    #[serde(default)]
    pub dry_run: bool,
    /// One of them must match. `Allow` without rules allows nothing.
    #[serde(default)]
    pub rules: Vec<AuthorizationRule>,
    /// It stands for one whose targets this version cannot read: it is attached to all Services of the namespace but those of these names.
    #[serde(skip)]
    pub all_but: Option<Vec<String>>,
}

impl AuthorizationPolicySpec {
    /// Whether it is attached to a Service of its namespace.
    #[must_use]
    pub fn is_for(&self, service: &str) -> bool {
        let named = self.target_refs.iter().any(|target| target.name == service);
        named || self.all_but.as_ref().is_some_and(|but| but.iter().all(|name| name != service))
    }
}

/// What a policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Action {
    /// What matches may pass.
    #[default]
    Allow,
    /// What matches is refused, whatever others allow.
    Deny,
    /// The provider is asked about what matches, before others are looked at.
    Custom,
}

impl Action {
    /// As documents write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "Allow",
            Self::Deny => "Deny",
            Self::Custom => "Custom",
        }
    }

    /// Whether a match keeps requests out, or may do so: in doubt it matches.
    #[must_use]
    pub const fn guards(self) -> bool {
        !matches!(self, Self::Allow)
    }
}

/// One way to match: one of `from`, one of `to` and all of `when`; what is left out matches everything.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationRule {
    /// Who calls.
    #[serde(default)]
    pub from: Vec<From>,
    /// What is asked for.
    #[serde(default)]
    pub to: Vec<To>,
    /// Anything else.
    #[serde(default)]
    pub when: Vec<Condition>,
}

/// An entry of `from`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// Who.
    pub source: Source,
}

/// An entry of `to`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// What.
    pub operation: Operation,
}

/// A caller: all of the fields that are there must match, each by one of its entries (`not…`: by none).
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Source {
    /// SPIFFE IDs, with or without `spiffe://`; `*` at the beginning or the end is anything.
    pub principals: Vec<String>,
    /// None of these; as `principals`.
    pub not_principals: Vec<String>,
    /// End users by their tokens, `<issuer>/<subject>`; `*` at the beginning or the end is anything, and alone everybody who has a
    /// token. HTTP only.
    pub request_principals: Vec<String>,
    /// None of these; as `requestPrincipals`.
    pub not_request_principals: Vec<String>,
    /// Namespaces of the trust domain.
    pub namespaces: Vec<String>,
    /// None of these; as `namespaces`.
    pub not_namespaces: Vec<String>,
    /// Addresses of the connection, as CIDR.
    pub ip_blocks: Vec<String>,
    /// None of these; as `ipBlocks`.
    pub not_ip_blocks: Vec<String>,
    /// Addresses of the client behind trusted proxies (X-Forwarded-For), as CIDR. HTTP only.
    pub remote_ip_blocks: Vec<String>,
    /// None of these; as `remoteIpBlocks`.
    pub not_remote_ip_blocks: Vec<String>,
}

/// What is asked for; see [`Source`].
#[derive(Debug, Clone, PartialEq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Operation {
    /// Host of the request, in any case, with or without a port. HTTP only.
    pub hosts: Vec<String>,
    /// None of these; as `hosts`.
    pub not_hosts: Vec<String>,
    /// Ports of the Service.
    pub ports: Vec<u16>,
    /// None of these; as `ports`.
    pub not_ports: Vec<u16>,
    /// Methods. HTTP only.
    pub methods: Vec<String>,
    /// None of these; as `methods`.
    pub not_methods: Vec<String>,
    /// Paths without a query, as they are routed: `*` at the beginning or the end is anything, `{*}` one segment, `{**}` any
    /// number of them. HTTP only.
    pub paths: Vec<String>,
    /// None of these; as `paths`.
    pub not_paths: Vec<String>,
}

/// An attribute of the request or connection.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// `request.headers[NAME]`, `source.ip`, `remote.ip`, `source.namespace`, `source.principal`, `connection.sni`, or of the token of
    /// the end user `request.auth.principal`, `request.auth.audiences`, `request.auth.presenter`, `request.auth.claims[NAME]`.
    pub key: String,
    /// One of these.
    #[serde(default)]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default)]
    pub not_values: Vec<String>,
}

/// What a [`Condition`] is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// A header, in lower case.
    Header(String),
    /// Address of the connection.
    SourceIp,
    /// Address of the client behind trusted proxies.
    RemoteIp,
    /// Namespace of the caller.
    Namespace,
    /// SPIFFE ID of the caller.
    Principal,
    /// Server name of the TLS connection.
    Sni,
    /// `<issuer>/<subject>` of the token.
    RequestPrincipal,
    /// A claim of the token, by the names on the way to it.
    Claim(Vec<String>),
}

impl Attribute {
    /// How they are written.
    pub const KEYS: [&'static str; 10] = [
        "request.headers[…]",
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "connection.sni",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "request.auth.claims[…]",
    ];

    /// What a key means; None when it means nothing here.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        if let Some(name) = key.strip_prefix("request.headers[") {
            let name = name.strip_suffix(']').filter(|name| !name.is_empty())?;
            let fits = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            return name.chars().all(fits).then(|| Self::Header(name.to_ascii_lowercase()));
        }
        if let Some(path) = key.strip_prefix("request.auth.claims[") {
            let path = path.strip_suffix(']')?.split("][");
            let path: Vec<_> = path.map(ToOwned::to_owned).collect();
            let is_name = |name: &String| !name.is_empty() && !name.contains(['[', ']']);
            return path.iter().all(is_name).then_some(Self::Claim(path));
        }
        match key {
            "source.ip" => Some(Self::SourceIp),
            "remote.ip" => Some(Self::RemoteIp),
            "source.namespace" => Some(Self::Namespace),
            "source.principal" => Some(Self::Principal),
            "connection.sni" => Some(Self::Sni),
            "request.auth.principal" => Some(Self::RequestPrincipal),
            "request.auth.audiences" => Some(Self::Claim(vec!["aud".into()])),
            "request.auth.presenter" => Some(Self::Claim(vec!["azp".into()])),
            _ => None,
        }
    }

    /// Whether only HTTP has it.
    #[must_use]
    pub const fn is_http(&self) -> bool {
        matches!(self, Self::Header(_) | Self::RemoteIp) || self.is_of_token()
    }

    /// Whether the token of an end user says it.
    #[must_use]
    pub const fn is_of_token(&self) -> bool {
        matches!(self, Self::RequestPrincipal | Self::Claim(_))
    }
}

/// A range of addresses; a single address is one, too.
#[must_use]
pub fn cidr(text: &str) -> Option<(std::net::IpAddr, u8)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address.parse().ok()?, Some(length.parse::<u8>().ok()?)),
        None => (text.parse().ok()?, None),
    };
    let most = match address {
        std::net::IpAddr::V4(_) => 32,
        std::net::IpAddr::V6(_) => 128,
    };
    let length = length.unwrap_or(most);
    (length <= most).then_some((address, length))
}
