//! `remora inject` as a person runs it, and the probes of a pod at the sidecar that it was given.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use remora_control::inject::{Settings, object};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const CONTROL: &str = "10.96.0.12:15012";

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/examples/pods/web.yaml")
}

fn inject(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_remora"))
        .arg("inject")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may end before it has read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_example_gets_a_sidecar() {
    let output = inject(&["-f", example().to_str().unwrap(), "--control", CONTROL], "");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(said(&output), "Deployment shop/web: injected\n");
    let text = out(&output);
    assert!(text.starts_with("# A Deployment for"), "documents without pods stay: {text}");
    for part in ["name: remora-init", "name: remora-proxy", "path: /app-health/web/livez", "cpu: 50m"] {
        assert!(text.contains(part), "{part}");
    }
    let again = inject(&["-f", "-", "--control", CONTROL], &text);
    assert_eq!(out(&again), text);
    assert!(said(&again).contains("not injected: it has a sidecar already"));
    kubernetes_reads(&text);
}

/// kubectl decodes with the types of the API, and needs no server for it.
fn kubernetes_reads(text: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pods.yaml");
    let (_account, deployment) = text.split_once("---\n").unwrap();
    std::fs::write(&file, deployment).unwrap();
    let kubectl = Command::new("kubectl")
        .args(["set", "env", "--local", "-o", "json", "-f", file.to_str().unwrap(), "SEEN=yes"])
        .env("HOME", folder.path())
        .output();
    let Ok(output) = kubectl else {
        return eprintln!("SKIPPED: there is no kubectl to read the result with");
    };
    assert!(output.status.success(), "{}", said(&output));
    assert!(out(&output).contains("serviceAccountToken"), "{}", out(&output));
}

#[test]
fn mistakes_have_a_place_and_nothing_is_printed() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {remora.dev/proxy-cpu: much}}\nspec: {containers: [{name: a}]}\n";
    let output = inject(&["-f", "-", "--control", CONTROL], &format!("{pod}---\n{pod}---\na: b: c\n"));
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(out(&output), "");
    let said = said(&output);
    assert!(said.starts_with("stdin:1:1: Pod a: metadata.annotations[remora.dev/proxy-cpu]: "), "{said}");
    assert!(said.contains("\nstdin:6:1: Pod a: "), "{said}");
    assert!(said.ends_with("remora inject: 3 mistake(s), nothing is printed\n"), "{said}");
}

#[test]
fn exit_statuses() {
    assert_eq!(inject(&["-f", "/nonexistent.yaml", "--control", CONTROL], "").status.code(), Some(1));
    assert_eq!(inject(&["-f", "-"], "").status.code(), Some(2), "--control is missing");
    assert_eq!(
        inject(&["-f", "-", "--control", CONTROL, "--cluster-version", "new"], "").status.code(),
        Some(2)
    );
    let host = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostNetwork: true, containers: [{name: a}]}\n";
    let output = inject(&["-f", "-", "--control", CONTROL], host);
    assert_eq!((output.status.code(), out(&output)), (Some(0), host.to_owned()));
    assert!(said(&output).starts_with("Pod a: not injected: hostNetwork"), "{}", said(&output));
}

/// A sidecar process, which ends with this value.
struct Sidecar(Child);

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Status of an answer; 0 when there is none.
fn ask(port: u16, method: &str, path: &str) -> u16 {
    let exchange = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = exchange().unwrap_or_default();
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Answers 200 to `GET /live?full=1`, 500 to anything else.
fn program() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut seen = Vec::new();
            let mut buffer = [0; 1024];
            while !seen.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(n) if n > 0 => seen.extend_from_slice(&buffer[..n]),
                    _ => break,
                }
            }
            let status = if seen.starts_with(b"GET /live?full=1 ") { "200 OK" } else { "500 No" };
            let _ = write!(stream, "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    port
}

/// The bootstrap that a pod was given, without its control plane and on ports that are free here.
fn bootstrap(pod: &Value, admin: u16, health: u16) -> String {
    let proxy = pod["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["name"] == "remora-proxy")
        .unwrap();
    let text = proxy["args"][2].as_str().unwrap();
    let text = text.replace("\"port_value\":15000", &format!("\"port_value\":{admin}"));
    let text = text.replace("\"port_value\":15021", &format!("\"port_value\":{health}"));
    let mut bootstrap: Value = serde_json::from_str(&text).unwrap();
    bootstrap.as_object_mut().unwrap().remove("dynamic_resources");
    let statics = &mut bootstrap["static_resources"];
    statics["clusters"].as_array_mut().unwrap().retain(|cluster| cluster["name"] != "remora-control");
    statics["listeners"].as_array_mut().unwrap().retain(|listener| listener["name"] == "health");
    bootstrap.to_string()
}

#[tokio::test]
async fn probes_of_the_program_are_answered_by_the_sidecar() {
    let (admin, health, program, database) = (free(), free(), program(), free());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"containers": [
            {
                "name": "web",
                "livenessProbe": {"httpGet": {"path": "/live?full=1", "port": program}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": program}},
            },
            {"name": "db", "readinessProbe": {"tcpSocket": {"port": database}, "periodSeconds": 3600}},
        ]},
    });
    let pod = object(&pod, &Settings::new(CONTROL.parse().unwrap())).unwrap().object.unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args(["proxy", "--concurrency", "1", "--log-level", "warn", "--config-yaml"])
        .arg(bootstrap(&pod, admin, health))
        .spawn()
        .unwrap();
    let _sidecar = Sidecar(child);
    until("it is ready", || ask(health, "GET", "/healthz/ready") == 200).await;
    let ready = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args(["ready", "--for", "10s", "--admin", &format!("127.0.0.1:{admin}")])
        .status();
    assert!(ready.unwrap().success());

    let path = |name: &str, probe: &str| {
        let list = pod["spec"]["containers"].as_array().unwrap();
        let container = list.iter().find(|c| c["name"] == name).unwrap();
        container[probe]["httpGet"]["path"].as_str().unwrap().to_owned()
    };
    assert_eq!(ask(health, "GET", &path("web", "livenessProbe")), 200);
    assert_eq!(ask(health, "GET", &path("web", "readinessProbe")), 500, "the program's own answer");
    assert_eq!(ask(health, "POST", &path("web", "livenessProbe")), 404, "only GET");
    for other in
        ["/", "/live", "/app-health/web", "/app-health/web/livez/more", "/healthcheck", "/quitquitquit"]
    {
        assert_eq!(ask(health, "GET", other), 404, "{other}");
    }

    let db = path("db", "readinessProbe");
    assert_eq!(ask(health, "GET", &db), 503, "nobody listens");
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], database))).unwrap();
    until("the port is seen to be open", || ask(health, "GET", &db) == 200).await;
    drop(listener);
    until("the port is seen to be closed", || ask(health, "GET", &db) == 503).await;
}

#[test]
fn nobody_is_ready_where_nobody_is() {
    let output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args(["ready", "--admin", &format!("127.0.0.1:{}", free())])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).starts_with("remora ready: not ready: "), "{}", said(&output));
}
