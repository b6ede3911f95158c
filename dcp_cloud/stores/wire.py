"""The wire: HTTP/1.1 over a small pool of standard-library connections, without copying bodies.

The SDKs sign requests and understand answers; their own transports copy every body several times. A store lets its SDK
make the request and sends it here: buffers go from the caller's memory to the socket, and from the socket into the
caller's buffers.

The wire sends once. What failed before or between the bytes is a :class:`~dcp_cloud.errors.TransientError`; statuses
are the store's business.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from dcp_cloud.errors import ConfigError, TransientError
from dcp_cloud.stores.base import Buffers
from dcp_cloud.stores.cancel import current_scope
from dcp_cloud.stores.wire_connection import (
    Connection,
    NoAnswerError,
    Outgoing,
    Route,
    connect,
    exchange,
    failed_request,
    find_route,
    is_stale,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WireConfig:
    """How to connect.

    Args:
        connect_timeout_s: Time for TCP connect and TLS handshake, seconds.
        read_timeout_s: Longest time without progress while sending or receiving, seconds.
        verify_tls: Whether to check the server's certificate.
        ca_bundle: File of CA certificates to trust instead of the system's.
        max_idle: Connections kept open for reuse, per host.
        max_idle_s: Longest rest of a connection that is reused, seconds. Load balancers forget resting connections
            after minutes without telling; shorter than the shortest of them.
        proxy_url: Proxy instead of those that the environment names.
    """

    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    verify_tls: bool = True
    ca_bundle: str | None = None
    max_idle: int = 64
    max_idle_s: float = 50.0
    proxy_url: str | None = None


class WireResponse:
    """An answer whose body is read at the caller's pace. Use it as a context manager, or read it to its end.

    Args:
        connection: The connection it arrives on.
        raw: The standard library's response.
        wire: Where a connection goes back to when the body was consumed.
        route: The connection's place in the pool.
        key: Object key, for error messages.
        reusable: Whether the connection can carry another request afterwards.
    """

    def __init__(
        self,
        connection: Connection,
        raw: http.client.HTTPResponse,
        wire: Wire,
        route: Route,
        key: str | None,
        *,
        reusable: bool,
    ) -> None:
        self.status = raw.status
        self.reason = raw.reason
        self.headers = raw.headers
        self._connection: Connection | None = connection
        self._raw = raw
        self._wire = wire
        self._route = route
        self.key = key
        self._reusable = reusable
        if raw.length == 0:
            self._finish()

    @property
    def length(self) -> int | None:
        """Bytes of the body that were not read yet, if the server told how many."""
        return 0 if self._connection is None else self._raw.length

    def read(self, max_bytes: int | None = None) -> bytes:
        """Read the body.

        Args:
            max_bytes: At most so many; all when None.

        Returns:
            The bytes; fewer than ``max_bytes`` only at the body's end.

        Raises:
            TransientError: The connection failed or the body was shorter than announced.
        """
        if self._connection is None:
            return b""
        with _broken_connection(self, "reading the answer"):
            data = self._raw.read() if max_bytes is None else self._raw.read(max_bytes)
            if self._raw.length and (max_bytes is None or len(data) < max_bytes):
                raise http.client.IncompleteRead(data, self._raw.length)
        if self._raw.isclosed():
            self._finish()
        return data

    def read_into(self, buffers: Buffers) -> None:
        """Fill buffers, one after the other, without a copy.

        Args:
            buffers: Writable buffers.

        Raises:
            TransientError: The body ended or the connection failed before they were full.
        """
        for buffer in buffers:
            if self._connection is None and len(buffer):
                raise TransientError("the answer is shorter than expected", key=self.key)
            self._fill(buffer)
        if self._connection is not None and self._raw.isclosed():
            self._finish()

    def _fill(self, buffer: memoryview) -> None:
        filled = 0
        with _broken_connection(self, "receiving data"):
            while filled < len(buffer):
                count = self._raw.readinto(buffer[filled:])
                if not count:
                    raise http.client.IncompleteRead(b"", len(buffer) - filled)
                filled += count

    def close(self) -> None:
        """Give the answer up: a connection with an unread rest is closed, not reused."""
        if self._connection is not None:
            self._reusable = False
            self._finish()

    def _finish(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.leave():
            self._reusable = False  # it was broken off, if only after its last byte
        if self._reusable:
            self._raw.read()  # nothing is left; this is how http.client learns that the answer is over
            self._wire.give_back(self._route, connection)
        else:
            self._raw.close()
            connection.close()

    def __enter__(self) -> WireResponse:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Wire:
    """A pool of connections. Thread-safe; pickles as its configuration; survives a fork with a pool of its own.

    Proxies are taken from the environment (``HTTP_PROXY``, ``HTTPS_PROXY``, ``NO_PROXY``), as the SDKs do, unless the
    configuration names one.

    Args:
        config: How to connect.
    """

    def __init__(self, config: WireConfig = WireConfig()) -> None:
        self.config = config
        # Only single deque and dict operations touch the pool, which are atomic: a lock held by another thread during
        # a fork would stay locked in the child for ever.
        self._idle: dict[Route, deque[Connection]] = {}
        self._routes: dict[tuple[str, str], Route] = {}
        self._pid = os.getpid()
        self._tls: ssl.SSLContext | None = None
        weakref.finalize(self, _close_all, self._idle)

    def __reduce__(self) -> tuple[type[Wire], tuple[WireConfig]]:
        return type(self), (self.config,)

    def request(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]],
        body: Buffers = (),
        *,
        key: str | None = None,
        replay: bool = True,
    ) -> WireResponse:
        """Send a request and wait for the head of the answer.

        Args:
            method: HTTP method.
            url: Absolute URL, quoted.
            headers: Header fields. ``Host``, ``Accept-Encoding`` and ``Content-Length`` are added when missing.
            body: The body, in order; sent without joining.
            key: Object key, for error messages.
            replay: Whether to send again on a fresh connection when a reused one was found dead before the answer's
                first byte. False for requests that must not take effect twice.

        Returns:
            The answer, whatever its status.

        Raises:
            TransientError: Connecting, sending or receiving failed.
            InvalidRequestError: The server's certificate is not trusted, or it speaks no TLS.
            ConfigError: The URL or the proxy cannot be used.
        """
        request = Outgoing(method, urlsplit(url), list(headers), body, key)
        with failed_request(f"{method} to {request.url.hostname} failed", key):
            route = self._route(request.url)
            connection = self._pooled(route)
            if connection is not None:
                try:
                    return self._exchange(connection, route, request)
                except NoAnswerError:
                    if not replay:
                        raise
            return self._exchange(self._connect(route), route, request)

    def close(self) -> None:
        """Close the resting connections. The wire may be used again."""
        _close_all(self._idle)

    def give_back(self, route: Route, connection: Connection) -> None:
        """Keep a connection for the next request; called by a response that was read to its end."""
        connection.idle_since = time.monotonic()
        idle = self._idle.setdefault(route, deque())
        if len(idle) >= self.config.max_idle or self._pid != os.getpid():
            connection.close()
        else:
            idle.append(connection)

    def _route(self, url: SplitResult) -> Route:
        """Look a route up once for each host: the environment is slow to read, and the SDKs read it once too."""
        known = (url.scheme, url.netloc)
        if known not in self._routes:
            self._routes[known] = find_route(url, proxy_url=self.config.proxy_url)
        return self._routes[known]

    def _pooled(self, route: Route) -> Connection | None:
        if self._pid != os.getpid():
            # After a fork the sockets are the parent's too: this closes the child's handles only.
            self.close()
            self._pid = os.getpid()
        idle = self._idle.setdefault(route, deque())
        oldest = time.monotonic() - self.config.max_idle_s
        while connection := _pop(idle):
            if connection.idle_since >= oldest and not is_stale(connection):
                return connection
            connection.close()
        return None

    def _connect(self, route: Route) -> Connection:
        tls = self._tls_context() if route.scheme == "https" else None
        connection = connect(route, tls, timeout_s=self.config.connect_timeout_s)
        connection.sock.settimeout(self.config.read_timeout_s)
        return connection

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            try:
                context = ssl.create_default_context(cafile=self.config.ca_bundle)
            except OSError as error:
                raise ConfigError(
                    f"cannot read the CA certificates in {self.config.ca_bundle!r}",
                    cause=error,
                    hint="ca_bundle must name a file of certificates in PEM format",
                ) from error
            context.set_alpn_protocols(["http/1.1"])
            if not self.config.verify_tls:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._tls = context
        return self._tls

    def _exchange(self, connection: Connection, route: Route, request: Outgoing) -> WireResponse:
        connection.enter(current_scope())
        try:
            raw, whole = exchange(connection, route, request)
        except BaseException:
            connection.leave()
            connection.close()
            raise
        return WireResponse(connection, raw, self, route, request.key, reusable=whole and not raw.will_close)


def _close_all(pool: dict[Route, deque[Connection]]) -> None:
    for idle in list(pool.values()):
        while connection := _pop(idle):
            connection.close()


def _pop(idle: deque[Connection]) -> Connection | None:
    try:
        return idle.pop()
    except IndexError:
        return None


@contextmanager
def _broken_connection(response: WireResponse, action: str) -> Iterator[None]:
    """Close the connection of a response that failed while it was read."""
    try:
        with failed_request(f"{action} failed", response.key):
            yield
    except BaseException:
        response.close()
        raise
