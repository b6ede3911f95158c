"""One connection: requests in, answers out, bodies into and out of the arena, at the pace of the shaped link."""

from __future__ import annotations

import os
import socket
import time

from benchmarks.sink.memory import Blob, Segment, Sink

# A paced transfer sleeps after each slice of this length.
PACED_BYTES = 256 * 1024
NOW = "2026-01-01T00:00:00.000Z"
NOW_HTTP = "Thu, 01 Jan 2026 00:00:00 GMT"


class HangupError(Exception):
    """The client went away."""


class Wire:
    """A socket that speaks HTTP."""

    def __init__(self, sink: Sink, sock: socket.socket) -> None:
        self.sink = sink
        self._sock = sock
        self._rest = b""

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def head(self) -> tuple[str, str, dict[str, str]]:
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._more()
        lines, self._rest = self._rest[:end].decode("latin-1").split("\r\n"), self._rest[end + 4 :]
        method, target, _ = lines[0].split(" ", 2)
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return method, target, headers

    def body(self, headers: dict[str, str]) -> Segment:
        """Receive the body into the arena."""
        if headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        arena = self.sink.arena
        chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        aws_chunked = "aws-chunked" in headers.get("content-encoding", "")
        if chunked and not aws_chunked:
            data = self._chunks()
            segment = arena.take(len(data))
            arena.view(segment)[:] = data
            return segment
        length = int(headers.get("x-amz-decoded-content-length") or headers.get("content-length") or 0)
        segment = arena.take(length)
        view = arena.view(segment)
        if not aws_chunked:
            self._fill(view)
            return segment
        if chunked:
            raise NotImplementedError("chunks within chunks")
        filled = 0
        while count := int(self._line().split(b";")[0], 16):
            self._fill(view[filled : filled + count])
            filled += count
            self._line()
        while self._line():  # trailers, ended by an empty line
            pass
        return segment

    def text(self, headers: dict[str, str]) -> bytes:
        """Receive a short body and keep nothing of it."""
        segment = self.body(headers)
        text = bytes(self.sink.arena.view(segment))
        self.sink.arena.give([segment])
        return text

    def _more(self) -> None:
        data = self._sock.recv(65536)
        if not data:
            raise HangupError
        self._rest += data

    def _line(self) -> bytes:
        while (end := self._rest.find(b"\r\n")) < 0:
            self._more()
        line, self._rest = self._rest[:end], self._rest[end + 2 :]
        return line

    def _chunks(self) -> bytearray:
        data = bytearray()
        while length := int(self._line().split(b";")[0], 16):
            chunk = bytearray(length)
            self._fill(memoryview(chunk))
            data += chunk
            self._line()
        while self._line():
            pass
        return data

    def _fill(self, view: memoryview) -> None:
        count = min(len(self._rest), len(view))
        if count:
            view[:count] = self._rest[:count]
            self._rest = self._rest[count:]
        began = time.monotonic()
        rate = self.sink.bytes_per_s
        start = count
        while count < len(view):
            stop = min(len(view), count + PACED_BYTES) if rate else len(view)
            got = self._sock.recv_into(view[count:stop], stop - count, 0 if rate else socket.MSG_WAITALL)
            if not got:
                raise HangupError
            count += got
            if rate:
                pause = began + (count - start) / rate - time.monotonic()
                if pause > 0:
                    time.sleep(pause)

    # ── answering ────────────────────────────────────────────────────────────────────────────────────────────────

    def answer(self, status: int, body: str | bytes = b"", **fields: object) -> None:
        """Send an answer; underscores in the names of fields are hyphens."""
        data = body.encode() if isinstance(body, str) else body
        fields.setdefault("Content_Length", len(data))
        lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
        if self.sink.first_byte_s:
            time.sleep(self.sink.first_byte_s)
        self._sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + data)

    def xml(self, name: str, content: str, status: int = 200, **fields: object) -> None:
        text = f'<?xml version="1.0" encoding="utf-8"?><{name}>{content}</{name}>'
        self.answer(status, text, Content_Type="application/xml", **fields)

    def control(self, data: bytes) -> None:
        """Answer whoever measures, without the link's delay."""
        self._sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)

    def object(self, blob: Blob, headers: dict[str, str], **fields: object) -> bool:
        """Send an object, or the range of it that was asked for; False if there is no such range."""
        start, stop, status = 0, blob.nbytes, 200
        wanted = headers.get("x-ms-range") or headers.get("range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if first:
                start, stop = int(first), min(blob.nbytes, int(last) + 1 if last else blob.nbytes)
            else:
                start = max(0, blob.nbytes - int(last))
            if start >= blob.nbytes:
                self.sink.count("get")
                return False
            status = 206
            fields["Content_Range"] = f"bytes {start}-{stop - 1}/{blob.nbytes}"
        self.sink.count("get", bytes_out=stop - start)
        self.answer(status, **fields, Content_Length=stop - start)
        self._send(blob, start, stop)
        return True

    def _send(self, blob: Blob, start: int, stop: int) -> None:
        began, sent, rate = time.monotonic(), 0, self.sink.bytes_per_s
        for first, nbytes in blob.pieces(start, stop):
            offset, length = first, nbytes
            while length:
                wanted = min(length, PACED_BYTES) if rate else length
                count = os.sendfile(self._sock.fileno(), self.sink.arena.fd, offset, wanted)
                if not count:
                    raise HangupError
                offset, length, sent = offset + count, length - count, sent + count
                if rate:
                    pause = began + sent / rate - time.monotonic()
                    if pause > 0:
                        time.sleep(pause)
