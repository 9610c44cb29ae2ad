//! What there is, path by path.

use axum::routing::{MethodRouter, delete, get, patch, post, put};

use super::{App, bulk, ca, discovery, documents, instances, openapi, pages, tokens};

/// A method at a path.
pub(super) struct Route {
    pub(super) method: &'static str,
    pub(super) path: &'static str,
    /// One sentence.
    pub(super) summary: &'static str,
    /// Names of its query parameters.
    pub(super) query: &'static [&'static str],
    /// What its body is, a name of a schema.
    pub(super) body: Option<&'static str>,
    pub(super) handler: MethodRouter<App>,
}

const LIST: &[&str] =
    &["labelSelector", "fieldSelector", "watch", "resourceVersion", "allowWatchBookmarks", "timeoutSeconds"];
const WRITE: &[&str] = &["dryRun", "force"];
const REMOVE: &[&str] = &["dryRun", "force", "ignoreNotFound"];

const CORE_ALL: &str = "/api/v1/{plural}";
const CORE: &str = "/api/v1/namespaces/{namespace}/{plural}";
const CORE_ONE: &str = "/api/v1/namespaces/{namespace}/{plural}/{name}";
const CORE_STATUS: &str = "/api/v1/namespaces/{namespace}/{plural}/{name}/status";
const GROUP_ALL: &str = "/apis/{group}/{version}/{plural}";
const GROUP: &str = "/apis/{group}/{version}/namespaces/{namespace}/{plural}";
const GROUP_ONE: &str = "/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}";
const GROUP_STATUS: &str = "/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}/status";
const INSTANCE: &str = "/remora/v1/namespaces/{namespace}/instances/{name}";
const RENEW: &str = "/remora/v1/namespaces/{namespace}/instances/{name}/renew";
const DRAIN: &str = "/remora/v1/namespaces/{namespace}/instances/{name}/drain";

/// All of them.
pub(super) fn routes() -> Vec<Route> {
    let mut all = vec![
        read("/healthz", "Whether the process serves.", get(pages::healthz)),
        read("/readyz", "Whether the store has been read.", get(pages::readyz)),
        read("/status", "The store, and every connected proxy with its sync state.", get(pages::status)),
        read("/metrics", "Metrics in Prometheus' text format.", get(pages::metrics)),
        read("/openapi.json", "This document.", get(openapi::page)),
        read("/version", "The version.", get(discovery::version)),
        read("/api", "Versions of the core group.", get(discovery::core_versions)),
        read("/api/v1", "Kinds of the core group.", get(discovery::core_kinds)),
        read("/apis", "Groups.", get(discovery::groups)),
        read("/apis/{group}/{version}", "Kinds of a group.", get(discovery::group_kinds)),
    ];
    all.extend(of_documents(CORE_ALL, CORE, CORE_ONE, CORE_STATUS));
    all.extend(of_documents(GROUP_ALL, GROUP, GROUP_ONE, GROUP_STATUS));
    let bulk =
        |path, summary, handler| Route { query: WRITE, ..write("POST", path, summary, "Texts", handler) };
    all.extend([
        bulk(
            "/remora/v1/apply",
            "Create or update many documents; up to 128 of them, of 1 MiB together, all or none.",
            post(bulk::apply),
        ),
        Route { query: REMOVE, ..bulk("/remora/v1/delete", "Remove many documents.", post(bulk::delete)) },
        write(
            "POST",
            "/remora/v1/check",
            "What is wrong with documents; writes nothing.",
            "Texts",
            post(bulk::check),
        ),
        read("/remora/v1/instances", "Registered instances.", get(instances::list)),
        write("PUT", INSTANCE, "Register an instance.", "Registration", put(instances::register)),
        act("DELETE", INSTANCE, "The instance is no longer there.", delete(instances::deregister)),
        act("POST", RENEW, "The instance is alive.", post(instances::renew)),
        act("POST", DRAIN, "The instance is to get nothing new.", post(instances::drain)),
    ]);
    all.extend(of_authority());
    all
}

fn of_authority() -> Vec<Route> {
    const TOKENS: &str = "/remora/v1/tokens";
    vec![
        read("/remora/v1/ca", "Roots, revocations and the last certificates.", get(ca::show)),
        act("POST", "/remora/v1/ca/rotate", "Announce a new root.", post(ca::rotate)),
        write(
            "POST",
            "/remora/v1/ca/distrust",
            "Trust a root no more, nor what it signed.",
            "Root",
            post(ca::distrust),
        ),
        write(
            "POST",
            "/remora/v1/ca/revoke",
            "Revoke a certificate, or an identity.",
            "Revocation",
            post(ca::revoke),
        ),
        write(
            "POST",
            "/remora/v1/ca/restore",
            "Let an identity have certificates again.",
            "Revocation",
            post(ca::restore),
        ),
        read(TOKENS, "Join tokens, without their secrets.", get(tokens::list)),
        write("POST", TOKENS, "Make a join token; its text is in the answer.", "Token", post(tokens::create)),
        act("DELETE", "/remora/v1/tokens/{id}", "Remove a join token.", delete(tokens::delete)),
    ]
}

fn of_documents(
    all: &'static str,
    some: &'static str,
    one: &'static str,
    status: &'static str,
) -> Vec<Route> {
    let list = |path, summary| Route { query: LIST, ..read(path, summary, get(documents::list)) };
    let edit = |method, path, summary, handler| Route {
        query: WRITE,
        ..write(method, path, summary, "Document", handler)
    };
    vec![
        list(all, "Documents of a kind in all namespaces, or their changes."),
        list(some, "Documents of a kind in a namespace, or their changes."),
        edit("POST", some, "Create a document.", post(documents::create)),
        read(one, "A document with its status.", get(documents::get)),
        edit("PUT", one, "Replace a document.", put(documents::replace)),
        Route {
            query: &["dryRun"],
            ..edit("PATCH", one, "Apply a whole document, or a JSON merge patch.", patch(documents::patch))
        },
        Route { query: WRITE, ..act("DELETE", one, "Remove a document.", delete(documents::delete)) },
        read(status, "A document with its status, which only the control plane writes.", get(documents::get)),
    ]
}

const fn read(path: &'static str, summary: &'static str, handler: MethodRouter<App>) -> Route {
    act("GET", path, summary, handler)
}

const fn act(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    handler: MethodRouter<App>,
) -> Route {
    Route { method, path, summary, query: &[], body: None, handler }
}

const fn write(
    method: &'static str,
    path: &'static str,
    summary: &'static str,
    body: &'static str,
    handler: MethodRouter<App>,
) -> Route {
    Route { method, path, summary, query: &[], body: Some(body), handler }
}
