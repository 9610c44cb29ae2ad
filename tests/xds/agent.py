"""A SPIFFE agent that is not ours (workload-api/main.go) as the issuer, by the Workload API: of two proxies that are configured by files,
and of two of `remora control`, whose CA has the same root."""

import json
import os
import subprocess
import time
import urllib.request

from foreign import CERTIFICATE_REQUIRED, CURVE, Peer, logs, s_client, shown_serial, uris
from traffic import http_client, traffic
from world import free_port, load_assignment, socket_address, wait_for, world

DOMAIN = "mesh.test"
GOT, FAILED = (f'remora_identity_requests_total{{result="{result}"}}' for result in ("ok", "failed"))

# Of a connection: each has a handshake of its own.
ONE_REQUEST = {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
    "common_http_protocol_options": {"max_requests_per_connection": 1}, "explicit_http_config": {"http_protocol_options": {}}}}}


def root(w):
    """An authority: the beginning of the names of its two files."""
    files = w.dir / "root"
    subprocess.run(["openssl", "req", "-x509", *CURVE, "-keyout", f"{files}.key", "-out", f"{files}.pem", "-subj", "/CN=root", "-days", "2",
                    "-addext", "keyUsage=critical,keyCertSign,cRLSign"], check=True, capture_output=True)
    return files


class Agent:
    """It has a socket for each proxy, and refuses a proxy that has no entry."""

    # Seconds; it pushes another certificate at half of it.
    life = 10

    @staticmethod
    def place(w, name):
        """Which program the proxy `name` is, and where it finds its agent."""
        return os.environ["REMORA"], w.dir / f"{name}.sock"

    def __init__(self, w):
        self.w, self.root = w, root(w)
        self.start()

    def start(self):
        self.process = self.w.start("agent", os.environ["WORKLOAD_API"], "-folder", self.w.dir, "-names", "shop,web", "-root", self.root,
                                    "-life", f"{self.life}s")

    def end(self):
        self.w.end(self.process)

    def entry(self, name, path):
        fresh = self.w.dir / f"{name}.fresh"
        fresh.write_text(f"spiffe://{DOMAIN}/{path}")
        fresh.rename(self.w.dir / f"{name}.entry")


class Node:
    """`remora proxy` with the identity of an agent."""

    def __init__(self, w, name, config, issuer):
        path, address = w.dir / f"{name}.json", w.dir / f"{name}.admin"
        path.write_text(json.dumps(config))
        program, socket = issuer.place(w, name)
        w.start(name, program, "proxy", "-c", path, "--concurrency", "1", "--admin-address-path", address,
                "--workload-api", f"unix://{socket}")
        wait_for(f"the admin page of {name}", address.exists)
        self.admin = f"http://{address.read_text().strip()}"

    def count(self, series):
        with urllib.request.urlopen(f"{self.admin}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return next((int(line.split()[-1]) for line in lines if line.startswith(series + " ")), 0)


def secrets(**peer):
    """Mutual TLS with nobody but `peer`, a matcher."""
    names = [{"san_type": "URI", "matcher": peer}]
    return {"tls_certificate_sds_secret_configs": [{"name": "default"}], "combined_validation_context": {
        "default_validation_context": {"match_typed_subject_alt_names": names},
        "validation_context_sds_secret_config": {"name": "ROOTCA"}}}


def tls(kind, **fields):
    context = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}"
    return {"transport_socket": {"name": "tls", "typed_config": {"@type": context, **fields}}}


def bootstrap(name, port, upstream, chain=None, cluster=None):
    """A listener in front of one port; `chain` and `cluster` are added to both."""
    manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": name, "route_config": {"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [
                   {"match": {"prefix": "/"}, "route": {"cluster": "next"}}]}]},
               "http_filters": [{"name": "router", "typed_config": {
                   "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}
    listener = {"name": name, "address": socket_address("127.0.0.1", port),
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}], **(chain or {})}]}
    target = {"name": "next", "type": "STATIC", "connect_timeout": "2s", "load_assignment": load_assignment("next", upstream)}
    return {"node": {"id": name, "cluster": "test"}, "admin": {"address": socket_address("127.0.0.1", 0)},
            "static_resources": {"listeners": [listener], "clusters": [target | (cluster or {})]}}


def by_files(issuer=Agent):
    """A caller and a server: no agent, no entry, entries, rotation under traffic, and an agent that starts again."""
    with world(mesh=False) as w, logs(w):
        return identities(w, issuer)


def identities(w, issuer):
    local, port = free_port(), free_port()
    shop, web = (secrets(exact=f"spiffe://{DOMAIN}/any/path/{peer}") for peer in ("web", "shop"))
    Node(w, "shop", bootstrap("shop", port, w.application("shop"), chain=tls(
        "DownstreamTlsContext", require_client_certificate=True, common_tls_context=shop)), issuer)
    web = Node(w, "web", bootstrap("web", local, port, cluster=tls("UpstreamTlsContext", common_tls_context=web) | ONE_REQUEST), issuer)
    agent = issuer(w)
    for name in ("shop", "web"):
        wait_for(f"{name} is told that it has no entry", lambda name=name: "PERMISSION_DENIED: no identity issued" in w.log(name), 60)
        agent.entry(name, f"any/path/{name}")
    client = http_client(local)
    wait_for("an answer through both", lambda: ask_once(client) == "shop", 60)

    peer = Peer(w, "looker")
    peer.roots.write_text((w.dir / "root.pem").read_text())
    seen = s_client(port, peer.roots, name="any")
    assert f"SSL alert number {CERTIFICATE_REQUIRED}\n" in seen, seen
    assert uris(peer, seen) == [f"URI:spiffe://{DOMAIN}/any/path/shop"], uris(peer, seen)
    serials = {shown_serial(peer, seen)}

    def rotated(count):
        serials.add(shown_serial(peer, s_client(port, peer.roots, name="any")))
        return len(serials) >= count

    began = time.monotonic()
    with traffic(("kept", client, {"shop"}), ("new", http_client(local, keep_alive=False), {"shop"})) as flow:
        wait_for("two rotations", lambda: rotated(3), 4 * agent.life)
        took = time.monotonic() - began
        got, failed = web.count(GOT), web.count(FAILED)
        agent.end()
        wait_for("the agent is missed", lambda: web.count(FAILED) > failed)
        agent.start()
        wait_for("certificates of the agent that started again", lambda: web.count(GOT) > got and rotated(4),
                 4 * agent.life)
    return (f"mTLS between two identities of {issuer.__name__}; {len(serials)} certificates of one of them, 3 in {took:.0f} s, "
            f"and the agent started again; {flow.count()} requests, each with a handshake, went on and none failed")


def ask_once(client):
    ask, close = client()
    try:
        return ask()
    finally:
        close()


def by_control(issuer=Agent):
    """Two workloads of `remora control`: the CAs of both are below one root, and the IDs are those of service accounts."""
    with world(mesh=False, issued=True) as w, logs(w):
        agent = issuer(w)
        w.options = ("--trust-domain", DOMAIN, "--ca-cert", f"{agent.root}.pem", "--ca-key", f"{agent.root}.key")
        w.control()
        return workloads(w, agent)


def workloads(w, agent):
    local, application = free_port(), w.application("shop")
    w.apply(f"""
apiVersion: v1
kind: Service
metadata: {{name: shop}}
spec: {{selector: {{app: shop}}, ports: [{{name: http, port: 8080, targetPort: http}}]}}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: shop, labels: {{app: shop}}}}
spec: {{address: 127.0.0.1, serviceAccount: shop, inboundPort: {free_port()}, ports: [{{name: http, port: {application}}}], egress: []}}
---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: web}}
spec: {{address: 127.0.0.1, serviceAccount: web, inboundPort: {free_port()}, egress: [{{service: shop, localPort: {local}}}]}}
""")
    plane = tls("UpstreamTlsContext", common_tls_context=secrets(suffix="/ns/remora-system/sa/remora-control"))
    nodes = {}
    for name in ("shop", "web"):
        config = json.loads(w.bootstrap(name, f"sidecar~127.0.0.1~{name}.default~default.svc", "DELTA_GRPC", w.tls, 0).read_text())
        config["static_resources"]["clusters"][0] |= plane
        agent.entry(name, f"ns/default/sa/{name}")
        nodes[name] = Node(w, name, config, type(agent))
    for name in nodes:
        w.synced(f"~{name}.default")
    client = http_client(local)
    wait_for("an answer through both", lambda: ask_once(client) == "shop", 60)
    before = {name: node.count(GOT) for name, node in nodes.items()}
    with traffic(("kept", client, {"shop"}), ("new", http_client(local, keep_alive=False), {"shop"})) as flow:
        wait_for("a rotation of both", lambda: all(node.count(GOT) > before[name] for name, node in nodes.items()),
                 4 * agent.life)
    return (f"ADS and calls by mTLS with SVIDs of {type(agent).__name__} under the root of the control plane; "
            f"{flow.count()} requests across a rotation, none failed")
