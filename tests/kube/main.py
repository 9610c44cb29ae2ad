"""The checks of run.sh."""

import base64
import http.client
import json
import os
import pathlib
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

from chart import chart
from cluster import Cluster, Processes, free_port, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
REMORA = os.environ["REMORA"]
SHOP, PLAIN = "shop", "plain"
# An edit reaches a sidecar within this.
SOON = 1.0


def check(condition, what):
    if not condition:
        raise AssertionError(what)


def fetch(method, url, body=None):
    request = urllib.request.Request(url, method=method, data=body and json.dumps(body).encode(),
                                     headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def deployment(namespace, name, labels=None, annotations=None, replicas=1):
    pod = {"metadata": {"labels": {"app": name, **(labels or {})}, "annotations": annotations or {}},
           "spec": {"containers": [{"name": "main", "image": "example/main:1", "readinessProbe": {"httpGet": {"port": 8080}}}]}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": pod}}


def service(name, port=80, **more):
    ports = [{"name": "http", "port": port, "targetPort": 8080}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP},
            "spec": {"selector": {"app": name}, "ports": ports, **more}}


def redirect(name, to, parent="web"):
    rule = {"filters": [{"type": "RequestRedirect", "requestRedirect": {"hostname": to}}]}
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name, "namespace": SHOP},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": parent}], "rules": [rule]}}


def policy(name, retries):
    return {"apiVersion": "remora.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": name, "namespace": SHOP},
            "spec": {"targetRefs": [{"kind": "Service", "name": name}], "retries": retries}}


def condition(conditions, kind):
    return next((c["status"], c["message"]) for c in conditions if c["type"] == kind)


def has_sidecar(pod):
    return any(container["name"] == "remora-proxy" for container in pod["spec"].get("initContainers", []))


class Control:
    """`remora control`, with the rights of the manifests. Sidecars reach it at `address`."""

    def __init__(self, cluster, name="control", *more, address="127.0.0.1"):
        self.cluster, self.folder, self.name, self.more, self.address = cluster, cluster.folder, name, more, address
        self.tls = free_port()
        token = cluster.kubectl("create", "token", "remora-control", "-n", "remora-system", "--duration", "4h").strip()
        (self.folder / "control.token").write_text(token)
        self.kubeconfig = cluster.kubeconfig(self.folder / "control.kubeconfig", token)

    def start(self):
        addresses = self.folder / f"{self.name}.addresses"
        addresses.unlink(missing_ok=True)
        self.process = self.cluster.processes.start(self.name, [
            REMORA, "control", f"--kubernetes={self.kubeconfig}", "--data", self.folder / self.name,
            "--listen-xds", "127.0.0.1:0", "--listen-tls", f"{self.address}:{self.tls}", "--listen-rest", "127.0.0.1:0",
            "--address-path", addresses, *self.more,
            "--token-review", f"{self.cluster.server}/apis/authentication.k8s.io/v1/tokenreviews",
            "--token-review-ca", self.folder / "ca.pem", "--token-review-token", self.folder / "control.token",
            "--root-overlap", "1s", "--ephemeral-ports"])
        self.addresses = json.loads(wait_for("the control plane", lambda: addresses.exists() and addresses.read_text()))

    def stop(self, how=signal.SIGTERM):
        self.cluster.processes.stop(self.process, how)

    def ask(self, method, path, body=None):
        return fetch(method, f"http://{self.addresses['rest']}{path}", body)

    def status(self):
        return json.loads(self.ask("GET", "/status")[1])

    def documents(self, kind="httproutes", group="apis/gateway.networking.k8s.io/v1"):
        items = json.loads(self.ask("GET", f"/{group}/namespaces/{SHOP}/{kind}")[1])["items"]
        return {item["metadata"]["name"]: item for item in items}

    def instances(self):
        items = json.loads(self.ask("GET", "/remora/v1/instances")[1])["items"]
        return {item["metadata"]["name"]: item for item in items}


class Sidecar:
    """The container of an injected pod as a process here: its own arguments, other ports and folders."""

    def __init__(self, cluster, pod, address):
        self.folder = cluster.folder / pod["metadata"]["name"]
        self.folder.mkdir()
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        roots = cluster.get("configmap", "remora-roots", "-n", namespace)["data"]["roots.pem"]
        (self.folder / "roots.pem").write_text(roots)
        account = pod["spec"]["serviceAccountName"]
        (self.folder / "token").write_text(
            cluster.kubectl("create", "token", account, "-n", namespace, "--audience", "istio-ca").strip())
        container = next(c for c in pod["spec"]["initContainers"] if c["name"] == "remora-proxy")
        arguments = list(container["args"])
        at = arguments.index("--config-yaml") + 1
        text = arguments[at]
        for variable, value in {"POD_NAME": name, "POD_NAMESPACE": namespace, "POD_IP": address}.items():
            text = text.replace(f"$({variable})", value)
        config = json.loads(text.replace("$$", "$"))
        # Their ports are those of a pod, which has a network of its own.
        config["static_resources"]["listeners"] = []
        # And nothing is led to it: Services are on ports of loopback.
        config["node"]["metadata"] |= {"INTERCEPTION_MODE": "NONE", "INSTANCE_IPS": address}
        config["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}}
        arguments[at] = json.dumps(config)
        here = {"/etc/remora/roots/roots.pem": "roots.pem", "/var/run/secrets/remora/tokens/token": "token",
                "/var/lib/remora/identity": "identity", "/var/lib/remora/state": "state"}
        arguments = [str(self.folder / here[a]) if a in here else a for a in arguments]
        admin = self.folder / "admin"
        self.process = cluster.processes.start(f"sidecar-{name}", [REMORA, *arguments, "--admin-address-path", admin])
        self.admin = "http://" + wait_for("the sidecar", lambda: admin.exists() and admin.read_text())

    def ready(self):
        return fetch("GET", f"{self.admin}/ready")[0] == 200

    def listener(self, part):
        """Port of the listener with `part` in its name."""
        text = fetch("GET", f"{self.admin}/listeners?format=json")[1]
        for listener in json.loads(text)["listener_statuses"]:
            if part in listener["name"]:
                return listener["local_address"]["socket_address"]["port_value"]
        raise LookupError(f"no listener of {part}: {text}")

    def endpoints(self, part):
        lines = fetch("GET", f"{self.admin}/clusters")[1].splitlines()
        found = (line.split("::") for line in lines if part in line.split("::")[0])
        return {words[1] for words in found if len(words) > 3 and words[2] == "health_flags"}


class Edits:
    """One HTTPS connection to the API server, and one to the sidecar: what is measured is not kubectl."""

    def __init__(self, cluster, port):
        context = ssl.create_default_context(cafile=cluster.folder / "ca.pem")
        self.api = http.client.HTTPSConnection("localhost", cluster.port, context=context, timeout=10)
        self.sidecar = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def patch(self, path, patch):
        self.api.request("PATCH", path, json.dumps(patch), {
            "authorization": "Bearer admin-of-the-checks", "content-type": "application/merge-patch+json"})
        answer = self.api.getresponse()
        body = answer.read()
        check(answer.status == 200, f"{path}: {answer.status} {body[:300]}")

    def location(self):
        self.sidecar.request("GET", "/")
        answer = self.sidecar.getresponse()
        answer.read()
        return answer.getheader("location")

    def until(self, wanted, since):
        while time.monotonic() - since < 20:
            if self.location() == wanted:
                return time.monotonic() - since
            time.sleep(0.001)
        raise AssertionError(f"the sidecar says {self.location()} and not {wanted}")


def installed(cluster, *definitions):
    """The files with the definitions of the Gateway API, and the manifests, as a person applies them."""
    # The types of the crate have enumerations with a null, of which kubectl knows nothing.
    files = (argument for path in definitions for argument in ("-f", str(path)))
    cluster.kubectl("apply", "--server-side", "--validate=false", *files)
    cluster.kubectl("apply", "-f", str(ROOT / "deploy/kubernetes/crds.yaml"))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    cluster.kubectl("apply", "-f", str(ROOT / "deploy/kubernetes/control.yaml"))


def webhook(cluster, control):
    """Its configuration, in which it is called by its address: there is no Service network. Returns the seconds until it is believed."""
    path = str(ROOT / "deploy/kubernetes/webhook.yaml")
    configuration = json.loads(cluster.kubectl("create", "--dry-run=client", "-o", "json", "-f", path))
    for hook in configuration["webhooks"]:
        at = hook["clientConfig"].pop("service")["path"]
        hook["clientConfig"]["url"] = f"https://{control.addresses['webhook']}{at}"
    cluster.apply(configuration)
    began = time.monotonic()

    def believed():
        hooks = cluster.get("mutatingwebhookconfiguration", "remora-inject")["webhooks"]
        return all(hook["clientConfig"].get("caBundle") for hook in hooks)
    wait_for("caBundle", believed)
    return time.monotonic() - began


def definitions(cluster, _):
    """The schemas of our own kinds take what the examples say, find mistakes, and explain fields."""
    count = 0
    for path in sorted((ROOT / "deploy/examples").rglob("*.yaml")):
        if "remora.dev/" not in path.read_text():
            continue
        told = cluster.kubectl("create", "--dry-run=client", "--validate=false", "-o", "json", "-f", str(path))
        decoder, items = json.JSONDecoder(), []
        while told := told.lstrip():
            item, end = decoder.raw_decode(told)
            items += item.get("items", [item])
            told = told[end:]
        ours = [item for item in items if item["apiVersion"].startswith("remora.dev/")]
        for item in ours:
            item["metadata"]["namespace"] = SHOP
        if ours:
            listed = {"apiVersion": "v1", "kind": "List", "items": ours}
            cluster.kubectl("apply", "--dry-run=server", "-f", "-", text=json.dumps(listed))
        count += len(ours)
    check(count >= 10, f"{count} examples")
    for retries, told in (({"num": "many"}, "spec.retries.num"), ({"budget": 1}, "spec.retries.budget")):
        wrong = cluster.kubectl("apply", "-f", "-", text=json.dumps(policy("wrong", retries)), check=False)
        check(wrong.returncode != 0 and told in wrong.stderr, f"a wrong type is told: {wrong.stderr}")
    explained = cluster.kubectl("explain", "trafficpolicy.spec.circuitBreaker.waitDurationInOpenState")
    check("no call is let through" in explained, f"fields are explained: {explained}")
    return f"{count} documents of the examples fit their schemas; wrong types are refused by name; kubectl explain"


def injection(cluster, control):
    took = webhook(cluster, control)
    began = time.monotonic()
    cluster.apply(deployment(SHOP, "web", replicas=2), deployment(SHOP, "client"),
                  deployment(PLAIN, "web"), deployment(PLAIN, "asked", labels={"remora.dev/inject": "true"}),
                  deployment(SHOP, "without", labels={"remora.dev/inject": "false"}))
    for namespace, name, count in ((SHOP, "web", 2), (SHOP, "client", 1), (PLAIN, "web", 1), (PLAIN, "asked", 1), (SHOP, "without", 1)):
        pods = wait_for(f"pods of {namespace}/{name}", lambda: len(cluster.pods(namespace, name)) == count and cluster.pods(namespace, name))
        wanted = (namespace, name) not in ((PLAIN, "web"), (SHOP, "without"))
        check(all(has_sidecar(pod) == wanted for pod in pods), f"{namespace}/{name}: sidecar is to be {wanted}")
    pods_in = time.monotonic() - began
    for namespace in (SHOP, PLAIN):
        data = cluster.get("configmap", "remora-roots", "-n", namespace)["data"]
        check("BEGIN CERTIFICATE" in data["roots.pem"], "the roots are in every namespace")
    wrong = deployment(SHOP, "wrong", annotations={"remora.dev/concurrency": "many"})["spec"]["template"]
    denied = cluster.kubectl("apply", "-f", "-", check=False, text=json.dumps(
        {"apiVersion": "v1", "kind": "Pod", **wrong, "metadata": {**wrong["metadata"], "name": "wrong", "namespace": SHOP}}))
    check(denied.returncode != 0 and "remora.dev/concurrency" in denied.stderr, f"a wrong annotation is told: {denied.stderr}")
    return f"caBundle in {took:.1f} s, 5 Deployments have their pods in {pods_in:.1f} s; a wrong annotation is denied by name"


def sources(cluster, control):
    gateway = redirect("of-a-gateway", "other.example")
    gateway["spec"]["parentRefs"] = [{"name": "front"}]
    cluster.apply(service("web", type="NodePort"), service("client"), redirect("web", "first.example"), gateway,
                  policy("web", {"num": 1}), policy("client", {"attempts": 1}))
    wait_for("the route", lambda: "web" in control.documents())
    documents = control.documents()
    check(list(documents) == ["web"], f"a route of a Gateway is none of ours: {list(documents)}")
    wait_for("the Service", lambda: "web" in control.documents("services", "api/v1"))
    spec = control.documents("services", "api/v1")["web"]["spec"]
    check(spec["clusterIP"].startswith("10.96.") and "type" not in spec, f"what the mesh needs of a Service: {spec}")
    wait_for("the policy", lambda: "web" in control.documents("trafficpolicies", "apis/remora.dev/v1alpha1"))

    def of_policy(name):
        return cluster.get("trafficpolicy", name, "-n", SHOP)["status"]["conditions"]

    def of_route(name):
        (ours,) = (p for p in cluster.get("httproute", name, "-n", SHOP)["status"]["parents"] if p["controllerName"] == "remora.dev/control")
        return ours["conditions"]
    wait_for("status of a policy", lambda: condition(of_policy("web"), "Accepted")[0] == "True")
    wait_for("status of a route", lambda: condition(of_route("web"), "remora.dev/Programmed")[0] == "True")
    status, message = wait_for("status of a wrong policy", lambda: condition(of_policy("client"), "Accepted"))
    check(status == "False" and "spec.retries.attempts" in message, f"a mistake is named in Kubernetes: {status} {message}")
    check("status" not in cluster.get("httproute", "of-a-gateway", "-n", SHOP), "a route of others has no status of ours")
    path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{SHOP}/httproutes/web"
    for method, body in (("DELETE", None), ("PUT", redirect("web", "mine.example"))):
        code, text = control.ask(method, path, body)
        check(code == 403 and "change it there" in text, f"{method} is refused: {code} {text}")
    return ("Service, HTTPRoute, TrafficPolicy as documents; a Gateway's route left out; their status is in Kubernetes, with the field of "
            "a mistake; REST refuses to change them (403)")


def sidecar(cluster, control):
    client = cluster.pods(SHOP, "client")[0]
    cluster.run(SHOP, client["metadata"]["name"], "127.0.0.2")
    wait_for("the instance", lambda: client["metadata"]["name"] in control.instances())
    began = time.monotonic()
    beside = Sidecar(cluster, client, "127.0.0.2")
    wait_for("the sidecar's configuration", beside.ready)
    ready_in = time.monotonic() - began
    port = wait_for("the listener", lambda: beside.listener("web"))
    edits = Edits(cluster, port)
    wait_for("the first route", lambda: edits.location() == "http://first.example/")
    times = []
    path = f"/apis/gateway.networking.k8s.io/v1/namespaces/{SHOP}/httproutes/web"
    for number in range(30):
        to, since = f"host-{number}.example", time.monotonic()
        edits.patch(path, {"spec": redirect("web", to)["spec"]})
        times.append(edits.until(f"http://{to}/", since))
    check(max(times) < SOON, f"an edit took {max(times):.3f} s")
    pods = [pod["metadata"]["name"] for pod in cluster.pods(SHOP, "web")]
    cluster.kubectl("delete", "httproute", "web", "-n", SHOP)
    for number, pod in enumerate(pods):
        cluster.run(SHOP, pod, f"127.0.0.{10 + number}", ready=False)
    wait_for("not ready", lambda: all(control.instances().get(pod, {}).get("spec", {}).get("health") == "Absent" for pod in pods))
    check(not beside.endpoints("web"), f"a pod that is not ready is no endpoint: {beside.endpoints('web')}")
    seen = []
    for number, pod in enumerate(pods):
        cluster.run(SHOP, pod, f"127.0.0.{10 + number}")
        since = time.monotonic()
        wait_for("an endpoint", lambda: len(beside.endpoints("web")) == number + 1, every=0.002)
        seen.append(time.monotonic() - since)
    check(beside.endpoints("web") == {"127.0.0.10:15006", "127.0.0.11:15006"}, f"{beside.endpoints('web')}")
    cluster.kubectl("delete", "pod", pods[0], "-n", SHOP, "--force", "--grace-period=0")
    wait_for("the end of a pod", lambda: beside.endpoints("web") == {"127.0.0.11:15006"})
    return (f"ready {ready_in:.1f} s after its start; 30 edits of an HTTPRoute in force after {statistics.median(times) * 1000:.0f} ms "
            f"(median), {max(times) * 1000:.0f} ms (longest), asked of the API server until answered by the sidecar; "
            f"a ready pod after {max(seen) * 1000:.0f} ms")


def rotation(cluster, control):
    authority = lambda: json.loads(control.ask("GET", "/remora/v1/ca")[1])  # noqa: E731
    root = json.loads(control.ask("POST", "/remora/v1/ca/rotate")[1])["root"]

    def believed():
        hooks = cluster.get("mutatingwebhookconfiguration", "remora-inject")["webhooks"]
        return [base64.b64decode(hook["clientConfig"]["caBundle"]).decode().count("BEGIN CERT") for hook in hooks]
    wait_for("both roots in caBundle", lambda: believed() == [2, 2])
    wait_for("both roots in a namespace",
             lambda: cluster.get("configmap", "remora-roots", "-n", SHOP)["data"]["roots.pem"].count("BEGIN CERT") == 2)
    signs = lambda: [r["id"] for r in authority()["roots"] if r["phase"] == "Signing"] == [root]  # noqa: E731
    wait_for("the new root signs", signs)
    newest = authority()["trusted"].rsplit("-----BEGIN CERT", 1)
    context = ssl.create_default_context(cadata="-----BEGIN CERT" + newest[1])
    host, port = control.addresses["webhook"].split(":")

    def by_the_new_one():
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=5)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    wait_for("the webhook's certificate is of the new root", by_the_new_one)
    cluster.apply(deployment(SHOP, "after"))
    pods = wait_for("a pod after the rotation", lambda: cluster.pods(SHOP, "after"))
    check(has_sidecar(pods[0]), "it has a sidecar")
    return "both roots in caBundle and ConfigMaps; the webhook has a certificate of the new one; pods are made all the while"


def replicas(cluster, control):
    """Two more control planes, with one store."""
    control.stop()
    store = ("--store", f"etcd://127.0.0.1:{cluster.etcd}/mesh", "--roots-config-map", "remora-roots")
    both = [Control(cluster, f"replica-{number}", *store) for number in (1, 2)]
    for one in both:
        one.start()
        wait_for("the store has the routes", lambda: set(one.documents()) == {"web", "new"})
    reads = lambda: [one for one in both if one.status()["kubernetes"]]  # noqa: E731
    check(reads() == [both[0]], f"one of them reads Kubernetes: {[one.name for one in reads()]}")
    both[0].stop(signal.SIGKILL)
    cluster.apply(redirect("later", "later.example", "client"))
    began = time.monotonic()
    wait_for("the other one has what changed", lambda: "later" in both[1].documents())
    took = time.monotonic() - began
    both[1].stop()
    return f"one of two reads Kubernetes; {took:.1f} s after it was killed the other one does"


def restarts(cluster, control):
    cluster.apply(redirect("web", "kept.example"), redirect("gone", "gone.example", "client"))
    wait_for("both routes", lambda: set(control.documents()) == {"web", "gone"})
    control.stop()
    cluster.kubectl("delete", "httproute", "gone", "-n", SHOP)
    cluster.apply(redirect("new", "new.example", "client"))
    cluster.processes.stop(cluster.api)
    control.start()
    wait_for("what was kept", lambda: set(control.documents()) == {"web", "gone"})
    synced = lambda: [proxy["state"] for proxy in control.status()["proxies"]]  # noqa: E731
    wait_for("the sidecar is served while the API server is away", lambda: synced() == ["Synced"])
    began = time.monotonic()
    cluster.start_server()
    up = time.monotonic()
    wait_for("what changed", lambda: set(control.documents()) == {"web", "new"}, 120)
    return (f"served from its store without an API server; what changed meanwhile {time.monotonic() - up:.1f} s after that was ready "
            f"({up - began:.1f} s to start)")


def main():
    folder = pathlib.Path(tempfile.mkdtemp(prefix="remora-kube-"))
    processes = Processes(folder)
    checks = (definitions, injection, sources, sidecar, rotation, restarts, replicas, chart)
    try:
        cluster = Cluster(folder, os.environ["KUBERNETES"], processes)
        began = time.monotonic()
        cluster.start()
        installed(cluster, os.environ["GATEWAY_CRDS"])
        cluster.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
                        for name, labels in ((SHOP, {"remora.dev/inject": "true"}), (PLAIN, {}))))
        control = Control(cluster, "control", "--listen-webhook", "127.0.0.1:0", "--inject-control", "127.0.0.1:1")
        control.more = (*control.more[:-1], f"127.0.0.1:{control.tls}")
        control.start()
        wait_for("Kubernetes has been read", lambda: (control.status()["kubernetes"] or {}).get("synced"))
        version = json.loads(cluster.kubectl("get", "--raw", "/version"))["gitVersion"]
        print(f"Kubernetes {version}, started and installed in {time.monotonic() - began:.1f} s", flush=True)
        for run in checks:
            print(f"ok    {run.__name__}: {run(cluster, control)}", flush=True)
        return 0
    except Exception as error:  # noqa: BLE001 - told with the logs
        print(f"FAIL  {error}", file=sys.stderr)
        for name in ("control", "apiserver", "controllers"):
            log = folder / f"{name}.log"
            if log.exists():
                print(f"--- {name}\n" + "".join(log.read_text(errors='replace').splitlines(True)[-25:]), file=sys.stderr)
        if os.environ.get("KEEP"):
            print(f"kept: {folder}", file=sys.stderr)
            raise
        return 1
    finally:
        processes.stop_all()
        if not os.environ.get("KEEP"):
            subprocess.run(["rm", "-rf", str(folder)], check=False)


if __name__ == "__main__":
    sys.exit(main())
