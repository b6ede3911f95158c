"""Fixtures for the tests that are about Google Cloud Storage only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.gcs_config import GCSConfig
from dcp_cloud.stores.registry import open_store
from tests.gcs.stub import Stub, running_stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A server that answers as it is told."""
    with running_stub() as stub:
        yield stub


@pytest.fixture
def open_at(stub: Stub) -> Iterator[Callable[..., ObjectStore]]:
    """Open ``gs://bucket`` at the stub: ``open_at(**settings)``; anonymous unless credentials are given."""
    with ExitStack() as stores:

        def open_bucket(**settings: object) -> ObjectStore:
            settings.setdefault("anonymous", "credentials_factory" not in settings)
            config = GCSConfig(endpoint_url=stub.url, **settings)
            store = open_store("gs://bucket", config=config)
            stores.callback(store.close)
            return store

        yield open_bucket
