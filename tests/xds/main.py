"""Runs the checks; see run.sh."""

import collections
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent import futures

import grpc
import grpc.experimental

from agent import by_control, by_files
from edits import random_edits
from foreign import foreign_peers, workload_api
from go_control_plane import drive
from program import programs
from spire import Spire
from world import free_port, wait_for, world

SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: shop}
spec: {ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop-v1}
spec: {selector: {app: shop, version: v1}, ports: [{name: http, port: 8080, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: shop-v2}
spec: {selector: {app: shop, version: v2}, ports: [{name: http, port: 8080, targetPort: http}]}
---
"""


def route(v1, v2):
    return f"""
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{kind: Service, name: shop}}]
  rules:
  - backendRefs:
    - {{name: shop-v1, port: 8080, weight: {v1}}}
    - {{name: shop-v2, port: 8080, weight: {v2}}}
---
"""


def workload(name, inbound, port, version):
    return f"""
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: {name}, labels: {{app: shop, version: {version}}}}}
spec: {{address: 127.0.0.1, inboundPort: {inbound}, ports: [{{name: http, port: {port}}}], egress: []}}
---
"""


def caller(local, inbound):
    return f"""
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: caller}}
spec: {{address: 127.0.0.1, inboundPort: {inbound}, egress: [{{service: shop, localPort: {local}}}]}}
---
"""


def ask(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
        return answer.read().decode()


def envoy_pair(variant):
    """Three Envoys with our sidecars' configuration: a caller, and one beside each version of the shop; mTLS between them."""
    with world() as w:
        local, ports = free_port(), [free_port() for _ in range(3)]
        apps = [w.application("v1"), w.application("v2")]
        documents = SERVICES + workload("shop-1", ports[0], apps[0], "v1") + workload("shop-2", ports[1], apps[1], "v2")
        documents += caller(local, ports[2])
        w.apply(documents + route(75, 25))
        names = {}
        for name in ("shop-1", "shop-2", "caller"):
            names[name], admin = w.envoy(f"sidecar~127.0.0.1~{name}.default~default.svc", variant)
        try:
            for name in names:
                w.synced(f"~{name}.default")
            wait_for("an answer", lambda: ask(local))
            answers = collections.Counter(ask(local) for _ in range(400))
            share = answers["v1"] / 4
            assert 65 < share < 85, answers
            began = time.monotonic()
            w.apply(documents + route(0, 1))
            wait_for("the new route", lambda: all(ask(local) == "v2" for _ in range(20)))
            took = time.monotonic() - began
            agent = w.status("~caller.default")["agent"]
            asked = restarts(w, local, admin)
        except Exception:
            for name in names.values():
                print(f"--- {name}\n{w.log(name)}")
            print(f"--- control\n{w.log('control')}")
            raise
        return (f"{agent}: split 75/25 is {share:.0f}/{100 - share:.0f}; an edit was in force {took:.1f} s after apply began; "
                f"control plane killed 3 times: {asked} requests, none failed, nothing was configured anew")


def envoy_examples():
    """Envoys in the places of all workloads of the examples: every kind of document, and nothing that Envoy refuses."""
    examples = pathlib.Path(__file__).parents[2] / "deploy/examples"
    stranger = "---\napiVersion: remora.dev/v1alpha1\nkind: Workload\nmetadata: {name: caller}\nspec: {address: 127.0.0.1, egress: [{service: weather}]}\n"
    with world("--ephemeral-ports") as w:
        for name in ("shop", "external", "callers", "limits", "pages", "resilience"):
            w.apply((examples / f"{name}.yaml").read_text().replace("address: 10.", "address: 127."))
        w.apply(stranger)
        taken = []
        places = ("till.shop", "orders-1.shop", "ledger-1.shop", "archive-1.vault", "recommendations-1.default", "search-1.default",
                  "ratelimit-1.platform", "catalog-1.default", "edge-1.default", "shop-1.default", "prices-1.default",
                  "basket-1.default", "caller.default")
        for place in places:
            name, _ = w.envoy(f"sidecar~127.0.0.1~{place}~{place.split('.')[1]}.svc", "DELTA_GRPC")
            try:
                taken.append(w.synced(f"~{place}~")["wanted"])
            except Exception:
                print(f"--- {name}\n{w.log(name)}")
                raise
        return f"{sum(taken)} resources for {len(taken)} workloads, every one taken"


def restarts(w, local, admin):
    """Kills the control plane under traffic. The number of requests; that one fails is an error, as is a change of configuration."""
    names = "cluster_manager.cluster_(added|modified|removed)|listener_manager.listener_(added|modified|removed|in_place_updated)"

    def changes():
        with urllib.request.urlopen(f"http://127.0.0.1:{admin}/stats?filter={names}", timeout=5) as answer:
            return answer.read().decode()

    before, stop = changes(), threading.Event()
    asked, failed = [], []

    def traffic():
        while not stop.is_set():
            try:
                asked.append(ask(local))
            except Exception as e:  # noqa: BLE001 - whatever it is, it is a failure
                failed.append(e)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        for _ in range(3):
            w.kill_control()
            w.synced("~caller.default")
    finally:
        stop.set()
        thread.join()
    assert not failed, failed[:3]
    assert changes() == before, f"{before}\n{changes()}"
    return len(asked)


def grpc_client(command):
    """A gRPC library with an xds:/// target, mTLS by our identities, and two servers behind a weighted split."""
    with world() as w:
        servers = [grpc_server(w, "v1"), grpc_server(w, "v2")]
        documents = SERVICES.replace("name: http, port", "name: grpc, port")
        for number, (server, port) in enumerate(servers, start=1):
            documents += workload(f"shop-{number}", port, port, f"v{number}")
        w.apply(documents + route(75, 25))
        bootstrap = w.dir / "grpc.json"
        bootstrap.write_text(json.dumps({
            "xds_servers": [{"server_uri": w.xds, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}],
            "node": {"id": "grpc~127.0.0.1~client.default~default.svc", "locality": {}},
            "certificate_providers": {"default": {"plugin_name": "file_watcher", "config": {
                "certificate_file": f"{w.dir}/chain.pem", "private_key_file": f"{w.dir}/key.pem",
                "ca_certificate_file": f"{w.dir}/roots.pem", "refresh_interval": "600s",
            }}},
        }))
        # Libraries read their bootstrap once in a process.
        environment = {**os.environ, "GRPC_XDS_BOOTSTRAP": str(bootstrap)}
        target = "xds:///shop.default.svc.cluster.local:8080"
        done = subprocess.run([*command, target], env=environment, capture_output=True, text=True, timeout=90)
        for server, _ in servers:
            server.stop(0)
        if done.returncode != 0:
            raise RuntimeError(f"{done.stderr[-2000:]}\n--- control\n{w.log('control')}")
        answers = json.loads(done.stdout)
        share = answers["v1"] / 4
        assert 65 < share < 85, answers
        return f"split 75/25 is {share:.0f}/{100 - share:.0f}, over mTLS"


def grpc_server(w, text):
    class Handler(grpc.GenericRpcHandler):
        def service(self, _):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: text.encode())

    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Handler(),))
    files = [(w.dir / name).read_bytes() for name in ("key.pem", "chain.pem", "roots.pem")]
    credentials = grpc.ssl_server_credentials([(files[0], files[1])], files[2], require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port


def client(target):
    credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
    with grpc.secure_channel(target, credentials) as channel:
        call = channel.unary_unary("/test.Shop/Ask")
        call(b"", timeout=30, wait_for_ready=True)
        answers = collections.Counter(call(b"", timeout=10).decode() for _ in range(400))
    print(json.dumps(answers))


CHECKS = [
    ("envoy-delta", envoy_pair, ("DELTA_GRPC",)),
    ("envoy-sotw", envoy_pair, ("GRPC",)),
    ("envoy-examples", envoy_examples, ()),
    ("grpcio", grpc_client, ([sys.executable, "-B", __file__, "--client"],)),
    ("run", programs, ()),
    ("foreign-peers", foreign_peers, ()),
    ("workload-api", workload_api, ()),
    ("agent-files", by_files, ()),
    ("agent-control", by_control, ()),
    ("grpc-js", grpc_client, (["node", pathlib.Path(__file__).with_name("client.js")],)),
    ("go-control-plane-delta", drive, ("DELTA_GRPC",)),
    ("go-control-plane-sotw", drive, ("GRPC",)),
    ("random-edits", random_edits, ()),
]
# Only if it is there: to build it takes a quarter of an hour (`go build github.com/spiffe/spire/cmd/…`).
SPIRE = [("spire-files", by_files, (Spire,)), ("spire-control", by_control, (Spire,))]


def main(wanted):
    passed = failed = 0
    if os.environ.get("SPIRE"):
        CHECKS.extend(SPIRE)
    else:
        print("SKIPPED spire-files, spire-control: the variable SPIRE names no directory with spire-server and spire-agent", flush=True)
    for name, function, arguments in CHECKS:
        if wanted and not any(w in name for w in wanted):
            continue
        try:
            print(f"ok      {name}: {function(*arguments)}", flush=True)
            passed += 1
        except Exception as e:  # noqa: BLE001 - a check fails by raising, whatever it raises
            print(f"FAILED  {name}: {type(e).__name__}: {e}", flush=True)
            failed += 1
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
