"""Where the runs of a campaign save to: fresh prefixes, in memory, on disk and on servers that are shared."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dcp_cloud import open_store
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.prefix import PrefixStore
from dcp_cloud.testing.servers import LOCAL_SERVERS
from tests.campaign.plan import LOCAL_STORES


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server with a bucket: what other processes need to know of it.

    Args:
        uri: URI of the bucket's root.
        environment: Variables with which the SDK finds it.
    """

    uri: str
    environment: Mapping[str, str]


@contextmanager
def running_servers(names: Collection[str]) -> Iterator[dict[str, Server]]:
    """Start servers and make a bucket on each."""
    with ExitStack() as stack:
        found = {}
        for name in names:
            if name not in LOCAL_STORES:
                server = stack.enter_context(LOCAL_SERVERS[name]())
                server.create_bucket("campaign")
                found[name] = Server(uri=server.uri("campaign"), environment=dict(server.environment))
        yield found


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A fresh prefix.

    Args:
        kind: Name of the store.
        uri: Its URI, without a trailing slash.
        environment: Variables to open it with, in this process and in others.
    """

    kind: str
    uri: str
    environment: Mapping[str, str]

    def open(self) -> ObjectStore:
        """Open it with a client of its own."""
        os.environ.update(self.environment)
        return open_store(self.uri)


@dataclass(slots=True)
class Places:
    """Makes places, and keeps the clients of this process.

    Args:
        servers: The servers that run.
    """

    servers: Mapping[str, Server]
    _buckets: dict[str, ObjectStore] = field(default_factory=dict)

    @contextmanager
    def fresh(self, kind: str) -> Iterator[tuple[Place, ObjectStore]]:
        """Make a place and open it; empty it in the end."""
        if kind == "memory":
            place = Place(kind=kind, uri=f"memory://{uuid.uuid4().hex}/run", environment={})
            store = place.open()
            yield place, store
            store.delete([meta.key for meta in store.list()])
        elif kind == "file":
            directory = tempfile.mkdtemp(prefix="campaign-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
            try:
                place = Place(kind=kind, uri=f"file://{directory}/run", environment={})
                yield place, place.open()
            finally:
                shutil.rmtree(directory, ignore_errors=True)
        else:
            server = self.servers[kind]
            os.environ.update(server.environment)
            if kind not in self._buckets:
                self._buckets[kind] = open_store(server.uri)
            root, _, query = server.uri.partition("?")
            prefix = f"run-{uuid.uuid4().hex}"
            uri = f"{root.rstrip('/')}/{prefix}" + (f"?{query}" if query else "")
            store = PrefixStore(self._buckets[kind], prefix)
            yield Place(kind=kind, uri=uri, environment=server.environment), store
            store.delete([meta.key for meta in store.list()])
            for upload in store.list_multiparts():
                upload.abort()
