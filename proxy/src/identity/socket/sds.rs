//! The identity as xDS secrets, under the names that Istio and SPIRE give them, and under its own.

use std::sync::Arc;

use remora_xds::pb::envoy::config::core::v3::DataSource;
use remora_xds::pb::envoy::config::core::v3::data_source::Specifier;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use remora_xds::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, TlsCertificate,
};
use remora_xds::pb::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer;
use remora_xds::server::{AdsService, Client, Denied, Settings, SnapshotWatch, Snapshots};
use remora_xds::{NodeSnapshot, Resource};
use tokio::sync::watch;

use super::{Newest, bundle_name};
use crate::config::manager::{OWN, ROOTS};
use crate::identity::Identity;
use crate::tls::material::to_pem;

/// The gRPC service.
pub(super) type Server = SecretDiscoveryServiceServer<AdsService<Secrets>>;

/// A handful of programs, on one machine.
pub(super) fn settings() -> Settings {
    Settings { streams: super::MAX_CONNECTIONS, request_bytes: 64 << 10, ..Settings::default() }
}

/// The same snapshot for everybody.
#[derive(Debug)]
pub(super) struct Secrets(SnapshotWatch);

impl Secrets {
    /// Follows the identity, on a task that ends with it.
    pub(super) fn follow(mut newest: Newest) -> Self {
        let (send, snapshots) = watch::channel(newest.borrow_and_update().as_deref().map(snapshot));
        tokio::spawn(async move {
            while newest.changed().await.is_ok() {
                send.send_replace(newest.borrow_and_update().as_deref().map(snapshot));
            }
        });
        Self(snapshots)
    }
}

impl Snapshots for Secrets {
    fn watch(&self, _: &Client) -> Result<SnapshotWatch, Denied> {
        Ok(self.0.clone())
    }
}

fn snapshot(identity: &Identity) -> Arc<NodeSnapshot> {
    let own = Type::TlsCertificate(TlsCertificate {
        certificate_chain: inline(&identity.text.chain),
        private_key: inline(&identity.text.key),
        ..TlsCertificate::default()
    });
    let roots = validation(&identity.text.roots);
    let mut snapshot = NodeSnapshot::default();
    let mut add = |name: &str, secret: &Type| {
        let secret = Secret { name: name.to_owned(), r#type: Some(secret.clone()) };
        snapshot.insert(Arc::new(Resource::new(&secret)));
    };
    add(OWN, &own);
    add(ROOTS, &roots);
    if let Some(id) = identity.spiffe() {
        add(id.as_str(), &own);
        add(&bundle_name(id.trust_domain()), &roots);
    }
    for (domain, bundle) in identity.federated() {
        add(&bundle_name(domain), &validation(&to_pem(bundle)));
    }
    Arc::new(snapshot)
}

fn validation(roots: &str) -> Type {
    Type::ValidationContext(CertificateValidationContext {
        trusted_ca: inline(roots),
        ..CertificateValidationContext::default()
    })
}

fn inline(text: &str) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineString(text.to_owned())), ..DataSource::default() })
}
