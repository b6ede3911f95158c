"""The servers that can be asked for by name, each started at most once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType, TracebackType

from dcp_cloud.errors import DcpCloudError
from dcp_cloud.testing.servers.azurite import AzuriteServer
from dcp_cloud.testing.servers.base import ObjectServer
from dcp_cloud.testing.servers.ceph import CephServer
from dcp_cloud.testing.servers.external import external_servers
from dcp_cloud.testing.servers.fake_gcs import FakeGCSServer
from dcp_cloud.testing.servers.moto import MotoServer

LOCAL_SERVERS: Mapping[str, Callable[[], ObjectServer]] = MappingProxyType(
    {
        "moto": MotoServer,
        "ceph": CephServer,
        "ceph-tls": lambda: CephServer(tls=True),
        "fake-gcs": FakeGCSServer,
        "azurite": AzuriteServer,
    }
)
"""What can be started on this machine, by name."""


def joining_servers(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Name the servers that the environment adds to the local ones; others that it names stand in for a local one.

    Args:
        environment: Usually ``os.environ``; see :func:`external_servers`.

    Returns:
        ``("minio",)``, or nothing.
    """
    return tuple(name for name in external_servers(environment) if name not in LOCAL_SERVERS)


def server_names(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Name every server that can be asked for, each once.

    Args:
        environment: Usually ``os.environ``; see :func:`external_servers`.

    Returns:
        The local ones, and those that the environment adds.
    """
    return (*LOCAL_SERVERS, *joining_servers(environment))


class ServerPool:
    """Starts servers when they are first asked for, and stops all of them together.

    Args:
        environment: Usually ``os.environ``; a running server that it names is used in place of a local one.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._external = external_servers(environment)
        self._running: dict[str, ObjectServer] = {}
        self._resources = ExitStack()

    def get(self, name: str) -> ObjectServer:
        """Give a running server, one and the same for each name.

        Args:
            name: One of :func:`server_names`.

        Returns:
            The server.

        Raises:
            MissingExtraError: It is not installed; the message names the line that installs it.
            DcpCloudError: There is none of this name, or it does not start.
        """
        if name not in self._running:
            self._running[name] = self._resources.enter_context(self._make(name))
        return self._running[name]

    def _make(self, name: str) -> ObjectServer:
        if name in self._external:
            return self._external[name]
        if name not in LOCAL_SERVERS:
            known = ", ".join({**LOCAL_SERVERS, **self._external})
            raise DcpCloudError(f"no server is called {name!r}", hint=f"there are {known}")
        return LOCAL_SERVERS[name]()

    def close(self) -> None:
        """Stop all servers."""
        self._running.clear()
        self._resources.close()

    def __enter__(self) -> ServerPool:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
