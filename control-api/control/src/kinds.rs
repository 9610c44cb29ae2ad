//! The kinds of documents, as Kubernetes names resources.

use remora_xds::nearest;

/// A kind of document.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// `gateway.networking.k8s.io`; empty for the core group.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `HTTPRoute`.
    pub name: &'static str,
    /// `httproutes`: in paths.
    pub plural: &'static str,
    /// `httproute`: in commands.
    pub singular: &'static str,
    /// Shorter names in commands.
    pub short: &'static [&'static str],
}

const GATEWAY: &str = "gateway.networking.k8s.io";
const REMORA: &str = "remora.dev";

const DISCOVERY: &str = "discovery.k8s.io";

/// All kinds. Those that others refer to come first.
pub const KINDS: [Kind; 13] = [
    kind("", "v1", "Service", ["services", "service"], &["svc"]),
    kind(REMORA, "v1alpha1", "Workload", ["workloads", "workload"], &["wl"]),
    kind(DISCOVERY, "v1", "EndpointSlice", ["endpointslices", "endpointslice"], &[]),
    kind(GATEWAY, "v1", "ReferenceGrant", ["referencegrants", "referencegrant"], &["refgrant"]),
    kind(REMORA, "v1alpha1", "TrafficPolicy", ["trafficpolicies", "trafficpolicy"], &["tp"]),
    kind(
        REMORA,
        "v1alpha1",
        "AuthenticationPolicy",
        ["authenticationpolicies", "authenticationpolicy"],
        &["authn"],
    ),
    kind(
        REMORA,
        "v1alpha1",
        "AuthorizationPolicy",
        ["authorizationpolicies", "authorizationpolicy"],
        &["authz"],
    ),
    kind(REMORA, "v1alpha1", "RateLimitPolicy", ["ratelimitpolicies", "ratelimitpolicy"], &["rl"]),
    kind(REMORA, "v1alpha1", "FaultPolicy", ["faultpolicies", "faultpolicy"], &["fault"]),
    kind(GATEWAY, "v1", "HTTPRoute", ["httproutes", "httproute"], &[]),
    kind(GATEWAY, "v1", "GRPCRoute", ["grpcroutes", "grpcroute"], &[]),
    kind(GATEWAY, "v1", "TLSRoute", ["tlsroutes", "tlsroute"], &[]),
    kind(GATEWAY, "v1alpha2", "TCPRoute", ["tcproutes", "tcproute"], &[]),
];

const fn kind(
    group: &'static str,
    version: &'static str,
    name: &'static str,
    [plural, singular]: [&'static str; 2],
    short: &'static [&'static str],
) -> Kind {
    Kind { group, version, name, plural, singular, short }
}

impl Kind {
    /// The kind of a document by its `apiVersion` and `kind`.
    #[must_use]
    pub fn of(api_version: &str, name: &str) -> Option<&'static Self> {
        let known = remora_mesh::Kind::ALL.into_iter().find(|kind| kind.as_str() == name)?;
        if known.api_versions().contains(&api_version) { Self::named(name) } else { None }
    }

    /// The kind of a path.
    #[must_use]
    pub fn in_path(group: &str, version: &str, plural: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.plural == plural && kind.group == group && kind.version == version)
    }

    /// The kind named `name`, which is the first part of a key.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// The kind that a person means: `svc`, `services`, `httproutes.gateway.networking.k8s.io`.
    ///
    /// # Errors
    /// None is meant. The text says what is known.
    pub fn meant(word: &str) -> Result<&'static Self, String> {
        let lower = word.to_ascii_lowercase();
        let (name, group) =
            lower.split_once('.').map_or((&*lower, None), |(name, group)| (name, Some(group)));
        let fits = |kind: &&Self| {
            let group_fits = group.is_none_or(|group| {
                group == kind.group || group == format!("{}.{}", kind.version, kind.group)
            });
            group_fits && (kind.plural == name || kind.singular == name || kind.short.contains(&name))
        };
        KINDS.iter().find(fits).ok_or_else(|| {
            let all = KINDS.iter().map(|kind| kind.plural);
            match nearest(name, all.clone()) {
                Some(near) => format!("{word:?} is no kind of document (did you mean {near}?)"),
                None => format!(
                    "{word:?} is no kind of document; known are {}",
                    all.collect::<Vec<_>>().join(", ")
                ),
            }
        })
    }

    /// `apiVersion` of its documents.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Where its documents are: `/apis/remora.dev/v1alpha1`.
    #[must_use]
    pub fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// `httproute.gateway.networking.k8s.io`, as commands print it.
    #[must_use]
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.singular.to_owned()
        } else {
            format!("{}.{}", self.singular, self.group)
        }
    }

    /// Its place in [`KINDS`]: what is referred to is written first, and removed last.
    #[must_use]
    pub fn order(&self) -> usize {
        KINDS.iter().position(|kind| kind == self).unwrap_or(KINDS.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_may_name_a_kind_in_many_ways() {
        for (word, name) in [
            ("svc", "Service"),
            ("Services", "Service"),
            ("httproute", "HTTPRoute"),
            ("httproutes.gateway.networking.k8s.io", "HTTPRoute"),
            ("httproutes.v1.gateway.networking.k8s.io", "HTTPRoute"),
            ("tp", "TrafficPolicy"),
        ] {
            assert_eq!(Kind::meant(word).map(|kind| kind.name), Ok(name), "{word}");
        }
        assert!(Kind::meant("servces").unwrap_err().contains("did you mean services?"));
        assert!(Kind::meant("pods").unwrap_err().contains("known are services, workloads"));
        assert!(Kind::meant("services.apps").is_err());
    }

    #[test]
    fn kinds_are_found_by_document_and_by_path() {
        for kind in &KINDS {
            assert_eq!(Kind::of(&kind.api_version(), kind.name), Some(kind));
            assert_eq!(Kind::in_path(kind.group, kind.version, kind.plural), Some(kind));
            assert_eq!(Kind::named(kind.name), Some(kind));
        }
        assert_eq!(Kind::of("v2", "Service"), None);
        let older = Kind::of("gateway.networking.k8s.io/v1beta1", "HTTPRoute");
        assert_eq!(older.map(|kind| kind.version), Some("v1"), "an older version means the same");
        let newer = Kind::of("gateway.networking.k8s.io/v1", "TCPRoute");
        assert_eq!(
            newer.map(|kind| kind.version),
            Some("v1alpha2"),
            "that of Gateway API 1.6 means the same"
        );
        // The compiler knows the same kinds, by the same names.
        for kind in remora_mesh::Kind::ALL {
            assert_eq!(
                Kind::named(kind.as_str()).map(Kind::api_version).as_deref(),
                Some(kind.api_version())
            );
        }
    }
}
