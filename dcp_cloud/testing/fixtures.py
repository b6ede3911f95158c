"""Fixtures for pytest: object servers by name, and a fresh bucket for each test.

In the top ``conftest.py`` of a project::

    pytest_plugins = ["dcp_cloud.testing.fixtures"]

This is the only module of the package that needs pytest.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from dcp_cloud.errors import MissingExtraError
from dcp_cloud.testing.servers import ObjectServer, ServerPool
from dcp_cloud.testing.servers.access import MISLEADING_VARIABLES

REQUIRE_SERVERS = "DCP_CLOUD_REQUIRE_SERVERS"
"""Variable that, set to 1, makes a server that is not installed a failure; ``CI=true`` does so as well."""


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], ObjectServer]]:
    """Give a running server by name: ``servers("moto")``.

    There are ``moto``, ``ceph``, ``ceph-tls``, ``fake-gcs``, ``azurite``, and ``minio`` if the environment says where
    it runs. Each is started when it is first asked for, shared by all tests, and gone after the last one. A test that
    asks for one that is not installed is skipped, and says how to install it.
    """
    with ServerPool(os.environ) as pool:
        yield lambda name: running_server(pool, name)


@pytest.fixture
def bucket_uri(servers: Callable[[str], ObjectServer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Make a fresh bucket: ``bucket_uri("moto", "prefix", part_size="5MiB") -> uri``.

    Sets the environment in which the URI can be opened, here and in processes that the test starts; the bucket is
    emptied and deleted after the test.
    """
    made: list[tuple[ObjectServer, str]] = []

    def make(server_name: str, prefix: str = "run", **options: str) -> str:
        server = servers(server_name)
        for name in MISLEADING_VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "127.0.0.1,localhost")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        server.create_bucket(bucket)
        made.append((server, bucket))
        return server.uri(bucket, prefix, **options)

    yield make
    for server, bucket in made:
        server.delete_bucket(bucket)


def running_server(pool: ServerPool, name: str) -> ObjectServer:
    """Give a running server, or end the test as one that cannot run here.

    Args:
        pool: Where it runs.
        name: One of the pool's servers.

    Returns:
        The server.
    """
    try:
        return pool.get(name)
    except MissingExtraError as error:
        _report_missing(str(error))


def _report_missing(message: str) -> NoReturn:
    if os.environ.get(REQUIRE_SERVERS) == "1" or os.environ.get("CI") == "true":
        pytest.fail(message, pytrace=False)
    pytest.skip(message)
