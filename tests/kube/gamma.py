"""The Gateway API's conformance cases for meshes, in namespaces of this process alone: see gamma.sh, which starts it."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from cluster import Cluster, Processes, wait_for
from main import Control, REMORA, installed, webhook

PROGRAMS = pathlib.Path(os.environ["GAMMA"])
# The Gateway API's own definitions. The policy beside them guards upgrades.
DEFINITIONS = sorted(path for path in pathlib.Path(os.environ["DEFINITIONS"]).glob("gateway*.yaml") if "_vap_" not in path.name)
# The node in the network of its pods: the control plane is there.
NODE = "10.244.0.1"
SECONDS = 900


def network():
    """The node's end of the network of pods. Names of network namespaces, and files over /etc, are nobody else's."""
    for folder in ("/run/netns", "/etc/netns"):
        pathlib.Path(folder).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", folder], check=True)
    for command in ("link set lo up", "link add cni0 type bridge", f"addr add {NODE}/24 dev cni0", "link set cni0 up"):
        subprocess.run(["ip", *command.split()], check=True)


def kubelet(cluster, processes, folder):
    """One node, whose API the API server asks with its certificate."""
    # Everybody may run them: containers are other users.
    for source, name in ((REMORA, "remora"), (PROGRAMS / "echo-basic", "echo"), (PROGRAMS / "client", "client")):
        shutil.copy(source, folder / name)
        (folder / name).chmod(0o755)
    processes.start("kubelet", [
        PROGRAMS / "kubelet", "-kubeconfig", cluster.admin, "-folder", folder / "pods", "-certificate", folder / "server.pem",
        "-key", folder / "server.key", "-ca", folder / "ca.pem", "-remora", folder / "remora", "-echo", folder / "echo",
        "-client", folder / "client"])
    wait_for("the node", lambda: cluster.get("node", "node"))


def cases(cluster):
    """Runs them; their lines go to standard output."""
    only = [f"-run-test={name}" for name in sys.argv[1:]]
    suite = subprocess.run([PROGRAMS / "suite", f"-test.timeout={SECONDS}s", *only], check=False,
                           env={**os.environ, "KUBECONFIG": str(cluster.admin)})
    if suite.returncode != 0:
        raise RuntimeError(f"the suite ended with {suite.returncode}")


def logs(folder):
    """What explains a failure: the last words of everything."""
    for log in sorted([*folder.glob("*.log"), *folder.glob("pods/*/*/*.log")]):
        if log.stem not in ("etcd", "apiserver", "controllers"):
            print(f"--- {log.relative_to(folder)}\n" + "".join(log.read_text(errors="replace").splitlines(True)[-25:]), file=sys.stderr)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="remora-gamma-"))
    folder.chmod(0o755)
    processes = Processes(folder)
    try:
        began = time.monotonic()
        network()
        cluster = Cluster(folder, os.environ["KUBERNETES"], processes)
        cluster.more = ("--kubelet-certificate-authority", folder / "ca.pem", "--kubelet-client-certificate", folder / "server.pem",
                        "--kubelet-client-key", folder / "server.key")
        cluster.start()
        installed(cluster, *DEFINITIONS)
        control = Control(cluster, "control", "--listen-webhook", "127.0.0.1:0", "--tls-name", NODE, address=NODE)
        control.more = (*control.more, "--inject-control", f"{NODE}:{control.tls}")
        control.start()
        wait_for("Kubernetes has been read", lambda: (control.status()["kubernetes"] or {}).get("synced"))
        webhook(cluster, control)
        kubelet(cluster, processes, folder)
        print(f"a cluster with one node in {time.monotonic() - began:.1f} s", flush=True)
        cases(cluster)
        return 0
    except Exception as error:  # noqa: BLE001 - told with the logs
        print(f"FAIL  {error}", file=sys.stderr)
        logs(folder)
        return 1
    finally:
        processes.stop_all()
        if not os.environ.get("KEEP"):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
