//! `envoy.filters.network.rbac` and revocation: whether a connection may be, when it begins and whenever the configuration changes.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Poll, ready};

use tokio::time::Instant;

use crate::config::spec::FilterChain;
use crate::error::Reason;
use crate::http::downstream::Downstream;
use crate::policy::rbac::{self, RbacFilter};
use crate::policy::view::View;
use crate::telemetry::metrics::Decision;
use crate::upstream::server::Server;
use crate::worker::changes::Follower;
use crate::worker::timer::Timer;

/// A connection that may not be, or not go on.
#[derive(Debug, Clone)]
pub struct Refused {
    /// What it is in logs and metrics.
    pub reason: Reason,
    /// `%CONNECTION_TERMINATION_DETAILS%`: names the policy.
    pub details: String,
    /// The policy, or those none of which matched.
    pub rule: Option<String>,
}

/// Judges a connection by the newest version of its filter chain, and counts that. A certificate that has been revoked since the
/// handshake is refused whatever the rules say.
///
/// # Errors
/// The rules refuse it.
pub fn admit(downstream: &Downstream) -> Result<(), Refused> {
    judge_all(downstream, true)
}

/// `first`: what is let in is counted once.
fn judge_all(downstream: &Downstream, first: bool) -> Result<(), Refused> {
    let snapshot = downstream.worker.snapshot();
    let chain = snapshot.chain(downstream.chain.id).unwrap_or(&downstream.chain);
    if is_revoked(downstream, chain) {
        let details = "tls_certificate_revoked".into();
        return Err(Refused { reason: Reason::RbacDenied, details, rule: None });
    }
    let view = View { connection: downstream.view(downstream.remote), request: None, claims: &[] };
    chain.policies.iter().try_for_each(|filter| judge(downstream, filter, &view, first))
}

fn is_revoked(downstream: &Downstream, chain: &FilterChain) -> bool {
    let peer = downstream.tls.as_ref().and_then(|tls| tls.peer.as_ref());
    let trust = chain.tls.as_ref().and_then(|tls| tls.peers()).and_then(|peers| peers.trust.get());
    peer.zip(trust).is_some_and(|(peer, trust)| trust.revokes(peer))
}

fn judge(downstream: &Downstream, filter: &RbacFilter, view: &View<'_>, first: bool) -> Result<(), Refused> {
    let metrics = &downstream.worker.metrics;
    if first && let Some(shadow) = filter.shadow.as_ref().map(|rules| rules.judge(view)) {
        metrics.decided(downstream, &shadow, Decision::shadow(shadow.allowed));
    }
    let Some(rules) = &filter.rules else { return Ok(()) };
    let verdict = rules.judge(view);
    if first || !verdict.allowed {
        metrics.decided(downstream, &verdict, Decision::enforced(verdict.allowed));
    }
    if verdict.allowed {
        return Ok(());
    }
    let (details, rule) = (rbac::details(verdict.policy), Some(rules.blame(verdict.policy)));
    Err(Refused { reason: Reason::RbacDenied, details, rule })
}

/// Does `work` as long as the connection may be. The caller pins it: as an argument it would be in this future twice, which every connection
/// pays for. `changes` are followed from before it was admitted: one that came since is not missed.
///
/// One whose filter chain serves it no more drains, as all do when the process ends.
///
/// # Errors
/// A change of the configuration ended that, or the drain time is over.
pub async fn while_admitted<F: Future>(
    downstream: &Downstream,
    changes: Follower,
    mut work: Pin<&mut F>,
) -> Result<F::Output, Refused> {
    let mut deadline = None;
    // Its chain may have gone while it shook hands.
    retire_unserved(downstream);
    let ended = poll_fn(|cx| {
        while changes.poll_changed(cx) {
            if let Err(refused) = judge_all(downstream, false) {
                return Poll::Ready(Err(refused));
            }
            retire_unserved(downstream);
        }
        if downstream.drain.is_retired()
            && deadline.get_or_insert_with(|| Timer::after(downstream.worker.drain.time)).poll(cx).is_ready()
        {
            return Poll::Ready(Err(Refused {
                reason: Reason::Draining,
                details: "filter_chain_removed".into(),
                rule: None,
            }));
        }
        Poll::Ready(Ok(ready!(work.as_mut().poll(cx))))
    })
    .await;
    if let Err(refused) = &ended {
        // Requests that break off with it say why.
        downstream.evicted.get_or_init(|| refused.clone());
    }
    ended
}

/// Does `work`, which carries bytes of which nobody knows where something ends, as long as no list of the server's cluster revokes its certificate.
/// `server`: it, and the name of its cluster. None: a list does.
pub async fn while_good<F: Future>(
    downstream: &Downstream,
    server: Option<(&Server, &str)>,
    work: F,
) -> Option<F::Output> {
    let Some((server, cluster)) = server else { return Some(work.await) };
    let changes = downstream.worker.changes.follow();
    // A connection out of a pool was judged when it was taken: a list that came since is not missed.
    let mut unjudged = true;
    let mut work = pin!(work);
    poll_fn(|cx| {
        while changes.poll_changed(cx) || std::mem::take(&mut unjudged) {
            let snapshot = downstream.worker.snapshot();
            if snapshot.cluster_by_name(cluster).is_some_and(|cluster| server.is_revoked(cluster)) {
                return Poll::Ready(None);
            }
        }
        work.as_mut().poll(cx).map(Some)
    })
    .await
}

fn retire_unserved(downstream: &Downstream) {
    if !downstream.is_in_force(&downstream.worker.snapshot()) {
        downstream.drain.retire(Instant::now());
    }
}
