"""Kubernetes without nodes: etcd, an API server and the controllers that make pods of Deployments. The kubelet is the checks."""

import contextlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import time

GIVEN = set()
# What makes pods, their accounts and endpoints, and removes what has no owner.
CONTROLLERS = ("deployment-controller,replicaset-controller,serviceaccount-controller,endpointslice-controller,"
               "garbage-collector-controller,root-ca-certificate-publisher-controller")

def free_port():
    """A port to listen on later: none of those that connections get."""
    while True:
        port = random.randint(15200, 32000)
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            if port not in GIVEN:
                GIVEN.add(port)
                return port

def wait_for(what, condition, seconds=60, every=0.05):
    """Polls until `condition` returns something true; returns that."""
    deadline, last = time.monotonic() + seconds, "not yet"
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except Exception as e:  # noqa: BLE001 - whatever keeps it from being ready is worth telling
            last = e
        time.sleep(every)
    raise RuntimeError(f"{what}: not in {seconds} s: {last}")

class Processes:
    """Started here, ended here, by their ids. Their output is in files of `folder`."""

    def __init__(self, folder):
        self.folder, self.running = pathlib.Path(folder), []

    def start(self, name, arguments, **more):
        log = open(self.folder / f"{name}.log", "ab")
        process = subprocess.Popen([str(a) for a in arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **more)
        log.close()
        self.running.append((name, process))
        return process

    def stop(self, process, how=signal.SIGTERM, seconds=20):
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running = [(name, other) for name, other in self.running if other is not process]

    def stop_all(self):
        for _, process in reversed(list(self.running)):
            self.stop(process)

class Cluster:
    """Started by `start`; asked by `kubectl`."""

    def __init__(self, folder, programs, processes):
        self.folder, self.programs, self.processes = pathlib.Path(folder), pathlib.Path(programs), processes
        self.port, self.etcd = free_port(), free_port()
        self.server = f"https://localhost:{self.port}"
        # Further arguments of the API server.
        self.more = ()
        self.admin = self.folder / "admin.kubeconfig"

    def start(self):
        self.certificates()
        peer = free_port()
        self.processes.start("etcd", [
            "etcd", "--data-dir", self.folder / "etcd", "--listen-client-urls", f"http://127.0.0.1:{self.etcd}",
            "--advertise-client-urls", f"http://127.0.0.1:{self.etcd}", "--listen-peer-urls", f"http://127.0.0.1:{peer}",
            "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", f"default=http://127.0.0.1:{peer}",
            "--unsafe-no-fsync"])
        self.kubeconfig(self.admin, "admin-of-the-checks")
        self.start_server()
        self.processes.start("controllers", [
            self.programs / "kube-controller-manager", "--kubeconfig", self.admin, "--leader-elect=false",
            "--controllers", CONTROLLERS, "--service-account-private-key-file", self.folder / "accounts.key",
            "--root-ca-file", self.folder / "ca.pem", "--secure-port=0"])
        wait_for("the default account", lambda: self.kubectl("get", "serviceaccount", "default"))

    def start_server(self):
        self.api = self.processes.start("apiserver", [
            self.programs / "kube-apiserver", "--etcd-servers", f"http://127.0.0.1:{self.etcd}",
            "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port", self.port,
            "--tls-cert-file", self.folder / "server.pem", "--tls-private-key-file", self.folder / "server.key",
            "--service-cluster-ip-range=10.96.0.0/16", "--authorization-mode=RBAC",
            "--token-auth-file", self.folder / "tokens.csv", "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file", self.folder / "accounts.pub",
            "--service-account-signing-key-file", self.folder / "accounts.key", "--endpoint-reconciler-type=none", *self.more])
        wait_for("the API server", lambda: self.kubectl("get", "--raw", "/readyz") == "ok", 120, 0.2)

    def certificates(self):
        def openssl(*arguments):
            subprocess.run(["openssl", *[str(a) for a in arguments]], check=True, capture_output=True)
        at = self.folder
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl("req", "-x509", *curve, "-keyout", at / "ca.key", "-out", at / "ca.pem", "-subj", "/CN=checks", "-days", 2)
        openssl("req", *curve, "-keyout", at / "server.key", "-out", at / "server.csr", "-subj", "/CN=kube-apiserver")
        (at / "names").write_text("subjectAltName=DNS:localhost,DNS:kubernetes.default.svc,IP:127.0.0.1\n")
        openssl("x509", "-req", "-in", at / "server.csr", "-CA", at / "ca.pem", "-CAkey", at / "ca.key", "-CAcreateserial",
                "-out", at / "server.pem", "-days", 2, "-extfile", at / "names")
        openssl("genrsa", "-out", at / "accounts.key", 2048)
        openssl("rsa", "-in", at / "accounts.key", "-pubout", "-out", at / "accounts.pub")
        (at / "tokens.csv").write_text('admin-of-the-checks,admin,admin,"system:masters"\n')

    def kubeconfig(self, path, token):
        """A kubeconfig in JSON, which is YAML."""
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.server, "certificate-authority": str(self.folder / "ca.pem")}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}))
        os.chmod(path, 0o600)
        return path

    def kubectl(self, *arguments, text=None, check=True):
        done = subprocess.run(["kubectl", "--kubeconfig", self.admin, *arguments], input=text, capture_output=True, text=True,
                              timeout=60, env={**os.environ, "HOME": str(self.folder)})
        if check and done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout if check else done

    def apply(self, *documents):
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        return self.kubectl("apply", "-f", "-", text=json.dumps(listed))

    def get(self, *arguments):
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def pods(self, namespace, app):
        items = self.get("pods", "-n", namespace, "-l", f"app={app}")["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def run(self, namespace, pod, address, ready=True):
        """What a kubelet says of a pod that it started."""
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                  "conditions": [{"type": kind, "status": "True" if ready else "False"} for kind in ("Ready", "ContainersReady")]}
        self.kubectl("patch", "pod", pod, "-n", namespace, "--subresource=status", "--type=merge", "-p",
                     json.dumps({"status": status}))
