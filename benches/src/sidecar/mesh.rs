//! `remora control` with the mesh of a run, and the sidecar that it gives everything.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::netns::POD;
use super::{Plan, bootstrap};
use crate::compare::spawn::{self, Cores, Placement, Running};
use crate::load::{self, Mode, Protocol};
use crate::xds::plane::rest::Rest;

/// Port of the first Service; each has one of its own.
const FIRST_PORT: usize = 20_000;
/// Documents of one request to the control plane.
const BATCH: usize = 500;
/// Seconds that a sidecar may drain.
const DRAIN: &str = "5";

/// The documents of a mesh: so many Services, each with an EndpointSlice of so many pods, which are Workloads. And the sidecar's own two; with
/// `egress` its program calls the first ones only.
fn documents(services: usize, endpoints: usize, egress: Option<usize>) -> Vec<String> {
    let called = egress.map(|called| {
        let names = (0..called).map(|number| format!("{{service: service-{number:04}}}"));
        format!(", egress: [{}]", names.collect::<Vec<_>>().join(", "))
    });
    let called = called.unwrap_or_default();
    let mut all = vec![
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: app}}\n\
             spec: {{clusterIP: 10.95.0.1, selector: {{app: app}}, ports: [{{name: http, port: 19999, targetPort: 8080}}]}}\n"
        ),
        format!(
            "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {{name: app, labels: {{app: app}}}}\n\
             spec: {{address: {POD}, ports: [{{port: 8080}}]{called}}}\n"
        ),
    ];
    for number in 0..services {
        let (name, port) = (format!("service-{number:04}"), FIRST_PORT + number);
        let vip = ip(96, number);
        all.push(format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{clusterIP: {vip}, ports: [{{name: http, port: {port}, targetPort: 8080}}]}}\n"
        ));
        let mut slice = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080}}]\nendpoints:\n"
        );
        for endpoint in 0..endpoints {
            let (pod, address) = (format!("{name}-{endpoint}"), ip(100 + endpoint, number));
            slice += &format!("- {{addresses: [{address}], targetRef: {{kind: Pod, name: {pod}}}}}\n");
            all.push(format!(
                "apiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {{name: {pod}}}\n\
                 spec: {{address: {address}, ports: [{{port: 8080}}], egress: []}}\n"
            ));
        }
        all.push(slice);
    }
    all
}

fn ip(second: usize, number: usize) -> Ipv4Addr {
    let byte = |value: usize| u8::try_from(value).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, byte(second), byte(number / 250), byte(number % 250 + 1))
}

/// The running control plane.
#[derive(Debug)]
pub(super) struct Mesh {
    _control: Running,
    rest: Rest,
    tls: SocketAddr,
    /// Services that the sidecar has.
    called: usize,
    folder: PathBuf,
}

impl Mesh {
    /// Starts it in the namespace in which this thread is, and gives it the documents.
    pub(super) async fn start(plan: &Plan, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Self> {
        progress("starting the control plane");
        let folder = tempfile::tempdir_in(&plan.folder)?.keep();
        let addresses = folder.join("addresses.json");
        let mut arguments: Vec<OsString> = vec!["control".into(), "-l".into(), "warn".into()];
        for listen in ["--listen-xds", "--listen-tls", "--listen-rest"] {
            arguments.extend([listen.into(), "127.0.0.1:0".into()]);
        }
        arguments.extend(["--data".into(), folder.join("data").into(), "--address-path".into()]);
        arguments.push(addresses.clone().into());
        let log = folder.join("control.log");
        let mut control = spawn::start(Cores::new(Placement::Free)?, &plan.remora, &arguments, log)?;
        let at = |name: &str| -> anyhow::Result<SocketAddr> {
            let text: Value = serde_json::from_str(&fs::read_to_string(&addresses)?)?;
            Ok(text[name].as_str().context("no address")?.parse()?)
        };
        control.ready(async || at("rest").map(drop)).await?;
        let mut rest = Rest::connect(at("rest")?).await?;
        progress("loading the mesh");
        for batch in documents(plan.services, plan.endpoints, plan.egress).chunks(BATCH) {
            rest.apply(&batch.join("---\n")).await?;
        }
        fs::write(folder.join("token"), rest.token("default", "default").await?)?;
        Ok(Self {
            _control: control,
            rest,
            tls: at("tls")?,
            called: plan.egress.unwrap_or(plan.services),
            folder,
        })
    }

    /// The bootstrap of its sidecar.
    pub(super) fn bootstrap(&self) -> Value {
        bootstrap::in_mesh(self.tls)
    }

    /// Arguments of a sidecar that has never run before: no certificate, nothing on disk. `more` go behind.
    pub(super) fn arguments(&self, config: &Value, more: &[&str]) -> anyhow::Result<Vec<OsString>> {
        let folder = tempfile::tempdir_in(&self.folder)?.keep();
        let mut arguments = arguments(&folder, config)?;
        arguments.extend(["--ca".into(), format!("https://{}", self.tls).into()]);
        arguments.extend(["--token-file".into(), self.folder.join("token").into()]);
        arguments.extend(["--identity-dir".into(), folder.join("identity").into()]);
        arguments.extend(["--state-dir".into(), folder.join("state").into()]);
        arguments.extend(more.iter().map(OsString::from));
        Ok(arguments)
    }

    /// Fails unless the control plane says that its one sidecar has all that it should have; gives the number of its resources.
    pub(super) async fn in_force(&mut self) -> anyhow::Result<f64> {
        let (known, synced, wanted) = self.rest.proxies().await?;
        ensure!((known, synced) == (1, 1), "{synced} of {known} sidecars are in sync");
        // A cluster, a load assignment, a listener and routes for each, at least.
        ensure!(wanted as usize >= 4 * self.called, "the sidecar has only {wanted} resources");
        Ok(wanted as f64)
    }
}

/// Arguments of a data plane with this configuration, one worker and a short drain time.
pub(super) fn arguments(folder: &Path, config: &Value) -> anyhow::Result<Vec<OsString>> {
    let file = folder.join("bootstrap.yaml");
    // JSON is YAML.
    fs::write(&file, config.to_string())?;
    let words = ["--concurrency", "1", "--drain-time-s", DRAIN, "-l", "warn"].map(OsString::from);
    Ok(["-c".into(), file.into()].into_iter().chain(words).collect())
}

/// Starts a data plane; gives the time from its start to the first 200 of `/ready`.
pub(super) async fn start(
    program: &Path,
    arguments: &[OsString],
    admin: u16,
    log: PathBuf,
) -> anyhow::Result<(Running, Duration)> {
    let mut running = spawn::start(Cores::new(Placement::Free)?, program, arguments, log)?;
    let took = ready(&mut running, admin).await?;
    Ok((running, took))
}

/// Waits for the first 200 of `/ready`; gives the time since the start of the process.
pub(super) async fn ready(running: &mut Running, admin: u16) -> anyhow::Result<Duration> {
    let ask = load::Options { path: "/ready".into(), ..requests(admin_at(admin), Mode::Closed) };
    running.ready(async || load::probe(&ask).await).await
}

fn admin_at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// Requests of HTTP/1 on kept connections.
pub(super) fn requests(target: SocketAddr, mode: Mode) -> load::Options {
    load::Options {
        target,
        protocol: Protocol::H1,
        handshake: None,
        mode,
        connections: 32,
        streams: 1,
        authority: "localhost".to_owned(),
        path: "/".to_owned(),
        warmup: Duration::from_secs(1),
        window: Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_service_has_its_slice_and_every_pod_its_address() {
        let all = documents(1000, 2, None);
        assert_eq!(all.len(), 2 + 1000 * 4);
        let of = |kind: &str| all.iter().filter(|text| text.contains(&format!("kind: {kind}\n"))).count();
        assert!(documents(2, 1, Some(2))[1].ends_with(
            "ports: [{port: 8080}], egress: [{service: service-0000}, {service: service-0001}]}\n"
        ));
        assert_eq!([of("Service"), of("EndpointSlice"), of("Workload")], [1001, 1000, 2001]);
        let pods: BTreeSet<_> = (0..2).flat_map(|e| (0..1000).map(move |n| ip(100 + e, n))).collect();
        assert_eq!(pods.len(), 2000);
        assert_eq!(ip(96, 999), Ipv4Addr::new(10, 96, 3, 250));
    }
}
