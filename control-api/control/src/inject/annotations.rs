//! What a pod says about its sidecar: `remora.dev/…`, and Istio's common annotations with the same meaning.

use std::collections::BTreeMap;

use clap::ValueEnum;
use remora_xds::{nearest, yaml};
use serde_json::{Map, Value};

use super::{Failure, Interception, Native, STATUS, Settings, values};

/// What one pod is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) native: bool,
    pub(super) interception: Interception,
    pub(super) mode: Mode,
    pub(super) image: String,
    /// By the name of the resource and `requests` or `limits`.
    pub(super) resources: BTreeMap<(&'static str, &'static str), String>,
    pub(super) concurrency: u16,
    pub(super) log_level: String,
    /// The application waits for the sidecar.
    pub(super) hold: bool,
    pub(super) rewrite: bool,
    /// DNS is led to the sidecar, too.
    pub(super) capture_dns: bool,
    /// Seconds; None: what the pod's own time leaves.
    pub(super) drain_time: Option<u16>,
    /// Options of `remora init` and their values.
    pub(super) init: BTreeMap<&'static str, String>,
}

impl Wanted {
    /// Without rules, the kubelet reaches the program as ever.
    pub(super) fn rewrites_probes(&self) -> bool {
        self.rewrite && self.interception != Interception::None
    }
}

/// How the rules lead to the sidecar what comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Redirect,
    /// The program sees its clients' addresses.
    Tproxy,
}

impl Mode {
    fn of(text: &str) -> Option<Self> {
        match text.trim() {
            "REDIRECT" => Some(Self::Redirect),
            "TPROXY" => Some(Self::Tproxy),
            _ => None,
        }
    }
}

/// What a value is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Native,
    Interception,
    Mode,
    Image,
    Resource(&'static str, &'static str),
    Concurrency,
    LogLevel,
    Hold,
    Rewrite,
    CaptureDns,
    DrainTime,
    Ports {
        option: &'static str,
        all: bool,
    },
    Ranges {
        option: &'static str,
        all: bool,
    },
    Interfaces,
    /// Read elsewhere.
    Other,
}

/// What a sidecar asks for.
const REQUESTS: [(&str, &str); 2] = [("cpu", "10m"), ("memory", "20Mi")];

const OURS: &str = "remora.dev/";

/// What ours say about interception, without the prefix.
const OF_INTERCEPTION: [&str; 2] = ["interception", "interception-mode"];

/// Ours without the prefix, and Istio's. Ours win.
const KNOWN: [(Field, &str, Option<&str>); 26] = [
    (Field::Other, "inject", Some("sidecar.istio.io/inject")),
    (Field::Other, "injected", None),
    (Field::Other, "origin", None),
    (Field::Other, "cni", None),
    (Field::Other, "sidecar", None),
    (Field::Native, "native-sidecar", Some("sidecar.istio.io/nativeSidecar")),
    (Field::Interception, "interception", None),
    // Istio's is about the line above, too: ISTIOS_MODE.
    (Field::Mode, "interception-mode", None),
    (Field::Image, "proxy-image", Some("sidecar.istio.io/proxyImage")),
    (Field::Resource("requests", "cpu"), "proxy-cpu", Some("sidecar.istio.io/proxyCPU")),
    (Field::Resource("limits", "cpu"), "proxy-cpu-limit", Some("sidecar.istio.io/proxyCPULimit")),
    (Field::Resource("requests", "memory"), "proxy-memory", Some("sidecar.istio.io/proxyMemory")),
    (Field::Resource("limits", "memory"), "proxy-memory-limit", Some("sidecar.istio.io/proxyMemoryLimit")),
    (Field::Concurrency, "concurrency", None),
    (Field::LogLevel, "log-level", Some("sidecar.istio.io/logLevel")),
    (Field::Hold, "hold-application", None),
    (Field::Rewrite, "rewrite-probes", Some("sidecar.istio.io/rewriteAppHTTPProbers")),
    (Field::DrainTime, "drain-time-s", None),
    (Field::CaptureDns, "capture-dns", None),
    (
        Field::Ports { option: "--include-inbound-ports", all: true },
        "include-inbound-ports",
        Some("traffic.sidecar.istio.io/includeInboundPorts"),
    ),
    (
        Field::Ports { option: "--exclude-inbound-ports", all: false },
        "exclude-inbound-ports",
        Some("traffic.sidecar.istio.io/excludeInboundPorts"),
    ),
    (
        Field::Ranges { option: "--include-outbound-cidrs", all: true },
        "include-outbound-cidrs",
        Some("traffic.sidecar.istio.io/includeOutboundIPRanges"),
    ),
    (
        Field::Ranges { option: "--exclude-outbound-cidrs", all: false },
        "exclude-outbound-cidrs",
        Some("traffic.sidecar.istio.io/excludeOutboundIPRanges"),
    ),
    (
        Field::Ports { option: "--include-outbound-ports", all: false },
        "include-outbound-ports",
        Some("traffic.sidecar.istio.io/includeOutboundPorts"),
    ),
    (
        Field::Ports { option: "--exclude-outbound-ports", all: false },
        "exclude-outbound-ports",
        Some("traffic.sidecar.istio.io/excludeOutboundPorts"),
    ),
    (Field::Interfaces, "exclude-interfaces", Some("traffic.sidecar.istio.io/excludeInterfaces")),
];

/// Istio's settings of the sidecar, as YAML in an annotation.
const PROXY_CONFIG: &str = "proxy.istio.io/config";

/// Istio's one word for whether there are rules, and which.
const ISTIOS_MODE: &str = "sidecar.istio.io/interceptionMode";

/// What the pod is to have, and what is to be said about its annotations.
///
/// # Errors
/// A value cannot be used, or a name of ours is not known.
pub(super) fn read(template: &Value, settings: &Settings) -> Result<(Wanted, Vec<String>), Failure> {
    let none = Map::new();
    let annotations = template["metadata"]["annotations"].as_object().unwrap_or(&none);
    let mut wanted = defaults(settings);
    let mut notes = unknown(annotations)?;
    if let Some(text) = text_of(annotations, PROXY_CONFIG)? {
        proxy_config(text, &mut wanted, settings, &mut notes)?;
    }
    let unusable = |name: &str, text: &str, fix: String| {
        Failure::new(annotation(name), format!("{text:?} cannot be used"), fix)
    };
    if let Some(text) = text_of(annotations, ISTIOS_MODE)? {
        wanted.istios_mode(text, settings).map_err(|fix| unusable(ISTIOS_MODE, text, fix))?;
    }
    // A pod that says in our words what it wants must not get no rules at all by Istio's.
    if OF_INTERCEPTION.iter().any(|name| annotations.contains_key(&format!("{OURS}{name}"))) {
        wanted.interception = settings.interception;
    }
    for (field, name, istio) in KNOWN {
        let own = format!("{OURS}{name}");
        for name in istio.into_iter().chain([own.as_str()]) {
            let Some(text) = text_of(annotations, name)? else { continue };
            wanted.set(field, text, settings).map_err(|fix| unusable(name, text, fix))?;
        }
    }
    wanted.consistent()?;
    wanted.request()?;
    Ok((wanted, notes))
}

fn annotation(name: &str) -> String {
    format!("metadata.annotations[{name}]")
}

fn text_of<'a>(annotations: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Failure> {
    match annotations.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        // As the API server does.
        Some(_) => Err(Failure::new(annotation(name), "is not a text", "write it between quotes")),
    }
}

fn defaults(settings: &Settings) -> Wanted {
    Wanted {
        native: settings.is_native(settings.native),
        interception: settings.interception,
        mode: Mode::Redirect,
        image: settings.image.clone(),
        resources: BTreeMap::new(),
        concurrency: settings.concurrency,
        log_level: "info".into(),
        hold: true,
        rewrite: true,
        capture_dns: false,
        drain_time: None,
        init: BTreeMap::new(),
    }
}

/// # Errors
/// A name of ours that is not known.
fn unknown(annotations: &Map<String, Value>) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    for name in annotations.keys() {
        if let Some(own) = name.strip_prefix(OURS) {
            if KNOWN.iter().any(|(_, known, _)| *known == own) {
                continue;
            }
            let near = nearest(own, KNOWN.iter().map(|(_, known, _)| *known));
            let fix = near.map_or_else(
                || format!("known are {}", KNOWN.map(|(_, known, _)| known).join(", ")),
                |near| format!("did you mean {OURS}{near}?"),
            );
            return Err(Failure::new(annotation(name), "is not known", fix));
        }
        let istio = ["sidecar.istio.io/", "traffic.sidecar.istio.io/", "proxy.istio.io/"];
        let known = [PROXY_CONFIG, ISTIOS_MODE].contains(&name.as_str())
            || KNOWN.iter().any(|(_, _, istio)| *istio == Some(name.as_str()));
        if istio.iter().any(|prefix| name.starts_with(prefix)) && !known {
            notes.push(format!("the annotation {name} means nothing to Remora"));
        }
    }
    debug_assert!(STATUS.starts_with(OURS));
    Ok(notes)
}

impl Wanted {
    fn set(&mut self, field: Field, text: &str, settings: &Settings) -> Result<(), String> {
        match field {
            Field::Other => {}
            Field::Native => {
                self.native = settings.is_native(choice::<Native>(text, "\"auto\", \"true\" or \"false\"")?);
            }
            Field::Interception => self.interception = choice(text, "\"init\", \"cni\" or \"none\"")?,
            Field::Mode => {
                let fix = "write \"REDIRECT\" or \"TPROXY\"; without rules is remora.dev/interception: none";
                self.mode = Mode::of(text).ok_or(fix)?;
            }
            Field::Image => self.image = values::image(text)?,
            Field::Resource(kind, name) => {
                self.resources.insert((kind, name), values::quantity(text)?);
            }
            Field::Concurrency => self.concurrency = values::number(text, 1, 1024)?,
            Field::LogLevel => self.log_level = values::level(text)?,
            Field::Hold => self.hold = values::boolean(text)?,
            Field::Rewrite => self.rewrite = values::boolean(text)?,
            Field::CaptureDns => self.capture_dns = values::boolean(text)?,
            Field::DrainTime => self.drain_time = Some(values::number(text, 1, 3600)?),
            Field::Ports { option, all } => self.option(option, values::ports(text, all)?),
            Field::Ranges { option, all } => self.option(option, values::ranges(text, all)?),
            Field::Interfaces => self.option("--exclude-interfaces", values::interfaces(text)?),
        }
        Ok(())
    }

    /// In place of an earlier one of Istio's: its annotation counts more than its settings.
    fn istios_mode(&mut self, text: &str, settings: &Settings) -> Result<(), String> {
        (self.interception, self.mode) = match Mode::of(text) {
            Some(mode) => (settings.interception, mode),
            None if text.trim() == "NONE" => (Interception::None, Mode::Redirect),
            None => return Err("write \"REDIRECT\", \"TPROXY\" or \"NONE\"".into()),
        };
        Ok(())
    }

    fn option(&mut self, name: &'static str, value: Option<String>) {
        match value {
            Some(value) => self.init.insert(name, value),
            None => self.init.remove(name),
        };
    }

    /// # Errors
    /// Values that contradict each other.
    fn consistent(&self) -> Result<(), Failure> {
        if self.mode == Mode::Tproxy && self.interception != Interception::Init {
            let message = "TPROXY, but its rules and routes are made by an init container only";
            let fix = "set remora.dev/interception: init, or REDIRECT";
            return Err(Failure::new(annotation("remora.dev/interception-mode"), message, fix));
        }
        let dns = self.capture_dns.then_some("capture-dns");
        let options = self.init.keys().map(|name| name.trim_start_matches("--"));
        let led = options.chain(dns).collect::<Vec<_>>();
        if self.interception == Interception::None && !led.is_empty() {
            let names = led.join(", ");
            let message = format!("none, but there is something to lead to the sidecar: {names}");
            return Err(Failure::new(
                annotation("remora.dev/interception"),
                message,
                "remove one of the two",
            ));
        }
        Ok(())
    }
}

impl Wanted {
    /// Requests that nobody asked for: the usual ones, or the limits where those are lower.
    ///
    /// # Errors
    /// A limit is lower than a request.
    fn request(&mut self) -> Result<(), Failure> {
        for (name, usual) in REQUESTS {
            let limit = self.resources.get(&("limits", name)).cloned();
            let below = |request: &str| {
                limit.as_ref().filter(|limit| values::amount(limit) < values::amount(request)).cloned()
            };
            let Some(request) = self.resources.get(&("requests", name)) else {
                let request = below(usual).unwrap_or_else(|| usual.to_owned());
                self.resources.insert(("requests", name), request);
                continue;
            };
            if let Some(limit) = below(request) {
                let message = format!("{limit} is less than the request, {request}");
                let at = annotation(&format!("remora.dev/proxy-{name}-limit"));
                return Err(Failure::new(at, message, "raise the limit, or lower the request"));
            }
        }
        Ok(())
    }
}

fn choice<T: ValueEnum>(text: &str, all: &str) -> Result<T, String> {
    T::from_str(text.trim(), false).map_err(|_| format!("write {all}"))
}

/// `holdApplicationUntilProxyStarts`, `concurrency`, `interceptionMode` and `terminationDrainDuration` (whole seconds) of Istio's ProxyConfig.
fn proxy_config(
    text: &str,
    wanted: &mut Wanted,
    settings: &Settings,
    notes: &mut Vec<String>,
) -> Result<(), Failure> {
    let wrong = |message: String, fix: &str| Failure::new(annotation(PROXY_CONFIG), message, fix);
    let node = yaml::parse(text).map_err(|errors| {
        let first = errors.first().map(|e| e.message.clone()).unwrap_or_default();
        wrong(format!("is no YAML: {first}"), "write holdApplicationUntilProxyStarts: true")
    })?;
    let entries = match &node.value {
        yaml::Value::Map(entries) => entries,
        _ if node.is_null() => return Ok(()),
        _ => return Err(wrong("is no mapping".into(), "write holdApplicationUntilProxyStarts: true")),
    };
    for entry in entries.iter() {
        let value = match &entry.node.value {
            yaml::Value::Scalar(scalar) => scalar.text.as_ref(),
            _ => "",
        };
        let set = match entry.key.as_ref() {
            "holdApplicationUntilProxyStarts" => values::boolean(value).map(|hold| wanted.hold = hold),
            // 0 is Istio's word for as many as there are CPUs, which the sidecar does not know without a limit.
            "concurrency" => values::number(value, 1, 1024).map(|n| wanted.concurrency = n),
            "interceptionMode" => wanted.istios_mode(value, settings),
            "terminationDrainDuration" => {
                let seconds = value.strip_suffix('s').unwrap_or(value);
                values::number(seconds, 1, 3600)
                    .map(|n| wanted.drain_time = Some(n))
                    .map_err(|fix| format!("{fix}, and s"))
            }
            other => {
                notes.push(format!("{other} in the annotation {PROXY_CONFIG} means nothing to Remora"));
                Ok(())
            }
        };
        set.map_err(|fix| wrong(format!("{}: {value:?} cannot be used", entry.key), &fix))?;
    }
    Ok(())
}

/// Names of ours, without the prefix.
#[cfg(test)]
pub(super) fn known() -> impl Iterator<Item = &'static str> {
    KNOWN.iter().map(|(_, name, _)| *name)
}
