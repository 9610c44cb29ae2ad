"""The Helm chart at a real API server: what a person does with it, from installation to removal."""

import json
import os
import pathlib
import shutil
import subprocess

from cluster import wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = str(ROOT / "deploy/helm/remora")
NAMESPACE = "mesh"


class Node:
    """What the DaemonSet's pod would do on a node, with the rights that it has."""

    def __init__(self, cluster, name):
        self.cluster, self.at = cluster, cluster.folder / f"node-{name}"
        for folder in ("bin", "net.d", "account"):
            (self.at / folder).mkdir(parents=True)
        self.token = cluster.kubectl("create", "token", "remora-cni-install", "-n", NAMESPACE).strip()
        (self.at / "account/token").write_text(self.token)
        shutil.copy(cluster.folder / "ca.pem", self.at / "account/ca.crt")
        self.list = self.at / "net.d/10-pods.conflist"
        self.list.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge"}]}))
        self.process = cluster.processes.start(self.at.name, [
            os.environ["REMORA"], "cni", "install", "--bin-dir", self.at / "bin", "--net-dir", self.at / "net.d", "--account", self.at / "account",
            "--server", cluster.server, f"--daemon-set={NAMESPACE}/remora-cni", f"--service-account={NAMESPACE}/remora-cni"])
        wait_for("the plugin", self.has_plugin)

    def has_plugin(self):
        return "remora-cni" in self.list.read_text()

    def plugins_token(self):
        return json.loads((self.at / "net.d/remora-cni.kubeconfig").read_text())["users"][0]["user"]["token"]

    def keeps_it(self):
        """Whether the plugin stays when the pod ends now."""
        self.cluster.processes.stop(self.process)
        return self.has_plugin()


def chart(cluster, _control):
    """Comes last: what the manifests made for the whole cluster goes first, for the chart has the same names."""
    if not os.environ.get("REMORA_HELM"):
        return "SKIPPED: REMORA_HELM names no helm"
    folder = cluster.folder / "helm"

    def helm(*arguments):
        homes = {f"HELM_{name}_HOME": str(folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA")}
        done = subprocess.run([os.environ["REMORA_HELM"], "--kubeconfig", str(cluster.admin), "--namespace", NAMESPACE, *arguments],
                              capture_output=True, text=True, timeout=120, env={**os.environ, **homes})
        if done.returncode != 0:
            raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def bundles():
        hooks = cluster.get("mutatingwebhookconfiguration", "remora-inject")["webhooks"]
        return [hook["clientConfig"].get("caBundle") for hook in hooks]

    for kind, name in (("mutatingwebhookconfiguration", "remora-inject"), ("clusterrolebinding", "remora-control"), ("clusterrole", "remora-control")):
        cluster.kubectl("delete", kind, name)
    notes = helm("install", "remora", CHART, "--create-namespace")
    assert "kubectl label namespace" in notes and "remora-roots" in notes, notes
    spec = cluster.get("deployment", "remora-control", "-n", NAMESPACE)["spec"]["template"]["spec"]
    assert f"--webhook-service={NAMESPACE}/remora-control" in spec["containers"][0]["args"], spec
    # As a control plane would: an upgrade must not take it away.
    believed = "cm9vdHM="
    patch = [{"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": believed} for number in range(2)]
    cluster.kubectl("patch", "mutatingwebhookconfiguration", "remora-inject", "--type=json", "-p", json.dumps(patch))
    helm("upgrade", "remora", CHART, "--set", "cni.enabled=true,injection.interception=cni,webhook.timeoutSeconds=5")
    assert bundles() == [believed, believed], bundles()
    assert cluster.get("daemonset", "remora-cni", "-n", NAMESPACE)["spec"]["template"]["spec"]["hostNetwork"]

    def may(account, *what):
        done = cluster.kubectl("auth", "can-i", *what, f"--as=system:serviceaccount:{NAMESPACE}:{account}", check=False)
        return done.stdout.strip() == "yes"

    tokens = ("create", "serviceaccounts/remora-cni", "--subresource=token", "-n", NAMESPACE)
    for account in ("remora-cni", "remora-cni-install"):
        assert may(account, "get", "pods", "--all-namespaces"), account
    assert may("remora-cni-install", *tokens) and not may("remora-cni", *tokens), "only the installer makes tokens"
    updated, renewed, deleted, uninstalled = (Node(cluster, name) for name in ("updated", "renewed", "deleted", "uninstalled"))
    assert updated.plugins_token() != updated.token, "the installer's own, which is bound to its pod"
    assert updated.keeps_it(), "only its pod ends"
    # Made anew, as after a deletion by mistake: no token of it is known any more, and the installer notices.
    dead = renewed.plugins_token()
    manifest = cluster.get("serviceaccount", "remora-cni", "-n", NAMESPACE)
    cluster.kubectl("delete", "serviceaccount", "remora-cni", "-n", NAMESPACE)
    kept = {name: manifest["metadata"][name] for name in ("name", "namespace", "labels", "annotations") if name in manifest["metadata"]}
    cluster.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": kept})
    wait_for("a token of the new account", lambda: renewed.plugins_token() not in (dead, renewed.token), 90)
    assert renewed.keeps_it(), "only its pod ends"
    # It stays as it is, for nobody here empties it: what a pod sees that goes first.
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    assert not deleted.keeps_it(), "its namespace is deleted"
    helm("uninstall", "remora")
    assert not uninstalled.keeps_it(), "its DaemonSet and its account are gone"
    left = cluster.kubectl("get", "deployment,daemonset,service,serviceaccount,role,clusterrole,mutatingwebhookconfiguration", "-n", NAMESPACE,
                           "-o", "name").split()
    assert not [name for name in left if "remora" in name], left
    cluster.kubectl("get", "persistentvolumeclaim", "remora-control", "-n", NAMESPACE)
    cluster.kubectl("get", "crd", "trafficpolicies.remora.dev")
    return ("installed, upgraded with the CNI plugin (caBundle stays; a token of its own, another one when its account is made anew, and away with its namespace or DaemonSet), uninstalled; "
            "the volume and the definitions stay")
