"""A control plane that is not ours drives `remora proxy`: go-control-plane's server and snapshot cache (go-control-plane/main.go)."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request

from traffic import http_client, traffic
from world import free_port, load_assignment, socket_address, wait_for, world

NODE = "shop-1"
ADS = {"ads": {}, "resource_api_version": "V3"}
ROUTER = {"name": "envoy.filters.http.router",
          "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
LUA = {"name": "envoy.filters.http.lua",
       "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua",
                        "default_source_code": {"inline_string": "-- nothing"}}}
KINDS = {"Cluster": "cluster", "ClusterLoadAssignment": "endpoint", "Listener": "listener", "RouteConfiguration": "route"}


def resource(kind, **fields):
    return {"@type": f"type.googleapis.com/envoy.config.{KINDS[kind]}.v3.{kind}", **fields}


def eds_cluster(name, connect="1s"):
    return resource("Cluster", name=name, type="EDS", eds_cluster_config={"eds_config": ADS}, connect_timeout=connect)


def static_cluster(name, port):
    return resource("Cluster", name=name, type="STATIC", connect_timeout="1s", load_assignment=load_assignment(name, port))


def endpoints(cluster, port):
    return resource("ClusterLoadAssignment", **load_assignment(cluster, port))


def to(cluster, prefix="/"):
    return {"match": {"prefix": prefix}, "route": {"cluster": cluster}}


def table(*entries):
    return {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": list(entries)}]}


def routes(name, *entries):
    return resource("RouteConfiguration", name=name, **table(*entries))


def listener(name, port, routes, server="one", filters=(ROUTER,)):
    """`routes`: a name for RDS, or a table."""
    where = {"rds": {"route_config_name": routes, "config_source": ADS}} if isinstance(routes, str) else {"route_config": routes}
    manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
               "stat_prefix": name, "server_name": server, "http_filters": list(filters), **where}
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return resource("Listener", name=name, address=socket_address("127.0.0.1", port), filter_chains=[chain])


class Plane:
    """The server, and the resources that it is to serve: (kind, name) -> resource."""

    def __init__(self, w):
        self.w, self.mesh, self.version, self.xds = w, {}, 0, "127.0.0.1:0"
        self.start()

    def start(self):
        self.process = self.w.start("go", os.environ["GO_CONTROL_PLANE"], "-node", NODE, "-xds", self.xds)
        line = wait_for("go-control-plane", lambda: (self.w.dir / "go.log").read_text().partition("\n")[0])
        self.xds, self.http = json.loads(line)["xds"], json.loads(line)["http"]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.w.processes.remove(self.process)

    def publish(self, *changed, without=()):
        """A snapshot with these resources changed, and those of `without` gone. Its version."""
        for one in changed:
            kind = one["@type"].rpartition(".")[2]
            self.mesh[kind, one.get("name") or one["cluster_name"]] = one
        for key in without:
            del self.mesh[key]
        self.version += 1
        body = {"version_info": str(self.version), "resources": list(self.mesh.values())}
        request = urllib.request.Request(f"http://{self.http}/snapshot", json.dumps(body).encode(), method="PUT")
        try:
            urllib.request.urlopen(request, timeout=10).close()
        except urllib.error.HTTPError as e:
            raise RuntimeError(e.read().decode()) from e
        return str(self.version)

    def answers(self, kind, version):
        """What the proxy said to this version: reasons; empty is an ACK."""
        with urllib.request.urlopen(f"http://{self.http}/answers", timeout=10) as answer:
            said = json.load(answer) or []
        return [one["refused"] for one in said if one["type"].endswith("." + kind) and one["version"] == version]

    def accepted(self, kind, version):
        wait_for(f"the ACK of {kind} {version}", lambda: "" in self.answers(kind, version))

    def refused(self, kind, version):
        return wait_for(f"the NACK of {kind} {version}", lambda: [said for said in self.answers(kind, version) if said])[0]


def ask(port, path="/"):
    """Status, text and the header `server`, on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers={"connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.getheader("server")
    finally:
        connection.close()


def is_closed(port):
    try:
        ask(port)
    except ConnectionRefusedError:
        return True
    return False


def becomes(port, path, *wanted):
    """Waits until this is the answer, and sees that it stays so."""
    def same():
        return ask(port, path)[: len(wanted)] == wanted

    wait_for(f"{wanted} at {path}", same)
    assert all(same() for _ in range(20)), f"{path} does not stay {wanted}: {ask(port, path)}"


def follows(plane, proxy, ports, apps):
    """Updates, additions and removals, of each kind."""
    main, inline, extra = ports
    plane.publish(endpoints("shop", apps["two"]))
    becomes(main, "/", 200, "two")
    plane.publish(routes("shop", to("fixed", "/new"), to("fixed", "/fixed"), to("shop")))
    becomes(main, "/new", 200, "three")
    version = plane.publish(static_cluster("fixed", apps["one"]), eds_cluster("shop", connect="2s"))
    becomes(main, "/fixed", 200, "one")
    becomes(inline, "/", 200, "one")
    plane.accepted("Cluster", version)
    plane.publish(listener("shop", main, "shop", server="two"))
    becomes(main, "/", 200, "two", "two")
    # A new listener, whose routes, cluster and endpoints are new too.
    plane.publish(listener("extra", extra, "extra"), routes("extra", to("extra")), eds_cluster("extra"),
                  endpoints("extra", apps["three"]))
    becomes(extra, "/", 200, "three")
    # In the other direction: a route, another name for the routes, then a listener with all that it used.
    plane.publish(routes("shop", to("shop", "/shop"), to("fixed", "/fixed"), to("shop")))
    becomes(main, "/new", 200, "two")
    plane.publish(listener("shop", main, "routes", server="two"),
                  routes("routes", to("fixed", "/fixed"), to("shop")), without=[("RouteConfiguration", "shop")])
    wait_for("the old routes to go", lambda: ("route_config", "shop") not in proxy.resources())
    gone = ["Listener", "RouteConfiguration", "Cluster", "ClusterLoadAssignment"]
    plane.publish(without=[(kind, "extra") for kind in gone])
    wait_for("the listener to close", lambda: is_closed(extra))
    wait_for("its resources to go", lambda: not [name for _, name in proxy.resources() if name == "extra"])


def refuses(plane, proxy, ports, apps):
    """A bad listener and bad routes in one snapshot with good ones; then their correction. The reasons."""
    main, inline, extra = ports
    bad = free_port()
    good = proxy.resources()["route_config", "routes"]
    regex = {"match": {"safe_regex": {"regex": "/[a"}}, "route": {"cluster": "shop"}}
    version = plane.publish(
        listener("bad", bad, table(to("shop")), filters=(LUA, ROUTER)),
        listener("good", extra, table(to("good"))), static_cluster("good", apps["three"]),
        routes("routes", regex, to("fixed")),
    )
    of_listener, of_routes = plane.refused("Listener", version), plane.refused("RouteConfiguration", version)
    assert "bad" in of_listener and "Lua" in of_listener and "good" not in of_listener, of_listener
    assert "routes" in of_routes and "regex" in of_routes, of_routes
    becomes(extra, "/", 200, "three")
    assert is_closed(bad)
    assert proxy.resources()["route_config", "routes"] == good
    becomes(main, "/", 200, "two")
    # In the state-of-the-world variant this server answers a NACK with the same once more.
    before = len(plane.answers("Listener", version))
    time.sleep(2)
    nacks = len(plane.answers("Listener", version)) - before
    assert nacks <= 3, f"{nacks} NACKs of the same version in 2 s"
    version = plane.publish(listener("bad", bad, table(to("shop"))), routes("routes", to("fixed", "/fixed"), to("shop")))
    becomes(bad, "/", 200, "two")
    plane.accepted("Listener", version)
    plane.accepted("RouteConfiguration", version)
    return of_listener, of_routes


def restarted(plane, proxy, ports, flow, apps):
    """The server is killed, comes back without anything, and then with everything."""
    def more_traffic():
        before = flow.count()
        wait_for("traffic", lambda: flow.count() > before + 100)

    before = proxy.resources()
    plane.kill()
    more_traffic()
    assert proxy.resources() == before
    plane.start()
    wait_for("the new stream", lambda: "stream 1 is open" in plane.w.log("go"))
    more_traffic()
    assert proxy.resources() == before
    plane.publish(endpoints("shop", apps["one"]))
    becomes(ports[0], "/", 200, "one")
    assert proxy.resources().keys() == before.keys()


def drive(variant):
    """The whole life under one variant of the protocol."""
    with world(mesh=False) as w:
        plane = Plane(w)
        proxy = w.proxy("proxy", NODE, variant, plane.xds)
        ports = main, inline, _ = [free_port() for _ in range(3)]
        apps = {name: w.application(name) for name in ("one", "two", "three")}
        try:
            plane.publish(
                eds_cluster("shop"), endpoints("shop", apps["one"]), static_cluster("fixed", apps["three"]),
                listener("shop", main, "shop"), routes("shop", to("fixed", "/fixed"), to("shop")),
                listener("inline", inline, table(to("fixed"))),
            )
            for port, path, text in [(main, "/", "one"), (main, "/fixed", "three"), (inline, "/", "three")]:
                becomes(port, path, 200, text)
            clients = [("kept connection", http_client(main), apps), ("new connections", http_client(main, keep_alive=False), apps),
                       ("/fixed", http_client(main, "/fixed"), apps), ("inline", http_client(inline), apps)]
            with traffic(*clients) as flow:
                follows(plane, proxy, ports, apps)
                reasons = refuses(plane, proxy, ports, apps)
                restarted(plane, proxy, ports, flow, apps)
        except Exception:
            print(f"--- go-control-plane\n{w.log('go')}\n--- proxy\n{w.log('proxy')}")
            raise
        reasons = ", ".join(f"{said.partition(': ')[0]} ({said.rpartition(': ')[2]})" for said in reasons)
        return (f"{plane.version} snapshots followed, {flow.count()} requests, none failed; refused by name, then corrected: {reasons}; "
                f"server killed and restarted: nothing was lost")
