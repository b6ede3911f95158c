"""The floor: what moving these bytes over sockets costs when nothing else is done.

Each thread has a connection and sends, or receives, one part after the other; CRC-32 is computed if asked for, since
every client that wants to know what it sent has to. No signatures, no retries, no bookkeeping.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from itertools import count

from dcp_cloud.crc32 import crc32 as compute_crc32

Part = tuple[str, memoryview]


def put_parts(port: int, parts: Sequence[Part], *, threads: int, crc32: bool) -> None:
    """Send each part as an object of its own."""

    def send(sock: socket.socket, name: str, data: memoryview) -> None:
        crc = compute_crc32(data) if crc32 else 0
        sock.sendall(
            f"PUT {name} HTTP/1.1\r\nHost: sink\r\nx-crc: {crc}\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        sock.sendall(data)
        _read_head(sock)

    _work(port, parts, send, threads=threads)


def get_objects(port: int, parts: Sequence[Part], *, threads: int, crc32: bool) -> None:
    """Receive objects, each by one ranged request, into their memory."""

    def receive(sock: socket.socket, name: str, data: memoryview) -> None:
        _receive(sock, name, 0, data)
        if crc32:
            compute_crc32(data)

    _work(port, parts, receive, threads=threads)


def get_ranges(port: int, name: str, ranges: Sequence[tuple[int, memoryview]], *, threads: int, crc32: bool) -> None:
    """Receive ranges of one object into their memory."""

    def receive(sock: socket.socket, start: str, data: memoryview) -> None:
        _receive(sock, name, int(start), data)
        if crc32:
            compute_crc32(data)

    _work(port, [(str(start), data) for start, data in ranges], receive, threads=threads)


def _receive(sock: socket.socket, name: str, start: int, data: memoryview) -> None:
    sock.sendall(f"GET {name} HTTP/1.1\r\nHost: sink\r\nRange: bytes={start}-{start + len(data) - 1}\r\n\r\n".encode())
    rest = _read_head(sock)
    data[: len(rest)] = rest
    filled = len(rest)
    while filled < len(data):
        filled += sock.recv_into(data[filled:], 0, socket.MSG_WAITALL)


def _work(
    port: int, parts: Sequence[Part], move: Callable[[socket.socket, str, memoryview], None], *, threads: int
) -> None:
    turns = count()  # next() on it is atomic

    def work() -> None:
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (turn := next(turns)) < len(parts):
                move(sock, *parts[turn])

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def _read_head(sock: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        head += sock.recv(1024)
    assert head[9:10] == b"2", head
    return head.partition(b"\r\n\r\n")[2]
