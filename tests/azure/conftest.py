"""Fixtures: stubs and stores that speak to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dcp_cloud.stores.azure_config import AzureConfig
from dcp_cloud.stores.base import ObjectStore
from dcp_cloud.stores.registry import open_store
from tests.azure.stub import Stub, stub_server

KEY = "c2VjcmV0IGtleQ=="


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[Stub]:
    """A stub without TLS."""
    with stub_server(str(tmp_path)) as running:
        yield running


@pytest.fixture
def tls_stub(tmp_path: Path) -> Iterator[Stub]:
    """A stub with TLS: the SDK sends tokens and customer keys over nothing else."""
    with stub_server(str(tmp_path), tls=True) as running:
        yield running


@pytest.fixture
def open_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ObjectStore]]:
    """Open a store at a stub, with an account key unless the settings or the environment say otherwise."""
    opened: list[ObjectStore] = []
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account")
    monkeypatch.setenv("AZURE_STORAGE_KEY", KEY)

    def open_it(stub: Stub, **settings: object) -> ObjectStore:
        config = AzureConfig(account_url=stub.url, ca_bundle=stub.ca_file, **settings)  # type: ignore[arg-type]
        opened.append(open_store("az://container", config=config))
        return opened[-1]

    yield open_it
    for store in opened:
        store.close()
