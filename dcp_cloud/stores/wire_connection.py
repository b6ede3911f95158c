"""One connection of the wire: how a request is laid on the socket, proxies, and what the standard library raises."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import select
import socket
import ssl
import urllib.request
import warnings
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from dcp_cloud.errors import ConfigError, InvalidRequestError, StoreError, TransientError
from dcp_cloud.stores.base import Buffers
from dcp_cloud.stores.cancel import CancelScope

# Buffers up to this length are joined: a copy of so little costs less than a packet or a TLS record of its own.
_JOIN_BYTES = 16 * 1024
_JOINED_BYTES = 64 * 1024
# socket.sendall counts its timeout over the whole buffer; slices make it a timeout for progress.
_SEND_SLICE_BYTES = 1024 * 1024


class Route(NamedTuple):
    """Where a connection leads: connections of equal routes are interchangeable."""

    scheme: str
    host: str
    port: int
    proxy: str | None


class Connection(http.client.HTTPConnection):
    """Keeps the header block back, so that it leaves in one packet with the beginning of a small body."""

    held: list[bytes] | None = None
    idle_since: float = 0.0
    scope: CancelScope | None = None

    def enter(self, scope: CancelScope | None) -> None:
        """Let a scope break off the request that is about to be sent."""
        self.scope = scope
        if scope is not None:
            scope.add(self.break_off)

    def leave(self) -> bool:
        """End what ``enter`` began; tell whether the request may have been broken off."""
        scope, self.scope = self.scope, None
        if scope is None:
            return False
        scope.remove(self.break_off)
        return scope.is_cancelled

    def break_off(self) -> None:
        """End whatever waits for this connection, from any thread."""
        sock = self.sock
        if self.scope is not None and sock is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                # Not the method of ssl.SSLSocket, which would take the TLS state away from under the other thread.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def send(self, data: object) -> None:
        """Send, or keep back what ``endheaders`` sends."""
        if self.held is None:
            super().send(data)  # type: ignore[arg-type]  # the base class takes many types
        else:
            self.held.append(data)  # type: ignore[arg-type]  # http.client hands headers over as bytes


class _TLSConnection(Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class Outgoing(NamedTuple):
    """A request on its way."""

    method: str
    url: SplitResult
    headers: list[tuple[str, str]]
    body: Buffers
    key: str | None


class NoAnswerError(Exception):
    """The connection ended before the first byte of an answer."""


def find_route(url: SplitResult, *, proxy_url: str | None = None) -> Route:
    """Tell where to connect for a URL.

    Args:
        url: The URL.
        proxy_url: Proxy to go through; if None, the one that the environment names for the URL.

    Raises:
        ConfigError: The URL is neither http nor https.
    """
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ConfigError("the endpoint is no http or https URL", key=f"{url.scheme}://{url.hostname}")
    if url.scheme == "http" and not _is_loopback(url.hostname):
        # Python tells the same once for each process.
        warnings.warn(
            f"{url.hostname} is reached over http: checkpoints, and tokens and signatures that give access to them, "
            "can be read and changed on their way; use an https endpoint",
            UserWarning,
            stacklevel=2,
        )
    port = url.port or (443 if url.scheme == "https" else 80)
    proxy = proxy_url
    if proxy is None and not urllib.request.proxy_bypass(f"{url.hostname}:{port}"):
        proxies = urllib.request.getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all")
    return Route(url.scheme, url.hostname, port, proxy)


def connect(route: Route, tls: ssl.SSLContext | None, *, timeout_s: float) -> Connection:
    """Open a connection.

    Args:
        route: Where to.
        tls: Context for https, None for http.
        timeout_s: Time for connect and handshake, seconds.

    Returns:
        The open connection.
    """
    host, port = route.host, route.port
    login: dict[str, str] = {}
    if route.proxy is not None:
        host, port, login = _proxy_address(route.proxy)
    connection: Connection
    if tls is None:
        connection = Connection(host, port, timeout=timeout_s)
    else:
        connection = _TLSConnection(host, port, timeout=timeout_s, context=tls)
        if route.proxy is not None:
            connection.set_tunnel(route.host, route.port, headers=login)
    try:
        connection.connect()
    except BaseException:
        connection.close()
        raise
    return connection


def exchange(connection: Connection, route: Route, request: Outgoing) -> tuple[http.client.HTTPResponse, bool]:
    """Send a request and read the head of the answer.

    Returns:
        The answer, and whether the request was sent to its end. A server may answer and hang up before it took the
        whole body, and then the answer says why.

    Raises:
        NoAnswerError: The connection ended before the first byte of an answer.
    """
    failure: OSError | None = None
    head = _encode_head(connection, route, request)
    try:
        for piece in _pieces(head, request.body):
            connection.sock.sendall(piece)
    except (BrokenPipeError, ConnectionResetError) as error:
        failure = error
    try:
        return connection.getresponse(), failure is None
    except (http.client.RemoteDisconnected, ConnectionError) as error:
        raise NoAnswerError from (failure or error)


def is_stale(connection: Connection) -> bool:
    """Tell whether a resting connection has something to read: only its end, or an answer that nobody asked for."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _encode_head(connection: Connection, route: Route, request: Outgoing) -> bytes:
    url, headers = request.url, request.headers
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    if route.proxy is not None and route.scheme == "http":
        target = f"http://{url.netloc}{target}"
        headers = headers + list(_proxy_address(route.proxy)[2].items())
    names = {name.lower() for name, _ in headers}
    connection.held = []
    connection.putrequest(
        request.method, target, skip_host="host" in names, skip_accept_encoding="accept-encoding" in names
    )
    for name, value in headers:
        connection.putheader(name, value)
    length = sum(map(len, request.body))
    if "content-length" not in names and (length or request.method in ("PUT", "POST")):
        connection.putheader("Content-Length", str(length))
    connection.endheaders()
    head, connection.held = b"".join(connection.held), None
    return head


def _pieces(head: bytes, body: Buffers) -> Iterator[bytearray | memoryview]:
    joined = bytearray(head)
    for buffer in body:
        if len(buffer) <= _JOIN_BYTES:
            joined += buffer
            if len(joined) < _JOINED_BYTES:
                continue
        if joined:
            yield joined
            joined = bytearray()
        if len(buffer) > _JOIN_BYTES:
            for start in range(0, len(buffer), _SEND_SLICE_BYTES):
                yield buffer[start : start + _SEND_SLICE_BYTES]
    if joined:
        yield joined


def _proxy_address(proxy: str) -> tuple[str, int, dict[str, str]]:
    parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(
            f"cannot use a proxy of scheme {parts.scheme!r}",
            hint="set HTTP_PROXY and HTTPS_PROXY to http://host:port, or add the endpoint to NO_PROXY",
        )
    headers = {}
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Proxy-Authorization"] = "Basic " + b64encode(login.encode()).decode()
    return parts.hostname, parts.port or 80, headers


@contextmanager
def failed_request(message: str, key: str | None) -> Iterator[None]:
    """Turn what the standard library raises into this package's errors: the only place where that is done."""
    try:
        yield
    except (StoreError, ConfigError):
        raise
    except NoAnswerError as error:
        raise TransientError(message, key=key, cause=error.__cause__ or error) from error
    except ssl.SSLCertVerificationError as error:
        raise InvalidRequestError(
            message,
            key=key,
            cause=error,
            hint="name the CA that signed the server's certificate with ca_bundle=…, or check the endpoint's host name",
        ) from error
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            raise InvalidRequestError(
                message, key=key, cause=error, hint="the endpoint speaks no TLS: write http:// instead of https://"
            ) from error
        raise TransientError(message, key=key, cause=error) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise InvalidRequestError(message, key=key, cause=error) from error
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(message, key=key, cause=error) from error
