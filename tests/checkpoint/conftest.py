"""Places to keep checkpoints at: every store, through real sockets where there are any."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from dcp_cloud.testing.servers import joining_servers, server_names

SERVERS = server_names(os.environ)
# One production server stands for all where the store does not matter; the conformance suite sees to the others.
FAST_SERVER = "ceph"


@pytest.fixture
def place(request: pytest.FixtureRequest, bucket_uri: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """Make URIs: ``place("step-1")``; ``@pytest.mark.parametrize("place", [...], indirect=True)`` chooses the store."""
    kind = getattr(request, "param", FAST_SERVER)
    if kind == "memory":
        return _below(f"memory://{uuid.uuid4().hex}/run")
    if kind == "file":
        return _below(f"file://{tmp_path}/run")
    return _below(bucket_uri(kind))


def _below(base: str) -> Callable[..., str]:
    root, _, query = base.partition("?")
    numbers = itertools.count()

    def make(name: str | None = None, **options: str) -> str:
        extra = "&".join([*filter(None, [query]), *(f"{key}={value}" for key, value in options.items())])
        return f"{root}/{name or f'step-{next(numbers)}'}" + (f"?{extra}" if extra else "")

    return make


every_store = pytest.mark.parametrize("place", ["memory", "file", *SERVERS], indirect=True)
every_server = pytest.mark.parametrize("place", ["file", *SERVERS], indirect=True)
# One server for each provider's protocol, and those that the environment adds.
CLOUDS = ("ceph", "fake-gcs", "azurite", *joining_servers(os.environ))
every_cloud = pytest.mark.parametrize("place", CLOUDS, indirect=True)
