"""A server that answers as it is told and keeps what it was asked, for what Azurite does not show."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trustme


@dataclass(frozen=True)
class Request:
    """What the server was asked."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Reply:
    """What it answers. ``length`` announces another length than the body's, and hangs up after the body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int | None = None


@dataclass
class Stub:
    """A running server.

    Args:
        url: Base URL, with an account in its path as Azurite has it.
        answer: Makes the reply to each request.
        ca_file: Its authority's certificate, if it speaks TLS.
    """

    url: str
    answer: Callable[[Request], Reply]
    ca_file: str | None
    requests: list[Request] = field(default_factory=list)


def refusal(status: int, code: str, message: str = "no", **headers: str) -> Reply:
    """An error in the shape that the Blob service gives it."""
    body = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, {"x-ms-error-code": code, "Content-Type": "application/xml", **names}, body.encode())


STORED = Reply(201, {"ETag": '"0x1"', "Last-Modified": "Sun, 22 Nov 2026 00:00:00 GMT"})
"""The answer to a write that was done."""


def content(data: bytes, first: int = 0, *, size: int | None = None, status: int = 206) -> Reply:
    """The answer to a ranged read."""
    headers = {
        "ETag": '"0x1"',
        "Last-Modified": "Sun, 22 Nov 2026 00:00:00 GMT",
        "x-ms-blob-type": "BlockBlob",
        "Content-Type": "application/octet-stream",
    }
    if status == 206:
        total = first + len(data) if size is None else size
        headers["Content-Range"] = f"bytes {first}-{first + len(data) - 1}/{total}"
    return Reply(status, headers, data)


@contextmanager
def stub_server(directory: str, *, tls: bool = False) -> Iterator[Stub]:
    """Run a stub that answers every request with ``STORED`` until it is told otherwise."""
    stub = Stub(url="", answer=lambda _request: STORED, ca_file=None)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, body)
            stub.requests.append(request)
            reply = stub.answer(request)
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            length = len(reply.body) if reply.length is None else reply.length
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)
            self.close_connection = length != len(reply.body)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if tls:
            authority = trustme.CA()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
            stub.ca_file = f"{directory}/ca.pem"
            authority.cert_pem.write_to_path(stub.ca_file)
        stub.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/account"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
