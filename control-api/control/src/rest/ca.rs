//! The certificate authority.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::App;
use super::body::{Caller, Utf8, json};
use super::failure::Failure;
use crate::ca::authority::Reason;
use crate::ca::issued::Entry;
use crate::ca::keeper::{KIND, NAMESPACE};
use crate::ca::{Phase, Root};
use crate::clock::rfc3339_of;
use crate::registry::change::{Outcome, Verb};
use crate::store::Key;

/// Certificates that are shown.
const SHOWN: usize = 100;

/// A root as it is shown: without its key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownRoot {
    /// SHA-256 of its public key, in hexadecimal.
    pub id: String,
    /// Where it is in its life.
    pub phase: Phase,
    /// Since when, RFC 3339.
    pub since: String,
    /// Whether it was made here; else it is from files.
    pub own: bool,
    /// When it ends, RFC 3339.
    pub not_after: String,
    /// When the last certificate that it may have signed ends, RFC 3339.
    pub signed_until: String,
}

/// What somebody wants to be revoked, or to be restored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revocation {
    /// A certificate, by its serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// All certificates of an identity, and those that it will ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Why.
    #[serde(default)]
    pub reason: Reason,
}

/// What the authority is, and what it signed last.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    /// Of all identities.
    pub trust_domain: String,
    /// All of them are trusted.
    pub roots: Vec<ShownRoot>,
    /// The proxies that an announced root waits for.
    #[serde(default)]
    pub waits_for: Vec<String>,
    /// The roots in PEM.
    pub trusted: String,
    /// Certificates on the revocation list.
    pub revoked: Vec<Value>,
    /// Identities that get no certificates.
    pub revoked_identities: Vec<Value>,
    /// What this control plane signed last, newest first.
    pub issued: Vec<Entry>,
}

fn shown_root(root: &Root) -> ShownRoot {
    ShownRoot {
        id: root.id.clone(),
        phase: root.phase,
        since: rfc3339_of(root.since),
        own: root.own,
        not_after: rfc3339_of(root.not_after),
        signed_until: rfc3339_of(root.signed_until),
    }
}

/// `GET /remora/v1/ca`.
pub(super) async fn show(State(app): State<App>) -> Result<Response, Failure> {
    app.ca.begun().await;
    let shown = app.ca.read(|authority| Shown {
        trust_domain: app.ca.settings().trust_domain.clone(),
        roots: authority.roots().iter().map(shown_root).collect(),
        waits_for: app.ca.waits_for(),
        trusted: authority.trusted(),
        revoked: authority.revoked().iter().map(|revoked| json!({
            "serial": revoked.serial, "at": rfc3339_of(revoked.at), "until": rfc3339_of(revoked.until), "reason": revoked.reason,
        })).collect(),
        revoked_identities: authority.barred().iter().map(|barred| json!({
            "identity": barred.identity, "at": rfc3339_of(barred.at), "reason": barred.reason,
        })).collect(),
        issued: app.issued.newest(SHOWN),
    })?;
    Ok(json(StatusCode::OK, &json!(shown)))
}

/// `POST /remora/v1/ca/rotate`: announces a new root.
pub(super) async fn rotate(State(app): State<App>, caller: Caller) -> Result<Response, Failure> {
    let id = app.ca.rotate().await?;
    audited(&app, &caller, format!("+root {id}\n")).await;
    Ok(json(StatusCode::CREATED, &json!({"root": id})))
}

/// A root that is not to be trusted any more.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distrust {
    /// Its id, or the beginning of it.
    pub root: String,
}

/// `POST /remora/v1/ca/distrust`.
pub(super) async fn distrust(
    State(app): State<App>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    let Distrust { root } =
        serde_json::from_str(&body).map_err(|e| Failure::bad_request(format!("a root: {e}")))?;
    let id = app.ca.distrust(&root).await?;
    audited(&app, &caller, format!("-root {id}\n")).await;
    Ok(json(StatusCode::OK, &json!({"root": id})))
}

/// `POST /remora/v1/ca/revoke`.
pub(super) async fn revoke(
    State(app): State<App>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<Response, Failure> {
    let asked = read(&body)?;
    let (serials, left) = match (&asked.serial, &asked.identity) {
        (Some(serial), None) => {
            // Of one that is not known here no end is known; none is longer than this.
            let known = app.issued.living(|entry| same(&entry.serial, serial)).pop();
            let unknown = || (serial.clone(), app.ca.latest_end());
            let (serial, until) = known.unwrap_or_else(unknown);
            app.ca.revoke(&[(serial.clone(), until)], asked.reason).await?;
            (vec![serial], 0)
        }
        (None, Some(identity)) => {
            app.ca.bar(&app.ca.parse(identity)?, asked.reason).await?;
            let living = app.issued.living(|entry| entry.identity == *identity);
            app.ca.revoke_as_many_as_fit(living, asked.reason).await?
        }
        _ => return Err(Failure::bad_request("name a serial or an identity")),
    };
    let mut lines: String = asked.identity.iter().map(|identity| format!("+revoked {identity}\n")).collect();
    lines.extend(serials.iter().map(|serial| format!("+revoked {serial}\n")));
    audited(&app, &caller, lines).await;
    Ok(json(StatusCode::OK, &json!({ "revoked": serials, "left": left })))
}

/// `POST /remora/v1/ca/restore`: the identity gets certificates again.
pub(super) async fn restore(
    State(app): State<App>,
    caller: Caller,
    Utf8(body): Utf8,
) -> Result<StatusCode, Failure> {
    let Revocation { identity: Some(identity), serial: None, .. } = read(&body)? else {
        return Err(Failure::bad_request("name an identity; a certificate stays revoked"));
    };
    if !app.ca.restore(&app.ca.parse(&identity)?).await? {
        return Err(Failure::new(StatusCode::NOT_FOUND, "NotFound", format!("{identity} is not revoked")));
    }
    audited(&app, &caller, format!("-revoked {identity}\n")).await;
    Ok(StatusCode::NO_CONTENT)
}

fn read(body: &str) -> Result<Revocation, Failure> {
    serde_json::from_str(body).map_err(|e| Failure::bad_request(format!("a revocation: {e}")))
}

/// A serial number may be written with colons and in capitals.
fn same(known: &str, asked: &str) -> bool {
    let digits = asked.chars().filter(|c| *c != ':').map(|c| c.to_ascii_lowercase());
    known.chars().eq(digits)
}

async fn audited(app: &App, caller: &Caller, diff: String) {
    let key = Key::new(KIND, NAMESPACE, "mesh");
    let outcome = Outcome { key, verb: Verb::Configured, diff, record: None };
    app.audit.write(caller.address, &caller.name, &[outcome]).await;
}
