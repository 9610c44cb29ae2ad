//! What the resources in force refer to, and so what has to be read, asked for and watched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use remora_xds::Kind;
use remora_xds::client::Names as Wanted;

use super::{Manager, http_specs};
use crate::config::spec::{ConfigSource, ListenerSpec, RdsSpec};
use crate::telemetry::metrics::ResourceKind;
use crate::upstream::cluster::{Discovery, EdsSource, EdsSpec};
use crate::upstream::dns::DnsSpec;

impl Manager {
    /// Routes that listeners in force take from elsewhere.
    fn rds(&self) -> impl Iterator<Item = &RdsSpec> {
        self.listeners.values().flat_map(|held| rds_of(&held.value))
    }

    /// Endpoints that clusters in force take from elsewhere.
    pub(super) fn eds(&self) -> impl Iterator<Item = &EdsSpec> {
        self.clusters.values().filter_map(|held| match &held.value.spec().discovery {
            Discovery::Eds(eds) => Some(eds),
            _ => None,
        })
    }

    /// Files whose contents are wanted now: those of the bootstrap, and those that accepted resources name.
    #[must_use]
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let mut files = self.roots.clone();
        files.extend(self.rds().filter_map(|rds| match &rds.source {
            ConfigSource::Path { path, .. } => Some(path.to_path_buf()),
            ConfigSource::Ads => None,
        }));
        files.extend(self.eds().filter_map(|eds| match &eds.source {
            EdsSource::File { path, .. } => Some(PathBuf::from(&**path)),
            EdsSource::Ads => None,
        }));
        files.extend(self.names.secrets.sds_files().map(PathBuf::from));
        files
    }

    /// Whether a file is wanted that was not read yet, or that has not given what was wanted of it.
    #[must_use]
    pub fn has_unread_files(&self) -> bool {
        self.files().iter().any(|file| !self.seen.contains_key(file) || self.names.secrets.lacks(file))
    }

    /// Directories to watch besides those of the files (`watched_directory`).
    #[must_use]
    pub fn directories(&self) -> BTreeSet<PathBuf> {
        let of_rds = self.rds().filter_map(|rds| match &rds.source {
            ConfigSource::Path { watched, .. } => watched.as_ref().map(|watched| watched.to_path_buf()),
            ConfigSource::Ads => None,
        });
        let of_eds = self.eds().filter_map(|eds| match &eds.source {
            EdsSource::File { watched_directory, .. } => {
                watched_directory.as_ref().map(|watched| PathBuf::from(&**watched))
            }
            EdsSource::Ads => None,
        });
        let secrets = &self.names.secrets;
        let of_secrets = secrets.sds_directories().chain(secrets.material_directories());
        of_rds.chain(of_eds).chain(of_secrets.map(PathBuf::from)).collect()
    }

    /// Everything whose changes are to be followed: [`Self::files`], and those that certificates are read from.
    #[must_use]
    pub fn watched_files(&self) -> BTreeSet<PathBuf> {
        let mut files = self.files();
        files.extend(self.material_files());
        files
    }

    /// What a file is expected to hold, by who names it.
    #[must_use]
    pub fn kind_of(&self, path: &Path) -> ResourceKind {
        let names_it =
            |rds: &RdsSpec| matches!(&rds.source, ConfigSource::Path { path: named, .. } if **named == *path);
        if self.rds().any(names_it) {
            ResourceKind::Route
        } else if self.names.secrets.sds_files().any(|named| named == path) {
            ResourceKind::Secret
        } else if self.roots.contains(path) {
            ResourceKind::Cluster
        } else {
            ResourceKind::Endpoint
        }
    }

    /// Clusters whose endpoints are names.
    #[must_use]
    pub fn dns(&self) -> Vec<(Arc<str>, Arc<DnsSpec>)> {
        let clusters = self.clusters.iter();
        let named = clusters.filter_map(|(name, held)| match &held.value.spec().discovery {
            Discovery::Dns(spec) => Some((Arc::clone(name), Arc::clone(spec))),
            _ => None,
        });
        named.collect()
    }

    /// Routes that a listener, in force or waiting, takes from the control plane.
    pub(super) fn wanted_routes(&self) -> BTreeSet<Arc<str>> {
        self.ads_rds().map(|rds| Arc::clone(&rds.name)).collect()
    }

    fn ads_rds(&self) -> impl Iterator<Item = &RdsSpec> {
        let waiting = self.dynamic.warming.listeners.values().flat_map(|w| rds_of(&w.held.value));
        self.rds().chain(waiting).filter(|rds| rds.source == ConfigSource::Ads)
    }

    /// The names that are wanted from the control plane: routes of listeners and endpoints of clusters.
    #[must_use]
    pub fn ads_wanted(&self) -> Wanted {
        let eds = self.eds().filter(|eds| eds.source == EdsSource::Ads);
        Wanted::from([
            (Kind::ClusterLoadAssignment, eds.map(|eds| Arc::clone(&eds.service_name)).collect()),
            (Kind::RouteConfiguration, self.wanted_routes()),
            (Kind::Secret, self.names.secrets.wanted(&Some(ConfigSource::Ads))),
        ])
    }
}

pub(super) fn rds_of(listener: &ListenerSpec) -> impl Iterator<Item = &RdsSpec> {
    http_specs(listener).filter_map(|http| http.rds.as_ref())
}
