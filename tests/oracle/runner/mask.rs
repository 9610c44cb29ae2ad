//! Takes out of a text what differs from run to run: ports, times, ids, paths of this run's directory.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use regex::{Captures, Regex};
use std::collections::BTreeMap;
use std::sync::LazyLock;

static UUID: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b").expect("a valid pattern")
});
static TIME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z").expect("a valid pattern"));
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT")
        .expect("a valid pattern")
});
static HASH: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b[0-9a-f]{64}\b").expect("a valid pattern"));
static PORT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\b[1-6]\d{4}\b").expect("a valid pattern"));
static LOOPBACK: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b127\.0\.0\.1:\d+").expect("a valid pattern"));
/// Envoy's default format: bytes in, bytes out, duration, service time.
static DEFAULT_LOG: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"(" \d{1,3} \S+ \d+ \S+) \d+ (\d+|-) ""#).expect("a valid pattern"));
/// Flags and bytes sent of an answer that the proxy made: the texts differ, so their lengths do.
static OWN_TEXT: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"([ |][A-Z]{2,6}[ |]\d+[ |])\d+\b").expect("a valid pattern"));
/// The value of a cookie that a hash policy makes.
static COOKIE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"="[0-9a-f]{16}""#).expect("a valid pattern"));
/// An address of this machine in base64, as sticky sessions have it: plain, or in a message with when it expires.
static SESSION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\b(MTI3LjAuMC4xOj|Cg8xMjcuMC4wLjE6)[A-Za-z0-9+/]*=*").expect("a valid pattern")
});
/// Several response flags: Envoy writes them as they came, here they have one order.
static FLAGS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b[A-Z]{2,5}(,[A-Z]{2,5})+\b").expect("a valid pattern"));
/// Durations in our own formats are written `ms=…` or `"ms":…`.
static MILLIS: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"(\bms"?[=:])\d+"#).expect("a valid pattern"));

/// Masks texts of one run.
#[derive(Debug, Default, Clone)]
pub struct Mask {
    ports: BTreeMap<u16, String>,
    dir: String,
}

impl Mask {
    /// For a run whose files are in `dir`.
    pub fn new(dir: String) -> Self {
        Self { ports: BTreeMap::new(), dir }
    }
    /// Shows `port` as `{name}`.
    pub fn port(&mut self, port: u16, name: &str) {
        self.ports.insert(port, format!("{{{name}}}"));
    }

    /// Masks a text.
    pub fn text(&self, text: &str) -> String {
        let text = text.replace(&self.dir, "{dir}");
        let text = UUID.replace_all(&text, "{uuid}");
        let text = TIME.replace_all(&text, "{time}");
        let text = DATE.replace_all(&text, "{date}");
        let text = HASH.replace_all(&text, "{sha256}");
        let text = COOKIE.replace_all(&text, "=\"{hash}\"");
        let text = SESSION.replace_all(&text, |c: &Captures<'_>| {
            let bytes = BASE64_STANDARD.decode(&c[0]).unwrap_or_default();
            let decoded = String::from_utf8_lossy(&bytes);
            let address = LOOPBACK.find(&decoded).map_or("", |found| found.as_str());
            format!("{{session {address}}}")
        });
        let text = PORT.replace_all(&text, |c: &Captures<'_>| {
            let known = c[0].parse().ok().and_then(|port: u16| self.ports.get(&port));
            known.cloned().unwrap_or_else(|| c[0].to_owned())
        });
        LOOPBACK.replace_all(&text, "127.0.0.1:{port}").into_owned()
    }

    /// Masks a header field.
    pub fn field(&self, name: &str, value: &str) -> String {
        if name.eq_ignore_ascii_case("x-envoy-upstream-service-time") && value.parse::<u64>().is_ok() {
            return format!("{name}: {{ms}}");
        }
        match coarse(name, value) {
            Some(value) => format!("{name}: {value}"),
            None => format!("{name}: {}", self.text(value)),
        }
    }

    /// Masks a line of an access log; the keys of a JSON line are put in order.
    pub fn log(&self, line: &str) -> String {
        let line = match serde_json::from_str::<BTreeMap<String, serde_json::Value>>(line) {
            Ok(object) => serde_json::to_string(&object).unwrap_or_default(),
            Err(_) => line.to_owned(),
        };
        let line = self.text(&line);
        let line = OWN_TEXT.replace(&line, "$1{length}");
        let line = DEFAULT_LOG.replace(&line, |c: &Captures<'_>| {
            let service = if &c[2] == "-" { "-" } else { "{ms}" };
            format!("{} {{ms}} {service} \"", &c[1])
        });
        let line = FLAGS.replace_all(&line, |c: &Captures<'_>| {
            let mut flags: Vec<&str> = c[0].split(',').collect();
            flags.sort_unstable();
            flags.join(",")
        });
        MILLIS.replace_all(&line, "$1{ms}").into_owned()
    }
}

/// What an upstream is told of the time that is left: in seconds or tenths of one, begun ones counted, so that a wait for a connection
/// makes no difference.
fn coarse(name: &str, value: &str) -> Option<String> {
    let unit = match name.to_ascii_lowercase().as_str() {
        "x-envoy-expected-rq-timeout-ms" => "",
        "grpc-timeout" => "m",
        _ => return None,
    };
    let ms: u64 = value.strip_suffix(unit)?.parse().ok()?;
    let grain = if ms > 1000 { 1000 } else { 100 };
    Some(format!("{}{unit}", ms.div_ceil(grain) * grain))
}

#[cfg(test)]
mod tests {
    use super::Mask;

    #[test]
    fn only_what_differs_from_run_to_run() {
        let mut mask = Mask::new("/tmp/x".into());
        mask.port(45000, "A");
        assert_eq!(mask.text("127.0.0.1:45000 45000 15000 /tmp/x/log"), "127.0.0.1:{A} {A} 15000 {dir}/log");
        assert_eq!(
            mask.text("s=Cg8xMjcuMC4wLjE6NDUwMDA= MTI3LjAuMC4xOjE="),
            "s={session 127.0.0.1:{A}} {session 127.0.0.1:{port}}"
        );
        assert_eq!(mask.text("from 127.0.0.1:51234"), "from 127.0.0.1:{port}");
        assert_eq!(mask.text("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), "{uuid}");
        assert_eq!(mask.field("x-envoy-upstream-service-time", "3"), "x-envoy-upstream-service-time: {ms}");
        assert_eq!(
            mask.field("x-envoy-expected-rq-timeout-ms", "15000"),
            "x-envoy-expected-rq-timeout-ms: 15000"
        );
        assert_eq!(
            mask.field("x-envoy-expected-rq-timeout-ms", "14101"),
            "x-envoy-expected-rq-timeout-ms: 15000"
        );
        assert_eq!(mask.field("grpc-timeout", "199m"), "grpc-timeout: 200m");
        assert_eq!(mask.field("grpc-timeout", "2S"), "grpc-timeout: 2S");
        let log = |line: &str| mask.log(line);
        assert_eq!(
            log(r#""GET / HTTP/1.1" 200 - 0 11 4 3 "-""#),
            r#""GET / HTTP/1.1" 200 - 0 11 {ms} {ms} "-""#
        );
        assert_eq!(
            log(r#""GET / HTTP/1.1" 503 UF 0 95 4 - "-""#),
            r#""GET / HTTP/1.1" 503 UF 0 {length} {ms} - "-""#
        );
        assert_eq!(log("/ 504 UT,URX 2"), log("/ 504 URX,UT 2"));
        assert_eq!(log("503|UF|0|95|ms=4"), "503|UF|0|{length}|ms={ms}");
        assert_eq!(log(r#"{"ms":12,"a":1}"#), r#"{"a":1,"ms":{ms}}"#);
    }
}
