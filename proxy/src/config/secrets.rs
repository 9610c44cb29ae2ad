//! Secrets by name: what TLS contexts wait for, and where each comes from.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use foldhash::HashMap;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret as SecretPb, TlsCertificate,
};
use rustls::crypto::CryptoProvider;

use super::spec::ConfigSource;
use crate::tls::material::OwnCertificate;
use crate::tls::secret::Secret;
use crate::tls::verify::Trust;

/// Where a secret comes from (`SdsSecretConfig.sds_config`). None: the process has it, from `static_resources.secrets` or
/// its identity agent.
pub type SecretSource = Option<ConfigSource>;

/// A compiled `Secret`.
#[derive(Debug, Clone)]
pub enum Material {
    /// `tls_certificate`.
    Certificate(Arc<OwnCertificate>),
    /// `validation_context`.
    Trust(Arc<Trust>),
}

impl Material {
    /// Whether it has revocation lists.
    #[must_use]
    pub fn revokes(&self) -> bool {
        matches!(self, Self::Trust(trust) if !trust.revoked.is_empty())
    }
}

/// The contexts' side of a secret.
#[derive(Debug)]
enum Slot {
    Certificate(Arc<Secret<OwnCertificate>>),
    Trust(Arc<Secret<Trust>>),
}

impl Slot {
    const fn what(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "a certificate",
            Self::Trust(_) => "a validation context",
        }
    }

    /// Handshakes that begin from now on use `material`.
    fn set(&self, material: Material) -> Result<(), String> {
        match (self, material) {
            (Self::Certificate(secret), Material::Certificate(own)) => secret.set(own),
            (Self::Trust(secret), Material::Trust(trust)) => secret.set(trust),
            _ => return Err(format!("is not {}, which is what contexts need", self.what())),
        }
        Ok(())
    }

    /// Whether a context has it.
    fn is_used(&self) -> bool {
        match self {
            Self::Certificate(secret) => Arc::strong_count(secret) > 1,
            Self::Trust(secret) => Arc::strong_count(secret) > 1,
        }
    }
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    /// Of the bytes of what it holds.
    hash: Option<u64>,
    /// How to make it again, when it names files.
    files: Option<SecretFiles>,
}

/// A `Secret` that names files.
#[derive(Clone)]
pub struct SecretFiles {
    /// As it came.
    pub secret: Box<SecretPb>,
    /// What it names.
    pub files: Files,
}

impl fmt::Debug for SecretFiles {
    /// There may be a key in it besides.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretFiles").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Files that certificates, keys and CAs are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    names: Vec<PathBuf>,
    /// `watched_directory`: where links on the way to them are swapped.
    directory: Option<PathBuf>,
    /// Hash of what they held when they were read last.
    content: u64,
}

impl Files {
    /// Files that are about to be read.
    #[must_use]
    pub fn new(names: Vec<PathBuf>, directory: Option<PathBuf>) -> Self {
        let content = content_of(&names);
        Self { names, directory, content }
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether they do not hold any more what they held. They are taken for read.
    fn changed(&mut self) -> bool {
        let content = content_of(&self.names);
        std::mem::replace(&mut self.content, content) != content
    }
}

/// A `Secret` that was compiled.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Of its bytes.
    pub hash: u64,
    /// Its name.
    pub name: Arc<str>,
    /// What it holds.
    pub material: Material,
    /// When it names files.
    pub files: Option<SecretFiles>,
}

/// What is written out in a context, with files in it: read again when these change.
#[derive(Clone)]
pub enum Recipe {
    /// An entry of `tls_certificates`.
    Certificate(Box<TlsCertificate>, Arc<CryptoProvider>, Weak<Secret<OwnCertificate>>),
    /// A `validation_context`.
    Trust(Box<CertificateValidationContext>, Weak<Secret<Trust>>),
}

impl fmt::Debug for Recipe {
    /// There may be a key in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate(..) => "Certificate",
            Self::Trust(..) => "Trust",
        })
    }
}

impl Recipe {
    fn is_used(&self) -> bool {
        match self {
            Self::Certificate(_, _, secret) => secret.strong_count() > 0,
            Self::Trust(_, secret) => secret.strong_count() > 0,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Secrets {
    entries: BTreeMap<(SecretSource, Arc<str>), Entry>,
    /// By the hash of what is written: contexts that say the same share it.
    written: HashMap<u64, Written>,
    /// `watched_directory` of files that secrets come from.
    sds_directories: BTreeSet<(Arc<Path>, Arc<Path>)>,
}

/// What is written out in a context.
#[derive(Debug, Clone)]
pub struct Written {
    /// How to make it.
    pub recipe: Recipe,
    /// The files that it names.
    pub files: Files,
}

/// A hash of what files hold now.
fn content_of(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        // One that cannot be read has a content of its own.
        std::fs::read(file).map_err(|error| error.kind()).hash(&mut hasher);
    }
    hasher.finish()
}

impl Secrets {
    /// The certificate of this name; it may be yet to come.
    ///
    /// # Errors
    /// The process has none, or the secret is something else.
    pub fn certificate(
        &mut self,
        source: &SecretSource,
        name: &str,
    ) -> Result<Arc<Secret<OwnCertificate>>, String> {
        match self.slot(source, name, |name| Slot::Certificate(Secret::awaited(name)))? {
            Slot::Certificate(secret) => Ok(Arc::clone(secret)),
            other => Err(format!("the secret {name:?} is {}", other.what())),
        }
    }

    /// The trust of this name; it may be yet to come.
    ///
    /// # Errors
    /// As for [`Self::certificate`].
    pub fn trust(&mut self, source: &SecretSource, name: &str) -> Result<Arc<Secret<Trust>>, String> {
        match self.slot(source, name, |name| Slot::Trust(Secret::awaited(name)))? {
            Slot::Trust(secret) => Ok(Arc::clone(secret)),
            other => Err(format!("the secret {name:?} is {}", other.what())),
        }
    }

    fn slot(
        &mut self,
        source: &SecretSource,
        name: &str,
        make: impl FnOnce(Arc<str>) -> Slot,
    ) -> Result<&Slot, String> {
        let key = (source.clone(), Arc::from(name));
        if source.is_none() && !self.entries.contains_key(&key) {
            return Err(format!("there is no secret {name:?} in static_resources.secrets"));
        }
        let name = Arc::clone(&key.1);
        Ok(&self
            .entries
            .entry(key)
            .or_insert_with(|| Entry { slot: make(name), hash: None, files: None })
            .slot)
    }

    /// The process will have a certificate of this name.
    pub fn await_certificate(&mut self, name: &str) {
        let slot = Slot::Certificate(Secret::awaited(name.into()));
        self.entries.insert((None, name.into()), Entry { slot, hash: None, files: None });
    }

    /// The process will have trust of this name.
    pub fn await_trust(&mut self, name: &str) {
        let slot = Slot::Trust(Secret::awaited(name.into()));
        self.entries.insert((None, name.into()), Entry { slot, hash: None, files: None });
    }

    /// A secret has come. New handshakes use it. True: it is another one than before.
    ///
    /// # Errors
    /// Contexts expect something else under its name.
    pub fn put(&mut self, source: &SecretSource, new: Compiled) -> Result<bool, String> {
        let Compiled { hash, name, material, files } = new;
        let fresh = match &material {
            Material::Certificate(_) => Slot::Certificate(Secret::awaited(Arc::clone(&name))),
            Material::Trust(_) => Slot::Trust(Secret::awaited(Arc::clone(&name))),
        };
        let entry = self.entries.entry((source.clone(), name));
        let entry = entry.or_insert(Entry { slot: fresh, hash: None, files: None });
        if entry.hash == Some(hash) {
            return Ok(false);
        }
        entry.slot.set(material)?;
        entry.hash = Some(hash);
        entry.files = files;
        Ok(true)
    }

    /// Secrets whose files do not hold any more what they held. They are taken for read.
    pub fn changed_secrets(&mut self) -> Vec<(SecretSource, Arc<str>, Box<SecretPb>)> {
        let mut changed = Vec::new();
        for ((source, name), entry) in &mut self.entries {
            let Some(from) = entry.files.as_mut() else { continue };
            if from.files.changed() {
                changed.push((source.clone(), Arc::clone(name), from.secret.clone()));
            }
        }
        changed
    }

    /// What a secret's files hold now.
    ///
    /// # Errors
    /// Contexts expect something else under its name.
    pub fn reread(&self, source: &SecretSource, name: &Arc<str>, material: Material) -> Result<(), String> {
        match self.entries.get(&(source.clone(), Arc::clone(name))) {
            Some(entry) => entry.slot.set(material),
            None => Ok(()),
        }
    }

    /// Whether contexts need `material` to be something else.
    #[must_use]
    pub fn conflict(&self, source: &SecretSource, name: &Arc<str>, material: &Material) -> Option<String> {
        let slot = &self.entries.get(&(source.clone(), Arc::clone(name)))?.slot;
        match (slot, material) {
            (Slot::Certificate(_), Material::Certificate(_)) | (Slot::Trust(_), Material::Trust(_)) => None,
            _ => Some(format!("is not {}, which is what contexts need", slot.what())),
        }
    }

    /// The hash of what has come.
    #[must_use]
    pub fn hash(&self, source: &SecretSource, name: &Arc<str>) -> Option<u64> {
        self.entries.get(&(source.clone(), Arc::clone(name)))?.hash
    }

    /// The trust that has come under a name.
    #[must_use]
    pub fn newest_trust(&self, source: &SecretSource, name: &str) -> Option<Arc<Trust>> {
        match &self.entries.get(&(source.clone(), Arc::from(name)))?.slot {
            Slot::Trust(secret) => secret.get(),
            Slot::Certificate(_) => None,
        }
    }

    /// Names that contexts take from `source`.
    pub fn wanted(&self, source: &SecretSource) -> BTreeSet<Arc<str>> {
        let used = self.entries.iter().filter(|((from, _), entry)| from == source && entry.slot.is_used());
        used.map(|((_, name), _)| Arc::clone(name)).collect()
    }

    /// Where the secrets of a file come from. Contexts may say differently what to watch besides it.
    #[must_use]
    pub fn of_file(path: &Path) -> SecretSource {
        Some(ConfigSource::Path { path: path.into(), watched: None })
    }

    /// A context takes secrets from `config`.
    pub fn source(&mut self, config: ConfigSource) -> SecretSource {
        let ConfigSource::Path { path, watched } = config else { return Some(config) };
        let source = Self::of_file(&path);
        if let Some(directory) = watched {
            self.sds_directories.insert((path, directory));
        }
        source
    }

    /// Files that secrets come from.
    pub fn sds_files(&self) -> impl Iterator<Item = &Path> {
        self.entries.iter().filter(|(_, entry)| entry.slot.is_used()).filter_map(|((source, _), _)| {
            match source {
                Some(ConfigSource::Path { path, .. }) => Some(&**path),
                _ => None,
            }
        })
    }

    /// Directories to watch besides theirs.
    pub fn sds_directories(&self) -> impl Iterator<Item = &Path> {
        self.sds_directories.iter().map(|(_, directory)| &**directory)
    }

    /// Whether contexts wait for a secret of this file.
    #[must_use]
    pub fn lacks(&self, path: &Path) -> bool {
        let source = Self::of_file(path);
        let of_file = self.entries.iter().filter(|((from, _), _)| *from == source);
        of_file.into_iter().any(|(_, entry)| entry.hash.is_none() && entry.slot.is_used())
    }

    /// Forgets what no context refers to any more, and what was written out in contexts that are gone, keys among it. What the process has
    /// stays.
    pub fn forget_unused(&mut self) {
        self.entries.retain(|(source, _), entry| source.is_none() || entry.slot.is_used());
        let used: BTreeSet<PathBuf> = self.sds_files().map(PathBuf::from).collect();
        self.sds_directories.retain(|(path, _)| used.contains(&**path));
        self.written.retain(|_, written| written.recipe.is_used());
    }

    /// What was written in the same words before.
    #[must_use]
    pub fn written(&self, hash: u64) -> Option<&Recipe> {
        self.written.get(&hash).map(|written| &written.recipe)
    }

    /// Remembers what is written out.
    pub fn write(&mut self, hash: u64, written: Written) {
        self.written.insert(hash, written);
    }

    /// What has to be read again: the files of contexts in use that do not hold any more what they held. They are taken
    /// for read.
    pub fn changed(&mut self) -> Vec<Recipe> {
        let used = self.written.values_mut().filter(|written| written.recipe.is_used());
        let changed = used.filter_map(|written| written.files.changed().then(|| written.recipe.clone()));
        changed.collect()
    }

    /// Files that certificates, keys and CAs are read from.
    pub fn material_files(&self) -> impl Iterator<Item = &Path> {
        self.material().flat_map(|files| files.names.iter().map(PathBuf::as_path))
    }

    /// Directories to watch besides theirs.
    pub fn material_directories(&self) -> impl Iterator<Item = &Path> {
        self.material().filter_map(|files| files.directory.as_deref())
    }

    fn material(&self) -> impl Iterator<Item = &Files> {
        let written = self.written.values().filter(|written| written.recipe.is_used());
        // Those that nobody uses, too: contexts may yet take them into use.
        let named = self.entries.values().filter_map(|entry| entry.files.as_ref());
        written.map(|written| &written.files).chain(named.map(|from| &from.files))
    }
}
