//! The folder of the demo.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use remora_mesh::names;

use super::documents::Documents;
use super::{NAMESPACE, TRUST_DOMAIN, WORKLOADS};
use crate::demo::authority::Authority;

/// A folder for each workload, with its certificate.
pub(super) fn issue_certificates(folder: &Path, documents: &Documents) -> anyhow::Result<()> {
    let authority = Authority::new()?;
    for name in WORKLOADS {
        let own = folder.join(name);
        std::fs::create_dir(&own)?;
        let account = documents.service_account(name)?;
        let identity = authority.issue(&names::spiffe(TRUST_DOMAIN, NAMESPACE, account))?;
        private(&own.join("roots.pem"), &authority.roots)?;
        private(&own.join("chain.pem"), &identity.chain)?;
        private(&own.join("key.pem"), &identity.key)?;
    }
    Ok(())
}

/// A file that only its owner reads.
pub(super) fn private(path: &Path, text: &str) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}
