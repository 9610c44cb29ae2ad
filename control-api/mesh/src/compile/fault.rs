//! FaultPolicies -> fault filters of the listener in front of a program.
//!
//! They stand there and not at the callers, so that callers of every kind meet them, and with everything that they do about a program
//! that fails: their retries, time limits, outlier detection and circuit breakers.

use std::collections::BTreeMap;

use remora_xds::pb::envoy::extensions::filters::common::fault::v3::FaultDelay;
use remora_xds::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use remora_xds::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use remora_xds::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use remora_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;

use super::http::http_filter;
use super::parts;
use super::route::conditions;
use crate::document::{Abort, Delay, Document, Fault, FaultPolicySpec, ServiceSpec};
use crate::mesh::Mesh;
use crate::name::Name;

/// The filters of a port that `services` lead to, by the names of their policies.
pub(super) fn filters(mesh: &Mesh, services: &[&Document<ServiceSpec>]) -> Vec<HttpFilter> {
    let found = services.iter().filter_map(|service| mesh.faults(service));
    let policies: BTreeMap<Name, &Document<FaultPolicySpec>> =
        found.map(|policy| (policy.name(), &**policy)).collect();
    let each = policies.into_iter().flat_map(|(name, policy)| {
        let faults = policy.spec.faults.iter().enumerate();
        faults
            .map(move |(i, fault)| http_filter(&format!("{name}:faults[{i}]"), parts::pack(&compiled(fault))))
    });
    each.collect()
}

fn compiled(fault: &Fault) -> HttpFault {
    let (headers, _) = fault.matched.as_ref().map(conditions).unwrap_or_default();
    HttpFault {
        delay: fault.delay.map(delay),
        abort: fault.abort.and_then(abort),
        headers,
        ..HttpFault::default()
    }
}

fn delay(said: Delay) -> FaultDelay {
    let fixed = FaultDelaySecifier::FixedDelay(parts::duration(said.fixed_delay.0));
    FaultDelay {
        percentage: Some(parts::percent(said.percentage.millionths())),
        fault_delay_secifier: Some(fixed),
    }
}

fn abort(said: Abort) -> Option<FaultAbort> {
    let http = said.http_status.map(|status| ErrorType::HttpStatus(status.into()));
    let error_type = http.or_else(|| said.grpc_status.map(ErrorType::GrpcStatus))?;
    Some(FaultAbort {
        percentage: Some(parts::percent(said.percentage.millionths())),
        error_type: Some(error_type),
        ..FaultAbort::default()
    })
}
