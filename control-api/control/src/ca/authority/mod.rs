//! The authority as a value: roots and their phases, what is signed, what is revoked. Pure: `now` (seconds since 1970) and chance are
//! arguments.
//!
//! At every moment exactly one root signs, and every certificate that has not ended leads to a root that is trusted: also by those who
//! have not heard of the newest one, because the root before it vouches for it.

mod signing;

use std::time::Duration;

use remora_proxy::tls::identity::SpiffeId;
use serde::{Deserialize, Serialize};

use super::crl::{self, Lists};
pub use super::crl::{Reason, Revoked};
use super::refused::Refused;
use super::root::{Phase, Root};
use super::{Source, hex};
pub use signing::{Issued, Order};

/// Clocks may differ by this: certificates begin so much earlier, and roots stay so much longer (seconds).
pub(super) const SKEW: u64 = 300;
/// Roots at one time: the value has to fit into the store.
const ROOTS: usize = 4;
/// Certificates on the revocation list.
const REVOKED: usize = 2000;
/// Identities that get no certificates.
const BARRED: usize = 1000;
/// Roots that are remembered when they have gone.
const GONE: usize = 64;

/// How long a new root is announced before it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    /// At least so long, even if every node knows it at once.
    pub least: Duration,
    /// At most so long, even if a node does not take it.
    pub most: Duration,
}

/// An identity that gets no certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Barred {
    /// `spiffe://…`.
    pub identity: String,
    /// Since when, in seconds since 1970.
    pub at: u64,
    /// Why.
    pub reason: Reason,
}

/// The state of the authority.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    roots: Vec<Root>,
    revoked: Vec<Revoked>,
    barred: Vec<Barred>,
    /// Number of the last revocation lists.
    list_number: u64,
    /// None while nothing is revoked.
    lists: Option<Lists>,
    /// Ids of roots out of files that have gone: whoever starts with these files again does not bring them back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    gone: Vec<String>,
}

/// What became of a root by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// It signs from now on; these nodes have not said that they know it.
    Signs(String, Vec<String>),
    /// It is no longer trusted: everything that it signed has ended.
    Gone(String),
    /// A new one is announced, because the one that signs ends in a while.
    Announced(String),
}

impl Authority {
    /// One that signs with `root`.
    #[must_use]
    pub fn new(root: Root) -> Self {
        let since = root.since;
        Self { roots: vec![root.entering(Phase::Signing, since)], ..Self::default() }
    }

    /// All roots; all of them are trusted.
    #[must_use]
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// Certificates that are not to be believed.
    #[must_use]
    pub fn revoked(&self) -> &[Revoked] {
        &self.revoked
    }

    /// Identities that get no certificates.
    #[must_use]
    pub fn barred(&self) -> &[Barred] {
        &self.barred
    }

    /// The root that signs.
    ///
    /// # Errors
    /// The store holds something else than an authority made.
    pub fn signing(&self) -> Result<&Root, Refused> {
        self.in_phase(Phase::Signing).ok_or_else(|| Refused::Corrupt("no root signs".into()))
    }

    /// The root that will sign next.
    #[must_use]
    pub fn announced(&self) -> Option<&Root> {
        self.in_phase(Phase::Announced)
    }

    fn in_phase(&self, phase: Phase) -> Option<&Root> {
        self.roots.iter().find(|root| root.phase == phase)
    }

    /// What everybody is to trust, in PEM.
    #[must_use]
    pub fn trusted(&self) -> String {
        let mut seen: Vec<&String> = Vec::new();
        for anchor in self.roots.iter().flat_map(Root::anchors) {
            if !seen.contains(&anchor) {
                seen.push(anchor);
            }
        }
        seen.into_iter().map(String::as_str).collect()
    }

    /// Whether a chain goes through a CA whose revocation lists are not made here.
    #[must_use]
    pub fn has_foreign_anchors(&self) -> bool {
        self.roots.iter().any(Root::is_below_others)
    }

    /// The revocation lists of all roots, in PEM; None while nothing is revoked.
    #[must_use]
    pub fn revocation_lists(&self) -> Option<&str> {
        self.lists.as_ref().map(|lists| lists.pem.as_str())
    }

    /// When the lists were made, and they.
    #[cfg(test)]
    pub(super) const fn lists(&self) -> Option<&Lists> {
        self.lists.as_ref()
    }

    /// Announces `root`, which will sign after the overlap. The one that signs now vouches for it, where that can be: see
    /// `Root::crossed`.
    ///
    /// # Errors
    /// [`Refused::RootAnnounced`], [`Refused::RootsFull`], [`Refused::RootName`].
    pub fn announce(&mut self, root: Root, now: u64, source: &mut impl Source) -> Result<(), Refused> {
        if let Some(announced) = self.announced() {
            return Err(Refused::RootAnnounced(announced.short().to_owned()));
        }
        if self.roots.len() >= ROOTS {
            return Err(Refused::RootsFull(self.roots.len()));
        }
        // Verifiers find the revocation list of an issuer by its name.
        let name = root.name()?;
        for other in &self.roots {
            if other.name()? == name {
                return Err(Refused::RootName(other.short().to_owned()));
            }
        }
        let root = root.crossed(self.signing()?, now, source)?;
        self.roots.push(root.entering(Phase::Announced, now));
        self.list(now)
    }

    /// Whether a root is here, or was and has gone.
    #[must_use]
    pub fn has_had(&self, root: &Root) -> bool {
        self.gone.contains(&root.id) || self.roots.iter().any(|own| own.id == root.id)
    }

    /// Takes a newer certificate of a root that is here: it has the same key and name, so that what was signed before leads to it, too.
    /// False: it is none.
    ///
    /// # Errors
    /// What the store holds is no certificate.
    pub fn renew(&mut self, newer: &Root) -> Result<bool, Refused> {
        let own = self.roots.iter_mut().find(|own| own.id == newer.id);
        let Some(own) = own.filter(|own| own.not_after < newer.not_after) else { return Ok(false) };
        if own.name()? != newer.name()? {
            return Ok(false);
        }
        own.renew(newer);
        Ok(true)
    }

    /// Moves what is due. `laggards` are the connected nodes that have not taken what is trusted now.
    ///
    /// # Errors
    /// A list or a root cannot be made.
    pub fn advance(
        &mut self,
        domain: &str,
        laggards: &[String],
        overlap: Overlap,
        now: u64,
        source: &mut impl Source,
    ) -> Result<Vec<Step>, Refused> {
        let mut steps = Vec::new();
        if let Some(announced) = self.announced() {
            let age = now.saturating_sub(announced.since);
            let known = laggards.is_empty() && age >= overlap.least.as_secs();
            if known || age >= overlap.least.max(overlap.most).as_secs() {
                steps.push(Step::Signs(announced.short().to_owned(), laggards.to_vec()));
                self.succeed(now);
            }
        }
        let over =
            |root: &Root| root.phase == Phase::Retiring && root.signed_until.saturating_add(SKEW) < now;
        steps.extend(
            self.roots.iter().filter(|root| over(root)).map(|root| Step::Gone(root.short().to_owned())),
        );
        self.remove(over);
        let (own, ends) = self.signing().map(|root| (root.own, ends_soon(root, now)))?;
        if own && ends && self.announced().is_none() && self.roots.len() < ROOTS {
            let root = Root::make(domain, now, source)?;
            steps.push(Step::Announced(root.short().to_owned()));
            self.announce(root, now, source)?;
        }
        let before = self.revoked.len();
        self.revoked.retain(|revoked| revoked.until.saturating_add(SKEW) >= now);
        let old = self.lists.as_ref().is_some_and(|lists| lists.made.saturating_add(crl::LIFE / 2) < now);
        if old || before != self.revoked.len() || steps.iter().any(|step| matches!(step, Step::Gone(_))) {
            self.list(now)?;
        }
        Ok(steps)
    }

    /// Trusts a root no more, whatever it has signed: somebody else may have its key. `id` is its id, or the beginning of it. The answer is
    /// the whole id.
    ///
    /// # Errors
    /// [`Refused::RootUnknown`], [`Refused::RootSigns`].
    pub fn distrust(&mut self, id: &str, now: u64) -> Result<String, Refused> {
        let mut meant = self.roots.iter().filter(|root| !id.is_empty() && root.id.starts_with(id));
        let (Some(root), None) = (meant.next(), meant.next()) else {
            return Err(Refused::RootUnknown(id.chars().take(64).collect()));
        };
        if root.phase == Phase::Signing {
            return Err(Refused::RootSigns(root.short().to_owned()));
        }
        let (id, cross) = (root.id.clone(), root.cross_serial()?);
        self.remove(|root| root.id == id);
        // Whoever has the key has the certificate by which another root vouches for it, too. There are no more of these than roots.
        if let Some((serial, until)) = cross
            && !self.is_revoked(&serial)
        {
            self.revoked.push(Revoked { serial, at: now, until, reason: Reason::KeyCompromise });
        }
        self.list(now)?;
        Ok(id)
    }

    fn remove(&mut self, over: impl Fn(&Root) -> bool) {
        let gone = self.roots.iter().filter(|root| over(root) && !root.own);
        self.gone.extend(gone.map(|root| root.id.clone()));
        self.gone.drain(..self.gone.len().saturating_sub(GONE));
        self.roots.retain(|root| !over(root));
    }

    /// The announced root signs, and the one that did retires.
    fn succeed(&mut self, now: u64) {
        for root in &mut self.roots {
            let next = match root.phase {
                Phase::Announced => Phase::Signing,
                Phase::Signing => Phase::Retiring,
                Phase::Retiring => continue,
            };
            (root.phase, root.since) = (next, now);
        }
    }

    /// Whether an identity gets no certificates.
    #[must_use]
    pub fn is_barred(&self, identity: &SpiffeId) -> bool {
        self.barred.iter().any(|barred| barred.identity == identity.as_str())
    }

    /// Whether a certificate is on the revocation list; `serial` as [`hex`] writes it.
    #[must_use]
    pub fn is_revoked(&self, serial: &str) -> bool {
        self.revoked.iter().any(|revoked| revoked.serial == serial)
    }

    /// Puts certificates on the revocation list. Those that are there stay as they are.
    ///
    /// # Errors
    /// [`Refused::Serial`], [`Refused::RevocationsFull`].
    pub fn revoke(
        &mut self,
        certificates: &[(String, u64)],
        reason: Reason,
        now: u64,
    ) -> Result<(), Refused> {
        let mut new = Vec::new();
        for (serial, until) in certificates {
            let serial = hex(crl::serial(serial)?.as_ref());
            if !self.is_revoked(&serial) {
                new.push(Revoked { serial, at: now, until: *until, reason });
            }
        }
        if self.revoked.len() + new.len() > REVOKED {
            return Err(Refused::RevocationsFull(self.revoked.len()));
        }
        if new.is_empty() {
            return Ok(());
        }
        self.revoked.append(&mut new);
        self.list(now)
    }

    /// Puts on the revocation list what fits, from the front. The answer is how many do not.
    ///
    /// # Errors
    /// [`Refused::Serial`].
    pub fn revoke_as_many_as_fit(
        &mut self,
        certificates: &[(String, u64)],
        reason: Reason,
        now: u64,
    ) -> Result<usize, Refused> {
        let is_new = |(serial, _): &&(String, u64)| !self.is_revoked(serial);
        let mut new: Vec<_> = certificates.iter().filter(is_new).cloned().collect();
        let left = new.split_off(new.len().min(REVOKED.saturating_sub(self.revoked.len())));
        self.revoke(&new, reason, now)?;
        Ok(left.len())
    }

    /// Signs nothing for `identity` from now on.
    ///
    /// # Errors
    /// [`Refused::RevocationsFull`].
    pub fn bar(&mut self, identity: &SpiffeId, reason: Reason, now: u64) -> Result<(), Refused> {
        if self.is_barred(identity) {
            return Ok(());
        }
        if self.barred.len() >= BARRED {
            return Err(Refused::RevocationsFull(self.barred.len()));
        }
        self.barred.push(Barred { identity: identity.to_string(), at: now, reason });
        Ok(())
    }

    /// Signs for `identity` again. Its certificates that are revoked stay so. False: nothing kept it from that.
    pub fn restore(&mut self, identity: &SpiffeId) -> bool {
        let before = self.barred.len();
        self.barred.retain(|barred| barred.identity != identity.as_str());
        before != self.barred.len()
    }

    /// Makes the revocation lists anew.
    fn list(&mut self, now: u64) -> Result<(), Refused> {
        if self.revoked.is_empty() {
            self.lists = None;
            return Ok(());
        }
        self.list_number += 1;
        self.lists = Some(crl::make(&self.roots, &self.revoked, self.list_number, now)?);
        Ok(())
    }
}

/// A fifth of its life is left: enough for everybody to learn of the next one.
fn ends_soon(root: &Root, now: u64) -> bool {
    let life = root.not_after.saturating_sub(root.not_before);
    root.not_after.saturating_sub(now) < life / 5
}
