//! Whom plaintext is allowed to: whoever runs the mesh says so.

use std::fmt;
use std::str::FromStr;

/// Services that may be called in plaintext while they are known to have no sidecars: `NAMESPACE`, `NAMESPACE/SERVICE`, or `*` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaintextTo {
    /// All Services.
    All,
    /// Those of a namespace.
    Namespace(String),
    /// One, by namespace and name.
    Service(String, String),
}

impl PlaintextTo {
    /// Whether a Service is one of them.
    pub(super) fn has(&self, namespace: &str, service: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespace(of) => of == namespace,
            Self::Service(of, name) => of == namespace && name == service,
        }
    }
}

impl FromStr for PlaintextTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_name = |name: &str| {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
            (1..=63).contains(&name.len()) && name.bytes().all(fits)
        };
        let (namespace, service) = text.split_once('/').map_or((text, None), |(of, name)| (of, Some(name)));
        match service {
            None if text == "*" => Ok(Self::All),
            None if is_name(namespace) => Ok(Self::Namespace(namespace.to_owned())),
            Some(name) if is_name(namespace) && is_name(name) => {
                Ok(Self::Service(namespace.to_owned(), name.to_owned()))
            }
            _ => Err("write NAMESPACE, NAMESPACE/SERVICE, or * for all Services".into()),
        }
    }
}

impl fmt::Display for PlaintextTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Namespace(namespace) => f.write_str(namespace),
            Self::Service(namespace, service) => write!(f, "{namespace}/{service}"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use super::*;

    #[test]
    fn they_are_all_those_of_a_namespace_or_one() {
        for (text, which) in [
            ("*", [true, true, true]),
            ("kube-system", [true, true, false]),
            ("kube-system/kube-dns", [true, false, false]),
        ] {
            let to: PlaintextTo = text.parse().unwrap();
            assert_eq!(to.to_string(), text);
            let services = [("kube-system", "kube-dns"), ("kube-system", "metrics"), ("shop", "kube-dns")];
            assert_eq!(services.map(|(namespace, name)| to.has(namespace, name)), which, "{text}");
        }
        for wrong in ["", "a/", "/a", "*/a", "a/*", "a/b/c", "A", "a b", "kube-*"] {
            assert!(wrong.parse::<PlaintextTo>().unwrap_err().contains("NAMESPACE/SERVICE"), "{wrong}");
        }
    }
}
