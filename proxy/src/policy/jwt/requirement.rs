//! Which tokens a request needs (`JwtRequirement`).

use std::sync::Arc;

use super::JwtFilter;
use super::extract;
use super::provider::{Now, Provider, Verified};
use super::token::Token;
use crate::error::Reason;
use crate::http::head::RequestHead;

/// A compiled `JwtRequirement`.
#[derive(Debug, Clone)]
pub enum Requirement {
    /// `provider_name`, `provider_and_audiences`: a token of this provider.
    Provider {
        /// Its position in [`JwtFilter::providers`].
        provider: usize,
        /// Instead of the provider's own.
        audiences: Option<Box<[Box<str>]>>,
    },
    /// `requires_any`: one of them is enough.
    Any(Box<[Self]>, Leniency),
    /// `requires_all`.
    All(Box<[Self]>),
    /// `allow_missing` and `allow_missing_or_failed` by themselves: whatever tokens there are, of any provider.
    Optional(Leniency),
}

/// Whether a request may do without a good token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leniency {
    /// No.
    Strict,
    /// `allow_missing`: without any.
    Missing,
    /// `allow_missing_or_failed`: with a bad one, too.
    Failed,
}

impl Requirement {
    /// The tokens that satisfy the requirement, in the order in which Envoy verifies them: of several under one key of the metadata the
    /// last one is seen by rules.
    ///
    /// # Errors
    /// Why it is not satisfied.
    pub fn check<'f>(
        &self,
        filter: &'f JwtFilter,
        head: &RequestHead,
        now: Now<'_>,
    ) -> Result<Vec<Verified<'f>>, Reason> {
        match self {
            Self::Provider { provider, audiences } => {
                // The compiler made the position.
                let provider = filter.providers.get(*provider).ok_or(Reason::JwtUnknownIssuer)?;
                let text = extract::token(head, &provider.locations)?.ok_or(Reason::JwtMissing)?;
                Ok(vec![provider.verify(Token::parse(text)?, audiences.as_deref(), now)?])
            }
            Self::All(list) => {
                let each = list.iter().map(|requirement| requirement.check(filter, head, now));
                each.collect::<Result<Vec<_>, _>>().map(|all| all.into_iter().flatten().collect())
            }
            Self::Any(list, leniency) => any(list, |requirement| requirement.check(filter, head, now))
                .or_else(|why| leniency.excuses(why)),
            Self::Optional(leniency) => optional(*leniency, filter, head, now, &[]),
        }
    }

    /// Checks what tokens of `verified` providers, which were good earlier, do not satisfy: they may have expired since, or were taken
    /// away.
    ///
    /// # Errors
    /// Why it is not satisfied.
    pub fn check_again(
        &self,
        filter: &JwtFilter,
        head: &RequestHead,
        now: Now<'_>,
        verified: &[Arc<str>],
    ) -> Result<(), Reason> {
        if self.is_met_by(filter, verified) {
            return Ok(());
        }
        let again = |requirement: &Self| requirement.check_again(filter, head, now, verified);
        match self {
            Self::Provider { .. } => self.check(filter, head, now).map(drop),
            Self::All(list) => list.iter().try_for_each(again),
            Self::Any(list, leniency) => any(list, again).or_else(|why| leniency.excuses(why)),
            Self::Optional(leniency) => optional(*leniency, filter, head, now, verified).map(drop),
        }
    }

    /// The providers that it asks for, for a person: `a`, `any of a, b`, `all of a, any of b, c`.
    #[must_use]
    pub fn names(&self, filter: &JwtFilter) -> String {
        let list = |list: &[Self]| list.iter().map(|one| one.names(filter)).collect::<Vec<_>>().join(", ");
        match self {
            Self::Provider { provider, .. } => {
                filter.providers.get(*provider).map_or_else(String::new, |provider| provider.name.to_string())
            }
            Self::All(all) => format!("all of {}", list(all)),
            Self::Any(any, _) => format!("any of {}", list(any)),
            Self::Optional(_) => "any provider".to_owned(),
        }
    }

    /// Whether tokens of these providers, verified earlier, satisfy it.
    fn is_met_by(&self, filter: &JwtFilter, verified: &[Arc<str>]) -> bool {
        match self {
            Self::Provider { provider, .. } => {
                filter.providers.get(*provider).is_some_and(|provider| verified.contains(&provider.name))
            }
            Self::All(list) => list.iter().all(|requirement| requirement.is_met_by(filter, verified)),
            Self::Any(list, leniency) => {
                *leniency == Leniency::Failed
                    || list.iter().any(|requirement| requirement.is_met_by(filter, verified))
            }
            Self::Optional(leniency) => *leniency == Leniency::Failed,
        }
    }
}

impl Leniency {
    fn excuses<T: Default>(self, why: Reason) -> Result<T, Reason> {
        match self {
            Self::Failed => Ok(T::default()),
            Self::Missing if why == Reason::JwtMissing => Ok(T::default()),
            Self::Missing | Self::Strict => Err(why),
        }
    }
}

/// The first that is satisfied. Otherwise the most telling refusal: that a token is bad says more than that another one is missing.
fn any<T>(list: &[Requirement], check: impl Fn(&Requirement) -> Result<T, Reason>) -> Result<T, Reason> {
    let telling = |why: &Reason| match why {
        Reason::JwtMissing => 0,
        Reason::JwtUnknownIssuer => 1,
        _ => 2,
    };
    let mut refusal = Reason::JwtMissing;
    for requirement in list {
        match check(requirement) {
            Ok(verified) => return Ok(verified),
            Err(why) if telling(&why) >= telling(&refusal) => refusal = why,
            Err(_) => {}
        }
    }
    Err(refusal)
}

/// Verifies every token that stands where some provider's tokens stand, each by the providers of this place that its issuer names.
/// Those of `known` providers were verified before.
fn optional<'f>(
    leniency: Leniency,
    filter: &'f JwtFilter,
    head: &RequestHead,
    now: Now<'_>,
    known: &[Arc<str>],
) -> Result<Vec<Verified<'f>>, Reason> {
    let mut seen: Vec<&str> = Vec::new();
    let mut verified = Vec::new();
    for provider in &filter.providers {
        let checked = match extract::token(head, &provider.locations) {
            Ok(Some(text)) if !seen.contains(&text) => {
                seen.push(text);
                of_issuer(text, filter, head, now, known)
            }
            Ok(_) => continue,
            Err(why) => Err(why),
        };
        match checked {
            Ok(good) => verified
                .extend(good.map(|good| (extract::place(head, &good.provider.locations, &good.token), good))),
            Err(_) if leniency == Leniency::Failed => {}
            Err(why) => return Err(why),
        }
    }
    // Envoy begins with the last place.
    verified.sort_by(|(a, _), (b, _)| b.cmp(a));
    Ok(verified.into_iter().map(|(_, good)| good).collect())
}

/// By the providers of the token's issuer, else by those that accept every issuer. Of either, only those whose tokens stand where this one
/// does. There may be several, each with audiences of its own: one is enough. None: one of them is `known`.
fn of_issuer<'f>(
    text: &str,
    filter: &'f JwtFilter,
    head: &RequestHead,
    now: Now<'_>,
    known: &[Arc<str>],
) -> Result<Option<Verified<'f>>, Reason> {
    let token = Token::parse(text)?;
    let mut here: Vec<&Provider> = (filter.providers.iter())
        .filter(|provider| extract::token(head, &provider.locations) == Ok(Some(text)))
        .collect();
    let issuer =
        token.issuer.as_deref().filter(|issuer| here.iter().any(|p| p.issuer.as_deref() == Some(*issuer)));
    here.retain(|provider| provider.issuer.as_deref() == issuer);
    if here.iter().any(|provider| known.contains(&provider.name)) {
        return Ok(None);
    }
    let mut refusal = Reason::JwtUnknownIssuer;
    for provider in here {
        match provider.verify(Token::parse(text)?, None, now) {
            Ok(verified) => return Ok(Some(verified)),
            Err(why) => refusal = why,
        }
    }
    Err(refusal)
}
