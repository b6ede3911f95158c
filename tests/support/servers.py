"""The servers that tests can ask for by name, each started at most once."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType

import pytest

from dcp_cloud.errors import MissingExtraError
from dcp_cloud.testing import AzuriteServer, CephServer, FakeGCSServer, MotoServer, ObjectServer, external_servers

LOCAL_SERVERS: Mapping[str, Callable[[], ObjectServer]] = MappingProxyType(
    {
        "moto": MotoServer,
        "ceph": CephServer,
        "ceph-tls": lambda: CephServer(tls=True),
        "fake-gcs": FakeGCSServer,
        "azurite": AzuriteServer,
    }
)


def server_names() -> tuple[str, ...]:
    """Every server that can be asked for here: the local ones, and those that the environment names."""
    return tuple(LOCAL_SERVERS) + tuple(name for name in external_servers(os.environ) if name not in LOCAL_SERVERS)


class ServerPool:
    """Starts servers when they are first asked for."""

    def __init__(self) -> None:
        self._external = external_servers(os.environ)
        self._running: dict[str, ObjectServer] = {}
        self._resources = ExitStack()

    def get(self, name: str) -> ObjectServer:
        """Give a running server; fail (or, on a developer's machine, skip) if it is not installed."""
        if name not in self._running:
            server = self._external[name] if name in self._external else LOCAL_SERVERS[name]()
            try:
                self._running[name] = self._resources.enter_context(server)
            except MissingExtraError as error:
                _report_missing(str(error))
        return self._running[name]

    def close(self) -> None:
        """Stop all servers."""
        self._resources.close()


def _report_missing(message: str) -> None:
    if os.environ.get("DCP_CLOUD_REQUIRE_SERVERS") == "1" or os.environ.get("CI") == "true":
        pytest.fail(f"{message}. Or run scripts/servers", pytrace=False)
    pytest.skip(f"{message}. Or run scripts/servers")
