//! How each proxy is started in each scenario, from the files in `benches/configs`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use crate::load::handshake::Kind;

/// What is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// HTTP/1.1 on both sides, plaintext.
    H1,
    /// HTTP/2 with prior knowledge on both sides, plaintext.
    H2,
    /// Two proxies: HTTP/1.1 in, HTTP/2 over mTLS between them, HTTP/1.1 out. nginx has HTTP/1.1 over mTLS between.
    MtlsPair,
    /// The same with access rules of a mesh in the second proxy; HAProxy has none.
    MtlsPairPolicy,
    /// HTTP/1.1 to four endpoints, by turns: what the next scenario is compared with.
    FourEndpoints,
    /// The same with everything that a mesh does for resilience: peak EWMA, retries under a budget, a circuit breaker, outlier
    /// detection, a rate limit. Envoy has all but the first and the third.
    Resilience,
    /// A connection by mutual TLS 1.3 for every request, which the proxy answers itself: a full handshake with X25519.
    Handshake,
    /// The same with X25519MLKEM768.
    HandshakeHybrid,
    /// The same with X25519 and a ticket: no certificate is shown.
    HandshakeResumed,
    /// Bulk bytes over plain TCP.
    Tcp,
}

impl Scenario {
    /// How clients shake hands, in scenarios that are about it.
    pub(super) const fn handshake(self) -> Option<Kind> {
        match self {
            Self::Handshake => Some(Kind::Full),
            Self::HandshakeHybrid => Some(Kind::Hybrid),
            Self::HandshakeResumed => Some(Kind::Resumed),
            Self::H1
            | Self::H2
            | Self::MtlsPair
            | Self::MtlsPairPolicy
            | Self::FourEndpoints
            | Self::Resilience
            | Self::Tcp => None,
        }
    }
}

/// Who carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// Nobody: what the generator and the origin do alone.
    Direct,
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
    /// Envoy.
    Envoy,
    /// Bare hyper, one thread, no features.
    HyperFloor,
    /// Remora, from the files that Envoy reads.
    Remora,
}

/// The name that the command line uses.
pub(super) fn name(value: &impl clap::ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    /// HAProxy.
    pub haproxy: PathBuf,
    /// nginx.
    pub nginx: PathBuf,
    /// Envoy.
    pub envoy: PathBuf,
    /// Our floor.
    pub hyper_floor: PathBuf,
    /// Remora's data plane.
    pub remora: PathBuf,
    /// More arguments for Remora.
    pub remora_args: Vec<String>,
    /// Our origin.
    pub origin: PathBuf,
}

impl Programs {
    /// The program of a proxy; `None` for [`Proxy::Direct`].
    #[must_use]
    pub fn of(&self, proxy: Proxy) -> Option<&Path> {
        match proxy {
            Proxy::Direct => None,
            Proxy::Haproxy => Some(&self.haproxy),
            Proxy::Nginx => Some(&self.nginx),
            Proxy::Envoy => Some(&self.envoy),
            Proxy::HyperFloor => Some(&self.hyper_floor),
            Proxy::Remora => Some(&self.remora),
        }
    }
}

/// One process of a scenario: the name of its config file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    H1,
    H2,
    /// The client's half of the pair.
    MtlsA,
    /// The server's half of the pair.
    MtlsB,
    /// The same with access rules.
    MtlsBPolicy,
    FourEndpoints,
    Resilience,
    /// The only process, that shakes hands.
    Handshake,
    Tcp,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H2 => "h2",
            Self::MtlsA => "mtls-a",
            Self::MtlsB => "mtls-b",
            Self::MtlsBPolicy => "mtls-b-policy",
            Self::FourEndpoints => "four-endpoints",
            Self::Resilience => "resilience",
            Self::Handshake => "handshake",
            Self::Tcp => "tcp",
        }
    }
}

/// The processes of a scenario, the one next to the origin first. Empty if the proxy cannot do it.
pub(super) fn parts(proxy: Proxy, scenario: Scenario) -> &'static [Part] {
    use Scenario as S;
    match (proxy, scenario) {
        (Proxy::Direct, _) | (Proxy::Nginx, S::H2) => &[],
        (Proxy::Nginx | Proxy::HyperFloor, _) if scenario.handshake().is_some() => &[],
        (Proxy::Nginx | Proxy::HyperFloor, S::MtlsPairPolicy) => &[],
        // OpenSSL has the group since 3.5; what distributions build HAProxy with is older.
        (Proxy::Haproxy, S::HandshakeHybrid) => &[],
        (Proxy::Haproxy | Proxy::Nginx | Proxy::HyperFloor, S::FourEndpoints | S::Resilience) => &[],
        (_, S::FourEndpoints) => &[Part::FourEndpoints],
        (_, S::Resilience) => &[Part::Resilience],
        (_, S::H1) => &[Part::H1],
        (_, S::H2) => &[Part::H2],
        (_, S::MtlsPair) | (Proxy::Haproxy, S::MtlsPairPolicy) => &[Part::MtlsB, Part::MtlsA],
        (_, S::MtlsPairPolicy) => &[Part::MtlsBPolicy, Part::MtlsA],
        (_, S::Handshake | S::HandshakeHybrid | S::HandshakeResumed) => &[Part::Handshake],
        (_, S::Tcp) => &[Part::Tcp],
    }
}

/// Whether there is anything to measure.
pub(super) fn can(proxy: Proxy, scenario: Scenario) -> bool {
    match proxy {
        // Without a proxy the pair is the HTTP/1 run again, and nobody shakes hands.
        Proxy::Direct => matches!(scenario, Scenario::H1 | Scenario::H2 | Scenario::Tcp),
        _ => !parts(proxy, scenario).is_empty(),
    }
}

fn template(proxy: Proxy, part: Part) -> Option<&'static str> {
    Some(match (proxy, part) {
        (Proxy::Haproxy, Part::H1) => include_str!("../../configs/haproxy/h1.cfg"),
        (Proxy::Haproxy, Part::H2) => include_str!("../../configs/haproxy/h2.cfg"),
        (Proxy::Haproxy, Part::MtlsA) => include_str!("../../configs/haproxy/mtls-a.cfg"),
        (Proxy::Haproxy, Part::MtlsB) => include_str!("../../configs/haproxy/mtls-b.cfg"),
        (Proxy::Haproxy, Part::Handshake) => include_str!("../../configs/haproxy/handshake.cfg"),
        (Proxy::Haproxy, Part::Tcp) => include_str!("../../configs/haproxy/tcp.cfg"),
        (Proxy::Nginx, Part::H1) => include_str!("../../configs/nginx/h1.conf"),
        (Proxy::Nginx, Part::MtlsA) => include_str!("../../configs/nginx/mtls-a.conf"),
        (Proxy::Nginx, Part::MtlsB) => include_str!("../../configs/nginx/mtls-b.conf"),
        (Proxy::Nginx, Part::Tcp) => include_str!("../../configs/nginx/tcp.conf"),
        (Proxy::Envoy | Proxy::Remora, Part::H1) => include_str!("../../configs/envoy/h1.yaml"),
        (Proxy::Envoy | Proxy::Remora, Part::H2) => include_str!("../../configs/envoy/h2.yaml"),
        (Proxy::Envoy | Proxy::Remora, Part::MtlsA) => include_str!("../../configs/envoy/mtls-a.yaml"),
        (Proxy::Envoy | Proxy::Remora, Part::MtlsB) => include_str!("../../configs/envoy/mtls-b.yaml"),
        (Proxy::Envoy | Proxy::Remora, Part::MtlsBPolicy) => {
            include_str!("../../configs/envoy/mtls-b-policy.yaml")
        }
        (Proxy::Envoy | Proxy::Remora, Part::FourEndpoints) => {
            include_str!("../../configs/envoy/four-endpoints.yaml")
        }
        (Proxy::Envoy | Proxy::Remora, Part::Resilience) => {
            include_str!("../../configs/envoy/resilience.yaml")
        }
        (Proxy::Envoy | Proxy::Remora, Part::Handshake) => include_str!("../../configs/envoy/handshake.yaml"),
        (Proxy::Envoy | Proxy::Remora, Part::Tcp) => include_str!("../../configs/envoy/tcp.yaml"),
        (Proxy::Direct | Proxy::HyperFloor, _)
        | (Proxy::Nginx, Part::H2 | Part::Handshake)
        | (Proxy::Haproxy | Proxy::Nginx, Part::MtlsBPolicy | Part::FourEndpoints | Part::Resilience) => {
            return None;
        }
    })
}

/// Where Debian keeps the L4 half of nginx.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Where one process stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site<'a> {
    /// Certificates are here, and configs are written here.
    pub(super) folder: &'a Path,
    /// Port to listen on.
    pub(super) listen: u16,
    /// Port to send to.
    pub(super) upstream: u16,
}

/// Fills in a template. Every `@WORD@` must be known, or a proxy would be measured with something else than was meant.
fn fill(template: &str, site: &Site<'_>) -> anyhow::Result<String> {
    let module = if Path::new(STREAM_MODULE).exists() {
        format!("load_module {STREAM_MODULE};")
    } else {
        String::new()
    };
    let text = template
        .replace("@LISTEN@", &site.listen.to_string())
        .replace("@UPSTREAM@", &site.upstream.to_string())
        .replace("@DIR@", &site.folder.display().to_string())
        .replace("@STREAM_MODULE@", &module);
    let known = |line: &&str| !line.contains("\"@type\"");
    if let Some(line) = text.lines().filter(known).find(|line| line.contains('@')) {
        bail!("unknown placeholder in {line:?}");
    }
    Ok(text)
}

/// The arguments that start one process; writes its config file.
pub(super) fn arguments(
    programs: &Programs,
    proxy: Proxy,
    part: Part,
    site: &Site<'_>,
) -> anyhow::Result<Vec<OsString>> {
    if proxy == Proxy::HyperFloor {
        return Ok(floor_arguments(part, site));
    }
    let template = template(proxy, part).context("no config for this scenario")?;
    let extension = match proxy {
        Proxy::Haproxy => "cfg",
        Proxy::Nginx => "conf",
        _ => "yaml",
    };
    let file = site.folder.join(format!("{}-{}.{extension}", name(&proxy), part.name()));
    fs::write(&file, fill(template, site)?).with_context(|| file.display().to_string())?;
    let file = file.into_os_string();
    let word = OsString::from;
    Ok(match proxy {
        Proxy::Haproxy => vec![word("-db"), word("-f"), file],
        Proxy::Nginx => {
            vec![word("-e"), word("stderr"), word("-p"), site.folder.as_os_str().to_owned(), word("-c"), file]
        }
        Proxy::Envoy => {
            let quiet = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
            [word("-c"), file].into_iter().chain(quiet.map(word)).collect()
        }
        _ => {
            let one = [word("-c"), file, word("--concurrency"), word("1")];
            one.into_iter().chain(programs.remora_args.iter().map(OsString::from)).collect()
        }
    })
}

fn floor_arguments(part: Part, site: &Site<'_>) -> Vec<OsString> {
    let (mode, leaf) = match part {
        Part::H1 => ("h1", None),
        Part::H2 => ("h2", None),
        Part::MtlsA => ("mtls-client", Some("a")),
        // It has no rules, and no answers of its own: those scenarios are not its.
        Part::FourEndpoints | Part::Resilience => ("h1", None),
        Part::MtlsB | Part::MtlsBPolicy | Part::Handshake => ("mtls-server", Some("b")),
        Part::Tcp => ("tcp", None),
    };
    let mut arguments: Vec<OsString> = vec!["--mode".into(), mode.into()];
    for (flag, port) in [("--listen", site.listen), ("--upstream", site.upstream)] {
        arguments.extend([flag.into(), format!("127.0.0.1:{port}").into()]);
    }
    if let Some(leaf) = leaf {
        for (flag, file) in [("--cert", format!("{leaf}.pem")), ("--key", format!("{leaf}.key"))] {
            arguments.extend([flag.into(), site.folder.join(file).into()]);
        }
        arguments.extend(["--ca".into(), site.folder.join("ca.pem").into()]);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_config_is_complete() {
        let site = Site { folder: Path::new("/somewhere"), listen: 1, upstream: 2 };
        for &proxy in Proxy::value_variants() {
            for &scenario in Scenario::value_variants() {
                for &part in parts(proxy, scenario) {
                    if proxy == Proxy::HyperFloor {
                        assert!(floor_arguments(part, &site).len() >= 6);
                        continue;
                    }
                    let text = fill(template(proxy, part).unwrap(), &site).unwrap();
                    assert!(text.contains('1') && text.contains('2'), "{proxy:?} {part:?}");
                }
            }
        }
    }

    #[test]
    fn unknown_placeholders_are_refused() {
        let site = Site { folder: Path::new("/somewhere"), listen: 1, upstream: 2 };
        assert!(fill("bind @PORT@", &site).is_err());
    }
}
