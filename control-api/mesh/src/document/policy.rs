//! Policies of our own, attached to Services.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::JwtRule;

/// What a policy is attached to: a Service of its own namespace.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// Must be empty or `core`.
    #[serde(default)]
    pub group: Option<String>,
    /// Must be `Service`.
    #[serde(default)]
    pub kind: Option<String>,
    /// Name.
    pub name: String,
}

/// `remora.dev/v1alpha1` AuthenticationPolicy: how the callers of a Service prove who they are.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthenticationPolicySpec {
    /// The Services (GEP-713). A Service has at most one AuthenticationPolicy.
    pub target_refs: Vec<TargetRef>,
    /// TLS between sidecars.
    #[serde(default)]
    pub mtls: Mtls,
    /// Of single ports, by the number of the Service's port; `mtls` is for the others. (Istio has ports of workloads here.)
    #[serde(default)]
    pub port_level_mtls: BTreeMap<String, PortMtls>,
    /// Whose tokens of end users are believed.
    #[serde(default)]
    pub jwt_rules: Vec<JwtRule>,
    /// It stands for a policy that this version cannot read: nobody may call its Services.
    #[serde(skip)]
    pub unreadable: bool,
    /// It stands for one whose targets this version cannot read: it is attached to all Services of the namespace.
    #[serde(skip)]
    pub of_all: bool,
}

impl AuthenticationPolicySpec {
    /// Whether mTLS is demanded on a port of the Services.
    #[must_use]
    pub fn mode(&self, port: u16) -> MtlsMode {
        self.port_level_mtls.get(&port.to_string()).map_or(self.mtls.mode, |own| own.mode)
    }
}

/// TLS between sidecars, of one port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMtls {
    /// Whether it is demanded.
    pub mode: MtlsMode,
}

/// TLS between sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mtls {
    /// Whether it is demanded.
    #[serde(default)]
    pub mode: MtlsMode,
}

/// Whether mTLS is demanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// Callers reach the sidecars of the Service, over mTLS, or nobody.
    #[default]
    Strict,
    /// Callers with a sidecar use mTLS; plaintext on the same port is taken, too. For the time of a migration.
    Permissive,
    /// Callers reach the programs themselves, in plaintext, past their sidecars: for programs that have none.
    Disabled,
}
