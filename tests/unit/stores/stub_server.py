"""An HTTP server that says what a test tells it to, byte for byte, and remembers what it was asked."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """What arrived.

    Args:
        connection: Number of the connection it came on.
        method: HTTP method.
        target: Request target, as sent.
        headers: Header fields by lower-case name.
        body: The body; None if the answer asked not to read it.
    """

    connection: int
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Request], bytes | None]
"""Gives the raw answer; None closes the connection instead. An answer that says ``Connection: close`` closes it too."""


def answer(status: int = 200, body: bytes = b"", **headers: str) -> bytes:
    """Write an answer; ``x_y=...`` is the header field ``x-y``."""
    fields = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Text\r\n{head}\r\n".encode() + body


@dataclass
class StubServer:
    """A server with a function for its answers."""

    respond: Answer
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    _sockets: list[socket.socket] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Base URL."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._sockets.append(listener)
        self._spawn(self._accept, listener)

    def stop(self) -> None:
        """Close everything and wait for the threads."""
        for sock in list(self._sockets):
            self._hang_up(sock)
        for thread in self._threads:
            thread.join(10)

    def hang_up(self) -> None:
        """Close all connections, but go on listening."""
        for sock in self._sockets[1:]:
            self._hang_up(sock)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock, _ = listener.accept()
                self._sockets.append(sock)
                self.connections += 1
                self._spawn(self._serve, sock, self.connections - 1)

    def _serve(self, sock: socket.socket, number: int) -> None:
        with suppress(OSError, ValueError):
            if self.tls is not None:
                sock = self.tls.wrap_socket(sock, server_side=True)
                self._sockets.append(sock)
            with sock.makefile("rb") as file:
                while request := self._read(file, number):
                    self.requests.append(request)
                    reply = self.respond(request)
                    if reply is not None:
                        sock.sendall(reply)
                    if reply is None or b"connection: close" in reply.partition(b"\r\n\r\n")[0].lower():
                        break
        self._hang_up(sock)

    @staticmethod
    def _read(file, number: int) -> Request | None:
        line = file.readline().decode()
        if not line:
            return None
        method, target, _ = line.split(" ", 2)
        headers = {}
        while field := file.readline().decode("latin-1").strip():
            name, _, value = field.partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers.get("content-length", 0)))
        return Request(number, method, target, headers, body)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _hang_up(sock: socket.socket) -> None:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


@contextmanager
def stub_server(respond: Answer, *, tls: ssl.SSLContext | None = None) -> Iterator[StubServer]:
    """Run a stub server."""
    server = StubServer(respond, tls)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def one_connection(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Take one connection and do with it what a test says; give the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            sock, _ = listener.accept()
            with sock, suppress(OSError):
                serve(sock)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()
