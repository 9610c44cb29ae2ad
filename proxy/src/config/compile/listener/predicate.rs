//! `filter_disabled` of a listener filter: ports on which it does not look.

use std::ops::RangeInclusive;

use remora_xds::diag::At;
use remora_xds::pb::envoy::config::listener::v3::ListenerFilterChainMatchPredicate;
use remora_xds::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use remora_xds::pb::envoy::r#type::v3::Int32Range;

use crate::config::compile::Scope;
use crate::config::compile::common::unsupported;
use crate::config::spec::Ports;

/// The ports that `predicate` names: `destination_port_range`, an `or_match` of such, or `any_match`.
pub(super) fn ports(
    predicate: Option<&ListenerFilterChainMatchPredicate>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
) -> Ports {
    let mut found = Ports::default();
    collect(predicate, at, scope, &mut found.0);
    found
}

fn collect(
    predicate: Option<&ListenerFilterChainMatchPredicate>,
    at: &At<'_>,
    scope: &mut Scope<'_>,
    found: &mut Vec<RangeInclusive<u16>>,
) {
    match predicate.and_then(|predicate| predicate.rule.as_ref()) {
        None => {}
        Some(Rule::AnyMatch(true)) => found.push(0..=u16::MAX),
        Some(Rule::AnyMatch(false)) => {
            let at = at.field("any_match");
            scope.errors.report(&at, "false means nothing").fix("remove it");
        }
        Some(Rule::DestinationPortRange(range)) => {
            found.extend(inclusive(range, &at.field("destination_port_range"), scope));
        }
        // Validation has seen that there are two at least.
        Some(Rule::OrMatch(any)) => {
            let rules = at.field("or_match");
            let rules = rules.field("rules");
            for (i, rule) in any.rules.iter().enumerate() {
                collect(Some(rule), &rules.index(i), scope, found);
            }
        }
        Some(Rule::AndMatch(_)) => unsupported(true, &at.field("and_match"), scope),
        Some(Rule::NotMatch(_)) => unsupported(true, &at.field("not_match"), scope),
    }
}

/// Without its end, in Envoy.
fn inclusive(range: &Int32Range, at: &At<'_>, scope: &mut Scope<'_>) -> Option<RangeInclusive<u16>> {
    let last = range.end.checked_sub(1).and_then(|last| u16::try_from(last).ok());
    let found = u16::try_from(range.start).ok().zip(last).filter(|(first, last)| first <= last);
    if found.is_none() {
        let message = format!("{} to {} is no range of ports", range.start, range.end);
        scope.errors.report(at, message).fix("start, and the first port that is not meant any more, as end");
    }
    found.map(|(first, last)| first..=last)
}
