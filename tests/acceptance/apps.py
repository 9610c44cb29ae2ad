"""The applications behind the sidecar that are not Debian packages: gRPC, WebSocket, upload and SMTP servers.

usage: apps.py KIND PORT DIR
"""

import asyncio
import hashlib
import http.server
import pathlib
import sys


def grpc_server(port):
    from concurrent import futures

    import grpc
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    servicer = health.HealthServicer()
    servicer.set("acceptance", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    def unary(request, context):
        context.set_trailing_metadata((("x-trailer", "kept"),))
        return request

    def client_stream(requests, context):
        return b"".join(requests)

    def server_stream(request, context):
        for _ in range(100):
            yield request

    def both(requests, context):
        yield from requests

    def fail(request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, request.decode())

    def set_status(request, context):
        servicer.set("acceptance", int(request))
        return b""

    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "SetHealth": grpc.unary_unary_rpc_method_handler(set_status),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("acceptance.Echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def websocket_server(port):
    from websockets.asyncio.server import serve

    async def echo(connection):
        async for message in connection:
            await connection.send(message)

    async def main():
        async with serve(echo, "127.0.0.1", port, max_size=2**24) as server:
            await server.serve_forever()

    asyncio.run(main())


class Upload(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_expect_100(self):
        if self.path == "/refuse":
            self.answer(417, b"not this")
            self.close_connection = True
            return False
        return super().handle_expect_100()

    def do_GET(self):
        self.answer(200, self.headers.get("x-forwarded-client-cert", "-").encode())

    def do_PUT(self):
        digest, left = hashlib.sha256(), int(self.headers.get("content-length") or -1)
        if left < 0:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                digest.update(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
        while left > 0:
            piece = self.rfile.read(min(left, 65536))
            digest.update(piece)
            left -= len(piece)
        self.answer(200, digest.hexdigest().encode())

    def answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def upload_server(port):
    http.server.ThreadingHTTPServer(("127.0.0.1", port), Upload).serve_forever()


def smtp_server(port, directory):
    from aiosmtpd.smtp import SMTP

    class Handler:
        async def handle_DATA(self, server, session, envelope):
            (directory / "mail").write_bytes(envelope.content)
            return "250 accepted"

    async def main():
        server = await asyncio.get_running_loop().create_server(lambda: SMTP(Handler()), "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(main())


if __name__ == "__main__":
    kind, port, directory = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
    match kind:
        case "grpc":
            grpc_server(port)
        case "websocket":
            websocket_server(port)
        case "upload":
            upload_server(port)
        case "smtp":
            smtp_server(port, directory)
