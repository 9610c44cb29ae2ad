"""The checks. Each takes the rig, raises on failure, and returns a few words for its line."""

import asyncio
import hashlib
import os
import re
import smtplib
import socket
import ssl
import statistics
import subprocess
import time

CHECKS = []


def check(name):
    def add(function):
        CHECKS.append((name, function))
        return function

    return add


def run(*command, stdin=None, timeout=120):
    done = subprocess.run([str(c) for c in command], input=stdin, capture_output=True, timeout=timeout)
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).decode(errors="replace")[-600:]
        raise AssertionError(f"{command[0]} ended with {done.returncode}: {tail}")
    return done.stdout


def equal(got, wanted, what):
    if got != wanted:
        raise AssertionError(f"{what}: wanted {str(wanted)[:200]}, got {str(got)[:200]}")


def curl(rig, path, *options, host="files.test"):
    return run("curl", "-sS", "-H", f"Host: {host}", *options, rig.http + path)


# nginx with curl and h2load

PROTOCOLS = {"HTTP/1.1": "--http1.1", "HTTP/2": "--http2-prior-knowledge"}


def files(rig, version):
    count = 0
    for file in sorted((rig.dir / "www").iterdir()):
        wanted = file.read_bytes()
        equal(curl(rig, f"/{file.name}", PROTOCOLS[version], "--fail") == wanted, True, f"bytes of {file.name}")
        count += len(wanted)
    return f"{count} bytes equal"


@check("nginx: curl fetches files over HTTP/1.1")
def curl_http1(rig):
    return files(rig, "HTTP/1.1")


@check("nginx: curl fetches files over HTTP/2")
def curl_http2(rig):
    return files(rig, "HTTP/2")


@check("nginx: HEAD, ranges, conditional requests and errors are nginx's own")
def semantics(rig):
    for option in PROTOCOLS.values():
        head = curl(rig, "/1024.bin", option, "-I").decode().lower()
        equal("content-length: 1024" in head, True, "Content-Length of HEAD")
        part = curl(rig, "/100000.bin", option, "-r", "1000-1999")
        equal(part == (rig.dir / "www/100000.bin").read_bytes()[1000:2000], True, "range")
        tag = re.search(r'etag: (".*?")', head)[1]
        status = ["-o", "/dev/null", "-w", "%{http_code}"]
        equal(curl(rig, "/1024.bin", option, *status, "-H", f"If-None-Match: {tag}"), b"304", "conditional request")
        equal(curl(rig, "/none", option, *status), b"404", "missing file")
    return "both versions"


def h2load(rig, requests, *options):
    out = run("h2load", "-n", requests, *options, f"{rig.http}/1024.bin").decode()
    counts = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", out)
    equal(counts and counts.groups(), (str(requests), "0", "0", "0"), "h2load")
    equal(re.search(r"status codes: (\d+) 2xx", out)[1], str(requests), "2xx answers")
    return re.search(r"finished in .*?, ([\d.]+) req/s", out)[1] + " requests/s, none failed"


@check("nginx: h2load over HTTP/1.1")
def h2load_http1(rig):
    return h2load(rig, 5000, "-c", 16, "--h1")


@check("nginx: h2load over HTTP/2")
def h2load_http2(rig):
    return h2load(rig, 10000, "-c", 8, "-m", 16)


@check("nginx: h2load of a large file over HTTP/2 keeps every byte")
def h2load_large(rig):
    out = run("h2load", "-n", 20, "-c", 2, "-m", 5, f"{rig.http}/10000000.bin").decode()
    equal("20 succeeded, 0 failed, 0 errored" in out, True, "h2load")
    equal("(200000000) data" in out, True, "bytes of data")
    return "200,000,000 bytes"


# Upload

@check("upload: curl with Expect: 100-continue")
def expect(rig):
    body = os.urandom(5_000_000)
    done = subprocess.run(
        ["curl", "-sS", "-v", "--http1.1", "-H", "Host: upload.test", "-H", "Expect: 100-continue", "--expect100-timeout", "5",
         "-T", "-", "-H", "Transfer-Encoding: chunked", f"{rig.http}/file"],
        input=body, capture_output=True, timeout=60)
    equal(done.stdout.decode(), hashlib.sha256(body).hexdigest(), "digest of the upload")
    equal(b"< HTTP/1.1 100" in done.stderr, True, "100 Continue")
    return "digest equal after 100 Continue"


@check("upload: a refusal before the body saves the body")
def refused(rig):
    file = rig.dir / "upload"
    file.write_bytes(os.urandom(20_000_000))
    out = curl(rig, "/refuse", "--http1.1", "-H", "Expect: 100-continue", "--expect100-timeout", "5", "-T", file,
               "-o", "/dev/null", "-w", "%{http_code} %{size_upload}", host="upload.test")
    equal(out, b"417 0", "status and bytes sent")
    return "417, nothing sent"


@check("upload: over HTTP/2")
def upload_http2(rig):
    file = rig.dir / "upload"
    file.write_bytes(os.urandom(20_000_000))
    out = curl(rig, "/file", "--http2-prior-knowledge", "-T", file, host="upload.test")
    equal(out.decode(), hashlib.sha256(file.read_bytes()).hexdigest(), "digest of the upload")
    return "digest of 20,000,000 bytes equal"


# Mutual TLS between the sidecars

@check("mTLS: the application learns the identity of the caller, and nobody can forge it")
def identity(rig):
    out = curl(rig, "/", "-H", "x-forwarded-client-cert: URI=spiffe://acceptance.test/forged", host="upload.test").decode()
    equal("URI=spiffe://acceptance.test/ns/default/sa/client" in out, True, "x-forwarded-client-cert")
    equal("forged" in out, False, "the forged value")
    return "spiffe://acceptance.test/ns/default/sa/client"


@check("mTLS: the inbound sidecar refuses plaintext, no certificate, and a certificate of another CA")
def refuses(rig):
    port = rig.ports["INBOUND"]
    for name in (None, "stranger"):
        context = ssl.create_default_context(cafile=rig.dir / "ca.crt")
        context.check_hostname = False
        if name:
            context.load_cert_chain(rig.dir / f"{name}.crt", rig.dir / f"{name}.key")
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as raw, context.wrap_socket(raw, server_hostname="http.mesh") as s:
                s.sendall(b"GET / HTTP/1.1\r\nhost: files.test\r\n\r\n")
                got = s.recv(100)
        except (ssl.SSLError, ConnectionError):
            got = b""
        equal(got, b"", f"answer to {name or 'no certificate'}")
    with socket.create_connection(("127.0.0.1", port), 5) as s:
        s.sendall(b"GET / HTTP/1.1\r\nhost: files.test\r\n\r\n")
        try:
            got = s.recv(100)
        except ConnectionError:
            got = b""
    equal(got[:9] in (b"", b"\x15\x03\x01\x00\x02\x02\x46", ), True, f"answer to plaintext {got!r}")
    return "three times no answer"


# TCP

@check("redis: redis-benchmark over tcp_proxy")
def redis_benchmark(rig):
    port = rig.listeners["redis"]
    out = b""
    for pipeline in (1, 16):
        out += run("redis-benchmark", "-h", "127.0.0.1", "-p", port, "-n", 20000, "-c", 20, "-P", pipeline, "-q", "-t", "set,get,lpush,lrange_100")
    text = out.decode().replace("\r", "\n")
    equal("Error" in text, False, text[-300:])
    rates = re.findall(r"^(\w[^:\n]*): ([\d.]+) requests per second", text, re.M)
    equal(len(rates), 10, "results of redis-benchmark")
    return f"{len(rates)} runs, SET {rates[0][1]}/s"


@check("redis: a large value comes back unchanged")
def redis_value(rig):
    cli = ["redis-cli", "-h", "127.0.0.1", "-p", rig.listeners["redis"]]
    value = os.urandom(4_000_000).hex().encode()
    equal(run(*cli, "-x", "SET", "large", stdin=value).strip(), b"OK", "SET")
    equal(run(*cli, "GET", "large").strip() == value, True, "value")
    return f"{len(value)} bytes"


def greeting(port):
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), 5) as s:
        line = s.recv(200)
    equal(line[:4], b"220 ", "greeting")
    return (time.monotonic() - started) * 1000


@check("smtp: the server speaks first, without delay")
def speaks_first(rig):
    direct = statistics.median(greeting(rig.ports["SMTP"]) for _ in range(9))
    proxied = statistics.median(greeting(rig.listeners["smtp"]) for _ in range(9))
    equal(proxied - direct < 100, True, f"{proxied:.1f} ms through the sidecars, {direct:.1f} ms direct; less than 100 ms more")
    return f"{proxied:.1f} ms, direct {direct:.1f} ms"


@check("smtp: a mail arrives unchanged")
def mail(rig):
    text = "Subject: acceptance\r\n\r\n" + "".join(f"line {i}\r\n" for i in range(2000))
    with smtplib.SMTP("127.0.0.1", rig.listeners["smtp"], timeout=10) as client:
        client.sendmail("a@test", ["b@test"], text)
    equal((rig.dir / "mail").read_bytes().rstrip() == text.encode().rstrip(), True, "mail")
    return f"{len(text)} bytes"


# gRPC

def channel(rig):
    import grpc

    return grpc.insecure_channel(f"127.0.0.1:{rig.listeners['http']}", options=[("grpc.default_authority", "grpc.test")])


@check("grpc: health check, unary and Watch")
def grpc_health(rig):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    request = health_pb2.HealthCheckRequest(service="acceptance")
    with channel(rig) as c:
        stub = health_pb2_grpc.HealthStub(c)
        equal(stub.Check(request, timeout=5).status, 1, "Check")
        watch = stub.Watch(request, timeout=20)
        equal(next(watch).status, 1, "first of Watch")
        for status in (2, 1):
            c.unary_unary("/acceptance.Echo/SetHealth")(str(status).encode(), timeout=5)
            equal(next(watch).status, status, "change on Watch")
        watch.cancel()
    return "SERVING, NOT_SERVING, SERVING on one stream"


@check("grpc: unary, both one-way streams, a conversation, trailers")
def grpc_kinds(rig):
    with channel(rig) as c:
        data = os.urandom(50_000)
        answer, call = c.unary_unary("/acceptance.Echo/Unary").with_call(data, timeout=5)
        equal(answer == data, True, "unary")
        equal(dict(call.trailing_metadata()).get("x-trailer"), "kept", "trailing metadata")
        pieces = [os.urandom(1000) for _ in range(200)]
        equal(c.stream_unary("/acceptance.Echo/ClientStream")(iter(pieces), timeout=10) == b"".join(pieces), True, "client stream")
        equal(list(c.unary_stream("/acceptance.Echo/ServerStream")(b"x", timeout=10)), [b"x"] * 100, "server stream")
        conversation(c)
    return "bytes equal"


def conversation(c):
    """Each message waits for the answer to the one before: nothing may be held back."""
    import queue

    outbox = queue.Queue()
    answers = c.stream_stream("/acceptance.Echo/Both")(iter(outbox.get, None), timeout=20)
    for i in range(50):
        outbox.put(str(i).encode())
        equal(next(answers), str(i).encode(), "answer in the conversation")
    outbox.put(None)
    equal(list(answers), [], "end of the conversation")


@check("grpc: status, message and deadline")
def grpc_status(rig):
    import grpc

    with channel(rig) as c:
        for method, wanted in [("Fail", grpc.StatusCode.FAILED_PRECONDITION), ("Missing", grpc.StatusCode.UNIMPLEMENTED)]:
            try:
                c.unary_unary(f"/acceptance.Echo/{method}")("warum nicht? ä".encode(), timeout=5)
                raise AssertionError(f"{method} succeeded")
            except grpc.RpcError as e:
                equal(e.code(), wanted, method)
                equal(e.details() == "warum nicht? ä" or method == "Missing", True, f"details {e.details()}")
        started = time.monotonic()
        try:
            list(c.stream_stream("/acceptance.Echo/Both")(iter(lambda: time.sleep(30), None), timeout=0.3))
        except grpc.RpcError as e:
            equal(e.code(), grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
        equal(time.monotonic() - started < 5, True, "deadline kept")
    return "FAILED_PRECONDITION, UNIMPLEMENTED, DEADLINE_EXCEEDED"


# WebSocket

async def websocket(rig, host):
    from websockets.asyncio.client import connect

    port = rig.listeners["http"]
    async with connect(f"ws://{host}/chat", host="127.0.0.1", port=port, max_size=2**24, proxy=None) as socket_:
        sent = 0

        async def echo(message):
            nonlocal sent
            await socket_.send(message)
            equal(await asyncio.wait_for(socket_.recv(), 10) == message, True, "echo")
            sent += 1

        await echo("hello")
        await echo(os.urandom(2_000_000))
        for _ in range(3):
            version = rig.routes()
            deadline = time.monotonic() + 10
            while served(rig) != version:
                equal(time.monotonic() < deadline, True, "the new routes are in use within 10 s")
                await echo(f"while version {version} comes in")
            for _ in range(20):
                await echo(f"after version {version}")
        await asyncio.wait_for(await socket_.ping(), 5)
    return f"{sent} messages over one socket, routes replaced 3 times"


def served(rig):
    """The version of the routes that answers now."""
    head = curl(rig, "/1.bin", "-o", "/dev/null", "-D", "-").decode().lower()
    found = re.search(r"x-routes-version: (\d+)", head)
    return int(found[1]) if found else 0


@check("websocket: an open socket survives a config change")
def websocket_http1(rig):
    return asyncio.run(websocket(rig, "ws.test"))


@check("websocket: the same over HTTP/2 between the sidecars (RFC 8441)")
def websocket_http2(rig):
    return asyncio.run(websocket(rig, "ws2.test"))


# Last: it ends the sidecars.

@check("sidecars: still running, and end with status 0 after SIGTERM")
def ends(rig):
    for name, process in (("outbound", rig.outbound), ("inbound", rig.inbound)):
        equal(process.poll(), None, f"{name} is running")
    for name, process in (("outbound", rig.outbound), ("inbound", rig.inbound)):
        equal(rig.end(name, process), 0, f"exit status of {name}")
    return "both"
