//! Bundles of other trust domains (`--trust-bundle DOMAIN=FILE`): their authorities vouch for names of their own domain only (SPIFFE
//! federation).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use remora_proxy::tls::identity::SpiffeId;
use remora_proxy::tls::material::{self, MaterialError};
use tokio::time::MissedTickBehavior;
use tracing::{error, info};

use super::Ca;

/// Between looks at the files: as for documents, soon enough, and whatever way they are replaced.
const LOOK: Duration = Duration::from_millis(500);
/// Trust domains.
const MOST_DOMAINS: usize = 64;
/// Of a file, bytes. All of them are sent to every proxy.
const MOST_BYTES: u64 = 256 * 1024;

/// Where the bundle of a trust domain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleFile {
    /// The trust domain.
    pub domain: String,
    /// Its authorities, in PEM.
    pub file: PathBuf,
}

/// Why bundles cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No domain and file.
    #[error("{0:?} is not DOMAIN=FILE")]
    Form(String),
    /// No name of a trust domain.
    #[error("{0:?} is no trust domain: the name alone, in lower case, without spiffe://")]
    Domain(String),
    /// The mesh's own domain.
    #[error("{0} is the trust domain of this mesh: its roots are those of its authority")]
    Own(String),
    /// Two files.
    #[error("{0} has two bundles: put all roots into one file")]
    Twice(String),
    /// Too many.
    #[error("there may be {MOST_DOMAINS} bundles")]
    Many,
    /// The file cannot be read.
    #[error("{0}: {1}")]
    File(PathBuf, std::io::Error),
    /// It is too large.
    #[error("{0}: more than {MOST_BYTES} bytes")]
    Large(PathBuf),
    /// It holds no bundle.
    #[error("{0}: {1} ({fix})", fix = .1.fix())]
    Material(PathBuf, MaterialError),
}

impl std::str::FromStr for BundleFile {
    type Err = BundleError;

    fn from_str(text: &str) -> Result<Self, BundleError> {
        let parts = text.split_once('=').filter(|(_, file)| !file.is_empty());
        let (domain, file) = parts.ok_or_else(|| BundleError::Form(text.to_owned()))?;
        let id = SpiffeId::parse(&format!("spiffe://{domain}"));
        if !id.is_ok_and(|id| id.path().is_empty()) {
            return Err(BundleError::Domain(domain.to_owned()));
        }
        Ok(Self { domain: domain.to_owned(), file: file.into() })
    }
}

/// What the files hold: PEM by trust domain, the same text for the same certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundles(BTreeMap<String, String>);

impl Bundles {
    /// Reads all files. `own` is the trust domain of the mesh.
    ///
    /// # Errors
    /// The first mistake.
    pub fn read(files: &[BundleFile], own: &str) -> Result<Self, BundleError> {
        if files.len() > MOST_DOMAINS {
            return Err(BundleError::Many);
        }
        let mut bundles = BTreeMap::new();
        for BundleFile { domain, file } in files {
            if domain == own {
                return Err(BundleError::Own(domain.clone()));
            }
            if bundles.insert(domain.clone(), read(file)?).is_some() {
                return Err(BundleError::Twice(domain.clone()));
            }
        }
        Ok(Self(bundles))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Domains and PEM, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(domain, pem)| (domain.as_str(), pem.as_str()))
    }
}

fn read(file: &Path) -> Result<String, BundleError> {
    let io = |error| BundleError::File(file.to_owned(), error);
    if std::fs::metadata(file).map_err(io)?.len() > MOST_BYTES {
        return Err(BundleError::Large(file.to_owned()));
    }
    let text = std::fs::read(file).map_err(io)?;
    let roots = material::roots(&text).map_err(|error| BundleError::Material(file.to_owned(), error))?;
    Ok(material::to_pem(&roots.certificates))
}

/// Looks at the files for ever. What is wrong with one changes nothing: the last good bundles stay.
pub async fn follow(ca: Arc<Ca>, files: Vec<BundleFile>) {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut told = None;
    loop {
        looks.tick().await;
        let (named, own) = (files.clone(), ca.settings().trust_domain.clone());
        // The task does nothing that panics.
        let Ok(read) = tokio::task::spawn_blocking(move || Bundles::read(&named, &own)).await else { return };
        let failed = match read {
            Ok(bundles) => {
                if ca.federate(bundles) {
                    info!("other trust domains have new bundles");
                }
                None
            }
            Err(why) => Some(why.to_string()),
        };
        if let Some(why) = failed.as_ref().filter(|_| failed != told) {
            error!("--trust-bundle {why}; the last good bundles stay");
        }
        told = failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem() -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn an_option_is_a_domain_and_a_file() {
        let file: BundleFile = "abroad.example=/a=b.pem".parse().unwrap();
        assert_eq!((file.domain.as_str(), file.file.to_str()), ("abroad.example", Some("/a=b.pem")));
        for (text, says) in [
            ("abroad.example", "is not DOMAIN=FILE"),
            ("abroad.example=", "is not DOMAIN=FILE"),
            ("=a.pem", "is no trust domain"),
            ("spiffe://abroad.example=a.pem", "is no trust domain"),
            ("Abroad.example=a.pem", "is no trust domain"),
            ("abroad.example/ns=a.pem", "is no trust domain"),
        ] {
            let error = text.parse::<BundleFile>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn bundles_are_read_or_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = |domain: &str, text: &str| {
            let path = folder.path().join(domain);
            std::fs::write(&path, text).unwrap();
            BundleFile { domain: domain.into(), file: path }
        };
        let (a, b) = (file("a", &format!("text around\n{}", pem())), file("b", &pem()));
        let bundles = Bundles::read(&[b.clone(), a.clone()], "own").unwrap();
        let domains: Vec<_> = bundles.iter().map(|(domain, _)| domain).collect();
        assert_eq!(domains, ["a", "b"]);
        assert!(bundles.iter().all(|(_, pem)| pem.starts_with("-----BEGIN CERTIFICATE-----")));
        let refused = |files: &[BundleFile], own| Bundles::read(files, own).unwrap_err().to_string();
        assert!(refused(&[a.clone(), a.clone()], "own").contains("a has two bundles"));
        assert!(refused(std::slice::from_ref(&a), "a").contains("is the trust domain of this mesh"));
        assert!(refused(&[file("c", "nothing")], "own").contains("holds no certificate"));
        assert!(refused(&[file("d", &"x".repeat(300_000))], "own").contains("more than 262144 bytes"));
        assert!(refused(&vec![a; 65], "own").contains("64"));
        let gone = BundleFile { domain: "e".into(), file: folder.path().join("none") };
        assert!(refused(&[gone], "own").contains("No such file"));
    }
}
