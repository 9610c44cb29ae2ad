"""The rig: temporary files, certificates, applications and the pair of sidecars. Ends everything that it started."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).parent
APPS = HERE / "apps.py"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, condition, seconds=20):
    """Polls until `condition` returns something true; returns that."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
            last = "not yet"
        except Ended:
            raise
        except Exception as e:  # noqa: BLE001 - whatever keeps it from being ready is worth telling
            last = e
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what} is not ready after {seconds} s: {last}")
        time.sleep(0.02)


def accepts(port):
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


class Ended(Exception):
    """A process that should run has ended: waiting longer is of no use."""


class Rig:
    def __init__(self, remora):
        self.remora = remora
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="remora-acceptance-"))
        self.processes = []
        self.ports = {}
        self.listeners = {}
        self.version = 0

    # Processes

    def start(self, name, *command, env=None):
        log = open(self.dir / f"{name}.log", "wb")
        process = subprocess.Popen(
            [str(c) for c in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir,
            env={**os.environ, **(env or {})},
        )
        log.close()
        self.processes.append((name, process))
        return process

    def log(self, name, lines=15):
        text = (self.dir / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join(text[-lines:])

    def end(self, name, process, seconds=10):
        """Ends one process the polite way; returns its exit status, or None when it had to be killed."""
        if process.poll() is not None:
            return process.returncode
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    def close(self):
        for name, process in reversed(self.processes):
            self.end(name, process)
        self.processes.clear()
        shutil.rmtree(self.dir, ignore_errors=True)

    # Certificates

    def certificates(self):
        self.authority("ca")
        self.authority("other-ca")
        for name, ca in [("client", "ca"), ("server", "ca"), ("stranger", "other-ca")]:
            identity = "client" if name == "stranger" else name
            self.openssl(
                "req", "-x509", *self.new_key(name), "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-subj", f"/CN={name}",
                "-addext", f"subjectAltName=URI:spiffe://acceptance.test/ns/default/sa/{identity}",
                "-addext", "basicConstraints=critical,CA:FALSE", "-addext", "keyUsage=critical,digitalSignature",
                "-addext", "extendedKeyUsage=serverAuth,clientAuth",
            )

    def authority(self, name):
        self.openssl("req", "-x509", *self.new_key(name), "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign")

    def new_key(self, name):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        return [*key, "-days", "2", "-keyout", f"{name}.key", "-out", f"{name}.crt"]

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.dir, check=True, capture_output=True)

    # Applications

    def applications(self):
        www = self.dir / "www"
        www.mkdir()
        for size in (0, 1, 1024, 100_000, 10_000_000):
            (www / f"{size}.bin").write_bytes(os.urandom(size))
        self.nginx(www)
        port = self.ports["REDIS"] = free_port()
        quiet = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", self.dir]
        self.start("redis", "redis-server", "--port", port, *quiet)
        for kind in ("grpc", "websocket", "upload", "smtp"):
            port = self.ports[kind.upper()] = free_port()
            self.start(kind, self.python(), "-B", APPS, kind, port, self.dir)
        for name, port in self.ports.items():
            wait_for(name.lower(), lambda port=port: accepts(port))

    def python(self):
        import sys

        return sys.executable

    def nginx(self, www):
        port = self.ports["NGINX"] = free_port()
        user = "user root root;" if os.geteuid() == 0 else ""
        conf = self.dir / "nginx.conf"
        conf.write_text(f"""
            {user} worker_processes 1; pid {self.dir}/nginx.pid; error_log stderr warn;
            events {{ worker_connections 512; }}
            http {{
                access_log off; sendfile on; default_type application/octet-stream;
                client_body_temp_path {self.dir}/t1; proxy_temp_path {self.dir}/t2; fastcgi_temp_path {self.dir}/t3;
                uwsgi_temp_path {self.dir}/t4; scgi_temp_path {self.dir}/t5;
                server {{ listen 127.0.0.1:{port}; root {www}; }}
            }}""")
        self.start("nginx", shutil.which("nginx") or "/usr/sbin/nginx", "-p", self.dir, "-c", conf, "-g", "daemon off;")

    # Sidecars

    def sidecar(self, name):
        text = (HERE / f"{name}.yaml").read_text()
        for key, value in {"DIR": self.dir, **self.ports}.items():
            text = text.replace("{{%s}}" % key, str(value))
        config = self.dir / f"{name}.yaml"
        config.write_text(text)
        admin = self.dir / f"{name}.admin"
        process = self.start(
            name, self.remora, "proxy", "-c", config, "--concurrency", "1", "--admin-address-path", admin
        )
        try:
            self.listeners.update(wait_for(name, lambda: self.ready(process, admin)))
        except (Ended, RuntimeError) as e:
            raise SystemExit(f"{name}: {e}\n{self.log(name)}") from None
        return process

    def ready(self, process, admin):
        if process.poll() is not None:
            raise Ended(f"it ended with status {process.returncode}")
        address = admin.read_text().strip()
        with urllib.request.urlopen(f"http://{address}/ready", timeout=2) as answer:
            answer.read()
        with urllib.request.urlopen(f"http://{address}/listeners?format=json", timeout=2) as answer:
            page = json.load(answer)
        found = {l["name"]: l["local_address"]["socket_address"]["port_value"] for l in page["listener_statuses"]}
        return found if found and all(found.values()) else None

    def routes(self):
        """Puts the next version of the client's routes in place, by rename as every careful writer does."""
        self.version += 1
        text = (HERE / "routes.yaml").read_text().replace("{{VERSION}}", str(self.version))
        new = self.dir / "routes.new"
        new.write_text(text)
        new.rename(self.dir / "routes.yaml")
        return self.version

    def up(self):
        self.certificates()
        self.applications()
        self.routes()
        self.inbound = self.sidecar("inbound")
        self.ports["INBOUND"] = self.listeners["inbound"]
        self.outbound = self.sidecar("outbound")
        self.http = f"http://127.0.0.1:{self.listeners['http']}"


@contextlib.contextmanager
def rig(remora):
    made = Rig(remora)

    def stop(*_):
        raise SystemExit(130)

    signal.signal(signal.SIGTERM, stop)
    try:
        made.up()
        yield made
    finally:
        made.close()
