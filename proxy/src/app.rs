//! Wiring: bootstrap, workers, listeners, admin, and the loop that applies changes until the process is told to end.

mod admin_port;
mod concurrency;
mod control_plane;
mod dns;
mod dns_listeners;
mod ending;
mod health;
mod identity;
mod key_sets;
mod listeners;
mod overload;
mod quotas;
mod restart;
mod starting;
mod upstream_metrics;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use remora_xds::diag::ConfigError;
use remora_xds::pb::envoy::config::bootstrap::v3::Bootstrap;
use remora_xds::{Schema, client};
use tokio::sync::mpsc;
use tokio::time::Instant;

use self::admin_port::AdminPort;
use self::control_plane::ControlPlane;
pub use self::control_plane::ControlPlaneStatus;
use self::dns::Unresolved;
use self::dns_listeners::DnsListeners;
use self::key_sets::KeySets;
use self::quotas::Quotas;
use self::restart::Restart;
use crate::admin::view::AdminView;
use crate::admin::{Admin, DrainListeners, LevelControl};
use crate::bootstrap::{self, Settings};
use crate::clock::at;
use crate::config::manager::{Changes, Dump, Manager};
use crate::config::snapshot::Snapshot;
use crate::config::source::disk::LastGood;
use crate::config::source::file::FileWatcher;
use crate::drain::{Drain, Phase};
use crate::notify;
use crate::readiness::{Readiness, ReadyGuard};
use crate::signal::Signals;
use crate::telemetry::access_log::LogWriter;
use crate::telemetry::metrics::{Options as MetricsOptions, Registry, ResourceKind};
use crate::upstream::dns::{DnsHandle, DnsUpdate, Driver, SystemResolver};
use crate::why::Stories;
use crate::worker::run::Command;

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bootstrap file cannot be read.
    #[error("{0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// The configuration is wrong.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Config(Vec<ConfigError>),
    /// A socket, thread or watcher cannot be had.
    #[error("{0}: {1}")]
    Resource(String, String),
}

/// What the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// The bootstrap file.
    pub config: PathBuf,
    /// Worker threads; None follows the CPUs that the cgroup grants.
    pub concurrency: Option<usize>,
    /// Where to write the admin address once it is bound.
    pub admin_address_path: Option<PathBuf>,
    /// How long connections may take to finish after SIGTERM.
    pub drain_time: Duration,
    /// Where the last good configuration of the control plane is kept; None keeps it nowhere.
    pub state_dir: Option<PathBuf>,
    /// The identity agent; None runs none.
    pub identity: Option<crate::identity::Options>,
    /// Who has the sockets of a predecessor; None hands nothing over.
    pub keeper: Option<crate::restart::Keeper>,
}

/// A parsed and compiled bootstrap.
#[derive(Debug)]
pub struct Loaded {
    manager: Manager,
    settings: Settings,
}

/// Reads and compiles a bootstrap file: all of `--check`. With `agent`, the secrets `default` and `ROOTCA` are the identity agent's.
///
/// # Errors
/// [`StartError::Read`] or [`StartError::Config`] with every mistake.
pub fn load(path: &PathBuf, agent: bool) -> Result<Loaded, StartError> {
    let text = std::fs::read_to_string(path).map_err(|e| StartError::Read(path.clone(), e))?;
    load_text(&text, &path.display().to_string(), agent)
}

/// [`load`] of a text. `source` is its name in mistakes.
///
/// # Errors
/// [`StartError::Config`] with every mistake.
pub fn load_text(text: &str, source: &str, agent: bool) -> Result<Loaded, StartError> {
    let schema = Schema::load();
    let parsed = schema.parse::<Bootstrap>(text, source).map_err(StartError::Config)?;
    let settings = bootstrap::settings(&parsed.message);
    let mut manager = Manager::new(&parsed.message, source, parsed.map, agent).map_err(StartError::Config)?;
    manager.lend_schema(schema, Instant::now());
    Ok(Loaded { manager, settings })
}

/// Reads and compiles every file that a bootstrap names: the rest of `--check`.
///
/// # Errors
/// Every mistake in the first file that has one.
pub fn check(mut loaded: Loaded) -> Result<(), StartError> {
    let registry = Registry::new(MetricsOptions::default(), SystemTime::now());
    read_files(&mut loaded.manager, &registry, true).map(|_| ())
}

/// The parts of a running proxy that other tasks may look at.
#[derive(Debug)]
pub struct Shared {
    /// The configuration in force.
    pub config: Arc<ArcSwap<Snapshot>>,
    /// Metrics.
    pub registry: Arc<Registry>,
    /// Why requests and connections were refused or lost.
    pub stories: Arc<Stories>,
    /// Bound addresses by listener.
    pub bound: ArcSwap<BTreeMap<Arc<str>, Vec<SocketAddr>>>,
    /// Resources in force, for `/config_dump`.
    pub dump: Arc<Dump>,
    /// State of the stream to the control plane.
    pub control_plane: ArcSwap<ControlPlaneStatus>,
    /// What the bootstrap says about this process.
    pub settings: Settings,
    /// Start of the process.
    pub started: SystemTime,
    /// Options of the command line.
    pub options: Options,
}

struct App {
    shared: Arc<Shared>,
    manager: Manager,
    control_plane: Option<ControlPlane>,
    /// For the control plane, until its stream is opened.
    last_good: Option<LastGood>,
    identity: Option<identity::Agent>,
    workers: Vec<mpsc::Sender<Command>>,
    threads: Vec<std::thread::JoinHandle<()>>,
    watcher: FileWatcher,
    dns: DnsHandle,
    dns_updates: mpsc::Receiver<DnsUpdate>,
    unresolved: Unresolved,
    dns_listeners: DnsListeners,
    /// Of the listeners that are bound, but those that answer DNS.
    transparency: BTreeMap<Arc<str>, listeners::Transparency>,
    key_sets: KeySets,
    quotas: Quotas,
    health: health::Health,
    requests: mpsc::Receiver<DrainListeners>,
    drain: Drain,
    readiness: Readiness,
    /// Until there is a first configuration of the control plane, now or from disk.
    first_config: Option<ReadyGuard>,
    logs: LogWriter,
    listening: bool,
    admin: AdminPort,
    restart: Restart,
}

/// Runs a proxy until it is told to end.
///
/// # Errors
/// Why it did not start.
pub async fn run(
    options: Options,
    loaded: Loaded,
    levels: Option<Arc<dyn LevelControl>>,
) -> Result<(), StartError> {
    let started = SystemTime::now();
    let Loaded { mut manager, settings } = loaded;
    let registry = Registry::new(MetricsOptions::default(), started);
    let watcher =
        FileWatcher::new().map_err(|e| StartError::Resource("file watcher".into(), e.to_string()))?;
    let logs =
        LogWriter::start().map_err(|e| StartError::Resource("access log writer".into(), e.to_string()))?;
    read_files(&mut manager, &registry, true)?;
    let last_good = control_plane::last_good(&manager, options.state_dir.as_ref());
    let from_disk = control_plane::restore(&mut manager, last_good.as_ref());
    let shared = Arc::new(Shared {
        config: Arc::new(ArcSwap::from_pointee(manager.snapshot())),
        registry,
        stories: Arc::default(),
        bound: ArcSwap::default(),
        dump: Arc::clone(manager.dump()),
        control_plane: ArcSwap::from_pointee(control_plane::status(&manager, from_disk)),
        settings,
        started,
        options: options.clone(),
    });
    shared.registry.control.config_from_disk(from_disk);
    expose(&shared);
    tokio::spawn(overload::watch(Arc::clone(&shared.config.load().overload)));
    let (ask, requests) = mpsc::channel(16);
    let (updates, dns_updates) = mpsc::channel(64);
    let (driver, dns) = Driver::new(Arc::new(SystemResolver::default()), updates, fastrand::Rng::new());
    tokio::spawn(driver.run());
    let drain = Drain::new();
    let signals = Signals::install().map_err(|e| StartError::Resource("signals".into(), e.to_string()))?;
    tokio::spawn(signals.run(drain.clone(), logs.control()));
    let (readiness, starting) = readiness();
    let (workers, threads) = workers::start(&options, &shared, &logs, &drain)?.into_iter().unzip();
    let admin = Admin {
        source: Arc::new(AdminView::new(Arc::clone(&shared), ask)),
        registry: Arc::clone(&shared.registry),
        stories: Arc::clone(&shared.stories),
        readiness: readiness.clone(),
        drain: drain.clone(),
        logs: logs.control(),
        levels,
    };
    let mut restart = Restart::claim(options.keeper.clone()).await?;
    let admin = AdminPort::bind(admin, &shared, &mut restart).await?;
    let mut app = App {
        dns_listeners: DnsListeners::new(&shared.registry),
        identity: identity::start(options.identity.as_ref()),
        first_config: (!manager.has_first_config())
            .then(|| readiness.guard("configuration of the control plane")),
        shared,
        manager,
        control_plane: None,
        last_good,
        workers,
        threads,
        watcher,
        dns,
        dns_updates,
        unresolved: Unresolved::default(),
        transparency: BTreeMap::new(),
        key_sets: KeySets::default(),
        quotas: Quotas::default(),
        health: health::Health::default(),
        requests,
        drain,
        readiness,
        logs,
        listening: false,
        admin,
        restart,
    };
    if app.start(starting).await? {
        tracing::info!(listeners = app.shared.bound.load().len(), workers = app.workers.len(), "ready");
    }
    // Once in the life of a process.
    Box::pin(app.serve()).await;
    Ok(())
}

/// A readiness that whoever started the process is told of.
fn readiness() -> (Readiness, ReadyGuard) {
    let (readiness, starting) = Readiness::new();
    tokio::spawn(notify::when_ready(std::env::var_os(notify::SOCKET), readiness.watch()));
    (readiness, starting)
}

/// Metrics that are read where their values are.
fn expose(shared: &Shared) {
    let (registry, config) = (&shared.registry, || Arc::clone(&shared.config));
    registry.add(Arc::new(health::HealthMetrics(config())));
    registry.add(Arc::new(upstream_metrics::UpstreamMetrics(config())));
    registry.add(Arc::new(concurrency::ConcurrencyMetrics(config())));
    registry.add(Arc::new(overload::OverloadMetrics(config())));
}

/// Reads every file that is wanted, until no new one is named. At the start a mistake is fatal; later the last good
/// state serves on.
fn read_files(manager: &mut Manager, registry: &Registry, fatal: bool) -> Result<bool, StartError> {
    let mut changed = false;
    let mut read = BTreeSet::new();
    loop {
        let Some(path) = manager.files().into_iter().find(|p| !read.contains(p)) else { return Ok(changed) };
        read.insert(path.clone());
        let applied = match std::fs::read_to_string(&path) {
            Ok(text) => manager.apply_file(&path, &text).map_err(StartError::Config),
            // Renamed over at this moment, or not there yet: the watcher tells when it is.
            Err(error) => Err(StartError::Read(path.clone(), error)),
        };
        match applied {
            Ok(new) => {
                changed |= new;
                if new {
                    manager.count_accepted(&path, registry);
                }
            }
            Err(error) if fatal => return Err(error),
            Err(error) => {
                registry.control.config_rejected(manager.kind_of(&path), 1);
                tracing::error!("configuration refused, the last good one serves on:\n{error}");
            }
        }
    }
}

/// Something that the loop follows.
enum Happening {
    ControlPlane(client::Event),
    /// What waits has waited long enough, or something is to be saved.
    Alarm,
    Files,
    Dns(DnsUpdate),
    Identity(crate::identity::Event),
    Health(Option<crate::upstream::health::Report>),
    DrainListeners(DrainListeners),
    Restart(crate::restart::Request),
}

impl App {
    async fn tell(&self, make: impl Fn() -> Command) {
        for worker in &self.workers {
            // A worker that is gone has nothing to be told.
            let _ = worker.send(make()).await;
        }
    }

    fn watch(&mut self) {
        self.watcher.watch(&self.manager.watched_files(), self.manager.directories());
        let named = self.manager.dns();
        self.forget_unresolved(&named);
        self.dns.set_clusters(named);
    }

    /// Makes the manager's state the one in force.
    async fn publish(&mut self) {
        let mut snapshot = self.manager.snapshot();
        let fresh = self.health.checks.follow(&snapshot, &self.shared.config);
        if !fresh.is_empty() {
            self.manager.rebalance(&fresh);
            snapshot = self.manager.snapshot();
        }
        self.shared.registry.control.config_published(snapshot.version, SystemTime::now());
        if let Some(control_plane) = &self.control_plane {
            control_plane.follow(&snapshot);
        }
        self.key_sets.follow(&snapshot, &self.shared.config);
        self.quotas.follow(&snapshot);
        self.health.sweep.announce_panics(&snapshot);
        self.shared.config.store(Arc::new(snapshot));
        self.tell(|| Command::Changed).await;
    }

    /// Has open connections judged again when there are other revocation lists.
    async fn tell_revoked(&mut self) {
        if self.manager.take_revoked() {
            self.tell(|| Command::Revoked).await;
        }
    }

    async fn files_changed(&mut self) {
        let mistakes = self.manager.reload_material();
        if !mistakes.is_empty() {
            self.shared.registry.control.config_rejected(ResourceKind::Secret, mistakes.len() as u64);
            let text = StartError::Config(mistakes);
            tracing::error!("certificates refused, those before serve on:\n{text}");
        }
        if let Ok(true) = read_files(&mut self.manager, &self.shared.registry, false) {
            self.follow_promoted(Changes { snapshot: true, listeners: true, clusters: true }).await;
        }
        self.tell_revoked().await;
    }

    /// Applies changes until the process is told to end, and then ends in order.
    async fn serve(mut self) {
        let mut quit = self.drain.watch();
        loop {
            tokio::select! {
                () = quit.reached(Phase::Draining) => break,
                what = self.next() => self.take(what).await,
            }
        }
        self.end().await;
    }

    /// The next thing to follow. Nothing is lost when this is dropped.
    async fn next(&mut self) -> Happening {
        let alarm = self.alarm();
        tokio::select! {
            event = control_plane::next_event(&mut self.control_plane) => Happening::ControlPlane(event),
            () = at(alarm) => Happening::Alarm,
            () = self.watcher.changed() => Happening::Files,
            Some(update) = self.dns_updates.recv() => Happening::Dns(update),
            report = self.health.next() => Happening::Health(report),
            event = identity::next_event(&mut self.identity) => Happening::Identity(event),
            Some(request) = self.requests.recv() => Happening::DrainListeners(request),
            request = self.restart.next() => Happening::Restart(request),
        }
    }

    /// Follows it. Must not be dropped half-way.
    async fn take(&mut self, what: Happening) {
        match what {
            Happening::ControlPlane(event) => self.control_plane_said(event).await,
            Happening::Alarm => self.alarm_rang().await,
            Happening::Files => self.files_changed().await,
            Happening::Dns(update) => self.dns_answered(&update).await,
            Happening::Identity(event) => self.identity_said(event).await,
            Happening::Health(report) => self.health_changed(report).await,
            Happening::DrainListeners(request) => self.drain_listeners(request).await,
            Happening::Restart(request) => self.restart_asked(request).await,
        }
        if self.first_config.is_some() && self.manager.has_first_config() {
            self.first_config = None;
        }
    }
}
