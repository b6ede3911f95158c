"""Fixtures for the tests that are about S3 only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from dcp_cloud.stores.s3_config import S3Config
from tests.s3.stub import AmazonProxy, amazon_proxy, s3_stub
from tests.unit.stores.stub_server import StubServer


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that any stub takes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[StubServer]:
    """A server that answers in S3's shapes."""
    with s3_stub(str(tmp_path)) as server:
        yield server


@pytest.fixture
def tls_stub(tmp_path: Path) -> Iterator[StubServer]:
    """The same over TLS: customer keys travel over nothing else."""
    with s3_stub(str(tmp_path), tls=True) as server:
        yield server


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[AmazonProxy]:
    """A proxy that answers for every host."""
    with amazon_proxy(str(tmp_path)) as proxy:
        yield proxy


@pytest.fixture
def open_s3(credentials: None, tmp_path: Path) -> Iterator[Callable[..., ObjectStore]]:
    """Open a store: ``open_s3(uri, **settings)``; it trusts the stubs' certificates."""
    with ExitStack() as stores:

        def open_it(uri: str = "s3://bucket/pre", **settings: object) -> ObjectStore:
            bundle = tmp_path / "ca.pem"
            settings.setdefault("ca_bundle", str(bundle) if bundle.exists() else None)
            store = open_store(uri, config=S3Config(**settings))  # type: ignore[arg-type]
            stores.callback(store.close)
            return store

        yield open_it
