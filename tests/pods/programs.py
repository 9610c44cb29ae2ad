"""Programs of the pods that are Python: a gRPC server and a WebSocket server, clients of them, a load, and what stands for Kubernetes.

usage: programs.py NAME ARGUMENTS…

Servers and clients know nothing of the mesh. A client prints one line of JSON, and ends with status 0 when it got what it asked for.
"""

import asyncio
import http.client
import http.server
import json
import socket
import sys
import threading
import time


def grpc_server(port):
    from concurrent import futures

    import grpc

    def unary(request, context):
        return request

    def server_stream(request, context):
        for number in range(100):
            yield request + b" %d" % number

    def both(requests, context):
        yield from requests

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("pods.Echo", handlers),))
    server.add_insecure_port(f"[::]:{port}")
    server.start()
    server.wait_for_termination()


def grpc_client(marker, *targets):
    """One call of each shape to each target. Both directions of the third go on at one time: each answer is read before the next question."""
    import queue

    import grpc

    marker = marker.encode()
    for target in targets:
        with grpc.insecure_channel(target) as channel:
            assert channel.unary_unary("/pods.Echo/Unary")(marker, timeout=10) == marker
            stream = list(channel.unary_stream("/pods.Echo/ServerStream")(marker, timeout=10))
            assert stream == [marker + b" %d" % n for n in range(100)], stream
            questions = queue.Queue()
            answers = channel.stream_stream("/pods.Echo/Both")(iter(questions.get, None), timeout=10)
            for number in range(20):
                questions.put(marker + b" %d" % number)
                assert next(answers) == marker + b" %d" % number
            questions.put(None)
            assert list(answers) == []
    print(json.dumps({"targets": len(targets)}))


def websocket_server(port):
    from websockets.asyncio.server import serve

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async def main():
        async with serve(echo, None, int(port)) as server:
            await server.serve_forever()

    asyncio.run(main())


def websocket_client(marker, *targets):
    """Without compression, so that what is sent can be recognised."""
    from websockets.asyncio.client import connect

    async def main():
        for target in targets:
            async with connect(f"ws://{target}/chat", compression=None) as connection:
                for number in range(100):
                    await connection.send(f"{marker} {number}")
                    assert await connection.recv() == f"{marker} {number}"
                await connection.send(b"x" * 300_000)
                assert await connection.recv() == b"x" * 300_000

    asyncio.run(main())
    print(json.dumps({"targets": len(targets)}))


def greeting(host, port):
    """How long a server that speaks first takes, from before the connection to its first bytes."""
    began = time.monotonic()
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        first = connection.recv(4096)
    milliseconds = (time.monotonic() - began) * 1000
    print(json.dumps({"milliseconds": milliseconds, "text": first.decode("latin-1")}))


def load(host, path, stop):
    """Requests over eight kept connections until the file `stop` is there; counts what was asked and what was lost, and why."""
    import os

    asked, lost = [0] * 8, []
    done = threading.Event()

    def client(index):
        connection = http.client.HTTPConnection(host, timeout=10)
        while not done.is_set():
            asked[index] += 1
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    lost.append(f"{answer.status} {body[:200]!r} {dict(answer.headers)}")
            except (OSError, http.client.HTTPException) as e:
                lost.append(repr(e))
                connection.close()

    threads = [threading.Thread(target=client, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    while not os.path.exists(stop):
        # What reads this file waits for numbers in it.
        with open(f"{stop}.asked.new", "w") as file:
            file.write(str(sum(asked)))
        os.replace(f"{stop}.asked.new", f"{stop}.asked")
        done.wait(0.02)
    done.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"asked": sum(asked), "lost": len(lost), "why": lost[:5]}))


def token_review(port):
    """The part of Kubernetes that says whose a token is. A token is `NAMESPACE:ACCOUNT` behind `token:` here."""

    class Review(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            review = json.loads(self.rfile.read(int(self.headers["content-length"])))
            kind, _, account = review["spec"]["token"].partition(":")
            status = {"authenticated": kind == "token", "audiences": review["spec"]["audiences"]}
            status["user"] = {"username": f"system:serviceaccount:{account}"}
            body = json.dumps({**review, "status": status}).encode()
            self.send_response(201)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Review).serve_forever()


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])
