from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable

import pytest

from dcp_cloud.errors import AlreadyExistsError, ChecksumMismatchError, NotFoundError, PreconditionError
from dcp_cloud.stores.base import IfAbsent, MultipartUpload, ObjectStore
from dcp_cloud.stores.memory import MemoryStore
from dcp_cloud.testing.wrappers import Fault, FaultyStore, LatencyStore, RecordingStore, StoreWrapper

WRAPPERS: dict[str, Callable[[ObjectStore], StoreWrapper]] = {
    "recording": RecordingStore,
    "latency": lambda store: LatencyStore(store, first_byte_s=0),
    "faulty": lambda store: FaultyStore(store, [Fault("fail", key="nobody's key")]),
    "all": lambda store: RecordingStore(FaultyStore(LatencyStore(store, first_byte_s=0), [])),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
DATA = memoryview(b"0123456789")


@every_wrapper
def test_every_method_reaches_the_store(wrap: Callable[[ObjectStore], StoreWrapper]) -> None:
    """A wrapper is its store: each method takes the same, does the same and answers the same."""
    store = MemoryStore(uuid.uuid4().hex)
    wrapped = wrap(store)
    assert isinstance(wrapped, ObjectStore)
    assert (wrapped.uri, wrapped.limits) == (store.uri, store.limits)

    meta = wrapped.put("d/k", [DATA[:4], DATA[4:]], condition=IfAbsent())
    assert meta == store.head("d/k") == wrapped.head("d/k")
    with pytest.raises(AlreadyExistsError):
        wrapped.put("d/k", [DATA], condition=IfAbsent())
    with pytest.raises(ChecksumMismatchError):
        wrapped.put("d/k", [DATA], crc32=1)
    assert wrapped.get("d/k", max_bytes=3) == store.get("d/k", max_bytes=3)
    room = bytearray(5)
    wrapped.get_range("d/k", 2, [memoryview(room)[:2], memoryview(room)[2:]])
    assert room == b"23456"
    with pytest.raises(PreconditionError):
        wrapped.get_range("d/k", 0, [memoryview(room)], if_match="another")

    upload = wrapped.create_multipart("parts")
    assert isinstance(upload, MultipartUpload)
    assert upload.key == "parts"
    (listed,) = wrapped.list_multiparts()
    assert (listed.key, listed.started_at) == (upload.key, upload.started_at)
    assert list(wrapped.list_multiparts("elsewhere")) == []
    with pytest.raises(ChecksumMismatchError):
        upload.put_part(0, [DATA], crc32=1)
    parts = [upload.put_part(1, [DATA]), upload.put_part(0, [DATA[:1]])]
    assert upload.complete(sorted(parts, key=lambda part: part.index)) == store.head("parts")
    assert store.get("parts", max_bytes=99).data == b"00123456789"
    wrapped.create_multipart("dropped")
    for found in wrapped.list_multiparts():
        found.abort()
    assert list(store.list_multiparts()) == []

    assert {found.key for found in wrapped.list()} == {"d/k", "parts"}
    assert [found.key for found in wrapped.list("d")] == ["d/k"]
    assert list(wrapped.list_prefixes()) == ["d"]
    wrapped.delete(["d/k", "parts", "missing"])
    assert list(store.list()) == []
    with pytest.raises(NotFoundError):
        wrapped.head("d/k")
    wrapped.close()


@every_wrapper
def test_a_pickled_wrapper_wraps_the_same_store(wrap: Callable[[ObjectStore], StoreWrapper]) -> None:
    """Wrappers and their uploads go to other processes as stores and uploads do."""
    store = MemoryStore(uuid.uuid4().hex)
    wrapped = wrap(store)
    wrapped.put("k", [DATA])
    copy = pickle.loads(pickle.dumps(wrapped))
    assert type(copy) is type(wrapped)
    assert copy.get("k", max_bytes=99).data == DATA
    upload = pickle.loads(pickle.dumps(wrapped.create_multipart("parts")))
    upload.complete([upload.put_part(0, [DATA])])
    assert store.get("parts", max_bytes=99).data == DATA
