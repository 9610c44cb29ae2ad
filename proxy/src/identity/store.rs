//! Key and certificates of this process on disk, in one file that only its user reads.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::request::{Parts, parts};
use super::{Identity, Text};
use crate::config::source::disk::{remove_if_there, sync_folder};

/// Larger than any chain.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Store {
    folder: PathBuf,
    file: PathBuf,
}

impl Store {
    pub(super) fn new(folder: PathBuf) -> Self {
        let file = folder.join("identity.pem");
        Self { folder, file }
    }

    pub(super) fn path(&self) -> &Path {
        &self.file
    }

    /// What was saved last; None when nothing was.
    pub(super) fn load(&self) -> Result<Option<Identity>, String> {
        let size = match fs::metadata(&self.file) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if size > MAX_BYTES {
            return Err(format!("is {size} bytes long"));
        }
        let text = fs::read_to_string(&self.file).map_err(|e| e.to_string())?;
        let key = text.find("-----BEGIN PRIVATE KEY-----").ok_or("holds no private key")?;
        let Parts { chain, roots } = parts(&text[..key])?;
        let identity = Identity::new(Text { chain, key: text[key..].to_owned(), roots });
        identity.map(Some).map_err(|e| e.to_string())
    }

    /// Whoever reads it meets the old one or the new one.
    pub(super) fn save(&self, text: &Text) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let fresh = self.file.with_extension("fresh");
        // What somebody prepared there would keep its mode, or lead elsewhere.
        remove_if_there(&fresh)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        write!(file, "{}{}{}", text.chain, text.roots, text.key)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.file)?;
        sync_folder(&self.folder)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::tls::testing::{Ca, uri};

    #[test]
    fn what_is_saved_is_loaded_and_nobody_else_reads_it() {
        let ca = Ca::new("root");
        let pair = ca.leaf(&[uri("spiffe://a.example/ns/n/sa/s")], |_| {});
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("identity"));
        assert!(store.load().unwrap().is_none());
        let text = Text { chain: pair.chain, key: pair.key, roots: ca.pem.clone() };
        store.save(&text).unwrap();
        let loaded = store.load().unwrap().unwrap();
        assert_eq!(loaded.certificate.uri.as_deref(), Some("spiffe://a.example/ns/n/sa/s"));
        assert!(loaded.trust.roots.as_ref().is_some_and(|roots| roots.certificates.len() == 1));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&store.folder), mode(store.path())), (0o700, 0o600));
        // A file that others may read was prepared.
        let fresh = store.path().with_extension("fresh");
        fs::write(&fresh, "").unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o666)).unwrap();
        store.save(&text).unwrap();
        assert_eq!(mode(store.path()), 0o600);
        fs::write(store.path(), text.chain).unwrap();
        assert_eq!(store.load().unwrap_err(), "holds no private key");
    }
}
