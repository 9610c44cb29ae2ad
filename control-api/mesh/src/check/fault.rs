//! FaultPolicies.

use std::sync::Arc;

use remora_xds::diag::At;

use super::http::http_match;
use super::policy::{need_http, targets};
use super::report::Report;
use crate::document::{Abort, Document, Fault, FaultPolicySpec, Percent};
use crate::kinds::AnyDocument;
use crate::mesh::Mesh;

/// Most faults of a policy.
const MOST: usize = 16;

pub(super) fn check(mesh: &Mesh, document: &Arc<Document<FaultPolicySpec>>, report: &mut Report) {
    let key = AnyDocument::FaultPolicy(Arc::clone(document)).key();
    targets(mesh, &key, &document.spec.target_refs, report);
    need_http(mesh, &key, &document.spec.target_refs, report);
    let root = At::root();
    let spec = root.field("spec");
    let list = spec.field("faults");
    if document.spec.faults.is_empty() {
        let fix = "faults: [{delay: {fixedDelay: 1s, percentage: 10}}]";
        report.report(&list, "must not be empty").fix(fix);
    }
    report.at_most(MOST, document.spec.faults.len(), &list);
    for (i, fault) in document.spec.faults.iter().enumerate() {
        check_fault(fault, &list.index(i), report);
    }
}

fn check_fault(fault: &Fault, at: &At<'_>, report: &mut Report) {
    if fault.delay.is_none() && fault.abort.is_none() {
        report.report(at, "needs delay, or abort, or both").fix("delay: {fixedDelay: 1s, percentage: 10}");
    }
    if let Some(matched) = &fault.matched {
        let at = at.field("match");
        http_match(matched, &at, report);
        if !matched.query_params.is_empty() {
            let text = "is not supported for faults: they look at path, method and headers";
            report.unsupported(&at.field("queryParams"), text).fix("a header");
        }
    }
    if let Some(delay) = fault.delay {
        let at = at.field("delay");
        if delay.fixed_delay.0.is_zero() {
            report.report(&at.field("fixedDelay"), "must be more than 0s").fix("remove the delay");
        }
        never(delay.percentage, &at, report);
    }
    if let Some(abort) = fault.abort {
        check_abort(abort, &at.field("abort"), report);
    }
}

fn check_abort(abort: Abort, at: &At<'_>, report: &mut Report) {
    if abort.http_status.is_some() == abort.grpc_status.is_some() {
        report.report(at, "needs one of httpStatus and grpcStatus").fix("httpStatus: 503");
    }
    if abort.http_status.is_some_and(|status| !(200..600).contains(&status)) {
        report.report(&at.field("httpStatus"), "is no status of an answer").fix("200 to 599");
    }
    if abort.grpc_status.is_some_and(|status| !(1..=16).contains(&status)) {
        report.report(&at.field("grpcStatus"), "is no status of a failure").fix("1 to 16");
    }
    never(abort.percentage, at, report);
}

fn never(percentage: Percent, at: &At<'_>, report: &mut Report) {
    if percentage.is_zero() {
        report.report(&at.field("percentage"), "is 0: it would never happen").fix("raise it, or remove this");
    }
}
