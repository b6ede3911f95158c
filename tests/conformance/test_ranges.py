"""Ranged reads."""

from __future__ import annotations

import pytest

from dcp_cloud.errors import InvalidRequestError, PreconditionError
from dcp_cloud.stores.base import ObjectStore
from tests.conformance.data import noise, put, room
from tests.conformance.oracles import Oracle


@pytest.mark.parametrize(
    ("start", "sizes"),
    [
        (0, (10_000,)),
        (0, (1,)),
        (9_999, (1,)),
        (123, (1, 0, 4_000, 77)),
        (5_000, (2_500, 2_500)),
    ],
)
def test_a_range_fills_its_buffers_exactly(store: ObjectStore, oracle: Oracle, start: int, sizes: tuple[int, ...]):
    """Buffers are filled one after the other with the bytes from ``start`` on, and nothing else is touched."""
    data = noise(10_000)
    oracle.seed("a", data)
    whole = bytearray(b"#" * (sum(sizes) + 20))
    views, offset = [], 10
    for size in sizes:
        views.append(memoryview(whole)[offset : offset + size])
        offset += size
    store.get_range("a", start, views)
    assert whole == b"#" * 10 + data[start : start + sum(sizes)] + b"#" * 10


def test_a_large_range_lands_in_many_buffers(store: ObjectStore, oracle: Oracle):
    """Megabytes into buffers of all lengths arrive in order."""
    data = noise(3_000_001)
    oracle.seed("a", data)
    arrays, views = room(1, 1_000_000, 17, 70_000, 1_900_000, 9_983)
    store.get_range("a", 20_000, views)
    assert b"".join(arrays) == data[20_000 : 20_000 + sum(map(len, arrays))]


@pytest.mark.parametrize(("start", "size"), [(95, 10), (100, 1), (5_000, 10), (0, 101)])
def test_a_range_beyond_the_end_is_an_error(store: ObjectStore, start: int, size: int):
    """A range that the object does not hold whole is refused, never filled in part."""
    put(store, "a", noise(100))
    with pytest.raises(InvalidRequestError):
        store.get_range("a", start, [memoryview(bytearray(size))])


def test_a_range_of_an_empty_object_is_an_error(store: ObjectStore):
    """An empty object holds no range."""
    store.put("a", [])
    with pytest.raises(InvalidRequestError):
        store.get_range("a", 0, [memoryview(bytearray(1))])


def test_a_range_of_the_expected_version_is_read(store: ObjectStore):
    """``if_match`` with the object's version token reads."""
    etag = put(store, "a", b"0123456789").etag
    arrays, views = room(4)
    store.get_range("a", 3, views, if_match=etag)
    assert arrays == [b"3456"]


def test_a_range_of_another_version_is_refused(store: ObjectStore):
    """``if_match`` with the token of a replaced version raises PreconditionError."""
    old = put(store, "a", b"0123456789").etag
    put(store, "a", b"9876543210")
    with pytest.raises(PreconditionError):
        store.get_range("a", 0, [memoryview(bytearray(4))], if_match=old)


def test_a_store_reads_on_after_a_refused_range(store: ObjectStore):
    """What was left of a refused answer does not leak into the next one."""
    data = noise(200_000)
    put(store, "a", data)
    for _ in range(3):
        with pytest.raises(InvalidRequestError):
            store.get_range("a", 100_000, [memoryview(bytearray(150_000))])
        arrays, views = room(50_000)
        store.get_range("a", 77, views)
        assert arrays[0] == data[77:50_077]
