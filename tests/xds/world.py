"""A control plane, applications and proxies on free ports. Ends everything that it started."""

import contextlib
import http.server
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request


GIVEN = set()


def free_port():
    """A port to listen on later: none of those that connections get, which come and go by the thousand."""
    while True:
        port = random.randint(15200, 32000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            if port not in GIVEN:
                GIVEN.add(port)
                return port


def wait_for(what, condition, seconds=30):
    """Polls until `condition` returns something true; returns that."""
    deadline, last = time.monotonic() + seconds, "not yet"
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except Exception as e:  # noqa: BLE001 - whatever keeps it from being ready is worth telling
            last = e
        time.sleep(0.05)
    raise RuntimeError(f"{what}: not in {seconds} s: {last}")


def socket_address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def load_assignment(cluster, port, host="127.0.0.1"):
    """A ClusterLoadAssignment with one endpoint."""
    endpoint = {"endpoint": {"address": socket_address(host, port)}}
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": [endpoint]}]}


class Proxy:
    """A running `remora proxy`."""

    def __init__(self, process, admin):
        self.process, self.admin = process, admin

    def get(self, path):
        with urllib.request.urlopen(self.admin + path, timeout=10) as answer:
            return answer.read().decode()

    def resources(self):
        """What came by ADS and is in force: (kind, name) -> (version, resource)."""
        sections = {"dynamic_active_clusters": "cluster", "dynamic_listeners": "listener",
                    "dynamic_route_configs": "route_config", "dynamic_endpoint_configs": "endpoint_config"}
        found = {}
        for section in json.loads(self.get("/config_dump"))["configs"]:
            for kind, field in ((kind, field) for kind, field in sections.items() if kind in section):
                for entry in section[kind]:
                    state = entry.get("active_state", entry)
                    resource = state[field]
                    name = resource.get("name") or resource["cluster_name"]
                    found[field, name] = state["version_info"], resource
        return found


class World:
    def __init__(self, *options, issued=False):
        """`options` are for the control plane. `issued`: proxies get their certificates from its CA, not from files."""
        self.options = options if issued else ("--identity-files", None, *options)
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="remora-xds-"))
        self.processes = []
        self.servers = []

    def start(self, name, *command):
        with open(self.dir / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [str(c) for c in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir
            )
        self.processes.append(process)
        return process

    def log(self, name, lines=60):
        return "\n".join((self.dir / f"{name}.log").read_text(errors="replace").splitlines()[-lines:])

    def end(self, process):
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.processes.remove(process)

    def kill(self, process):
        """kill -9 of a process and its children, as when a machine is lost."""
        children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        self.processes.remove(process)

    def close(self):
        for process in list(self.processes):
            self.end(process)
        for server in self.servers:
            server.shutdown()
        shutil.rmtree(self.dir, ignore_errors=True)

    def certificates(self):
        """One identity for everybody: service account default of namespace default."""
        def openssl(*arguments):
            subprocess.run(["openssl", *arguments], cwd=self.dir, check=True, capture_output=True)

        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "roots.pem", "-subj", "/CN=test", "-days", "1")
        openssl("req", *curve, "-keyout", "key.pem", "-out", "leaf.csr", "-subj", "/CN=workload")
        (self.dir / "leaf.ext").write_text(
            "subjectAltName=URI:spiffe://cluster.local/ns/default/sa/default\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        openssl("x509", "-req", "-in", "leaf.csr", "-CA", "roots.pem", "-CAkey", "ca.key", "-CAcreateserial",
                "-out", "chain.pem", "-days", "1", "-extfile", "leaf.ext")

    def control(self, xds="127.0.0.1:0", data="data"):
        addresses = self.dir / "addresses.json"
        addresses.unlink(missing_ok=True)
        self.plane = self.start(
            "control", os.environ["REMORA"], "control", "--data", self.dir / data, "--listen-xds", xds, "--listen-tls", "127.0.0.1:0",
            "--listen-rest", "127.0.0.1:0", "--address-path", addresses,
            *(self.dir if option is None else option for option in self.options),
        )
        bound = wait_for("the control plane", lambda: addresses.exists() and json.loads(addresses.read_text()))
        self.xds, self.tls, self.rest = bound["xds"], bound["tls"], f"http://{bound['rest']}"
        wait_for("the store", lambda: self.get("/readyz"))

    def kill_control(self):
        """kill -9, and a new one at the same address."""
        self.plane.kill()
        self.plane.wait()
        self.processes.remove(self.plane)
        self.control(self.xds)

    def get(self, path):
        with urllib.request.urlopen(self.rest + path, timeout=10) as answer:
            return answer.read().decode()

    def status(self, node):
        """State of the proxy whose node id contains `node`."""
        proxies = json.loads(self.get("/status"))["proxies"]
        return next((p for p in proxies if node in p["node"]), None)

    def synced(self, node):
        def condition():
            proxy = self.status(node)
            if proxy and proxy["state"] == "Refused":
                raise RuntimeError(proxy["refusals"])
            return proxy and proxy["state"] == "Synced" and proxy["wanted"] > 0 and proxy

        return wait_for(f"{node} is synced", condition)

    def apply(self, text):
        path = self.dir / "mesh.yaml"
        path.write_text(text)
        done = subprocess.run([os.environ["REMORA"], "apply", "-f", path, "--server", self.rest], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        return done.stdout

    def application(self, text):
        """An HTTP server that answers `text`. Its port."""
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one write: else each answer waits for a delayed ACK.
            wbufsize = -1

            def do_GET(self):  # noqa: N802 - the name that the library calls
                body = text.encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, *_):
                """A client may go at any time."""

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        return server.server_address[1]

    def envoy(self, node, variant):
        """Envoy with nothing but a node id and our control plane. The name of its log, and the port of its admin page."""
        name, admin = "envoy-" + node.split("~")[2].split(".")[0], free_port()
        path = self.bootstrap(name, node, variant, self.xds, admin)
        self.start(name, os.environ["ENVOY"], "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn")
        return name, admin

    def proxy(self, name, node, variant, xds, *options):
        """`remora proxy` with nothing but a node id and an ADS server."""
        path, address = self.bootstrap(name, node, variant, xds, 0), self.dir / f"{name}.admin"
        address.unlink(missing_ok=True)
        command = [os.environ["REMORA"], "proxy", "-c", path, "--concurrency", "1", "--admin-address-path", address, *options]
        process = self.start(name, *command)
        wait_for(f"the admin page of {name}", address.exists)
        return Proxy(process, f"http://{address.read_text().strip()}")

    def bootstrap(self, name, node, variant, xds, admin):
        """The path of a bootstrap file in which everything comes by ADS."""
        host, port = xds.rsplit(":", 1)
        config = {
            "node": {"id": node, "cluster": "test"},
            "admin": {"address": socket_address("127.0.0.1", admin)},
            "dynamic_resources": {
                "ads_config": {"api_type": variant, "transport_api_version": "V3",
                               "grpc_services": [{"envoy_grpc": {"cluster_name": "control"}}]},
                "lds_config": {"ads": {}, "resource_api_version": "V3"},
                "cds_config": {"ads": {}, "resource_api_version": "V3"},
            },
            "static_resources": {"clusters": [{
                "name": "control", "type": "STATIC", "connect_timeout": "2s",
                "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}}}},
                "load_assignment": load_assignment("control", int(port), host),
            }]},
        }
        path = self.dir / f"{name}.json"
        path.write_text(json.dumps(config))
        return path


@contextlib.contextmanager
def world(*options, mesh=True, issued=False):
    """`mesh`: with our control plane, which has `options`, and certificates."""
    w = World(*options, issued=issued)
    try:
        if mesh:
            w.certificates()
            w.control()
        yield w
    finally:
        w.close()
