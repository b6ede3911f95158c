"""One client's connection: its requests, one after the other, each with what a fault makes of it."""

from __future__ import annotations

import random
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from threading import Event
from typing import Protocol

from dcp_cloud.testing.proxy.answers import error_answer
from dcp_cloud.testing.proxy.faults import NetworkFault
from dcp_cloud.testing.proxy.message import (
    BrokenMessageError,
    Message,
    announced_length,
    body_chunks,
    read_answer,
    read_head,
)
from dcp_cloud.testing.proxy.schedule import Schedule

_POLL_S = 0.02
_DRIP_S = 0.05
# Linger for zero seconds: close sends a reset instead of waiting for what was not sent.
_RESET = struct.pack("ii", 1, 0)


class Network(Protocol):
    """What connections share."""

    schedule: Schedule
    released: Event
    closing: Event

    def connect(self) -> socket.socket:
        """Open a connection to the server."""
        ...

    def forget(self, sock: socket.socket) -> None:
        """Close a socket."""
        ...

    def go_down(self, duration_s: float | None) -> None:
        """Refuse connections until the time is over or ``released`` is set."""
        ...


class _EndedError(Exception):
    """This connection is to be closed."""


class ClientConnection:
    """Serves one connection of a client until it ends.

    Args:
        sock: The connection.
        network: What connections share.
    """

    def __init__(self, sock: socket.socket, network: Network) -> None:
        self._sock = sock
        self._network = network

    def serve(self) -> None:
        """Carry requests over until either side ends or a fault ends the connection."""
        try:
            with self._sock.makefile("rb") as file:
                while (head := read_head(file)) is not None:
                    self._exchange(head, file)
                    if head.header("connection").lower() == "close":
                        return
        except (_EndedError, BrokenMessageError, OSError, ValueError):
            return

    def _exchange(self, head: Message, file: BufferedReader) -> None:
        fault, draw = self._network.schedule.choose(head)
        if "100-continue" in head.header("expect").lower():
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault is None or fault.side == "response":
            request = head.with_body(b"".join(body_chunks(head, file)))
            answer = self._ask(request)
            self._answer(request, answer, fault, draw)
        else:
            self._struck_request(head, file, fault, draw)

    def _struck_request(self, head: Message, file: BufferedReader, fault: NetworkFault, draw: random.Random) -> None:
        if fault.kind in ("reset", "half_close"):
            self._read_half(head, file)
            self._end(fault)
        if fault.kind == "refuse":
            self._network.go_down(fault.duration_s)
            self._reset()
        pieces = body_chunks(head, file)
        request = head.with_body(b"".join(self._slowly(pieces, fault) if fault.kind == "drip" else pieces))
        if fault.kind == "drop":
            raise _EndedError
        if fault.kind == "status":
            self._send(request, error_answer(request, fault))
            return
        if fault.kind == "stall":
            self._wait()
        elif fault.kind == "truncate":
            request = request.with_body(request.body[: len(request.body) // 2])
        elif fault.kind == "flip_bit":
            request = request.with_body(_flipped(request.body, draw))
        elif fault.kind == "duplicate":
            self._ask(request)
        self._send(request, self._ask(request))

    def _answer(self, request: Message, answer: Message, fault: NetworkFault | None, draw: random.Random) -> None:
        """Give the client the server's answer, or what a fault leaves of it."""
        if fault is None:
            self._send(request, answer)
            return
        if fault.kind == "drop":
            raise _EndedError
        if fault.kind == "stall":
            self._wait()
        elif fault.kind == "status":
            answer = error_answer(request, fault)
        elif fault.kind == "truncate":
            answer = answer.with_body(answer.body[: len(answer.body) // 2])
        elif fault.kind == "flip_bit":
            answer = answer.with_body(_flipped(answer.body, draw))
        elif fault.kind in ("reset", "half_close"):
            self._sock.sendall(answer.encode_head(length=announced_length(request.method, answer)))
            self._sock.sendall(answer.body[: len(answer.body) // 2])
            self._end(fault)
        elif fault.kind == "drip":
            self._sock.sendall(answer.encode_head(length=announced_length(request.method, answer)))
            step = max(1, int(fault.bytes_per_s * _DRIP_S))
            pieces = (answer.body[start : start + step] for start in range(0, len(answer.body), step))
            for piece in self._slowly(pieces, fault):
                self._sock.sendall(piece)
            return
        self._send(request, answer)

    def _send(self, request: Message, answer: Message) -> None:
        self._sock.sendall(answer.encode_head(length=announced_length(request.method, answer)) + answer.body)

    def _ask(self, request: Message) -> Message:
        """Send a request to the server, over a connection of its own, and read the answer whole."""
        with _closing(self._network.connect(), self._network.forget) as upstream:
            has_body = bool(request.body) or request.method in ("PUT", "POST")
            try:
                upstream.sendall(request.encode_head(length=len(request.body) if has_body else None, close=True))
                upstream.sendall(request.body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a server may answer and hang up before it took the body
            with upstream.makefile("rb") as file:
                return read_answer(file, method=request.method)

    def _read_half(self, head: Message, file: BufferedReader) -> None:
        length, read = int(head.header("content-length") or 0), 0
        for piece in body_chunks(head, file):
            read += len(piece)
            if read >= length // 2:
                return

    def _slowly(self, pieces: Iterator[bytes], fault: NetworkFault) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            self._pause(len(piece) / fault.bytes_per_s)

    def _pause(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0 and not self._network.released.is_set():
            if self._network.closing.wait(min(left_s, _DRIP_S)):
                raise _EndedError

    def _wait(self) -> None:
        """Wait for ``release()``; give up when the client has."""
        while not self._network.released.wait(_POLL_S):
            if self._network.closing.is_set() or self._has_hung_up():
                raise _EndedError

    def _has_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0)) and not self._sock.recv(1, socket.MSG_PEEK)

    def _end(self, fault: NetworkFault) -> None:
        if fault.kind == "reset":
            self._reset()
        self._sock.shutdown(socket.SHUT_WR)
        self._wait()
        raise _EndedError

    def _reset(self) -> None:
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        raise _EndedError


def _flipped(body: bytes, draw: random.Random) -> bytes:
    if not body:
        return body
    changed = bytearray(body)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


@contextmanager
def _closing(sock: socket.socket, forget: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    try:
        yield sock
    finally:
        forget(sock)
