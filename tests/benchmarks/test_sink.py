"""The server that the benchmarks measure against keeps what it is given, in all three of its languages."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from benchmarks.harness import SinkClient, client_environment, running_sink
from benchmarks.raw import open_stores
from dcp_cloud.errors import AlreadyExistsError, NotFoundError, PreconditionError
from dcp_cloud.stores.base import IfAbsent, IfMatch

MIB = 1024**2


@pytest.fixture(scope="module")
def sink() -> Iterator[SinkClient]:
    """A running sink."""
    with running_sink(0.125) as client:
        yield client


@pytest.fixture
def _environment(sink: SinkClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in client_environment(sink.url).items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize("kind", ["s3", "gcs", "azure"])
def test_it_stores_what_it_is_given(sink: SinkClient, kind: str) -> None:
    """Objects come back as they were put, whole, in ranges and in parts; conditions hold; what is deleted is gone."""
    store = open_stores(sink.url)[kind]
    data = os.urandom(11 * MIB)
    view = memoryview(data)
    small = store.put("run/small", [view[:100], view[100:1000]], condition=IfAbsent())
    with pytest.raises(AlreadyExistsError):
        store.put("run/small", [view[:10]], condition=IfAbsent())
    assert store.get("run/small", max_bytes=5000).data == data[:1000]
    store.put("run/small", [view[:7]], condition=IfMatch(small.etag))
    with pytest.raises(PreconditionError):
        store.put("run/small", [view[:10]], condition=IfMatch(small.etag))
    upload = store.create_multipart("run/large")
    parts = [upload.put_part(1, [view[6 * MIB :]]), upload.put_part(0, [view[: 6 * MIB]])]
    assert upload.complete(parts[::-1]).size_bytes == len(data)
    arrived = bytearray(8 * MIB)
    store.get_range("run/large", 2 * MIB, [memoryview(arrived)[: 5 * MIB], memoryview(arrived)[5 * MIB :]])
    assert arrived == data[2 * MIB : 10 * MIB]
    assert {meta.key: meta.size_bytes for meta in store.list("run")} == {"run/small": 7, "run/large": len(data)}
    store.delete(["run/small", "run/large", "run/missing"])
    with pytest.raises(NotFoundError):
        store.head("run/large")
    store.close()


def test_memory_is_given_back(sink: SinkClient) -> None:
    """Clearing gives room back, so that runs of any number fit."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in client_environment(sink.url).items():
            patch.setenv(name, value)
        store = open_stores(sink.url)["s3"]
        for number in range(20):
            store.put(f"large-{number % 2}", [memoryview(bytes(50 * MIB))])
            if number % 2:
                sink.clear()
        store.close()
    assert sink.stats()["requests"]["put"] >= 20
