"""HTTP/1.1 messages as they lie on a connection: read, changed and written without touching what is signed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BufferedReader
from urllib.parse import parse_qsl, unquote, urlsplit

# Of one line and of a whole head, bytes; longer ones are no HTTP that a client sends.
_MAX_LINE_BYTES = 64 * 1024
# Fields about the connection, which is the proxy's own on both sides.
_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "trailer"})


class BrokenMessageError(Exception):
    """The other side ended or wrote something that is no HTTP."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A request or an answer.

    Args:
        start: First line, without its end.
        fields: Header fields in their order and spelling.
        body: The whole body, its transfer coding removed.
    """

    start: str = field(repr=False)
    fields: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(default=b"", repr=False)

    @cached_property
    def method(self) -> str:
        """Method of a request."""
        return self.start.partition(" ")[0]

    @cached_property
    def path(self) -> str:
        """Unquoted path of a request."""
        return unquote(urlsplit(self._target).path)

    @cached_property
    def query(self) -> dict[str, str]:
        """Query parameters of a request."""
        return dict(parse_qsl(urlsplit(self._target).query, keep_blank_values=True))

    @property
    def status(self) -> int:
        """Status of an answer."""
        return int(self.start.split(" ")[1])

    @property
    def _target(self) -> str:
        return self.start.split(" ")[1]

    def header(self, name: str) -> str:
        """Give the value of a header field; empty if there is none.

        Args:
            name: Its name in lower case.
        """
        return next((value for key, value in self.fields if key.lower() == name), "")

    def with_body(self, body: bytes) -> Message:
        """Give the same message with another body.

        Args:
            body: The body.
        """
        return replace(self, body=body)

    def encode_head(self, *, length: int | None, close: bool = False) -> bytes:
        """Write the head; ``Host`` and all that a signature covers stay as they are.

        Args:
            length: Value of ``Content-Length``; None for a message that has none.
            close: Whether to say that the connection ends after it.
        """
        lines = [self.start, *(f"{name}: {value}" for name, value in self.fields if name.lower() not in _HOP_BY_HOP)]
        if length is not None:
            lines.append(f"Content-Length: {length}")
        if close:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def read_head(file: BufferedReader) -> Message | None:
    """Read a head.

    Args:
        file: The connection.

    Returns:
        A message without its body; None if the connection has ended between two messages.

    Raises:
        BrokenMessageError: It is no HTTP.
    """
    start = _read_line(file)
    if not start:
        return None
    fields: list[tuple[str, str]] = []
    while line := _read_line(file):
        name, colon, value = line.partition(":")
        if not colon:
            raise BrokenMessageError("a header field without a name")
        fields.append((name, value.strip()))
    if len(start.split(" ")) < 2:
        raise BrokenMessageError("a first line of one word")
    return Message(start=start, fields=tuple(fields))


def body_chunks(head: Message, file: BufferedReader, *, ends_with_connection: bool = False) -> Iterator[bytes]:
    """Read a body piece by piece, its transfer coding removed.

    Args:
        head: What came before it.
        file: The connection.
        ends_with_connection: Whether a body without length lasts until the connection ends: an answer's does.

    Yields:
        The pieces.

    Raises:
        BrokenMessageError: The connection ended within the body.
    """
    if "chunked" in head.header("transfer-encoding").lower():
        yield from _chunked(file)
    elif length := head.header("content-length"):
        yield from _exactly(file, int(length))
    elif ends_with_connection:
        while piece := file.read1():
            yield piece


def read_answer(file: BufferedReader, *, method: str) -> Message:
    """Read an answer whole.

    Args:
        file: The connection to the server.
        method: Method of the request.

    Returns:
        The answer.

    Raises:
        BrokenMessageError: The server ended before its answer did.
    """
    while (head := read_head(file)) is not None and 100 <= head.status < 200:
        pass
    if head is None:
        raise BrokenMessageError("the server gave no answer")
    if method == "HEAD" or head.status in (204, 304):
        return head
    return head.with_body(b"".join(body_chunks(head, file, ends_with_connection=True)))


def announced_length(request_method: str, answer: Message) -> int | None:
    """Say which length an answer announces: to ``HEAD`` that of a body which does not follow.

    Args:
        request_method: Method of the request.
        answer: The answer.
    """
    if answer.status in (204, 304):
        return None
    if request_method == "HEAD":
        text = answer.header("content-length")
        return int(text) if text else None
    return len(answer.body)


def hang_up(sock: socket.socket) -> None:
    """End a connection both ways and wake whoever waits for it, from any thread."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has ended by itself
        return


def _chunked(file: BufferedReader) -> Iterator[bytes]:
    while True:
        try:
            length = int(_read_line(file).partition(";")[0], 16)
        except ValueError:
            raise BrokenMessageError("a chunk without a length") from None
        yield from _exactly(file, length)
        if length == 0:
            while _read_line(file):  # trailing fields
                pass
            return
        file.readline(_MAX_LINE_BYTES)


def _exactly(file: BufferedReader, length: int) -> Iterator[bytes]:
    while length:
        piece = file.read1(min(length, _MAX_LINE_BYTES))
        if not piece:
            raise BrokenMessageError("the connection ended within a body")
        length -= len(piece)
        yield piece


def _read_line(file: BufferedReader) -> str:
    return file.readline(_MAX_LINE_BYTES).decode("latin-1").rstrip("\r\n")
