"""Programs that are not ours, and know nothing but the documents: openssl, curl and Envoy as peers of a sidecar with certificates of
our CA; and a client of SPIFFE's Workload API and Envoy's SDS at a sidecar's identity socket."""

import contextlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import grpc

from world import free_port, load_assignment, socket_address, wait_for, world

DOMAIN = "svc.cluster.local"
CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
# What TLS calls them (RFC 8446, 6.2).
REVOKED, EXPIRED, UNKNOWN_CA, PROTOCOL_VERSION, CERTIFICATE_REQUIRED = 44, 45, 48, 70, 116
POLICY = "who-may-shop"


def documents(locals_):
    """`locals_`: where the Envoys in the places of callers listen, by the name of the workload, which is that of its service account."""
    text = f"""
apiVersion: v1
kind: Service
metadata: {{name: shop}}
spec: {{ports: [{{name: http, port: 8080, targetPort: http}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: open}}
spec: {{ports: [{{name: http, port: 8080, targetPort: http}}]}}
---
apiVersion: remora.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {POLICY}}}
spec:
  targetRefs: [{{name: shop}}]
  rules:
  - from: [{{source: {{principals: ["*/ns/default/sa/web"]}}}}]
    to: [{{operation: {{methods: [GET], paths: [/, "/items*"]}}}}]
---
apiVersion: remora.dev/v1alpha1
kind: AuthenticationPolicy
metadata: {{name: open}}
spec: {{targetRefs: [{{name: open}}], mtls: {{mode: Permissive}}}}
"""
    for name, port in locals_.items():
        text += f"""---
apiVersion: remora.dev/v1alpha1
kind: Workload
metadata: {{name: {name}}}
spec: {{address: 127.0.0.1, serviceAccount: {name}, egress: [{{service: shop, localPort: {port}}}]}}
"""
    return text


def sni(service):
    return f"outbound_.8080_._.{service}.default.{DOMAIN}"


def spiffe(account):
    return f"spiffe://cluster.local/ns/default/sa/{account}"


def post(url, value):
    request = urllib.request.Request(url, json.dumps(value).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


class Peer:
    """Files with a key and a certificate."""

    def __init__(self, w, name):
        self.dir = w.dir / f"peer-{name}"
        self.dir.mkdir()
        self.key, self.chain, self.roots = (self.dir / f"{file}.pem" for file in ("key", "chain", "roots"))

    def openssl(self, *arguments):
        return subprocess.run(["openssl", *arguments], cwd=self.dir, check=True, capture_output=True, text=True).stdout

    def own(self):
        return ["-cert", self.chain, "-cert_chain", self.chain, "-key", self.key]

    def serial(self):
        return self.openssl("x509", "-in", self.chain, "-noout", "-serial").strip().removeprefix("serial=")

    def ended(self):
        """Past its last second, which is a good one."""
        date = self.openssl("x509", "-in", self.chain, "-noout", "-enddate").strip().removeprefix("notAfter=")
        return time.time() >= ssl.cert_time_to_seconds(date) + 1


def issued(w, account, name=None, seconds=0):
    """A peer with a certificate of our CA, by a join token."""
    peer = Peer(w, name or account)
    token = post(w.rest + "/remora/v1/tokens", {"namespace": "default", "serviceAccount": account, "uses": 1})["token"]
    peer.openssl("req", *CURVE, "-keyout", peer.key, "-out", "csr.pem", "-subj", "/CN=ignored")
    csr = (peer.dir / "csr.pem").read_bytes()
    with grpc.insecure_channel(w.xds) as channel:
        create = channel.unary_unary("/istio.v1.auth.IstioCertificateService/CreateCertificate")
        asked = b"\x0a" + varint(len(csr)) + csr + (b"\x18" + varint(seconds) if seconds else b"")
        *chain, root = strings(create(asked, timeout=10, metadata=[("authorization", f"Bearer {token}")]))
    peer.chain.write_text("".join(chain))
    peer.roots.write_text(root)
    return peer


def varint(number):
    encoded = b""
    while number > 127:
        encoded, number = encoded + bytes([number & 127 | 128]), number >> 7
    return encoded + bytes([number])


def strings(message):
    """A message that is only field 1, repeated string."""
    found = []
    while message:
        assert message[0] == 0x0A, message[:20]
        size, at = 0, 1
        while True:
            size |= (message[at] & 127) << 7 * (at - 1)
            at += 1
            if message[at - 1] < 128:
                break
        found.append(message[at:at + size].decode())
        message = message[at + size:]
    return found


def selfmade(w, account, roots):
    """A peer with the right name, by the wrong CA."""
    peer = Peer(w, "selfmade")
    peer.openssl("req", "-x509", *CURVE, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=elsewhere", "-days", "1")
    peer.openssl("req", *CURVE, "-keyout", peer.key, "-out", "csr.pem", "-subj", "/CN=workload")
    (peer.dir / "leaf.ext").write_text(f"subjectAltName=URI:{spiffe(account)}\nextendedKeyUsage=serverAuth,clientAuth\n")
    peer.openssl("x509", "-req", "-in", "csr.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", peer.chain,
                 "-days", "1", "-extfile", "leaf.ext")
    peer.roots.write_text(roots.read_text())
    return peer


def s_client(port, roots, *options, name=sni("shop")):
    """What openssl shows of a connection on which it asks GET /."""
    names = ["-servername", name] if name else ["-noservername"]
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *names, "-CAfile", roots, "-ign_eof", *options],
        input="GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n", capture_output=True, text=True, timeout=20, errors="replace",
    )
    return done.stdout + done.stderr


def refused(seen, alert=None):
    assert "HTTP/1.1" not in seen, seen
    if alert is None:
        # Without a certificate of its own it says nothing about itself.
        assert "BEGIN CERTIFICATE" not in seen, seen
    else:
        assert f"SSL alert number {alert}\n" in seen, f"no alert {alert}: {seen}"


def uris(peer, seen):
    """The alternative names of the certificate that a server has shown."""
    certificate = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", seen, re.S)
    (peer.dir / "shown.pem").write_text(certificate[0])
    names = peer.openssl("x509", "-in", "shown.pem", "-noout", "-ext", "subjectAltName").splitlines()[1:]
    return [name.strip() for name in ", ".join(names).split(",")]


def shown_serial(peer, seen):
    uris(peer, seen)
    return peer.openssl("x509", "-in", "shown.pem", "-noout", "-serial").strip()


def curl(port, path, peer=None, *options, service="shop"):
    """Status, and the whole answer as text."""
    name = sni(service)
    tls = ["-k", "--cert", peer.chain, "--key", peer.key] if peer else []
    url = f"{'https' if peer else 'http'}://{name}:{port}{path}"
    command = ["curl", "-sSi", "--max-time", "10", "--path-as-is", "--resolve", f"{name}:{port}:127.0.0.1", *tls, *options, url]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return int(done.stdout.split(maxsplit=2)[1]), done.stdout


def denied(answer, what):
    status, text = answer
    assert status == 403 and "x-remora-reason: rbac_denied" in text.lower(), f"{what}: {text}"
    assert POLICY not in text and "rules[" not in text, f"{what} tells the rule: {text}"


class Sidecar:
    """`remora run` of a service."""

    def __init__(self, w, service, *options):
        self.port, folder = free_port(), w.dir / f"run-{service}"
        folder.mkdir()
        # Its own files go where it is told that temporary ones go.
        w.start(service, "env", f"TMPDIR={folder}", os.environ["REMORA"], "run", "--name", service, "--control", w.tls,
                "--server", w.rest, "--service", service, "--service-account", service, "--port", w.application(service),
                "--inbound-port", self.port, *options, "--", "sleep", "600")
        self.admin = wait_for(f"the admin page of {service}", lambda: next(folder.glob("*/admin")).read_text().strip())
        wait_for(f"the sidecar of {service}", lambda: urllib.request.urlopen(f"http://{self.admin}/ready", timeout=5).status == 200)

    def rejected(self):
        """Connections that it did not take, by the reason."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {reason: int(count) for reason, count in
                re.findall(r'^remora_downstream_rejected_total\{[^}]*reason="(\w+)"[^}]*\} (\d+)', text, re.M)}

    @contextlib.contextmanager
    def rejects(self, reason):
        """What happens inside is counted as this, and as nothing else."""
        before = self.rejected()
        yield
        wait_for(f"a connection that was rejected as {reason}", lambda: self.rejected().get(reason, 0) > before.get(reason, 0), 5)
        more = {name for name, count in self.rejected().items() if count != before.get(name, 0)}
        assert more == {reason}, f"{more} instead of {reason}"


@contextlib.contextmanager
def logs(w):
    """What everybody said, when something fails."""
    try:
        yield
    except Exception:
        for log in sorted(w.dir.glob("*.log")):
            print(f"--- {log.stem}\n{w.log(log.stem, 20)}")
        raise


def foreign_peers():
    """openssl, curl and Envoy at a sidecar: who gets in, what they may ask for, and what the others are told."""
    with world(issued=True) as w, logs(w):
        return peers(w)


def peers(w):
    local = {name: free_port() for name in ("web", "stranger")}
    w.apply(documents(local))
    shop, plain = Sidecar(w, "shop"), Sidecar(w, "open")
    web, stranger = issued(w, "web"), issued(w, "stranger")
    wait_for("an answer for web", lambda: curl(shop.port, "/", web)[0] == 200)

    handshakes(w, shop, web)
    requests(shop, web, stranger)
    took = revoked(w, shop)
    for peer, account in ((web, "web"), (stranger, "stranger")):
        envoy_caller(w, account, peer)
    wait_for("an answer for Envoy as web", lambda: ask(local["web"])[0] == 200)
    denied(wait_for("an answer for Envoy as stranger", lambda: ask(local["stranger"])), "Envoy as stranger")
    permissive(plain, web)
    return ("openssl, curl and Envoy get in with our certificates; without one, by another CA, too old, under another name, "
            f"in TLS 1.2 or in plaintext nobody does; a revoked one was refused after {took:.1f} s")


def handshakes(w, shop, web):
    def connect(*options, **named):
        return s_client(shop.port, web.roots, *options, **named)

    seen = connect(*web.own(), "-verify_return_error")
    for expected in ("Verify return code: 0 (ok)", "New, TLSv1.3", "HTTP/1.1 200"):
        assert expected in seen, f"no {expected}: {seen}"
    assert uris(web, seen) == [f"URI:{spiffe('shop')}"], uris(web, seen)
    with shop.rejects("tls_no_client_certificate"):
        refused(connect(), CERTIFICATE_REQUIRED)
    with shop.rejects("tls_certificate_untrusted"):
        refused(connect(*selfmade(w, "web", web.roots).own()), UNKNOWN_CA)
    with shop.rejects("no_filter_chain"):
        refused(connect(*web.own(), name="shop.default.svc.cluster.local"))
    with shop.rejects("no_filter_chain"):
        refused(connect(*web.own(), name=None))
    with shop.rejects("tls_incompatible"):
        refused(connect(*web.own(), "-tls1_2"), PROTOCOL_VERSION)
    with shop.rejects("no_filter_chain"), socket.create_connection(("127.0.0.1", shop.port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(4096) == b""
    brief = issued(w, "web", "brief", seconds=3)
    wait_for("the end of a certificate", brief.ended, 10)
    with shop.rejects("tls_certificate_expired"):
        refused(connect(*brief.own()), EXPIRED)


def requests(shop, web, stranger):
    for version in ("--http1.1", "--http2"):
        for path in ("/", "/items", "/items/7"):
            status, text = curl(shop.port, path, web, version)
            assert status == 200 and text.endswith("shop"), text
        denied(curl(shop.port, "/", web, version, "-X", "POST"), "POST /")
        for path in ("/admin", "/items/../admin", "//admin", "/items/%2e%2e/admin"):
            denied(curl(shop.port, path, web, version), path)
        # Above the root it is refused before any rule.
        status, text = curl(shop.port, "/%2e%2e/admin", web, version)
        assert status == 400 and "x-remora-reason: bad_path" in text.lower(), text
        for path in ("/", "/items"):
            denied(curl(shop.port, path, stranger, version), f"{path} as stranger")


def revoked(w, shop):
    """Seconds until a certificate on the revocation list is taken no more, and its open connection closed."""
    peer = issued(w, "web", "revoked")
    context = ssl.create_default_context(cafile=peer.roots)
    context.check_hostname = False
    context.load_cert_chain(peer.chain, peer.key)
    with socket.create_connection(("127.0.0.1", shop.port), timeout=5) as tcp, \
            context.wrap_socket(tcp, server_hostname=sni("shop")) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\nshop"):
            piece = connection.recv(4096)
            assert piece, head
            head += piece
        began = time.monotonic()
        post(w.rest + "/remora/v1/ca/revoke", {"serial": peer.serial()})
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(4096) == b""
        wait_for("the alert", lambda: f"SSL alert number {REVOKED}\n" in s_client(shop.port, peer.roots, *peer.own()), 5)
        took = time.monotonic() - began
    assert took < 5, took
    with shop.rejects("tls_certificate_revoked"):
        refused(s_client(shop.port, peer.roots, *peer.own()), REVOKED)
    return took


def envoy_caller(w, account, peer):
    """Envoy in the place of a workload's sidecar, with a file for the certificate."""
    node = f"sidecar~127.0.0.1~{account}.default~default.svc"
    path = w.bootstrap(f"envoy-{account}", node, "DELTA_GRPC", w.xds, free_port())
    config = json.loads(path.read_text())
    config["static_resources"]["secrets"] = [{"name": "default", "tls_certificate": {
        "certificate_chain": {"filename": str(peer.chain)}, "private_key": {"filename": str(peer.key)}}}]
    path.write_text(json.dumps(config))
    envoy(w, f"envoy-{account}", path)


def envoy(w, name, path):
    w.start(name, os.environ["ENVOY"], "-c", path, "--concurrency", "1", "--use-dynamic-base-id", "-l", "warn")


def ask(port):
    try:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    except urllib.error.HTTPError as e:
        answer = e
    with answer:
        # 503 is Envoy's own, before it has what it needs.
        assert answer.status != 503, answer.headers
        return answer.status, f"{answer.headers}\n{answer.read().decode()}"


def permissive(plain, web):
    """Plaintext and mTLS on one port, and nothing between them."""
    for peer in (None, web):
        status, text = curl(plain.port, "/", peer, service="open")
        assert status == 200 and text.endswith("open"), text
    with plain.rejects("tls_no_client_certificate"):
        refused(s_client(plain.port, web.roots, name=sni("open")), CERTIFICATE_REQUIRED)


def workload_api():
    """A program with an SPIFFE library, and an Envoy, take a sidecar's identity by its socket, again and again."""
    with world("--cert-ttl", "10s", issued=True) as w, logs(w):
        return identities(w)


def identities(w):
    w.apply(documents({}))
    path = w.dir / "identity.sock"
    Sidecar(w, "shop", "--identity-socket", path)
    client = subprocess.Popen([os.environ["SPIFFE"], "-B", __file__, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # Lives on: it is the only one here that does not renew.
        peer = issued(w, "web", seconds=600)
        listeners = {variant: free_port() for variant in ("DELTA_GRPC", "GRPC")}
        envoy(w, "envoy", sds_bootstrap(w, path, listeners))
        serials = {}
        for variant, port in listeners.items():
            def shown(port=port):
                seen = s_client(port, peer.roots, *peer.own(), "-verify_return_error", name="any")
                return "HTTP/1.1 200" in seen and seen

            seen = wait_for(f"a listener with secrets by {variant}", shown)
            assert uris(peer, seen) == [f"URI:{spiffe('shop')}"], seen
            refused(s_client(port, peer.roots, name="any"), CERTIFICATE_REQUIRED)
            serials[variant] = shown_serial(peer, seen)
        for variant, port in listeners.items():
            def another(variant=variant, port=port):
                return shown_serial(peer, s_client(port, peer.roots, name="any")) != serials[variant]

            wait_for(f"another certificate by {variant}", another)
        out, err = client.communicate(timeout=60)
        if client.returncode:
            raise RuntimeError(err[-2000:])
    finally:
        client.kill()
        client.wait()
    found = json.loads(out)
    assert found["ids"] == [spiffe("shop")], found
    logged = [json.loads(line) for line in (w.dir / "data/issued.jsonl").read_text().splitlines()]
    ours = [entry["serial"].lstrip("0") for entry in logged if entry["identity"] == spiffe("shop")]
    assert set(found["serials"]) <= set(ours), f"{found} but issued were {ours}"
    return (f"{len(found['serials'])} certificates in {found['seconds']:.1f} s by a stream of the Workload API; "
            "Envoy took them by SDS, delta and state of the world")


def sds_bootstrap(w, path, listeners):
    """Envoy with nothing but a listener for each variant of SDS, and the socket."""
    def secret(name, variant):
        source = {"api_type": variant, "transport_api_version": "V3", "grpc_services": [{"envoy_grpc": {"cluster_name": "agent"}}]}
        return {"name": name, "sds_config": {"api_config_source": source, "resource_api_version": "V3"}}

    def listener(variant, port):
        tls = {"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
               "require_client_certificate": True, "common_tls_context": {
                   "tls_certificate_sds_secret_configs": [secret("default", variant)],
                   "validation_context_sds_secret_config": secret("ROOTCA", variant)}}
        manager = {"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                   "stat_prefix": variant, "route_config": {"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [
                       {"match": {"prefix": "/"}, "direct_response": {"status": 200}}]}]},
                   "http_filters": [{"name": "router", "typed_config": {
                       "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}
        return {"name": variant, "address": socket_address("127.0.0.1", port), "filter_chains": [{
            "filters": [{"name": "http", "typed_config": manager}], "transport_socket": {"name": "tls", "typed_config": tls}}]}

    agent = load_assignment("agent", 0)
    agent["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"] = {"pipe": {"path": str(path)}}
    http2 = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    config = {
        "node": {"id": "envoy", "cluster": "test"},
        "static_resources": {
            "clusters": [{"name": "agent", "type": "STATIC", "connect_timeout": "2s", "load_assignment": agent,
                          "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                              "@type": http2, "explicit_http_config": {"http2_protocol_options": {}}}}}],
            "listeners": [listener(variant, port) for variant, port in listeners.items()],
        },
    }
    path = w.dir / "envoy-sds.json"
    path.write_text(json.dumps(config))
    return path


def follow(path):
    """Takes identities from a socket until there were three, by two of the library's ways. For a Python that has the library."""
    from spiffe import TrustDomain, WorkloadApiClient

    # gRPC's C core takes the path of the socket for `:authority`, percent-encoded, and the sidecar refuses that as no name of a host.
    plain = grpc.insecure_channel
    grpc.insecure_channel = lambda target: plain(target, options=[("grpc.default_authority", "localhost")])
    contexts, errors, enough, began = [], [], threading.Event(), time.monotonic()

    def update(context):
        contexts.append(context)
        if len({serial(context.default_svid) for context in contexts}) >= 3:
            enough.set()

    def serial(svid):
        return f"{svid.leaf.serial_number:x}"

    def failed(error):
        errors.append(str(error))

    with WorkloadApiClient(f"unix:{path}") as client:
        first = client.fetch_x509_svid()
        stream = client.stream_x509_contexts(update, failed)
        came = enough.wait(30)
        seconds = time.monotonic() - began
        stream.cancel()
    assert came and not errors, f"{len(contexts)} updates, {errors}"
    svids = [first, *(context.default_svid for context in contexts)]
    for context in contexts:
        roots = context.x509_bundle_set.get_bundle_for_trust_domain(TrustDomain("cluster.local")).x509_authorities
        assert any(issued_by(context.default_svid.leaf, root) for root in roots), "a certificate that the bundle does not vouch for"
    print(json.dumps({"ids": sorted({str(svid.spiffe_id) for svid in svids}), "seconds": seconds,
                      "serials": sorted({serial(svid) for svid in svids})}))


def issued_by(leaf, root):
    try:
        leaf.verify_directly_issued_by(root)
    except Exception:  # noqa: BLE001 - by another one, in whatever way
        return False
    return True


if __name__ == "__main__":
    follow(sys.argv[1])
