r"""A proxy on 127.0.0.1 that clients take for the server: real SDKs, real sockets, faults on purpose.

::

    with MotoServer() as server, FaultProxy(server.endpoint_url, [NetworkFault("reset", method="PUT", nth=2)]) as proxy:
        behind = proxy.in_front_of(server)
        behind.create_bucket("bucket")
        os.environ.update(behind.environment)
        dcp.save(state_dict, storage_writer=CloudStorageWriter(behind.uri("bucket", "run/step-1")))
        print(*proxy.strikes, proxy.replay, sep="\n")
"""

from __future__ import annotations

import dataclasses
import errno
import socket
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import Self

from dcp_cloud.errors import ConfigError, DcpCloudError
from dcp_cloud.testing.proxy.connection import ClientConnection
from dcp_cloud.testing.proxy.faults import Exchange, NetworkFault
from dcp_cloud.testing.proxy.message import hang_up
from dcp_cloud.testing.proxy.schedule import Schedule
from dcp_cloud.testing.servers.base import ObjectServer
from dcp_cloud.testing.servers.external import ExternalServer
from dcp_cloud.testing.servers.process import free_port

_CONNECT_S = 10.0
_BACKLOG = 256


class FaultProxy:
    """Carries requests to a server over http and strikes them with faults. A context manager.

    Requests and answers are held whole in memory, one for each connection. ``Host`` and all other header fields that
    a signature may cover reach the server as the client sent them. What a fault with a ``chance`` does follows from
    the seed, the request and how often that same request was made, not from the order of threads.

    Args:
        target_url: Base URL of the server, http only.
        faults: What goes wrong; of several that would strike a request, the first one does.
        seed: Decides what is left to chance.

    Raises:
        ConfigError: The URL is no http URL of a host.
    """

    def __init__(self, target_url: str, faults: Sequence[NetworkFault] = (), *, seed: int = 0) -> None:
        self._target = urlsplit(target_url)
        if self._target.scheme != "http" or not self._target.hostname:
            raise ConfigError("the proxy stands before http servers only", key=f"{self._target.scheme}://…")
        self.schedule = Schedule(faults, seed=seed)
        self.released = threading.Event()
        self.closing = threading.Event()
        self._is_up = threading.Event()
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._behind: list[ObjectServer] = []

    def __enter__(self) -> Self:
        self.released.clear()
        self.closing.clear()
        self._is_up.set()
        self._listener = _listen()
        self._spawn(self._accept, self._listener)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """What to give to clients instead of the server's URL; the path is the same.

        Raises:
            DcpCloudError: The proxy is not running.
        """
        if self._listener is None:
            raise DcpCloudError("the proxy is not running", hint="use it in a with statement")
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}{self._target.path}"

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """All requests so far, in order of arrival."""
        return self.schedule.exchanges

    @property
    def strikes(self) -> tuple[Exchange, ...]:
        """The requests that were struck."""
        return tuple(exchange for exchange in self.exchanges if exchange.fault is not None)

    @property
    def replay(self) -> str:
        """The expression that makes a proxy with the same faults and seed."""
        return f"FaultProxy({self._target.geturl()!r}, {list(self.schedule.faults)!r}, seed={self.schedule.seed})"

    def in_front_of(self, server: ObjectServer) -> ObjectServer:
        """Give the server as it looks through this proxy: its URIs, environment and SDK client lead here.

        Args:
            server: The running server that this proxy leads to.

        Returns:
            A server to be used like the other one; it ends with the proxy.
        """
        access: Any = server.access
        behind = ExternalServer(
            name=f"{server.name} behind a proxy", access=dataclasses.replace(access, endpoint_url=self.url)
        ).start()
        self._behind.append(behind)
        return behind

    def set_faults(self, *faults: NetworkFault) -> None:
        """Go on with other faults, or with none; counting begins anew.

        Args:
            *faults: What goes wrong from now on.
        """
        self.released.clear()
        self.schedule.replace(faults)

    def release(self) -> None:
        """End what stalls, drips or refuses, now and later, until ``set_faults``."""
        self.released.set()

    def close(self) -> None:
        """End all connections and threads."""
        while self._behind:
            self._behind.pop().stop()
        self.closing.set()
        self.released.set()
        self._is_up.set()
        with self._lock:
            listener, self._listener = self._listener, None
            sockets = tuple(self._sockets)
        if listener is not None:
            hang_up(listener)
        for sock in sockets:
            hang_up(sock)
        for thread in tuple(self._threads):
            thread.join()
        if listener is not None:
            listener.close()

    def connect(self) -> socket.socket:
        """Open a connection to the server (called by the proxy's connections)."""
        sock = socket.create_connection((self._target.hostname or "", self._target.port or 80), timeout=_CONNECT_S)
        sock.settimeout(None)
        self._keep(sock)
        return sock

    def forget(self, sock: socket.socket) -> None:
        """Close a socket (called by the proxy's connections)."""
        with self._lock:
            self._sockets.discard(sock)
        sock.close()

    def go_down(self, duration_s: float | None) -> None:
        """End all connections and refuse new ones for a time (called by the proxy's connections).

        Args:
            duration_s: Seconds; None for until ``release()``.
        """
        with self._lock:
            listener = self._listener
        if listener is None or not self._is_up.is_set():
            return
        self._is_up.clear()
        # Linux stops listening, so the kernel refuses, and keeps the port.
        hang_up(listener)
        with self._lock:
            sockets = tuple(self._sockets)
        for sock in sockets:
            hang_up(sock)
        self._spawn(self._come_up, listener, duration_s)

    def _come_up(self, listener: socket.socket, duration_s: float | None) -> None:
        self.released.wait(duration_s)
        if not self.closing.is_set():
            listener.listen(_BACKLOG)
        self._is_up.set()

    def _accept(self, listener: socket.socket) -> None:
        while not self.closing.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:  # it was made to stop listening
                self._is_up.wait()
                continue
            self._keep(sock)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self._is_up.is_set():
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ClientConnection(sock, self).serve()
        finally:
            self.forget(sock)

    def _keep(self, sock: socket.socket) -> None:
        with self._lock:
            self._sockets.add(sock)
            is_closing = self.closing.is_set()
        if is_closing:
            hang_up(sock)

    def _spawn(self, run: Any, *args: object) -> None:  # noqa: ANN401 - a function of any arguments
        thread = threading.Thread(target=run, args=args, name="fault-proxy", daemon=True)
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive()]
            self._threads.append(thread)
            thread.start()


def _listen() -> socket.socket:
    """Listen on a free port that was asked for by number: the kernel keeps such a port while nobody listens."""
    while True:
        try:
            return socket.create_server(("127.0.0.1", free_port()), backlog=_BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
