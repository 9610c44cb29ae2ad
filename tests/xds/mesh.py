"""A mesh of some fifty documents, real programs behind them, and random edits that keep every route of its traffic answerable."""

import copy
import http.client
import json
import socketserver
import threading
import time
import types
from concurrent import futures

import grpc

APIS = {
    "Service": "v1", "Workload": "remora.dev/v1alpha1", "EndpointSlice": "discovery.k8s.io/v1",
    "HTTPRoute": "gateway.networking.k8s.io/v1", "GRPCRoute": "gateway.networking.k8s.io/v1",
    "TCPRoute": "gateway.networking.k8s.io/v1alpha2", "ReferenceGrant": "gateway.networking.k8s.io/v1",
    "TrafficPolicy": "remora.dev/v1alpha1", "AuthenticationPolicy": "remora.dev/v1alpha1",
}
PORTS = {"http": 8080, "grpc": 9090, "tcp": 7070}
SPARES = [f"spare-{n}" for n in range(6)]
# What refers to a spare Service, which therefore cannot go before them.
DEPENDENTS = ["HTTPRoute", "GRPCRoute", "TCPRoute", "TrafficPolicy", "AuthenticationPolicy", "EndpointSlice"]


def path(kind, namespace, name=None):
    api = APIS[kind]
    root = "/api/v1" if api == "v1" else f"/apis/{api}"
    plural = kind.lower().removesuffix("y") + ("ies" if kind.endswith("y") else "s")
    return f"{root}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def document(kind, name, spec=None, namespace="default", labels=None, **fields):
    metadata = {"name": name, "namespace": namespace, **({"labels": labels} if labels else {})}
    body = {"spec": spec} if spec is not None else fields
    return {"apiVersion": APIS[kind], "kind": kind, "metadata": metadata, **body}


def key_of(doc):
    return doc["kind"], doc["metadata"]["namespace"], doc["metadata"]["name"]


def service(name, namespace="default", **selector):
    ports = [{"name": n, "port": port, "targetPort": n} for n, port in PORTS.items()]
    return document("Service", name, {"ports": ports, **({"selector": selector} if selector else {})}, namespace)


def endpoint_slice(name, service, ports, namespace="default", zone="one", ready=True):
    return document("EndpointSlice", name, None, namespace, {"kubernetes.io/service-name": service}, addressType="IPv4",
                    ports=[{"name": n, "port": port} for n, port in ports.items()],
                    endpoints=[{"addresses": ["127.0.0.1"], "zone": zone, "conditions": {"ready": ready}}])


def route(kind, name, protocol, rules):
    parent = {"kind": "Service", "name": name, "port": PORTS[protocol]}
    return document(kind, name, {"parentRefs": [parent], "rules": rules})


def targets(*names):
    return [{"kind": "Service", "name": name} for name in names]


def program(w, text):
    """A program that answers `text` by HTTP, gRPC and TCP. Its ports by protocol."""
    class Ask(grpc.GenericRpcHandler):
        def service(self, _):
            return grpc.unary_unary_rpc_method_handler(lambda request, context: text.encode())

    class Say(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.sendall(text.encode())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, request_queue_size = True, 128

    # Kept: a server that nobody refers to stops.
    rpc = grpc.server(futures.ThreadPoolExecutor(2))
    rpc.add_generic_rpc_handlers((Ask(),))
    rpc_port = rpc.add_insecure_port("127.0.0.1:0")
    rpc.start()
    tcp = Server(("127.0.0.1", 0), Say)
    threading.Thread(target=tcp.serve_forever, daemon=True).start()
    w.servers += [tcp, types.SimpleNamespace(shutdown=lambda: rpc.stop(0))]
    return {"http": w.application(text), "grpc": rpc_port, "tcp": tcp.server_address[1]}


class Rest:
    """The control plane's REST API, on one connection, and on another one after a pause: it closes what says nothing for 10 s."""

    def __init__(self, url):
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
        self.used = time.monotonic()

    def __call__(self, method, path, body=None):
        if time.monotonic() > self.used + 5:
            self.connection.close()
        self.used = time.monotonic()
        self.connection.request(method, path, json.dumps(body) if body is not None else None, {"x-remora-actor": "edits"})
        answer = self.connection.getresponse()
        return answer.status, json.loads(answer.read())


class Mesh:
    """The documents as they should be, and edits of them.

    `programs`: ports of programs by name; `inbound`: those of sidecars' listeners; `local`: where the caller's sidecar listens, by
    (service, protocol); `rng`: the only source of chance."""

    def __init__(self, rest, rng, programs, inbound, local):
        self.rest, self.rng, self.programs, self.inbound, self.local = rest, rng, programs, inbound, local
        self.docs = {}
        self.refused = 0
        self.marks = 0
        for doc in self.first():
            self.put(doc)
        for _ in range(60):
            self.spare()
        self.refused = 0

    # One edit is one request.

    def put(self, doc, code=None):
        """Creates or replaces. `code`: how it must be refused."""
        kind, namespace, name = key_of(doc)
        if key_of(doc) in self.docs:
            self.call("PUT", path(kind, namespace, name), doc, code or 200)
        else:
            self.call("POST", path(kind, namespace), doc, code or 201)
        if not code:
            self.docs[key_of(doc)] = doc

    def delete(self, key, code=None):
        self.call("DELETE", path(*key), None, code or 200)
        if not code:
            del self.docs[key]

    def call(self, method, path, body, code):
        status, answer = self.rest(method, path, body)
        self.refused += code >= 400
        if status != code:
            raise RuntimeError(f"{method} {path} is {status}, not {code}: {answer.get('message')}\n{json.dumps(body)}")

    # The documents.

    def first(self):
        for group in ("shop", "plain"):
            selector = {"app": group} if group == "shop" else {}
            yield service(group, **selector)
            for version in ("v1", "v2"):
                yield service(f"{group}-{version}", **({**selector, "version": version} if selector else {}))
        yield service("marker")
        yield service("archive", "vault")
        yield document("ReferenceGrant", "archive", self.grant(), "vault")
        yield document("AuthenticationPolicy", "plain", {
            "targetRefs": targets("plain", "plain-v1", "plain-v2"), "mtls": {"mode": "Disabled"}})
        yield document("AuthenticationPolicy", "archive", {"targetRefs": targets("archive"), "mtls": {"mode": "Disabled"}}, "vault")
        for name, version in [("plain-1", "v1"), ("plain-2", "v1"), ("plain-3", "v2")]:
            yield endpoint_slice(name, f"plain-{version}", self.programs[name])
        for name in ("archive-1", "archive-2"):
            yield endpoint_slice(name, "archive", self.programs[name], "vault")
        for name, version in [("shop-1", "v1"), ("shop-2", "v1"), ("shop-3", "v2")]:
            yield self.shop(name, version)
        for group in ("shop", "plain"):
            yield self.http_route(group)
            yield self.rpc_route(group)
            yield self.tcp_route(group)
            yield self.policy(group)
        yield self.policy("archive")
        yield self.marker()
        yield self.caller([])

    def grant(self):
        sources = self.rng.sample(["GRPCRoute", "TCPRoute", "TLSRoute"], self.rng.randint(0, 3))
        return {"from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": "default"} for kind in ["HTTPRoute", *sources]],
                "to": [{"group": "", "kind": "Service", **self.rng.choice([{}, {"name": "archive"}])}]}

    def shop(self, name, version):
        ports = [{"name": n, "port": port} for n, port in self.programs[name].items()]
        return document("Workload", name, {
            "address": "127.0.0.1", "inboundPort": self.inbound[name], "ports": ports, "egress": [],
            "weight": self.rng.randint(1, 5), "locality": {"region": "eu", "zone": self.rng.choice(["one", "two"])},
        }, labels={"app": "shop", "version": version})

    def caller(self, spares):
        used = {key: port for key, port in self.local.items() if key[0] not in SPARES or key[0] in spares}
        egress = [{"service": name, "port": PORTS[protocol], "localPort": port,
                   **({"namespace": "vault"} if name == "archive" else {})} for (name, protocol), port in used.items()]
        return document("Workload", "caller", {"address": "127.0.0.1", "inboundPort": self.inbound["caller"], "egress": egress})

    def marker(self):
        """What tells how far the caller is: the header `x-mark`."""
        self.marks += 1
        mark = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-mark", "value": str(self.marks)}]}}
        return route("HTTPRoute", "marker", "http", [{"filters": [mark], "backendRefs": [{"name": "plain-v1", "port": PORTS["http"]}]}])

    def split(self, group, protocol, *more):
        """Backends with weights, of which at least one leads somewhere."""
        names = [f"{group}-v1", f"{group}-v2", *(["shop"] if group == "shop" else []), *more]
        names = self.rng.sample(names, self.rng.randint(1, len(names)))
        backends = []
        for place, name in enumerate(names):
            weight = self.rng.randint(1, 100) if place == 0 else self.rng.choice([0, 1, self.rng.randint(1, 100)])
            backends.append({"name": name, "port": PORTS[protocol], "weight": weight,
                             **({"namespace": "vault"} if name == "archive" else {})})
        self.rng.shuffle(backends)
        return backends

    def http_rule(self, group, matches):
        rng = self.rng
        rule = {"matches": matches, "backendRefs": self.split(group, "http", *(["archive"] if group == "shop" else []))}
        if rng.random() < 0.5:
            rule["timeouts"] = {"request": f"{rng.randint(10, 60)}s", "backendRequest": f"{rng.randint(5, 9)}s"}
        if rng.random() < 0.5:
            codes = rng.sample([500, 502, 503, 504], rng.randint(1, 3))
            rule["retry"] = {"attempts": rng.randint(1, 4), "codes": codes, "backoff": f"{rng.randint(5, 50)}ms"}
        if rng.random() < 0.5:
            change = {"set": [{"name": "x-set", "value": str(rng.randint(0, 99))}], "remove": ["x-remove"]}
            name = rng.choice(["requestHeaderModifier", "responseHeaderModifier"])
            rule["filters"] = [{"type": name[0].upper() + name[1:], name: change}]
        return rule

    def http_route(self, group):
        matches = [
            {"path": {"type": "PathPrefix", "value": "/a"}}, {"path": {"type": "Exact", "value": "/a/b"}},
            {"path": {"type": "RegularExpression", "value": "/a/[b-d]+"}}, {"headers": [{"name": "x-tester", "value": "yes"}]},
            {"queryParams": [{"name": "next", "value": "1"}]}, {"method": "POST"},
        ]
        some = self.rng.sample(matches, self.rng.randint(0, 4))
        rules = [self.http_rule(group, [one]) for one in some] + [self.http_rule(group, [{"path": {"value": "/"}}])]
        return route("HTTPRoute", group, "http", rules)

    def rpc_route(self, group):
        rules = [{"backendRefs": self.split(group, "grpc")}]
        if self.rng.random() < 0.5:
            method = self.rng.choice([{"service": "test.Shop"}, {"service": "test.Shop", "method": "Ask"}, {"method": "Other"}])
            rules.insert(0, {"matches": [{"method": method}], "backendRefs": self.split(group, "grpc")})
        return route("GRPCRoute", group, "grpc", rules)

    def tcp_route(self, group):
        return route("TCPRoute", group, "tcp", [{"backendRefs": self.split(group, "tcp")}])

    def policy(self, group, *names):
        rng = self.rng
        names = names or ([group] if group == "archive" else [group, f"{group}-v1", f"{group}-v2"])
        conditions = rng.sample(["5xx", "reset", "gateway-error", "unavailable", "cancelled"], rng.randint(0, 3))
        spec = {
            "targetRefs": targets(*names), "loadBalancing": rng.choice(["LeastRequest", "RoundRobin", "Random"]),
            "retries": {"retryOn": conditions, "num": rng.randint(1, 4), "perTry": f"{rng.randint(5, 9)}s",
                        "budget": {"percent": rng.randint(20, 100), "minPerSecond": rng.randint(10, 50)}},
            "timeouts": {"request": f"{rng.randint(20, 60)}s", "idle": f"{rng.randint(60, 300)}s", "connect": f"{rng.randint(2, 5)}s"},
            "connections": {"maxConnections": rng.randint(1000, 9999), "maxRequests": rng.randint(1000, 9999)},
        }
        return document("TrafficPolicy", group, spec, "vault" if group == "archive" else "default")

    # Edits.

    def edit(self):
        """One random edit."""
        kinds = [self.edit_route, self.edit_policy, self.edit_slice, self.edit_shop, self.edit_egress, self.edit_other,
                 self.spare, self.mistake]
        self.rng.choices(kinds, [5, 2, 2, 2, 1, 1, 6, 2])[0]()

    def mark(self):
        self.put(self.marker())

    def edit_route(self):
        make = self.rng.choice([self.http_route, self.http_route, self.rpc_route, self.tcp_route])
        self.put(make(self.rng.choice(["shop", "plain"])))

    def edit_policy(self):
        self.put(self.policy(self.rng.choice(["shop", "plain", "archive"])))

    def edit_slice(self):
        """A second endpoint comes, goes, is not ready; a first one moves to another zone."""
        name, owner, namespace = self.rng.choice([("plain-2", "plain-v1", "default"), ("archive-2", "archive", "vault"),
                                                  ("plain-1", "plain-v1", "default"), ("plain-3", "plain-v2", "default")])
        key, second = ("EndpointSlice", namespace, name), name.endswith("2")
        if second and key in self.docs and self.rng.random() < 0.4:
            return self.delete(key)
        self.put(endpoint_slice(name, owner, self.programs[name], namespace, self.rng.choice(["one", "two", "three"]),
                                not second or self.rng.random() < 0.7))

    def edit_shop(self):
        """Weights and places of workloads with sidecars. The second one comes, goes, and changes its version."""
        key = ("Workload", "default", "shop-2")
        if key in self.docs and self.rng.random() < 0.2:
            return self.delete(key)
        name, versions = self.rng.choice([("shop-1", ["v1"]), ("shop-2", ["v1", "v2"]), ("shop-3", ["v2"])])
        self.put(self.shop(name, self.rng.choice(versions)))

    def edit_egress(self):
        there = [name for name in SPARES if ("Service", "default", name) in self.docs]
        self.put(self.caller(self.rng.sample(there, self.rng.randint(0, len(there)))))

    def edit_other(self):
        """What changes little or nothing for the caller: labels, a port that nobody uses, a grant."""
        if self.rng.random() < 0.3:
            return self.put(document("ReferenceGrant", "archive", self.grant(), "vault"))
        doc = copy.deepcopy(self.docs["Service", "default", self.rng.choice(["shop", "shop-v1", "plain-v2", "marker"])])
        doc["metadata"]["labels"] = {"edit": str(self.rng.randint(0, 99))}
        ports = [port for port in doc["spec"]["ports"] if port["name"] != "tcp-more"]
        doc["spec"]["ports"] = ports + ([{"name": "tcp-more", "port": 7071}] if self.rng.random() < 0.5 else [])
        self.put(doc)

    def spare(self):
        """A document without traffic comes, changes or goes; refused when something that it needs is missing or needs it."""
        name, kind = self.rng.choice(SPARES), self.rng.choice(["Service", "Workload", "ReferenceGrant", *DEPENDENTS])
        key = (kind, "default", name)
        there = ("Service", "default", name) in self.docs
        if key in self.docs and self.rng.random() < 0.4:
            needed = kind == "Service" and any((k, "default", name) in self.docs for k in DEPENDENTS)
            egress = self.docs["Workload", "default", "caller"]["spec"]["egress"]
            needed = needed or kind == "Service" and any(item["service"] == name for item in egress)
            return self.delete(key, 409 if needed else None)
        self.put(self.made_spare(kind, name), 422 if kind in DEPENDENTS and not there else None)

    def made_spare(self, kind, name):
        rng = self.rng
        # Nobody listens there, and nobody calls.
        ports = dict(zip(PORTS, rng.sample(range(20000, 30000), len(PORTS))))
        if kind == "Service":
            return service(name, **rng.choice([{}, {"app": name}, {"app": "shop"}]))
        if kind == "Workload":
            spec = {"address": f"127.0.0.{rng.randint(2, 9)}", "ports": [{"name": n, "port": p} for n, p in ports.items()],
                    "egress": [{"service": "shop", "port": PORTS["http"]}] if rng.random() < 0.5 else []}
            return document("Workload", name, spec, labels={"app": name, "version": rng.choice(["v1", "v2"])})
        if kind == "ReferenceGrant":
            return document(kind, name, self.grant())
        if kind == "EndpointSlice":
            return endpoint_slice(name, name, ports, zone=rng.choice(["one", "two"]), ready=rng.random() < 0.5)
        if kind == "TrafficPolicy":
            return self.policy(name, name)
        if kind == "AuthenticationPolicy":
            return document(kind, name, {"targetRefs": targets(name), "mtls": {"mode": rng.choice(["Strict", "Disabled"])}})
        protocol = {"HTTPRoute": "http", "GRPCRoute": "grpc", "TCPRoute": "tcp"}[kind]
        return route(kind, name, protocol, [{"backendRefs": self.split(rng.choice(["shop", "plain"]), protocol, name)}])

    def mistake(self):
        """An edit that must be refused, and must change nothing."""
        shop, policy = self.http_route("shop"), self.policy("shop")
        rule = shop["spec"]["rules"][0]
        way = self.rng.randint(0, 9)
        if way == 0:
            rule["timeuots"] = {}
        elif way == 1:
            rule["matches"] = [{"path": {"type": "RegularExpression", "value": "/[a"}}]
        elif way == 2:
            rule["backendRefs"][0]["weight"] = 1_000_001
        elif way == 3:
            rule["backendRefs"].append({"name": "nobody", "port": 8080})
        elif way == 4:
            rule["backendRefs"].append({"name": "shop-v1", "port": 1})
        elif way == 5:
            policy["metadata"]["name"] = "second"
        elif way == 6:
            policy["spec"]["retries"]["retryOn"] = ["never"]
        elif way == 7:
            return self.delete(("Service", "default", self.rng.choice(["shop", "plain-v1"])), 409)
        elif way == 8:
            return self.delete(("Service", "default", "nobody"), 404)
        else:
            return self.call("POST", path("HTTPRoute", "default"), shop, 409)
        self.put(shop if way < 5 else policy, 422)
