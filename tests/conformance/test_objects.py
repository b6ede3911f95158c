"""Whole objects: put, get, head, delete."""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta, timezone

import pytest

from dcp_cloud.errors import ChecksumMismatchError, NotFoundError
from dcp_cloud.stores.base import ObjectStore
from tests.conformance.data import cut, noise, put
from tests.conformance.oracles import Oracle


def test_put_stores_what_it_was_given(store: ObjectStore, oracle: Oracle):
    """The buffers of a put are the object's bytes, in order, empty ones included."""
    data = noise(300_000)
    pieces = [memoryview(b""), *cut(data, 1, 100_000, 3, 20_000), memoryview(b"")]
    meta = store.put("a/b", pieces, crc32=zlib.crc32(data))
    assert oracle.read("a/b") == data
    assert (meta.key, meta.size_bytes) == ("a/b", len(data))
    assert oracle.keys() == {"a/b"}


def test_put_without_a_checksum_stores_too(store: ObjectStore, oracle: Oracle):
    """The checksum is optional."""
    store.put("a", [memoryview(b"data")])
    assert oracle.read("a") == b"data"


def test_get_reads_what_others_stored(store: ObjectStore, oracle: Oracle):
    """An object that another program wrote is read whole."""
    data = noise(100_000)
    oracle.seed("a/b", data)
    found = store.get("a/b", max_bytes=200_000)
    assert found.data == data
    assert (found.meta.key, found.meta.size_bytes) == ("a/b", len(data))


def test_get_stops_at_the_bound(store: ObjectStore):
    """``get`` reads the beginning only, and tells the whole length."""
    data = noise(5000)
    put(store, "a", data)
    found = store.get("a", max_bytes=1000)
    assert (found.data, found.meta.size_bytes) == (data[:1000], 5000)


def test_an_empty_object_is_an_object(store: ObjectStore, oracle: Oracle):
    """An object of no bytes can be stored, described, read and listed."""
    store.put("empty", [])
    assert oracle.read("empty") == b""
    assert store.head("empty").size_bytes == 0
    assert store.get("empty", max_bytes=10).data == b""
    assert [meta.key for meta in store.list()] == ["empty"]


def test_head_describes(store: ObjectStore, oracle: Oracle):
    """``head`` tells key, length, version and time of what another program wrote."""
    oracle.seed("a/b", b"12345")
    meta = store.head("a/b")
    assert (meta.key, meta.size_bytes) == ("a/b", 5)
    if meta.modified_at is not None:
        assert abs(datetime.now(timezone.utc) - meta.modified_at) < timedelta(minutes=5)


def test_all_verbs_agree_on_the_version(store: ObjectStore):
    """``put``, ``head``, ``get`` and ``list`` name one version by one token."""
    etag = put(store, "a", b"1").etag
    assert etag
    assert store.head("a").etag == etag
    assert store.get("a", max_bytes=1).meta.etag == etag
    assert [meta.etag for meta in store.list()] == [etag]


def test_another_content_is_another_version(store: ObjectStore):
    """A put replaces the object, and its version token changes."""
    first = put(store, "a", b"1")
    second = put(store, "a", b"22")
    assert first.etag != second.etag
    assert store.get("a", max_bytes=10).data == b"22"


@pytest.mark.parametrize("verb", ["head", "get", "get_range"])
def test_a_missing_object_is_not_found(store: ObjectStore, verb: str):
    """Reading what is not there raises NotFoundError with the key."""
    call = {
        "head": lambda: store.head("a/missing"),
        "get": lambda: store.get("a/missing", max_bytes=1),
        "get_range": lambda: store.get_range("a/missing", 0, [memoryview(bytearray(1))]),
    }[verb]
    put(store, "a/other", b"1")
    with pytest.raises(NotFoundError) as caught:
        call()
    assert (caught.value.key or "").endswith("a/missing")


def test_delete_removes_the_named_objects_only(store: ObjectStore, oracle: Oracle):
    """Deleting removes these keys, and no others that begin alike."""
    for key in ("a/b", "ab", "ab.c", "b/c", "b/cd"):
        oracle.seed(key, b"1")
    store.delete(["ab", "b/c"])
    assert oracle.keys() == {"a/b", "ab.c", "b/cd"}


def test_deleting_what_is_not_there_succeeds(store: ObjectStore, oracle: Oracle):
    """Missing keys count as deleted, alone and among others; no keys at all is nothing to do."""
    oracle.seed("a", b"1")
    store.delete([])
    store.delete(["missing"])
    store.delete(["missing", "a", "missing/too"])
    assert oracle.keys() == set()


def test_delete_takes_any_number_of_keys(store: ObjectStore, oracle: Oracle):
    """More keys than a provider takes at once are deleted in batches."""
    for key in ("k/3", "k/1007", "stays"):
        oracle.seed(key, b"1")
    store.delete([f"k/{number}" for number in range(1100)])
    assert oracle.keys() == {"stays"}


def test_a_put_with_a_wrong_checksum_is_refused(store: ObjectStore, oracle: Oracle):
    """Bytes that are not what their checksum says are not stored."""
    with pytest.raises(ChecksumMismatchError):
        store.put("a", [memoryview(b"data")], crc32=zlib.crc32(b"other"))
    assert oracle.read("a") is None


def test_an_object_may_stand_beside_objects_below_its_key(store: ObjectStore, oracle: Oracle):
    """Keys are texts, not paths: ``a`` and ``a/b`` do not disturb each other."""
    put(store, "a", b"1")
    put(store, "a/b", b"2")
    assert (oracle.read("a"), oracle.read("a/b")) == (b"1", b"2")
    store.delete(["a"])
    assert oracle.keys() == {"a/b"}
