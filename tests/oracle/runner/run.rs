//! Runs a case through one proxy.

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::read::MultiGzDecoder;
use remora_tests::hole::Hole;
use socket2::{Domain, Socket, Type};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::case::{Case, Expected, Forwarded, Outcome, RequestSpec};
use super::certs;
use super::client::{Answer, Connection};
use super::echo::{self, Recorder, Seen};
use super::mask::Mask;
use super::proxy::{Program, Proxy};
use super::wire::Fields;

/// What all runs share.
#[derive(Debug)]
pub struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    /// Makes the certificates.
    pub fn new() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        certs::write(dir.path())?;
        Ok(Self { dir })
    }
}

/// The upstreams of one run, and what the placeholders of its files stand for.
struct World {
    recorder: Recorder,
    mask: Mask,
    values: BTreeMap<String, String>,
    certs: PathBuf,
    /// Keeps ports busy that nobody may accept on.
    _held: (Socket, Option<Hole>),
}

impl World {
    async fn new(fixture: &Fixture, dir: &std::path::Path, hole: bool) -> anyhow::Result<Self> {
        let recorder = Recorder::default();
        let certs = fixture.dir.path().to_owned();
        let acceptor = TlsAcceptor::from(Arc::new(certs::upstream(&certs)?));
        let dead = held()?;
        let hole = if hole { Some(Hole::open().await?) } else { None };
        let port = |socket: &Socket| -> anyhow::Result<u16> {
            Ok(socket.local_addr()?.as_socket().context("an IP socket")?.port())
        };
        let ports = [
            ("A", echo::start("A", recorder.clone(), None).await.port()),
            ("B", echo::start("B", recorder.clone(), None).await.port()),
            ("C", echo::start("C", recorder.clone(), None).await.port()),
            ("S", echo::start("S", recorder.clone(), Some(acceptor)).await.port()),
            ("T", echo::start_tcp("T").await.port()),
            ("U", echo::start_tcp("U").await.port()),
            ("DEAD", port(&dead)?),
        ];
        let mut mask = Mask::new(dir.to_string_lossy().into_owned());
        let mut values = BTreeMap::new();
        let hole_port = hole.as_ref().map(|hole| ("HOLE", hole.address.port()));
        for (name, port) in ports.into_iter().chain(hole_port) {
            mask.port(port, name);
            values.insert(format!("{{{{{name}}}}}"), port.to_string());
            let session = BASE64_STANDARD.encode(format!("127.0.0.1:{port}"));
            values.insert(format!("{{{{SESSION {name}}}}}"), session);
        }
        values.insert("{{DIR}}".into(), dir.to_string_lossy().into_owned());
        values.insert("{{CERTS}}".into(), certs.to_string_lossy().into_owned());
        Ok(Self { recorder, mask, values, certs, _held: (dead, hole) })
    }

    fn fill_in(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }
}

/// A bound port that refuses connections.
fn held() -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    Ok(socket)
}

/// Runs `case` through `program`. Returns what happened, and what broke a rule that holds for every proxy.
pub async fn observe(
    case: &Case,
    program: &Program,
    fixture: &Fixture,
) -> anyhow::Result<(Expected, Vec<String>)> {
    let dir = tempfile::tempdir()?;
    let mut world = World::new(fixture, dir.path(), case.bootstrap.contains("{{HOLE}}")).await?;
    let bootstrap = world.fill_in(&case.bootstrap);
    let proxy = Proxy::start(program, &bootstrap, dir.path()).await?;
    for (name, port) in &proxy.listeners {
        world.mask.port(*port, &format!("LISTENER {name}"));
    }
    let mut seen = Expected::default();
    let mut broken = Vec::new();
    let mut connections = HashMap::new();
    for spec in &case.requests.requests {
        let port =
            *proxy.listeners.get(&spec.listener).with_context(|| format!("no listener {}", spec.listener))?;
        let spec = resolved(spec, port, &world);
        let outcome = group(&spec, port, &world, &mut connections, &mut broken)
            .await
            .with_context(|| format!("request {}\n{}", spec.name, proxy.tail()))?;
        seen.outcomes.insert(spec.name.clone(), outcome);
    }
    drop(connections);
    proxy.stop().await?;
    if case.requests.log {
        let text = std::fs::read_to_string(dir.path().join("access.log")).context("access.log")?;
        seen.log = text.lines().map(|line| world.mask.log(line)).collect();
        seen.log.sort();
    }
    Ok((seen, broken))
}

/// Fills in `{{LISTENER}}`, the port that the request goes to, and what the bootstrap file has.
fn resolved(spec: &RequestSpec, port: u16, world: &World) -> RequestSpec {
    let fill = |text: &str| world.fill_in(text).replace("{{LISTENER}}", &port.to_string());
    let mut spec = spec.clone();
    spec.host = fill(&spec.host);
    spec.path = fill(&spec.path);
    spec.headers = spec.headers.iter().map(|h| fill(h)).collect();
    spec.raw = spec.raw.as_deref().map(fill);
    spec
}

async fn group(
    spec: &RequestSpec,
    port: u16,
    world: &World,
    connections: &mut HashMap<String, Connection>,
    broken: &mut Vec<String>,
) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    let mut answers = if spec.parallel {
        parallel(spec, port, world).await?
    } else {
        let mut answers = Vec::new();
        for n in 0..spec.repeat {
            answers.push(one(spec, n, port, world, connections).await?);
        }
        answers
    };
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if let Some((least, most)) = spec.took
        && !(least..=most).contains(&took)
    {
        broken.push(format!("{}: took {took} ms, not {least} to {most}", spec.name));
    }
    let seen = if spec.copies > 0 { mirrored(spec, world).await? } else { world.recorder.of(&spec.name) };
    if spec.repeat == 1 {
        return Ok(outcome(spec, answers.remove(0), &seen, &world.mask));
    }
    broken.extend(shares(spec, &seen));
    let mut statuses = BTreeMap::new();
    for answer in &answers {
        *statuses.entry(answer.status.map_or_else(|| "none".into(), |s| s.to_string())).or_insert(0) += 1;
    }
    answers.sort_by_key(|a| a.status);
    let odd = answers.pop().context("a group of none")?;
    let mut outcome = outcome(spec, odd, &[], &world.mask);
    outcome.statuses = statuses;
    if spec.distinct {
        outcome.distinct = Some(seen.iter().map(|s| s.upstream).collect::<BTreeSet<_>>().len());
    }
    Ok(outcome)
}

/// The request and its copies, which come in any order.
async fn mirrored(spec: &RequestSpec, world: &World) -> anyhow::Result<Vec<Seen>> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut tick = tokio::time::interval(Duration::from_millis(5));
    loop {
        tick.tick().await;
        let mut seen = world.recorder.of(&spec.name);
        if seen.len() > spec.copies && seen.iter().all(|s| s.complete) {
            seen.sort_by_key(|s| s.upstream);
            return Ok(seen);
        }
        ensure!(Instant::now() < deadline, "{} copies are not there: {seen:?}", spec.copies);
    }
}

async fn one(
    spec: &RequestSpec,
    n: usize,
    port: u16,
    world: &World,
    connections: &mut HashMap<String, Connection>,
) -> anyhow::Result<Answer> {
    let id = if spec.repeat == 1 { spec.name.clone() } else { format!("{}#{n}", spec.name) };
    let Some(name) = &spec.connection else {
        return Connection::open(spec, port, &world.certs).await?.exchange(spec, &id).await;
    };
    if !connections.contains_key(name) {
        connections.insert(name.clone(), Connection::open(spec, port, &world.certs).await?);
    }
    connections.get_mut(name).context("just put there")?.exchange(spec, &id).await
}

async fn parallel(spec: &RequestSpec, port: u16, world: &World) -> anyhow::Result<Vec<Answer>> {
    let mut set = JoinSet::new();
    for n in 0..spec.repeat {
        let (spec, certs) = (spec.clone(), world.certs.clone());
        set.spawn(async move {
            let id = format!("{}#{n}", spec.name);
            tokio::time::sleep(Duration::from_millis(spec.stagger * n as u64)).await;
            Connection::open(&spec, port, &certs).await?.exchange(&spec, &id).await
        });
    }
    set.join_all().await.into_iter().collect()
}

fn shares(spec: &RequestSpec, seen: &[Seen]) -> Vec<String> {
    let total = seen.len().max(1) as f64;
    let mut broken = Vec::new();
    for (name, wanted) in &spec.share {
        let got = 100.0 * seen.iter().filter(|s| s.upstream == name).count() as f64 / total;
        if (got - wanted).abs() > spec.tolerance {
            broken.push(format!("{}: {name} got {got:.1} % of the requests, not {wanted}", spec.name));
        }
    }
    broken
}

fn lines(fields: &Fields, spec: &RequestSpec, mask: &Mask) -> Vec<String> {
    let own = ["x-test-id", "x-echo"];
    let fields = fields.iter().filter(|(n, _)| !own.contains(&n.to_ascii_lowercase().as_str()));
    if spec.spelling {
        return fields.map(|(n, v)| mask.field(n, v)).collect();
    }
    let mut lines: Vec<String> = fields.map(|(n, v)| mask.field(&n.to_ascii_lowercase(), v)).collect();
    // Stable, and by name only: the order of equal names carries meaning.
    lines.sort_by(|a, b| a.split(':').next().cmp(&b.split(':').next()));
    lines
}

/// Later attempts tell the upstream what is left of the route's timeout, which no two runs agree on.
fn less(headers: Vec<String>, attempts: usize) -> Vec<String> {
    let name = "x-envoy-expected-rq-timeout-ms:";
    let left = |h: String| if h.starts_with(name) { format!("{name} {{what is left}}") } else { h };
    if attempts < 2 { headers } else { headers.into_iter().map(left).collect() }
}

fn content(bytes: &[u8], mask: &Mask) -> String {
    if bytes.len() <= 400 {
        return mask.text(&String::from_utf8_lossy(bytes));
    }
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    format!("{} bytes, FNV-1a {hash:016x}", bytes.len())
}

/// The body as its sender meant it, where the case asks for that: two libraries compress in two ways.
fn decoded(spec: &RequestSpec, answer: &Answer) -> Vec<u8> {
    let bytes = &answer.body.bytes[..];
    let coded = |(n, v): &(String, String)| n.eq_ignore_ascii_case("content-encoding") && v == "gzip";
    if !spec.gunzip || !answer.fields.iter().any(coded) {
        return bytes.to_vec();
    }
    let mut plain = Vec::new();
    match MultiGzDecoder::new(bytes).read_to_end(&mut plain) {
        Ok(_) => plain,
        Err(e) => format!("not gzip: {e}").into_bytes(),
    }
}

fn outcome(spec: &RequestSpec, answer: Answer, seen: &[Seen], mask: &Mask) -> Outcome {
    let any = |text: String| {
        if !(spec.any_upstream || spec.repeat > 1) {
            return text;
        }
        ["A", "B", "C"].iter().fold(text, |text, name| {
            text.replace(&format!("x-upstream: {name}"), "x-upstream: *")
                .replace(&format!("upstream {name}\n"), "upstream *\n")
        })
    };
    let body = any(content(&decoded(spec, &answer), mask));
    Outcome {
        status: answer.status,
        version: answer.version,
        interim: answer.interim,
        headers: lines(&answer.fields, spec, mask).into_iter().map(&any).collect(),
        body,
        trailers: lines(&answer.body.trailers, spec, mask),
        end: answer.end,
        certificate: answer.certificate,
        tunnel: answer.tunnel.map(|bytes| content(&bytes, mask)),
        closed: answer.closed,
        attempts: seen.iter().map(|s| if spec.any_upstream { "*" } else { s.upstream }.to_owned()).collect(),
        forwarded: seen.last().map(|s| Forwarded {
            line: s.line.clone(),
            authority: s.authority.as_deref().map(|a| mask.text(a)),
            headers: less(lines(&s.fields, spec, mask), seen.len() - spec.copies),
            body: content(&s.body, mask),
            trailers: lines(&s.trailers, spec, mask),
            truncated: !s.complete,
            tls: s.tls.clone(),
        }),
        statuses: BTreeMap::new(),
        distinct: None,
    }
}
