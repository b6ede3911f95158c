"""The ``store`` fixture: every test of this directory runs on every store, and names none."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest

from dcp_cloud.stores import memory
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing import ObjectServer
from dcp_cloud.testing.servers import joining_servers
from dcp_cloud.uri import StoreURI
from tests.conformance.deviations import DEVIATIONS
from tests.conformance.oracles import FileOracle, MemoryOracle, Oracle, server_oracle

# A new store is one line here, and one more for each server that it is to be tested on.
_LOCAL_STORES: Mapping[str, str | None] = MappingProxyType(
    {
        "memory": None,
        "file": None,
        "s3-moto": "moto",
        "s3-ceph": "ceph",
        "s3-ceph-tls": "ceph-tls",
        "azure-azurite": "azurite",
        "gcs-fake": "fake-gcs",
    }
)


def stores(environment: Mapping[str, str]) -> Mapping[str, str | None]:
    """Name each store, and the server that it needs, if it needs one.

    A server that the environment names in place of a local one keeps the name, and so the deviations, of that one.

    Args:
        environment: Usually ``os.environ``.
    """
    return {**_LOCAL_STORES, **{f"external-{name}": name for name in joining_servers(environment)}}


STORES = stores(os.environ)


@dataclass(frozen=True)
class Place:
    """A fresh, empty place.

    Args:
        uri: What to open.
        oracle: The same place seen from outside.
        secret: What must not be found in a pickle of the store.
    """

    uri: str
    oracle: Oracle
    secret: str | None = None


@pytest.fixture(params=STORES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A fresh place on each store."""
    name: str = request.param
    function = getattr(request, "function", None)
    reason = DEVIATIONS.get((name, function.__name__ if function else ""))
    if reason is not None:
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    server = STORES[name]
    if name == "memory":
        bucket = f"test-{uuid.uuid4().hex}"
        yield Place(f"memory://{bucket}", MemoryOracle(bucket))
        memory._BUCKETS.pop(bucket, None)
    elif server is None:
        root = str(request.getfixturevalue("tmp_path") / "root")
        yield Place(f"file://{root}", FileOracle(root))
    else:
        servers: Callable[[str], ObjectServer] = request.getfixturevalue("servers")
        uri = request.getfixturevalue("bucket_uri")(server, "run one/step")
        parsed = StoreURI.parse(uri)
        access: Any = servers(server).access
        secret = getattr(access, "secret_key", None) or getattr(access, "account_key", None)
        oracle = server_oracle(parsed.scheme, servers(server).client(), parsed.bucket, parsed.prefix)
        yield Place(uri, oracle, secret)


@pytest.fixture
def store(place: Place) -> Iterator[ObjectStore]:
    """The store under test, empty."""
    store = open_store(place.uri)
    yield store
    store.close()


@pytest.fixture
def oracle(place: Place) -> Oracle:
    """The same place seen from outside."""
    return place.oracle
