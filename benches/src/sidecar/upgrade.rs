//! What those who call notice when a sidecar of a large mesh is replaced under load.

use std::cell::Cell;
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, interval, sleep, timeout};

use super::mesh::{self, Mesh};
use super::report::{Number, Target};
use super::{LOOK, PATIENCE, Plan, bootstrap, ms, start};
use crate::compare::spawn::{self, Cores, Placement, Running};
use crate::compare::{Origin, procfs};
use crate::load::{self, Mode};

/// Where the load goes.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15_080);
/// Between two clients that open a connection for one request.
const NEWCOMER: Duration = Duration::from_millis(10);
/// How long such a client waits.
const PATIENT: Duration = Duration::from_secs(5);

/// Who replaces the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// SIGHUP to `--supervise`.
    Supervisor,
    /// A second process with the same `--hot-restart-path`.
    Successor,
}

/// What is said of one of them.
#[derive(Debug)]
pub(super) struct Words {
    by: By,
    lost: Target,
    p99: &'static str,
    longest: &'static str,
    newcomer: &'static str,
    took: &'static str,
}

pub(super) const WAYS: [Words; 2] = [
    Words {
        by: By::Supervisor,
        lost: Target { what: "upgrade by SIGHUP: requests lost", unit: "", limit: 0.0 },
        p99: "upgrade by SIGHUP: p99 over it",
        longest: "upgrade by SIGHUP: the longest",
        newcomer: "upgrade by SIGHUP: the longest of a new connection",
        took: "upgrade by SIGHUP: the old process has ended after",
    },
    Words {
        by: By::Successor,
        lost: Target { what: "upgrade by a successor: requests lost", unit: "", limit: 0.0 },
        p99: "upgrade by a successor: p99 over it",
        longest: "upgrade by a successor: the longest",
        newcomer: "upgrade by a successor: the longest of a new connection",
        took: "upgrade by a successor: the old process has ended after",
    },
];

/// The targets, for a run that does not get there.
pub(super) fn targets() -> impl Iterator<Item = &'static Target> {
    WAYS.iter().map(|words| &words.lost)
}

/// Load without an upgrade, then with each of the two.
pub(super) async fn measure(
    plan: &Plan,
    mesh: &mut Mesh,
    progress: &mut dyn FnMut(&str),
    numbers: &mut Vec<Number>,
) -> anyhow::Result<()> {
    let origin = Origin::start(&plan.origin).await?;
    let mut first_error = None;
    for (turn, words) in WAYS.iter().enumerate() {
        progress(&format!("upgrade by {:?}: starting", words.by));
        let mut sidecar = Sidecar::start(plan, mesh, words.by, &origin).await?;
        start::synced(mesh).await?;
        if turn == 0 {
            progress("upgrade: the same load without one");
            let (seen, ()) = under_load(plan, plan.window, async { Ok(()) }).await?;
            numbers.extend([
                Number::new("no upgrade: p99", "ms", seen.p99),
                Number::new("no upgrade: the longest", "ms", seen.longest),
                Number::new("no upgrade: the longest of a new connection", "ms", seen.newcomer),
            ]);
        }
        progress(&format!("upgrade by {:?}", words.by));
        let window = plan.window * 2;
        let upgrade = async {
            sleep(window / 4).await;
            sidecar.upgrade(plan).await
        };
        let (seen, took) = under_load(plan, window, upgrade).await?;
        ensure!(took < window / 2, "the upgrade took {took:.1?}, longer than the load: try --seconds");
        numbers.extend([
            Number::new("", "", seen.lost as f64).at_most(&words.lost),
            Number::new(words.p99, "ms", seen.p99),
            Number::new(words.longest, "ms", seen.longest),
            Number::new(words.newcomer, "ms", seen.newcomer),
            Number::new(words.took, "ms", ms(took)),
        ]);
        first_error = first_error.or(seen.first_error);
        sidecar.running.stop().await?;
    }
    first_error.map_or(Ok(()), |error| bail!("the first that was lost: {error}"))
}

/// A sidecar of the mesh that has a listener for the load, too.
struct Sidecar {
    by: By,
    running: Running,
    arguments: Vec<OsString>,
}

impl Sidecar {
    async fn start(plan: &Plan, mesh: &Mesh, by: By, origin: &Origin) -> anyhow::Result<Self> {
        let mut config = mesh.bootstrap();
        let listener = bootstrap::to_origin("load", LISTEN, true);
        bootstrap::add(&mut config, bootstrap::origin(origin.ports.h1), vec![listener]);
        let folder = tempfile::tempdir_in(&plan.folder)?.keep();
        let path = folder.join("hot");
        let path = path.to_str().context("a path that is no text")?;
        let more: &[&str] = match by {
            By::Supervisor => &["--supervise"],
            By::Successor => &["--hot-restart-path", path],
        };
        let arguments = mesh.arguments(&config, more)?;
        let started = mesh::start(&plan.proxy, &arguments, bootstrap::ADMIN, folder.join("log")).await;
        let (running, _) = started.context("the sidecar")?;
        Ok(Self { by, running, arguments })
    }

    /// Replaces the process; gives the time until the old one has ended.
    async fn upgrade(&mut self, plan: &Plan) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let replaced = async {
            match self.by {
                By::Supervisor => self.by_supervisor().await,
                By::Successor => self.by_successor(plan).await,
            }
        };
        timeout(PATIENCE, replaced).await.context("the old process does not end")??;
        Ok(began.elapsed())
    }

    async fn by_supervisor(&self) -> anyhow::Result<()> {
        let supervisor = self.running.pid;
        let old = procfs::family(&[supervisor]);
        ensure!(old.len() == 2, "a supervisor with {} processes", old.len());
        let pid = i32::try_from(supervisor).ok().and_then(Pid::from_raw).context("a process id")?;
        kill_process(pid, Signal::HUP).context("SIGHUP")?;
        loop {
            sleep(LOOK).await;
            let now = procfs::family(&[supervisor]);
            if now.len() == 2 && now != old {
                return Ok(());
            }
        }
    }

    async fn by_successor(&mut self, plan: &Plan) -> anyhow::Result<()> {
        let log = tempfile::tempdir_in(&plan.folder)?.keep().join("log");
        let heir = spawn::start(Cores::new(Placement::Free)?, &plan.proxy, &self.arguments, log)?;
        let mut old = std::mem::replace(&mut self.running, heir);
        let status = old.end().await?;
        ensure!(status.success(), "the old process has ended with {status}");
        Ok(())
    }
}

/// What those who call saw, in milliseconds.
#[derive(Debug, Default)]
struct Seen {
    lost: u64,
    p99: f64,
    longest: f64,
    newcomer: f64,
    first_error: Option<String>,
}

/// Load of both kinds, on connections that are kept and on new ones, and what happens meanwhile.
async fn under_load<T>(
    plan: &Plan,
    window: Duration,
    meanwhile: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(Seen, T)> {
    let mode = Mode::Rate { rate: plan.rate, burst: plan.burst };
    let options = load::Options { window, ..mesh::requests(LISTEN, mode) };
    let stop = Cell::new(false);
    let kept = async {
        let report = load::run(&options, &mut |_| {}).await;
        stop.set(true);
        report
    };
    let later = async {
        sleep(options.warmup).await;
        meanwhile.await
    };
    let (report, new, done) = tokio::join!(kept, newcomers(&stop), later);
    let (report, done) = (report?, done?);
    let seen = Seen {
        lost: report.errors + report.unsent + new.lost,
        p99: report.latency.p99_us as f64 / 1e3,
        longest: report.latency.max_us as f64 / 1e3,
        newcomer: new.newcomer,
        first_error: report.first_error.or(new.first_error),
    };
    Ok((seen, done))
}

/// One client after the other that opens a connection for one request, until it is told to stop. Time counts from when each was due.
async fn newcomers(stop: &Cell<bool>) -> Seen {
    let (mut ticks, mut seen) = (interval(NEWCOMER), Seen::default());
    while !stop.get() {
        let due = ticks.tick().await;
        match timeout(PATIENT, newcomer()).await.context("no answer").flatten() {
            Ok(()) => seen.newcomer = seen.newcomer.max(ms(due.elapsed())),
            Err(error) => {
                seen.lost += 1;
                seen.first_error.get_or_insert_with(|| format!("a new connection: {error:#}"));
            }
        }
    }
    seen
}

async fn newcomer() -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(LISTEN).await.context("connect")?;
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await
        .context("write")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.context("read")?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| answer.len() - at - 4);
    ensure!(answer.starts_with(b"HTTP/1.1 200 "), "another status");
    ensure!(body == Some(crate::origin::DEFAULT_SIZE), "a body of {body:?} bytes");
    Ok(())
}
