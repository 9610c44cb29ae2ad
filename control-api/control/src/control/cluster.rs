//! `--kubernetes` and what belongs to it.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Args;
use tokio::task::JoinSet;

use super::own::Own;
use super::plane::{StartError, listen};
use crate::board::Board;
use crate::inject::{Interception, Native, Settings, values};
use crate::kubernetes::{self, Access, PlaintextTo, Webhook};
use crate::quota::Owner;
use crate::registry::Registry;

/// Kubernetes as a source of documents, and the webhook.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// How the API server is reached.
    pub access: Access,
    /// Name of the ConfigMap with the mesh's roots that is kept in every namespace.
    pub roots: String,
    /// Services that may be called in plaintext while they are known to have no sidecars.
    pub plaintext_to: Vec<PlaintextTo>,
    /// The server of the injection webhook.
    pub webhook: Option<WebhookOptions>,
}

/// How the webhook is served.
#[derive(Debug, Clone)]
pub struct WebhookOptions {
    /// Where API servers connect.
    pub listen: SocketAddr,
    /// DNS names that it is called by.
    pub names: Vec<String>,
    /// Name of the MutatingWebhookConfiguration.
    pub configuration: String,
    /// What pods get.
    pub settings: Settings,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Kubernetes")]
pub(super) struct ClusterArgs {
    /// Take documents and pods from a cluster: as a pod of it, or by a kubeconfig
    #[arg(long, value_name = "in-cluster|KUBECONFIG", num_args = 0..=1, require_equals = true, default_missing_value = "in-cluster")]
    kubernetes: Option<Access>,
    /// ConfigMap with the roots of the mesh, kept in every namespace
    #[arg(long, value_name = "NAME", default_value = "remora-roots", requires = "kubernetes")]
    roots_config_map: String,
    /// Services that sidecars may call in plaintext while it is known that they have none themselves, and no policy closes them; * means all
    #[arg(long, value_name = "NAMESPACE[/SERVICE]", value_delimiter = ',', requires = "kubernetes")]
    plaintext_to: Vec<PlaintextTo>,
    /// Serve the injection webhook here
    #[arg(long, value_name = "HOST:PORT", requires_all = ["kubernetes", "inject_control"])]
    listen_webhook: Option<SocketAddr>,
    /// The Service that API servers call it by
    #[arg(long, value_name = "NAMESPACE/NAME", default_value = "remora-system/remora-control", value_parser = service, requires = "listen_webhook")]
    webhook_service: Service,
    /// The MutatingWebhookConfiguration that gets its roots
    #[arg(long, value_name = "NAME", default_value = "remora-inject", requires = "listen_webhook")]
    webhook_configuration: String,
    /// What is injected: this control plane's TLS port, as pods reach it
    #[arg(long, value_name = "IP:PORT", requires = "listen_webhook")]
    inject_control: Option<SocketAddr>,
    /// What is injected: image with /usr/local/bin/remora [default: remora:VERSION]
    #[arg(long, value_name = "IMAGE", value_parser = values::image, requires = "listen_webhook")]
    inject_image: Option<String>,
    /// What is injected: sidecars that are init containers; auto: from Kubernetes 1.29
    #[arg(
        long,
        value_enum,
        value_name = "auto|true|false",
        default_value = "auto",
        requires = "listen_webhook"
    )]
    inject_native: Native,
    /// What is injected: who leads traffic to the sidecar
    #[arg(
        long,
        value_enum,
        value_name = "init|cni|none",
        default_value = "init",
        requires = "listen_webhook"
    )]
    inject_interception: Interception,
    /// What is injected: worker threads of a sidecar
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024), requires = "listen_webhook")]
    inject_concurrency: u16,
}

/// DNS names of a Service.
#[derive(Debug, Clone)]
struct Service(Vec<String>);

fn service(text: &str) -> Result<Service, String> {
    kubernetes::names(text).map(Service)
}

impl ClusterArgs {
    /// `audience`: what tokens of service accounts are for.
    pub(super) fn options(self, audience: &str) -> Option<ClusterOptions> {
        let access = self.kubernetes?;
        let webhook = self.listen_webhook.zip(self.inject_control).map(|(listen, control)| {
            let defaults = Settings::new(control);
            WebhookOptions {
                listen,
                names: self.webhook_service.0,
                configuration: self.webhook_configuration,
                settings: Settings {
                    image: self.inject_image.unwrap_or_else(|| defaults.image.clone()),
                    roots: self.roots_config_map.clone(),
                    audience: audience.to_owned(),
                    native: self.inject_native,
                    interception: self.inject_interception,
                    concurrency: self.inject_concurrency,
                    ..defaults
                },
            }
        });
        let (roots, plaintext_to) = (self.roots_config_map, self.plaintext_to);
        Some(ClusterOptions { access, roots, plaintext_to, webhook })
    }
}

/// What the tasks of Kubernetes work with.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) registry: &'a Arc<Registry>,
    pub(super) board: &'a Arc<Board>,
    pub(super) own: Own,
    /// Which of several control planes reads Kubernetes.
    pub(super) owner: &'a Arc<Owner>,
}

/// Starts the tasks, and answers where the webhook is.
///
/// # Errors
/// [`StartError::Kubernetes`], [`StartError::Listen`].
pub(super) async fn start(
    options: ClusterOptions,
    parts: Parts<'_>,
    tasks: &mut JoinSet<()>,
) -> Result<Option<SocketAddr>, StartError> {
    let client = options.access.client().await.map_err(StartError::Kubernetes)?;
    let (registry, board) = (Arc::clone(parts.registry), Arc::clone(parts.board));
    let owner = Arc::clone(parts.owner);
    tasks.spawn(kubernetes::follow(client.clone(), registry, board, owner, options.plaintext_to));
    tasks.spawn(kubernetes::keep_roots(client.clone(), Arc::clone(&parts.own.ca), options.roots));
    let Some(webhook) = options.webhook else { return Ok(None) };
    let (listener, address) = listen(webhook.listen).await?;
    let mut own = parts.own;
    own.names.extend(webhook.names);
    let server = Webhook { own, settings: webhook.settings, configuration: webhook.configuration };
    tasks.spawn(server.serve(listener, client));
    Ok(Some(address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    #[test]
    fn plaintext_is_allowed_to_those_that_are_named_and_to_nobody_else() {
        let named = |line: &[&str]| {
            let args = Line::try_parse_from(std::iter::once(&"control").chain(line));
            args.map(|args| args.cluster.options("istio-ca").unwrap().plaintext_to)
        };
        assert_eq!(named(&["--kubernetes"]).unwrap(), []);
        let some = named(&["--kubernetes", "--plaintext-to=default/kubernetes,kube-system"]).unwrap();
        assert_eq!(
            some.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["default/kubernetes", "kube-system"]
        );
        assert_eq!(named(&["--kubernetes", "--plaintext-to=*"]).unwrap(), [PlaintextTo::All]);
        assert!(named(&["--kubernetes", "--plaintext-to=kube-*"]).is_err());
        assert!(named(&["--plaintext-to=kube-system"]).is_err(), "it is about Kubernetes");
    }
}
