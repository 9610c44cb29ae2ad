//! `remora control` and the commands as processes.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use http::Method;
use remora_control::client::Server;
use serde_json::{Value, json};

use crate::support::{ROUTE, SERVICE, until};

struct Control {
    child: Child,
    rest: String,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn start(data: &Path, more: &[&str]) -> Control {
    let addresses = data.join("addresses.json");
    let _ = std::fs::remove_file(&addresses);
    let child = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args([
            "control",
            "--listen-xds",
            "127.0.0.1:0",
            "--listen-tls",
            "127.0.0.1:0",
            "--listen-rest",
            "127.0.0.1:0",
            "--log-level",
            "error",
            "--data",
        ])
        .arg(data)
        .arg("--address-path")
        .arg(&addresses)
        .args(more)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let read = || serde_json::from_str::<Value>(&std::fs::read_to_string(&addresses).ok()?).ok();
    until("the addresses", async || read().is_some()).await;
    let rest = format!("http://{}", read().unwrap()["rest"].as_str().unwrap());
    let server = Server::at(&rest).unwrap();
    until("it is ready", async || server.call(Method::GET, "/readyz", None).await.is_ok()).await;
    Control { child, rest }
}

fn remora(control: &Control, args: &[&str]) -> (Option<i32>, String, String) {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args(args)
        .env("REMORA_SERVER", &control.rest)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test]
async fn what_was_applied_survives_kill_9_of_the_control_plane() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..4 {
        let mut control = start(folder.path(), &[]).await;
        let server = Server::at(&control.rest).unwrap();
        let list = server.call(Method::GET, "/api/v1/services", None).await.unwrap();
        assert_eq!(
            list["items"].as_array().unwrap().len(),
            round * 5,
            "every one that was acknowledged, and no other"
        );
        for i in 0..5 {
            let text = SERVICE.replace("name: shop", &format!("name: shop-{round}-{i}"));
            let body = json!({"files": [{"name": "a", "text": text}]});
            server.call(Method::POST, "/remora/v1/apply", Some(&body)).await.unwrap();
        }
        control.child.kill().unwrap();
        control.child.wait().unwrap();
    }
}

#[tokio::test]
async fn the_commands_have_the_habits_of_kubectl() {
    let folder = tempfile::tempdir().unwrap();
    let control = start(folder.path(), &[]).await;
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, SERVICE).unwrap();
    let path = file.to_str().unwrap();

    let (code, out, _) = remora(&control, &["diff", "-f", path]);
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("+++ new/Service/default/shop") && !out.contains('\x1b'), "{out}");
    assert_eq!(
        remora(&control, &["apply", "-f", path, "--dry-run=server"]).1,
        "service/shop created (server dry run)\n"
    );
    assert_eq!(
        remora(&control, &["apply", "-f", path]),
        (Some(0), "service/shop created\n".into(), String::new())
    );
    assert_eq!(remora(&control, &["apply", "-f", path]).1, "service/shop unchanged\n");
    assert_eq!(remora(&control, &["diff", "-f", path]), (Some(0), String::new(), String::new()));

    let (code, out, _) = remora(&control, &["get", "svc"]);
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(code, Some(0));
    assert_eq!(lines[0], ["NAME", "PORTS", "SELECTOR", "ACCEPTED", "PROGRAMMED", "AGE"]);
    assert_eq!(lines[1][..4], ["shop", "8080", "app=shop", "True"]);
    let (_, yaml, _) = remora(&control, &["get", "service/shop", "-o", "yaml"]);
    assert!(yaml.starts_with("apiVersion: v1\nkind: Service\n"), "{yaml}");
    std::fs::write(&file, &yaml).unwrap();
    assert_eq!(
        remora(&control, &["apply", "-f", path]).1,
        "service/shop unchanged\n",
        "what was got may be applied"
    );
    assert_eq!(remora(&control, &["get", "services", "-o", "name"]).1, "service/shop\n");

    std::fs::write(&file, SERVICE.replace("port: 8080", "prot: 8080")).unwrap();
    let (code, _, error) = remora(&control, &["apply", "-f", path]);
    assert_eq!(code, Some(1));
    assert!(error.contains("mesh.yaml:4:") && error.contains("did you mean port?"), "{error}");
    assert_eq!(remora(&control, &["diff", "-f", path]).0, Some(2));

    let (code, _, error) = remora(&control, &["get", "svc", "nobody"]);
    assert_eq!(
        (code, error.as_str()),
        (Some(1), "Error from server (NotFound): Service default/nobody does not exist\n")
    );
    assert_eq!(remora(&control, &["get", "pods"]).0, Some(1));
    let (code, out, _) = remora(&control, &["status"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("1 documents, 0 instances, 0 proxies"), "{out}");
    assert_eq!(
        remora(&control, &["delete", "svc", "shop"]),
        (Some(0), "service/shop deleted\n".into(), String::new())
    );
    assert_eq!(remora(&control, &["delete", "svc", "shop"]).0, Some(1));
    assert_eq!(remora(&control, &["delete", "svc", "shop", "--ignore-not-found"]).0, Some(0));
    assert_eq!(remora(&control, &["get", "svc"]).2, "No resources found in default namespace.\n");
}

#[tokio::test]
async fn what_is_got_of_several_kinds_is_one_text_and_what_is_gone_need_not_be_there_to_be_removed() {
    let folder = tempfile::tempdir().unwrap();
    let control = start(folder.path(), &[]).await;
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, format!("{SERVICE}---\n{ROUTE}")).unwrap();
    let path = file.to_str().unwrap();
    assert_eq!(remora(&control, &["apply", "-f", path]).0, Some(0));
    for words in [&["all"][..], &["svc/shop", "httproute/shop"]] {
        let (_, json, _) = remora(&control, &[&["get", "-o", "json"], words].concat());
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (value["kind"].as_str(), value["items"].as_array().map(Vec::len)),
            (Some("List"), Some(2))
        );
        let (_, yaml, _) = remora(&control, &[&["get", "-o", "yaml"], words].concat());
        std::fs::write(&file, yaml).unwrap();
        let (code, out, error) = remora(&control, &["apply", "-f", path]);
        assert_eq!((code, out.matches(" unchanged\n").count()), (Some(0), 2), "{out}{error}");
    }

    let delete = ["delete", "-f", path, "--ignore-not-found"];
    assert_eq!(remora(&control, &["delete", "httproute", "shop"]).0, Some(0));
    assert_eq!(remora(&control, &["delete", "-f", path]).0, Some(1));
    assert_eq!(remora(&control, &delete), (Some(0), "service/shop deleted\n".into(), String::new()));
    assert_eq!(remora(&control, &delete), (Some(0), String::new(), String::new()));
}

#[tokio::test]
async fn people_see_and_change_the_authority_by_commands() {
    let folder = tempfile::tempdir().unwrap();
    let control = start(folder.path(), &["--root-overlap", "0s", "--trust-domain", "test"]).await;
    let own = "spiffe://test/ns/remora-system/sa/remora-control";
    until("its own certificate", async || remora(&control, &["certs"]).1.contains(own)).await;
    let (code, out, _) = remora(&control, &["certs"]);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("trust domain test: 1 roots, 0 certificates revoked\n\nROOT  "), "{out}");

    let (code, text, _) = remora(&control, &["token", "create", "--service-account", "shop", "--uses", "3"]);
    assert_eq!((code, text.split('-').count()), (Some(0), 4), "{text}");
    let id = text.split('-').nth(1).unwrap();
    let (_, list, _) = remora(&control, &["token", "list"]);
    let rows: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[1][..3], [id, "spiffe://test/ns/default/sa/shop", "3"]);
    assert_eq!(remora(&control, &["token", "delete", id]).1, format!("token/{id} deleted\n"));
    assert_eq!(remora(&control, &["token", "delete", id]).0, Some(1));
    assert_eq!(remora(&control, &["token", "list"]).2, "No tokens found.\n");

    let (code, out, _) = remora(&control, &["certs", "rotate-root"]);
    assert!(code == Some(0) && out.ends_with(" announced\n"), "{out}");
    let json = || serde_json::from_str::<Value>(&remora(&control, &["certs", "-o", "json"]).1).unwrap();
    until("the new root signs", async || json()["roots"][1]["phase"] == "Signing").await;
    let (code, roots, _) = remora(&control, &["certs", "roots"]);
    assert!(code == Some(0) && roots.starts_with("-----BEGIN CERTIFICATE-----\n"), "{roots}");
    assert!(roots.ends_with("\n-----END CERTIFICATE-----\n"), "{roots}");
    assert_eq!(roots.matches("BEGIN").count(), 2, "one retires, and is trusted still");
    let serial = json()["issued"][0]["serial"].as_str().unwrap().to_owned();
    assert_eq!(
        remora(&control, &["certs", "revoke", "--serial", &serial]).1,
        format!("certificate {serial} revoked\n")
    );
    assert_eq!(json()["revoked"][0]["serial"], serial.as_str());
    let identity = ["--identity", "spiffe://test/ns/default/sa/shop"];
    let revoke = [&["certs", "revoke"][..], &identity].concat();
    assert!(remora(&control, &revoke).1.contains("gets no certificates any more"));
    assert!(
        remora(&control, &["certs"]).1.contains("\nspiffe://test/ns/default/sa/shop gets no certificates\n")
    );
    assert_eq!(remora(&control, &[&["certs", "restore"][..], &identity].concat()).0, Some(0));
    let root = |n: usize| json()["roots"][n]["id"].as_str().unwrap().to_owned();
    let (old, signing) = (root(0), root(1));
    assert_eq!(remora(&control, &["certs", "distrust-root", &signing]).0, Some(1));
    let (code, out, _) = remora(&control, &["certs", "distrust-root", &old[..12]]);
    assert_eq!((code, out), (Some(0), format!("root {old} is trusted no more\n")));
    assert_eq!(root(0), signing);
    assert_eq!(remora(&control, &["certs", "revoke"]).0, Some(2));
    assert_eq!(remora(&control, &["certs", "revoke", "--serial", "shop"]).0, Some(1));
}

#[tokio::test]
async fn a_folder_is_followed() {
    let (folder, mesh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(mesh.path().join("a.yaml"), SERVICE).unwrap();
    let control = start(folder.path(), &["-f", mesh.path().to_str().unwrap()]).await;
    let names = || {
        let (_, out, _) = remora(&control, &["get", "svc", "-o", "name"]);
        out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    until("the folder is in the store", async || names() == ["service/shop"]).await;
    std::fs::write(mesh.path().join("b.yaml"), SERVICE.replace("name: shop", "name: stock")).unwrap();
    until("a new file", async || names() == ["service/shop", "service/stock"]).await;
    // A mistake changes nothing, and is told.
    std::fs::write(mesh.path().join("b.yaml"), "apiVersion: v1\nkind: Servce\n").unwrap();
    until("the mistake", async || remora(&control, &["status", "-o", "json"]).1.contains("b.yaml:2:1: kind"))
        .await;
    assert_eq!(names(), ["service/shop", "service/stock"]);
    std::fs::remove_file(mesh.path().join("b.yaml")).unwrap();
    until("a file that went", async || names() == ["service/shop"]).await;

    // A mistake that goes away without a change of the folder: the Service that it refers to comes.
    std::fs::write(mesh.path().join("c.yaml"), ROUTE.replace("name: shop", "name: late")).unwrap();
    until("it is missed", async || remora(&control, &["status", "-o", "json"]).1.contains("default/late"))
        .await;
    let server = Server::at(&control.rest).unwrap();
    let body = json!({"files": [{"name": "a", "text": SERVICE.replace("name: shop", "name: late")}]});
    server.call(Method::POST, "/remora/v1/apply", Some(&body)).await.unwrap();
    until("the route", async || remora(&control, &["get", "httproute", "late"]).0 == Some(0)).await;

    let told = || {
        let log = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
        let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let by_folder = lines.iter().filter(|line| line["actor"].as_str().unwrap().starts_with("folder "));
        by_folder
            .map(|line| format!("{} {}", line["verb"], line["name"]).replace('"', ""))
            .collect::<Vec<_>>()
    };
    let did = ["created shop", "created stock", "deleted stock", "created late"];
    until("all of that is in the audit log", async || told() == did).await;
}

#[test]
fn a_control_plane_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("remora.redb"), "no database ".repeat(1000)).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_remora"))
        .args([
            "control",
            "--listen-xds",
            "127.0.0.1:0",
            "--listen-tls",
            "127.0.0.1:0",
            "--listen-rest",
            "127.0.0.1:0",
            "--data",
        ])
        .arg(folder.path())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("the store is corrupt") && error.contains("remora.redb"), "{error}");
}

#[tokio::test]
async fn a_program_is_registered_while_it_runs_and_ends_with_its_status() {
    let folder = tempfile::tempdir().unwrap();
    let control = start(folder.path(), &[]).await;
    let run = |script: &str| {
        Command::new(env!("CARGO_BIN_EXE_remora"))
            .args([
                "run",
                "--service",
                "shop",
                "--port",
                "8080",
                "--no-sidecar",
                "--name",
                "shop-1",
                "--drain-time",
                "200ms",
            ])
            .args(["--", "sh", "-c", script])
            .env("REMORA_SERVER", &control.rest)
            .spawn()
            .unwrap()
    };
    let server = Server::at(&control.rest).unwrap();
    let health = async || {
        let list = server.call(Method::GET, "/remora/v1/instances", None).await.unwrap();
        list["items"][0]["spec"]["health"].as_str().map(str::to_owned)
    };
    let done = run("exit 7").wait().unwrap();
    assert_eq!(done.code(), Some(7));
    assert_eq!(health().await, None, "it said good-bye");

    let mut asked = run("trap 'exit 3' TERM; while :; do sleep 0.05; done");
    until("it is there", async || health().await.as_deref() == Some("Ready")).await;
    let pid = rustix::process::Pid::from_raw(asked.id().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    until("it drains", async || health().await.as_deref() != Some("Ready")).await;
    assert_eq!(asked.wait().unwrap().code(), Some(3));
    assert_eq!(health().await, None);
    let missing = run("x").wait().unwrap();
    assert_eq!(missing.code(), Some(127), "what the shell says");
}
