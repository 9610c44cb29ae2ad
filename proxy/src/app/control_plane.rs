//! The control plane's part of the wiring: the stream, what is to be done for each response, and the last good state on disk.

use std::future::pending;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use remora_xds::Kind;
use remora_xds::client::{self, Event, Names, Refused, Settings};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::listeners::Unbound;
use super::{App, read_files};
use crate::config::manager::{Applied, Changes, Manager};
use crate::config::snapshot::Snapshot;
use crate::config::source::ads::ClusterConnector;
use crate::config::source::disk::LastGood;
use crate::restart::PATIENCE;
use crate::telemetry::metrics::ResourceKind;
use crate::upstream::cluster::Cluster;

/// Changes are collected for this long before they are written to disk.
const SAVE_AFTER: Duration = Duration::from_secs(1);

/// Reasons that are logged while the control plane is away.
const MAX_TOLD: usize = 16;

/// What the admin page says about the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlPlaneStatus {
    /// Name of its cluster; None when the bootstrap has no `ads_config`.
    pub cluster: Option<Arc<str>>,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether what is served came from disk, and no control plane has confirmed it.
    pub from_disk: bool,
    /// Why it is not connected.
    pub error: Option<String>,
}

/// The stream, and the file.
pub(super) struct ControlPlane {
    events: mpsc::Receiver<Event>,
    wanted: watch::Sender<Names>,
    /// Its own cluster.
    cluster: watch::Sender<Arc<Cluster>>,
    last_good: Option<LastGood>,
    save_at: Option<Instant>,
    saving: Option<JoinHandle<()>>,
    /// Why it is not connected: what was logged since it was.
    told: Vec<String>,
}

/// Takes over what an earlier process left on disk. True: there was something.
pub(super) fn restore(manager: &mut Manager, last_good: Option<&LastGood>) -> bool {
    let Some(last_good) = last_good else { return false };
    let file = last_good.path();
    let batches = match last_good.load() {
        Ok(Some(batches)) => batches,
        Ok(None) => return false,
        Err(error) => {
            tracing::warn!(file = %file.display(), %error, "the last good configuration is not usable");
            return false;
        }
    };
    let mut resources = 0;
    // What the bootstrap takes from elsewhere now would never be removed.
    let roots: Vec<_> = manager.ads_roots().to_vec();
    let asked_for = |kind: Kind| !kind.is_complete() || roots.contains(&kind);
    let batches = batches.iter().filter(|batch| !batch.resources.is_empty() && asked_for(batch.kind));
    // Nobody asks for a secret before there is a context that names it.
    let (secrets, rest): (Vec<_>, Vec<_>) = batches.partition(|batch| batch.kind == Kind::Secret);
    for batch in rest.into_iter().chain(secrets) {
        let applied = manager.apply_ads(batch, Instant::now());
        resources += applied.accepted.len();
        log_refused(batch.kind, &applied.refused);
    }
    if resources > 0 {
        tracing::warn!(
            file = %file.display(),
            resources,
            "serving the last good configuration from disk until the control plane answers"
        );
    }
    resources > 0
}

/// The file of this node in `folder`, if there is a control plane at all.
pub(super) fn last_good(manager: &Manager, folder: Option<&PathBuf>) -> Option<LastGood> {
    let node = &manager.ads()?.node;
    Some(LastGood::new(folder?.clone(), node.id.as_str().into()))
}

impl ControlPlane {
    /// Opens the stream, if the bootstrap names a control plane.
    pub(super) fn start(manager: &Manager, config: &Snapshot, last_good: Option<LastGood>) -> Option<Self> {
        let spec = manager.ads()?;
        let cluster = config.cluster_by_name(&spec.cluster)?;
        let mut settings = Settings::new(spec.variant, spec.node.clone(), manager.ads_roots().to_vec());
        settings.held = manager.ads_versions();
        if let Some(keepalive) = cluster.spec().http.http2.keepalive {
            (settings.keepalive, settings.keepalive_timeout) = (keepalive.interval, keepalive.timeout);
        }
        let (send, events) = mpsc::channel(1);
        let (wanted, wants) = watch::channel(manager.ads_wanted());
        let (cluster, servers) = watch::channel(Arc::clone(cluster));
        let connector = ClusterConnector::new(servers, Arc::clone(&spec.authority));
        tokio::spawn(client::run(settings, connector, wants, send));
        Some(Self { events, wanted, cluster, last_good, save_at: None, saving: None, told: Vec::new() })
    }

    /// Lets the stream find its servers where `config` has them.
    pub(super) fn follow(&self, config: &Snapshot) {
        self.cluster.send_if_modified(|old| {
            let new = config.cluster_by_name(&old.spec().name).filter(|new| !Arc::ptr_eq(old, new));
            new.is_some_and(|new| {
                *old = Arc::clone(new);
                true
            })
        });
    }

    /// Whether a reason is to be logged: each once, not for every attempt.
    fn is_news(&mut self, reason: &str) -> bool {
        let news = self.told.len() < MAX_TOLD && !self.told.iter().any(|told| told == reason);
        if news {
            self.told.push(reason.to_owned());
        }
        news
    }

    /// Another process keeps what is on disk: ours must not come after what it writes.
    pub(super) async fn keep_nothing(&mut self) {
        (self.last_good, self.save_at) = (None, None);
        if let Some(saving) = self.saving.take()
            && tokio::time::timeout(PATIENCE / 2, saving).await.is_err()
        {
            tracing::warn!("the disk is slow: the last good configuration may be that of before");
        }
    }

    /// When something is to be written to disk.
    pub(super) const fn save_at(&self) -> Option<Instant> {
        self.save_at
    }

    /// Writes to disk what was to be written later.
    pub(super) async fn save_all(&mut self, manager: &Manager) {
        for _ in 0..2 {
            if let Some(saving) = self.saving.take() {
                // A task that panicked has ended the process.
                let _ = saving.await;
            }
            if let Some(at) = self.save_at {
                self.save(manager, at);
            }
        }
    }

    /// Writes to disk what is due.
    fn save(&mut self, manager: &Manager, now: Instant) {
        let Some(last_good) = self.last_good.as_ref().filter(|_| self.save_at.is_some_and(|at| at <= now))
        else {
            return;
        };
        if self.saving.as_ref().is_some_and(|saving| !saving.is_finished()) {
            self.save_at = Some(now + SAVE_AFTER);
            return;
        }
        self.save_at = None;
        let (last_good, resources) = (last_good.clone(), manager.dump().from_control_plane());
        self.saving = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = last_good.save(&resources) {
                let file = last_good.path();
                tracing::error!(file = %file.display(), %error, "cannot save the last good configuration");
            }
        }));
    }
}

/// Says which listeners have no sockets.
fn log_unbound(unbound: &[Unbound]) {
    for unbound in unbound {
        tracing::error!(listener = &*unbound.name, "{unbound}");
    }
}

/// The next event; never, without a control plane.
pub(super) async fn next_event(control_plane: &mut Option<ControlPlane>) -> Event {
    match control_plane {
        Some(control_plane) => match control_plane.events.recv().await {
            Some(event) => event,
            None => pending().await,
        },
        None => pending().await,
    }
}

impl App {
    pub(super) async fn control_plane_said(&mut self, event: Event) {
        let update = match event {
            Event::Connected => return self.set_connected(true, None),
            Event::Disconnected(reason) => return self.set_connected(false, Some(reason)),
            Event::Batch(update, answer) => (update, answer),
        };
        let (update, answer) = update;
        self.confirmed();
        let Applied { mut accepted, removed, mut refused, changes } =
            self.manager.apply_ads(&update, Instant::now());
        // Others were accepted before: routes let them in now, or somebody still has their port.
        let is_of_update = |unbound: &Unbound| {
            update.kind == Kind::Listener && accepted.iter().any(|(name, _)| *name == unbound.name)
        };
        let (own, others): (Vec<_>, Vec<_>) = self.follow(changes).await.into_iter().partition(is_of_update);
        log_unbound(&others);
        let mut taken_back = false;
        for unbound in own {
            accepted.retain(|(name, _)| *name != unbound.name);
            taken_back |= self.manager.take_back(&unbound.name);
            refused.push(Refused { detail: unbound.to_string(), name: unbound.name });
        }
        if taken_back {
            self.watch();
            self.ask();
            self.publish().await;
            self.dns_listeners.follow_tables(&self.shared.config.load_full());
        }
        if update.kind == Kind::Secret {
            self.tell_agent_roots();
            self.tell_revoked().await;
        }
        let control = &self.shared.registry.control;
        control.config_accepted(metric_of(update.kind), accepted.len() as u64);
        control.config_rejected(metric_of(update.kind), refused.len() as u64);
        log_refused(update.kind, &refused);
        if let Some(control_plane) = &mut self.control_plane
            && control_plane.last_good.is_some()
            && !(accepted.is_empty() && removed.is_empty())
        {
            control_plane.save_at.get_or_insert_with(|| Instant::now() + SAVE_AFTER);
        }
        // A stream that is gone needs no answer.
        let _ = answer.send(update.answer(accepted, removed, refused));
    }

    /// Something waited long enough, or is to be saved.
    pub(super) async fn alarm_rang(&mut self) {
        let now = Instant::now();
        if self.manager.tidy(now) {
            let dump = Arc::clone(self.manager.dump());
            tokio::task::spawn_blocking(move || dump.pack());
        }
        self.follow_promoted(Changes::default()).await;
        if let Some(control_plane) = &mut self.control_plane
            && self.restart.is_in_charge()
        {
            control_plane.save(&self.manager, now);
        }
    }

    /// What has to follow `changes`, and what now need not wait any longer.
    pub(super) async fn follow_promoted(&mut self, mut changes: Changes) {
        changes.add(self.manager.promote(Instant::now()));
        log_unbound(&self.follow(changes).await);
    }

    /// When [`Self::alarm_rang`] is to be called.
    pub(super) fn alarm(&self) -> Option<Instant> {
        let save = self.control_plane.as_ref().and_then(ControlPlane::save_at);
        let save = save.filter(|_| self.restart.is_in_charge());
        [self.manager.deadline(), self.manager.tidy_at(), save].into_iter().flatten().min()
    }

    /// Everything that has to follow a change. Gives listeners whose sockets cannot be had.
    async fn follow(&mut self, mut changes: Changes) -> Vec<Unbound> {
        if (changes.clusters || changes.listeners) && self.manager.has_unread_files() {
            changes.add(self.read_new_files());
        }
        if changes.clusters || changes.listeners {
            self.watch();
            self.ask();
        }
        if changes.snapshot {
            self.publish().await;
        }
        if changes.listeners && self.listening { self.sync_listeners().await } else { Vec::new() }
    }

    /// Files that are named only now. The watcher tells of those that are not there yet.
    fn read_new_files(&mut self) -> Changes {
        let mut changes = Changes::default();
        if matches!(read_files(&mut self.manager, &self.shared.registry, false), Ok(true)) {
            changes = Changes { snapshot: true, listeners: true, clusters: true };
        }
        changes.add(self.manager.promote(Instant::now()));
        changes
    }

    /// Asks the control plane for what is wanted now. Before the answer to what brought it: one request carries both.
    fn ask(&self) {
        let Some(control_plane) = &self.control_plane else { return };
        let wanted = self.manager.ads_wanted();
        control_plane.wanted.send_if_modified(|old| {
            let modified = *old != wanted;
            *old = wanted;
            modified
        });
    }

    /// A control plane has said something: what is served is no longer only what was on disk.
    fn confirmed(&mut self) {
        if let Some(control_plane) = &mut self.control_plane {
            control_plane.told.clear();
        }
        let old = self.shared.control_plane.load_full();
        if old.from_disk {
            self.shared.registry.control.config_from_disk(false);
            let new = ControlPlaneStatus { from_disk: false, ..ControlPlaneStatus::clone(&old) };
            self.shared.control_plane.store(Arc::new(new));
        }
    }

    fn set_connected(&mut self, connected: bool, error: Option<String>) {
        self.shared.registry.control.control_plane_connected(connected);
        let Some(control_plane) = &mut self.control_plane else { return };
        if connected {
            tracing::info!("the control plane is connected");
        } else if let Some(reason) = error.as_deref().filter(|reason| control_plane.is_news(reason)) {
            tracing::warn!(reason, "the control plane is not connected; the last good configuration serves");
        }
        let old = self.shared.control_plane.load_full();
        let (from_disk, cluster) = (old.from_disk, old.cluster.clone());
        self.shared.control_plane.store(Arc::new(ControlPlaneStatus {
            cluster,
            connected,
            from_disk,
            error,
        }));
    }
}

pub(super) fn status(manager: &Manager, from_disk: bool) -> ControlPlaneStatus {
    let cluster = manager.ads().map(|spec| Arc::clone(&spec.cluster));
    ControlPlaneStatus { cluster, from_disk, ..ControlPlaneStatus::default() }
}

fn log_refused(kind: Kind, refused: &[Refused]) {
    for Refused { name, detail } in refused {
        tracing::error!(%kind, name = &**name, detail, "refused; the last good one stays");
    }
}

const fn metric_of(kind: Kind) -> ResourceKind {
    match kind {
        Kind::Secret => ResourceKind::Secret,
        Kind::Cluster => ResourceKind::Cluster,
        Kind::ClusterLoadAssignment => ResourceKind::Endpoint,
        Kind::Listener => ResourceKind::Listener,
        Kind::RouteConfiguration => ResourceKind::Route,
    }
}
