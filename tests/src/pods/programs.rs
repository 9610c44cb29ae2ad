//! The programs in the pods, as Debian and PyPI have them.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use super::{Pod, Rig};
use crate::netns::runs;

/// Says aloud that the Python packages are missing, if so.
pub(super) fn no_python() -> bool {
    let found = runs(Command::new(python()).args(["-c", "import grpc, websockets"]));
    if !found {
        let why = format!("no grpcio and websockets for {}: run tests/pods/setup.sh", python());
        // Not captured by the test runner.
        let _ = writeln!(std::io::stderr(), "SKIPPED: pods: {why}");
    }
    !found
}

/// The interpreter that `tests/pods/setup.sh` has given its packages.
#[must_use]
pub fn python() -> String {
    let made = std::env::var("ACCEPTANCE_DIR");
    let made = made.unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../target/acceptance").into());
    format!("{made}/apps/bin/python")
}

/// Programs that are Python.
#[must_use]
pub fn script() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/pods/programs.py").into()
}

impl Rig {
    pub(super) fn start_programs(&mut self) {
        for pod in &mut self.pods {
            match pod.spec.app {
                "web" => nginx(pod),
                "cache" => pod.start(
                    "redis",
                    &["redis-server", "--bind", "*", "-::*", "--protected-mode", "no", "--save", ""],
                ),
                "db" => mariadb(pod),
                "echo" => {
                    pod.start("grpc", &[&python(), "-B", &script(), "grpc-server", "50051"]);
                    pod.start("websocket", &[&python(), "-B", &script(), "websocket-server", "8765"]);
                }
                _ => {}
            }
        }
        let site = self.files.root.join("outside");
        fs::create_dir_all(&site).expect("folder");
        // Its name in front of what it was asked for.
        let conf = configuration(&site, "listen 80; listen [::]:80;", "outside $request_uri");
        let outside = self.network.outside.command(&["setpriv", "--pdeathsig", "KILL", "nginx", "-c", &conf]);
        let started = { outside }.args(["-p", &site.display().to_string()]).spawn().expect("nginx outside");
        self.outside = Some(started.into());
    }

    pub(super) async fn programs_listen(&self) {
        for pod in &self.pods {
            for port in pod.spec.ports {
                pod.listens(*port).await;
            }
        }
    }
}

/// Answers everything with its name, its port, who called by the sidecar's word, what was asked for, and whose address it sees.
fn nginx(pod: &mut Pod) {
    let folder = pod.folder.join("program");
    let listen: String =
        pod.spec.ports.iter().map(|port| format!("listen {port}; listen [::]:{port}; ")).collect();
    let answer =
        format!("{} $server_port $http_x_forwarded_client_cert $request_uri $remote_addr", pod.spec.name);
    let conf = configuration(&folder, &listen, &answer);
    pod.start("nginx", &["nginx", "-c", &conf, "-p", &folder.display().to_string()]);
}

fn configuration(folder: &Path, listen: &str, answer: &str) -> String {
    let at = folder.display();
    let text = format!(
        "daemon off; master_process off; pid {at}/pid; error_log stderr warn; events {{ }}
         http {{
             access_log off; client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;
             uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;
             server {{ {listen} location / {{ default_type text/plain; return 200 \"{answer}\\n\"; }} }}
         }}"
    );
    let conf = folder.join("nginx.conf");
    fs::write(&conf, text).expect("nginx.conf");
    conf.display().to_string()
}

/// With one user, who may come from everywhere.
fn mariadb(pod: &mut Pod) {
    let folder = pod.folder.join("program").display().to_string();
    let sql = "CREATE DATABASE shop;\nCREATE USER app@'%' IDENTIFIED BY 'secret';\nGRANT ALL ON shop.* TO app@'%';\n";
    fs::write(pod.folder.join("users.sql"), sql).expect("SQL");
    let users = pod.folder.join("users.sql").display().to_string();
    let script = format!(
        "mariadb-install-db --no-defaults --datadir={folder}/data --auth-root-authentication-method=normal --skip-test-db &&
         exec mariadbd --no-defaults --datadir={folder}/data --socket={folder}/socket --pid-file={folder}/pid --port=3306 \
         --bind-address=* --skip-name-resolve --init-file={users} --innodb-buffer-pool-size=16M --innodb-flush-log-at-trx-commit=0"
    );
    pod.start("mariadb", &["sh", "-c", &script]);
}
