"""Where the demo keeps its checkpoints: a server of its own, a temporary directory, or the user's store.

The embedded S3 server is moto. Of the S3 servers that PyPI has, it is the only one with what a truthful commit needs:
create-only and conditional puts that one of many racing writers wins (rclone and nanio ignore ``If-None-Match``,
localbucket ignores ``If-Match``). Its weakness is that each ranged read copies the whole object; see docs/demo.md for
what that costs here.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from dcp_cloud.errors import DcpCloudError
from dcp_cloud.stores.registry import open_store
from dcp_cloud.testing import AzuriteServer, FakeGCSServer, MotoServer, ObjectServer
from dcp_cloud.testing.servers.access import MISLEADING_VARIABLES
from dcp_cloud.uri import StoreURI

_SERVERS: Mapping[str, type[ObjectServer]] = MappingProxyType(
    {"s3": MotoServer, "gcs": FakeGCSServer, "azure": AzuriteServer}
)
STORES = (*_SERVERS, "file")
_BUCKET = "demo"
# moto copies the whole object for each ranged read, so there have to be few of them: long ones, and across the gaps
# that other ranks' rows leave. A read is no longer than a connection's share of the load.
_OPTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType({"s3": {"max_gap": "8MiB", "max_concurrency": "4"}})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the checkpoints of one run of the demo go.

    Args:
        uri: Prefix of the run, with options; nothing else lies below it.
        name: What to call the store.
        environment: Variables that the store is opened with; this process has them set.
        is_embedded: Whether it ends with the demo.
    """

    uri: StoreURI
    name: str
    environment: Mapping[str, str]
    is_embedded: bool


@contextmanager
def embedded(store: str, part_size: str) -> Iterator[Place]:
    """Start a store for this run.

    Args:
        store: One of ``STORES``.
        part_size: Length of parts and reads.

    Yields:
        The place; it is gone afterwards.

    Raises:
        MissingExtraError: The server is not installed; the message names the line that installs it.
    """
    if store == "file":
        with tempfile.TemporaryDirectory(prefix="dcp-cloud-demo-") as directory:
            uri = StoreURI.parse(f"file://{directory}/run?part_size={part_size}")
            yield Place(uri=uri, name="files", environment={}, is_embedded=True)
        return
    with _SERVERS[store]() as server:
        environment = {**server.environment, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        with _set(environment):
            server.create_bucket(_BUCKET)
            uri = StoreURI.parse(server.uri(_BUCKET, "run", part_size=part_size, **_OPTIONS.get(store, {})))
            yield Place(uri=uri, name=server.name, environment=environment, is_embedded=True)


@contextmanager
def given(uri: str, *, keep: bool) -> Iterator[Place]:
    """Use a place of the user's; the demo works below a new prefix, so it touches nothing that is there.

    Args:
        uri: Where; the environment has to hold what opens it.
        keep: Leave the checkpoints there.

    Yields:
        The place.
    """
    parsed = StoreURI.parse(uri).child(f"dcp-cloud-demo-{uuid.uuid4().hex[:8]}")
    try:
        yield Place(uri=parsed, name=parsed.scheme, environment={}, is_embedded=False)
    finally:
        if not keep:
            _remove(parsed)


def unfinished_uploads(uri: StoreURI) -> int | None:
    """Count the uploads below a place that were begun and not ended.

    Args:
        uri: The place.

    Returns:
        How many, or None if the store cannot tell.
    """
    try:
        return sum(1 for _ in open_store(uri).list_multiparts())
    except DcpCloudError:
        return None


def _remove(uri: StoreURI) -> None:
    store = open_store(uri)
    for upload in list(store.list_multiparts()):
        upload.abort()
    store.delete([meta.key for meta in store.list()])
    store.close()


@contextmanager
def _set(environment: Mapping[str, str]) -> Iterator[None]:
    names = {*environment, *MISLEADING_VARIABLES}
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)
