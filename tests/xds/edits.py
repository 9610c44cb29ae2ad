"""A thousand random edits of a mesh under traffic: no request may fail, and what the proxies have at the end must be what they would
get if they, and then the control plane, had only just been started."""

import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import time

import grpc

from mesh import PORTS, SPARES, Mesh, Rest, path, program
from traffic import http_client, traffic
from world import free_port, wait_for, world

EDITS = 1000
MARK = 50
VARIANTS = {"caller": "DELTA_GRPC", "shop-1": "GRPC", "shop-2": "DELTA_GRPC", "shop-3": "GRPC"}
PLAIN = ["plain-1", "plain-2", "plain-3"]
SHOP = ["shop-1", "shop-2", "shop-3"]
ARCHIVE = ["archive-1", "archive-2"]
PATHS = ["/", "/a", "/a/b", "/a/c", "/other", "/?next=1"]


def rpc_client(port):
    def connect():
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        call = channel.unary_unary("/test.Shop/Ask")
        return lambda: call(b"", timeout=20).decode(), channel.close

    return connect


def tcp_client(port):
    def ask():
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            return b"".join(iter(lambda: connection.recv(100), b"")).decode()

    return lambda: (ask, lambda: None)


def clients(local, rng):
    def some_path(seed):
        chance = random.Random(seed)
        return lambda: chance.choice(PATHS)

    shop, plain, archive = local["shop", "http"], local["plain", "http"], local["archive", "http"]
    all_of = {"shop": SHOP + ARCHIVE, "plain": PLAIN}
    for number in range(3):
        yield f"shop {number}", http_client(shop, some_path(rng.random())), all_of["shop"]
    yield "shop, new connections", http_client(shop, some_path(rng.random()), keep_alive=False), all_of["shop"]
    yield "plain", http_client(plain, some_path(rng.random())), PLAIN
    yield "plain, new connections", http_client(plain, some_path(rng.random()), keep_alive=False), PLAIN
    yield "archive", http_client(archive), ARCHIVE
    for name, right in (("shop", SHOP), ("plain", PLAIN)):
        yield f"{name}, gRPC", rpc_client(local[name, "grpc"]), right
        yield f"{name}, TCP", tcp_client(local[name, "tcp"]), right


class Fleet:
    """The sidecars."""

    def __init__(self, w):
        self.w, self.proxies, self.started = w, {}, 0

    def start(self, name):
        self.started += 1
        node = f"sidecar~127.0.0.1~{name}.default~default.svc"
        state = self.w.dir / f"state-{self.started}"
        self.proxies[name] = self.w.proxy(name, node, VARIANTS[name], self.w.xds, "--state-dir", state, "-l", "warn")

    def synced(self):
        """Waits until every proxy has what it is to have, and nothing besides."""
        for name in VARIANTS:
            wanted = self.w.synced(f"~{name}.default")["wanted"]
            wait_for(f"what {name} no longer needs to go", lambda: len(self.of(name)) == wanted)  # noqa: B023 - called at once

    def of(self, name):
        """(proxy, kind, name) -> version and resource. The version of the state-of-the-world variant is the response's, so it is left
        out."""
        return {(name, *key): (version if VARIANTS[name] == "DELTA_GRPC" else None, resource)
                for key, (version, resource) in self.proxies[name].resources().items() if key != ("cluster", "control")}

    def resources(self):
        return {key: found for name in VARIANTS for key, found in self.of(name).items()}

    def anew(self):
        """Every proxy with the same node id and an empty state folder. What they have."""
        for name, proxy in list(self.proxies.items()):
            self.w.end(proxy.process)
            self.start(name)
        self.synced()
        return self.resources()


def converged(port, mesh):
    """Seconds until the caller serves the newest mark."""
    began = time.monotonic()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        def seen():
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
            return answer.getheader("x-mark") == str(mesh.marks)

        while not seen():
            if time.monotonic() > began + 20:
                raise RuntimeError(f"mark {mesh.marks} is not in force 20 s after it was answered")
    return time.monotonic() - began


def same(what, old, new):
    differences = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    if differences:
        text = "\n".join(f"{key}\n  edited: {json.dumps(old.get(key))}\n  fresh:  {json.dumps(new.get(key))}"
                         for key in sorted(differences)[:5])
        raise RuntimeError(f"{len(differences)} of {len(old)} resources are not those of {what}:\n{text}")


def same_documents(rest, mesh):
    """What REST gives is what was written."""
    there = {}
    for kind, namespace in {key[:2] for key in mesh.docs}:
        for doc in rest("GET", path(kind, namespace))[1]["items"]:
            there[kind, namespace, doc["metadata"]["name"]] = doc
    assert there.keys() == mesh.docs.keys(), there.keys() ^ mesh.docs.keys()
    for key, doc in mesh.docs.items():
        body = {field: value for field, value in doc.items() if field != "metadata"}
        assert body.items() <= there[key].items(), f"{key}: {there[key]} is not {doc}"


def edit_under_traffic(w, mesh, rng, local):
    """The edits. Requests that were sent, edits a second, and the slowest convergence in milliseconds."""
    with traffic(*clients(local, rng)) as flow:
        began, slowest = time.monotonic(), 0
        for number in range(1, EDITS + 1):
            if number % MARK:
                mesh.edit()
                # Bursts, and pauses in which every state between is brought into force.
                time.sleep(rng.choice([0, 0, 0, rng.uniform(0, 0.1)]))
            else:
                mesh.mark()
                slowest = max(slowest, converged(local["marker", "http"], mesh))
        rate = EDITS / (time.monotonic() - began)
        wait_for("every client", lambda: all(flow.counts.values()))
    return flow.count(), rate, slowest * 1000


def random_edits():
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    rng = random.Random(seed)
    print(f"        random-edits: SEED={seed}", flush=True)
    with world() as w:
        rest = Rest(w.rest)
        programs = {name: program(w, name) for name in [*SHOP, *PLAIN, *ARCHIVE]}
        inbound = {name: free_port() for name in VARIANTS}
        local = {(name, protocol): free_port() for name in ("shop", "plain") for protocol in PORTS}
        local |= {(name, "http"): free_port() for name in ("marker", "archive", *SPARES)}
        mesh, fleet = Mesh(rest, rng, programs, inbound, local), Fleet(w)
        documents = len(mesh.docs)
        try:
            for name in VARIANTS:
                fleet.start(name)
            fleet.synced()
            requests, rate, slowest = edit_under_traffic(w, mesh, rng, local)
            mesh.put(mesh.shop("shop-2", "v1"))
            mesh.mark()
            converged(local["marker", "http"], mesh)
            fleet.synced()
            same_documents(rest, mesh)
            edited = fleet.resources()
            same("fresh proxies", edited, fleet.anew())
            w.end(w.plane)
            shutil.copytree(w.dir / "data", w.dir / "copy")
            w.control(data="copy")
            same("fresh proxies at a fresh control plane", edited, fleet.anew())
        except Exception:
            for name in [*VARIANTS, "control"]:
                print(f"--- {name}\n{w.log(name)}")
            raise
        return (f"seed {seed}: {EDITS} edits of {documents} documents, {mesh.refused} of them refused as they must be, {rate:.0f}/s under "
                f"{requests} requests, none failed; the slowest of {EDITS // MARK} was in force {slowest:.0f} ms after its answer; "
                f"{len(edited)} resources of {len(VARIANTS)} proxies are those of a fresh start")
