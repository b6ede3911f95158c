"""Keys are any text that a provider takes, literally."""

from __future__ import annotations

import pytest

from dcp_cloud.stores.base import IfAbsent, ObjectStore
from tests.conformance.data import put
from tests.conformance.oracles import Oracle

_KEYS = (
    "with space/and  two",
    "plus+and&and=and?and#and;and:and,and@",
    "percent%20is%2Fliteral%",
    "ünï/cödé/日本語/🙂",
    "quotes'\"<>[]{}|^`~$!()*",
    ".metadata",
    ".hidden/__0_0.distcp",
    "a" * 200 + "/" + "b" * 200 + "/" + "c" * 200,
    "trailing.dot./x",
)


@pytest.mark.parametrize("key", _KEYS)
def test_keys_are_taken_literally(store: ObjectStore, oracle: Oracle, key: str):
    """Every verb takes the key as it is, neither encoding nor decoding it twice."""
    put(store, key, b"12345")
    assert oracle.keys() == {key}
    assert oracle.read(key) == b"12345"
    assert store.head(key).key == key
    assert store.get(key, max_bytes=9).data == b"12345"
    buffer = bytearray(2)
    store.get_range(key, 1, [memoryview(buffer)])
    assert buffer == b"23"
    assert [meta.key for meta in store.list()] == [key]
    if "/" in key:
        assert list(store.list_prefixes()) == [key.partition("/")[0]]
        assert [meta.key for meta in store.list(key.rpartition("/")[0])] == [key]
    store.delete([key, key + "-missing"])
    assert oracle.keys() == set()


@pytest.mark.parametrize("key", _KEYS)
def test_uploads_and_conditions_take_keys_literally(store: ObjectStore, oracle: Oracle, key: str):
    """So do uploads in parts and conditional puts."""
    upload = store.create_multipart(key)
    assert [found.key for found in store.list_multiparts()] == [key]
    upload.complete([upload.put_part(0, [memoryview(b"1")])])
    assert oracle.read(key) == b"1"
    store.delete([key])
    store.put(key, [memoryview(b"2")], condition=IfAbsent())
    assert oracle.read(key) == b"2"


def test_a_backslash_is_no_slash(store: ObjectStore, oracle: Oracle):
    """A backslash is a character like any other."""
    put(store, "back\\slash", b"1")
    assert oracle.keys() == {"back\\slash"}
    assert store.get("back\\slash", max_bytes=9).data == b"1"
