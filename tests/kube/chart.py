"""The Helm chart at a real API server: what a person does with it, from installation to removal."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = str(ROOT / "deploy/helm/remora")
NAMESPACE = "mesh"


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
    assert "kubectl label namespace" in notes, notes
    spec = cluster.get("deployment", "remora-control", "-n", NAMESPACE)["spec"]["template"]["spec"]
    assert f"--webhook-service={NAMESPACE}/remora-control" in spec["containers"][0]["args"], spec
    # As a control plane would: an upgrade must not take it away.
    believed = "cm9vdHM="
    patch = [{"op": "add", "path": f"/webhooks/{number}/clientConfig/caBundle", "value": believed} for number in range(2)]
    cluster.kubectl("patch", "mutatingwebhookconfiguration", "remora-inject", "--type=json", "-p", json.dumps(patch))
    helm("upgrade", "remora", CHART, "--set", "cni.enabled=true,injection.interception=cni,webhook.timeoutSeconds=5")
    assert bundles() == [believed, believed], bundles()
    assert cluster.get("daemonset", "remora-cni", "-n", NAMESPACE)["spec"]["template"]["spec"]["hostNetwork"]
    helm("uninstall", "remora")
    left = cluster.kubectl("get", "deployment,daemonset,service,serviceaccount,role,clusterrole,mutatingwebhookconfiguration", "-n", NAMESPACE,
                           "-o", "name").split()
    assert not [name for name in left if "remora" in name], left
    cluster.kubectl("get", "persistentvolumeclaim", "remora-control", "-n", NAMESPACE)
    cluster.kubectl("get", "crd", "trafficpolicies.remora.dev")
    return "installed, upgraded with the CNI plugin (caBundle stays), uninstalled; the volume and the definitions stay"
