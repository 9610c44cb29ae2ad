//! The files of a case: `requests.yaml` (written by hand) and `expected.yaml` (recorded from Envoy).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// `requests.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requests {
    /// What the case proves, in one sentence.
    pub about: String,
    /// Whether the access log's lines are compared.
    #[serde(default)]
    pub log: bool,
    /// Paths of fields outside of the supported subset: Remora refuses the file and names each of them. The requests are
    /// for Envoy alone.
    #[serde(default)]
    pub refused: Vec<String>,
    /// The requests, sent one after the other.
    pub requests: Vec<RequestSpec>,
}

/// One request, or one group of equal requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RequestSpec {
    /// Unique within the case.
    pub name: String,
    /// Listener that gets it.
    pub listener: String,
    /// How it is sent.
    pub protocol: Protocol,
    /// TLS towards the proxy.
    pub tls: Option<TlsSpec>,
    /// The method.
    pub method: String,
    /// The request target, exactly as sent.
    pub path: String,
    /// Host or `:authority`; `-` leaves it out.
    pub host: String,
    /// `Name: value` lines in order.
    pub headers: Vec<String>,
    /// Directives for the upstream, see `echo.rs`.
    pub echo: String,
    /// The body.
    pub body: Option<String>,
    /// A body of that many bytes instead.
    pub body_size: usize,
    /// HTTP/1: chunked instead of Content-Length.
    pub chunked: bool,
    /// Trailers; imply `chunked`.
    pub trailers: Vec<String>,
    /// Waits for 100 Continue (at most a second) before it sends the body.
    pub expect: bool,
    /// HTTP/1 and TCP: these bytes instead of everything above. `{{ID}}` is the request's id.
    pub raw: Option<String>,
    /// Bytes through the tunnel after 101; TCP: the bytes to send.
    pub tunnel: Option<String>,
    /// Sends the request that many times.
    pub repeat: usize,
    /// All of them at once instead of one after the other.
    pub parallel: bool,
    /// In parallel: each starts that many milliseconds after the one before.
    pub stagger: u64,
    /// Name of a connection that several requests share.
    pub connection: Option<String>,
    /// Header names keep their spelling and order in the outcome.
    pub spelling: bool,
    /// Waits up to that many milliseconds for the proxy to close the connection.
    pub wait_close: u64,
    /// The answer must take at least and at most that many milliseconds.
    pub took: Option<(u64, u64)>,
    /// Percent of the requests of a group that each upstream must get, within `tolerance`.
    pub share: BTreeMap<String, f64>,
    /// Percentage points.
    pub tolerance: f64,
    /// Compares how many different upstreams a group reached, not which.
    pub distinct: bool,
    /// The answer is written in the file (a direct response): its body is compared even when it is a failure.
    pub exact: bool,
    /// So many mirrors get it, too, and are waited for: attempts are in the order of their upstreams' names, and the last one is shown.
    pub copies: usize,
    /// The answer's body may be gzip; what is in it is compared.
    pub gunzip: bool,
    /// Only the number of attempts is compared, not which upstream got them.
    pub any_upstream: bool,
    /// Where Remora differs from Envoy, with the id of the row in docs/differences-from-envoy.md.
    pub differs: Option<Patch>,
}

impl Default for RequestSpec {
    fn default() -> Self {
        Self {
            name: String::new(),
            listener: "main".into(),
            protocol: Protocol::Http1,
            tls: None,
            method: "GET".into(),
            path: "/".into(),
            host: "a.example".into(),
            headers: Vec::new(),
            echo: String::new(),
            body: None,
            body_size: 0,
            chunked: false,
            trailers: Vec::new(),
            expect: false,
            raw: None,
            tunnel: None,
            repeat: 1,
            parallel: false,
            stagger: 0,
            connection: None,
            spelling: false,
            wait_close: 0,
            took: None,
            share: BTreeMap::new(),
            tolerance: 10.0,
            distinct: false,
            exact: false,
            copies: 0,
            gunzip: false,
            any_upstream: false,
            differs: None,
        }
    }
}

/// How a request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Http10,
    Http1,
    Http2,
    Tcp,
}

/// TLS towards the proxy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSpec {
    /// Server name.
    pub sni: String,
    /// ALPN protocols.
    pub alpn: Vec<String>,
    /// Which certificate to show: `client` or `stranger`.
    pub certificate: Option<String>,
}

/// What happened to a request.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Outcome {
    /// The answer's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The answer's version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Statuses of interim answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interim: Vec<u16>,
    /// `name: value`, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// The body; a long one as its length and hash.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// Trailers, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trailers: Vec<String>,
    /// How the answer ended.
    pub end: End,
    /// The certificate that the proxy showed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// What came back through the tunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// Whether the proxy closed the connection in time, where `wait_close` asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed: Option<bool>,
    /// Upstreams that saw the request, an entry per attempt.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<String>,
    /// The last attempt as the upstream saw it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forwarded: Option<Forwarded>,
    /// A group: how many answers had which status.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub statuses: BTreeMap<String, usize>,
    /// A group with `distinct`: how many upstreams it reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distinct: Option<usize>,
}

/// How an answer ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// As its framing says.
    #[default]
    Complete,
    /// The connection closed, or the stream was reset, in the middle of the body.
    Truncated,
    /// No answer: closed or reset.
    NoAnswer,
    /// The TLS handshake failed.
    TlsRefused,
}

/// A request as an upstream saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Forwarded {
    /// `METHOD target VERSION`.
    pub line: String,
    /// Host or `:authority`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// `name: value`, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// The body.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// Trailers, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trailers: Vec<String>,
    /// Whether the body broke off.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// SNI, ALPN and client certificate of a TLS upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<String>,
}

/// How Remora's outcome differs from Envoy's: the fields that are here replace Envoy's.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Patch {
    /// Row of docs/differences-from-envoy.md.
    pub id: String,
    /// Remora answers itself with this status and forwards nothing; headers and body are its own.
    pub answer: Option<u16>,
    /// Remora does what Envoy does with that other request of the case.
    pub like: Option<String>,
    pub status: Option<u16>,
    pub version: Option<String>,
    pub interim: Option<Vec<u16>>,
    pub body: Option<String>,
    pub trailers: Option<Vec<String>>,
    pub end: Option<End>,
    pub tunnel: Option<String>,
    pub closed: Option<bool>,
    pub attempts: Option<Vec<String>>,
    pub statuses: Option<BTreeMap<String, usize>>,
    /// Response headers that Remora sends in place of Envoy's of the same name, or besides.
    pub headers_set: Vec<String>,
    /// Names of response headers that Remora does not send.
    pub headers_remove: Vec<String>,
    /// The forwarded request line.
    pub line: Option<String>,
    pub authority: Option<String>,
    pub forwarded_body: Option<String>,
    pub forwarded_trailers: Option<Vec<String>>,
    pub forwarded_set: Vec<String>,
    pub forwarded_remove: Vec<String>,
    /// Fields of the outcome that cannot be compared: `headers`, `body`, `version`, `end`, `forwarded`, `attempts`, `closed`.
    pub unchecked: Vec<String>,
}

/// `expected.yaml`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Outcome of each request.
    pub outcomes: BTreeMap<String, Outcome>,
    /// Lines of the access log, masked and sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

/// A directory of the corpus.
#[derive(Debug)]
pub struct Case {
    /// `NN-name`.
    pub name: String,
    /// The directory.
    pub dir: PathBuf,
    /// `bootstrap.yaml` with its placeholders.
    pub bootstrap: String,
    /// `requests.yaml`.
    pub requests: Requests,
}

impl Case {
    /// Reads the case in `dir`.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        use anyhow::Context as _;
        let read = |file: &str| {
            std::fs::read_to_string(dir.join(file)).with_context(|| format!("{}/{file}", dir.display()))
        };
        let requests: Requests = serde_saphyr::from_str(&read("requests.yaml")?)
            .map_err(|e| anyhow::anyhow!("{}/requests.yaml: {e}", dir.display()))?;
        let mut names = std::collections::HashSet::new();
        for request in &requests.requests {
            anyhow::ensure!(names.insert(&request.name), "{}: {} twice", dir.display(), request.name);
        }
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { name, dir: dir.to_owned(), bootstrap: read("bootstrap.yaml")?, requests })
    }

    /// Reads `expected.yaml`.
    pub fn expected(&self) -> anyhow::Result<Expected> {
        let path = self.dir.join("expected.yaml");
        let text = std::fs::read_to_string(&path).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))?;
        serde_saphyr::from_str(&text).map_err(|e| anyhow::anyhow!("{}: {e}", path.display()))
    }

    /// Writes `expected.yaml`.
    pub fn record(&self, expected: &Expected) -> anyhow::Result<()> {
        let text = serde_saphyr::to_string(expected)?;
        let head =
            "# Recorded from Envoy 1.40.0 by ORACLE_RECORD=1 (see tests/oracle/README.md). Do not edit.\n";
        Ok(std::fs::write(self.dir.join("expected.yaml"), format!("{head}{text}"))?)
    }
}

/// All cases, in order of their numbers.
pub fn corpus(root: &Path) -> anyhow::Result<Vec<Case>> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.join("bootstrap.yaml").exists())
        .collect();
    dirs.sort();
    dirs.iter().map(|dir| Case::load(dir)).collect()
}
