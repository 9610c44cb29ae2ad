//! Secrets as they come: from the bootstrap, files, the control plane and the process itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use remora_xds::diag::{At, ConfigError, Errors, SourceMap};

use super::batch::Batch;
use super::{Manager, Origin};
use crate::config::compile::{Scope, tls};
use crate::config::secrets::{Compiled, Material, Recipe, SecretSource, Secrets};
use crate::config::spec::{ConfigSource, FilterChain, ListenerSpec};
use crate::tls::secret::Secret;
use crate::tls::verify::Trust;

/// Name of the secret with the process's own certificate.
pub const OWN: &str = "default";
/// Name of the secret with the certificates of the authorities.
pub const ROOTS: &str = "ROOTCA";

impl Manager {
    /// Brings the secrets of a batch into force: the next handshakes use them. Gives those that contexts cannot use.
    pub(super) fn put_secrets(&mut self, batch: &mut Batch, origin: &Origin) -> Vec<(Arc<str>, String)> {
        let mut refused = Vec::new();
        for secret in std::mem::take(&mut batch.secrets) {
            let source = source_of(origin);
            let name = Arc::clone(&secret.name);
            let revokes = secret.material.revokes();
            match self.names.secrets.put(&source, secret) {
                Ok(news) => self.revoked |= news && revokes,
                Err(error) => refused.push((name, error)),
            }
        }
        refused
    }

    /// Secrets of a batch that contexts cannot use.
    pub(super) fn conflicts(&self, batch: &Batch, origin: &Origin) -> Vec<(Arc<str>, String)> {
        let source = source_of(origin);
        let conflict = |secret: &Compiled| {
            let error = self.names.secrets.conflict(&source, &secret.name, &secret.material)?;
            Some((Arc::clone(&secret.name), error))
        };
        batch.secrets.iter().filter_map(conflict).collect()
    }

    /// `static_resources.secrets`: contexts look for them by name while they are compiled.
    pub(super) fn put_static_secrets(&mut self, batch: &mut Batch, at: &At<'_>, errors: &mut Errors) {
        for (name, error) in self.put_secrets(batch, &Origin::Static) {
            errors.report(at, format!("{name:?} {error}"));
        }
    }

    /// The identity agent has a new certificate, or new authorities.
    pub fn put_own(&mut self, name: &str, material: Material) {
        // A new one each time: nothing is compared.
        self.own_secrets += 1;
        let secret = Compiled { hash: self.own_secrets, name: name.into(), material, files: None };
        if let Err(error) = self.names.secrets.put(&None, secret) {
            tracing::error!(name, error, "the agent's secret is not used");
        }
    }

    /// The authorities that the control plane has sent.
    #[must_use]
    pub fn roots_of_control_plane(&self) -> Option<Arc<Trust>> {
        self.names.secrets.newest_trust(&Some(ConfigSource::Ads), ROOTS)
    }

    /// Whether there are other revocation lists than when this was asked last.
    pub const fn take_revoked(&mut self) -> bool {
        std::mem::replace(&mut self.revoked, false)
    }

    /// Whether the secrets of the connection to the control plane have come.
    #[must_use]
    pub fn can_reach_control_plane(&self) -> bool {
        let cluster = self.ads().and_then(|spec| self.clusters.get(&spec.cluster));
        cluster.is_some_and(|held| held.value.spec().tls.as_ref().is_none_or(|tls| tls.is_ready()))
    }

    /// Reads again what was written out with file names. Gives what is wrong now; the old one stays in use then.
    pub fn reload_material(&mut self) -> Vec<ConfigError> {
        let mut mistakes = Vec::new();
        for recipe in self.names.secrets.changed() {
            let mut errors = Errors::new("certificate files", SourceMap::default());
            let mut scope = Scope { errors: &mut errors, names: &mut self.names };
            match recipe {
                Recipe::Certificate(pb, provider, secret) => {
                    let new = tls::own_certificate(&pb, &provider, &At::root(), &mut scope);
                    replace(&secret, new);
                }
                Recipe::Trust(pb, secret) => {
                    let new = tls::trust(&pb, &At::root(), &mut scope);
                    self.revoked |= new.as_ref().is_some_and(|trust| !trust.revoked.is_empty());
                    replace(&secret, new);
                }
            }
            mistakes.extend(errors.into_list());
        }
        for (source, name, pb) in self.names.secrets.changed_secrets() {
            let mut errors = Errors::new(&*name, SourceMap::default());
            let mut scope = Scope { errors: &mut errors, names: &mut self.names };
            if let Some(material) = tls::compile_secret(&pb, &At::root(), &mut scope) {
                self.revoked |= material.revokes();
                if let Err(error) = self.names.secrets.reread(&source, &name, material) {
                    errors.report(&At::root(), error);
                }
            }
            mistakes.extend(errors.into_list());
        }
        mistakes
    }

    /// Files of certificates, keys and authorities.
    pub(super) fn material_files(&self) -> impl Iterator<Item = PathBuf> {
        self.names.secrets.material_files().map(PathBuf::from)
    }
}

fn source_of(origin: &Origin) -> SecretSource {
    match origin {
        Origin::Static => None,
        Origin::Ads => Some(ConfigSource::Ads),
        Origin::File(path) => Secrets::of_file(path),
    }
}

/// What contexts cannot use, as mistakes of the file that it is in.
pub(super) fn refused_in(path: &Path, refused: Vec<(Arc<str>, String)>) -> Vec<ConfigError> {
    let mut errors = Errors::new(path.display().to_string(), SourceMap::default());
    let root = At::root();
    for (name, error) in refused {
        errors.report(&root.field("resources"), format!("{name:?} {error}"));
    }
    errors.into_list()
}

fn replace<T>(secret: &Weak<Secret<T>>, new: Option<T>) {
    if let (Some(secret), Some(new)) = (secret.upgrade(), new) {
        secret.set(Arc::new(new));
    }
}

/// Whether every chain's certificates and trust have come.
pub(super) fn has_secrets(listener: &ListenerSpec) -> bool {
    listener.chains.iter().all(|chain| chain_has_secrets(chain))
}

fn chain_has_secrets(chain: &FilterChain) -> bool {
    chain.tls.as_ref().is_none_or(|tls| tls.is_ready())
}

/// Whether a chain that works in `old` would refuse every handshake in `new`. Chains that only `new` has cannot: nothing works there yet.
pub(super) fn loses_secrets(new: &ListenerSpec, old: &ListenerSpec) -> bool {
    let works = |id| old.chains.iter().any(|chain| chain.id == id && chain_has_secrets(chain));
    new.chains.iter().any(|chain| !chain_has_secrets(chain) && works(chain.id))
}

/// Names of those that have not.
pub(super) fn missing_secrets(listener: &ListenerSpec) -> BTreeSet<Arc<str>> {
    let contexts = listener.chains.iter().filter_map(|chain| chain.tls.as_ref());
    let missing = contexts.flat_map(|tls| {
        let own = tls.secrets().filter(|secret| !secret.is_there()).map(|secret| secret.name());
        let trust = tls.peers().map(|peers| &peers.trust).filter(|trust| !trust.is_there());
        own.chain(trust.map(|trust| trust.name()))
    });
    missing.cloned().collect()
}

#[cfg(test)]
mod tests;
