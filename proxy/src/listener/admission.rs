//! `envoy.filters.network.rbac` and revocation: whether a connection may be, when it begins and whenever the configuration changes.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, ready};

use crate::config::spec::FilterChain;
use crate::http::downstream::Downstream;
use crate::policy::rbac::{self, RbacFilter};
use crate::policy::view::View;
use crate::telemetry::metrics::Decision;
use crate::worker::changes::Follower;

/// The rules refuse a connection.
#[derive(Debug)]
pub struct Refused {
    /// `%CONNECTION_TERMINATION_DETAILS%`: names the policy.
    pub details: String,
}

/// Judges a connection by the newest version of its filter chain, and counts that. A certificate that has been revoked since the
/// handshake is refused whatever the rules say.
///
/// # Errors
/// The rules refuse it.
pub fn admit(downstream: &Downstream) -> Result<(), Refused> {
    let snapshot = downstream.worker.snapshot();
    let chain = snapshot.chain(downstream.chain.id).unwrap_or(&downstream.chain);
    if is_revoked(downstream, chain) {
        return Err(Refused { details: "tls_certificate_revoked".into() });
    }
    let view = View { connection: downstream.view(downstream.remote), request: None, claims: &[] };
    chain.policies.iter().try_for_each(|filter| judge(downstream, filter, &view))
}

fn is_revoked(downstream: &Downstream, chain: &FilterChain) -> bool {
    let peer = downstream.tls.as_ref().and_then(|tls| tls.peer.as_ref());
    let trust = chain.tls.as_ref().and_then(|tls| tls.peers()).and_then(|peers| peers.trust.get());
    peer.zip(trust).is_some_and(|(peer, trust)| trust.revokes(peer))
}

fn judge(downstream: &Downstream, filter: &RbacFilter, view: &View<'_>) -> Result<(), Refused> {
    let metrics = &downstream.worker.metrics;
    if let Some(shadow) = filter.shadow.as_ref().map(|rules| rules.judge(view)) {
        metrics.decided(downstream, &shadow, Decision::shadow(shadow.allowed));
    }
    let Some(verdict) = filter.rules.as_ref().map(|rules| rules.judge(view)) else { return Ok(()) };
    metrics.decided(downstream, &verdict, Decision::enforced(verdict.allowed));
    if verdict.allowed { Ok(()) } else { Err(Refused { details: rbac::details(verdict.policy) }) }
}

/// Does `work` as long as the connection may be. `changes` are followed from before it was admitted: one that came since is not missed.
///
/// # Errors
/// A change of the configuration ended that.
pub async fn while_admitted<F: Future>(
    downstream: &Downstream,
    mut changes: Follower,
    work: F,
) -> Result<F::Output, Refused> {
    let mut work = pin!(work);
    poll_fn(|cx| {
        while changes.poll_changed(cx) {
            if let Err(refused) = admit(downstream) {
                downstream.evicted.set(true);
                return Poll::Ready(Err(refused));
            }
        }
        Poll::Ready(Ok(ready!(work.as_mut().poll(cx))))
    })
    .await
}
